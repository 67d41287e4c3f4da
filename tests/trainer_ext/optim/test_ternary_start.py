"""Low-bit layers that start in full precision: what they compute, when they switch, what a resumed run does."""

import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from frankenlm.modeling import FrankensteinConfig, Legacy1BitForCausalLM
from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear, apply_together
from frankenlm.modeling.norms import rms_normalize
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.optim.guard import GradientGuard
from frankenlm.trainer_ext.optim.ternary_start import TernaryStart, starting_step
from frankenlm.trainer_ext.preflight import check_run
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.resuming import is_open
from frankenlm.trainer_ext.ternary_stats import low_bit_layers
from tiny_legacy import tiny_legacy

STEPS, START = 4, 2


@pytest.mark.parametrize("input_norm", [True, False])
def test_layers_compute_with_what_they_hold_while_they_train(input_norm):
    linear, table = BitLinear(20, 7, input_norm=input_norm), BitEmbedding(9, 20)
    ids = torch.tensor([[1, 8, 3]])
    rounded = linear(table(ids))
    for layer in (linear, table):
        layer.trains_unrounded = True
    rows = F.embedding(ids, table.weight)
    expected = F.linear(rms_normalize(rows) if input_norm else rows, linear.weight, linear.bias)
    assert torch.equal(table(ids), rows) and torch.equal(linear(rows), expected)
    assert not torch.equal(rounded, expected)
    assert torch.equal(linear.eval()(table.eval()(ids)), rounded)


def test_layers_that_differ_in_it_share_no_input():
    one, other = BitLinear(16, 4), BitLinear(16, 4)
    one.trains_unrounded = True
    x = torch.randn(3, 16)
    for found, layer in zip(apply_together(x, one, other), (one, other), strict=True):
        assert torch.equal(found, layer(x))


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        *((0.2, 10, 2), (0.25, 10, 3), (0.999, 1000, 999), (1, 2, 1), (7.0, 8, 7), (0, 5, 0)),
        *((0.07, 100, 7), (0.55, 100, 55), (0.071, 100, 8)),  # 7.000000000000001 is 7
    ],
)
def test_shares_and_steps(start, steps, expected):
    assert starting_step(start, steps) == expected


def test_a_fraction_above_one_is_refused():
    with pytest.raises(UserError, match=r"--ternary_start 1\.5: a share below 1, or a whole number of steps\."):
        starting_step(1.5, 8)


@pytest.mark.parametrize(("start", "steps"), [(8, 8), (9, 8), (0.9, 1)])
def test_no_step_left_is_refused(start, steps):
    with pytest.raises(UserError, match=f"the run has {steps} steps, and none"):
        starting_step(start, steps)


def rows_of(count=STEPS * 4):
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 61, (count, 12))]


def trainer_of(folder, model, rows, start=START, **fields):
    args = FrankenTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        eval_strategy="no",
        save_total_limit=None,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        lr_scheduler_type="constant",
        **{"save_strategy": "no"} | fields,
    )
    trainer = FrankenTrainer(model, args, train_dataset=rows, eval_dataset=rows[:2])
    if start is not None:
        trainer.add_callback(TernaryStart(start))
    return trainer


def tiny(**fields):
    torch.manual_seed(0)
    return Legacy1BitForCausalLM(tiny_legacy("legacy", **fields))


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class Modes:
    """Whether a model trains unrounded in each of its training passes."""

    def __init__(self, model):
        self.seen = []
        layer = next(iter(low_bit_layers(model).values()))
        layer.register_forward_pre_hook(self._look)

    def _look(self, layer, inputs):
        if layer.training:
            self.seen.append(layer.computes_unrounded)


def test_it_switches_once_and_logs_it(tmp_path, caplog):
    model = tiny()
    modes = Modes(model)
    with caplog.at_level(logging.INFO, "frankenlm.training"):
        trainer = trainer_of(tmp_path, model, rows_of())
        trainer.train()
    assert modes.seen == [True] * (2 * START) + [False] * (2 * (STEPS - START))
    assert "unrounded until step 2 of 4; evaluations and checkpoints before it are of the rounded" in caplog.text
    assert caplog.text.count("from step 3 on the low-bit layers round") == 1
    logged = [logs.get("unrounded") for logs in trainer.state.log_history if "loss" in logs]
    assert logged == [1.0, 1.0, None, None]
    assert not any(layer.trains_unrounded for layer in low_bit_layers(model).values())


def test_the_first_steps_are_those_of_a_model_that_rounds_nothing(tmp_path):
    """And those after them are not."""
    rows, losses = rows_of(), []
    for start in (START, STEPS - 1, None):
        trainer = trainer_of(tmp_path / str(start), tiny(), rows, start)
        trainer.train()
        losses.append([logs["loss"] for logs in trainer.state.log_history if "loss" in logs])
    assert losses[0][:START] == losses[1][:START] and losses[0][0] != losses[2][0]
    assert losses[0][START] != losses[1][START]


@pytest.mark.parametrize("step", [1, START])
def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path, step):
    rows, model, saves = rows_of(), tiny(), {"save_strategy": "steps", "save_steps": step}
    trainer_of(tmp_path, model, rows, **saves).train()
    again = tiny()
    modes = Modes(again)
    trainer = trainer_of(tmp_path, again, rows)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert modes.seen == [True] * (2 * max(START - step, 0)) + [False] * (2 * min(STEPS - step, STEPS - START))
    for name, value in weights_of(model).items():
        assert torch.equal(weights_of(again)[name], value), name


def test_what_is_evaluated_and_saved_before_the_start_is_rounded(tmp_path):
    rows, model = rows_of(), tiny()
    trainer = trainer_of(tmp_path, model, rows, STEPS - 1, save_strategy="steps", save_steps=START)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    trainer.train()
    evals = {logs["step"]: logs["eval_loss"] for logs in trainer.state.log_history if "eval_loss" in logs}
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{START}")
    found = trainer_of(tmp_path / "other", saved, rows, None).evaluate()["eval_loss"]
    assert found == evals[START]


@pytest.mark.parametrize("step", [START, START + 1])
def test_the_guard_computes_a_step_again_as_it_was(tmp_path, step):
    """A NaN at the last step before the switch, and at the first behind it: the run ends where a good one does."""
    rows, model = rows_of(), tiny()
    trainer_of(tmp_path / "good", model, rows).train()
    again = tiny()
    modes = Modes(again)
    trainer = trainer_of(tmp_path / "faulty", again, rows)
    trainer.take_guard(GradientGuard())
    left = [1]

    def spoil(gradient):
        if trainer.state.global_step + 1 != step or not left[0]:
            return gradient
        left[0] = 0
        return torch.full_like(gradient, float("nan"))

    model_weight = again.model.norm_f.weight
    model_weight.register_hook(spoil)
    trainer.train()
    assert trainer.guard.counts["retry"] == 1
    assert modes.seen.count(True) == 2 * START + (2 if step == START else 0)
    for name, value in weights_of(model).items():
        assert torch.equal(weights_of(again)[name], value), name


def test_loops_and_experts_start_later_too(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 2}
    parts = {"use_bitnet": True, "num_hidden_layers": 4, "num_loops": 2, "num_experts": 2, "is_decoder": True}
    parts |= {"layer_pattern": ["standard_attn", "retnet"]}
    model = AutoModelForCausalLM.from_config(FrankensteinConfig(**sizes, **parts, max_position_embeddings=32))
    modes = Modes(model)
    trainer = trainer_of(tmp_path, model, rows_of())
    trainer.train()
    assert len(low_bit_layers(model)) > 1 and set(modes.seen) == {True, False}
    assert modes.seen == sorted(modes.seen, reverse=True)


def test_a_model_that_rounds_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no low-bit layers that could start later"):
        trainer_of(tmp_path, tiny(use_bitnet=False), rows_of()).train()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset mini --ternary_start 0.2", "this model has no low-bit layers to start later: set use_bitnet"),
        ("--preset legacy-1bit --max_steps 2 --ternary_start 2", "the run has 2 steps, and none of them"),
        ("--preset legacy-1bit --ternary_start 1.5", "--ternary_start 1.5: a share below 1, or a whole number"),
        ("--preset legacy-1bit --ternary_start 1 --ternary_training sign_accum", "knows nothing but codes"),
        ("--preset legacy-1bit --ternary_start 1 --early_stopping_patience 2", "would count them"),
        (
            "--model_name_or_path {saved} --objective causal --ternary_start 1",
            "no low-bit layers to start later: leave it",
        ),
        ("--model_name_or_path {saved} --lora --ternary_start 1", "--lora and --ternary_start 1 exclude each other"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, words, message):
    tiny_legacy("twin").save_pretrained(tmp_path / "saved")
    words = words.format(saved=tmp_path / "saved").split()
    with pytest.raises(UserError, match=message):
        check_run(
            parse_run([*words, "--dataset", "builtin", "--max_length", "32", "--output_dir", str(tmp_path / "out")])
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("start", "is_longer"), [("0.5", False), ("2", True)])
def test_a_share_ties_a_run_to_its_length(tmp_path, start, is_longer):
    words = ["--preset", "legacy-1bit", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    words += ["--learning_rate_drop", "1", "--weight_decay_share", "1", "--output_dir", str(tmp_path)]
    assert is_open(parse_run([*words, "--ternary_start", start])) is is_longer
