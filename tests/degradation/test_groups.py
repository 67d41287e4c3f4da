"""Which weights a group holds, against counts and layouts worked out from each family's sizes."""

import math
import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from frankenlm.degradation.groups import (
    GROUPS,
    canonical_name,
    describe_groups,
    gain_offset,
    parse_layers,
    select_group,
    untie,
)
from frankenlm.modeling import FrankensteinConfig, InfinitoConfig, Legacy1BitConfig, list_presets, read_preset
from frankenlm.modeling.quantizer_ternary import pack_model

H, I, V, LAYERS = 32, 48, 272, 4  # hidden, intermediate, vocabulary, layers of the tiny models
Q, KV = H, 16  # outputs of the projections with two of four heads for keys and values
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
    "gemma3": GROUPED | GATED, "gemma3_mm": GROUPED | GATED, "gemma2": GROUPED | GATED, "llama": GROUPED | GATED,
    "llama_tied": GROUPED | GATED, "mistral": GROUPED | GATED, "qwen2": GROUPED | GATED, "qwen3": GROUPED | GATED,
    "phi3": GROUPED | GATED, "gpt2": PLAIN | UNGATED, "gpt_neox": PLAIN | UNGATED, "bert": PLAIN | UNGATED,
    "roberta": PLAIN | UNGATED, "mixtral": GROUPED | MIXTRAL, "frankenstein": PLAIN | UNGATED,
    "infinito": PLAIN | UNGATED, "legacy_1bit": PLAIN | UNGATED,
    "qwen3_moe": GROUPED | {name: size // 2 for name, size in MIXTRAL.items() if name != "router"} | {"router": 4 * H},
}  # fmt: skip
UNTIED = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_neox", "phi3", "mixtral", "infinito", "legacy_1bit"}
FUSED = {"phi3": "qkv_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}


@pytest.fixture(scope="session")
def meta_model(tiny_config):
    """meta_model(name, **fields) -> the tiny model without weights."""

    def make(name, **fields):
        config = tiny_config(name, **fields)
        with torch.device("meta"):
            if name in ("bert", "roberta"):
                return AutoModelForMaskedLM.from_config(config)
            return AutoModelForCausalLM.from_config(config)

    return make


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
    beyond = {"bias", "vision_attn", "vision_mlp", "projector", "mixer", "memory"}
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
    assert ("lm_head" in rows) == (model.get_output_embeddings().weight is not model.get_input_embeddings().weight)
    assert sum(name in rows for name in ("attn_only", "attn_q", "attn_k", "attn_o")) == 4


def test_layers_that_share_keys_and_values_are_expected(tmp_path):
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
    config = AutoConfig.for_model(
        "gemma3n_text", hidden_size=32, intermediate_size=[48] * 4, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=272, head_dim=8, hidden_size_per_layer_input=8, laurel_rank=4,
        vocab_size_per_layer_input=272, activation_sparsity_pattern=None, pad_token_id=0, **layers,
    )  # fmt: skip
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


# --- parts of fused tensors


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


# --- unions and layers


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("L0-5", [0, 1, 2, 3, 4, 5]), ("L3,7", [3, 7]), ("L0-1,6", [0, 1, 6]), ("first25%", [0, 1, 2]),
        ("last25%", [7, 8, 9]), ("first1%", [0]), ("last100%", list(range(10))), ("every6+5", [5]),
        ("every4", [0, 4, 8]), ("every3+1", [1, 4, 7]),
    ],
)  # fmt: skip
def test_layer_subsets(spec, layers):
    assert parse_layers(spec, list(range(10))) == set(layers)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("L9-10", "no layer 10; there are layers 0 to 9"), ("L5-3", "'5-3' is no layer"), ("L", "not understood"),
        ("L1,", "'' is no layer"), ("first0%", "between 1 and 100"), ("last101%", "between 1 and 100"),
        ("every0", "at least 1"), ("every2+12", "leaves no layer"), ("middle", "not understood"),
        ("", "not understood"),
    ],
)  # fmt: skip
def test_bad_layer_subsets(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_layers(spec, list(range(10)))


def test_groups_of_some_layers_and_unions(meta_model):
    model = meta_model("gemma3_mm")
    group = select_group(model, "attn_only@every6+5+mlp_down@L0-1+vision_attn@last25%+embed_only")
    assert [(t.canonical.partition("/")[0], t.layer, t.group) for t in group.targets] == [
        ("vision", 4, "vision_attn"), ("text", None, "embed_only"), ("text", 0, "mlp_down"), ("text", 1, "mlp_down"),
        ("text", 5, "attn_only"),
    ]  # fmt: skip
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


def test_mixtures_with_dense_layers_and_shared_experts(meta_model):
    model = meta_model("qwen3_moe", mlp_only_layers=[0])
    assert select_group(model, "mlp_experts").tensors == 2 * 3
    assert select_group(model, "mlp_only").numel == 3 * 3 * EXPERTS * 24 * H + 3 * I * H


# --- tied embeddings, norms


def test_tied_embeddings_are_one_target_and_can_be_untied(tiny_model):
    model = tiny_model("llama_tied")
    both = select_group(model, "embed_only")
    assert [target.name for target in both.targets] == ["model.embed_tokens.weight"] and not both.needs_untie
    output = select_group(model, "embed_only", tied_policy="output_only")
    assert [target.canonical for target in output.targets] == ["text/lm_head.weight"] and output.needs_untie
    again = select_group(model, "lm_head", tied_policy="output_only")
    assert again.targets[0].name == output.targets[0].name
    entry = select_group(model, "embed_only+attn_only", tied_policy="input_only")
    assert entry.needs_untie and entry.targets[0].name == "model.embed_tokens.weight"
    assert not select_group(model, "attn_only", tied_policy="input_only").needs_untie

    ids, table = torch.arange(20)[None], model.model.embed_tokens.weight
    before = model(ids).logits
    tie_again = untie(model)
    assert output.targets[0].parameter is not entry.targets[0].parameter
    assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        output.targets[0].parameter.zero_()
    assert not model(ids).logits.any() and table.any()
    with pytest.raises(ValueError, match="not tied"):
        untie(model)
    tie_again()
    assert torch.equal(model(ids).logits, before) and model.config.tie_word_embeddings
    assert model.lm_head.weight is table


def test_tied_policy_for_models_that_are_not_tied(meta_model):
    with pytest.raises(ValueError, match="not tied; use group lm_head"):
        select_group(meta_model("llama"), "embed_only", tied_policy="output_only")
    assert not select_group(meta_model("llama"), "lm_head+embed_only", tied_policy="input_only").needs_untie
    with pytest.raises(ValueError, match="tied_policy='output' is not known. Did you mean 'output_only'"):
        select_group(meta_model("llama"), "embed_only", tied_policy="output")


@pytest.mark.parametrize(("name", "offset"), [("gemma3", 1.0), ("gemma2", 1.0), ("llama", 0.0), ("gpt2", 0.0)])
def test_the_gain_of_a_norm(name, offset, tiny_model, meta_model):
    for model in (tiny_model(name), meta_model(name)):
        group = select_group(model, "norm")
        assert {target.gain_offset for target in group.targets} == {offset}
        assert {target.gain_offset for target in select_group(model, "norm", norm_gain=False).targets} == {0.0}
        assert {target.gain_offset for target in select_group(model, "attn_only").targets} == {0.0}
    norm = model.get_submodule(group.targets[0].name.removesuffix(".weight"))
    assert norm.weight.device.type == "meta"  # the probe worked on a copy


def test_a_norm_that_cannot_be_asked_says_what_to_do():
    class NeedsMore(nn.LayerNorm):
        def forward(self, x, gate):
            return super().forward(x) * gate

    with pytest.raises(ValueError, match="cannot tell how NeedsMore scales.*norm_gain=False"):
        gain_offset(NeedsMore(8))


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


def test_every_group_of_the_list_exists_somewhere(meta_model):
    found = {row["group"] for name in PER_LAYER for row in describe_groups(meta_model(name))}
    assert set(GROUPS) <= found
