"""Checkpoints that are cut short, damaged or of other sizes: one line, in every family, on every path in."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForSequenceClassification,
    InfinitoConfig,
    InfinitoForCausalLM,
    InfinitoModel,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
MODELS = {
    "frankenstein": lambda: FrankensteinForCausalLM(
        FrankensteinConfig(**SIZES, layer_pattern=["retnet"], num_hidden_layers=2, is_decoder=True)
    ),
    "infinito": lambda: InfinitoForCausalLM(InfinitoConfig(**SIZES, num_hidden_layers=2, memory_layers=[1])),
    "legacy_1bit": lambda: Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES)),
}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    MODELS[request.param]().save_pretrained(tmp_path)
    return tmp_path


def refusal(folder, **options) -> str:
    with pytest.raises(ValueError) as caught:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


def test_weights_that_are_damaged(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:4], whole[:100], whole[: len(whole) // 2], whole[:-1], b"\xff" * 1000, b"{}" * 9):
        file.write_bytes(content)
        assert "damaged or cut short" in refusal(saved)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"vocab_size": 77}, {"intermediate_size": 96}])
def test_a_configuration_of_another_size(changes, saved):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    text = refusal(saved)
    assert " in the checkpoint, but (" in text and str(*changes.values()) in text and "more)" in text
    with pytest.raises(RuntimeError):  # what transformers raises for it
        AutoModelForCausalLM.from_pretrained(saved)
    model, info = AutoModelForCausalLM.from_pretrained(saved, ignore_mismatched_sizes=True, output_loading_info=True)
    assert info["mismatched_keys"] and all(p.isfinite().all() for p in model.parameters())


def test_loading_information_is_given_where_it_is_asked_for(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    again, info = type(model).from_pretrained(saved, output_loading_info=True)
    assert not info["mismatched_keys"] and not info["missing_keys"]
    ids = torch.arange(9)[None]
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


def test_another_number_of_labels(tmp_path):
    FrankensteinForSequenceClassification(FrankensteinConfig(**SIZES, mamba_head_dim=16)).save_pretrained(tmp_path)
    load = FrankensteinForSequenceClassification.from_pretrained
    with pytest.raises(ValueError, match=r"classifier\.bias is \(2,\) in the checkpoint, but \(5,\)"):
        load(tmp_path, num_labels=5)
    assert load(tmp_path, num_labels=5, ignore_mismatched_sizes=True).classifier.out_features == 5


def test_a_stack_alone(tmp_path):
    MODELS["infinito"]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged or cut short"):
        InfinitoModel.from_pretrained(tmp_path)


def test_an_offloaded_convolution_of_the_other_direction(tmp_path):
    """It must be shifted, which offloaded weights cannot be: loading it as it is would be wrong in silence."""
    config = FrankensteinConfig(**SIZES, mamba_head_dim=16, embedding_conv_kernel=3, is_decoder=True)
    FrankensteinForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be shifted, but its weights are offloaded"):
        FrankensteinForSequenceClassification.from_pretrained(
            tmp_path, is_decoder=False, device_map={"": "disk"}, offload_folder=str(tmp_path / "offload")
        )
