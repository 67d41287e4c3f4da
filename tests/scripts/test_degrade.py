"""scripts/degrade.py: what a newcomer types, and what comes of mistakes: one line, the exit code, nothing lost."""

import errno
import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from frankenlm.degradation.records.journal import checksum
from frankenlm.degradation.records.locks import ExperimentLock


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch):
    """What else the machine's memory holds must not stop or slow a tiny experiment."""
    monkeypatch.setattr("frankenlm.degradation.run.limits.HostReader", lambda: lambda: 0.2)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny Llama with a byte tokenizer, saved."""
    from frankenlm.modeling.tokenization_bytes import byte_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALLEST = "--config smoke --dtype float32 --method mult_gauss --group attn_only --levels 0,0.1 --n_rep 2 --max_new_tokens 8 --max_batch_size 4 --perplexity false"  # noqa: E501


@pytest.fixture
def run(degrade, model, tmp_path):
    """run(more words) is the smallest experiment, with changes."""
    return lambda *more, folder=tmp_path / "results": degrade(
        "run", "--model", model, "--output_dir", folder, *SMALLEST.split(), *more
    )


def exported(folder):
    (path,) = folder.glob("outputs_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix not in ("", ".log")}


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"(error|stopped|storage):", line)]
    assert len(lines) == 1, lines
    return lines[0]


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


MISTAKES = {
    "unknown model": (["--model", "no/such/model/here"], r"no/such/model/here"),
    "unknown group": (["--group", "atn_only"], r"atn_only.*Did you mean 'attn_only'"),
    "unknown method": (["--method", "mult_gaus"], r"method='mult_gaus'.*Did you mean 'mult_gauss'"),
    "unknown configuration": (["--config", "dreams"], r"config='dreams'.*Did you mean 'dreams_it'"),
    "unknown prompts": (["--prompts", "iq_itt"], r"iq_itt.*Did you mean 'iq_it'"),
    "unknown flag": (["--max_new_token", "3"], r"--max_new_token'.*Did you mean '--max_new_tokens'"),
    "negative sigma": (["--levels", "0,-0.1"], r"levels.*-0.1"),
    "share above one": (["--method", "ablation", "--levels", "0,1.5"], r"ablation.*1\.5"),
    "one quantum": (["--method", "uni_quant", "--levels", "1"], r"uni_quant.*at least 2"),
    "no level": (["--levels", "mild"], r"'mild' is no number"),
    "equal levels": (["--levels", "0.1,0.10"], r"0\.1 is there twice"),
    "missing picture": (["--image", "nowhere.png"], r"nowhere\.png.*no such file"),
    "picture for a text model": (["--image", "kitchen"], r"reads text only"),
    "no boolean": (["--do_sample", "perhaps"], r"'perhaps' is neither true nor false"),
    "force nothing": (["--force_run", "--force_where", "colour=red"], r"force_where='colour'"),
    "no device": (["--device", "tpu"], "device tpu: no such device"),
    "too many quanta": (["--method", "uni_quant", "--levels", "2097152"], r"at most 1048576"),
    "heads of an MLP": (["--unit", "head", "--group", "mlp_only"], r"unit='head'.*mlp"),
    "no positions": (["--max_new_tokens", "4000"], r"positions"),
    "empty group": (["--group", ""], r"--group is empty"),
    "a group that is empty": (["--group", "attn_only,"], r"--group 'attn_only,': a name is empty"),
    "equal groups": (["--group", "attn_only", "attn_only"], r"attn_only is there twice"),
    "empty method": (["--method", ""], r"--method is empty"),
    "empty configuration": (["--config", ""], r"--config is empty"),
    "empty folder": (["--output_dir", ""], r"--output_dir is empty"),
    "blank suffix": (["--name_suffix", " "], r"name_suffix=' ' must not be empty"),
    "long suffix": (["--name_suffix", "x" * 300], r"name_suffix='x.*too long"),
    "blank system message": (["--system_prompt", " "], r"system_prompt=' ' must not be empty"),
    "half a letter": (["--system_prompt", "a\ud800"], r"system_prompt"),
    "levels nan": (["--levels", "nan"], r"levels"),
    "levels inf": (["--levels", "0,inf"], r"levels"),
    "levels beyond numbers": (["--levels", "9" * 400], r"levels"),
    "no repeats": (["--n_rep", "0"], r"n_rep=0 must be at least 1"),
    "endless repeats": (["--n_rep", "1000000000"], r"n_rep=1000000000 must be .* at most"),
    "too many cells": (["--n_rep", "1000000"], r"n_rep=1000000: 2,000,000 cells"),
    "no tokens": (["--max_new_tokens", "0"], r"max_new_tokens=0"),
    "no batch": (["--max_batch_size", "0"], r"max_batch_size=0"),
    "seed below zero": (["--seed_base", "-1"], r"seed_base=-1"),
    "seed beyond JSON": (["--seed_base", "9" * 30], r"seed_base=9+ .*2\^53"),
    "temperature nan": (["--temperature", "nan"], r"temperature nan: must be a finite number"),
    "temperature near 0": (["--temperature", "1e-300"], r"temperature=1e-300 must be positive"),
    "top_p above 1": (["--top_p", "2"], r"top_p=2\.0"),
    "penalty 0": (["--repetition_penalty", "0"], r"repetition_penalty=0"),
    "no layers": (["--group", "attn_only@"], r"layers '@' are not understood"),
    "endless layers": (["--group", "attn_only@L0-99999999999"], r"the model has no layer 2"),
    "choice without force": (["--force_where", "group=attn_only"], r"force_where=.*force_run"),
    "legacy draws of uni_quant": (
        ["--method", "uni_quant", "--levels", "4", "--legacy_rng"],
        r"legacy_rng=True works with",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_anything_is_written(name, run, tmp_path, capsys):
    words, message = MISTAKES[name]
    assert run(*words) == 2
    assert re.search(message, one_line(capsys))
    assert not list(tmp_path.iterdir())


ODD_FLAGS = {
    "dry-run device_gb 0": (["dry-run", "--config", "smoke", "--device_gb", "0"], "no size in GB"),
    "dry-run device_gb nan": (["dry-run", "--config", "smoke", "--device_gb", "nan"], "no size in GB"),
    "dry-run device_gb inf": (["dry-run", "--config", "smoke", "--device_gb", "inf"], "no size in GB"),
    "dry-run report": (["dry-run", "--config", "smoke", "--report", ""], "--report is empty"),
    "dry-run report onto another's": (["dry-run", "--config", "smoke", "--report", "theirs.json"], "no report of this"),
    "dry-run report onto a folder": (["dry-run", "--config", "smoke", "--report", ".."], "is a folder"),
    "dry-run report onto nothing": (["dry-run", "--config", "smoke", "--report", "."], "names no file"),
    "groups device": (["groups", "--device", "banana"], "device banana: no such device"),
}


@pytest.mark.parametrize("name", ODD_FLAGS)
def test_odd_values_of_the_other_commands_flags(name, degrade, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.json").write_text('{"precious": 1}')
    words, message = ODD_FLAGS[name]
    assert degrade(*words, "--model", model) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.json"]
    assert (tmp_path / "theirs.json").read_text() == '{"precious": 1}'


RESULT_FILES = {
    "deep": ("[" * 100_000, 7),
    "cut": ("{", 7),
    "number": ("7", 7),
    "empty": ("", 7),
    "numbers": ("[1, 2]", 7),
    "mixed": ('[{}, null, "a", []]', 7),
    "object": ('{"rows": []}', 7),
    "bare": ("[{}]", 2),
    "none": ("[]", 2),
    "odd": ('[{"status": ["ok"], "level_value": NaN}]', 2),
}


@pytest.mark.parametrize("command", ["measure", "report", "export"])
@pytest.mark.parametrize("name", RESULT_FILES)
def test_files_that_are_no_results(command, name, degrade, tmp_path, capsys):
    text, code = RESULT_FILES[name]
    path = tmp_path / "outputs_x.json"
    path.write_text(text)
    words = [command, path, *(["--output_dir", tmp_path / "report"] if command != "export" else [])]
    assert degrade(*words) == (2 if command == "export" else code)
    assert path.name in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == text


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "7", "", "[1]", "[{}, null]", '{"rows": []}', '[{"std_dev": "0.1"}]',
             '[{"repeat_index": [0]}]', '[{"std_dev": NaN}]', '[{"prompt_text": 5}]', f'[{{"std_dev": 1{"0" * 400}}}]'],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_files_that_are_none_of_the_original_program(text, degrade, model, tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text(text)
    flags = ["--model", model, "--config", "smoke", "--group", "attn_only", "--output_dir", tmp_path / "results"]
    assert degrade("import-legacy", path, *flags) == 2
    assert path.name in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_rows_of_another_model_are_told_before_a_folder_is_made(degrade, model, tmp_path, capsys):
    from frankenlm.degradation.configs import get_config
    from frankenlm.degradation.prompts import load_prompts

    config = get_config("smoke") | {"group": "attn_only"}
    prompt = load_prompts(config.prompts)[0]
    row = {
        "model_name": "org/other",
        "param_group_name": "attn_only",
        "degradation_method": config.method,
        "std_dev": 0.0,
        "repeat_index": 0,
        "prompt_text": prompt.text,
        "output": "x",
    }
    (tmp_path / "old.json").write_text(json.dumps([row]))
    flags = ["--model", model, "--config", "smoke", "--group", "attn_only", "--output_dir", tmp_path / "results"]
    assert degrade("import-legacy", tmp_path / "old.json", *flags) == 2
    assert "row 0 is of the model 'org/other'" in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.parametrize(("command", "name"), [("report", "report.html"), ("measure", "outputs_x_rows.csv")])
def test_somebody_elses_file_in_an_output_folder_is_a_mistake(command, name, degrade, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    (tmp_path / "outputs_x.json").write_text("[]")
    assert degrade(command, tmp_path / "outputs_x.json", "--output_dir", tmp_path / "out") == 2
    assert re.search(rf"{name} is there already.*move it away", one_line(capsys))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_measures_of_files_of_one_name_do_not_replace_each_other(degrade, tmp_path, capsys):
    paths = [tmp_path / folder / "outputs_x.json" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("[]")
    assert degrade("measure", *paths, "--output_dir", tmp_path / "out") == 2
    assert "both would be written to" in one_line(capsys) and not (tmp_path / "out").exists()


IN_THE_WAY = {
    "logs": "cannot write to",
    "outputs_mult_gauss_tiny_smoke.journal": "is no folder",
    "outputs_mult_gauss_tiny_smoke.json": "is no file of this program",
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_is_in_the_way_of_a_run_is_told_and_stays(name, run, tmp_path, capsys):
    place = tmp_path / "results" / name
    place.parent.mkdir()
    place.mkdir() if name.endswith(".json") else place.write_text("precious")
    assert run() == 2
    assert re.search(rf"{IN_THE_WAY[name]}.*(move it away|another folder)", one_line(capsys))
    assert {path.name for path in place.parent.iterdir()} <= {name, "logs"}


def test_a_mistake_that_only_the_weights_tell_costs_no_row(run, tmp_path, capsys):
    assert run("--restore_strategy", "mmap_checkpoint", "--dtype", "bfloat16") == 2
    assert re.search(r"stored as F32 but loaded as torch\.bfloat16.*subset_in_memory", one_line(capsys))
    assert exported(tmp_path / "results") == []


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
    assert estimate["rows"] == 16


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
    assert done.value.code == 0 and "usage: degrade.py" in capsys.readouterr().out
    assert degrade("--help") == 0 and command in capsys.readouterr().out
