"""Parts of fused tensors and heads: groups that hold slices, against each family's layout."""

import math

import pytest
import torch

from frankenlm.degradation.weights.groups import select_group
from meta_models import KV, LAYERS, H, Q

FUSED = {"phi3": "qkv_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}


def _logical(name, parameter, part):
    """Return q, k or v as (heads, width, inputs), by reading the layout as the model's own forward pass does."""
    index = "qkv".index(part)
    if name == "phi3":
        rows = parameter.split([Q, KV, KV], dim=0)[index]
    elif name == "gpt2":
        rows = parameter.split(H, dim=1)[index].T
    else:
        rows = parameter.view(4, 3 * 8, H).chunk(3, dim=1)[index].reshape(-1, H)
    return rows.reshape(-1, 8, H)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("group", "part"), [("attn_only", "v"), ("attn_q", "q"), ("attn_k", "k")])
def test_a_part_of_a_fused_tensor_leaves_the_others_bytes(name, group, part, tiny_model):
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    targets = select_group(model, group).targets
    assert len(targets) == LAYERS and all(FUSED[name] in target.name for target in targets)
    with torch.no_grad():
        for target in targets:
            assert target.select(target.parameter).numel() == target.numel
            target.select(target.parameter).fill_(7.0)
    for key, value in model.state_dict().items():
        if key in {target.name for target in targets}:
            for other in "qkv":
                now, then = _logical(name, value, other), _logical(name, before[key], other)
                assert torch.equal(now, then) if other != part else bool((now == 7.0).all())
        else:
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["phi3", "mixtral", "qwen3_moe"])
def test_gate_and_up_are_the_halves_the_forward_pass_splits(name, tiny_model):
    model = tiny_model(name)
    with torch.no_grad():
        for target in select_group(model, "mlp_gate").targets:
            target.select(target.parameter).fill_(7.0)
    for target in select_group(model, "mlp_up").targets:
        gate, up = target.parameter.chunk(2, dim=-2)
        assert bool((gate == 7.0).all()) and not bool((up == 7.0).any())


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "mixtral", "llama"])
@pytest.mark.parametrize("group", ["attn_only", "attn_qkvo", "mlp_only"])
def test_runs_are_the_flat_indices_of_what_is_selected(name, group, meta_model):
    for target in select_group(meta_model(name), group).targets:
        index = torch.arange(math.prod(target.shape)).view(target.shape)
        selected = target.select(index).flatten()
        runs = torch.cat([torch.arange(start, start + length) for start, length in target.runs()])
        assert torch.equal(runs, selected.sort().values) and len(runs) == target.numel


def test_fused_projections_are_one_tensor_with_disjoint_parts(meta_model):
    group = select_group(meta_model("phi3"), "attn_qkvo")
    assert (len(group.targets), group.tensors) == (4 * LAYERS, 2 * LAYERS)
    assert len(group.elements) == 4 * LAYERS
    assert [target.part for target in group.targets[:4]] in (["q", "k", "v", None], [None, "q", "k", "v"])


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gpt_neox", "bert", "frankenstein", "gemma3_mm"])
def test_heads_lie_where_they_are_said_to_lie(name, tiny_model):
    """Zero one head of V: exactly its outputs vanish from the projection."""
    model = tiny_model(name)
    target = select_group(model, "attn_only").targets[0]
    head = torch.arange(target.shape[target.head_axis]) // target.head_dim
    keep = (head != (2 if name == "gpt_neox" else head[-1])).float()  # NeoX: block 2 is V of the first head
    shape = [1] * 2
    shape[target.head_axis] = -1
    with torch.no_grad():
        target.select(target.parameter).mul_(target.select((keep.view(shape)).expand(target.shape).contiguous()))
    values = _logical(name, target.parameter, "v") if name in FUSED else target.parameter.view(-1, 8, H)
    assert target.head_dim == 8
    assert [bool(v.any()) for v in values].count(False) == 1
    output = select_group(model, "attn_o").targets[0]
    assert output.head_axis != target.head_axis and output.transposed == (name == "gpt2")
