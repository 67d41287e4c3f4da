"""What computes logits from hidden states and `get_output_embeddings()` on its own, as TRL does, gets the model's."""

import pytest
import torch
from peft import LoraConfig, RoadConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from frankenlm.modeling import FrankensteinConfig, Legacy1BitConfig
from frankenlm.modeling.quantizer_ternary import pack_model
from tiny_infinito import tiny_infinito
from tiny_legacy import KINDS
from tiny_legacy import TINY as TINY_LEGACY

VOCAB = 61
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "layer_pattern": ["titan_attn", "retnet"],
    "is_decoder": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
ONE_MATRIX = {
    "plain": FrankensteinConfig(**TINY),
    "factorised": FrankensteinConfig(**TINY, factorized_embedding_dim=8),
    "factorised, no bias": FrankensteinConfig(**TINY, factorized_embedding_dim=8, head_bias=False),
    "factorised, untied": FrankensteinConfig(**TINY, factorized_embedding_dim=8, tie_word_embeddings=False),
    "ternary layers, plain head": FrankensteinConfig(**TINY, factorized_embedding_dim=8, use_bitnet=True),
    "infinito": tiny_infinito(),
    "legacy's twin": Legacy1BitConfig(**TINY_LEGACY | KINDS["twin"]),
    "legacy-base": Legacy1BitConfig(**TINY_LEGACY | KINDS["modern"]),
}
NO_MATRIX = {
    "legacy": (Legacy1BitConfig(**TINY_LEGACY), "bitnet_head=True"),
    "ternary head": (
        FrankensteinConfig(**TINY, factorized_embedding_dim=8, use_bitnet=True, bitnet_head=True),
        "bitnet_head=True",
    ),
    "transform": (FrankensteinConfig(**TINY, head_transform=True), "head_transform=True"),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases of zero would hide themselves
        for parameter in model.lm_head.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
    return model


def ids_of(rows=2, length=9):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", ONE_MATRIX)
def test_logits_are_hidden_states_times_one_matrix(case):
    model = build(ONE_MATRIX[case]).double()
    head, ids = model.get_output_embeddings(), ids_of()
    hidden = model.model(ids).last_hidden_state
    logits = hidden @ head.weight.T if head.bias is None else hidden @ head.weight.T + head.bias
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-10, atol=1e-10)
    assert head.weight.shape == (head.out_features, head.in_features) == (VOCAB, 32)
    assert any(module is head for module in model.modules())


@pytest.mark.parametrize("case", ONE_MATRIX)
def test_loss_and_gradients_by_trl(case):
    expected, model = build(ONE_MATRIX[case]), build(ONE_MATRIX[case])
    ids = ids_of()
    loss = expected(ids, labels=ids).loss
    loss.backward()
    add_fused_lm_head(model)
    fused = model(ids, labels=ids, fused_lm_head=True).loss
    fused.backward()
    torch.testing.assert_close(fused, loss, rtol=1e-5, atol=0)
    found = dict(model.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", NO_MATRIX)
def test_heads_that_are_no_matrix_are_refused(case):
    config, reason = NO_MATRIX[case]
    model, ids = build(config), ids_of()
    add_fused_lm_head(model)
    with pytest.raises(AttributeError, match=f"{reason}.*Call the model for them"):
        model(ids, labels=ids, fused_lm_head=True)
    assert model(ids, labels=ids).loss.isfinite()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_of_the_head_are_in_its_matrix():
    model = build(ONE_MATRIX["factorised"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head.decoder", "lm_head.projection"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = ids_of()
    head = model.get_output_embeddings()
    logits = model.model(ids).last_hidden_state @ head.weight.T + head.bias
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert head is model.lm_head
    head.weight.sum().backward()
    assert all(parameter.grad is not None for name, parameter in adapted.named_parameters() if "lora_" in name)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_new_tokens_of_an_adapter_are_in_the_matrix():
    """PEFT wraps a tied table's matrix in layers that have no bias of their own."""
    model = build(ONE_MATRIX["factorised"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", trainable_token_indices=[5, 6]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "delta" in name:
                parameter.normal_()
    head, ids = model.get_output_embeddings(), ids_of()
    logits = model.model(ids).last_hidden_state @ head.weight.T + head.bias
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("case", ["factorised", "plain", "transform"])
def test_ties_outlast_a_merge(case):
    """PEFT asks whether the head's weight is the table's, and writes its answer into the configuration."""
    model = build(ONE_MATRIX[case] if case in ONE_MATRIX else NO_MATRIX[case][0])
    assert model.config.tie_word_embeddings
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    expected = adapted(ids_of()).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids_of()).logits, expected, rtol=1e-4, atol=1e-4)
    assert merged.config.tie_word_embeddings == (merged.lm_head.decoder.weight is merged.get_input_embeddings().weight)
    assert merged.get_output_embeddings() is (merged.lm_head.decoder if case == "plain" else merged.lm_head)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("case", ["moe", "infinito"])
def test_all_linear_leaves_out_what_decides(case):
    """Routers, gates, poolings and importances; unless they are named, or something else is left out."""
    config = tiny_infinito() if case == "infinito" else FrankensteinConfig(**TINY, num_experts=3)
    deciding = {"moe": {"router"}, "infinito": {"gate", "pooling", "importance"}}[case]

    def adapted(**options):
        model = get_peft_model(build(config), LoraConfig(r=2, **options))
        return {name.rpartition(".")[2] for name in model.targeted_module_names}

    found = adapted(target_modules="all-linear")
    assert "q_proj" in found and not found & (deciding | {"decoder"})
    assert adapted(target_modules="all-linear", exclude_modules=["q_proj"]) >= deciding
    assert adapted(target_modules=sorted(deciding)) == deciding


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_methods_that_cannot_leave_anything_out_go_on():
    """Their configurations have no `exclude_modules`."""
    config = RoadConfig(target_modules="all-linear", group_size=2)
    assert not hasattr(config, "exclude_modules")
    adapted = get_peft_model(build(FrankensteinConfig(**TINY, num_experts=4)), config)
    assert adapted(ids_of()).logits.isfinite().all()


def test_sharding_is_told_the_matrix(monkeypatch):
    model = build(ONE_MATRIX["factorised"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_packed_matrix_stands_for_itself():
    packed = pack_model(build(NO_MATRIX["legacy"][0]))
    assert packed.get_output_embeddings() is packed.lm_head.decoder


@pytest.mark.parametrize("case", [*ONE_MATRIX, *NO_MATRIX])
def test_every_head_resizes(case):
    model = build({**ONE_MATRIX, **{name: config for name, (config, _) in NO_MATRIX.items()}}[case])
    ids = ids_of()
    before = model(ids).logits
    kind = type(model.lm_head.decoder)
    model.resize_token_embeddings(70)
    after = model(ids).logits
    assert after.shape[-1] == 70 == model.lm_head.decoder.out_features and type(model.lm_head.decoder) is kind
    if not hasattr(model.lm_head.decoder, "rounds_its_weight"):  # a ternary matrix has another mean now
        torch.testing.assert_close(after[..., :VOCAB], before, rtol=1e-5, atol=1e-5)
