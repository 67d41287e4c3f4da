"""Packed models: the same function as unpacked, saved and loaded packed, damaged files refused by name."""

import filecmp
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.packed_linear import PackedBitLinear
from frankenlm.modeling.quantizer_ternary import (
    ALIGNMENT,
    QUANT_METHOD,
    TernaryConfig,
    TernaryHfQuantizer,
    pack_model,
    packed_layers,
    register,
)

PATTERN = ["retnet", "titan_attn", "mamba", "sigmoid_attn", "standard_attn", "ode"]
FRANKENSTEIN = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 12,
    "num_loops": 2,
    "num_attention_heads": 2,
    "layer_pattern": PATTERN,
    "intermediate_size": 40,
    "mamba_head_dim": 16,
    "mamba_state": 8,
    "chunk_size": 8,
    "factorized_embedding_dim": 20,
    "embedding_conv_kernel": 3,
    "num_experts": 2,
    "use_bitnet": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
LEGACY = {
    "vocab_size": 61,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODERN = {"norm_type": "rms_norm", "position_type": "rope", "hidden_act": "swiglu", "use_bias": False}
NARROW = {"factorized_embedding_dim": None, "embedding_conv_kernel": 0}
MODELS = {
    "mixers": (FrankensteinForCausalLM, FRANKENSTEIN | {"is_decoder": True}),
    "rows": (FrankensteinForCausalLM, FRANKENSTEIN | {"is_decoder": True, "scale_axis": "row", "w_scheme": "binary"}),
    "groups": (
        FrankensteinForCausalLM,
        FRANKENSTEIN | {"is_decoder": True, "scale_axis": "group", "group_size": 32, "bitnet_head": True},
    ),
    "encoder": (FrankensteinForMaskedLM, FRANKENSTEIN | {"ode_bitnet": True}),
    "dense_tied": (FrankensteinForCausalLM, FRANKENSTEIN | NARROW | {"is_decoder": True}),
    "ternary_head": (FrankensteinForCausalLM, FRANKENSTEIN | {"is_decoder": True, "bitnet_head": True}),
    "legacy": (Legacy1BitForCausalLM, LEGACY),
    "legacy_all_tied": (Legacy1BitForCausalLM, LEGACY | {"tie_word_embeddings": True}),
    "legacy_groups_tied": (
        Legacy1BitForCausalLM,
        LEGACY | {"tie_word_embeddings": True, "scale_axis": "group", "group_size": 32},
    ),
    "legacy_plain_ends": (
        Legacy1BitForCausalLM,
        LEGACY | MODERN | {"bitnet_embedding": False, "bitnet_head": False, "tie_word_embeddings": True},
    ),
}
CONFIGS = {
    FrankensteinForCausalLM: FrankensteinConfig,
    FrankensteinForMaskedLM: FrankensteinConfig,
    Legacy1BitForCausalLM: Legacy1BitConfig,
}
IDS = torch.arange(3, 20)[None]


@pytest.fixture
def build(enliven):
    """build(name, **changes) -> a lively model of MODELS."""

    def make(name, dtype=torch.float32, **changes):
        torch.manual_seed(0)
        head, fields = MODELS[name]
        return enliven(head(CONFIGS[head](**fields | changes))).to(dtype).eval()

    return make


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits.float()


def auto_class(model):
    return AutoModelForMaskedLM if isinstance(model, FrankensteinForMaskedLM) else AutoModelForCausalLM


@pytest.mark.parametrize("name", MODELS)
def test_packs_saves_and_loads(name, build, tmp_path):
    model = build(name)
    before = logits(model)
    ternary = sum(hasattr(layer, "empty_packed") for layer in model.modules())
    pack_model(model)
    assert len(packed_layers(model)) == ternary > 0
    assert not any(hasattr(layer, "empty_packed") for layer in model.modules())
    assert torch.equal(logits(model), before), "the packed model computes what the model computes, to the last bit"
    model.save_pretrained(tmp_path / "one")
    loaded = auto_class(model).from_pretrained(tmp_path / "one")
    assert torch.equal(logits(loaded), logits(model)) and loaded.dtype == torch.float32
    loaded.save_pretrained(tmp_path / "two")
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(tmp_path / "one" / file, tmp_path / "two" / file, shallow=False)
    assert {path.name for path in (tmp_path / "one").glob("*.py")} >= {"quantizer_ternary.py", "packed_linear.py"}


@pytest.mark.parametrize("name", ["mixers", "legacy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_number_formats(name, dtype, build, tmp_path):
    model = pack_model(build(name))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype and loaded(input_ids=IDS).logits.dtype == dtype
    for layer_name, layer in packed_layers(loaded):
        assert layer.weight_scale.dtype == torch.float32, layer_name
    close = (logits(loaded) - logits(model)).norm() / logits(model).norm()
    assert close < 0.3, "far from the float32 model"
    if name == "legacy":  # mamba keeps some vectors in float32 while loading
        assert torch.equal(logits(model.to(dtype)), logits(loaded)), "cast after loading is not cast while loading"


@pytest.mark.parametrize("name", [pytest.param("mixers", marks=pytest.mark.slow), "legacy", "legacy_plain_ends"])
def test_greedy_text_is_the_same(name, build):
    model = build(name)
    prompts = [IDS, torch.tensor([[5, 9, 11]]), torch.tensor([[7]])]
    ask = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = [model.generate(ids, **ask) for ids in prompts]
    pack_model(model)
    for ids, expected in zip(prompts, before, strict=True):
        assert torch.equal(model.generate(ids, **ask), expected)


@pytest.mark.parametrize("name", ["mixers", "dense_tied", "legacy_plain_ends", "encoder"])
def test_int8_table_and_head(name, build, tmp_path):
    model = build(name)
    before = logits(model)
    pack_model(model, int8_embeddings=True, int8_head=True)
    after = logits(model)
    assert (after - before).norm() / before.norm() < 0.2
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "one")
    loaded = auto_class(model).from_pretrained(tmp_path / "one")
    assert torch.equal(logits(loaded), after)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    tables = [
        key for key, tensor in load_file(tmp_path / "one" / "model.safetensors").items() if tensor.dtype == torch.int8
    ]
    assert len(tables) == 1, "a tied table is stored once"
    loaded.save_pretrained(tmp_path / "two")
    assert filecmp.cmp(tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors", shallow=False)
    loaded.to(torch.bfloat16)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["ternary_head", "legacy_all_tied"])
def test_a_ternary_layer_shares_its_weight_no_longer(name, build, tmp_path):
    model = pack_model(build(name))
    assert not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded.get_output_embeddings(), PackedBitLinear)
    assert torch.equal(logits(loaded), logits(model))


def test_the_stack_without_its_head(build, tmp_path):
    model = pack_model(build("legacy"))
    model.save_pretrained(tmp_path)
    stack = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.model(input_ids=IDS).last_hidden_state
        assert torch.equal(stack(input_ids=IDS).last_hidden_state, expected)


def test_layers_left_as_they_are(build, tmp_path):
    model = build("legacy")
    before = logits(model)
    pack_model(model, modules_to_not_convert=["model.layers.0", "lm_head.decoder"])
    names = {name for name, _ in packed_layers(model)}
    assert names and not any(name.startswith(("model.layers.0.", "lm_head")) for name in names)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name for name, _ in packed_layers(loaded)} == names
    assert torch.equal(logits(loaded), before)
    stack = AutoModel.from_pretrained(tmp_path)
    assert {f"model.{name}" for name, _ in packed_layers(stack)} == names


def test_sharded(build, tmp_path):
    model = pack_model(build("mixers"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_packed_bytes_and_alignment(build, tmp_path):
    model = pack_model(build("legacy", hidden_size=160, intermediate_size=352))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, layer in packed_layers(loaded):
        assert layer.weight.data_ptr() % ALIGNMENT == 0, name
        assert 8 * layer.weight.nbytes < 2.3 * layer.num_weights, name


STRANGER = """
folder, other, again = sys.argv[1:]
for source, target in ((folder, "first"), (other, "other")):  # the second finds the quantizer registered
    model = transformers.AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    packed = [layer for layer in model.modules() if type(layer).__name__ in ("PackedBitLinear", "PackedBitEmbedding")]
    assert packed and all(type(layer).__module__.startswith("transformers_modules") for layer in packed)
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(3, 20)[None]).logits, f"{again}/{target}.pt")
    model.save_pretrained(f"{again}/{target}")
    transformers.AutoModel.from_pretrained(source, trust_remote_code=True)
"""


def test_loads_where_the_package_is_missing(build, stranger, tmp_path):
    models = {
        "first": pack_model(build("legacy")),
        "other": pack_model(build("mixers"), int8_head=True, int8_embeddings=True),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    (tmp_path / "again").mkdir()
    done = stranger.run(STRANGER, *(tmp_path / folder for folder in ("first", "other", "again")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, model in models.items():
        theirs = torch.load(tmp_path / "again" / f"{name}.pt", weights_only=True)
        assert (logits(model) - theirs).norm() / theirs.norm() < 0.01
        assert filecmp.cmp(
            tmp_path / name / "model.safetensors", tmp_path / "again" / name / "model.safetensors", shallow=False
        )
        assert {path.name for path in (tmp_path / name).glob("*.py")} == {
            path.name for path in (tmp_path / "again" / name).glob("*.py")
        }


LAYER = "model.layers.1.ffn.up_proj"


def without(key):
    return lambda state: state.pop(key)


def replaced(key, change):
    def damage(state):
        state[key] = change(state[key])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(f"{LAYER}.weight"), f"lacks {LAYER}.weight"),
        (without(f"{LAYER}.weight_scale"), f"lacks {LAYER}.weight_scale"),
        (without("model.embeddings.embed_tokens.weight"), "lacks model.embeddings.embed_tokens.weight"),
        (replaced(f"{LAYER}.weight", lambda w: w[:-1].clone()), rf"{LAYER}.weight is U8 \(4, 3, 64\).*U8 \(5, 3, 64\)"),
        (replaced(f"{LAYER}.weight", lambda w: w.to(torch.int8)), f"{LAYER}.weight is I8"),
        (replaced(f"{LAYER}.weight_scale", lambda s: s[:1].clone()), rf"{LAYER}.weight_scale is F32 \(1,\)"),
        (replaced(f"{LAYER}.weight_scale", lambda s: s.half()), f"{LAYER}.weight_scale is F16"),
        (replaced(f"{LAYER}.weight", lambda w: w | 3), f"{LAYER}.weight is damaged.*code 3"),
        (replaced(f"{LAYER}.weight", lambda w: w * 0), f"{LAYER}.weight is damaged.*padding"),
        (replaced(f"{LAYER}.weight_scale", lambda s: s * float("nan")), f"{LAYER}.weight_scale is damaged"),
        (replaced("lm_head.decoder.bias", lambda b: b * float("inf")), "lm_head.decoder.bias is damaged"),
    ],
)
def test_damaged_tensors_are_named(damage, message, build, tmp_path):
    pack_model(build("legacy")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    damage(state)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.999])
def test_a_file_cut_short(keep, build, tmp_path):
    pack_model(build("legacy")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"int8_heads": True}, "unknown key 'int8_heads'. Did you mean 'int8_head'"),
        ({"format": 3}, "format=3; this version of frankenlm reads formats 1 and 2"),
        ({"int8_head": True}, "leave int8_head out"),
        ({"group_size": 48}, "group_size=48 must be one of 32, 64, 128"),
        ({"other_group_sizes": {"model.layers.0": 100}}, "model.layers.0=100 must be one of"),
        ({"scale_dtype": "float17"}, "scale_dtype"),
    ],
)
def test_configuration_errors(change, message, build, tmp_path):
    pack_model(build("legacy")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "arguments", "message"),
    [
        ("mixers", {"use_bitnet": False}, {}, "no ternary layer"),
        ("mixers", {"w_scheme": "int2"}, {}, "w_scheme='int2' cannot be packed"),
        ("legacy", {"activation_bits": 4}, {}, "activation_bits=4 cannot be packed"),
        ("legacy", {}, {"int8_embeddings": True}, "leave int8_embeddings out"),
        (
            "legacy",
            {},
            {"modules_to_not_convert": ["model.layer.0"]},
            "no 'model.layer.0'. Did you mean 'model.layers.0'",
        ),
        ("dense_tied", {}, {"int8_head": True}, "int8_embeddings and int8_head go together"),
        ("legacy_plain_ends", {}, {"int8_embeddings": True}, "int8_embeddings and int8_head go together"),
    ],
)
def test_what_cannot_be_packed(name, fields, arguments, message, build):
    with pytest.raises(ValueError, match=message):
        pack_model(build(name, **fields), **arguments)


def test_packs_once(build):
    model = pack_model(build("legacy"))
    with pytest.raises(ValueError, match="quantized already"):
        pack_model(model)
    with pytest.raises(ValueError, match="no ternary layer"):
        pack_model(
            InfinitoForCausalLM(
                InfinitoConfig(vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, memory_dim=16)
            )
        )


def test_loading_only_what_is_packed(build, tmp_path):
    build("legacy").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`frankenlm pack`"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TernaryConfig())


def test_float64_is_refused(build, tmp_path):
    pack_model(build("legacy")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype=torch\.float64"):
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)


def test_registers_once():
    register()
    assert AUTO_QUANTIZER_MAPPING[QUANT_METHOD] is TernaryHfQuantizer
    assert AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] is TernaryConfig
