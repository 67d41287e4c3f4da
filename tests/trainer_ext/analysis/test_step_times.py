"""What a step's seconds are spent on: planted delays are found in their row, and nothing else is in any."""

import functools
import itertools
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.analysis import step_times
from frankenlm.trainer_ext.analysis.step_times import PartClock, StepTimes
from frankenlm.trainer_ext.analysis.timing_file import COLUMNS, PARTS, read_timing
from frankenlm.trainer_ext.optim.guard import GradientGuard
from frankenlm.trainer_ext.optim.rolling_copy import RollingCopy


class StandingClock:
    """A clock that moves only where a test lets it."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def planted(self, seconds: float, call):
        @functools.wraps(call)
        def late(*args, **kwargs):
            self.seconds += seconds
            return call(*args, **kwargs)

        return late


@pytest.fixture
def clock(monkeypatch) -> StandingClock:
    clock = StandingClock()
    monkeypatch.setattr(step_times, "perf_counter", clock)
    return clock


class Line(PreTrainedModel):
    """A model of one weight."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(1, 1, bias=False)
        self.post_init()

    def forward(self, x, labels=None):
        return SequenceClassifierOutput(loss=(self.layer(x) - labels).square().mean(), logits=self.layer(x))


def make_trainer(folder, *, steps: int = 4, guarded: bool = True, earlier: int | None = None, **more) -> FrankenTrainer:
    options = {"logging_steps": 2, "eval_steps": 2, "save_steps": 3, "per_device_train_batch_size": 1, **more}
    args = FrankenTrainingArguments(
        str(folder), max_steps=steps, use_cpu=True, disable_tqdm=True, report_to=[], **options
    )
    rows = [{"x": torch.ones(1) * i / 40, "labels": torch.ones(1)} for i in range(40)]
    trainer = FrankenTrainer(Line(PreTrainedConfig()), args, train_dataset=rows, eval_dataset=rows[:2])
    times = StepTimes(folder / "timing.csv", earlier).attach(trainer)
    if guarded:
        trainer.take_guard(GradientGuard())
        times.watch_guard(trainer.guard)
    return trainer


def totals(folder) -> dict[str, float]:
    rows = read_timing(folder / "timing.csv")
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row[part] for part in PARTS), abs=1e-5)
    return {part: round(sum(row[part] for row in rows), 3) for part in PARTS}


class LateSteps(TrainerCallback):
    """Plants a delay between the seams: at the begin of each step."""

    def __init__(self, clock: StandingClock):
        self.clock = clock

    def on_step_begin(self, *args, **kwargs):
        self.clock.seconds += 3.0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_planted_delays_are_found_in_their_rows(tmp_path, clock, monkeypatch, accumulation):
    monkeypatch.setattr(Accelerator, "backward", clock.planted(0.1, Accelerator.backward))
    monkeypatch.setattr(GradientGuard, "_inspect", clock.planted(0.01, GradientGuard._inspect))
    monkeypatch.setattr(RollingCopy, "take", clock.planted(0.02, RollingCopy.take))
    monkeypatch.setattr(torch.optim.AdamW, "step", clock.planted(0.001, torch.optim.AdamW.step))
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clock.planted(0.004, Accelerator.clip_grad_norm_))
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=accumulation)
    collate = clock.planted(10.0, trainer.data_collator)
    trainer.data_collator, trainer.eval_collator = collate, clock.planted(0.5, trainer.data_collator)
    monkeypatch.setattr(Line, "forward", clock.planted(1.0, Line.forward))
    monkeypatch.setattr(trainer.checkpoints, "health", clock.planted(7.0, trainer.checkpoints.health))
    trainer.add_callback(LateSteps(clock))
    trainer.train()

    found, batches = totals(tmp_path), 4 * accumulation
    assert found == {
        "data": 10.0 * (batches + 1),  # accelerate's loader fetches one batch ahead
        "forward": 1.0 * batches,
        "backward": pytest.approx(0.1 * batches),
        "guard": pytest.approx(4 * 0.03),
        "optimizer": pytest.approx(4 * 0.005),
        "evaluation": 2 * (1.0 + 0.5),
        "saving": 2 * 7.0,
        "other": 4 * 3.0,
    }
    assert clock.seconds == pytest.approx(sum(found.values()))


def test_what_the_guard_computes_again_is_forward_and_backward(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(Line, "forward", clock.planted(1.0, Line.forward))
    trainer = make_trainer(tmp_path, steps=2, eval_strategy="no", save_strategy="no")
    broken = itertools.count()

    def planted(gradient):
        return gradient * float("nan") if next(broken) == 1 else gradient

    trainer.model.layer.weight.register_hook(planted)
    trainer.train()
    assert trainer.guard.counts["retry"] == 1 and totals(tmp_path)["forward"] == 3.0


def test_rows_stand_at_log_lines_and_around_checkpoints(tmp_path, clock):
    make_trainer(tmp_path).train()
    assert (tmp_path / "timing.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    steps = [row["step"] for row in read_timing(tmp_path / "timing.csv")]
    # the first step and every second are logged, every second is evaluated; saved at 3 and, as the last one, at 4
    assert steps == [0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]


def test_a_resumed_run_goes_on_with_the_rows_up_to_its_checkpoint(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(Line, "forward", clock.planted(1.0, Line.forward))
    whole = {"eval_strategy": "no", "guarded": False}
    make_trainer(tmp_path, **whole).train()
    before = totals(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-4")
    trainer = make_trainer(tmp_path, earlier=3, **whole)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert totals(tmp_path) == before and before["forward"] == 4.0


@pytest.mark.parametrize(
    "damage", ["missing", *(pytest.param(text, marks=pytest.mark.slow) for text in ("step,seconds\n1,2\n", "cut"))]
)
def test_a_resumed_run_tells_that_earlier_times_are_lost(tmp_path, caplog, damage):
    whole = {"eval_strategy": "no", "guarded": False}
    make_trainer(tmp_path, **whole).train()
    path = tmp_path / "timing.csv"
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(text[: len(text) // 2].rpartition(",")[0] if damage == "cut" else damage)
    trainer = make_trainer(tmp_path, earlier=3, **whole)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "the time before step 3 is not in it" in caplog.text
    assert {row["step"] for row in read_timing(path)} == {3, 4}


def test_an_error_leaves_the_clock_where_it_was(clock):
    times = StepTimes("nowhere")
    times.trainer = SimpleNamespace(accelerator=SimpleNamespace(sync_gradients=True))

    def fails():
        clock.seconds += 2.0
        raise RuntimeError("of the data")

    with pytest.raises(RuntimeError):
        times._timed("data", fails)()
    assert times.clock.part == "other" and times.clock.drain()["data"] == 2.0


def test_a_look_at_the_clock_costs_nothing_beside_a_step():
    clock = PartClock()
    start = step_times.perf_counter()
    for _ in range(1000):
        clock.turn_to("data")
    assert (step_times.perf_counter() - start) / 1000 < 5e-5  # a dozen of them a step, which takes 0.1 s at least
