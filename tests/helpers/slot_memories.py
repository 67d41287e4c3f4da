"""Slot memories that do something, texts for them, and the definition step by step."""

import torch

from frankenlm.modeling.slot_memory import SlotMemory

HIDDEN, WIDTH, HEADS, SEGMENT, DECAY = 10, 6, 2, 4, 0.9
LENGTH = 31
TIGHT, ROOMY = 3, 9  # slots: 7 segments of 31 tokens overwrite three, and leave some of nine empty


def lively(num_slots, segment=SEGMENT, hidden=HIDDEN, width=WIDTH, heads=HEADS):
    """A memory whose every weight matters, in float64."""
    generator = torch.Generator().manual_seed(3)
    memory = SlotMemory(hidden, num_slots=num_slots, width=width, num_heads=heads, segment=segment, decay=DECAY)
    with torch.no_grad():
        for parameter in memory.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(2 * noise / parameter.shape[-1] ** 0.5)
    return memory.double().eval()


def texts(batch, length=LENGTH, hidden=HIDDEN, seed=0):
    return torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(batch, length, seed=1):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[0], mask[1, 5:] = True, False
    return mask


@torch.no_grad()
def naive(memory, tokens, foreign=None):
    """One row (L, D), token by token, straight from the definition.

    `foreign` lists, segment by segment, the slots of another row, to be read in place of the own ones.
    """
    num_slots, key_width = memory.num_slots, memory.width // memory.num_heads
    slots, segment, past = [None] * num_slots, [], []
    outputs, reads, overwrites = [], [], 0
    for h in tokens:
        if not segment:
            past.append([None if slot is None else dict(slot) for slot in slots])
        visible = slots if foreign is None else foreign[len(past) - 1]
        query, read, mass = memory.q_proj.weight @ h, torch.zeros(memory.width).double(), torch.zeros(num_slots + 1)
        for head in range(memory.num_heads):
            columns = slice(head * key_width, (head + 1) * key_width)
            logits = [float("-inf")] * num_slots + [0.0]
            for index, slot in enumerate(visible):
                if slot is not None:
                    match = (query[columns] @ slot["key"][columns]).item() / key_width**0.5
                    logits[index] = match + torch.log(slot["importance"] + 1e-6).item()
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            for index, slot in enumerate(visible):
                if slot is not None:
                    read[columns] += weights[index] * slot["value"][columns]
            mass = mass + weights / memory.num_heads
        gate = torch.sigmoid(memory.gate.weight[0] @ h + memory.gate.bias[0])
        outputs.append(h + gate * (memory.o_proj.weight @ read))
        reads.append(mass)
        segment.append((h, mass))
        if len(segment) < memory.segment:
            continue
        pooling = torch.stack([memory.pooling.weight[0] @ token for token, _ in segment]).softmax(0)
        key, value, vote = torch.zeros(memory.width).double(), torch.zeros(memory.width).double(), 0.0
        for share, (token, _) in zip(pooling, segment, strict=True):
            key, value = key + share * (memory.k_proj.weight @ token), value + share * (memory.v_proj.weight @ token)
            vote = vote + share * (memory.importance.weight[0] @ token + memory.importance.bias[0])
        most_read = max((slot["access"] for slot in slots if slot), default=0)
        oldest = max((slot["age"] for slot in slots if slot), default=0)
        scores = []
        for slot in slots:
            if slot is None:
                scores.append(1e3)
                continue
            scores.append(
                -slot["importance"].item()
                - (0.1 * slot["access"] / most_read if most_read else 0)
                + (0.05 * slot["age"] / oldest if oldest else 0)
            )
        chosen = scores.index(max(scores))
        overwrites += slots[chosen] is not None
        for index, slot in enumerate(slots):
            if slot is not None:
                slot["importance"] = slot["importance"] * memory.decay
                slot["age"] += 1
                slot["access"] += sum(mass[index].item() for _, mass in segment)
        slots[chosen] = {"key": key, "value": value, "importance": torch.sigmoid(vote), "age": 0, "access": 0.0}
        segment = []
    return torch.stack(outputs), torch.stack(reads), slots, overwrites, past


def assert_same(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **({"rtol": 1e-10, "atol": 1e-10} | tolerance))


def assert_same_state(ours, theirs):
    for name, tensor in ours.tensors().items():
        if name not in ("numerator", "denominator", "maximum"):
            assert_same(tensor, getattr(theirs, name), msg=lambda text, name=name: f"{name}: {text}")
    if "numerator" not in ours.tensors():
        return
    # the open segment's pooling, whatever its unit
    unit = (theirs.maximum - ours.maximum).nan_to_num(0).exp()
    assert_same(ours.numerator, theirs.numerator * unit)
    assert_same(ours.denominator, theirs.denominator * unit)
