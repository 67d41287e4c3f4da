"""Runs of a tiny GPT-2 under the gradient guard, with faults planted; for the tests of the guard."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.optim.guard import GradientGuard

STEPS, FAULT = 6, 3  # steps of a run, and the step (from 1) that meets the fault
PLANTED = "transformer.h.0.mlp.c_fc.weight"


def batches(count: int, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 31, (count, 9), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def model_of(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "use_cache": False}
    pads = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **pads, **rates))


KINDS = {"plain": (Trainer, TrainingArguments), "ours": (FrankenTrainer, FrankenTrainingArguments)}


class Run:
    """A run of a Trainer under the guard; its weights after it, and the guard."""

    def __init__(
        self,
        folder,
        rows,
        *,
        steps=STEPS,
        accumulation=1,
        bf16=False,
        policy=None,
        plant=None,
        dropout=0.0,
        kind="plain",
    ):
        trainer_class, arguments_class = KINDS[kind]
        self.model = model_of(dropout)
        args = arguments_class(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=bf16,
            disable_tqdm=True,
            max_grad_norm=1.0,
            logging_nan_inf_filter=False,
        )
        self.trainer = trainer_class(self.model, args, train_dataset=rows)
        self.guard = GradientGuard(policy).attach(self.trainer) if policy is not False else None
        if plant is not None:
            plant(self.trainer)
        self.trainer.train()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def assert_same(one: Run, other: Run) -> None:
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


def gradient_fault(value: float, times: int, step: int = FAULT, factor: bool = False):
    """Plant `value` into an element of one gradient (or multiply all of it) in the first `times` passes of a step."""

    def plant(trainer):
        parameter = dict(trainer.model.named_parameters())[PLANTED]
        left = [times]

        def spoil(gradient):
            if trainer.state.global_step + 1 != step or not left[0]:
                return gradient
            left[0] -= 1
            gradient = gradient * value if factor else gradient.clone()
            if not factor:
                gradient.view(-1)[0] = value
            return gradient

        parameter.register_hook(spoil)

    return plant


ALWAYS = 10**6  # times


def without(rows: list[dict], accumulation: int, batch: int = 2) -> list[dict]:
    """The rows without those of the faulty step; `batch` rows in a micro-batch of all processes."""
    size = batch * accumulation
    return rows[: (FAULT - 1) * size] + rows[FAULT * size :]


def same_length(steps: int):
    """Let a shorter run fall with the learning rate of one of `steps`."""

    def plant(trainer):
        original = trainer.create_scheduler
        trainer.create_scheduler = lambda num_training_steps, optimizer=None: original(steps, optimizer)

    return plant
