"""Flags of a run: numbers out of range, packages that are missing, options that fit nothing; all before a folder is."""

import dataclasses

import pytest
from transformers import GPT2Config

from frankenlm.modeling import FrankensteinConfig, InfinitoConfig
from frankenlm.trainer_ext.argument_ranges import (
    DATA_RANGES,
    MODEL_RANGES,
    TRAINING_RANGES,
    check_has_window,
    check_ranges,
)
from frankenlm.trainer_ext.arguments import DataArguments, FrankenTrainingArguments
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.model_arguments import ModelArguments
from frankenlm.trainer_ext.preflight import check_config
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.requirements import check_requirements

SECTIONS = {FrankenTrainingArguments: TRAINING_RANGES, DataArguments: DATA_RANGES, ModelArguments: MODEL_RANGES}
NUMBERS = (int, float, "int", "float", int | None, float | None)
# ternary_sign has two values, checked beside its mode
ELSEWHERE = {"ternary_sign"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_a_range(section):
    numbers = {field.name for field in dataclasses.fields(section) if field.init and field.type in NUMBERS}
    assert numbers - ELSEWHERE == SECTIONS[section].keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_in_range(section):
    values = {field.name: field.default for field in dataclasses.fields(section)}
    for name, allowed in SECTIONS[section].items():
        assert values[name] is None or allowed.takes(values[name]), name


WRONG = {
    "max_steps": (-5, 0), "learning_rate": (-1.0, float("inf"), float("nan")), "weight_decay": (float("nan"), -0.1),
    "per_device_train_batch_size": (0, -1), "gradient_accumulation_steps": (0,), "seed": (-1, 2**32),
    "cpu_threads": (-1,), "adam_beta1": (2, 1.0, -0.1), "label_smoothing_factor": (1.0, -0.1), "warmup_steps": (-1,),
    "dataloader_num_workers": (-1,), "num_train_epochs": (0, -1, float("inf")), "save_total_limit": (-1,),
    "logging_steps": (0, -1), "eval_steps": (0,), "save_steps": (0, -2), "max_grad_norm": (-1.0, float("nan")),
    "learning_rate_drop": (0, 1.1), "weight_decay_share": (-0.1, 1.1), "early_stopping_patience": (0,),
    "ternary_start": (-1, float("inf"), float("nan")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_numbers_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"--{name} {value}: must be"):
        FrankenTrainingArguments(output_dir=str(tmp_path / "out"), **{name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_steps", -1), ("max_grad_norm", 0), ("learning_rate", 0.0), ("save_total_limit", 0), ("warmup_steps", 0.1)],
)
def test_what_means_something_stays(tmp_path, name, value):
    FrankenTrainingArguments(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"validation_fraction": float("nan")}, "validation_fraction nan"),
        ({"max_documents": 1}, "at least 2"),
        ({"num_proc": 0}, "at least 1"),
    ],
)
def test_data_arguments(fields, words):
    with pytest.raises(ValueError, match=words):
        check_ranges(DataArguments(**fields), DATA_RANGES)


RUN = "--preset standard --dataset x.txt --output_dir out --max_steps 10 --use_cpu".split()  # noqa: SIM905


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--report_to", "nope"], "--report_to nope: unknown"),
        (["--report_to", "tensorbord"], "Did you mean 'tensorboard'"),
        (["--report_to", "wandb"], "--report_to wandb: .*requires wandb"),
        (["--optim", "galore_adamw"], "--optim galore_adamw needs the package galore_torch"),
        (["--optim", "schedule_free_adamw"], "--optim schedule_free_adamw: .*schedulefree"),
        (["--use_liger_kernel"], "needs the package liger-kernel"),
        (["--deepspeed", "x.json"], "--deepspeed x.json: the package is missing"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr"),
        (["--lr_scheduler_kwargs", '{"nonsense": 1}'], "nonsense"),
        (["--lr_scheduler_kwargs", "{broken"], "Expecting|property name"),
        (["--restore_callback_states_from_checkpoint"], "leave it out"),
        (["--dataloader_prefetch_factor", "2"], "--dataloader_num_workers too"),
        (["--learning_rate_drop", "0.5", "--lr_scheduler_type", "reduce_lr_on_plateau"], "the step alone"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line(words, told):
    with pytest.raises(UserError, match=told):
        check_requirements(parse_run([*RUN, *words]).training)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}'],
        ["--optim", "sgd"],
        ["--optim", "adafactor"],
        ["--warmup_steps", "0.1"],
    ],
)
def test_what_fits_passes(words):
    check_requirements(parse_run([*RUN, *words]).training)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (FrankensteinConfig(layer_pattern=["retnet", "mamba"]), "no layer of this model has a window"),
        (GPT2Config(), "is a gpt2"),
        (FrankensteinConfig(layer_pattern=["retnet", "sigmoid_attn"]), None),
        (InfinitoConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_window_is_drawn_where_there_is_one(config, told):
    check_has_window(None, config)
    if told is None:
        check_has_window([4, 8], config)
    else:
        with pytest.raises(ValueError, match=told):
            check_has_window([4, 8], config)


def test_a_preset_without_a_window_is_told_before_anything_is_built():
    words = ["--preset", "mini", "--model.layer_pattern", "[retnet]", "--attention_window_range", "4", "8"]
    with pytest.raises(UserError, match="no layer of this model has a window"):
        check_config(parse_run([*words, "--dataset", "builtin", "--output_dir", "o"]))
