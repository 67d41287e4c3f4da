"""Which weights a group holds, against counts worked out from each family's sizes, and their names."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from frankenlm.degradation.weights.groups import GROUPS, canonical_name, describe_groups, select_group
from frankenlm.modeling import FrankensteinConfig, InfinitoConfig, Legacy1BitConfig, list_presets, read_preset
from frankenlm.modeling.packed_model import output_layer
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.trainer_ext.checking.opening import plan_type
from meta_models import KV, LAYERS, H, I, Q, V

GROUPED = {"attn_only": KV * H, "attn_q": Q * H, "attn_k": KV * H, "attn_o": Q * H, "attn_qkvo": 2 * (Q + KV) * H}
PLAIN = {"attn_only": H * H, "attn_q": H * H, "attn_k": H * H, "attn_o": H * H, "attn_qkvo": 4 * H * H}
GATED = {"mlp_gate": I * H, "mlp_up": I * H, "mlp_down": I * H, "mlp_only": 3 * I * H}
UNGATED = {"mlp_up": I * H, "mlp_down": I * H, "mlp_only": 2 * I * H}
EXPERTS = 4
MIXTRAL = {name: EXPERTS * size for name, size in GATED.items()} | {
    "mlp_experts": EXPERTS * 3 * I * H,
    "router": EXPERTS * H,
}
# elements per layer
PER_LAYER = {
    "gemma3": GROUPED | GATED,
    "gemma3_mm": GROUPED | GATED,
    "gemma2": GROUPED | GATED,
    "llama": GROUPED | GATED,
    "llama_tied": GROUPED | GATED,
    "mistral": GROUPED | GATED,
    "qwen2": GROUPED | GATED,
    "qwen3": GROUPED | GATED,
    "phi3": GROUPED | GATED,
    "gpt2": PLAIN | UNGATED,
    "gpt_neox": PLAIN | UNGATED,
    "bert": PLAIN | UNGATED,
    "roberta": PLAIN | UNGATED,
    "mixtral": GROUPED | MIXTRAL,
    "frankenstein": PLAIN | UNGATED,
    "infinito": PLAIN | UNGATED,
    "legacy_1bit": PLAIN | UNGATED,
    "qwen3_moe": GROUPED | {name: size // 2 for name, size in MIXTRAL.items() if name != "router"} | {"router": 4 * H},
}
UNTIED = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_neox", "phi3", "mixtral", "infinito", "legacy_1bit"}


# --- counts


@pytest.mark.parametrize("name", PER_LAYER)
def test_every_group_has_the_elements_of_its_layers(name, meta_model):
    model = meta_model(name)
    layers = 6 if name.startswith("gemma3") else LAYERS
    rows = {row["group"]: row for row in describe_groups(model)}
    for group, size in PER_LAYER[name].items():
        assert rows[group]["elements"] == layers * size, group
        assert select_group(model, group).numel == layers * size
    expected = PER_LAYER[name].keys() | {"embed_only", "norm"} | ({"lm_head"} if name in UNTIED else set())
    beyond = {"bias", "vision_attn", "vision_mlp", "projector", "memory", "memory_read", "memory_write"}
    beyond |= {name for name in rows if name.startswith("mixer")}
    assert rows.keys() - beyond == expected
    assert rows["embed_only"]["elements"] == V * H
    total = sum(parameter.numel() for parameter in model.parameters())
    assert all(row["share"] == pytest.approx(row["elements"] / total) for row in rows.values())


def test_the_picture_tower_has_groups_of_its_own_and_is_in_no_other(meta_model):
    model = meta_model("gemma3_mm")
    for row in describe_groups(model):
        kinds = {target.canonical.partition("/")[0] for target in select_group(model, row["group"]).targets}
        assert kinds == {{"vi": "vision", "pr": "projector"}.get(row["group"][:2], "text")}
    names = [name for name, _ in model.named_parameters()]
    by_ending = [name for name in names if name.endswith("self_attn.v_proj.weight")]
    assert len(by_ending) == 6 + 5
    assert [target.name for target in select_group(model, "attn_only").targets] == [
        name for name in by_ending if "language_model" in name
    ]
    legacy = select_group(model, "attn_only+vision")
    assert sorted(target.name for target in legacy.targets) == sorted(by_ending)
    assert select_group(model, "vision_mlp").numel == 5 * 2 * 24 * 40
    assert [target.canonical for target in select_group(model, "projector").targets] == [
        "projector/mm_input_projection_weight"
    ]


@pytest.mark.parametrize("preset", list_presets())
def test_presets_of_our_own_models(preset):
    """An oracle by the modules' types: every q, k, v, o projection of a mixer and every matrix of a feed-forward."""
    families = {config.model_type: config for config in (FrankensteinConfig, InfinitoConfig, Legacy1BitConfig)}
    config = families[read_preset(preset).model_type].from_preset(preset)
    auto = AutoModelForCausalLM if config.is_decoder else AutoModelForMaskedLM
    with torch.device("meta"):
        model = auto.from_config(config)
    rows = {row["group"]: row["elements"] for row in describe_groups(model)}
    for group, ending in {
        "attn_only": "v_proj",
        "attn_o": "o_proj",
        "mlp_down": "down_proj",
        "router": "router",
    }.items():
        weights = [
            module.weight.numel()
            for layer in model.model.layers
            for name, module in layer.named_modules()
            if name.split(".")[-1] == ending
        ]
        assert rows.get(group, 0) == sum(weights)
    feed_forward = [
        p.numel() for layer in model.model.layers for n, p in layer.ffn.named_parameters() if n.endswith("proj.weight")
    ]
    assert rows["mlp_only"] == sum(feed_forward)
    assert rows["embed_only"] == model.get_input_embeddings().weight.numel()
    assert ("lm_head" in rows) == (output_layer(model).weight is not model.get_input_embeddings().weight)
    assert sum(name in rows for name in ("attn_only", "attn_q", "attn_k", "attn_o")) == 4


def test_layers_that_share_keys_and_values_are_expected(tmp_path):
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
    config = AutoConfig.for_model(
        "gemma3n_text",
        hidden_size=32,
        intermediate_size=[48] * 4,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=272,
        head_dim=8,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        vocab_size_per_layer_input=272,
        activation_sparsity_pattern=None,
        pad_token_id=0,
        **layers,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert [target.layer for target in select_group(model, "attn_only").targets] == [0, 1]
    assert len(select_group(model, "attn_q").targets) == 4
    model.config.get_text_config().num_kv_shared_layers = 1
    with pytest.raises(ValueError, match="layer 2 differs"):
        select_group(model, "attn_only")


@pytest.mark.parametrize(
    ("model_type", "fields", "attention", "mlp"),
    [
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, PLAIN, UNGATED),
        ("phi", {"intermediate_size": 48}, PLAIN, UNGATED),
        ("distilbert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, PLAIN, UNGATED),
    ],
)
def test_unknown_families_are_found_by_the_names_of_children(model_type, fields, attention, mlp):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} if model_type != "distilbert" else {}
    config = AutoConfig.for_model(model_type, vocab_size=272, pad_token_id=0, bos_token_id=1, **sizes, **fields)
    auto = AutoModelForMaskedLM if model_type == "distilbert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    for group, size in (attention | mlp).items():
        assert select_group(model, group).numel == 2 * size, group
    assert select_group(model, "embed_only").numel == 272 * 32


def test_mixtures_with_dense_layers_and_shared_experts(meta_model):
    model = meta_model("qwen3_moe", mlp_only_layers=[0])
    assert select_group(model, "mlp_experts").tensors == 2 * 3
    assert select_group(model, "mlp_only").numel == 3 * 3 * EXPERTS * 24 * H + 3 * I * H


def test_every_group_of_the_list_exists_somewhere(meta_model):
    found = {row["group"] for name in PER_LAYER for row in describe_groups(meta_model(name))}
    for name in ("qwen3_next", "mamba2", "deepseek_v3"):
        with torch.device("meta"):
            found |= {row["group"] for row in describe_groups(AutoModelForCausalLM.from_config(plan_type(name).config))}
    assert set(GROUPS) <= found


# --- names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.3.self_attn.v_proj.weight", "text/layers.3.self_attn.v_proj.weight"),
        ("model.language_model.layers.3.self_attn.v_proj.weight", "text/layers.3.self_attn.v_proj.weight"),
        ("language_model.model.layers.3.self_attn.v_proj.weight", "text/layers.3.self_attn.v_proj.weight"),
        ("module._orig_mod.model.layers.3.mlp.up_proj.weight", "text/layers.3.mlp.up_proj.weight"),
        ("model.layers.3._orig_mod.mlp.up_proj.weight", "text/layers.3.mlp.up_proj.weight"),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "text/layers.0.mlp.up_proj.weight"),
        ("vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias", "vision/encoder.layers.1.mlp.fc1.bias"),
        ("model.vision_tower.encoder.layers.1.mlp.fc1.bias", "vision/encoder.layers.1.mlp.fc1.bias"),
        ("multi_modal_projector.mm_input_projection_weight", "projector/mm_input_projection_weight"),
        ("transformer.h.0.attn.c_attn.weight", "text/h.0.attn.c_attn.weight"),
        ("lm_head.decoder.weight", "text/lm_head.decoder.weight"),
        ("model.embeddings.embed_tokens.weight", "text/embeddings.embed_tokens.weight"),
    ],
)
def test_canonical_names(name, canonical):
    assert canonical_name(name) == canonical


def test_the_same_weights_have_the_same_names_alone_in_a_multimodal_model_and_wrapped(meta_model):
    alone = select_group(meta_model("gemma3"), "attn_qkvo+mlp_only+embed_only+norm")
    multimodal = select_group(meta_model("gemma3_mm"), "attn_qkvo+mlp_only+embed_only+norm")
    compiled = torch.compile(meta_model("gemma3"), backend="eager")
    wrapped = nn.ModuleDict({"module": compiled})  # as DistributedDataParallel holds its model
    wrapped = select_group(wrapped, "attn_qkvo+mlp_only+embed_only+norm")
    names = [target.canonical for target in alone.targets]
    assert names == [target.canonical for target in multimodal.targets]
    assert names == [target.canonical for target in wrapped.targets]


def test_a_replaced_module_is_found_again(tiny_model):
    model = tiny_model("llama")
    target = select_group(model, "attn_only").targets[1]
    model.model.layers[1].self_attn.v_proj = nn.Linear(32, 16, bias=False)
    assert target.parameter is model.model.layers[1].self_attn.v_proj.weight


# --- packed weights


def test_four_bit_layers_count_by_outputs_and_inputs(meta_model):
    """A stand-in for bitsandbytes' layer: half a byte a weight, in one column."""
    model = meta_model("llama")
    expected = {row["group"]: row["elements"] for row in describe_groups(model)}
    for module in model.model.modules():
        if isinstance(module, nn.Linear):
            packed = torch.empty(module.weight.numel() // 2, 1, dtype=torch.uint8, device="meta")
            module.weight = nn.Parameter(packed, requires_grad=False)
    assert {row["group"]: row["elements"] for row in describe_groups(model)} == expected
    assert select_group(model, "attn_only").targets[0].shape == (KV, H)


def test_packed_ternary_models_are_refused_and_latent_ones_are_not(tiny_model):
    model = tiny_model("legacy_1bit")
    assert select_group(model, "attn_only").numel == LAYERS * H * H
    with pytest.raises(ValueError, match="packed ternary weights.*load the checkpoint that was packed"):
        select_group(pack_model(model), "attn_only")


def test_damage_to_latent_weights_shows_in_what_a_ternary_layer_computes(tiny_model):
    model = tiny_model("legacy_1bit")
    layer = model.model.layers[0].attention.v_proj
    before = layer.quantized_weight()
    target = select_group(model, "attn_only").targets[0]
    with torch.no_grad():
        target.parameter.neg_()
    assert torch.equal(layer.quantized_weight(), -before)
