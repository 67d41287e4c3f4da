"""scripts/bench/ternary_generate.py on a tiny decoder: the random checkpoint, the recorded operators, the report."""

import json
import math
from pathlib import Path

import pytest
import torch

from frankenlm.modeling import Legacy1BitForCausalLM
from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.scripts.bench import ternary_generate as script_module
from frankenlm.scripts.bench.packed_generation import (
    DecodingStep,
    decoder_config,
    generation,
    load_packed,
    measure_residence,
    packed_layers,
    ternary_weights,
    write_packed_checkpoint,
)
from frankenlm.trainer_ext.common.cli import run_command

SIZES = {"hidden": 32, "layers": 2, "heads": 2, "feedforward": 48, "vocabulary": 70}
WEIGHTS = 2 * (4 * 32 * 32 + 2 * 32 * 48)


@pytest.fixture(scope="module")
def script():
    return script_module


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    config = decoder_config(**SIZES, positions=64, ternary=True)
    assert write_packed_checkpoint(config, folder) == WEIGHTS
    return folder


def test_the_large_decoder_has_the_weights_it_promises(script):
    with torch.device("meta"):
        model = Legacy1BitForCausalLM(decoder_config(**script.SIZES, positions=2048, ternary=False))
    linear = sum(part.weight.numel() for part in model.model.modules() if isinstance(part, torch.nn.Linear))
    assert linear == 822_083_584
    width = script.gated_width(script.SIZES["feedforward"])
    assert 16 * (4 * 2048**2 + 3 * 2048 * width) == linear


def test_the_random_checkpoint_is_a_packed_model(packed):
    model = load_packed(packed)
    assert ternary_weights(model) == WEIGHTS
    codes = torch.cat([layer.codes().flatten() for layer in packed_layers(model)])
    shares = [(codes == level).float().mean().item() for level in (-1, 0, 1)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert model.get_output_embeddings().weight.dtype == torch.int8
    assert model.get_input_embeddings().weight.dtype == torch.int8
    assert model(torch.tensor([[3, 5, 7]])).logits.isfinite().all()


def test_generation_gives_as_many_tokens_as_are_timed(packed, monkeypatch):
    model = load_packed(packed)
    asked = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **words: asked.append(generate(ids, **words).shape))
    generation(model, prompt=9, new_tokens=4)()
    assert asked == [(1, 13)]


def test_a_step_records_every_operator_and_its_result(packed):
    if not native_code_runs():
        pytest.skip("no C++ compiler: the operators are plain PyTorch")
    model = load_packed(packed)
    step = DecodingStep(model, prompt=5)
    names = [operator._schema.name for operator, _, _ in step._calls]
    products = [name for name in names if "ternary_linear" in name]
    assert len(products) == 2 * 6  # q, k, v, output, up, down
    assert names.count("frankenlm::int8_linear") == 1
    step.whole()
    step.operators()


def test_an_unpacked_model_has_no_operators_to_time():
    model = Legacy1BitForCausalLM(decoder_config(**SIZES, positions=64, ternary=False)).eval()
    with pytest.raises(RuntimeError, match="is it packed"):
        DecodingStep(model, prompt=3)


def test_residence_counts_every_tensor_once(packed):
    found = measure_residence(packed)
    assert found["ternary_weights"] == WEIGHTS
    ours = 2 * 70 * (32 + 4) + 5 * 32 * 4
    assert found["other_tensors_mb"] * 1e6 == pytest.approx(ours, abs=200)  # and the rotary frequencies


def test_a_tiny_run(script, tmp_path):
    words = [word for name, value in SIZES.items() for word in (f"--{name}", value)]
    words += ["--threads", 1, "--prompt", 5, "--new_tokens", 2, "--rounds", 1]
    words += ["--work_dir", tmp_path / "work", "--output", tmp_path / "o.json"]
    assert run_command(script.main, list(map(str, words))) == 0
    tables = list(json.loads((tmp_path / "o.json").read_text())["tables"].values())
    assert [row["model"] for row in tables[0]] == ["frankenlm packed", "torch fp32", "torch bf16"]
    # differences of times so short may be of either sign
    assert all(value and math.isfinite(value) for row in tables[0] for key, value in row.items() if key != "model")
    assert tables[0][0]["ours / this, decode"] == 1
    assert set(tables[1][0]) == {
        "threads",
        "token of generate(), ms",
        "call of the model, ms",
        "our operators, ms",
        "share outside them",
    }
    assert tables[2][0]["ternary_weights"] == WEIGHTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--llama_python", "/no/such"], "no such interpreter"),
        (["--llama_python", "{script}", "--feedforward", "100"], "must be a multiple of 256"),
        (["--rounds", "0"], "at least 1"),
        (["--roundz", "1"], "Did you mean '--rounds'"),
    ],
)
def test_mistakes(script, words, message, tmp_path, capfd):
    words = [word.format(script=script_module.__file__) for word in words]
    assert run_command(script.main, ["--output", str(tmp_path / "o.json"), *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
