"""Checkpoints of any Trainer: whole, known to be healthy or not, and the last healthy one is never taken away."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from frankenlm.trainer_ext import SafeCheckpoints, newest_healthy
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.optim.guard import GradientGuard
from frankenlm.trainer_ext.saving.checkpoint_record import read_record
from frankenlm.trainer_ext.saving.output_folder import AVERAGE, check_average, clear
from frankenlm.trainer_ext.saving.saved_checkpoints import checkpoint_folders, examine
from guarded_runs import KINDS, PLANTED, batches, model_of

STEPS, FAULT = 6, 4
EMBEDDING, NORM = "transformer.wte.weight", "transformer.h.1.ln_1.weight"


def make_trainer(folder, kind="plain", rows=None, guard=False, **options) -> Trainer:
    trainer_class, arguments_class = KINDS[kind]
    fields = {
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_total_limit": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    args = arguments_class(output_dir=str(folder), **{**fields, **options})
    rows = batches(2 * STEPS) if rows is None else rows
    trainer = trainer_class(model_of(), args, train_dataset=rows, eval_dataset=batches(2, seed=1))
    if kind == "plain":
        SafeCheckpoints().attach(trainer)
    if guard:
        GradientGuard().attach(trainer)
    return trainer


def at_the_fault(spoil):
    """Let `spoil(trainer)` happen between the gradient and the step of FAULT."""

    def plant(trainer):
        original = trainer.training_step

        def step(*args, **kwargs):
            loss = original(*args, **kwargs)
            if trainer.state.global_step + 1 == FAULT:
                return spoil(trainer, loss)
            return loss

        trainer.training_step = step

    return plant


def weight(name, value):
    def spoil(trainer, loss):
        dict(trainer.model.named_parameters())[name].data.view(-1)[3] = value
        return loss

    return spoil


def gradient(value):
    def spoil(trainer, loss):
        dict(trainer.model.named_parameters())[PLANTED].grad.view(-1)[3] = value
        return loss

    return spoil


def optimizer_state(name, value):
    def spoil(trainer, loss):
        next(iter(trainer.optimizer.state.values()))[name].view(-1)[0] = value
        return loss

    return spoil


def rate(value):
    def spoil(trainer, loss):
        for group in trainer.optimizer.param_groups:
            group["lr"] = value
        return loss

    return spoil


NOT_FINITE = {"NaN": math.nan, "Inf": math.inf, "-Inf": -math.inf}
POISONS = {"1e38 in a norm": weight(NORM, 1e38)}
for text, value in NOT_FINITE.items():
    POISONS[f"{text} in a gradient"] = gradient(value)
    POISONS |= {f"{text} in {name}": weight(name, value) for name in (EMBEDDING, PLANTED, NORM)}
    POISONS |= {f"{text} in {name}": optimizer_state(name, value) for name in ("exp_avg", "exp_avg_sq")}
POISONS |= {f"a rate of {value}": rate(value) for value in (1e3, 1e6, 1e30, math.inf)}
# One value of each kind runs every time: what is asked is the same.
SLOW = [name for name in POISONS if name.startswith(("Inf", "-Inf")) or name.endswith(("1000.0", "1e+30", "inf"))]
KINDS_OF_POISON = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in POISONS]


def check_the_healthy_state(folder):
    found = newest_healthy(folder)
    assert Path(found).name == f"checkpoint-{FAULT - 1}"
    assert all(value.isfinite().all() for value in load_file(Path(found) / "model.safetensors").values())


@pytest.mark.parametrize("poison", KINDS_OF_POISON)
def test_the_last_healthy_checkpoint_stays(tmp_path, caplog, poison):
    limit = 1 + len(poison) % 2
    trainer = make_trainer(tmp_path, save_total_limit=limit)
    at_the_fault(POISONS[poison])(trainer)
    trainer.train()
    check_the_healthy_state(tmp_path)
    assert f"checkpoint-{STEPS} is passed over: not healthy" in caplog.text
    assert len(checkpoint_folders(tmp_path)) <= 2


def test_a_batch_without_labels_poisons_nothing(tmp_path):
    rows = batches(2 * STEPS)
    for row in rows[2 * (FAULT - 1) : 2 * FAULT]:
        row["labels"] = torch.full_like(row["labels"], -100)
    make_trainer(tmp_path, rows=rows).train()
    assert Path(newest_healthy(tmp_path)).name == f"checkpoint-{STEPS}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_equals_the_unbroken_one(tmp_path, kind):
    whole = make_trainer(tmp_path / "whole", kind)
    whole.train()
    poisoned = make_trainer(tmp_path / "again", kind)
    at_the_fault(weight(PLANTED, math.nan))(poisoned)
    poisoned.train()
    again = make_trainer(tmp_path / "again", kind)
    again.train(resume_from_checkpoint=newest_healthy(tmp_path / "again"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_every_checkpoint_is_whole_and_tells_what_the_guard_did(tmp_path):
    trainer = make_trainer(tmp_path, guard=True, save_total_limit=None)
    trainer.train()
    folders = checkpoint_folders(tmp_path)
    assert len(folders) == STEPS and all(examine(folder, 1).is_whole for folder in folders)
    assert read_record(folders[-1]).health.guard == {"none": STEPS}
    assert not list(tmp_path.glob(".*"))


def test_the_best_checkpoint_is_named_by_its_place(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1, load_best_model_at_end=True, learning_rate=0.3)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and [best] == checkpoint_folders(tmp_path)
    saved = load_file(best / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in saved.items())


def test_a_checkpoint_is_pushed_from_its_place(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append(Path(folder)))
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, *args, **kwargs: None)
    make_trainer(tmp_path, save_steps=3, push_to_hub=True).train()
    assert pushed == [tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"]
    assert all((folder / "model.safetensors").is_file() for folder in pushed)


def test_one_is_enough(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="SafeCheckpoints already"):
        SafeCheckpoints().attach(trainer)


def test_nothing_to_go_on_from(tmp_path):
    assert newest_healthy(tmp_path) is None


def test_a_run_that_is_taken_up_is_the_same_run(tmp_path):
    """Its rotation goes on, and a checkpoint that was whole when the run was killed is found."""
    make_trainer(tmp_path, save_total_limit=1, max_steps=2).train()
    run = read_record(tmp_path / "checkpoint-2").run
    (tmp_path / ".checkpoint-2.partial").mkdir()
    (tmp_path / "checkpoint-2").rename(tmp_path / ".checkpoint-2.partial" / "checkpoint-2")
    again = make_trainer(tmp_path, save_total_limit=1, max_steps=4)
    again.train(resume_from_checkpoint=newest_healthy(tmp_path))
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["checkpoint-4"]
    assert read_record(tmp_path / "checkpoint-4").run == run


def test_as_many_processes_as_were_launched(tmp_path, monkeypatch):
    make_trainer(tmp_path, max_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert newest_healthy(tmp_path) is None and newest_healthy(tmp_path, 1) == str(folder)


def test_what_is_somebody_elses_stays(tmp_path):
    theirs = tmp_path / "run" / ".mine.partial" / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    (tmp_path / "far").mkdir()
    (tmp_path / "run" / "checkpoint-1").symlink_to(tmp_path / "far", target_is_directory=True)
    make_trainer(tmp_path / "run", save_total_limit=1, max_steps=3).train()
    assert newest_healthy(tmp_path / "run") and theirs.read_text() == "precious" and (tmp_path / "far").is_dir()


def test_a_folder_for_the_average_that_no_run_wrote_is_refused(tmp_path):
    (tmp_path / AVERAGE).mkdir()
    check_average(tmp_path)
    (tmp_path / AVERAGE / "model.safetensors").write_text("precious")
    with pytest.raises(UserError, match="holds model.safetensors, which no run of this program wrote"):
        check_average(tmp_path)
    clear(tmp_path)
    assert (tmp_path / AVERAGE / "model.safetensors").read_text() == "precious"
