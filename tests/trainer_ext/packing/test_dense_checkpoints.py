"""Dense checkpoints of transformers with ternary weights: packed ones stand for the same weights to the last bit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from frankenlm.modeling.packed_linear import PackedBitLinear
from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.trainer_ext.packing import foreign
from ternary_checkpoints import dense_twin, greedy, logits, make_ternary, small_model

SMALL = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TINY = SMALL | {"num_hidden_layers": 1}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAMILIES = ["llama", "qwen3", "mistral", "bitnet", "gemma2"]


def saved(model, folder, dtype=torch.float32, **options):
    """Save a model and return it as it comes back, in float32."""
    model.to(dtype).save_pretrained(folder, **options)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def check_same(packed, reference):
    """The weights are those of the reference, and so is what a dense model computes and writes with them."""
    twin = dense_twin(packed)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name
    expected = logits(reference)
    assert (logits(twin) - expected).norm() <= 1e-4 * expected.norm()
    return twin


@pytest.mark.parametrize(
    ("family", "axis", "dtype", "tie"),
    [
        ("llama", "tensor", torch.float16, False),
        ("qwen3", 32, torch.float16, True),
        ("mistral", "row", torch.bfloat16, False),
        ("bitnet", 64, torch.float32, True),
        ("gemma2", 128, torch.bfloat16, True),
    ],
)
def test_packs_to_the_same_weights(family, axis, dtype, tie, pack, tmp_path):
    ends = family != "gemma2"  # whose table is multiplied by a number
    model = make_ternary(small_model(family, tie=tie, **TINY), axis, ends=ends)
    reference = saved(model, tmp_path / "dense", dtype)
    output = pack(tmp_path / "dense")
    packed = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    assert type(packed) is type(model)
    check_same(packed, reference)
    grouped = isinstance(axis, int) and axis < TINY["intermediate_size"]
    assert packed.config.quantization_config.format == (2 if grouped else 1)
    assert isinstance(packed.get_output_embeddings(), PackedBitLinear) is ends
    assert (packed.get_output_embeddings().weight is packed.get_input_embeddings().weight) is tie
    assert (logits(packed) - logits(reference)).norm() < 0.1 * logits(reference).norm()
    assert load_file(output / "model.safetensors").keys() == {
        name for name in packed.state_dict() if not (tie and name == "lm_head.weight")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("family_number", "family"), list(enumerate(FAMILIES)))
@pytest.mark.parametrize(("axis_number", "axis"), list(enumerate(["tensor", "row", 128, 64, 32])))
def test_every_family_writes_the_same_greedy_text(family_number, family, axis_number, axis, pack, tmp_path):
    dtype, tie = (
        DTYPES[(family_number + axis_number) % 3],
        (family_number + axis_number) % 2 == 0,
    )  # each with each other
    model = make_ternary(small_model(family, tie=tie, **SMALL), axis, ends=tie)
    reference = saved(model, tmp_path / "dense", dtype, max_shard_size="100KB")
    packed = AutoModelForCausalLM.from_pretrained(pack(tmp_path / "dense"), dtype=torch.float32)
    twin = check_same(packed, reference)
    assert torch.equal(greedy(twin), greedy(reference))
    assert greedy(packed, 5).shape == (1, 8)


def test_loads_saves_and_loads_again(pack, tmp_path):
    """In the format it has, without its head, in shards, and with the fields that generation has."""
    model = make_ternary(small_model("qwen3", tie=True, **TINY), 64, ends=True)
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], temperature=0.5, do_sample=True)
    reference = saved(model, tmp_path / "dense", torch.bfloat16)
    output = pack(tmp_path / "dense")
    packed = AutoModelForCausalLM.from_pretrained(output)
    assert packed.dtype == torch.bfloat16 and packed.generation_config.eos_token_id == [2, 7]
    layers = [layer for _, layer in packed_layers(packed)]
    assert {layer.weight_scale.dtype for layer in layers} == {torch.bfloat16} and {
        layer.group_size for layer in layers
    } == {64}
    packed.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    check_same(again, reference)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    stack = AutoModel.from_pretrained(output, dtype=torch.float32)
    with torch.no_grad():
        expected = again.model(torch.tensor([[3, 4]])).last_hidden_state
        assert torch.equal(stack(torch.tensor([[3, 4]])).last_hidden_state, expected)


def test_shards_are_written_as_they_are_read(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "SHARD_BYTES", 20_000)
    reference = saved(make_ternary(small_model("llama", **TINY), 32), tmp_path / "dense", max_shard_size="50KB")
    output = pack(tmp_path / "dense")
    assert len(list(output.glob("*.safetensors"))) > 2
    check_same(AutoModelForCausalLM.from_pretrained(output), reference)


def test_scales_of_several_kinds_in_one_model(pack, tmp_path):
    """Each layer has the fewest scales that hold it, and a bias where the family has them."""
    model = make_ternary(small_model("llama", attention_bias=True, **SMALL), 32)
    other = make_ternary(small_model("llama", attention_bias=True, **SMALL), "row")
    model.model.layers[1].load_state_dict(other.model.layers[1].state_dict())
    reference = saved(model, tmp_path / "dense")
    packed = AutoModelForCausalLM.from_pretrained(pack(tmp_path / "dense"))
    check_same(packed, reference)
    assert packed.model.layers[0].mlp.up_proj.group_size == 32 and packed.model.layers[1].mlp.up_proj.group_size is None
    assert packed.config.quantization_config.other_group_sizes


def test_float32_scales_are_rounded_and_that_is_said(pack, tmp_path, capsys):
    model = make_ternary(small_model("llama", **TINY), 32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(1.0003)
    saved(model, tmp_path / "dense")
    packed = AutoModelForCausalLM.from_pretrained(pack(tmp_path / "dense"))
    assert "scales of groups were rounded to float16, by up to 1 in " in capsys.readouterr().err
    weight = packed.model.layers[0].mlp.up_proj.dequantized_weight()
    torch.testing.assert_close(weight, model.model.layers[0].mlp.up_proj.weight, rtol=2**-11, atol=0)


@pytest.mark.parametrize("small", ["up_proj", "down_proj"])
def test_the_format_of_scales_is_that_of_all_layers(small, pack, tmp_path):
    """One layer's scales are closer in float16, which has no room for the other's, whichever of them comes first."""
    model = make_ternary(small_model("llama", **TINY), 32)
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        for name in ("up_proj", "down_proj"):
            mlp.get_submodule(name).weight.mul_(2.0**-40 if name == small else 1.0003)
    saved(model, tmp_path / "dense")
    packed = AutoModelForCausalLM.from_pretrained(pack(tmp_path / "dense"))
    assert packed.config.quantization_config.scale_dtype == "bfloat16"
    for name in ("up_proj", "down_proj"):
        found = packed.model.layers[0].mlp.get_submodule(name).dequantized_weight()
        torch.testing.assert_close(found, mlp.get_submodule(name).weight, rtol=2**-8, atol=0)


def test_layers_left_dense(pack, tmp_path):
    model = make_ternary(small_model("llama", **SMALL), "row", ends=True)
    torch.nn.init.normal_(model.model.layers[1].mlp.down_proj.weight)
    reference = saved(model, tmp_path / "dense")
    output = pack(tmp_path / "dense", "--modules_to_not_convert", "down_proj", "model.layers.0.self_attn", "lm_head")
    packed = AutoModelForCausalLM.from_pretrained(output)
    check_same(packed, reference)
    dense = {name for name, layer in packed.named_modules() if type(layer) is torch.nn.Linear}
    attention = {f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"}
    assert dense == attention | {"lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize("tie", [False, True])
def test_int8_ends(tie, pack, tmp_path):
    reference = saved(make_ternary(small_model("llama", tie=tie, **TINY), 64), tmp_path / "dense", torch.float16)
    output = pack(tmp_path / "dense", "--int8_embeddings", "--int8_head")
    packed = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    assert (logits(packed) - logits(reference)).norm() < 0.1 * logits(reference).norm()
    assert (packed.lm_head.weight is packed.model.embed_tokens.weight) is tie
    table = packed.model.embed_tokens
    rounded = table.weight * table.weight_scale.unsqueeze(1)
    assert (rounded - reference.model.embed_tokens.weight).abs().max() <= table.weight_scale.max() / 2
    facts = json.loads((output / "packing.json").read_text())
    assert facts["int8_bytes"] == (96 * 96 + 96 * 4 * 2 if tie else 2 * 96 * 100)


MEMORY = """
import re, sys
from frankenlm.scripts.pack import main
import gguf, torch, transformers
import frankenlm.trainer_ext.commands.pack
torch.randn(64, 64) @ torch.randn(64, 64)
def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) << 10
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = memory("VmRSS")
main(["--model", sys.argv[1], "--output", sys.argv[2]])
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_memory_stays_below_one_and_a_half_times_the_output(tmp_path):
    sizes = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 9}
    model = small_model("qwen3", tie=True, **sizes, num_attention_heads=16, num_key_value_heads=8)
    make_ternary(model, 128, ends=True).half().save_pretrained(tmp_path / "dense", max_shard_size="100MB")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "dense"), str(tmp_path / "packed")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 1.5 * (tmp_path / "packed" / "model.safetensors").stat().st_size


def change(key, value):
    def changed(folder):
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {key: value}))

    return changed


def tensors(edit):
    def changed(folder):
        state = load_file(folder / "model.safetensors")
        edit(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (
            tensors(lambda state: state[UP].mul_(torch.linspace(1, 2, 96))),
            [],
            f"{UP} (F32) is not ternary: row 0, columns",
        ),
        (tensors(lambda state: state[UP][3].fill_(float("nan"))), [], f"{UP} (F32) holds NaN or infinity"),
        (tensors(lambda state: state[NORM].fill_(float("inf"))), [], f"{NORM} (F32) holds NaN or infinity"),
        (tensors(lambda state: state.pop(UP)), [], f"the checkpoint lacks {UP}"),
        (tensors(lambda state: state.update({UP: state[UP][:-1].clone()})), [], f"{UP} is (159, 96) in the checkpoint"),
        (tensors(lambda state: state.update({"more": torch.ones(1)})), [], "no place for more"),
        (tensors(lambda state: state[UP].mul_(2.0**-130)), [], "fit into neither bfloat16 nor float16"),
        (change("num_hidden_layers", 2), [], "the checkpoint lacks model.layers.1.self_attn.q_proj.weight"),
        (change("hidden_size", 48), [], "in the checkpoint; its configuration asks for (96, 48)"),
        (lambda folder: None, ["--modules_to_not_convert", "up_projs"], "no 'up_projs'. Did you mean 'up_proj'"),
        (lambda folder: None, ["--int8_embeddings"], "model.embed_tokens is ternary and is packed in two bits anyway"),
    ],
)
def test_damage_is_told_in_one_line(damage, words, message, pack, tmp_path, capsys):
    saved(make_ternary(small_model("llama", **TINY), 32, ends=True), tmp_path / "dense")
    damage(tmp_path / "dense")
    code = pack.code("--model", tmp_path / "dense", "--output", tmp_path / "out", *words)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("error: --model") and message in line, line
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_shared_table_that_is_two_tables(pack, tmp_path, capsys):
    model = make_ternary(small_model("llama", **TINY), "row")
    model.save_pretrained(tmp_path / "dense")
    change("tie_word_embeddings", True)(tmp_path / "dense")
    assert pack.code("--model", tmp_path / "dense", "--output", tmp_path / "out") == 2
    assert "lm_head.weight and model.embed_tokens.weight differ" in capsys.readouterr().err


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "ends within model."),
        (lambda file: file.unlink(), "model-00002-of-0000"),
        (lambda file: file.write_bytes(b""), "model-00002-of"),
    ],
)
def test_a_damaged_or_missing_shard_is_named(damage, message, pack, tmp_path, capsys):
    make_ternary(small_model("llama", **TINY), "row").save_pretrained(tmp_path / "dense", max_shard_size="50KB")
    damage(next((tmp_path / "dense").glob("model-00002-*.safetensors")))
    for words in (["--output", tmp_path / "out"], ["--inspect"]):
        assert pack.code("--model", tmp_path / "dense", *words) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: --model") and message in line, line
