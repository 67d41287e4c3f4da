"""The moving average of the weights: its definition, what enters it, and that it leaves the weights alone."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from frankenlm.trainer_ext.optim.weight_average import FILE, WeightAverage


def follow(average, model, steps, start=0):
    """Let a model wander, deterministically, and return its weights after each step in float64."""
    path = []
    for step in range(start, start + steps):
        average.on_pre_optimizer_step(None, None, None)
        with torch.no_grad():
            for index, weight in enumerate(model.parameters()):
                weight += torch.sin(torch.arange(weight.numel()) + index + step).reshape(weight.shape)
        average.on_step_end(None, None, None)
        path.append([weight.detach().double().clone() for weight in model.parameters()])
    return path


def expected(first, path, decay):
    """The definition, in float64."""
    averages = [value.clone() for value in first]
    for step, weights in enumerate(path, 1):
        d = min(decay, (1 + step) / (10 + step))
        averages = [d * old + (1 - d) * new for old, new in zip(averages, weights, strict=True)]
    return averages


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_definition(model, decay, dtype):
    model.to(dtype)
    first = [weight.detach().double().clone() for weight in model.parameters()]
    average = WeightAverage(model, decay, lambda: False)
    path = follow(average, model, 7)
    own = [weight.detach().clone() for weight in model.parameters()]
    with average.in_place():
        for weight, value in zip(model.parameters(), expected(first, path, decay), strict=True):
            torch.testing.assert_close(weight.double(), value.to(dtype).double(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(weight, value) for weight, value in zip(model.parameters(), own, strict=True))


def test_looking_at_it_changes_nothing(model, tmp_path):
    twin = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    twin.load_state_dict(model.state_dict())
    looked_at, left_alone = WeightAverage(model, 0.9, lambda: False), WeightAverage(twin, 0.9, lambda: False)
    for step in range(4):
        follow(looked_at, model, 1, step)
        follow(left_alone, twin, 1, step)
        with looked_at.in_place():
            pass
    looked_at.save(tmp_path)
    first = load_file(tmp_path / FILE)
    left_alone.save(tmp_path)
    second = load_file(tmp_path / FILE)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_step_poisoned_does_not_enter(model):
    average = WeightAverage(model, 0.9, lambda: False)
    follow(average, model, 2)
    healthy = [weight.detach().clone() for weight in model.parameters()]
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    average.on_step_end(None, None, None)
    with average.in_place():
        assert all(weight.isfinite().all() for weight in model.parameters())
    assert torch.equal(model[0].weight[1:], healthy[0][1:]) and model[0].weight[0, 0].isnan()


def test_skipped_steps_do_not_count(model, tmp_path):
    average = WeightAverage(model, 0.9, lambda: True)
    follow(average, model, 3)
    average.save(tmp_path)
    assert average.steps == 0


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_impossible_decays_are_refused(model, decay):
    with pytest.raises(ValueError, match=r"ema_decay=.*between 0 and 1"):
        WeightAverage(model, decay, lambda: False)


def test_it_is_taken_up_again(model, tmp_path, caplog):
    average = WeightAverage(model, 0.9, lambda: False)
    follow(average, model, 3)
    average.save(tmp_path)
    again = WeightAverage(model, 0.9, lambda: False)
    again.resume(tmp_path)
    with average.in_place():
        first = [weight.detach().clone() for weight in model.parameters()]
    with again.in_place():
        assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))
    assert again.steps == 3
    with pytest.raises(ValueError, match="of other parameters"):
        WeightAverage(nn.Linear(2, 2), 0.9, lambda: False).resume(tmp_path)
    again.resume(tmp_path / "elsewhere")
    assert "has no average of the weights" in caplog.text
    with again.in_place():
        pass
