"""Groups of tied embeddings, and the gain of norms."""

import pytest
import torch
from torch import nn

from frankenlm.degradation.weights.groups import gain_offset, select_group
from frankenlm.degradation.weights.tied import untie


def test_tied_embeddings_are_one_target_and_can_be_untied(tiny_model):
    model = tiny_model("llama_tied")
    both = select_group(model, "embed_only")
    assert [target.name for target in both.targets] == ["model.embed_tokens.weight"] and not both.needs_untie
    output = select_group(model, "embed_only", tied_policy="output_only")
    assert [target.canonical for target in output.targets] == ["text/lm_head.weight"] and output.needs_untie
    again = select_group(model, "lm_head", tied_policy="output_only")
    assert again.targets[0].name == output.targets[0].name
    entry = select_group(model, "embed_only+attn_only", tied_policy="input_only")
    assert entry.needs_untie and entry.targets[0].name == "model.embed_tokens.weight"
    assert not select_group(model, "attn_only", tied_policy="input_only").needs_untie

    ids, table = torch.arange(20)[None], model.model.embed_tokens.weight
    before = model(ids).logits
    tie_again = untie(model)
    assert output.targets[0].parameter is not entry.targets[0].parameter
    assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        output.targets[0].parameter.zero_()
    assert not model(ids).logits.any() and table.any()
    with pytest.raises(ValueError, match="not tied"):
        untie(model)
    tie_again()
    assert torch.equal(model(ids).logits, before) and model.config.tie_word_embeddings
    assert model.lm_head.weight is table


def test_tied_policy_for_models_that_are_not_tied(meta_model):
    with pytest.raises(ValueError, match="not tied; use group lm_head"):
        select_group(meta_model("llama"), "embed_only", tied_policy="output_only")
    assert not select_group(meta_model("llama"), "lm_head+embed_only", tied_policy="input_only").needs_untie
    with pytest.raises(ValueError, match="tied_policy='output' is not known. Did you mean 'output_only'"):
        select_group(meta_model("llama"), "embed_only", tied_policy="output")


@pytest.mark.parametrize(("name", "offset"), [("gemma3", 1.0), ("gemma2", 1.0), ("llama", 0.0), ("gpt2", 0.0)])
def test_the_gain_of_a_norm(name, offset, tiny_model, meta_model):
    for model in (tiny_model(name), meta_model(name)):
        group = select_group(model, "norm")
        assert {target.gain_offset for target in group.targets} == {offset}
        assert {target.gain_offset for target in select_group(model, "norm", norm_gain=False).targets} == {0.0}
        assert {target.gain_offset for target in select_group(model, "attn_only").targets} == {0.0}
    norm = model.get_submodule(group.targets[0].name.removesuffix(".weight"))
    assert norm.weight.device.type == "meta"  # the probe worked on a copy


def test_a_norm_that_cannot_be_asked_says_what_to_do():
    class NeedsMore(nn.LayerNorm):
        def forward(self, x, scale):
            return super().forward(x) * scale

    with pytest.raises(ValueError, match="cannot tell how NeedsMore scales.*norm_gain=False"):
        gain_offset(NeedsMore(8))
