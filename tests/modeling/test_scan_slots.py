"""Attention with slots: the chunked form and the step form against the definition, and against full attention."""

import math
from dataclasses import replace

import pytest
import torch

from frankenlm.modeling.attention_slots_state import AttentionSlotsState
from frankenlm.modeling.scan_slots import SlotOptions, slot_attention, slot_step
from slot_memories import assert_same, assert_same_state

HEADS, WIDTH, LENGTH, DECAY = 2, 4, 23, 0.9


def heads_of(batch, length, seed=0, spread=1.5):
    """Lively q, k, v (B, H, L, K) and importance (B, H, L), in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        spread * torch.randn(batch, HEADS, length, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return q, k, v, spread * torch.randn(batch, HEADS, length, generator=generator, dtype=torch.float64)


def naive(q, k, v, importance, slots, window, segment, decay, scale, keep=lambda *_: None):
    """One row: q, k, v (H, L, K), importance (H, L) -> outputs (H, L, K), slots of each head, slots replaced.

    A slot is a dict with the `token` it holds; `keep(head, position, slots)` sees what a token sees.
    """
    outputs, memories = torch.zeros_like(v), []
    for head in range(q.shape[0]):
        memory, evicted = [None] * slots, 0
        for now in range(q.shape[1]):
            keep(head, now, memory)
            pressure = min(1.0, evicted / slots)
            seen = [(slot["token"], slot) for slot in memory if slot] + [
                (token, None) for token in range(max(0, now - window + 1), now + 1)
            ]
            logits = []
            for token, slot in seen:
                vote = torch.nn.functional.logsigmoid(importance[head, token]) if slot else 0.0
                logits.append((q[head, now] @ k[head, token]) * scale + pressure * vote)
            weights = torch.stack(logits).softmax(0)
            outputs[head, now] = sum(weight * v[head, token] for weight, (token, _) in zip(weights, seen, strict=True))
            for weight, (_, slot) in zip(weights.tolist(), seen, strict=True):
                if slot:
                    slot["use"] += weight
            leaving = now - window + 1
            if leaving >= 0:
                standing = [-math.inf if slot is None else slot["standing"] for slot in memory]
                chosen = standing.index(min(standing))
                evicted += memory[chosen] is not None
                memory[chosen] = {"token": leaving, "standing": math.inf, "use": 0.0, "age": 0}
            if (now + 1) % segment == 0:
                kept = [slot for slot in memory if slot]
                for slot in kept:
                    slot["age"] += 1
                most = max((slot["use"] for slot in kept), default=0) or 1
                oldest = max((slot["age"] for slot in kept), default=0) or 1
                for slot in kept:
                    vote = 1 / (1 + math.exp(-importance[head, slot["token"]].item()))
                    slot["standing"] = (
                        vote * decay ** slot["age"] + 0.1 * slot["use"] / most - 0.05 * slot["age"] / oldest
                    )
        memories.append(memory)
    return outputs, memories, evicted


# slots, window, segment: tight and roomy, windows shorter and longer than a segment, all of one
SIZES = [(7, 5, 3), (8, 3, 8), (5, 1, 5), (3, 9, 2), (3, 6, 1), (22, 6, 7)]
every_size = pytest.mark.parametrize(("slots", "window", "segment"), SIZES)


def options(window, segment, **more):
    return SlotOptions(window=window, segment=segment, decay=DECAY, scale=WIDTH**-0.5, **more)


def fresh(inputs, slots):
    return AttentionSlotsState.empty(inputs[1], inputs[3], slots)


def in_pieces(inputs, state, chosen, cuts):
    """Outputs and state when the tokens come in calls that end at `cuts`."""
    outputs = []
    for start, stop in zip((0, *cuts), (*cuts, inputs[0].shape[2]), strict=True):
        piece = [x[:, :, start:stop] for x in inputs]
        if stop - start == 1:
            output, state = slot_step(*piece, state, chosen)
        else:
            output, state, _ = slot_attention(*piece, None, state, chosen)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state


@every_size
def test_chunks_are_the_definition_gradients_included(slots, window, segment):
    inputs = [x.requires_grad_() for x in heads_of(1, LENGTH)]
    ours, state, _ = slot_attention(*inputs, None, fresh(inputs, slots), options(window, segment), is_fresh=True)
    rows = [naive(*(x[row] for x in inputs), slots, window, segment, DECAY, WIDTH**-0.5) for row in range(1)]
    theirs = torch.stack([outputs for outputs, _, _ in rows])
    assert_same(ours, theirs)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = torch.autograd.grad((theirs * weights).sum(), inputs, materialize_grads=True)
    for actual, oracle in zip(torch.autograd.grad((ours * weights).sum(), inputs), expected, strict=True):
        assert_same(actual, oracle)
    replaced = max(LENGTH - window + 1 - slots, 0)
    assert bool(expected[3].any()) == (replaced > 0), "an importance learns where slots are replaced, and only there"
    for row, (_, memories, evicted) in enumerate(rows):
        assert state.overwrites[row] == evicted == replaced
        for head, memory in enumerate(memories):
            for index, slot in enumerate(memory):
                place = (row, head, index)
                if slot is None:
                    assert not state.occupied[place]
                    continue
                assert_same(state.keys[place], inputs[1][row, head, slot["token"]])
                assert_same(state.values[place], inputs[2][row, head, slot["token"]])
                assert state.age[place] == slot["age"]
                assert state.use[place] == pytest.approx(slot["use"], abs=1e-10)


@every_size
@pytest.mark.parametrize("cuts", [range(1, LENGTH), (1, 2, 13, 14), (3, 6, 18)], ids=["steps", "mixed", "even"])
def test_steps_and_pieces_are_the_whole(cuts, slots, window, segment):
    inputs, chosen = heads_of(2, LENGTH), options(window, segment)
    whole, state, _ = slot_attention(*inputs, None, fresh(inputs, slots), chosen)
    ours, last = in_pieces(inputs, fresh(inputs, slots), chosen, tuple(cuts))
    assert_same(ours, whole)
    assert_same_state(last, state)


@pytest.mark.parametrize("missing", [0, 1])
def test_with_a_slot_for_every_token_it_is_full_attention(missing):
    """And with one slot too few it is not."""
    window, inputs = 6, heads_of(2, LENGTH)
    state = fresh(inputs, LENGTH - window - missing)
    ours, last, _ = slot_attention(*inputs, None, state, options(window, 7))
    full = torch.nn.functional.scaled_dot_product_attention(*inputs[:3], is_causal=True)
    assert torch.allclose(ours, full, rtol=1e-10, atol=1e-10) == (missing == 0)
    assert last.overwrites.tolist() == [1 + missing] * 2, "the one for the token that comes next is taken behind it"


@every_size
def test_pads_change_nothing(slots, window, segment):
    inputs, chosen = heads_of(3, LENGTH), options(window, segment, keep_reads=True)
    mask = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[1, :9], mask[2] = False, False
    ours, state, reads = slot_attention(*inputs, mask, fresh(inputs, slots), chosen)
    for row in range(2):
        alone = [x[row : row + 1, :, mask[row]] for x in inputs]
        theirs, own, own_reads = slot_attention(*alone, None, fresh(alone, slots), chosen)
        assert_same(ours[row : row + 1, :, mask[row]], theirs)
        assert_same(reads[row : row + 1, mask[row]], own_reads)
        assert_same_state(state.select(torch.tensor([row])), own)
        assert not ours[row, :, ~mask[row]].any() and not reads[row, ~mask[row]].any()
    assert_same_state(
        state.select(torch.tensor([2])),
        replace(
            fresh(inputs, slots).select(torch.tensor([2])),
            **{name: getattr(state, name)[2:] for name in ("recent_keys", "recent_values", "recent_importance")},
        ),
    )


@every_size
def test_the_future_does_not_leak(slots, window, segment):
    inputs, chosen = heads_of(1, LENGTH), options(window, segment)
    whole, _, _ = slot_attention(*inputs, None, fresh(inputs, slots), chosen)
    for cut in (1, segment, segment + window, LENGTH - 1):
        others = [torch.cat([x[:, :, :cut], 9 * x[:, :, cut:].flip(2)], dim=2) for x in inputs]
        changed, _, _ = slot_attention(*others, None, fresh(inputs, slots), chosen)
        assert torch.equal(changed[:, :, :cut], whole[:, :, :cut])


def test_reads_say_where_the_mass_went():
    slots, window, segment = 7, 5, 3
    inputs, seen = heads_of(2, LENGTH), {}
    _, state, reads = slot_attention(*inputs, None, fresh(inputs, slots), options(window, segment, keep_reads=True))
    assert reads.shape == (2, LENGTH, slots + 1)
    assert_same(reads.sum(2), torch.ones(2, LENGTH).double())
    assert_same(reads[..., :-1].sum((1, 2)), state.slot_mass)

    def keep(head, position, memory):
        seen[head, position] = [index for index, slot in enumerate(memory) if slot]

    naive(*(x[1] for x in inputs), slots, window, segment, DECAY, WIDTH**-0.5, keep)
    for position in range(LENGTH):
        occupied = sorted(set(sum((seen[head, position] for head in range(HEADS)), [])))
        assert reads[1, position, :-1].nonzero().flatten().tolist() == occupied


def test_shuffled_rows_read_the_slots_of_their_neighbour():
    """Alike rows notice nothing; the slots' use is booked where they lie."""
    inputs = heads_of(3, LENGTH)
    alike = [x[:1].expand(3, -1, -1, *x.shape[3:]) for x in inputs]
    for given, same in ((alike, True), (inputs, False)):
        results = [
            slot_attention(*given, None, fresh(given, 7), options(5, 3, shuffle=shuffle)) for shuffle in (False, True)
        ]
        assert torch.allclose(results[0][0], results[1][0], rtol=1e-10, atol=1e-10) == same
        if same:
            assert_same_state(results[0][1], results[1][1])
    window = results[0][1].recent_keys
    assert_same(window, results[1][1].recent_keys)


@pytest.mark.parametrize("windows", [(9, 4), (4, 9), (12, 1)])
def test_another_window_goes_on_from_the_same_memory(windows):
    """With room for all, whatever the windows of the calls: attention over everything."""
    inputs, segment = heads_of(2, LENGTH), 4
    state, outputs = fresh(inputs, LENGTH), []
    for window, piece in zip(windows, (slice(0, 14), slice(14, LENGTH)), strict=True):
        output, state, _ = slot_attention(*(x[:, :, piece] for x in inputs), None, state, options(window, segment))
        outputs.append(output)
    full = torch.nn.functional.scaled_dot_product_attention(*inputs[:3], is_causal=True)
    assert_same(torch.cat(outputs, dim=2), full)


def test_a_shrunk_window_fills_the_slots_in_turn():
    """More tokens leave at once than a segment, or than there are slots."""
    inputs = heads_of(2, LENGTH)
    _, state, _ = slot_attention(*inputs, None, fresh(inputs, 5), options(17, 4))
    _, state, _ = slot_attention(*(x[:, :, :2] for x in inputs), None, state, options(2, 4))
    assert state.occupied.all() and state.overwrites.tolist() == [LENGTH + 2 - 1 - 5] * 2


def test_statistics_are_worked_out_by_hand():
    inputs = [x[:, :1] for x in heads_of(1, 3)]
    state = replace(
        fresh(inputs, 4),
        importance=torch.tensor([[[0.0, 0.0, 5.0, 5.0]]]).double(),
        standing=torch.tensor([[[0.5, float("inf"), float("-inf"), float("-inf")]]]).double(),
        use=torch.tensor([[[2.0, 2.0, 0.0, 0.0]]]).double(),
        overwrites=torch.tensor([1]),
        slot_mass=torch.tensor([4.0]).double(),
        tokens_read=torch.tensor([8]),
    )
    expected = {"slots_used": 2, "mean_importance": 0.5, "rotation": 0.25, "utilisation": 0.5, "slot_mass": 0.5}
    assert {name: value.item() for name, value in state.statistics().items()} == pytest.approx(expected)
    assert not any(value.any() for value in fresh(inputs, 4).statistics().values())
