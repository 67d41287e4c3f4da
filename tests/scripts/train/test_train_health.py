"""Runs that are poisoned on the way: the checkpoint from before stays and is gone on from; nothing sick is a result."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from frankenlm.trainer_ext import FrankenTrainer
from frankenlm.trainer_ext.commands.train import check_health
from frankenlm.trainer_ext.common.cli import Failed
from frankenlm.trainer_ext.saving.checkpoint_record import read_record

STEPS, FAULT = 6, 4


def poison_weights(trainer) -> None:
    next(trainer.model.parameters()).data.view(-1)[0] = math.nan


def poison_optimizer(trainer) -> None:
    state = next(iter(trainer.optimizer.state.values()))
    state["exp_avg"].view(-1)[0] = math.inf


def raise_rate(trainer) -> None:
    trainer.lr_scheduler.base_lrs = [1e30 for _ in trainer.lr_scheduler.base_lrs]
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e30


POISONS = {"weights": poison_weights, "optimizer": poison_optimizer, "rate": raise_rate}


@pytest.mark.parametrize(
    "poison", [pytest.param(name, marks=[] if name == "weights" else [pytest.mark.slow]) for name in POISONS]
)
@pytest.mark.parametrize("limit", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_healthy_state_survives(train, tmp_path, monkeypatch, capsys, poison, limit):
    original = FrankenTrainer.training_step

    def poisoned(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == FAULT:
            POISONS[poison](self)
        return loss

    monkeypatch.setattr(FrankenTrainer, "training_step", poisoned)
    words = [
        "--max_steps",
        STEPS,
        "--save_steps",
        1,
        "--eval_steps",
        1,
        "--save_total_limit",
        limit,
        "--no_gradient_guard",
    ]
    assert train(tmp_path, *words) == 1
    said = capsys.readouterr().err
    assert "the model is not healthy at the end" in said and not (tmp_path / "model.safetensors").exists()
    healthy = [path for path in tmp_path.glob("checkpoint-*") if read_record(path).health.fault is None]
    assert {read_record(path).step for path in healthy} >= {FAULT - 1} and max(
        read_record(p).step for p in healthy
    ) < FAULT
    last = tmp_path / f"checkpoint-{FAULT - 1}"
    assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())

    monkeypatch.setattr(FrankenTrainer, "training_step", original)
    assert train(tmp_path, *words, "--resume_from_checkpoint", "last") == 0
    said = capsys.readouterr().err
    assert f"checkpoint-{STEPS} is passed over: not healthy" in said
    assert math.isfinite(json.loads((tmp_path / "metrics.json").read_text())["eval_loss"])


@pytest.mark.parametrize(
    ("weights", "loss", "said"),
    [
        ("its parameters hold NaN or Inf", 3.0, "hold NaN or Inf"),
        (None, math.inf, "evaluation loss is inf"),
        (None, 1e5, "evaluation loss is 1e\\+05, and the run began with 3: it has diverged"),
    ],
)
def test_a_sick_model_is_no_result(weights, loss, said):
    state = SimpleNamespace(log_history=[{"eval_loss": 3.0}, {"loss": 2.0}])
    trainer = SimpleNamespace(checkpoints=SimpleNamespace(weights_fault=lambda: weights), state=state)
    with pytest.raises(Failed, match=said):
        check_health(trainer, {"eval_loss": loss})
    trainer.checkpoints.weights_fault = lambda: None
    check_health(trainer, {"eval_loss": 12.9})  # bad, but a model


def test_the_guard_keeps_a_run_alive_that_would_have_been_poisoned(train, tmp_path, monkeypatch):
    original, fired = FrankenTrainer.training_step, []

    def poisoned(self, *args, **kwargs):
        if self.state.global_step + 1 == FAULT and not fired:
            fired.append(poison_weights(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FrankenTrainer, "training_step", poisoned)
    assert train(tmp_path, "--max_steps", STEPS) == 0
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert "rollback" in (tmp_path / "training.csv").read_text()


def test_the_best_model_is_a_result_though_the_last_step_was_sick(train, tmp_path, monkeypatch):
    original = FrankenTrainer.training_step

    def poisoned(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == STEPS:
            poison_optimizer(self)
        return loss

    monkeypatch.setattr(FrankenTrainer, "training_step", poisoned)
    words = ["--max_steps", STEPS, "--save_steps", 1, "--eval_steps", 1, "--load_best_model_at_end", "true"]
    assert train(tmp_path, *words, "--no_gradient_guard") == 0
    assert all(value.isfinite().all() for value in load_file(tmp_path / "model.safetensors").values())
