"""scripts/evidence_ternary.py: bigram entropies worked out by hand, and a table of two tiny runs."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest

from frankenlm.trainer_ext.cli import run_command
from frankenlm.trainer_ext.ternary_evidence import bigram_entropies, describe_weights

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *words: run_command(module.main, [str(word) for word in words])


def test_bigram_entropies_by_hand():
    """a is followed by a or b with 1/2 each, b always by the end: (2 * ln 2 + 1 * 0) / 3 of "aab" and its end."""
    values = bigram_entropies(["aab"] * 500, ["aab"])
    assert values["conditional_entropy"] == pytest.approx(2 * math.log(2) / 3)
    # aa, ab and b-end 500 times each, among 1000 and 500 pairs that begin so; 257 possible successors
    expected = -(2 * math.log(501 / 1257) + math.log(501 / 757)) / 3
    assert values["cross_entropy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="no bigrams"):
        bigram_entropies(["ab"], [])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_bitnet": False}, "full precision"),
        ({}, "all low-bit"),
        ({"bitnet_ffn": False, "bitnet_head": False}, "low-bit: attention, embedding"),
    ],
)
def test_which_matrices_are_low_bit(fields, words):
    names = ("use_bitnet", "bitnet_attention", "bitnet_ffn", "bitnet_embedding", "bitnet_head")
    assert describe_weights(dict.fromkeys(names, True) | fields) == words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of two steps: ternary, and its full-precision twin."""
    folder, train = tmp_path_factory.mktemp("runs"), load("train")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"the cat sat on mat {i}"}) + "\n" for i in range(40))
    )
    for name, extra in (("ternary", ()), ("twin", ("--model.use_bitnet", "false"))):
        code = train(
            "--preset", "legacy-1bit", "--dataset", folder / "text.jsonl", "--max_length", 32, "--max_steps", 2,
            "--model.hidden_size", 16, "--model.intermediate_size", 16, "--learning_rate", 0.003, "--use_cpu",
            "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true", "--log_level", "error",
            "--cache_dir", folder / "cache", "--output_dir", folder / name, *extra,
        )  # fmt: skip
        assert code == 0
    return folder


def test_table_of_two_runs(folder, capsys):
    report = folder / "report"
    code = load("evidence_ternary")(
        "--runs", folder / "ternary", folder / "twin", "--dataset", folder / "text.jsonl", "--output_dir", report
    )
    assert code == 0
    rows = list(csv.DictReader((report / "runs.csv").read_text().splitlines()))
    assert [(row["run"], row["weights"]) for row in rows] == [("ternary", "all low-bit"), ("twin", "full precision")]
    assert rows[0]["w_scheme"] == "ternary_absmean" and rows[0]["ternary_training"] == "ste"
    assert float(rows[0]["learning_rate"]) == 0.003 and 0.2 < float(rows[0]["zero_fraction"]) < 0.5
    assert 0 <= float(rows[0]["last_flip_rate"]) <= 1 and rows[1]["mean_flip_rate"] == ""
    loaded = json.loads((report / "report.json").read_text())
    assert loaded["runs"][1]["eval_loss"] == pytest.approx(float(rows[1]["eval_loss"]))
    assert 0 < loaded["bigram_nats_per_byte"]["conditional_entropy"] < 6
    table = (report / "table.md").read_text()
    assert table.count("\n| ") == 2 and "Bigram models" in table and table in capsys.readouterr().out


def test_a_folder_without_a_run_is_a_mistake(tmp_path, capsys):
    code = load("evidence_ternary")("--runs", tmp_path, "--dataset", "builtin", "--output_dir", tmp_path / "out")
    assert code == 2 and "metrics.json is missing" in capsys.readouterr().err
