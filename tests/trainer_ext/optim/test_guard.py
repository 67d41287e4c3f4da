"""The gradient guard: what it finds in one pass, what it does about it, and that nothing else changes."""

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from frankenlm.trainer_ext.optim.gradients import inspect_gradients
from frankenlm.trainer_ext.optim.guard import GradientGuard, GuardPolicy
from frankenlm.trainer_ext.optim.rolling_copy import RollingCopy, all_finite

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


class Run:
    """A run of a plain Trainer under the guard; its weights after it, and the guard."""

    def __init__(self, folder, rows, *, steps=STEPS, accumulation=1, bf16=False, policy=None, plant=None, dropout=0.0):
        self.model = model_of(dropout)
        args = TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
            max_steps=steps, learning_rate=1e-2, lr_scheduler_type="linear", train_sampling_strategy="sequential",
            logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=bf16, disable_tqdm=True,
            max_grad_norm=1.0, logging_nan_inf_filter=False,
        )  # fmt: skip
        self.trainer = Trainer(self.model, args, train_dataset=rows)
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


ALWAYS = 10**6


# --- one pass


def test_what_is_found_in_the_gradients():
    parameters = [(name, nn.Parameter(torch.zeros(2))) for name in "abcd"]
    for (_, parameter), gradient in zip(parameters, ([3.0, 0], [0, 4.0], [0, 0], None), strict=True):
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


def without(rows: list[dict], accumulation: int) -> list[dict]:
    """The rows without those of the faulty step."""
    size = 2 * accumulation
    return rows[: (FAULT - 1) * size] + rows[FAULT * size :]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_healthy_run_is_what_it_was(rows, tmp_path, accumulation, bf16):
    options = {"accumulation": accumulation, "bf16": bf16, "dropout": 0.1}
    guarded, plain = Run(tmp_path, rows, **options), Run(tmp_path, rows, policy=False, **options)
    assert_same(guarded, plain)
    losses = [[row["loss"] for row in run.trainer.state.log_history if "loss" in row] for run in (guarded, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_nan_that_does_not_come_again_leaves_no_trace(rows, tmp_path, accumulation, bf16):
    options = {"accumulation": accumulation, "bf16": bf16}
    hit, clean = Run(tmp_path, rows, plant=gradient_fault(math.nan, 1), **options), Run(tmp_path, rows, **options)
    assert hit.guard.counts == {"none": STEPS - 1, "retry": 1}
    assert_same(hit, clean)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_batch_that_stays_bad_is_as_if_it_had_not_been_seen(rows, tmp_path, accumulation, bf16, value):
    options = {"accumulation": accumulation, "bf16": bf16, "dropout": 0.1}
    hit = Run(tmp_path, rows, plant=gradient_fault(value, ALWAYS), **options)
    assert hit.guard.counts == {"none": STEPS - 1, "skip": 1} and hit.guard.rate == 1.0
    spared = Run(tmp_path, without(rows, accumulation), plant=same_length(STEPS), steps=STEPS - 1, **options)
    assert_same(hit, spared)


def same_length(steps: int):
    """Let a shorter run fall with the learning rate of one of `steps`."""

    def plant(trainer):
        original = trainer.create_scheduler
        trainer.create_scheduler = lambda num_training_steps, optimizer=None: original(steps, optimizer)

    return plant


def test_weights_that_the_last_step_poisoned_are_taken_back(rows, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == FAULT:
                dict(model.named_parameters())[PLANTED].data[0, 0] = math.nan

    hit = Run(tmp_path, rows, plant=lambda trainer: trainer.add_callback(Poison()))
    assert hit.guard.counts == {"none": STEPS - 1, "rollback": 1}
    assert all_finite(hit.model.parameters(), []) and hit.guard.stop_reason is None


def test_a_run_that_stays_bad_ends_with_good_parameters(rows, tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step >= FAULT:
                model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)

    hit = Run(tmp_path, rows, plant=lambda trainer: trainer.add_callback(Poison()))
    assert hit.guard.counts == {"none": FAULT, "skip": 3} and "3 batches in a row" in hit.guard.stop_reason
    assert hit.trainer.state.global_step == FAULT + 3 and hit.trainer.control.should_save
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
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


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
    for vanished, loss, over in ((True, 2.0, False), (True, 2.0, False), (False, 2.0, False), (True, 1.0, False),
                                 (True, 1.0, False), (True, 1.5, True)):  # fmt: skip
        guard._vanished_since_evaluation = vanished
        guard.on_evaluate(None, None, None, {"eval_loss": loss})
        assert (guard.stop_reason is not None) is over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tries": -1}, "tries=-1 must be a whole number of at least 0"),
        ({"failures_in_a_row": True}, "failures_in_a_row=True must be a whole number"),
        ({"redo_rate": 0.0}, "redo_rate=0.0 must lie in"),
        ({"exploding_norm": math.nan}, "exploding_norm=nan must be a positive finite number"),
    ],
)
def test_policies_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        GuardPolicy(**options)


def test_one_guard_a_trainer(rows, tmp_path):
    run = Run(tmp_path, rows, steps=1)
    with pytest.raises(ValueError, match="has a GradientGuard already"):
        GradientGuard().attach(run.trainer)
