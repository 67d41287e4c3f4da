"""Groups of models whose layers are of several kinds: what is there is found, what is not is left out and listed."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from frankenlm.degradation.weights.groups import describe_groups, select_group, ungrouped
from frankenlm.degradation.weights.mixers import MIXER_GROUPS, STATE_NORM
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.trainer_ext.checking.families import family_names
from frankenlm.trainer_ext.checking.opening import plan_type
from frankenlm.trainer_ext.common.cli import UserError
from meta_models import HYBRIDS

# what a layer of a kind has beside attention and feed-forward, as configurations call it
RECURRENT = {"linear_attention", "conv", "hybrid"}
PARTS = (*MIXER_GROUPS, STATE_NORM)
BRIEFLY = ("kimi_linear", "lfm2", "mamba2", "qwen3_next", "rwkv")  # of different build; the others at length
FAMILIES = [pytest.param(name, marks=[] if name in BRIEFLY else pytest.mark.slow) for name in HYBRIDS]


def empty(name, **fields):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(plan_type(name, fields).config)


def numbers(text):
    """`0-2,5` -> {0, 1, 2, 5}"""
    if text == "-":
        return set()
    ends = [(piece.split("-") * 2)[:2] for piece in text.split(",")]
    return {number for first, last in ends for number in range(int(first), int(last) + 1)}


@pytest.mark.parametrize("name", FAMILIES)
def test_mixers_lie_in_the_layers_that_the_configuration_says(name):
    model = empty(name)
    rows = {row["group"]: row for row in describe_groups(model)}
    kinds = getattr(model.config, "layer_types", None) or ["linear_attention"] * model.config.num_hidden_layers
    expected = {layer for layer, kind in enumerate(kinds) if kind in RECURRENT}
    assert numbers(rows["mixer"]["layers"]) == expected
    assert numbers(rows["mixer"]["without"]) == set(range(len(kinds))) - expected
    assert numbers(rows["mixer_out"]["layers"]) == numbers(rows["mixer_in"]["layers"]) == expected
    for row in rows.values():
        assert select_group(model, row["group"]).tensors == row["tensors"] > 0, row["group"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_a_mixer_is_in_one_group(name):
    """An oracle by modules: all parameters of the modules that hold a mixer's projection out, but for biases."""
    model = empty(name)
    parts = {part: select_group(model, part).targets for part in PARTS if has(model, part)}
    grouped = [target.name for targets in parts.values() for target in targets]
    assert len(grouped) == len(set(grouped))
    roots = {target.name.rpartition(".")[0].rpartition(".")[0] for target in parts["mixer_out"]}
    inside = {f"{root}.{key}" for root in roots for key, _ in model.get_submodule(root).named_parameters()}
    assert set(grouped) == {each for each in inside if not each.endswith(".bias")}
    convolutions = {
        path
        for root in roots
        for path, module in model.get_submodule(root).named_modules(prefix=root)
        if isinstance(module, nn.Conv1d)
    }
    taps = {target.name.rpartition(".")[0] for target in parts.get("mixer_conv", ()) if "time_mix" not in target.name}
    assert taps == convolutions
    assert {target.name for target in select_group(model, "mixer").targets} == {
        target.name for part in MIXER_GROUPS for target in parts.get(part, ())
    }


def has(model, group):
    return any(row["group"] == group for row in describe_groups(model))


def test_what_no_group_holds_is_told():
    left = {row["parameter"]: row for row in ungrouped(empty("qwen3_next"))}
    assert left == {
        "text/layers.*.mlp.shared_expert_gate.weight": {
            "parameter": "text/layers.*.mlp.shared_expert_gate.weight",
            "tensors": 2,
            "elements": 64,
        }
    }


def test_roles_of_a_mixer_s_weights():
    """The split by hand, of three families of different build."""
    expected = {
        "kimi_linear": {
            "mixer_in": "q_proj k_proj v_proj",
            "mixer_out": "o_proj",
            "mixer_gate": "b_proj g_a_proj g_b_proj",
            "mixer_decay": "dt_bias A_log f_a_proj f_b_proj",
            "mixer_conv": "conv1d",
            "state_norm": "o_norm",
        },
        "mamba2": {
            "mixer_in": "in_proj",
            "mixer_out": "out_proj",
            "mixer_decay": "dt_bias A_log",
            "mixer_conv": "conv1d",
            "mixer_skip": "D",
            "state_norm": "norm",
        },
        "rwkv": {
            "mixer_in": "key value",
            "mixer_out": "output",
            "mixer_gate": "receptance",
            "mixer_decay": "time_decay",
            "mixer_conv": "time_mix_key time_mix_value time_mix_receptance",
            "mixer_skip": "time_first",
        },
    }
    for name, parts in expected.items():
        model = empty(name)
        found = {part: select_group(model, f"{part}@L0").targets for part in parts}
        last = {part: [re.sub(r"\.weight$", "", each.name).split(".")[-1] for each in found[part]] for part in parts}
        assert {part: set(names) for part, names in last.items()} == {p: set(w.split()) for p, w in parts.items()}
        assert [part for part in PARTS if has(model, part)] == [part for part in PARTS if part in parts]


def test_attention_that_convolves_its_keys_is_no_mixer_with_a_state():
    rows = {row["group"] for row in describe_groups(empty("inkling_text"))}
    assert not rows & {"mixer", *PARTS} and "attn_only" in rows


@pytest.mark.parametrize("group", ["mixer_in+attn_only", "mixer+mixer_out", "state_norm+norm"])
def test_groups_that_share_weights_are_no_union(group):
    with pytest.raises(ValueError, match="its parts overlap"):
        select_group(empty("olmo_hybrid"), group)


# --- experts and windows


def test_experts_by_number_of_stacks_and_of_lists(meta_model):
    model = empty("qwen3_next")
    whole = select_group(model, "mlp_experts")
    one, three = select_group(model, "mlp_experts#2"), select_group(model, "mlp_experts#0,2-3@L1")
    assert one.numel * 4 == whole.numel and three.numel * 8 == whole.numel * 3
    assert {target.part for target in one.targets} == {"expert 2"}
    assert list(one.targets[0].runs()) == [(2 * 64 * 32, 64 * 32)]
    own = meta_model("legacy_1bit")
    with pytest.raises(ValueError, match="matches no parameter"):
        select_group(own, "mlp_experts#0")
    listed = meta_model("frankenstein", num_experts=4, top_k_experts=2)
    assert {target.expert for target in select_group(listed, "mlp_experts#1,3").targets} == {1, 3}


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("mlp_experts#4", "the model has no expert 4; there are experts 0 to 3"),
        ("mlp_experts#x", "experts '#x': 'x' is no expert and no range of experts"),
        ("attn_only#1", "only mlp_experts has experts by number; leave out '#1'"),
        ("mlp_only@3of2", "write 1of2 to 2of2"),
        ("mixer@L1", "nothing of it lies in these layers"),
    ],
)
def test_experts_and_windows_that_are_not_there(group, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select_group(empty("qwen3_next"), group)


def test_windows_of_depth_part_the_layers(meta_model):
    model = meta_model("llama")
    found = [[target.layer for target in select_group(model, f"attn_only@{n}of3").targets] for n in (1, 2, 3)]
    assert found == [[0], [1], [2, 3]]


# --- memories


def test_slot_and_delta_memories_have_groups(meta_model):
    model = meta_model("infinito")
    names = {group: {t.canonical.split(".")[2] for t in select_group(model, group).targets} for group in MEMORY}
    assert names == {
        "memory": {"q_proj", "k_proj", "v_proj", "o_proj"},  # as ever
        "memory_read": {"q_proj", "o_proj", "gate"},
        "memory_write": {"k_proj", "v_proj", "pooling", "importance"},
    }
    model = meta_model("frankenstein", layer_pattern=["titan_attn", "retnet"], use_titan_memory=True)
    names = {group: {t.canonical.split(".")[4] for t in select_group(model, group).targets} for group in MEMORY}
    assert names == {
        "memory": {"forget_proj", "write_proj", "read_proj"},
        "memory_read": {"read_proj"},
        "memory_write": {"forget_proj", "write_proj"},
    }


MEMORY = ("memory", "memory_read", "memory_write")


# --- damage


@pytest.mark.parametrize("name", FAMILIES)
def test_mixers_are_damaged_and_restored_bit_for_bit(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(plan_type(name).config).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    group = "+".join(part for part in PARTS if has(model, part))
    with Baseline(model, group) as baseline:
        names = {target.name for target in baseline.targets}
        lesion = apply_damage(baseline, "mult_gauss", 0.3, seed=42, repeat_index=0)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        zero = {key for key in names if not before[key].any()}
        assert names - zero <= changed
        assert lesion["rel_l2"] == pytest.approx(0.3, abs=0.15)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_every_family_of_the_library_has_groups_or_is_no_text_model():
    """Whatever transformers brings: what the table of hybrids does not name has no mixer with a state."""
    found, refused = set(), {}
    for name in family_names():
        try:
            plan = plan_type(name)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(plan.config) if plan.is_decoder else None
        except (UserError, AttributeError, KeyError, TypeError):
            continue  # no text model, or not to be built tiny: the library's page of families tells which
        try:
            if model is not None and has(model, "mixer"):
                found.add(name)
        except ValueError as error:
            refused[name] = str(error)
    assert found == set(HYBRIDS)
    assert refused.keys() <= {"blt"}, refused
