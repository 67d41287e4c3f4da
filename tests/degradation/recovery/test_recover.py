"""Recovery: damaged elements are held, the rest learns, and a run that was stopped goes on to the same rows."""

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from frankenlm.degradation.cli import main
from frankenlm.degradation.errors import ConfigConflict, MemoryStop
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.recovery import recover as flow
from frankenlm.degradation.recovery.settings import RecoverySettings, load_text
from frankenlm.degradation.report.drawing.figures import figure_names
from frankenlm.degradation.report.drawing.plot_style import NothingToDraw
from frankenlm.degradation.report.drawing.recovery_plot import plot_recovery
from frankenlm.degradation.report.write import analyse
from frankenlm.degradation.run.limits import Signals
from frankenlm.degradation.several import SomeFailed
from frankenlm.trainer_ext.common.cli import Interrupted
from simulated_results import PROMPTS, measure, read_csv, simulated_rows, write_experiment
from small_runs import SMALL, essence, rows_of

CONFIG = SMALL | {"group": "mlp_only", "method": "ablation", "levels": (0.0, 0.6), "n_rep": 1, "perplexity": True}
CONFIG = CONFIG | {"max_prompts": 2, "perplexity_per_repeat": True, "do_sample": False}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the kettle sang and the dog slept by the door. " * 40, encoding="utf-8")
    return path


def settings(path, **changes):
    return RecoverySettings(
        **{"text": str(path), "steps": 6, "every": 3, "batch": 4, "length": 24, "learning_rate": 3e-3, **changes}
    )


@pytest.fixture
def carry_out(tiny_model, tiny_tokenizer, tmp_path, text):
    """carry_out(folder) -> step -> rows, and the cells' records."""
    model = tiny_model("llama")

    def run(folder="results", config=CONFIG, **changes):
        lab = Lab(model, RunOptions(output_dir=tmp_path / folder, progress=False), tokenizer=tiny_tokenizer())
        paths = flow.recover(lab, lab.plan(config), settings(text, **changes))
        return {int(path.stem.rpartition("_after")[2]): rows_of(path) for path in paths}

    run.model = model
    return run


def perplexity(rows, level):
    (found,) = {row["perplexity"] for row in rows if row["level_index"] == level}
    return found


def records(folder, step, name):
    (path,) = folder.glob(f"*_after{step:05d}.journal/{name}.jsonl")
    return [json.loads(line)["row"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_damaged_model_is_measured_trained_and_measured_again(carry_out, tmp_path):
    before = {name: value.clone() for name, value in carry_out.model.state_dict().items()}
    steps = carry_out()
    assert list(steps) == [0, 3, 6] and all(len(rows) == 4 for rows in steps.values())
    assert perplexity(steps[0], 1) > perplexity(steps[3], 1) > perplexity(steps[6], 1)
    assert perplexity(steps[6], 0) < perplexity(steps[0], 0)  # what training does without damage
    assert {row["experiment_id"].rpartition("|")[2] for row in steps[3]} == {"smoke_after00003"}
    assert all(torch.equal(value, before[name]) for name, value in carry_out.model.state_dict().items())
    assert not list((tmp_path / "results").rglob("checkpoint-*"))
    for step, rows in steps.items():  # what damage did is told as such, and what training did to it beside it
        assert [row["damage_rel_l2"] for row in rows] == [row["damage_rel_l2"] for row in steps[0]]
        lesions = records(tmp_path / "results", step, "lesions")
        now = {lesion["level_value"]: lesion.get("rel_l2_after_training") for lesion in lesions}
        if step:
            assert 0 < now[0.0] < 0.1 < now[0.6] != lesions[0]["rel_l2"]
        assert step or set(now.values()) == {None}
    again = carry_out()
    assert again == steps


@pytest.mark.parametrize("after", [5, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (1, 3, 8, 11))])
def test_a_stopped_recovery_goes_on_to_the_same_rows(after, carry_out, monkeypatch):
    config = CONFIG | {"perplexity": False}
    unbroken = carry_out("unbroken", config)
    append, written = Store.append, []

    def stop_after(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= after:
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_after)
        with pytest.raises(Interrupted):
            carry_out("stopped", config)
    found = carry_out("stopped", config)
    for step, rows in unbroken.items():
        assert essence(found[step]) == essence(rows), step
        assert all(row["attempt"] == 1 for row in found[step])


def test_steps_behind_the_newest_checkpoint_are_measured_all_the_same(carry_out, monkeypatch, tmp_path):
    """More prompts after a stop: steps that are done miss rows again, and the checkpoint is beyond them."""
    config, append = CONFIG | {"perplexity": False, "levels": (0.6,)}, Store.append
    fewer = config | {"max_prompts": 1, "levels": (0.0, 0.6)}

    def stop_at_six(self, rows):
        append(self, rows)
        if self.files.suffix.endswith("6"):
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_at_six)
        with pytest.raises(Interrupted):
            carry_out("results", fewer)
    (left,) = (tmp_path / "results").rglob("checkpoint-3")
    assert {step: len(rows) for step, rows in carry_out("results", CONFIG | {"perplexity": False}).items()} == {
        0: 4,
        3: 4,
        6: 4,
    }
    assert not left.parent.exists()
    left.mkdir(parents=True)  # as killed behind the last row
    carry_out("results", CONFIG | {"perplexity": False})
    assert not left.parent.exists()


def test_one_signal_is_heard_by_all_steps_and_between_tokens(carry_out, monkeypatch):
    append, heard = Store.append, []

    def told(self, rows):
        append(self, rows)
        heard.append(len(rows))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Store, "append", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        carry_out(config=CONFIG | {"perplexity": False, "max_batch_size": 1})
    assert heard == [1] and signal.getsignal(signal.SIGTERM) is before


def test_the_report_draws_what_came_back(tmp_path):
    paths = []
    for step, half in ((0, 0.3), (50, 0.6), (100, 0.9)):
        rows = simulated_rows(
            "mult_gauss",
            "mlp_only",
            half,
            levels=(0.0, 0.6),
            repeats=3,
            prompts=PROMPTS[:6],
            suffix=f"iq_after{step:05d}",
        )
        folder = tmp_path / str(step)
        folder.mkdir()
        paths.append(write_experiment(folder, list(rows), "mult_gauss"))
    curves = analyse(paths, measure=measure, measure_texts=None, draws=20).curves
    assert any(name == "recovery_mult_gauss" for _, _, name in figure_names(curves))
    plot = plot_recovery(curves, ("accuracy", "looped"), tmp_path, "recovery")
    table = [row for row in read_csv(plot.csv) if row["measure"] == "accuracy" and row["level"] == "0.6"]
    assert [int(row["step"]) for row in table] == [0, 50, 100] and plot.png.stat().st_size > 5000
    centres = [float(row["centre"]) for row in table]
    assert centres[0] < 0.3 < centres[2] and centres == sorted(centres)
    with pytest.raises(NothingToDraw, match="two steps or more"):
        plot_recovery(
            [curve for curve in curves if curve.series.key.experiment.endswith("00")][:1], ("accuracy",), tmp_path, "x"
        )


@pytest.mark.slow
def test_more_steps_are_an_extension_and_other_settings_a_conflict(carry_out):
    steps = carry_out()
    longer = carry_out(steps=9)
    assert list(longer) == [0, 3, 6, 9]
    assert all(longer[step] == steps[step] for step in steps)
    with pytest.raises(ConfigConflict, match="recovery"):
        carry_out(learning_rate=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 4}, "every=4 must divide steps=6"),
        ({"text": "nowhere.txt"}, "is neither a file nor one of builtin"),
        ({"length": 100_000}, "train_length=100000 is more than the 2048 positions"),
        ({"length": 2000}, "1880 tokens, fewer than train_length=2000"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must lie between"),
    ],
)
def test_what_cannot_be_is_told(changes, message, carry_out, tmp_path):
    with pytest.raises(ValueError, match=message):
        carry_out(**changes)
    assert not Path(tmp_path / "results").exists()


def test_only_dense_float32_models_are_trained(carry_out, tiny_model):
    carry_out.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="train in float32"):
        carry_out(config=CONFIG | {"dtype": "bfloat16"})


def test_windows_without_the_group_are_left_out(tiny_dir, text, tmp_path, monkeypatch):
    """As run does; and the ways round what lies there already are flags here too."""
    asked = []
    monkeypatch.setattr(flow, "recover", lambda lab, experiment, settings: asked.append((lab, experiment)) or [])
    words = "recover --config smoke --group mixer_out --windows 4 --dtype float32 --on-conflict archive --wait-lock"
    paths = [
        "--model",
        str(tiny_dir("frankenstein")),
        "--train_text",
        str(text),
        "--output_dir",
        str(tmp_path / "results"),
    ]
    main([*words.split(), *paths])
    assert [experiment.config.group for _, experiment in asked] == ["mixer_out@2of4", "mixer_out@4of4"]
    assert {(lab.options.on_conflict, lab.options.wait_lock) for lab, _ in asked} == {("archive", True)}


def test_one_that_fails_does_not_keep_the_others_from_being_recovered(tiny_dir, text, tmp_path, monkeypatch, capsys):
    def fails_at_first(lab, experiment, settings):
        if experiment.config.group == "mlp_only":
            raise MemoryStop("no room, says the test")
        return [tmp_path / "rows.json"]

    monkeypatch.setattr(flow, "recover", fails_at_first)
    words = "recover --config smoke --group mlp_only embed_only --dtype float32"
    paths = ["--model", tiny_dir("llama"), "--train_text", text, "--output_dir", tmp_path / "results"]
    with pytest.raises(SomeFailed, match="^1 of 2 experiments failed; the others are done"):
        main([*words.split(), *map(str, paths)])
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'rows.json'}\n" and "group mlp_only: no room, says the test" in told.err
    logs = [file.read_text() for file in sorted((tmp_path / "results" / "logs").iterdir())]
    assert len(logs) == 2 and any("rows.json" in log for log in logs)


# --- files of another configuration


def opened(lab, text, **changes):
    """Open all steps as a recovery does, and close them; return their names."""
    with ExitStack() as stack:
        runs = flow.open_steps(lab, lab.plan(CONFIG), settings(text, **changes), load_text(str(text)), Signals(), stack)
        return [run.store.files.suffix for run in runs.values()]


@pytest.fixture
def lab_for(tiny_model, tiny_tokenizer, tmp_path):
    model, tokenizer = tiny_model("llama", num_hidden_layers=1), tiny_tokenizer()
    return lambda **options: Lab(model, RunOptions(output_dir=tmp_path, progress=False, **options), tokenizer=tokenizer)


def test_all_steps_move_together_to_a_new_suffix_or_an_archive(lab_for, text, tmp_path):
    assert opened(lab_for(), text) == ["smoke_after00000", "smoke_after00003", "smoke_after00006"]
    with pytest.raises(ConfigConflict, match="recovery.learning_rate"):
        opened(lab_for(), text, learning_rate=1e-4)
    other = opened(lab_for(on_conflict="new-suffix"), text, learning_rate=1e-4, every=2)
    assert other == [f"smoke-2_after0000{step}" for step in (0, 2, 4, 6)]
    assert opened(lab_for(on_conflict="new-suffix"), text, learning_rate=1e-4, every=2) == other
    assert opened(lab_for(), text) == ["smoke_after00000", "smoke_after00003", "smoke_after00006"]
    opened(lab_for(on_conflict="archive"), text, learning_rate=1e-2, steps=4, every=4)
    there = sorted(path.name.partition("tiny")[2] or path.name for path in tmp_path.glob("*smoke_after*.journal"))
    steps = [name[-13:-8] for name in there if "archived" not in name]
    assert steps == ["00000", "00004"], "a step that is not measured now is of the old configuration too"
    assert len([name for name in there if "archived" in name]) == 3


@pytest.mark.parametrize(("gpus", "device"), [(2, "cuda:1"), (2, "cuda:0"), (1, "cuda:0")])
def test_one_gpu_trains(gpus, device, lab_for, text, monkeypatch):
    lab = lab_for()
    monkeypatch.setattr(lab.given, "device", torch.device(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if gpus == 1:
        flow.check_devices(lab)
    else:
        with pytest.raises(ValueError, match=f"2 GPUs are visible.*set CUDA_VISIBLE_DEVICES to {device[-1]}"):
            flow.check_devices(lab)


def test_a_model_on_several_devices_is_refused(lab_for, tiny_model, tiny_tokenizer, text):
    with pytest.raises(ValueError, match="spread over devices"):
        flow.check_devices(lab_for(device_map="auto"))
    away = cpu_offload(tiny_model("llama", num_hidden_layers=1), torch.device("cpu"))
    lab = Lab(away, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="spread over devices"):
        flow.check_devices(lab)
