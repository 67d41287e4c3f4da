"""Which layers an adapter stands beside, in every family."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel

from frankenlm.modeling import (
    FAMILIES,
    FrankensteinConfig,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
)
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.optim.lora import add_lora, lora_targets

MIXERS = {"q_proj", "k_proj", "v_proj", "o_proj"}
FEEDFORWARD = {"up_proj", "down_proj"}
# family -> its configuration, the class that makes it, and the layers that learn
CASES = {
    "frankenstein causal": (
        lambda: FrankensteinConfig.from_preset("mini", is_decoder=True),
        AutoModelForCausalLM,
        {*MIXERS, *FEEDFORWARD, "g_proj", "in_proj", "out_proj"},
    ),
    "frankenstein mlm": (
        lambda: FrankensteinConfig.from_preset("tinybert"),
        AutoModelForMaskedLM,
        {*MIXERS, *FEEDFORWARD},
    ),
    "infinito": (
        lambda: InfinitoConfig.from_preset("infinito-small"),
        AutoModelForCausalLM,
        {*MIXERS, *FEEDFORWARD},
    ),
    "legacy_1bit": (
        lambda: Legacy1BitConfig.from_preset("legacy-1bit-base"),
        AutoModelForCausalLM,
        {*MIXERS, *FEEDFORWARD},
    ),
}


def on_meta(family):
    config, auto_model, _ = CASES[family]
    with torch.device("meta"):
        return auto_model.from_config(config())


def ends(names) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("family", CASES)
def test_the_linear_layers_of_the_stack_learn_and_nothing_else(family):
    model = on_meta(family)
    found = lora_targets(model, None)
    assert ends(found) == CASES[family][2]
    left_out = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)} - set(found)
    known = {"router", "gate", "pooling", "importance", "decoder", "projection", "transform", "dense"}
    assert ends(left_out) <= known, "what is left out decides, pools, embeds or is a head"


def test_every_family_is_walked():
    assert {family.config_class.model_type for family in FAMILIES} == {
        make().model_type for make, _, _ in CASES.values()
    }


def test_named_layers():
    model = on_meta("frankenstein causal")
    assert lora_targets(model, ["router", "q_proj", "router"]) == ["router", "q_proj"]
    whole = next(name for name, _ in model.named_modules() if name.endswith("layers.0.mixer.q_proj"))
    assert lora_targets(model, [whole, "embed_tokens"]) == [whole, "embed_tokens"]
    for name, message in (("q_prj", r"Did you mean 'q_proj'\?"), ("proj", "Known: .*router"), ("norm_f", "Known")):
        with pytest.raises(UserError, match=f"--lora_targets {name}: no layer of that name.*{message}"):
            lora_targets(model, ["q_proj", name])
    with pytest.raises(UserError, match="no linear layers inside its stack"):
        lora_targets(torch.nn.ReLU(), None)


def test_layers_that_store_their_weight_the_other_way_round(tmp_path):
    """GPT-2's Conv1D: beside it B A is added as beside any layer, and merging is exact."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=16)).eval()
    adapted = add_lora(model, "owner/base", rank=2, alpha=4, dropout=0.0).eval()
    config = adapted.active_peft_config
    assert config.base_model_name_or_path == "owner/base" and config.task_type == "CAUSAL_LM"
    assert ends(adapted.targeted_module_names) == {"c_attn", "c_proj", "c_fc"}
    learned = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert learned and all(".lora_" in name for name in learned)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = adapted(ids).logits
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        unmerged = adapted(ids).logits
        assert (unmerged - before).abs().max() > 0.01
        torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, unmerged, atol=1e-5, rtol=0)


def test_a_pooling_learns_when_it_is_named():
    memory = {"memory_layers": [1], "memory_slots": 2, "memory_segment": 2, "memory_heads": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = InfinitoConfig(vocab_size=20, **sizes, **memory)
    adapted = add_lora(InfinitoForCausalLM(config), "base", rank=1, alpha=1, dropout=0.0, targets=["pooling"])
    assert ends(adapted.targeted_module_names) == {"pooling"}
