"""frankenlm pack --inspect: what each form of checkpoint is said to be, and what packing would do with it."""

import json

import pytest
from transformers import AutoModelForCausalLM

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.quantizer_ternary import packed_layers
from ternary_checkpoints import make_ternary, small_model, write_gguf

TINY = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LEGACY = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 61,
}


@pytest.fixture
def inspect(pack, capsys):
    """inspect(model, *words) -> facts."""

    def run(model, *words):
        capsys.readouterr()
        assert pack.code("--model", model, "--inspect", "--json", *words) == 0
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    return run


def zeros_of(model, name):
    weight = model.get_submodule(name).weight
    return (weight == 0).sum().item() / weight.numel()


@pytest.mark.parametrize(
    ("axis", "kind"),
    [
        pytest.param("tensor", "tensor", marks=pytest.mark.slow),
        ("row", "row"),
        pytest.param(64, "group-64", marks=pytest.mark.slow),
        (32, "group-32"),
    ],
)
def test_ternary_checkpoints_before_and_after(axis, kind, inspect, pack, tmp_path):
    model = make_ternary(small_model("qwen3", tie=True, **TINY), axis, ends=axis == 32)
    model.save_pretrained(tmp_path / "dense")
    facts = inspect(tmp_path / "dense")
    assert facts["format"] == "safetensors" and facts["architecture"] == "Qwen3ForCausalLM" and not facts["refused"]
    layers = {layer["name"]: layer for layer in facts["layers"]}
    assert len(layers) == 8 and {layer["kind"] for name, layer in layers.items() if "proj" in name} == {kind}
    for name, layer in layers.items():
        if layer["kind"] != "dense":
            assert layer["zeros"] == pytest.approx(zeros_of(model, name)), name
    assert layers["model.embed_tokens"]["kind"] == ("group-32" if axis == 32 else "dense")
    assert facts["weight_bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    output = pack(tmp_path / "dense")
    after = inspect(output)
    assert after["format"] == f"packed, format {2 if isinstance(axis, int) else 1}" and after["is_packed"]
    seen = {layer["name"]: (layer["kind"], layer["zeros"]) for layer in after["layers"]}
    assert seen == {name: (layer["kind"], layer["zeros"]) for name, layer in layers.items()}
    stored = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in AutoModelForCausalLM.from_pretrained(output).state_dict().values()
    }
    twins = sum(
        layer.weight_scale.nbytes
        for name, layer in packed_layers(AutoModelForCausalLM.from_pretrained(output))
        if name == "lm_head"
    )
    assert after["weight_bytes"] == sum(stored.values()) and facts["packed_bytes"] == after["weight_bytes"] - twins


def test_a_model_that_is_not_ternary(inspect, pack, tmp_path, capsys):
    small_model("llama", **TINY).save_pretrained(tmp_path / "dense")
    facts = inspect(tmp_path / "dense")
    assert facts["kinds"].keys() == {"dense"} and len(facts["refused"]) == 7
    assert pack.code("--model", tmp_path / "dense", "--inspect") == 0
    out = capsys.readouterr().out
    assert (
        "pack: refused, 7 linear layers are not ternary" in out and "q_proj.weight (F32) is not ternary: row 0" in out
    )
    assert len(inspect(tmp_path / "dense", "--modules_to_not_convert", "mlp")["refused"]) == 4


def test_gguf_and_text(inspect, pack, tmp_path, capsys):
    model = make_ternary(small_model("llama", num_hidden_layers=1), 256)
    path = write_gguf(model, tmp_path / "model.gguf", "TQ2_0", ends="Q8_0")
    facts = inspect(path)
    assert facts["format"] == "GGUF" and facts["kinds"]["row"]["stored"] == {"TQ2_0": 6}
    assert facts["kinds"]["group-128"]["stored"] == {"TQ2_0": 1} and facts["kinds"]["dense"]["stored"] == {"Q8_0": 2}
    file = tmp_path / "facts.json"
    assert pack.code("--model", path, "--inspect", "--json", file) == 0
    assert json.loads(file.read_text())["kinds"] == facts["kinds"]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "model.gguf: GGUF, LlamaForCausalLM (llama)"
    assert any(line.startswith("row") and line.endswith("TQ2_0") for line in out.splitlines())


def test_models_of_ours(inspect, pack, tmp_path):
    model = Legacy1BitForCausalLM(Legacy1BitConfig(**LEGACY, bitnet_embedding=False, bitnet_head=False))
    model.save_pretrained(tmp_path / "ours")
    facts = inspect(tmp_path / "ours")
    assert facts["format"] == "safetensors of frankenlm" and facts["kinds"].keys() == {"tensor", "dense"}
    after = inspect(pack(tmp_path / "ours", "--int8_embeddings", "--int8_head"))
    assert (
        after["kinds"].keys() == {"tensor", "int8", "dense"}
        and after["kinds"]["tensor"]["zeros"] == facts["kinds"]["tensor"]["zeros"]
    )
    assert after["kinds"]["int8"]["layers"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inspect", "--output", "new"], "--inspect writes nothing: leave --output out"),
        (["--json"], "--json goes with --inspect"),
        ([], "--output is missing"),
        (["--inspect", "--json", "facts.txt"], "name a file that ends in .json"),
    ],
)
def test_flags_that_do_not_go_together(words, message, pack, tmp_path, capsys):
    assert pack.code("--model", tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_damage_is_told_in_one_line(pack, tmp_path, capsys):
    make_ternary(small_model("llama", **TINY), "row").save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert pack.code("--model", tmp_path / "dense", "--inspect") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: --model") and "model.safetensors" in line and "cut short" in line
