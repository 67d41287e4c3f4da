"""scripts/degrade.py: runs, what ends them, the other commands."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from frankenlm.degradation.records.journal import checksum
from frankenlm.degradation.records.locks import ExperimentLock
from lab_outcomes import exported, one_line, snapshot


def test_the_smallest_experiment(run, tmp_path):
    assert run() == 0
    assert len(exported(tmp_path / "results")) == 2 * 2 * 4
    (log,) = (tmp_path / "results" / "logs").glob("*.log")
    assert "16 rows in 4 of 4 cells" in log.read_text(encoding="utf-8")
    assert not set("|/ ") & set(log.name)
    before = (tmp_path / "results" / "outputs_mult_gauss_tiny_smoke.json").read_bytes()
    assert run() == 0
    assert (tmp_path / "results" / "outputs_mult_gauss_tiny_smoke.json").read_bytes() == before


def test_several_groups_and_methods_are_one_command(run, tmp_path):
    assert run("--group", "attn_only", "mlp_only,embed_only", "--n-rep", "1") == 0
    assert {row["param_group_name"] for row in exported(tmp_path / "results")} == {
        "attn_only",
        "mlp_only",
        "embed_only",
    }
    assert run("--method", "ablation", "uni_quant", "--levels", "0", "--n_rep", "1") == 0
    assert len(list((tmp_path / "results").glob("outputs_*.json"))) == 3


def test_a_changed_configuration_under_the_same_name(run, tmp_path, capsys):
    assert run() == 0
    before = snapshot(tmp_path / "results")
    assert run("--temperature", "0.5") == 4
    assert re.search(r"temperature.*1\.0.*0\.5", one_line(capsys))
    assert snapshot(tmp_path / "results") == before
    assert run("--temperature", "0.5", "--on-conflict", "new-suffix") == 0
    rows = json.loads((tmp_path / "results" / "outputs_mult_gauss_tiny_smoke-2.json").read_text(encoding="utf-8"))
    assert {row["experiment_id"] for row in rows} == {"mult_gauss|tiny|smoke-2"}


def test_a_model_is_the_same_wherever_it_is_opened_from(run, model, tmp_path, monkeypatch):
    assert run() == 0
    monkeypatch.chdir(model.parent)
    assert run("--model", model.name, "--levels", "0,0.05,0.1") == 0
    rows = exported(tmp_path / "results")
    assert {row["model_name"] for row in rows} == {"tiny"} and len({row["experiment_id"] for row in rows}) == 1
    assert {(row["level_index"], row["level_value"]) for row in rows} == {(0, 0.0), (1, 0.05), (2, 0.1)}
    for name in ("lesions", "cells"):
        (path,) = (tmp_path / "results").rglob(f"{name}.jsonl")
        records = [json.loads(line)["row"] for line in path.read_text().splitlines()]
        assert {(record["level_index"], record["level_value"]) for record in records} == {(0, 0.0), (1, 0.05), (2, 0.1)}


def test_other_weights_under_the_same_name_are_a_conflict(run, model, tmp_path, capsys):
    assert run() == 0
    other = shutil.copytree(model, tmp_path / "elsewhere" / "tiny")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert run("--model", other) == 4
    assert "weights" in one_line(capsys)


def test_a_picture_counts_by_its_content():
    from frankenlm.degradation.configs import get_config
    from frankenlm.degradation.prompts import picture_path
    from frankenlm.degradation.run.plan import Experiment, read_inputs

    named = get_config("cookie_theft_it")
    by_path = named | {"image": str(picture_path("kitchen"))}
    fields = [Experiment(c, "m", LlamaConfig(), "w", *read_inputs(c)).config_fields for c in (named, by_path)]
    assert fields[0] == fields[1] and len(fields[0]["image"]) == 64


def test_a_second_process_is_told_who_holds_the_experiment(run, tmp_path, capsys):
    assert run() == 0
    lock = ExperimentLock(tmp_path / "results" / "outputs_mult_gauss_tiny_smoke.journal" / "lock")
    lock.acquire(False)
    try:
        assert run() == 5
    finally:
        lock.release()
    assert str(os.getpid()) in one_line(capsys)


def test_a_lost_journal_beside_a_json_file(run, tmp_path, capsys):
    assert run() == 0
    before = exported(tmp_path / "results")
    journal = tmp_path / "results" / "outputs_mult_gauss_tiny_smoke.journal"
    shutil.rmtree(journal)
    assert run() == 7
    assert "--rebuild" in one_line(capsys)
    assert run("--rebuild") == 0
    assert exported(tmp_path / "results") == before


def test_a_journal_of_a_newer_version(run, tmp_path, capsys):
    assert run() == 0
    (path,) = (tmp_path / "results").glob("*.journal/rank-00000.jsonl")
    rows = [line[line.index(b'"row":') + 6 : -1] for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(b'{"v":99,"crc":"%s","row":%s}\n' % (checksum(99, row), row) for row in rows))
    before = snapshot(tmp_path / "results")
    assert run() == 7
    assert "newer" in one_line(capsys)
    assert snapshot(tmp_path / "results") == before


def test_a_flipped_byte_costs_one_row_which_is_written_again(run, tmp_path):
    assert run() == 0
    before = exported(tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*.journal/rank-00000.jsonl")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert run() == 0
    again = exported(tmp_path / "results")
    assert [row["completion"] for row in again] == [row["completion"] for row in before]


def test_a_full_disk(run, tmp_path, monkeypatch, capsys):
    """The journal's writes fail from the fifth row on; what was written stays, and the run goes on afterwards."""
    real, count = os.write, []

    def full(descriptor, data):
        if b'"row"' in bytes(data[:80]) and (count.append(1), len(count))[1] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert run() == 6
    assert re.search(r"No space left.*make room", one_line(capsys))
    assert run() == 0
    assert len(exported(tmp_path / "results")) == 16


def test_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(folder=tmp_path / "file" / "results") == 2
    assert "cannot write" in one_line(capsys)

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert run() == 6
    assert "Read-only" in one_line(capsys)


def test_one_failed_experiment_does_not_keep_the_others_from_running(run, tmp_path, monkeypatch, capsys):
    from frankenlm.degradation.run.runner import ExperimentRun

    work = ExperimentRun.work

    def fail_once(self, plans, progress):
        if self.config.group == "attn_only":
            raise ZeroDivisionError("by the test")
        work(self, plans, progress)

    monkeypatch.setattr(ExperimentRun, "work", fail_once)
    assert run("--group", "attn_only", "mlp_only") == 1
    assert {row["param_group_name"] for row in exported(tmp_path / "results")} == {"mlp_only"}
    assert "1 of 2 experiments failed" in capsys.readouterr().err


def test_groups_are_listed(degrade, model, capsys):
    assert degrade("groups", "--model", model) == 0
    lines = capsys.readouterr().out.splitlines()
    (values,) = [line.split() for line in lines if line.startswith("attn_only")]
    assert values[:3] == ["attn_only", "2", "1,024"]


def test_dry_run_prints_and_writes_an_estimate(degrade, model, tmp_path, capsys):
    report = tmp_path / "estimate.json"
    assert degrade("dry-run", "--config", "smoke", "--model", model, "--dtype", "float32", "--report", report) == 0
    assert "weights" in capsys.readouterr().out
    (estimate,) = json.loads(report.read_text())["estimates"]
    assert estimate["rows"] == 16 and "least_s" not in estimate


def test_dry_run_tells_what_reading_the_weights_takes(degrade, model, tmp_path, capsys):
    report, flags = tmp_path / "estimate.json", ["--dtype", "float32", "--max_new_tokens", "8", "--device_gb_s", "0.5"]
    assert degrade("dry-run", "--config", "smoke", "--model", model, *flags, "--report", report) == 0
    (found,) = json.loads(report.read_text())["estimates"]
    batches = -(-found["rows"] // found["batch_size"])
    assert found["least_s"] == pytest.approx(batches * 8 * found["parts"]["weights"] / 0.5e9)
    assert "reading the weights at 0.5 GB/s for 8 tokens of every batch" in capsys.readouterr().out


def test_dry_run_times_a_batch_when_asked(degrade, model, tmp_path, capsys):
    report = tmp_path / "estimate.json"
    flags = ["--config", "smoke", "--dtype", "float32", "--max_new_tokens", "8", "--probe", "--report"]
    assert degrade("dry-run", "--model", model, *flags, report) == 0
    (estimate,) = json.loads(report.read_text())["estimates"]
    assert 0 < estimate["shortest_s"] <= estimate["longest_s"]
    assert "if all are cut off" in capsys.readouterr().out


def test_export_measure_and_report_follow_a_run(run, degrade, tmp_path, capsys):
    assert run("--n_rep", "3", "--levels", "0,0.3,0.8") == 0
    (path,) = (tmp_path / "results").glob("outputs_*.json")
    whole = path.read_bytes()
    path.unlink()
    assert degrade("export", path.with_suffix(".journal")) == 0
    assert path.read_bytes() == whole
    assert degrade("measure", path) == 0
    assert degrade("report", path, "--output_dir", tmp_path / "report") == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("words", [["report", "missing.json"], ["measure", "missing.json"], ["export", "missing"]])
def test_missing_results_are_a_mistake(words, degrade, capsys):
    assert degrade(*words) == 2
    assert "no such file" in one_line(capsys)


def test_damaged_results_are_named(degrade, tmp_path, capsys):
    path = tmp_path / "outputs_mult_gauss_x_y.json"
    path.write_text('[{"half": ')
    assert degrade("report", path, "--output_dir", tmp_path / "report") == 7
    assert path.name in one_line(capsys)


@pytest.mark.parametrize("content", ["[]", '[{"prompt_text": "of the original program"}]'])
@pytest.mark.parametrize("command", ["report", "measure"])
def test_results_that_say_nothing_are_a_mistake(command, content, degrade, tmp_path, capsys):
    path = tmp_path / "outputs_x.json"
    path.write_text(content)
    assert degrade(command, path, "--output_dir", tmp_path / "out") == 2
    assert path.name in one_line(capsys)


@pytest.mark.parametrize("command", ["run", "groups", "dry-run", "measure", "report", "export", "import-legacy"])
def test_every_command_has_help(command, degrade, capsys):
    with pytest.raises(SystemExit) as done:
        degrade(command, "--help")
    shown = f"usage: {Path(sys.argv[0]).name} {command} "
    assert done.value.code == 0 and shown in capsys.readouterr().out
    assert degrade("--help") == 0 and command in capsys.readouterr().out
