"""Packed rows stay apart: every document gets, in every form of borders, what it gets by itself."""

import pytest
import torch

from causal_cases import CONV, HYBRID
from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
    list_presets,
    read_preset,
)
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS
from frankenlm.modeling.quantizer_ternary import pack_model
from packed_rows import FORMS, PADS, PackedRows, assert_apart, distance, gradients
from tiny_infinito import ATTENTION_SLOTS

every_mixer = pytest.mark.parametrize("mixer", [*sorted(MIXERS), "titan_memory"])
every_direction = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
# Blocks of attention (128 queries) and segments of the scans (512 tokens) end within documents and between them; the
# first documents begin together and end apart.
LONG = ([300, 5, 130, 60, 70, 1, 50, 20], [200, 76, 250, 100, 10])


# Norms act on each token by itself: one of them will do for the quick run.
@every_mixer
@every_direction
@pytest.mark.parametrize(
    "norm", ["rms_norm", *(pytest.param(norm, marks=pytest.mark.slow) for norm in sorted(NORMS) if norm != "rms_norm")]
)
def test_documents_stay_apart(mixer, is_decoder, norm, tiny_model):
    model = tiny_model(mixer, norm, is_decoder, dtype=torch.float64)
    for form in FORMS:
        assert_apart(model, form, 1e-10)


@every_mixer
@every_direction
def test_documents_stay_apart_in_single_precision(mixer, is_decoder, tiny_model):
    """Gradients differ by no more than rounding: what a document's own differ by from those in double precision."""
    model = tiny_model(mixer, "rms_norm", is_decoder, gain=1.0)
    packed, results = PackedRows(pads=PADS), []
    weights = torch.randn(*packed.ids.shape, 61, generator=torch.Generator().manual_seed(7))
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        logits = packed.one_by_one(lambda ids: model(ids, use_cache=False).logits)
        results.append((logits, gradients(model, logits, weights.to(dtype))))
        if dtype == torch.float32:
            actual = packed.real(model(use_cache=False, **packed.inputs("position_ids")).logits)
            found = gradients(model, actual, weights)
    (logits, wanted), (_, exact) = results
    assert distance(actual, logits) <= 1e-6
    rounding = max(distance(gradient.double(), exact[name]) for name, gradient in wanted.items())
    assert rounding < 1e-4
    for name, gradient in wanted.items():
        assert distance(found[name], gradient) <= max(1e-6, 3 * rounding), name


@every_mixer
@every_direction
@pytest.mark.parametrize("window", [None, 150])
def test_long_documents_stay_apart(mixer, is_decoder, window, tiny_model):
    fields = {"max_position_embeddings": 700, "attention_window": window, "hope_damping": 0.3}
    model = tiny_model(mixer, "rms_norm", is_decoder, dtype=torch.float64, **fields)
    assert_apart(model, "seq_idx", 1e-10, lengths=LONG, pads=None, with_gradients=False)
    assert_apart(model, "cu_seq_lens", 1e-10, lengths=LONG[:1], with_gradients=window is None)


@every_direction
@pytest.mark.parametrize(
    "extra",
    [
        {"factorized_embedding_dim": 8, "embedding_conv_kernel": 3},
        {"factorized_embedding_dim": 8, "embedding_conv_kernel": 4, "embedding_conv_depthwise": True},
        {"num_experts": 4},
        {"num_loops": 2, "loop_embedding": True},
        {"use_bitnet": True},
        {"position_type": "learned"},
        {"attention_window": 4},
        {"attention_window": 30},
        {"ode_solver": "rk4", "ode_time_input": True},
        {"norm_style": "post"},
        {"use_bias": True},
        {"chunk_size": 64, "memory_chunk": 64},
        {"chunk_size": 1, "memory_chunk": 1},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_documents_stay_apart_in_the_hybrid(extra, is_decoder, tiny_model):
    model = tiny_model(HYBRID, "layer_norm", is_decoder, dtype=torch.float64, **extra)
    assert_apart(model, "seq_idx", 1e-10, seed=1)  # at others a rounded activation of BitLinear stands on the edge


TINY_PRESET = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
OF_FRANKENSTEIN = {"vocab_size": 61, "retention_heads": 2, "mamba_head_dim": 8, "mamba_state": 8, "chunk_size": 8}
MODELS = {
    "frankenstein": (FrankensteinConfig, FrankensteinForMaskedLM),
    "infinito": (InfinitoConfig, InfinitoForCausalLM),
    "legacy_1bit": (Legacy1BitConfig, Legacy1BitForCausalLM),
}


def build_preset(name, enliven, **fields):
    model_type = read_preset(name).model_type
    config_class, model_class = MODELS[model_type]
    fields = TINY_PRESET | (OF_FRANKENSTEIN if model_type == "frankenstein" else {}) | fields
    config = config_class.from_preset(name, **fields)
    if config.is_decoder and model_type == "frankenstein":
        model_class = FrankensteinForCausalLM
    torch.manual_seed(0)
    return enliven(model_class(config).eval()).double()


@pytest.mark.parametrize("name", list_presets())
def test_documents_stay_apart_in_every_preset(name, enliven):
    fields = {"factorized_embedding_dim": 8} if read_preset(name).model.get("factorized_embedding_dim") else {}
    assert_apart(
        build_preset(name, enliven, **fields), "position_ids", 1e-10, seed=1
    )  # no activation stands on an edge


@pytest.mark.parametrize("slots", [2, 5, 40])
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("fields", [{}, {**ATTENTION_SLOTS, "memory_segment": 2}], ids=["slots", "attention_slots"])
def test_documents_have_memories_of_their_own(slots, is_training, fields, build_infinito):
    """Few slots are overwritten within a document; many would hold all the documents of a row."""
    model = build_infinito(**fields | {"memory_slots": slots}).train(is_training)
    for form in FORMS:
        assert_apart(model, form, 1e-10)


@pytest.mark.parametrize("kind", ["legacy", "modern", "window"])
def test_documents_stay_apart_in_legacy_1bit(kind, build_legacy):
    assert_apart(build_legacy(kind), "seq_idx", 1e-10)


def test_documents_stay_apart_in_packed_models(tiny_model):
    """Two bits a weight; the integers of an activation are the same, whatever lies beside it."""
    model = tiny_model(HYBRID, "rms_norm", True, use_bitnet=True, gain=1.0)
    pack_model(model)
    for form in FORMS:
        assert_apart(model, form, 1e-6, with_gradients=False)


@every_direction
def test_documents_stay_apart_under_gradient_checkpointing(is_decoder, tiny_model):
    model = tiny_model(HYBRID, "rms_norm", is_decoder, dtype=torch.float64, num_loops=2, **CONV).train()
    model.activation_checkpointing_enable()
    assert_apart(model, "position_ids", 1e-10)


@every_direction
def test_embeddings_in_place_of_ids(is_decoder, tiny_model):
    model, packed = tiny_model(HYBRID, "rms_norm", is_decoder, dtype=torch.float64), PackedRows()
    rows = model.get_input_embeddings()(packed.ids)
    with torch.no_grad():
        expected = packed.one_by_one(lambda ids: model(ids, use_cache=False).logits)
        actual = model(inputs_embeds=rows, use_cache=False, **packed.borders("seq_idx")).logits
    assert distance(actual, expected) <= 1e-10
