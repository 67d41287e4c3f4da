"""Hyperbolic attention in runs of queries with a centre each: what one matrix of scores gives, without that matrix."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frankenlm.modeling.positions import hope_cuts, hope_rates
from packed_rows import PackedRows, distance

# In the first layer a centre reaches 631 positions, in the second 601: three runs, one longer than what attention takes
# at once, and an odd rest.
LENGTH, DAMPING = 1301, {"hope_damping": 0.05, "max_position_embeddings": 2000}
DOCUMENTS = ([1, 1100, 200], [640, 660, 1])


def gradients_of(model, inputs):
    model.zero_grad()
    logits = model(use_cache=False, **inputs).logits
    real = inputs.get("attention_mask", torch.ones(logits.shape[:2])).bool()
    (logits * torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)[:, None])[real].sum().backward()
    return [logits.detach()[real], *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def positions(ids):
    return {"position_ids": torch.stack(ids)}


COUNTED, SOME = torch.arange(LENGTH), torch.arange(301)
CASES = {
    "counted": {},
    "window": {"attention_window": 650},
    "left and right pads": {"attention_mask": torch.stack([COUNTED >= 40, COUNTED < 1290]).long()},
    "pads and a window": {
        "attention_window": 700,
        "attention_mask": torch.stack([(COUNTED >= 40) & (COUNTED != 800), COUNTED < 1290]).long(),
    },
    "repeated and strided": positions([SOME // 2, 7 * SOME]),
    "a hole": positions([SOME, SOME + 5000 * (SOME > 150)]),
    "documents": PackedRows(DOCUMENTS).borders("seq_idx"),
    "documents in a window": {"attention_window": 150} | PackedRows(DOCUMENTS).borders("position_ids"),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_give_what_the_matrix_gives(case, tiny_model, tokens):
    inputs = dict(CASES[case])
    fields = DAMPING | {"attention_window": inputs.pop("attention_window", None)}
    model = tiny_model("titan_attn", "rms_norm", True, dtype=torch.float64, **fields)
    results = []
    for implementation in ("eager", "sdpa"):  # eager spells the matrix out, and test_attention.py holds it
        model.set_attn_implementation(implementation)
        ids = tokens(2, inputs["position_ids"].shape[1] if "position_ids" in inputs else LENGTH)
        results.append(gradients_of(model, {"input_ids": ids, **inputs}))
    for expected, actual in zip(*results, strict=True):
        assert distance(actual, expected) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cache_goes_on_behind_many_centres(dtype, tiny_model, tokens):
    model, ids = tiny_model("titan_attn", "rms_norm", True, dtype=dtype, **DAMPING), tokens(2, LENGTH)
    cache, pieces = model.new_cache(), []
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        for start, stop in ((0, 5), (5, 700), (700, 1300), (1300, 1301)):
            pieces.append(model(ids[:, start:stop], cache=cache).logits)
    assert distance(torch.cat(pieces, dim=1), expected) <= (1e-10 if dtype == torch.float64 else 2e-2)


def test_cuts_are_as_few_as_can_be():
    span = hope_rates(4, 0.5, 0.9, 1e4).span
    assert span == 63
    ids = torch.arange(130)[None]
    assert hope_cuts(ids, ids, span, True) == [(0, 63), (63, 126), (126, 130)]
    assert hope_cuts(ids, ids, span, False) == [(0, 63), (63, 126), (126, 130)]
    assert hope_cuts(ids[:, -1:], ids, span, True) == [(0, 1)]
    rows = torch.tensor([[0, 10, 62, 63, 64, 65], [0, 0, 0, 0, 63, 900]])
    assert hope_cuts(rows, rows, span, False) == [(0, 3), (3, 4), (4, 5), (5, 6)]
    assert hope_cuts(rows.flip(1), rows.flip(1), span, False) is None


class LargestTensor(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return output


def test_no_tensor_grows_with_the_square_of_the_length(tiny_model, tokens):
    largest = []
    for length in (1500, 3000):
        model = tiny_model("titan_attn", "rms_norm", True, hope_damping=0.1, max_position_embeddings=3000)
        with LargestTensor() as seen:
            model(tokens(1, length), use_cache=False).logits.sum().backward()
        largest.append(seen.numbers)
    assert largest[1] <= 2 * largest[0]
