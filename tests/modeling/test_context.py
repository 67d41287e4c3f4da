"""SequenceContext: what a mask and given positions become; and which attention weights a model returns."""

import pytest
import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.modeling.context import SequenceContext, zero_pads

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])


def build(**inputs):
    return SequenceContext.build(batch_size=2, length=5, device=MASK.device, is_causal=True, **inputs)


def test_positions_count_real_tokens():
    assert build(attention_mask=MASK).position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert build(attention_mask=torch.ones(2, 5)).mask is None


def test_pads_take_the_position_before_them_when_positions_are_given():
    """generate() numbers left pads 1; ids that fall there would cost hyperbolic attention its fast form."""
    given = torch.tensor([[1, 1, 0, 1, 2], [7, 8, 9, 1, 1]])
    context = build(attention_mask=MASK, position_ids=given)
    assert context.position_ids.tolist() == [[0, 0, 0, 1, 2], [7, 8, 9, 9, 9]]
    assert not context.is_contiguous


@pytest.mark.parametrize(("name", "shape"), [("attention_mask", (2, 4)), ("position_ids", (3, 5))])
def test_wrong_shape_is_named(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape \({shape[0]}, {shape[1]}\)"):
        build(**{name: torch.ones(shape, dtype=torch.long)})


def test_pads_are_zero_even_where_a_value_is_not_a_number():
    x = torch.full((2, 5, 3), float("nan"))
    assert torch.equal(zero_pads(x, MASK.bool()).isnan().all(-1), MASK.bool())


@pytest.mark.parametrize(("implementation", "maps"), [("eager", 3), ("sdpa", 0)])
def test_attention_maps_come_from_eager_attention_alone(implementation, maps):
    """One a standard, Titan and sigmoid layer; none under sdpa, even where a mixer computes weights anyway."""
    pattern = ["standard_attn", "titan_attn", "sigmoid_attn", "retnet"]
    config = FrankensteinConfig(
        vocab_size=30,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=4,
        layer_pattern=pattern,
        intermediate_size=16,
        attn_implementation=implementation,
    )
    output = FrankensteinForMaskedLM(config).eval()(torch.arange(9)[None], output_attentions=True)
    assert [weights.shape for weights in output.attentions] == [(1, 2, 9, 9)] * maps
    assert output.hidden_states is None
