"""How scripts/train.py ends where a stream reaches a bad row: as for a signal, with a checkpoint to continue from."""

import itertools

import pytest
import torch
from datasets import IterableDataset

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.callbacks import SignalStop
from frankenlm.trainer_ext.commands.train import train_to_the_end
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.text_files import BadRowError
from frankenlm.trainer_ext.saving.saved_checkpoints import examine

VOCAB = 40


def rows_until(bad: int):
    for number in itertools.count():
        if number == bad:
            raise BadRowError(f"s.jsonl, line {bad + 1}: not JSON.")
        ids = [4 + (number + i) % (VOCAB - 4) for i in range(6)]
        yield {"input_ids": ids, "labels": ids}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def make_trainer(folder, bad: int, **fields) -> FrankenTrainer:
    config = FrankensteinConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        layer_pattern=["retnet"],
        num_experts=2,
        top_k_experts=1,
    )
    args = FrankenTrainingArguments(
        output_dir=str(folder),
        max_steps=50,
        per_device_train_batch_size=2,
        use_cpu=True,
        eval_strategy="no",
        disable_tqdm=True,
        **fields,
    )
    stream = IterableDataset.from_generator(rows_until, gen_kwargs={"bad": bad})
    return FrankenTrainer(model=FrankensteinForMaskedLM(config), args=args, train_dataset=stream, data_collator=collate)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 3), (2, 1)])  # the loader reads one batch ahead
def test_a_bad_row_late_in_a_stream_leaves_a_checkpoint(tmp_path, accumulation, steps):
    trainer = make_trainer(tmp_path, bad=9, gradient_accumulation_steps=accumulation)
    with pytest.raises(UserError, match=f"line 10: not JSON. Stopped at step {steps}; continue with --resume"):
        train_to_the_end(trainer, SignalStop(1), None)
    assert examine(tmp_path / f"checkpoint-{steps}", 1).is_whole


def test_a_bad_row_before_the_first_step_leaves_none(tmp_path):
    with pytest.raises(UserError, match="line 1: not JSON. Stopped at step 0; no step was done"):
        train_to_the_end(make_trainer(tmp_path, bad=0), SignalStop(1), None)
    assert not list(tmp_path.glob("checkpoint-*"))
