"""The slot memory: its forms against each other and against a reference written per token, in float64."""

import pytest
import torch
from torch.func import functional_call

from frankenlm.modeling.segment_grid import SegmentGrid
from frankenlm.modeling.slot_memory import SlotMemory
from frankenlm.modeling.slot_memory_state import SlotMemoryState
from slot_memories import (
    HIDDEN,
    LENGTH,
    ROOMY,
    SEGMENT,
    TIGHT,
    WIDTH,
    assert_same,
    assert_same_state,
    lively,
    naive,
    random_mask,
    texts,
)
from tiny_infinito import tiny_infinito


@pytest.fixture
def segment_loop(monkeypatch):
    """Force the form that goes segment by segment."""

    def force():
        monkeypatch.setattr(SlotMemory, "has_room", lambda *_: False)

    return force


# --- against the definition


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
def test_is_the_definition(num_slots):
    memory, x = lively(num_slots), texts(3)
    output, state, reads = memory(x, keep_reads=True)
    assert (output - x).std() > 0.3, "what is read must matter"
    for row in range(3):
        expected, masses, slots, overwrites, _ = naive(memory, x[row])
        assert_same(output[row], expected)
        assert_same(reads[row], masses)
        assert state.overwrites[row] == overwrites == max(0, LENGTH // SEGMENT - num_slots)
        assert_same(state.null_mass[row], masses[:, -1].sum())
        assert state.occupied[row].tolist() == [slot is not None for slot in slots]
        for index, slot in enumerate(slots):
            if slot is None:
                assert state.importance[row, index] == state.age[row, index] == state.access[row, index] == 0
                continue
            assert_same(state.keys[row, index], slot["key"])
            assert_same(state.values[row, index], slot["value"])
            assert_same(state.importance[row, index], slot["importance"])
            assert state.age[row, index] == slot["age"]
            assert_same(state.access[row, index].item(), slot["access"])


def test_slots_are_replaced_in_more_than_one_order():
    """Otherwise the choice of the slot would not have been tested above."""
    memory = lively(TIGHT)
    state = memory(texts(8, 60))[1]
    assert len({tuple(row) for row in state.age.tolist()}) > 1


@pytest.mark.parametrize("length", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT])
def test_short_texts(length):
    memory, x = lively(TIGHT), texts(2, length)
    output, state, _ = memory(x)
    assert_same(output[1], naive(memory, x[1])[0])
    assert state.count.tolist() == [length % SEGMENT] * 2


def test_read_mass_sums_to_one():
    reads = lively(TIGHT)(texts(2), keep_reads=True)[2]
    assert_same(reads.sum(-1), torch.ones(2, LENGTH).double())
    assert reads[:, :SEGMENT, -1].eq(1).all() and reads[:, SEGMENT:, :-1].sum(-1).gt(0).all()


# --- the forms


@pytest.mark.parametrize("shuffle", [False, True], ids=["own", "shuffled"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_parallel_form_is_the_loop(carried, padded, shuffle, segment_loop):
    memory, x = lively(2 * ROOMY), texts(4)
    mask = random_mask(4, LENGTH) if padded else None
    state = memory(texts(4, 11, seed=5), random_mask(4, 11, seed=6))[1] if carried else None
    results = memory(x, mask, state, shuffle=shuffle, keep_reads=True)
    segment_loop()
    expected = memory(x, mask, state, shuffle=shuffle, keep_reads=True)
    assert_same(results[0], expected[0])
    assert_same(results[2], expected[2])
    assert_same_state(results[1], expected[1])


def test_empty_slots_amid_full_ones_are_filled_first(segment_loop):
    memory, state = lively(ROOMY), lively(ROOMY)(texts(2, 20))[1]
    erased = state.tensors()
    for name in ("keys", "values", "importance", "age", "access", "open_access", "occupied"):
        erased[name] = erased[name].clone()
        erased[name][:, [1, 3]] = 0
    state = SlotMemoryState(**erased)
    results = memory(texts(2, 16, seed=8), None, state)
    assert results[1].occupied.sum(1).tolist() == [7, 7] and results[1].occupied[:, :7].all()
    segment_loop()
    expected = memory(texts(2, 16, seed=8), None, state)
    assert_same(results[0], expected[0])
    assert_same_state(results[1], expected[1])


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [4, 4, 23], [3, 17, 1, 10], [30, 1]], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_text_in_pieces_is_the_text(num_slots, sizes, padded):
    memory, x = lively(num_slots), texts(3)
    mask = random_mask(3, LENGTH) if padded else None
    output, state, reads = memory(x, mask, keep_reads=True)
    pieces, carried, start = [], None, 0
    for size in sizes:
        piece = slice(start, start + size)
        result = memory(x[:, piece], None if mask is None else mask[:, piece], carried, keep_reads=True)
        pieces.append((result[0], result[2]))
        carried, start = result[1], start + size
    assert_same(torch.cat([output for output, _ in pieces], dim=1), output)
    assert_same(torch.cat([reads for _, reads in pieces], dim=1), reads)
    assert_same_state(carried, state)


def test_scores_of_any_size_are_pooled():
    memory = lively(ROOMY)
    with torch.no_grad():
        memory.pooling.weight.mul_(1e4)
    x = texts(2)
    whole, state, _ = memory(x)
    _, first, _ = memory(x[:, :14])
    assert_same(memory(x[:, 14:], None, first)[0], whole[:, 14:])
    assert all(tensor.isfinite().all() for name, tensor in state.tensors().items() if name != "maximum")


# --- what must not matter


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_changes_nothing(num_slots, side):
    memory, x = lively(num_slots), texts(3)
    pads = 6
    at = {"left": 0, "right": LENGTH, "inside": 9}[side]
    longer = torch.cat([x[:, :at], torch.zeros(3, pads, HIDDEN).double(), x[:, at:]], dim=1)
    mask = torch.ones(3, LENGTH + pads, dtype=torch.bool)
    mask[:, at : at + pads] = False
    expected, state, _ = memory(x)
    output, padded_state, reads = memory(longer, mask, keep_reads=True)
    assert_same(output[mask].view_as(x), expected)
    assert_same_state(padded_state, state)
    assert output[~mask].eq(0).all() and reads[~mask].eq(0).all()


def test_a_row_of_pads_stays_empty():
    memory, x = lively(ROOMY), texts(2)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1] = False
    output, state, _ = memory(torch.where(mask[..., None], x, 0.0), mask)
    empty = SlotMemoryState.empty(1, ROOMY, WIDTH, x)
    assert_same_state(state.select(torch.tensor([1])), empty)
    assert output.isfinite().all() and all(value[1] == 0 for value in state.statistics().values())


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
def test_rows_do_not_meet(num_slots):
    memory, x = lively(num_slots), texts(4)
    whole, state, _ = memory(x)
    alone, own_state, _ = memory(x[2:3])
    assert_same(whole[2:3], alone)
    assert_same_state(state.select(torch.tensor([2])), own_state)


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
@pytest.mark.parametrize("at", [1, SEGMENT - 1, SEGMENT, 2 * SEGMENT + 1, LENGTH - 1])
def test_the_future_is_not_seen(num_slots, at):
    memory, x = lively(num_slots), texts(2)
    changed = torch.cat([x[:, :at], texts(2, LENGTH - at, seed=9)], dim=1)
    assert torch.equal(memory(x)[0][:, :at], memory(changed)[0][:, :at])


def test_a_token_is_seen_from_the_next_segment_on():
    memory, x = lively(ROOMY), texts(1)
    at = SEGMENT + 1
    changed = x.clone()
    changed[:, at] += 1
    moved = (memory(x)[0] - memory(changed)[0]).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [at, *range(2 * SEGMENT, LENGTH)]


# --- the choice of a slot


def state_with(importance, access, age, occupied=None):
    state = SlotMemoryState.empty(1, len(importance), WIDTH, torch.zeros(1).double())
    fields = state.tensors()
    fields["importance"], fields["access"], fields["age"] = (
        torch.tensor([x]).double() for x in (importance, access, age)
    )
    fields["occupied"] = torch.tensor([occupied or [True] * len(importance)])
    return SlotMemoryState(**fields)


@pytest.mark.parametrize(
    ("state", "chosen"),
    [
        (state_with([0.5, 0.4, 0.6], [0, 0, 0], [0, 0, 0]), 1),
        (state_with([0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0]), 0),
        (state_with([0.5, 0.5, 0.5], [2, 2, 1], [0, 0, 0]), 2),
        (state_with([0.5, 0.44, 0.5], [0.1, 0.1, 0], [0, 0, 0]), 2),  # 0.1 of access outweighs 0.06 of importance
        (state_with([0.5, 0.38, 0.5], [0.1, 0.1, 0], [0, 0, 0]), 1),  # but not 0.12
        (state_with([0.5, 0.5, 0.5], [0, 0, 0], [3, 7, 7]), 1),
        (state_with([0.5, 0.46, 0.5], [0, 0, 0], [0, 0, 7]), 2),  # 0.05 of age outweighs 0.04
        (state_with([0.5, 0.44, 0.5], [0, 0, 0], [0, 0, 7]), 1),  # but not 0.06
        (state_with([0.01, 0, 0], [0, 0, 0], [9, 0, 0], [True, False, False]), 1),
    ],
)
def test_choice(state, chosen):
    assert lively(3).choose(state).tolist() == [chosen]


# --- gradients and precision


@pytest.mark.parametrize("num_slots", [2, 4])
def test_gradcheck(num_slots):
    """Through seven tokens, three writes and, with two slots, an overwrite."""
    memory = lively(num_slots, segment=2, hidden=3, width=2, heads=1)
    names, values = zip(*memory.named_parameters(), strict=True)
    x = texts(2, 7, hidden=3)

    def outputs(x, *values):
        output, state, _ = functional_call(memory, dict(zip(names, values, strict=True)), (x,))
        return output, state.keys, state.values, state.importance

    assert torch.autograd.gradcheck(outputs, (x.requires_grad_(), *values))


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
def test_gradients_reach_every_parameter(num_slots):
    memory = lively(num_slots)
    memory(texts(2))[0].square().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, name


@pytest.mark.parametrize("length", [1, 5, SEGMENT])
def test_in_training_no_parameter_lacks_a_gradient(length):
    """As long as nothing has been written, some are zero; DDP wants them all the same."""
    memory = lively(TIGHT).train()
    memory(texts(2, length))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in memory.parameters())


def test_starts_as_the_identity_and_leaves_it():
    memory, x = lively(ROOMY), texts(2)
    memory.o_proj.initialize_parameters()
    output = memory(x)[0]
    assert torch.equal(output, x)
    output.square().sum().backward()
    assert memory.o_proj.weight.grad.abs().max() > 0


def test_a_carried_state_carries_the_gradient_unless_detached():
    memory = lively(ROOMY)
    first = texts(1, 10).requires_grad_()
    state = memory(first)[1]
    second = texts(1, 10, seed=4)
    whole = torch.autograd.grad(memory(torch.cat([first, second], 1))[0][:, 10:].sum(), first)[0]
    assert_same(torch.autograd.grad(memory(second, None, state)[0].sum(), first)[0], whole)
    assert whole.abs().max() > 1e-3
    assert not memory(second, None, state.detach())[1].detach().keys.requires_grad
    with pytest.raises(RuntimeError, match="not.*have been used|does not require grad"):
        torch.autograd.grad(memory(second, None, state.detach())[0].sum(), first)


def test_state_is_float32_in_half_precision():
    memory, x = lively(ROOMY).float(), texts(2).float()
    expected = memory(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, state, _ = memory(x)
    assert {tensor.dtype for tensor in state.tensors().values() if tensor.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(output, expected, rtol=0.1, atol=0.1)
    output, state, _ = memory.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16 and state.keys.dtype == state.numerator.dtype == torch.float32


def test_autocast_does_not_reach_the_memory(monkeypatch):
    """Given what the projections return, reads and writes are the same to the bit."""
    memory, x = lively(ROOMY).float(), texts(2).float()
    projected = memory.project(x)
    monkeypatch.setattr(memory, "project", lambda _: projected)
    expected = memory(x, keep_reads=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, state, reads = memory(x, keep_reads=True)
    assert torch.equal(reads, expected[2])
    assert all(torch.equal(tensor, getattr(expected[1], name)) for name, tensor in state.tensors().items())


# --- the shuffled ablation, statistics, the state as an object


@pytest.mark.parametrize("num_slots", [TIGHT, ROOMY])
def test_shuffled_rows_read_the_next_row(num_slots):
    memory, x = lively(num_slots), texts(3)
    if num_slots == TIGHT:  # reads decide nothing there, so that both know which slots are replaced
        x = x[:, : SEGMENT * num_slots + 1]
    output, state, reads = memory(x, shuffle=True, keep_reads=True)
    for row in range(3):
        past = naive(memory, x[(row + 1) % 3])[-1]
        expected, masses, *_ = naive(memory, x[row], past)
        assert_same(output[row], expected)
        assert_same(reads[row], masses)
    full = reads.shape[1] // SEGMENT * SEGMENT
    assert_same(state.access.sum(1).roll(-1), reads[:, :full, :-1].sum((1, 2)))


def test_statistics():
    memory, x = lively(TIGHT), texts(3)
    _, state, reads = memory(x, keep_reads=True)
    statistics = state.statistics()
    assert statistics["slots_used"].tolist() == [3] * 3
    assert_same(statistics["rotation"], torch.tensor([4 / 3] * 3), rtol=1e-6, atol=0)
    assert_same(statistics["null_mass"], reads[..., -1].mean(1))
    assert_same(statistics["mean_importance"], state.importance.mean(1))
    assert memory(x[:, :SEGMENT])[1].statistics()["slots_used"].tolist() == [1] * 3
    one = memory(x[:, :SEGMENT])[1]
    assert_same(one.statistics()["mean_importance"], one.importance[:, 0])


def test_a_state_is_not_changed_by_using_it():
    memory, state = lively(TIGHT), lively(TIGHT)(texts(2, 14))[1]
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    memory(texts(2), None, state)
    memory(texts(2, 1), None, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_select_repeats_and_reorders():
    state = lively(TIGHT)(texts(3, 14))[1]
    picked = state.select(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.keys, state.keys[[2, 0, 2]]) and torch.equal(picked.count, state.count[[2, 0, 2]])


@pytest.mark.parametrize(("batch", "slots", "width"), [(3, 4, 6), (2, 5, 6), (2, 4, 3)])
def test_a_state_that_does_not_fit_is_refused(batch, slots, width):
    state = SlotMemoryState.empty(batch, slots, width, torch.zeros(1))
    with pytest.raises(ValueError, match=r"memory_state\[0\] holds keys of shape .* = \(2, 4, 6\)"):
        state.check(
            "memory_state[0]",
            2,
            tiny_infinito(memory_slots=4, memory_dim=6, memory_segment=16, memory_heads=1),
            torch.device("cpu"),
        )


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_grid_brings_tokens_back(length):
    x, count = texts(3, length), torch.tensor([0, 3, 2])
    mask = random_mask(3, length)
    grid = SegmentGrid.lay_out(count, length, mask, SEGMENT, is_fresh=False)
    assert_same(grid.collect(grid.spread(x), length), torch.where(mask[..., None], x, 0.0))
    assert (grid.closed * SEGMENT + grid.count).tolist() == (count + mask.sum(1)).tolist()
