"""Whole experiments on tiny models: what is resumed, extended, refused, forced; and the model is left as it was."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from frankenlm.degradation import cli, get_config, run_experiment
from frankenlm.degradation.cells import level_places
from frankenlm.degradation.configs import NOT_IN_HASH, ExperimentConfig
from frankenlm.degradation.errors import ConfigConflict, MemoryStop
from frankenlm.degradation.lab import Lab, RunOptions, renumber
from frankenlm.degradation.limits import Signals
from frankenlm.degradation.memory import MemoryPolicy
from frankenlm.degradation.report import analyse
from frankenlm.degradation.result_files import read_results
from frankenlm.degradation.row_decoder import RowDecoder
from frankenlm.degradation.runner import ExperimentRun
from frankenlm.degradation.store import Store
from frankenlm.trainer_ext.cli import Interrupted

SMALL = get_config("smoke") | {
    "dtype": "float32", "levels": (0.0, 0.3), "n_rep": 2, "max_new_tokens": 6, "perplexity": False
}  # fmt: skip
# what may differ between two ways of getting the same rows
INCIDENTAL = {
    "timestamp", "duration", "batch_duration", "attempt", "batch_size_effective", "batch_shape", "rank", "device",
    "vram_usage_percent",
}  # fmt: skip
ROUNDED = ("mean_logprob", "mean_entropy")


def rows_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def essence(rows):
    """What rows say, apart from when and in which company; in the order of the file."""
    kept = [{name: value for name, value in row.items() if name not in INCIDENTAL} for row in rows]
    for row in kept:
        for name in ROUNDED:
            row[name] = pytest.approx(row[name], abs=1e-3) if row[name] is not None else None
    return kept


@pytest.fixture
def lab(tiny_model, tiny_tokenizer, tmp_path):
    """lab(config, folder="results") runs an experiment on a tiny Llama in this process, returns its rows."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()

    def run(config=SMALL, folder="results", **options):
        options = {"model": model, "tokenizer": tokenizer, "progress": False, **options}
        return rows_of(run_experiment(config, output_dir=tmp_path / folder, **options))

    run.model = model
    return run


@pytest.fixture(scope="module")
def unbroken(tiny_model, tiny_tokenizer, tmp_path_factory):
    """The rows of SMALL, in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = run_experiment(
        SMALL, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), output_dir=folder, progress=False
    )  # fmt: skip
    return rows_of(path)


def test_rows_hold_what_was_done(unbroken):
    assert len(unbroken) == 2 * 2 * 4
    assert [(r["level_index"], r["repeat_index"], r["prompt_id"]) for r in unbroken] == sorted(
        (level, repeat, prompt) for level in range(2) for repeat in range(2) for prompt in range(1, 5)
    )
    for row in unbroken:
        assert row["std_dev"] == row["level_value"] == row["degrad_level"] == (0.0, 0.3)[row["level_index"]]
        assert row["seed"] == 42 + row["repeat_index"]
        assert row["output"].endswith(row["completion"])
        assert row["is_baseline"] == (row["level_index"] == 0) == (row["damage_rel_l2"] == 0)
        assert row["damage_rel_l2"] == pytest.approx(0.3 if row["level_index"] else 0, rel=0.1)
        assert row["perplexity"] is None
    texts = {(r["level_index"], r["repeat_index"], r["prompt_id"]): r["completion"] for r in unbroken}
    assert texts[0, 0, 1] != texts[0, 1, 1], "repeats draw their own text"


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_text_does_not_depend_on_the_batch(size, lab, unbroken):
    rows = lab(SMALL | {"max_batch_size": size})
    assert [row["completion"] for row in rows] == [row["completion"] for row in unbroken]


@pytest.mark.parametrize("after", [1, 3, 4, 9, 12])
def test_a_run_stopped_anywhere_goes_on_to_the_same_rows(after, lab, unbroken, monkeypatch):
    append, written = Store.append, []

    def stop_after(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= after:
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_after)
        with pytest.raises(Interrupted):
            lab()
    assert len(written) < len(unbroken)
    found = lab()
    assert essence(found) == essence(unbroken)
    assert all(row["attempt"] == 1 for row in found)


def test_a_signal_ends_the_run_between_two_tokens(lab, unbroken, tmp_path, monkeypatch):
    step, calls = RowDecoder._forward_step, []

    def kick(self, cache, tokens):
        calls.append(1)
        if len(calls) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, cache, tokens)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(RowDecoder, "_forward_step", kick)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            lab()
    assert caught.value.signum == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    (exported,) = (tmp_path / "results").glob("*.json")
    assert 0 < len(rows_of(exported)) < len(unbroken)
    assert essence(lab()) == essence(unbroken)


def test_finished_cells_leave_the_weights_alone(lab, monkeypatch):
    lab()
    monkeypatch.setattr(ExperimentRun, "__init__", lambda *args: pytest.fail("nothing was missing"))
    lab()


def test_more_repeats_and_levels_add_exactly_theirs(lab):
    first = {row["row_key"]: row for row in lab()}
    second = {row["row_key"]: row for row in lab(SMALL | {"n_rep": 3, "levels": (0.0, 0.025, 0.03, 0.3)})}
    assert len(second) == 4 * 3 * 4
    for key, row in first.items():
        assert second[key]["completion"] == row["completion"]
        assert second[key]["duration"] == row["duration"], "rows that were there are not written again"
    assert {row["level_value"] for row in second.values()} == {0.0, 0.025, 0.03, 0.3}
    assert [row["level_index"] for row in second.values() if row["level_value"] == 0.3] == [3] * 12


def test_fewer_levels_leave_the_numbers_of_the_others_alone(lab, caplog):
    first = lab(SMALL | {"levels": (0.0, 0.2, 0.6), "group": "mlp_only"})
    with caplog.at_level("WARNING"):
        again = lab(SMALL | {"levels": (0.0, 0.6), "group": "mlp_only", "n_rep": 1, "max_prompts": 2})
    assert again == first and not caplog.records
    found = lab(SMALL | {"levels": (0.0, 0.4), "group": "mlp_only"})
    assert sorted({(row["level_index"], row["level_value"]) for row in found}) == [(0, 0), (1, 0.2), (2, 0.4), (3, 0.6)]
    assert {row["completion"] for row in first} <= {row["completion"] for row in found}


def test_taking_over_old_rows_numbers_levels_as_a_run_does(lab, tiny_tokenizer, tmp_path):
    lab(SMALL | {"levels": (0.0, 0.2, 0.4)})
    (tmp_path / "old.json").write_text("[]")
    again = Lab(lab.model, RunOptions(output_dir=tmp_path / "results", progress=False), tokenizer=tiny_tokenizer())
    again.adopt(again.plan(SMALL | {"levels": (0.0, 0.3)}), tmp_path / "old.json")
    (path,) = (tmp_path / "results").glob("*.json")
    found = {(row["level_value"], row["level_index"]) for row in rows_of(path)}
    assert found == {(0.0, 0), (0.2, 1), (0.4, 3)}


def test_prompts_that_came_in_between_move_the_numbers_of_all_rows(lab, tmp_path):
    """Also of rows whose levels and repeats this run leaves out."""
    path = tmp_path / "mine.jsonl"

    def ask(*texts, **fields):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return lab(SMALL | {"prompts": str(path), "name_suffix": "mine"} | fields)

    ask("One.", "Two.")
    found = ask("Before.", "One.", "Two.", levels=(0.0,), n_rep=1)
    assert {(row["prompt_text"], row["prompt_id"]) for row in found} == {("Before.", 1), ("One.", 2), ("Two.", 3)}
    assert len(found) == 2 * 2 * 2 + 1


@pytest.mark.parametrize(
    ("method", "levels", "others", "places"),
    [
        ("mult_gauss", (0.6, 0.1), (0.1,), {"0": 0, "0.6": 1, "0.1": 2}),  # as the experiment names them
        ("mult_gauss", (0.6, 0.1), (0.3,), {"0": 0, "0.1": 1, "0.3": 2, "0.6": 3}),
        ("uni_quant", (64, 4), (None, 1024, 16), {"null": 0, "1024": 1, "64": 2, "16": 3, "4": 4}),
    ],
)
def test_levels_are_numbered_with_those_that_have_rows(method, levels, others, places):
    assert level_places(SMALL | {"method": method, "levels": levels}, others) == places


def test_scores_of_an_earlier_run_stay(lab, tmp_path):
    def cells():
        (path,) = (tmp_path / "results").glob("*.json")
        return {
            (cell["level_index"], cell["repeat_index"]): cell["kl_to_baseline"]
            for cell in read_results([path])[0].cells
        }

    lab(SMALL | {"perplexity": True, "perplexity_per_repeat": True, "max_prompts": 1})
    before = cells()
    lab(SMALL | {"perplexity": False})
    assert cells() == before and None not in before.values()


def test_repeats_that_cannot_differ_are_told(lab, tmp_path, caplog):
    config = SMALL | {"method": "uni_quant", "levels": (0, 4), "group": "mlp_only"}
    lab(config)
    assert not caplog.records
    lab(config | {"do_sample": False}, folder="greedy")
    assert "all 2 repeats will be the same" in caplog.text
    for folder, expected in (("results", False), ("greedy", True)):
        (path,) = (tmp_path / folder).glob("*.json")
        assert any("All repeats gave the same" in text for text in analyse([path], progress=False).warnings) == expected


def test_an_edited_prompt_is_run_again_alone_and_equal_ones_are_both_kept(lab, tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One.", "Two.", "Two.")))
    config = SMALL | {"prompts": str(path), "name_suffix": "mine"}
    first = lab(config)
    assert len(first) == 12 and len({row["row_key"] for row in first}) == 12
    twins = [row["completion"] for row in first if row["prompt_text"] == "Two." and row["level_index"] == 0]
    assert twins[0] != twins[1]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One!", "Two.", "Two.")))
    with caplog.at_level("WARNING"):
        second = lab(config)
    assert "4 rows are of prompts that" in caplog.text
    old = {row["row_key"]: row["timestamp"] for row in first}
    fresh = [row for row in second if row["row_key"] not in old]
    assert {row["prompt_text"] for row in fresh} == {"One!"} and len(fresh) == 4
    assert all(old[row["row_key"]] == row["timestamp"] for row in second if row["row_key"] in old)


OTHER_VALUES = {
    "system_prompt": "Be brief.", "model_variant": "base", "method": "ablation", "seed_base": 7,
    "noise_coupling": "independent", "tied_policy": "input_only", "norm_gain": False, "quant_range": "per_row",
    "quant_symmetric": True, "quant_percentile": 99.0, "unit": "row", "exact_count": True, "dtype": "bfloat16",
    "load_4bit": True, "quant_type": "fp4", "double_quant": True, "quant_target_mode": "requantise",
    "do_sample": False, "temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1,
    "max_new_tokens": 7, "max_seq_length": 400, "couple_levels": False, "invariance": "single",
    "legacy_rng": True, "force_requantise": True,
}  # fmt: skip


def test_every_field_that_decides_a_row_is_tried():
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(ExperimentConfig)} - NOT_IN_HASH


@pytest.mark.parametrize("name", sorted(set(OTHER_VALUES) - {"method"}))
def test_a_changed_field_under_the_same_name_is_a_conflict(name, lab, tmp_path, monkeypatch):
    lab(SMALL | {"n_rep": 1, "levels": (0.0,), "max_prompts": 1})
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr("frankenlm.degradation.lab.check_given", lambda model, config: None)
    with pytest.raises(ConfigConflict, match=f"{name}.*name_suffix"):
        lab(SMALL | {name: OTHER_VALUES[name]})
    for path, content in files.items():
        assert path.read_bytes() == content


def test_a_model_in_memory_must_be_what_the_experiment_says(lab):
    with pytest.raises(ValueError, match=r"dtype='bfloat16'.*torch\.float32"):
        lab(SMALL | {"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="load_4bit=True.*no 4-bit layers"):
        lab(SMALL | {"load_4bit": True})


def test_force_run_writes_chosen_rows_again(lab):
    lab()
    some = lab(SMALL | {"force_run": True, "force_where": "level=0.3,repeat_index=1"})
    assert len(some) == 16
    for row in some:
        assert row["attempt"] == (2 if row["level_value"] == 0.3 and row["repeat_index"] == 1 else 1)
    every = lab(SMALL | {"force_run": True})
    assert [row["attempt"] - old["attempt"] for row, old in zip(every, some, strict=True)] == [1] * 16


def test_the_model_is_bitwise_the_same_afterwards_also_after_an_error(lab, monkeypatch):
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in lab.model.state_dict().items()}
    lab(SMALL | {"group": "attn_qkvo+mlp_only"})
    calls = []

    def fail_late(self, cache, tokens):
        calls.append(1)
        if len(calls) > 16:
            raise ZeroDivisionError
        return step(self, cache, tokens)

    step = RowDecoder._forward_step
    monkeypatch.setattr(RowDecoder, "_forward_step", fail_late)
    with pytest.raises(ZeroDivisionError):
        lab(SMALL | {"group": "mlp_only"})
    for name, tensor in lab.model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert tensor.data_ptr() == places[name]


def test_the_undamaged_level_is_the_untouched_model(lab, tiny_tokenizer):
    """Level 0 equals generate() on the model as loaded, greedily."""
    greedy = SMALL | {"do_sample": False, "levels": (0.0,), "n_rep": 1, "name_suffix": "greedy"}
    rows = lab(greedy)
    tokenizer = tiny_tokenizer()
    for row in rows:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt_text"]}], add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )["input_ids"]  # fmt: skip
        stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</turn>")]
        written = lab.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :]  # fmt: skip
        assert row["completion"] == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("fails_above", [10, 3])
def test_out_of_memory_halves_and_loses_nothing(fails_above, lab, monkeypatch):
    config = SMALL | {"prompts": "dreams_it", "max_batch_size": 40, "levels": (0.0,), "n_rep": 1}
    reference = lab(config, folder="reference")
    forward = type(lab.model).forward

    def fail(model, input_ids=None, **inputs):
        if len(input_ids) > fails_above:
            raise torch.OutOfMemoryError("no room")
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(lab.model), "forward", fail)
    rows = lab(config, folder="crowded")
    assert essence(rows) == essence(reference)
    assert len(rows) == 38
    assert fails_above // 2 < max(row["batch_size_effective"] for row in rows) <= fails_above


def test_rows_without_any_room_are_recorded_and_the_third_ends_the_run(lab, tmp_path, monkeypatch):
    forward, limit = type(lab.model).forward, []

    def fail(model, input_ids=None, **inputs):
        if limit and input_ids.shape[1] < 100:
            raise torch.OutOfMemoryError("no room")
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(lab.model), "forward", fail)
    begin = ExperimentRun.__init__

    def begin_then_fail(self, *args):
        begin(self, *args)
        limit.append(1)

    monkeypatch.setattr(ExperimentRun, "__init__", begin_then_fail)
    with pytest.raises(MemoryStop, match="no memory even alone"):
        lab()
    assert MemoryStop.exit_code == 3
    (exported,) = (tmp_path / "results").glob("*.json")
    assert [row["status"] for row in rows_of(exported)] == ["oom"] * 3
    limit.clear()
    monkeypatch.setattr(ExperimentRun, "__init__", begin)
    assert {row["status"] for row in lab()} == {"ok"}


def test_memory_nearly_used_up_ends_the_run_with_its_rows(lab, tmp_path, monkeypatch):
    readings = iter([0.5, 0.5, 0.96])
    monkeypatch.setattr(
        "frankenlm.degradation.lab.make_policy",
        lambda experiment, loaded: MemoryPolicy(4, 4, lambda: next(readings)),
    )
    with pytest.raises(MemoryStop, match="96%"):
        lab()
    (exported,) = (tmp_path / "results").glob("*.json")
    assert len(rows_of(exported)) == 12


def test_a_process_that_stops_alone_says_so_itself(lab, tmp_path, monkeypatch, caplog):
    """A command ends with one line of rank 0, which may be fine; and only rank 0 exports."""

    def stop_as_second_process(self, experiment, store, signals, state):
        store.rank = 1
        raise MemoryStop("by the test")

    monkeypatch.setattr(Lab, "_work", stop_as_second_process)
    with pytest.raises(MemoryStop):
        lab()
    assert "process 1 stops: by the test" in caplog.text
    assert not list((tmp_path / "results").glob("*.json"))


def test_perplexity_is_measured_once_a_level_or_in_every_repeat(lab, tmp_path):
    rows = lab(SMALL | {"perplexity": True, "n_rep": 2, "max_prompts": 1})
    assert [row["perplexity"] is not None for row in rows] == [True, False, True, False]
    cells = [json.loads(line)["row"] for line in next(tmp_path.rglob("cells.jsonl")).read_text().splitlines()]
    by_cell = {(cell["level_index"], cell["repeat_index"]): cell for cell in cells}
    assert by_cell[0, 0]["kl_to_baseline"] == 0 < by_cell[1, 0]["kl_to_baseline"]
    assert by_cell[1, 1]["kl_to_baseline"] is None
    rows = lab(SMALL | {"perplexity": True, "perplexity_per_repeat": True, "max_prompts": 1}, folder="every")
    assert all(row["perplexity"] is not None for row in rows)


CONFIGS = ("dreams_it", "iq_it", "cookie_theft_it")
LOADS = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "4bit": {"dtype": "bfloat16", "load_4bit": True},
}


@pytest.fixture(scope="module")
def wide_gemma(tiny_model, tiny_tokenizer, tiny_processor, tmp_path_factory):
    """wide_gemma(name) -> folder of a tiny Gemma-3 whose layers are as wide as a 4-bit block."""
    sizes, made = {"hidden_size": 64, "intermediate_size": 128}, {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("wide") / f"tiny-{name}"
            if name == "gemma3":
                tiny_model(name, **sizes).save_pretrained(folder)
                tiny_tokenizer().save_pretrained(folder)
            else:
                text = tiny_model(name).config.text_config
                for field, value in sizes.items():
                    setattr(text, field, value)
                tiny_model(name, text_config=text).save_pretrained(folder)
                tiny_processor().save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.mark.filterwarnings("ignore:.*MatMul4Bit.*")
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", ["gemma3", "gemma3_mm"])
def test_gemma3_goes_through_the_three_configurations(name, load, wide_gemma, tmp_path):
    """From the saved folder; pictures where the model takes them; the damaged level differs from the baseline."""
    for config_name in CONFIGS:
        config = get_config(config_name) | {
            "levels": (0.0, 0.5), "n_rep": 1, "max_prompts": 3, "max_new_tokens": 5, "max_batch_size": 2,
            "max_seq_length": 1024, "perplexity": False, "group": "mlp_only", **LOADS[load],
        }  # fmt: skip
        if config.image is not None and name == "gemma3":
            with pytest.raises(ValueError, match="reads text only"):
                Lab(str(wide_gemma(name)), RunOptions(output_dir=tmp_path)).plan(config)
            continue
        rows = rows_of(run_experiment(config, model=str(wide_gemma(name)), output_dir=tmp_path, progress=False))
        assert len(rows) == 6 and {row["status"] for row in rows} == {"ok"}
        assert all(row["image_used"] == (config.image is not None) for row in rows)
        assert all(row["load_4bit"] == (load == "4bit") and row["decoder"] == "rows" for row in rows)
        found = [(row["completion"], row["mean_logprob"]) for row in rows]
        assert all(undamaged != damaged for undamaged, damaged in zip(found[:3], found[3:], strict=True))


@pytest.mark.parametrize(("group", "intact"), [
    ("attn_only", True), ("embed_only", True), ("attn_only+vision", False), ("vision_mlp", False), ("projector", False),
])  # fmt: skip
def test_pictures_are_read_again_where_damage_reaches_them(group, intact, wide_gemma, tmp_path, monkeypatch):
    made = []
    probe = RowDecoder._probe
    monkeypatch.setattr(RowDecoder, "_probe", lambda self: made.append(self) or probe(self))
    config = get_config("cookie_theft_it") | {
        "dtype": "float32", "group": group, "levels": (0.0, 0.5), "n_rep": 1, "max_prompts": 1, "max_new_tokens": 3,
        "perplexity": False,
    }  # fmt: skip
    run_experiment(config, model=str(wide_gemma("gemma3_mm")), output_dir=tmp_path, progress=False)
    (decoder,) = made
    assert decoder.keep_picture == intact and (decoder._picture is not None) == intact


# scripts/degrade.py, but nobody works on a cell before two were claimed: a process that is slow to come gets its own
TAKES_TURNS = """
import sys, time
from frankenlm.degradation.cli import main
from frankenlm.degradation.store import Store
from frankenlm.trainer_ext.cli import run_command

claim = Store.claim

def patient(self, cell):
    taken, deadline = claim(self, cell), time.monotonic() + 120
    while len(list((self.journal_dir / "claims").iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return taken

Store.claim = patient
sys.exit(run_command(main))
"""


def launch(processes, config_flags, folder, model, script=None):
    """Run scripts/degrade.py in so many processes, as accelerate does on a machine without GPUs."""
    script = script or os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "degrade.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = launcher if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*command, script, "run", "--model", str(model), "--output_dir", str(folder), *config_flags],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("outputs_*.json")
    return rows_of(path)


FLAGS = "--config smoke --dtype float32 --levels 0,0.3 --max_new_tokens 6 --perplexity false"


def test_two_processes_write_what_one_writes(tiny_dir, unbroken, tmp_path):
    script = tmp_path / "takes_turns.py"
    script.write_text(TAKES_TURNS)
    rows = launch(2, FLAGS.split(), tmp_path / "two", tiny_dir("llama"), script)
    (manifest,) = (tmp_path / "two").rglob("manifest.json")
    assert json.loads(manifest.read_text())["runs"][0]["world_size"] == 2
    assert {row["rank"] for row in rows} == {0, 1}
    names = ("model_name", "experiment_id", "row_key")  # the other run had a model without a folder
    strip = [{k: v for k, v in row.items() if k not in names} for row in essence(rows)]
    assert strip == [{k: v for k, v in row.items() if k not in names} for row in essence(unbroken)]


class Processes:
    """What accelerate says of the process of rank 1 of two."""

    num_processes, process_index, is_main_process = 2, 1, False

    def wait_for_everyone(self):
        pass


def test_an_error_of_one_process_alone_keeps_it_from_the_next_experiment(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    """The others wait for it where it will not come: it has to end, and the launcher ends them."""
    options = RunOptions(output_dir=tmp_path, progress=False)
    alone = Lab(tiny_model("llama"), options, tokenizer=tiny_tokenizer())
    path = alone.run(alone.plan(SMALL))
    assert path.exists() and alone.in_step

    lab = Lab(tiny_model("llama"), options, tokenizer=tiny_tokenizer())
    experiments = [lab.plan(SMALL | {"group": group}) for group in ("mlp_only", "embed_only")]
    began = []

    def fail(self, experiment, *rest):
        began.append(experiment.config.group)
        raise ZeroDivisionError("by the test")

    monkeypatch.setattr(Lab, "_work", fail)
    monkeypatch.setattr(lab, "_processes", Processes)
    monkeypatch.setattr(lab, "_open", lambda experiment, state: lab._open_store(experiment, state))
    args = argparse.Namespace(log_level="error", output_dir=tmp_path)
    with pytest.raises(ZeroDivisionError):
        cli.run_all(experiments, args, lab)
    assert began == ["mlp_only"] and not lab.in_step


def test_rows_written_again_exceed_what_rank_0_has_just_renumbered(tiny_model, tiny_tokenizer, tmp_path):
    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    lab.run(lab.plan(SMALL))
    forced = lab.plan(SMALL | {"levels": (0.0, 0.1, 0.3), "force_run": True, "force_where": "level=0.3"})
    first_process = Processes()
    first_process.process_index = 0
    with lab._open_store(forced, first_process) as first, lab._open_store(forced, Processes()) as second:

        class RankZeroWorks(Processes):
            def wait_for_everyone(self):
                renumber(forced, first)

        lab._work(forced, second, Signals(), RankZeroWorks())
        first.refresh()
        again = [row for row in first.rows() if row["level_value"] == 0.3]
        assert [(row["rank"], row["attempt"]) for row in again] == [(1, 3)] * 8


@pytest.mark.parametrize("ended", [False, True])
def test_a_process_that_dies_while_rank_0_waits_costs_no_export(ended, tiny_model, tiny_tokenizer, tmp_path):
    """Its connection breaks; where that is because all processes are being ended, the end is an orderly one."""
    calls = []

    class RankZero(Processes):
        process_index, is_main_process = 0, True

        def wait_for_everyone(self):
            calls.append(1)
            if len(calls) == 4:  # behind the work
                if ended:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("Connection closed by peer")

    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    lab._processes = RankZero
    lab._open = lambda experiment, state: lab._open_store(experiment, state)
    with pytest.raises(Interrupted if ended else RuntimeError):
        lab.run(lab.plan(SMALL))
    (path,) = tmp_path.glob("*.json")
    assert len(rows_of(path)) == 16


def test_what_all_processes_are_told_does_not_part_them(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    monkeypatch.setattr(lab, "_processes", Processes)
    monkeypatch.setattr("frankenlm.degradation.lab.broadcast_object_list", lambda _: [ConfigConflict("other"), None])
    with pytest.raises(ConfigConflict):
        lab.run(lab.plan(SMALL))
    assert lab.in_step


def test_processes_wait_longer_for_each_other_than_a_cell_takes(monkeypatch, tiny_dir, tmp_path):
    asked = {}
    monkeypatch.setattr("frankenlm.degradation.lab.PartialState", lambda **options: asked.update(options))
    Lab(str(tiny_dir("llama")))._processes()
    assert asked["timeout"].days >= 7


@pytest.mark.slow
def test_resumed_with_three_then_one_process(tiny_dir, tmp_path):
    whole = launch(1, FLAGS.split(), tmp_path / "whole", tiny_dir("llama"))
    launch(3, [*FLAGS.split(), "--n_rep", "1"], tmp_path / "parts", tiny_dir("llama"))
    parts = launch(1, FLAGS.split(), tmp_path / "parts", tiny_dir("llama"))
    assert essence(parts) == essence(whole)
