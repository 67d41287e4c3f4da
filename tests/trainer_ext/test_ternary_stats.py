"""Zero fraction and flip rate of low-bit layers, against weights set by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.trainer_ext.callbacks import StepWindow
from frankenlm.trainer_ext.ternary_stats import LowBitProbe, low_bit_layers, weight_codes

ARGS = SimpleNamespace(logging_first_step=False)


def state(step):
    return SimpleNamespace(global_step=step, logging_steps=10, max_steps=100)


@pytest.fixture
def model():
    """Ten weights of a linear layer, ten of a table: scales 1, codes as written; and a layer that does not count."""
    linear, table = BitLinear(5, 2, bias=False), BitEmbedding(2, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, -2, 0, 0, 1], [1, -1, 1, 2, 0]]))
        table.weight.copy_(torch.tensor([[1.0, -1, 1, -1, 1], [1, -1, 1, -1, 1]]))
    return nn.ModuleDict({"linear": linear, "table": table, "full": nn.Linear(3, 3)})


def test_zeros_and_flips_of_a_logged_step(model):
    window = StepWindow()
    probe = LowBitProbe(window)
    probe.on_step_begin(ARGS, state(9), None, model=model)
    with torch.no_grad():
        model["linear"].weight[0, :3] = torch.tensor([-2.0, -2.0, 0.1])  # one code changes, the others stay
        model["table"].weight[1, 4] = -1.0
    probe.on_step_end(ARGS, state(10), None, model=model)
    values = window.drain(0, torch.device("cpu"))
    assert values["zero_fraction"] == 3 / 20 and values["flip_rate"] == 2 / 20
    assert "zero_fraction" not in window.drain(0, torch.device("cpu"))


def test_other_steps_and_other_models_are_left_alone(model):
    window = StepWindow()
    probe = LowBitProbe(window)
    for step, module in ((3, model), (9, nn.Linear(2, 2))):
        probe.on_step_begin(ARGS, state(step), None, model=module)
        probe.on_step_end(ARGS, state(step + 1), None, model=module)
        assert not window.low_bit


@pytest.mark.parametrize(("scheme", "levels"), [("int2", 4), ("int2_pow", 4), ("ternary_twn", 3), ("binary", 2)])
def test_codes_keep_their_levels_apart(scheme, levels):
    layer = BitLinear(50, 40, scheme=scheme, scale_axis="row")
    assert len(weight_codes(layer).unique()) == levels == len(layer.quantized_weight()[0].unique())
    assert list(low_bit_layers(nn.Sequential(layer, nn.ReLU()))) == ["0"]
