"""Groups of families that no other test names: fused layouts by what the model computes, and what is not whole."""

import re
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from frankenlm.degradation.weights.groups import describe_groups, refused_groups, select_group, ungrouped
from frankenlm.degradation.weights.parameter_index import index_parameters
from frankenlm.degradation.weights.units import find_units
from frankenlm.trainer_ext.checking.families import family_names
from frankenlm.trainer_ext.checking.opening import plan_type
from frankenlm.trainer_ext.common.cli import UserError
from meta_models import BESIDE, REFUSED


def made(name, device="meta", **fields):
    torch.manual_seed(0)
    plan = plan_type(name, fields)
    auto = AutoModelForCausalLM if plan.is_decoder else AutoModelForMaskedLM
    with warnings.catch_warnings(action="ignore"), torch.device(device):  # of families about their own layers
        return auto.from_config(plan.config).eval()


def groups_of(model):
    return {row["group"]: row for row in describe_groups(model)}


# --- fused projections


GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2}
ONE_KEY = {"multi_query": True, "new_decoder_architecture": False}
EACH_KEY = {"multi_query": False, "new_decoder_architecture": False}
# family -> fields, the fused projection, the projection out
FUSED = [
    ("falcon", GROUPED, "query_key_value", "dense"),
    ("codegen", {}, "qkv_proj", "out_proj"),
    ("deepseek_v3", {}, "kv_b_proj", "o_proj"),
]
FUSED_MORE = [
    ("falcon", ONE_KEY, "query_key_value", "dense"),
    ("falcon", EACH_KEY, "query_key_value", "dense"),
    ("bloom", {}, "query_key_value", "dense"),
    ("persimmon", {}, "query_key_value", "dense"),
    ("gpt_neox_japanese", {}, "query_key_value", "dense"),
    ("mpt", {}, "Wqkv", "out_proj"),
    ("modernbert", {}, "Wqkv", "Wo"),
    ("deberta", {}, "in_proj", "attention.output.dense"),
    ("gpt_bigcode", {"multi_query": True}, "c_attn", "attn.c_proj"),
    ("gpt_bigcode", {"multi_query": False}, "c_attn", "attn.c_proj"),
    ("openai-gpt", {}, "c_attn", "attn.c_proj"),
    ("minicpm3", {}, "kv_b_proj", "o_proj"),
]


@pytest.mark.parametrize(
    ("name", "fields", "fused", "out"),
    [*FUSED, *(pytest.param(*each, marks=pytest.mark.slow) for each in FUSED_MORE)],
)
def test_parts_of_fused_projections_do_what_they_are_called(name, fields, fused, out):
    """Of an earlier token, queries do not reach what attention gives a later one; without values it gives nothing."""
    model = made(name, "cpu", **fields)
    torch.manual_seed(1)
    for path, parameter in model.named_parameters():
        if f".{fused}." in path:  # far from zero, so that what is attended to matters
            torch.nn.init.normal_(parameter.data, std=0.15 if path.endswith("weight") else 0.0)
    found = {part: _features(model, group, fused) for group, part in PARTS.items()}
    parts = {part: rows for part, rows in found.items() if rows}
    assert sum(len(rows) for rows in parts.values()) == len(set().union(*parts.values()))
    gradient, given = _attention_of(model, fused, out)
    assert set(range(len(gradient))) == set().union(*parts.values())
    assert bool(given.any())
    for part, rows in parts.items():
        assert bool(gradient[sorted(rows)].any()) == (part != "q"), part
        for row in rows:
            assert part == "q" or float(gradient[row].abs()) > 0
    with torch.no_grad():
        for target in select_group(model, "attn_only").targets:
            target.select(target.parameter).zero_()
    assert not _attention_of(model, fused, out)[1].any()


PARTS = {"attn_q": "q", "attn_k": "k", "attn_only": "v"}


def _features(model, group, fused):
    """The outputs of the first layer's fused projection that are of a group."""
    found = [target for target in select_group(model, group).targets if f".{fused}." in target.name]
    if not found:
        return set()
    marks = torch.zeros(found[0].shape)
    found[0].select(marks).fill_(1)
    marks = marks.T if found[0].transposed else marks
    assert bool((marks == marks[:, :1]).all())
    return set(marks[:, 0].nonzero().flatten().tolist())


def _attention_of(model, fused, out):
    """(gradient at the first token's fused outputs, of the last token's inputs to the projection out; these inputs)"""
    modules = dict(model.named_modules())
    first = next(module for path, module in modules.items() if path.endswith(f".{fused}"))
    last = next(module for path, module in modules.items() if path.endswith(f".{out}"))
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["fused"] = output

    hooks = [first.register_forward_hook(keep)]
    hooks.append(last.register_forward_pre_hook(lambda module, inputs: seen.update(given=inputs[0])))
    model(torch.tensor([[5, 9, 14, 3]]))
    for hook in hooks:
        hook.remove()
    given = seen["given"].reshape(4, -1)
    given[-1].square().sum().backward()
    return seen["fused"].grad.reshape(4, -1)[0], given.detach()


@pytest.mark.parametrize("name", ["glm4", pytest.param("modernbert", marks=pytest.mark.slow)])
def test_the_first_half_of_a_fused_feed_forward_is_the_gate(name):
    """What is multiplied with an activation of 0 is 0; the activation of 0 is 0 too, whatever it is multiplied with."""
    model = made(name, "cpu")
    (gate,) = {(target.slice.dim, target.slice.start) for target in select_group(model, "mlp_gate").targets}
    (up,) = {(target.slice.dim, target.slice.start) for target in select_group(model, "mlp_up").targets}
    assert (gate, up) == ((0, 0), (0, 1))
    mlp = next(module for path, module in model.named_modules() if path.endswith(".mlp"))
    fused = next(child for key, child in mlp.named_children() if key in ("gate_up_proj", "Wi"))
    asked = []
    mlp._modules["act" if name == "modernbert" else "activation_fn"].register_forward_pre_hook(
        lambda module, inputs: asked.append(inputs[0])
    )
    x = torch.randn(2, 3, fused.in_features)
    mlp(x)
    assert torch.equal(asked[0], fused(x).chunk(2, dim=-1)[0])


# --- heads and layers


def test_what_a_recurrence_puts_out_is_in_no_attention_and_has_no_heads_of_one():
    """Sizes that fit the attention's heads by chance: 4 x 8 there, 2 x 16 in the delta-net."""
    model = made("qwen3_next", linear_num_value_heads=2, linear_num_key_heads=2, linear_value_head_dim=16)
    attention = [layer for layer, kind in enumerate(model.config.layer_types) if kind == "full_attention"]
    for group in ("attn_o", "attn_q", "attn_only"):
        assert [target.layer for target in select_group(model, group).targets] == attention
    assert find_units(select_group(model, "attn_o"), "head").count == len(attention) * model.config.num_attention_heads
    # each query has a gate beside it, so that its rows are no heads of the width that is stated
    assert {target.head_dim for target in select_group(model, "attn_q").targets} == {None}


def test_heads_are_as_wide_as_the_layer_s_module_says():
    model = made("olmo_hybrid")
    config, widths = model.config, {}
    for group in ("attn_q", "attn_only", "attn_o"):
        for target in select_group(model, group).targets:
            widths.setdefault((group, config.layer_types[target.layer]), set()).add(target.head_dim)
    attention = config.hidden_size // config.num_attention_heads
    assert all(widths[group, "full_attention"] == {attention} for group in ("attn_q", "attn_only", "attn_o"))
    assert widths["attn_q", "linear_attention"] == {config.linear_key_head_dim}
    assert widths["attn_only", "linear_attention"] == {config.linear_value_head_dim}
    assert widths["attn_o", "linear_attention"] == {config.linear_value_head_dim}


def test_gates_of_attention_and_its_experts_are_no_feed_forward():
    afmoe, jetmoe = made("afmoe"), made("jetmoe")
    assert not any("self_attn" in target.name for target in select_group(afmoe, "mlp_gate").targets)
    assert {target.name.split(".")[-3] for target in select_group(jetmoe, "mlp_experts").targets} == {"mlp"}
    assert "text/layers.*.self_attention.experts.input_linear.weight" in {row["parameter"] for row in ungrouped(jetmoe)}


# --- what is not whole, and what is


def test_a_composite_that_lacks_a_part_is_refused_and_told():
    model = made("axk2")
    assert [(row["group"], row["missing"]) for row in refused_groups(model)] == [("attn_qkvo", "attn_q")]
    assert "self_attn.q_gate_proj.weight" in refused_groups(model)[0]["perhaps_in"]
    assert "attn_qkvo" not in groups_of(model) and "attn_o" in groups_of(model)
    with pytest.raises(ValueError, match=r"would not be whole: attn_q of a layer may lie in text/layers\.0"):
        select_group(model, "attn_qkvo+mlp_only")
    known = refused_groups(model)[0]["known"].replace(" ", "+")
    assert select_group(model, known).numel > 0


def test_a_tied_table_is_listed_wherever_its_head_was_made_first(meta_model):
    """XLM-RoBERTa holds its head before its table; otherwise it is RoBERTa."""
    roberta = meta_model("roberta")
    fields = {name: value for name, value in roberta.config.to_dict().items() if name != "model_type"}
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("xlm-roberta", **fields))
    shares = {group: (row["elements"], row["share"]) for group, row in groups_of(model).items()}
    assert shares == {group: (row["elements"], row["share"]) for group, row in groups_of(roberta).items()}
    assert not any("decoder" in row["parameter"] for row in ungrouped(model))


def test_layers_that_are_shared_or_lie_in_lists_of_parts():
    rows = groups_of(made("albert"))
    assert {"embed_only", "norm", "bias", "attn_qkvo", "mlp_only"} <= rows.keys()
    assert rows["mlp_only"]["layers"] == rows["attn_qkvo"]["layers"] == "0"
    model = made("xlm")
    rows = groups_of(model)
    for group in ("attn_qkvo", "mlp_only", "norm"):
        assert rows[group]["layers"] == f"0-{model.config.n_layers - 1}"


@pytest.mark.slow
def test_every_family_has_its_matrices_in_groups_or_on_a_short_list():
    refused, beside = {}, set()
    for name in family_names():
        try:
            model = made(name)
        except (UserError, AttributeError, KeyError, TypeError, ValueError, AssertionError):
            continue  # no text model, or not to be built tiny
        for row in refused_groups(model):
            refused.setdefault(name, set()).add(row["group"])
        for group in ("mlp_gate", "mlp_up", "mlp_down", "mlp_experts"):
            found = select_group(model, group).targets if group in groups_of(model) else ()
            inside = {re.sub(r"^.*?\.\d+\.", "", each.canonical) for each in found}
            assert not [each for each in inside if re.search("att|[Nn]orm|indexer", each)], name
        left = {row["parameter"] for row in ungrouped(model)}
        for entry in index_parameters(model):
            kind = re.sub(r"\.\d+(?=\.)", ".*", entry.canonical)
            is_matrix = entry.layer is not None and entry.modality == "text" and min(sorted(entry.shape)[-2:]) > 1
            if kind in left and len(entry.shape) > 1 and is_matrix and not re.search(BESIDE, kind):
                beside.add(f"{name}: {kind}")
    assert refused == REFUSED
    assert not beside
