"""The guard and the safe checkpoints on TRL's trainers: a line each, and a NaN leaves no trace."""

import math
from pathlib import Path

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from frankenlm.trainer_ext import SafeCheckpoints, newest_healthy
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from frankenlm.trainer_ext.optim.guard import GradientGuard
from guarded_runs import ALWAYS, STEPS, gradient_fault

ROWS = 2 * STEPS
DATA = {
    "sft": {"text": ["the cat sat on a mat"] * ROWS},
    "dpo": {"prompt": ["the cat"] * ROWS, "chosen": [" sat on a mat"] * ROWS, "rejected": [" mat a on"] * ROWS},
}


def model_for(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, **ids))


def trainer_of(kind: str, folder, **changes):
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=300, mask=False)
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    shared = {"train_dataset": datasets.Dataset.from_dict(DATA[kind]), "processing_class": tokenizer}
    if kind == "sft":
        return SFTTrainer(model=model_for(tokenizer), args=SFTConfig(**options), **shared)
    reference = model_for(tokenizer)
    return DPOTrainer(model=model_for(tokenizer), ref_model=reference, args=DPOConfig(**options), **shared)


def run(kind: str, folder, plant=None):
    trainer = trainer_of(kind, folder)
    guard = GradientGuard().attach(trainer)
    if plant is not None:
        plant(trainer)
    trainer.train()
    return trainer.model.state_dict(), guard


@pytest.mark.filterwarnings("default")  # TRL's own warnings are its own
@pytest.mark.parametrize("kind", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_trl_trains_on_through_nan(kind, tmp_path):
    clean, _ = run(kind, tmp_path)
    once, guard = run(kind, tmp_path, gradient_fault(math.nan, 1))
    assert guard.counts == {"none": STEPS - 1, "retry": 1}
    assert all(torch.equal(value, once[name]) for name, value in clean.items())
    always, guard = run(kind, tmp_path, gradient_fault(math.nan, ALWAYS))
    assert guard.counts == {"none": STEPS - 1, "skip": 1}
    assert all(value.isfinite().all() for value in always.values())


def poison(trainer, step: int) -> None:
    """Let the weights be NaN once `step` steps are done."""

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == step:
                with torch.no_grad():
                    next(model.parameters()).fill_(math.nan)

    trainer.add_callback(Poison())


@pytest.mark.filterwarnings("default")  # TRL's own warnings are its own
@pytest.mark.parametrize("kind", DATA)
def test_trl_keeps_its_healthy_checkpoint(kind, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    unbroken = trainer_of(kind, tmp_path / "unbroken", **saving)
    SafeCheckpoints().attach(unbroken)
    unbroken.train()
    broken = trainer_of(kind, tmp_path / "broken", **saving)
    SafeCheckpoints().attach(broken)
    poison(broken, STEPS - 2)
    broken.train()
    healthy = newest_healthy(tmp_path / "broken")
    assert Path(healthy).name == f"checkpoint-{STEPS - 3}"
    resumed = trainer_of(kind, tmp_path / "broken", **saving)
    SafeCheckpoints().attach(resumed)
    resumed.train(resume_from_checkpoint=healthy)
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
