"""The record of a step reaches HF's reporters: transformers' own callbacks, with stand-ins for the packages."""

import math
import sys
from unittest.mock import MagicMock

import torch
from transformers.integrations import TensorBoardCallback, TrackioCallback, integration_utils

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.optim.guard import GradientGuard

RECORD = {"loss", "learning_rate", "grad_norm", "has_nan", "has_inf", "has_zero", "repair_action", "tokens_per_second"}
PRESENT = {"norm_f_saturation", "aux_loss", "expert_load_min", "expert_load_max"}  # with Derf and experts
VOCAB = 40


def train(folder, callback, **options) -> FrankenTrainer:
    """Four steps, whose second has a gradient of NaN once."""
    config = FrankensteinConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        layer_pattern=["retnet"],
        num_experts=2,
        top_k_experts=1,
        norm_type="derf",
        **options,
    )
    args = FrankenTrainingArguments(
        str(folder), max_steps=4, logging_steps=2, use_cpu=True, disable_tqdm=True, eval_steps=4, save_strategy="no"
    )
    rows = [{"input_ids": [4 + (i + j) % 36 for j in range(6)], "labels": [5] * 6} for i in range(40)]
    trainer = FrankenTrainer(
        FrankensteinForMaskedLM(config), args, train_dataset=rows, eval_dataset=rows[:4], data_collator=collate
    )
    trainer.take_guard(GradientGuard())
    trainer.add_callback(callback)
    broken = iter([False, True, *[False] * 20])
    trainer.model.get_output_embeddings().weight.register_hook(lambda g: g * math.nan if next(broken) else g)
    trainer.train()
    return trainer


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def test_tensorboard_gets_numbers_as_scalars_and_the_action_as_text(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", MagicMock())
    writer = MagicMock()
    train(tmp_path, TensorBoardCallback(writer))
    scalars = {name: value for (name, value, step), _ in writer.add_scalar.call_args_list if step == 2}
    texts = [call.args for call in writer.add_text.call_args_list if call.args[0] == "train/repair_action"]
    assert scalars.keys() >= {f"train/{name}" for name in (RECORD | PRESENT) - {"repair_action"}}
    assert scalars["train/has_nan"] == 1.0
    assert [(action, step) for _, action, step in texts] == [("none", 1), ("retry", 2), ("none", 4)]
    assert "eval/loss" in {call.args[0] for call in writer.add_scalar.call_args_list}
    assert "incorrect so we dropped" not in caplog.text


def test_trackio_gets_the_record_in_one_call(tmp_path, monkeypatch):
    trackio = MagicMock()
    trackio.__version__ = "0.1"
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    train(tmp_path, TrackioCallback(), use_bitnet=True)
    logged = [call.args[0] for call in trackio.log.call_args_list]
    record = next(logs for logs in logged if "train/loss" in logs and logs["train/global_step"] == 2)
    assert record.keys() >= {f"train/{name}" for name in RECORD | PRESENT | {"zero_fraction", "flip_rate"}}
    assert (record["train/has_nan"], record["train/repair_action"]) == (1.0, "retry")
    for logs in logged:  # what it writes as JSON
        assert all(isinstance(value, (int, float, str)) for value in logs.values())
