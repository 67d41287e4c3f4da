"""scripts/bench/public on the tiny shape: our model, the race, and the file that the engines read."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.scripts.bench.public import race
from frankenlm.scripts.bench.public.packed import load, write_checkpoint
from frankenlm.scripts.bench.public.peer_process import PeerProcess
from frankenlm.scripts.bench.public.shapes import SHAPES
from frankenlm.trainer_ext.common.cli import UserError, run_command

FOLDER = Path(race.__file__).parent


@pytest.mark.parametrize("name", ["tiny", "tiny-int8"])
def test_our_model_has_the_weights_of_its_shape(tmp_path, name):
    shape = SHAPES[name]
    write_checkpoint(shape, tmp_path / "model")
    model = load(tmp_path / "model")
    ternary = {id(layer.weight): layer.num_weights for _, layer in packed_layers(model) if layer.weight_bits == 2}
    assert sum(ternary.values()) == shape.ternary_weights()
    with torch.no_grad():
        assert model(torch.arange(1, 6)[None]).logits.shape == (1, 5, shape.vocabulary)


def test_a_race_of_ours_alone(tmp_path, capsys):
    if not native_code_runs():
        pytest.skip("needs native operators")
    words = ["--shape", "tiny", "--threads", "1", "--prompt", "4", "--new_tokens", "3", "--rounds", "1"]
    run_command(race.main, [*words, "--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out.json")])
    assert "frankenlm packed" in capsys.readouterr().out
    (rows,) = json.loads((tmp_path / "out.json").read_text())["tables"].values()
    (row,) = rows
    assert row["engine"] == race.OURS and row["ours / this, decode"] == 1.0
    assert math.isfinite(row["decode, tokens/s"])  # times so short may differ by less than nothing
    assert row["of a token outside our operators"] < 1


def test_ratios_say_how_many_times_faster_ours_is():
    median = {
        race.OURS: {"prefill": 2.0, "decode": 1.0, "operators": 0.09, "resident_mb": 1.0},
        "other": {"prefill": 6.0, "decode": 1.5, "resident_mb": 1.0},
    }
    ours, other = race.rows_of(median, threads=1, prompt=128, new_tokens=10)
    assert ours["of a token outside our operators"] == pytest.approx(0.1) and ours["decode, tokens/s"] == 10
    assert other["ours / this, prefill"] == 3 and other["ours / this, decode"] == 1.5
    assert other["prefill, tokens/s"] == pytest.approx(128 / 6)


def test_the_engines_file_holds_ternary_weights(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(FOLDER))
    peer, shape = importlib.import_module("engine_peer"), SHAPES["tiny"]
    peer.write_model(tmp_path / "tiny.gguf", shape, "TQ2_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    for name, (rows, inputs) in shape.matrices().items():
        found = tensors[f"blk.1.{name}.weight"]
        weight = gguf.quants.dequantize(found.data, found.tensor_type)
        assert weight.shape == (rows, inputs)
        assert np.array_equal(np.unique(weight), np.float32(np.float16(peer.SCALE)) * np.array([-1, 0, 1], np.float32))


@pytest.mark.parametrize("kind", ["IQ2_BN", "IQ2_BN_R4"])
def test_rows_of_the_other_engine_begin_with_scales(monkeypatch, kind):
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(FOLDER))
    peer = importlib.import_module("engine_peer")
    rows = peer.ternary_rows(np.random.default_rng(0), 8, 512, kind)
    assert rows.shape == (8, 4 + 128)
    first = rows[0, :4] if kind == "IQ2_BN" else rows[0, :16]
    assert (first.view(np.float32) == np.float32(peer.SCALE)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "huge"], "invalid choice: 'huge'"),
        (["--shape", "tiny", "--engines_python", "nowhere/python"], "no such interpreter"),
        (["--shape", "tiny", "--rounds", "0"], "must be at least 1"),
    ],
)
def test_mistakes(words, message, capsys):
    assert run_command(race.main, words) != 0
    assert message in capsys.readouterr().err


ADDS = """
import json, sys
for line in sys.stdin:
    numbers = json.loads(line)
    if "end" in numbers:
        sys.exit(7)
    print(json.dumps({"sum": sum(numbers.values()), "words": len(sys.argv[1:])}), flush=True)
"""


def test_a_peer_answers_until_it_ends(tmp_path):
    script = tmp_path / "adds.py"
    script.write_text(ADDS)
    peer = PeerProcess(Path(sys.executable), script, "a", 2)
    assert peer.time(a=1, b=2.5) == {"sum": 3.5, "words": 2} and peer.time(a=1)["sum"] == 1
    for _ in range(2):  # it is told, too, of one that had ended before
        with pytest.raises(UserError, match=r"adds\.py ended with exit code 7; run it by itself"):
            peer.time(end=1)
    peer.close()
