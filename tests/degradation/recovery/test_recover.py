"""Recovery: damaged elements are held, the rest learns, and a run that was stopped goes on to the same rows."""

import signal
from pathlib import Path

import pytest
import torch

from frankenlm.degradation.errors import ConfigConflict
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.recovery import recover as flow
from frankenlm.degradation.recovery.settings import Blocks, RecoverySettings, load_text
from frankenlm.degradation.recovery.training import held, put_back, train_on
from frankenlm.degradation.report.drawing.figures import figure_names
from frankenlm.degradation.report.drawing.plot_style import NothingToDraw
from frankenlm.degradation.report.drawing.recovery_plot import plot_recovery
from frankenlm.degradation.report.write import analyse
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.trainer_ext.common.cli import Interrupted, UserError
from simulated_results import PROMPTS, measure, read_csv, simulated_rows, write_experiment
from small_runs import SMALL, essence, rows_of

CONFIG = SMALL | {"group": "mlp_only", "method": "ablation", "levels": (0.0, 0.6), "n_rep": 1, "perplexity": True}
CONFIG = CONFIG | {"max_prompts": 2, "perplexity_per_repeat": True, "do_sample": False}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the kettle sang and the dog slept by the door. " * 60, encoding="utf-8")
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


def test_the_damaged_model_is_measured_trained_and_measured_again(carry_out, tmp_path):
    before = {name: value.clone() for name, value in carry_out.model.state_dict().items()}
    steps = carry_out()
    assert list(steps) == [0, 3, 6] and all(len(rows) == 4 for rows in steps.values())
    assert perplexity(steps[0], 1) > perplexity(steps[3], 1) > perplexity(steps[6], 1)
    assert perplexity(steps[6], 0) < perplexity(steps[0], 0)  # what training does without damage
    assert {row["experiment_id"].rpartition("|")[2] for row in steps[3]} == {"smoke_after00003"}
    assert all(torch.equal(value, before[name]) for name, value in carry_out.model.state_dict().items())
    assert not list((tmp_path / "results").rglob("checkpoint-*"))
    again = carry_out()
    assert again == steps


@pytest.mark.parametrize("frozen", [True, False])
def test_damaged_elements_are_held_or_learn(frozen, tiny_model, tiny_tokenizer, text, tmp_path):
    model = tiny_model("phi3")  # gate and up are halves of one matrix
    rows = Blocks(load_text(str(text)), tiny_tokenizer(), 24)
    with Baseline(model, "mlp_gate") as baseline, put_back(model) as restore:
        apply_damage(baseline, "ablation", 0.5, seed=1, repeat_index=0)
        fused = model.model.layers[0].mlp.gate_up_proj.weight
        gone = (fused == 0).clone()
        assert gone[:48].sum() > 0 and not gone[48:].any()
        whole = model.model.layers[0].self_attn.o_proj.weight.clone()
        with held(baseline, frozen):
            train_on(model, rows, settings(text), 1, tmp_path / "training", lambda step: None)
        assert bool((fused[gone] == 0).all()) is frozen
        assert not torch.equal(whole, model.model.layers[0].self_attn.o_proj.weight)
        restore()


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
        ({"length": 100_000}, "fewer than train_length=100000"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must lie between"),
    ],
)
def test_what_cannot_be_is_told(changes, message, carry_out, tmp_path):
    with pytest.raises((ValueError, UserError), match=message):
        carry_out(**changes)
    assert not Path(tmp_path / "results").exists() or not any((tmp_path / "results").rglob("checkpoint-*"))


def test_only_dense_float32_models_are_trained(carry_out, tiny_model):
    carry_out.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="train in float32"):
        carry_out(config=CONFIG | {"dtype": "bfloat16"})
