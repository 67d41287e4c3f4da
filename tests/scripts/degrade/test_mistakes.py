"""scripts/degrade.py: what is refused, in one line, before anything is written."""

import json
import re

import pytest

from lab_outcomes import exported, one_line

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
