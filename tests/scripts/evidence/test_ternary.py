"""scripts/evidence/ternary.py: bigram entropies worked out by hand, and a table of two tiny runs."""

import csv
import importlib
import json
import math
import shutil
from pathlib import Path

import pytest

from frankenlm.scripts.evidence.ternary_findings import ternary_findings
from frankenlm.scripts.evidence.ternary_table import bigram_entropies, describe_weights, report_text
from frankenlm.trainer_ext.common.cli import UserError, run_command

ROOT = Path(__file__).resolve().parents[3]
BIGRAM = {"conditional_entropy": 2.0, "cross_entropy": 2.1}


def load(name):
    module = importlib.import_module(f"frankenlm.scripts.{name}")
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


def row(run, weights, loss, rate=0.002, **changes):
    """An invented run of 1,000 bytes."""
    low = weights != "full precision"
    return {
        "run": run,
        "preset": "legacy-1bit",
        "weights": weights,
        "w_scheme": "ternary_absmean" if low else None,
        "scale": "tensor" if low else None,
        "ternary_training": "ste" if low else None,
        "embedding_start": 0.25,
        "tokens_seen": 1000,
        "batch": 8,
        "learning_rate": rate,
        "precision": "bf16",
        "seed": 42,
        "eval_loss": loss,
        **changes,
    }


@pytest.mark.parametrize(
    ("low", "full", "told"),
    [
        (1.6, 1.5, "+0.1000 nats (6.7%), a higher loss"),
        (1.9, 2.0, "-0.1000 nats (5.0%), a lower loss"),
    ],
)
def test_the_twin_is_told_first_whatever_the_sign(low, full, told):
    """Each at its best rate, though another pair of rates would look better for the low-bit model."""
    rows = [
        row("a", "all low-bit", low + 0.5, 0.001),
        row("b", "all low-bit", low),
        row("c", "all low-bit", 3.0, 0.004),
        row("d", "full precision", full),
        row("e", "full precision", full + 1.0, 0.004),
    ]
    lines = ternary_findings(rows, BIGRAM)
    assert lines[0].startswith("1,000 bytes: all low-bit at its best") and told in lines[0]
    assert "(b, rate 0.002)" in lines[0] and "(d, rate 0.002)" in lines[0]
    assert lines[1] == f"1,000 bytes: the first lies {2 - low:.4f} below the 2.0000 of the best bigram model."
    assert lines[2] == "1,000 bytes: d has the lowest of the rates 0.002, 0.004: a better rate may lie beyond."
    assert "all with seed 42: nothing is known about the spread" in lines[-1]


def test_parts_and_trainings_are_told_with_their_sign():
    rows = [
        row("ffn", "low-bit: FFN", 1.49),
        row("all", "all low-bit", 1.7),
        row("full", "full precision", 1.5),
        row("sign", "all low-bit", 2.7, ternary_training="sign_accum"),
        row("other", "low-bit: FFN", 9.0, batch=16),
    ]
    text = "\n".join(ternary_findings(rows, BIGRAM))
    assert "low-bit: FFN -0.0100; all low-bit (ternary_absmean, all) +0.2000 nats" in text
    assert "sign 2.7000: +1.0000 nats (58.8%), a higher loss, against all." in text
    assert "+7.5" not in text  # another batch is no twin


@pytest.mark.parametrize("order", [1, -1])
def test_a_scale_is_a_setting_whatever_the_order_of_the_folders(order):
    """A run with a scale per row is no twin of one per matrix, and no scheme."""
    rows = [
        row("tensor", "all low-bit", 2.0),
        row("rows", "all low-bit", 1.5, scale="row"),
        row("twn", "all low-bit", 2.1, w_scheme="ternary_twn"),
        row("sign", "all low-bit", 2.5, ternary_training="sign_accum"),
    ][::order]
    assert sorted(ternary_findings(rows, BIGRAM)[:-1]) == [
        "1,000 bytes: of the schemes at rate 0.002, start 0.25 and a scale per tensor, tensor has the lowest loss "
        "(2.0000) and twn the highest (2.1000).",
        "1,000 bytes: rows 1.5000: -0.5000 nats (25.0%), a lower loss, against tensor.",
        "1,000 bytes: sign 2.5000: +0.5000 nats (25.0%), a higher loss, against tensor.",
    ]


@pytest.mark.parametrize("other", ["full precision", "all low-bit"])
def test_two_rows_that_could_be_the_twin_are_refused(other):
    rows = [row("again", other, 1.4), row("usual", other, 1.5), row("sign", "all low-bit", 2, ternary_training="sign")]
    rows += [row("all", "all low-bit", 1.6, scale="row")]
    with pytest.raises(UserError, match="again and usual differ in no column"):
        ternary_findings(rows, BIGRAM)


def test_several_seeds_are_named():
    lines = ternary_findings([row("a", "all low-bit", 1.6), row("b", "full precision", 1.5, seed=1)], BIGRAM)
    assert lines[-1].startswith("seeds 1, 42, one run a row")


def test_the_committed_card_and_table_are_what_the_rules_make_of_the_committed_rows():
    folder = ROOT / "results" / "samples" / "legacy_1bit"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = report_text(report["runs"], report["bigram_nats_per_byte"])
    assert (folder / "table.md").read_text(encoding="utf-8") == text
    assert text in (ROOT / "model_cards" / "legacy_1bit.md").read_text(encoding="utf-8")


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
    code = load("evidence.ternary")(
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
    assert table.startswith("In short:") and "all low-bit at its best" in table
    assert table.count("\n| ") == 3 and "Bigram models" in table and table in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--runs", "--dataset", "--output_dir"])
def test_an_empty_name_is_a_mistake(option, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"--runs": folder / "twin", "--dataset": "builtin", "--output_dir": "out", option: ""}
    assert load("evidence.ternary")(*(word for pair in options.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert f"{option}" in error and "is empty" in error and not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_a_mistake(tmp_path, capsys):
    code = load("evidence.ternary")("--runs", tmp_path, "--dataset", "builtin", "--output_dir", tmp_path / "out")
    assert code == 2 and "metrics.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json is damaged"),
        ("config.json", "[]", "config.json is damaged (no JSON object)"),
        ("config.json", "{}", "is no run of a low-bit family"),
    ],
)
def test_a_damaged_run_is_one_line(name, content, message, folder, tmp_path, capsys):
    run = shutil.copytree(folder / "twin", tmp_path / "run")
    (run / name).write_text(content)
    code = load("evidence.ternary")("--runs", run, "--dataset", "builtin", "--output_dir", tmp_path / "out")
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
