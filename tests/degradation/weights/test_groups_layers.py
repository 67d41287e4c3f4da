"""Unions of groups, groups of some layers, and groups that cannot be."""

import re

import pytest

from frankenlm.degradation.weights.groups import parse_layers, select_group


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("L0-5", [0, 1, 2, 3, 4, 5]),
        ("L3,7", [3, 7]),
        ("L0-1,6", [0, 1, 6]),
        ("first25%", [0, 1, 2]),
        ("last25%", [7, 8, 9]),
        ("first1%", [0]),
        ("last100%", list(range(10))),
        ("every6+5", [5]),
        ("every4", [0, 4, 8]),
        ("every3+1", [1, 4, 7]),
    ],
)
def test_layer_subsets(spec, layers):
    assert parse_layers(spec, list(range(10))) == set(layers)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("L9-10", "no layer 10; there are layers 0 to 9"),
        ("L5-3", "'5-3' is no layer"),
        ("L", "not understood"),
        ("L1,", "'' is no layer"),
        ("first0%", "between 1 and 100"),
        ("last101%", "between 1 and 100"),
        ("every0", "at least 1"),
        ("every2+12", "leaves no layer"),
        ("middle", "not understood"),
        ("", "not understood"),
    ],
)
def test_bad_layer_subsets(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_layers(spec, list(range(10)))


def test_groups_of_some_layers_and_unions(meta_model):
    model = meta_model("gemma3_mm")
    group = select_group(model, "attn_only@every6+5+mlp_down@L0-1+vision_attn@last25%+embed_only")
    assert [(t.canonical.partition("/")[0], t.layer, t.group) for t in group.targets] == [
        ("vision", 4, "vision_attn"),
        ("text", None, "embed_only"),
        ("text", 0, "mlp_down"),
        ("text", 1, "mlp_down"),
        ("text", 5, "attn_only"),
    ]
    assert group.name.startswith("attn_only@every6+5")
    assert [t.layer for t in select_group(model, "attn_only@L3,1").targets] == [1, 3]
    both = select_group(model, "attn_only@first50%+attn_only@last50%")
    assert both.numel == select_group(model, "attn_only").numel
    assert {t.canonical for t in select_group(model, "norm@L2").targets} >= {"text/layers.2.self_attn.q_norm.weight"}


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("llama", "attn_onyl", "group='attn_onyl' is not known. Did you mean 'attn_only'?"),
        ("llama", "", "group='' is not known"),
        ("llama", "attn_only+", "group='' is not known"),
        ("llama", "attn_only+mlp_only@L9", "the model has no layer 9; there are layers 0 to 3"),
        ("llama", "attn_only+attn_qkvo", "its parts overlap in text/layers.0.self_attn.v_proj.weight"),
        ("gpt2", "attn_only+attn_qkvo", "its parts overlap in text/h.0.attn.c_attn.weight"),
        ("llama", "mlp_only@L0-1+mlp_up@L1-2", "its parts overlap in text/layers.1.mlp.up_proj.weight"),
        ("llama", "embed_only@L0", "embed_only does not lie in layers; leave out '@L0'"),
        ("llama", "vision_attn", "matches no parameter of this model (llama). Nearest parameters: text/layers."),
        ("gpt2", "mlp_gate", "group 'mlp_gate' matches no parameter of this model (gpt2)"),
        ("gemma3", "bias", "Groups it has: attn_only,"),
        ("llama", "mlp_experts", "Groups it has: attn_only, attn_q, attn_k,"),
        ("infinito", "router", "matches no parameter of this model (infinito)"),
        ("llama_tied", "lm_head", "shares its weights with the token table. Use group embed_only"),
    ],
)
def test_a_group_that_cannot_be_is_refused_with_what_is_near(name, group, message, meta_model):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        select_group(meta_model(name), group)
    assert "\n" not in str(error.value)


def test_sizes_that_contradict_the_configuration_are_refused(meta_model):
    model = meta_model("llama")
    model.config.num_key_value_heads = 4
    with pytest.raises(ValueError, match=r"16 of shape \(16, 32\) should be 32, for the 4 heads, 4 of them for keys"):
        select_group(model, "attn_only")
    model = meta_model("phi3")
    model.config.num_attention_heads = 8
    with pytest.raises(ValueError, match="qkv_proj.weight: 64 of shape"):
        select_group(model, "attn_q")


def test_a_layer_that_is_missed_stops(meta_model):
    model = meta_model("llama")
    del model.model.layers[2].self_attn.v_proj
    with pytest.raises(ValueError, match="3 parameters in 3 layers, where 1 in each of 4 layers was expected; layer 2"):
        select_group(model, "attn_only")
    model = meta_model("qwen3_moe")
    del model.model.layers[1].mlp
    with pytest.raises(ValueError, match="layer 1 differs"):
        select_group(model, "mlp_only")
    model = meta_model("llama")
    model.config.num_hidden_layers = 6
    with pytest.raises(ValueError, match="num_hidden_layers=6, but 4 layers"):
        select_group(model, "attn_only")
