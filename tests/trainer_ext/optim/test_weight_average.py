"""The moving average of the weights: its definition, what enters it, that it leaves the weights alone, its best."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.optim.early_stopping import EarlyStopping
from frankenlm.trainer_ext.optim.weight_average import FILE, METRIC, WeightAverage
from frankenlm.trainer_ext.results import final_loss
from frankenlm.trainer_ext.saving.checkpoint_record import read_record
from guarded_runs import batches, model_of


def follow(average, model, steps, start=0):
    """Let a model wander, deterministically, and return its weights after each step in float64."""
    path = []
    for step in range(start, start + steps):
        average.on_pre_optimizer_step(None, None, None)
        with torch.no_grad():
            for index, weight in enumerate(model.parameters()):
                weight += torch.sin(torch.arange(weight.numel()) + index + step).reshape(weight.shape)
        average.on_step_end(None, None, None)
        path.append([weight.detach().double().clone() for weight in model.parameters()])
    return path


def expected(first, path, decay):
    """The definition, in float64."""
    averages = [value.clone() for value in first]
    for step, weights in enumerate(path, 1):
        d = min(decay, (1 + step) / (10 + step))
        averages = [d * old + (1 - d) * new for old, new in zip(averages, weights, strict=True)]
    return averages


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_definition(model, decay, dtype):
    model.to(dtype)
    first = [weight.detach().double().clone() for weight in model.parameters()]
    average = WeightAverage(model, decay, lambda: False)
    path = follow(average, model, 7)
    own = [weight.detach().clone() for weight in model.parameters()]
    with average.in_place():
        for weight, value in zip(model.parameters(), expected(first, path, decay), strict=True):
            torch.testing.assert_close(weight.double(), value.to(dtype).double(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(weight, value) for weight, value in zip(model.parameters(), own, strict=True))


def test_looking_at_it_changes_nothing(model, tmp_path):
    twin = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    twin.load_state_dict(model.state_dict())
    looked_at, left_alone = WeightAverage(model, 0.9, lambda: False), WeightAverage(twin, 0.9, lambda: False)
    for step in range(4):
        follow(looked_at, model, 1, step)
        follow(left_alone, twin, 1, step)
        with looked_at.in_place():
            pass
    looked_at.save(tmp_path)
    first = load_file(tmp_path / FILE)
    left_alone.save(tmp_path)
    second = load_file(tmp_path / FILE)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_step_poisoned_does_not_enter(model):
    average = WeightAverage(model, 0.9, lambda: False)
    follow(average, model, 2)
    healthy = [weight.detach().clone() for weight in model.parameters()]
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    average.on_step_end(None, None, None)
    with average.in_place():
        assert all(weight.isfinite().all() for weight in model.parameters())
    assert torch.equal(model[0].weight[1:], healthy[0][1:]) and model[0].weight[0, 0].isnan()


def test_skipped_steps_do_not_count(model, tmp_path):
    average = WeightAverage(model, 0.9, lambda: True)
    follow(average, model, 3)
    average.save(tmp_path)
    assert average.steps == 0


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_impossible_decays_are_refused(model, decay):
    with pytest.raises(ValueError, match=r"ema_decay=.*between 0 and 1"):
        WeightAverage(model, decay, lambda: False)


def test_it_is_taken_up_again(model, tmp_path, caplog):
    average = WeightAverage(model, 0.9, lambda: False)
    follow(average, model, 3)
    average.save(tmp_path)
    again = WeightAverage(model, 0.9, lambda: False)
    again.resume(tmp_path)
    with average.in_place():
        first = [weight.detach().clone() for weight in model.parameters()]
    with again.in_place():
        assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))
    assert again.steps == 3
    with pytest.raises(ValueError, match="of other parameters"):
        WeightAverage(nn.Linear(2, 2), 0.9, lambda: False).resume(tmp_path)
    again.resume(tmp_path / "elsewhere")
    assert "has no average of the weights" in caplog.text
    with again.in_place():
        pass


# --- the best of it

STEPS = 6


def make_trainer(folder, **options) -> FrankenTrainer:
    """Weights that swing, so that they and their average are at their best at different steps."""
    fields = {"per_device_train_batch_size": 2, "max_steps": STEPS, "learning_rate": 0.03, "eval_steps": 1}
    fields |= {"lr_scheduler_type": "constant", "early_stopping_patience": STEPS, "logging_steps": STEPS}
    fields |= {"save_total_limit": None, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = FrankenTrainingArguments(output_dir=str(folder), **fields | options)
    trainer = FrankenTrainer(model_of(), args, train_dataset=batches(2 * STEPS), eval_dataset=batches(2, seed=1))
    trainer.take_average(0.5)
    return trainer


def averaged(trainer) -> dict[str, torch.Tensor]:
    with trainer.average.in_place():
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def test_at_the_end_it_is_that_of_its_own_best_evaluation(tmp_path):
    trainer = make_trainer(tmp_path / "whole")
    trainer.train()
    evaluations = [logs for logs in trainer.state.log_history if METRIC in logs and logs["step"]]
    best = min(evaluations, key=lambda logs: logs[METRIC])
    of_weights = min(evaluations, key=lambda logs: logs["eval_loss"])
    assert len({best["step"], of_weights["step"], STEPS}) == 3, evaluations
    saved = load_file(tmp_path / "whole" / f"checkpoint-{best['step']}" / FILE)
    for name, weight in averaged(trainer).items():
        assert torch.equal(weight, saved[name])
    trainer.checkpoints.save_folder(tmp_path / "ema", trainer.average.step(trainer.state))
    assert read_record(tmp_path / "ema").step == best["step"]
    final = final_loss(trainer)
    assert (final["eval_loss"], final[METRIC]) == pytest.approx((of_weights["eval_loss"], best[METRIC]))

    again = make_trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{STEPS - 1}"))
    assert again.average.step(again.state) == best["step"]
    assert all(torch.equal(weight, saved[name]) for name, weight in averaged(again).items())


def test_where_the_last_weights_are_kept_it_is_of_the_last_step(tmp_path):
    trainer = make_trainer(tmp_path, early_stopping_patience=None, save_strategy="no", max_steps=1)
    trainer.train()
    assert trainer.average.best is None and trainer.average.step(trainer.state) == 1


# weights, average; whether it is stopped behind that evaluation, after two fruitless ones
OVERFITTING = [(4.30, 4.50), (4.255, 4.227), (4.270, 4.220), (4.295, 4.212), (4.31, 4.213), (4.33, 4.22)]
DIVERGED = [(4.3, 4.5), (math.nan, 4.4), (4.2, 4.6), (4.21, math.nan), (4.19, 4.3)]


@pytest.mark.parametrize(
    ("losses", "counts"), [(OVERFITTING, [0, 0, 0, 0, 1, 2]), (DIVERGED, [0, 1, 0, 1, 0])], ids=["overfit", "diverged"]
)
def test_an_average_that_still_gets_better_is_no_reason_to_stop(losses, counts):
    callback, control = EarlyStopping(2), SimpleNamespace(should_training_stop=False)
    args = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=False)
    history = [{"step": 0, "eval_loss": 1.0, METRIC: 1.0}]  # before training: nothing that is kept
    state = SimpleNamespace(log_history=history, best_metric=None)
    for step, (loss, average) in enumerate(losses, 1):
        metrics = {"eval_loss": loss, METRIC: average}
        history.append({**metrics, "step": step})
        callback.on_evaluate(args, state, control, metrics)
        assert callback.early_stopping_patience_counter == counts[step - 1]
        assert control.should_training_stop is (counts[step - 1] == 2)
