"""bitsandbytes in 8 and 4 bits: what is quantised, what is left whole by default, and the numbers that come out."""

import logging

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from frankenlm.modeling import FrankensteinConfig, FrankensteinForSequenceClassification
from peer_cells import REFUSED, cells_of
from peer_models import FAMILIES, SIZES, logits_of, open_peer, some_ids

# bitsandbytes and kernels it would like to have speak for themselves
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore:.*gemm_4bit_forward.*")

# What is in full precision in each family, by the ends of the layers' names
WHOLE = {
    "encoder": {"router", "in_proj", "out_proj", "decoder", "projection"},
    "decoder": {"router", "in_proj", "out_proj", "decoder", "projection"},
    "standard": {"decoder", "dense"},
    "infinito": {"gate", "importance", "pooling", "o_proj", "decoder"},  # o_proj: of the memory
}
FEW = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def in_few_bits(family, folder, bits):
    model = open_peer(family, folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # that path computes in bfloat16
    return model


def quantised(model) -> dict[str, torch.nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FEW)}


def with_dequantised_weights(family, folder, model):
    """The model in full precision, with the weights that bitsandbytes' layers of 4 bits stand for."""
    by_hand = open_peer(family, folder)
    with torch.no_grad():
        for name, layer in quantised(model).items():
            by_hand.get_submodule(name).weight.copy_(dequantize_bnb_weight(layer.weight))
    return by_hand


def is_no_work(family, cell, folder, bits, caplog) -> bool:
    """Whether the cell says that nothing is quantised, or refused; held here."""
    if cell.verdict == REFUSED:
        with pytest.raises(ValueError, match=cell.message):
            in_few_bits(family, folder, bits)
    elif cell.message:
        model, whole = in_few_bits(family, folder, bits), open_peer(family, folder)
        assert cell.message in caplog.text and not quantised(model)
        inputs = some_ids(whole)
        assert torch.equal(logits_of(model, **inputs), logits_of(whole, **inputs))
    return bool(cell.message)


def in_eight_bits(x: torch.Tensor) -> torch.Tensor:
    """LLM.int8 of x (..., I): each row in 255 levels, but for columns with a value of 6 or more, which stay."""
    x = x.half()
    stays = (x.abs() >= 6).flatten(0, -2).any(0)
    kept = torch.where(stays, 0, x).float()
    step = kept.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return torch.where(stays, x.float(), (kept / step).round() * step)


@cells_of("bits8")
def test_eight_bits(family, cell, saved, caplog):
    """Each layer is the product of rounded inputs and rounded weights; a model of them is near the whole one."""
    if is_no_work(family, cell, saved(family), 8, caplog):
        return
    model, whole = in_few_bits(family, saved(family), 8), open_peer(family, saved(family))
    inputs, errors = some_ids(whole), []

    def compare(layer, args, output):
        weight = dequantize_bnb_weight(layer.weight, layer.state).float()
        bias = None if layer.bias is None else layer.bias.float()
        expected = torch.nn.functional.linear(in_eight_bits(args[0]), weight, bias)
        errors.append((output.float() - expected).norm() / expected.norm().clamp_min(1e-6))

    for layer in quantised(model).values():
        layer.register_forward_hook(compare)
    found = logits_of(model, **inputs)
    assert len(errors) >= len(quantised(model)) > 10 and max(errors) < 5e-3
    expected = logits_of(whole, **inputs)
    assert 1e-3 * expected.norm() < (found - expected).norm() < 0.3 * expected.norm()


@cells_of("bits4")
def test_four_bits(family, cell, saved, caplog):
    if is_no_work(family, cell, saved(family), 4, caplog):
        return
    model, whole = in_few_bits(family, saved(family), 4), open_peer(family, saved(family))
    inputs = some_ids(whole)
    by_hand = logits_of(with_dequantised_weights(family, saved(family), model), **inputs)
    assert (logits_of(model, **inputs) - by_hand).norm() < 1e-4 * by_hand.norm()
    assert (logits_of(whole, **inputs) - by_hand).norm() > 1e-2 * by_hand.norm(), "some weight is rounded"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", WHOLE)
def test_what_decides_or_is_tied_is_left_whole(family, bits, saved):
    model, whole = in_few_bits(family, saved(family), bits), open_peer(family, saved(family))
    linear = {name for name, layer in whole.named_modules() if isinstance(layer, torch.nn.Linear)}
    left = linear - quantised(model).keys()
    assert {name.rpartition(".")[2] for name in left} == WHOLE[family]
    assert all("layers" not in name or name.endswith(("router", "in_proj", "out_proj")) for name in left)
    for name in left:
        assert torch.equal(model.get_submodule(name).weight, whole.get_submodule(name).weight)
    if model.config.tie_word_embeddings:
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight


def test_a_new_head_can_be_trained(tmp_path):
    """A classifier that is made anew stays whole, or it could not learn."""
    config = FrankensteinConfig(vocab_size=99, num_labels=3, layer_pattern=["retnet"], **SIZES)
    FrankensteinForSequenceClassification(config).save_pretrained(tmp_path)
    few = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=few)
    assert quantised(model) and not any("model." not in name for name in quantised(model))


def test_the_warning_says_what_there_was(saved, caplog):
    with caplog.at_level(logging.WARNING):
        in_few_bits("legacy", saved("legacy"), 8)
    assert "Its linear layers are 13 BitLinear: ternary layers round" in caplog.text
    assert "`frankenlm pack`" in caplog.text


def test_layers_that_this_cpu_cannot_run_are_named(tmp_path, caplog):
    FrankensteinForSequenceClassification(
        FrankensteinConfig(vocab_size=99, layer_pattern=["retnet"], **SIZES | {"hidden_size": 48})
    ).save_pretrained(tmp_path)
    few = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=few).eval()
    ids = {"input_ids": torch.arange(5)[None]}
    if next(iter(quantised(model).values())).support_avx512bf16_for_cpu:
        assert "q_proj (48 to 48). Name them in llm_int8_skip_modules" in caplog.text
        with pytest.raises((RuntimeError, AssertionError)):
            logits_of(model, **ids)
    else:
        assert "such as" not in caplog.text and logits_of(model, **ids).isfinite().all()


def test_every_family_is_in_the_lists():
    assert WHOLE.keys() == FAMILIES.keys() - {"legacy", "packed"}
