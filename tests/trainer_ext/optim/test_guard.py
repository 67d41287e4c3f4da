"""The gradient guard: what it finds in one pass, what it does about it, and that nothing else changes."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from frankenlm.trainer_ext.optim.gradients import inspect_gradients
from frankenlm.trainer_ext.optim.guard import GradientGuard
from frankenlm.trainer_ext.optim.guard_policy import GuardPolicy, read_policy
from frankenlm.trainer_ext.optim.rolling_copy import RollingCopy, all_finite
from guarded_runs import (
    ALWAYS,
    FAULT,
    PLANTED,
    STEPS,
    Run,
    assert_same,
    batches,
    gradient_fault,
    model_of,
    same_length,
)

# --- one pass


def test_what_is_found_in_the_gradients():
    parameters = [(name, nn.Parameter(torch.zeros(2))) for name in "abcd"]
    for (_, parameter), gradient in zip(parameters, ([3.0, 0.0], [0.0, 4.0], [0.0, 0.0], None), strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    report = inspect_gradients(parameters)
    assert (report.norm, report.zero, report.absent, report.bad) == (5.0, 1, 1, ()) and report.is_finite
    assert inspect_gradients(parameters, scale=4.0).norm == 1.25
    parameters[0][1].grad[1] = math.nan
    parameters[1][1].grad[1] = math.inf
    report = inspect_gradients(parameters)
    assert report.has_nan and report.has_inf and report.bad == ("a", "b") and math.isnan(report.norm)
    parameters[0][1].grad[1] = 1e30  # finite, but its square is not
    assert inspect_gradients(parameters).norm == math.inf
    assert inspect_gradients([("a", nn.Parameter(torch.zeros(1)))]).absent == 1
    assert inspect_gradients(parameters[:1], agree=lambda flags: flags + 1).has_nan  # another process has found one


def test_half_precision_does_not_overflow_in_the_norm():
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    parameter.grad = torch.full((4,), 6e4, dtype=torch.float16)
    assert inspect_gradients([("a", parameter)]).norm == pytest.approx(1.2e5, rel=1e-3)


def test_the_rolling_copy_changes_places_and_back():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    copy = RollingCopy(layer.parameters(), [optimizer])

    def step():
        layer(torch.randn(4, 3)).sum().backward()
        copy.take()
        optimizer.step()
        optimizer.zero_grad()
        return [value.clone() for value in layer.parameters()], optimizer.state_dict()["state"][0]["exp_avg"].clone()

    first, moment = step()
    second, later = step()
    copy.swap()
    assert all(map(torch.equal, layer.parameters(), first))
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment)
    copy.swap()
    assert all(map(torch.equal, layer.parameters(), second))
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], later)
    assert all_finite(layer.parameters(), [optimizer])
    optimizer.state[layer.weight]["exp_avg"][0, 0] = math.inf
    assert not all_finite(layer.parameters(), [optimizer])


# --- what is done


@pytest.fixture(scope="module")
def rows():
    return batches(4 * 2 * (STEPS + 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_weights_that_the_last_step_poisoned_are_taken_back(rows, tmp_path, value):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == FAULT:
                dict(model.named_parameters())[PLANTED].data[0, 0] = value

    hit = Run(tmp_path, rows, plant=lambda trainer: trainer.add_callback(Poison()))
    assert hit.guard.counts["none"] == STEPS - 1 and hit.guard.failures == 0, hit.guard.counts
    assert all_finite(hit.model.parameters(), []) and hit.guard.stop_reason is None


def test_a_run_that_stays_bad_ends_with_good_parameters(rows, tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step >= FAULT:
                model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)

    hit = Run(tmp_path, rows, plant=lambda trainer: trainer.add_callback(Poison()))
    assert hit.guard.counts == {"none": FAULT, "skip": 3} and "3 batches in a row" in hit.guard.stop_reason
    assert hit.trainer.state.global_step == FAULT + 3 and (tmp_path / f"checkpoint-{FAULT + 3}").is_dir()
    assert_same(hit, Run(tmp_path, rows, steps=FAULT, plant=same_length(STEPS)))


def reference(rows, fault: int, scale: float, policy: GuardPolicy) -> dict[str, torch.Tensor]:
    """The policy's steps by hand: AdamW, a linear schedule, and at step `fault` one gradient times `scale`."""
    model = model_of()
    decayed = Trainer(model, TrainingArguments(output_dir="x", use_cpu=True)).get_decay_parameter_names(model)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[name] for name in named if name in decayed], "weight_decay": 0.0},
            {"params": [named[name] for name in named if name not in decayed], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    rate = 1.0
    for step in range(1, STEPS + 1):
        inputs = [row["input_ids"] for row in rows[2 * (step - 1) : 2 * step]]
        ids = torch.stack(inputs)
        model(input_ids=ids, labels=ids).loss.backward()
        if step == fault:
            named[PLANTED].grad.mul_(scale)
        norm = torch.nn.utils.get_total_norm([each.grad for each in named.values()])
        if norm > policy.exploding_norm:
            rate = policy.exploding_rate
            for each in named.values():
                each.grad.mul_(policy.exploding_clip / norm)
        elif norm >= policy.vanishing_norm:
            rate = min(1.0, rate + (1 - policy.redo_rate) / policy.recovery_steps)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (STEPS - step + 1) / STEPS * rate
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("scale", [1e6, 1e3])
def test_what_explodes_is_clipped_and_slows_the_run_down_for_a_while(rows, tmp_path, scale):
    policy = GuardPolicy(recovery_steps=2)
    hit = Run(tmp_path, rows, plant=gradient_fault(scale, 1, factor=True), policy=policy)
    assert hit.guard.counts == {"none": STEPS - 1, "clip": 1} and hit.guard.rate == 1.0
    expected = reference(rows, FAULT, scale, policy)
    for name, value in hit.weights.items():
        # gradients of key biases are rounding errors, which Adam makes steps of
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-5)


def test_explosions_in_too_many_epochs_end_the_run(tmp_path):
    few = batches(2)
    plant = gradient_fault(1e6, ALWAYS, factor=True)

    def every_step(trainer):
        dict(trainer.model.named_parameters())[PLANTED].register_hook(lambda gradient: gradient * 1e6)

    hit = Run(tmp_path, few, steps=9, plant=every_step, policy=GuardPolicy(exploding_epochs=2))
    assert hit.trainer.state.global_step == 3 and "3 epochs in a row" in hit.guard.stop_reason
    assert Run(tmp_path, few, steps=9, plant=plant).guard.stop_reason is None


def test_vanished_gradients_step_and_are_told_once(rows, tmp_path, caplog):
    def nothing(trainer):
        for parameter in trainer.model.parameters():
            parameter.register_hook(torch.zeros_like)

    with caplog.at_level("WARNING", logger="frankenlm.guard"):
        hit = Run(tmp_path, rows, plant=nothing)
    assert hit.guard.counts == {"vanishing": STEPS} and hit.guard.last.has_zero
    (told,) = [record.getMessage() for record in caplog.records if "vanished" in record.getMessage()]
    assert "initializer_range" in told and "ode_steps" not in told


def test_vanished_gradients_and_a_loss_that_stands_end_the_run(rows, tmp_path):
    guard = GradientGuard(GuardPolicy(vanishing_evaluations=2))
    guard.trainer = Run(tmp_path, rows, steps=1).trainer
    for vanished, loss, over in (
        (True, 2.0, False),
        (True, 2.0, False),
        (False, 2.0, False),
        (True, 1.0, False),
        (True, 1.0, False),
        (True, 1.5, True),
    ):
        guard._vanished_since_evaluation = vanished
        guard.on_evaluate(None, None, None, {"eval_loss": loss})
        assert (guard.stop_reason is not None) is over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tries": -1}, "tries=-1 must be a whole number of at least 0"),
        ({"failures_in_a_row": True}, "failures_in_a_row=True must be a whole number"),
        ({"redo_rate": 0.0}, r"redo_rate=0.0 must be a number in \(0, 1\]"),
        ({"exploding_clip": "1"}, "exploding_clip='1' must be a positive finite number"),
        ({"rolling_copy": 1}, "rolling_copy=1 must be true or false"),
        ({"exploding_norm": 0.5}, "exploding_clip=1.0 must not exceed exploding_norm=0.5"),
        ({"exploding_norm": math.nan}, "exploding_norm=nan must be a positive finite number"),
    ],
)
def test_policies_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        GuardPolicy(**options)


def test_a_policy_is_read_as_yaml():
    assert read_policy(None) == GuardPolicy()
    changed = read_policy("{tries: 1, exploding_norm: 1e2, rolling_copy: no}")
    assert (changed.tries, changed.exploding_norm, changed.rolling_copy) == (1, 100.0, False)
    for text, message in {
        "{trie: 1}": "--guard_policy: unknown key 'trie'. Did you mean 'tries'",
        "3": "--guard_policy '3': a mapping is expected",
        "{tries: x}": "--guard_policy: tries='x' must be a whole number",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_policy(text)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_overflow_of_fp16_is_the_scalers(rows, tmp_path, value):
    """It leaves the step out and lowers its scale, as without a guard."""

    def with_scaler(trainer):
        gradient_fault(value, 1)(trainer)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    hit = Run(tmp_path, rows, plant=with_scaler)
    assert hit.guard.counts["skip"] == 1 and hit.guard.stop_reason is None and hit.guard.failures == 0
    assert all_finite(hit.model.parameters(), []) and hit.trainer.accelerator.scaler.get_scale() == 4.0


def test_what_was_seen_since_the_last_log_line_survives_a_resume(rows, tmp_path):
    first = Run(tmp_path, rows, steps=1).guard
    first._window = [first.last, dataclasses.replace(first.last, has_nan=True, repair_action="skip")]
    saved = json.loads(json.dumps(first.state()))
    second = Run(tmp_path, rows, steps=1)
    second.trainer.state.stateful_callbacks = {"GradientGuard": saved}
    second.guard.on_train_begin(second.trainer.args, second.trainer.state, second.trainer.control)
    logs = {"loss": 1.5, "learning_rate": 0.1}
    second.guard._logged(logs)
    assert (logs["loss"], logs["has_nan"], logs["repair_action"]) == (3.0, 1.0, "skip")


def test_one_guard_a_trainer(rows, tmp_path):
    run = Run(tmp_path, rows, steps=1)
    with pytest.raises(ValueError, match="has a GradientGuard already"):
        GradientGuard().attach(run.trainer)
