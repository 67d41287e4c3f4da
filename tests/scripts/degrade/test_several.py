"""Several experiments in one command: named damages, sets of prompts, windows of depth, one bar, one report."""

import argparse
import json

import pytest

from frankenlm.degradation.cli import run_flags
from frankenlm.degradation.configs import default_levels
from frankenlm.degradation.flags import experiments_of, options_of, with_underscores
from frankenlm.trainer_ext.common.cli import UserError
from lab_outcomes import one_line


def parsed(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    run_flags(parser)
    return parser.parse_args(with_underscores(["--model", "m", "--config", "smoke", *words]))


def asked(*words):
    return [(each.method, each.group, each.name_suffix, each.prompts) for each in experiments_of(parsed(*words))]


def test_the_thesis_names_five_damages():
    names = ("gauss_attn,gauss_mlp", "gauss_embed", "ablation_attn,quant_attn,quant_mlp")
    found = asked("--config", "iq_it", "--variants", *names)
    assert [each[:2] for each in found] == [
        ("mult_gauss", "attn_only"),
        ("mult_gauss", "mlp_only"),
        ("mult_gauss", "embed_only"),
        ("ablation", "attn_only"),
        ("uni_quant", "attn_only"),
        ("uni_quant", "mlp_only"),
    ]
    (quant,) = experiments_of(parsed("--config", "iq_it", "--variants", "quant_attn"))
    assert quant.resolved_levels == default_levels("uni_quant", "attn_only")


def test_sets_of_prompts_have_files_of_their_own(tmp_path):
    own = tmp_path / "mine.jsonl"
    assert asked("--prompts", "dreams_it", "iq_it", str(own)) == [
        ("mult_gauss", "attn_only", "dreams", "dreams_it"),
        ("mult_gauss", "attn_only", "iq", "iq_it"),
        ("mult_gauss", "attn_only", "mine", str(own)),
    ]
    assert [each[2] for each in asked("--prompts", "smoke,iq_it", "--name_suffix", "x")] == ["x_smoke", "x_iq"]
    assert asked("--prompts", "iq_it") == [("mult_gauss", "attn_only", "smoke", "iq_it")]  # one: as ever


def test_windows_are_groups_by_depth():
    found = asked("--group", "attn_o", "mlp_down", "--windows", "2")
    assert [each[1] for each in found] == ["attn_o@1of2", "attn_o@2of2", "mlp_down@1of2", "mlp_down@2of2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--variants gauss_att", "Did you mean 'gauss_attn'"),
        ("--variants gauss_attn --method ablation", "leave out --method and --group"),
        ("--windows 2", "--windows takes groups by --group or --variants"),
        ("--windows 0 --group attn_o", "must lie between 1 and"),
        ("--windows 2 --group attn_o@L1", "without layers"),
        ("--prompts a/x.jsonl b/x.jsonl", "two experiments are called mult_gauss, attn_only, x"),
        ("--prompts smoke,smoke", "smoke is there twice"),
    ],
)
def test_what_cannot_be_is_told(words, message):
    with pytest.raises(UserError, match=message):
        experiments_of(parsed(*words.split()))


def test_places_of_a_spread_model():
    options = options_of(parsed("--device_map", "auto", "--max-memory", "0=20GiB,cpu=1.5MB"))
    assert options.device_map == "auto" and options.max_memory == {0: "20GiB", "cpu": "1.5MB"}
    for words in (["--max_memory", "cpu=1GB"], ["--device_map", "auto", "--device", "cpu"]):
        with pytest.raises(UserError, match="--device_map"):
            options_of(parsed(*words))
    with pytest.raises(argparse.ArgumentError, match="no DEVICE=SIZE"):
        parsed("--max_memory", "cpu=lots")


def test_one_command_one_bar_one_report(degrade, model, tmp_path, capsys, monkeypatch):
    reports = []
    monkeypatch.setattr(
        "frankenlm.degradation.report.write.write_report",
        lambda paths, folder, workers: reports.append((sorted(path.name for path in paths), folder)) or "the page",
    )
    words = (
        "--config smoke --dtype float32 --levels 0,0.1 --max_new_tokens 4 --perplexity false --n_rep 1 --max_prompts 2 "
        "--variants gauss_attn gauss_mlp --prompts smoke iq_it --report"
    )
    results = tmp_path / "results"
    command = ("run", "--model", model, "--output_dir", results, *words.split())
    assert degrade(*command) == 0
    rows = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("outputs_*.json")}
    assert rows.keys() == {"outputs_mult_gauss_tiny_smoke.json", "outputs_mult_gauss_tiny_iq.json"}
    for each in rows.values():
        assert {row["param_group_name"] for row in each} == {"attn_only", "mlp_only"} and len(each) == 2 * 2 * 2
    printed = capsys.readouterr()
    assert printed.out.strip().endswith("the page") and reports == [(sorted(rows), results / "report")]
    bars = [line for line in printed.err.replace("\r", "\n").splitlines() if "row" in line and "%|" in line]
    assert bars[-1].split("|")[-1].strip().startswith("16/16") and all("/16 " in bar for bar in bars)
    assert degrade(*command) == 0  # there already: nothing is done, and the bar does not pretend
    again = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "%|" in line]
    assert not again or "/16" not in again[-1]


def test_windows_without_the_group_are_left_out(run, tmp_path, capsys):
    assert run("--group", "attn_o", "--windows", "9", "--n_rep", "1") == 2
    assert "write 1of" in one_line(capsys)


def test_mistakes_of_recover_are_told_before_the_model_is_loaded(degrade, model, tmp_path, capsys):
    base = (
        "recover",
        "--model",
        model,
        "--output_dir",
        tmp_path / "results",
        "--config",
        "smoke",
        "--group",
        "mlp_only",
    )
    assert degrade(*base, "--steps", "4", "--every", "3") == 2 and "must divide" in one_line(capsys)
    assert degrade(*base, "--train_text", "nowhere.txt") == 2 and "neither a file" in one_line(capsys)
    text = tmp_path / "text.txt"
    text.write_text("the kettle sang.", encoding="utf-8")
    assert degrade(*base, "--train_text", text) == 2 and "train in float32" in one_line(capsys)


@pytest.mark.slow
def test_recover_is_a_command(degrade, model, tmp_path, capsys):
    base = (
        "recover",
        "--model",
        model,
        "--output_dir",
        tmp_path / "results",
        "--config",
        "smoke",
        "--group",
        "mlp_only",
    )
    text = tmp_path / "text.txt"
    text.write_text("the kettle sang. " * 90, encoding="utf-8")
    words = "--dtype float32 --levels 0.5 --n_rep 1 --max_prompts 1 --max_new_tokens 2 --perplexity false --steps 2"
    words = (*words.split(), "--every", "2", "--train_length", "16", "--train_batch", "2", "--train_text", text)
    assert degrade(*base, *words) == 0
    printed = capsys.readouterr().out.split()
    assert [name.rpartition("_after")[2] for name in printed] == ["00000.json", "00002.json"]
