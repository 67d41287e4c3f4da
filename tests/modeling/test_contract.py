"""What every mixer promises, with every norm, in both directions: direction, padding, batching, forms."""

import importlib

import pytest
import torch

from frankenlm.modeling import FrankensteinForSequenceClassification
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS

from .conftest import WALKED, crossed

C = 8  # chunk_size of the tiny models
LENGTH = 2 * C + 5
HYBRID = ("retnet", "titan_attn", "mamba", "ode")

every_mixer = pytest.mark.parametrize("mixer", WALKED)
every_norm = pytest.mark.parametrize("norm", sorted(NORMS))
every_direction = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
every_case = pytest.mark.parametrize(("mixer", "norm", "is_decoder"), crossed())


def logits_and_states(model, ids, **inputs):
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, **inputs)
    return output.logits, output.hidden_states


def padded_batch(rows, length, side, tokens):
    """Rows of unequal length, padded on one side with tokens that mean something if they are looked at."""
    ids, mask = tokens(len(rows), length, seed=9), torch.zeros(len(rows), length, dtype=torch.long)
    places = [slice(0, len(row)) if side == "right" else slice(length - len(row), length) for row in rows]
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[index, place], mask[index, place] = row, 1
    return ids, mask, places


def assert_future_does_not_leak(model, tokens, tolerance):
    """`tolerance` is relative to the largest logit: experts multiply their tokens together, in groups that change."""
    ids, other = tokens(2, LENGTH), tokens(2, LENGTH, seed=1)
    reference, _ = logits_and_states(model, ids)
    for t in (1, C - 1, C, C + 1, LENGTH - 1):
        changed = torch.cat([ids[:, :t], (ids[:, t:] + 1 + other[:, t:] % 30) % 61], dim=1)
        difference = (logits_and_states(model, changed)[0] - reference).abs()
        assert difference[:, :t].max() <= tolerance * reference.abs().max(), f"t={t}"
        assert difference[:, t:].max() > 0.1, f"t={t}"
        only_t = ids.clone()
        only_t[:, t] = (ids[:, t] + 7) % 61
        if t < LENGTH - 1:
            later = (logits_and_states(model, only_t)[0] - reference)[:, t + 1 :].abs()
            assert later.max() > 1e-3, f"token {t} reaches nothing after it"


@every_mixer
@every_norm
def test_causal_model_never_looks_ahead(mixer, norm, tiny_model, tokens):
    assert_future_does_not_leak(tiny_model(mixer, norm, is_decoder=True), tokens, 0.0)


@pytest.mark.parametrize(
    "extra, tolerance",
    [
        ({"factorized_embedding_dim": 8, "embedding_conv_kernel": 3}, 0.0),
        ({"factorized_embedding_dim": 8, "embedding_conv_kernel": 4, "embedding_conv_depthwise": True}, 0.0),
        ({"num_experts": 4}, 1e-6),
        ({"num_loops": 2, "loop_embedding": True}, 0.0),
        ({"use_bitnet": True}, 0.0),
        ({"ode_solver": "rk4"}, 0.0),
    ],
)
def test_causal_hybrid_never_looks_ahead(extra, tolerance, tiny_model, tokens):
    assert_future_does_not_leak(tiny_model(HYBRID, "rms_norm", is_decoder=True, **extra), tokens, tolerance)


@every_mixer
def test_bidirectional_model_looks_both_ways(mixer, tiny_model, tokens):
    model, ids = tiny_model(mixer), tokens(1, LENGTH)
    reference, _ = logits_and_states(model, ids)
    for t in (0, LENGTH - 1):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 7) % 61
        difference = (logits_and_states(model, changed)[0] - reference).abs().amax((0, 2))
        assert difference[LENGTH // 2] > 1e-3


def assert_padding_is_invisible(model, tokens):
    row = tokens(1, 13, seed=3)[0]
    for pads in (0, 1, C - 1, C + 3):
        rows = [row, tokens(1, 13 + pads, seed=4)[0], tokens(1, 1, seed=5)[0], row[:0]]
        alone = [logits_and_states(model, row[None]) for row in rows[:3]]
        for side in ("left", "right"):
            ids, mask, places = padded_batch(rows, 13 + pads, side, tokens)
            logits, states = logits_and_states(model, ids, attention_mask=mask)
            for index, (expected_logits, expected_states) in enumerate(alone):
                real = places[index]
                torch.testing.assert_close(logits[index : index + 1, real], expected_logits, atol=1e-10, rtol=0)
                for state, expected in zip(states, expected_states, strict=True):
                    torch.testing.assert_close(state[index : index + 1, real], expected, atol=1e-10, rtol=0)
            assert all(not state[mask == 0].any() for state in states), "hidden states at pads are zero"
            assert logits.isfinite().all()


@every_case
def test_padding_is_invisible(mixer, norm, is_decoder, tiny_model, tokens):
    assert_padding_is_invisible(tiny_model(mixer, norm, is_decoder, dtype=torch.float64), tokens)


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
        {"attention_window": 5},
        {"ode_solver": "rk4", "ode_time_input": True},
        {"norm_style": "post"},
        {"use_bias": True},
    ],
    ids=str,
)
def test_padding_is_invisible_to_the_hybrid(extra, is_decoder, tiny_model, tokens):
    model = tiny_model((*HYBRID, "sigmoid_attn"), "layer_norm", is_decoder, dtype=torch.float64, **extra)
    assert_padding_is_invisible(model, tokens)


@every_direction
@pytest.mark.parametrize("side", ["left", "right"])
def test_classifier_pools_real_tokens(is_decoder, side, tiny_config, tokens, enliven):
    """An encoder takes their mean, a decoder the last one; an empty row is finite."""
    config = tiny_config((*HYBRID, "sigmoid_attn"), is_decoder=is_decoder, num_labels=5)
    model = enliven(FrankensteinForSequenceClassification(config).double().eval())
    rows = [tokens(1, 13)[0], tokens(1, 24)[0], tokens(1, 1)[0], tokens(1, 0)[0]]
    ids, mask, _ = padded_batch(rows, 24, side, tokens)
    logits, _ = logits_and_states(model, ids, attention_mask=mask)
    assert logits.shape == (4, 5) and logits.isfinite().all()
    for row, actual in zip(rows[:3], logits, strict=False):
        alone, states = logits_and_states(model, row[None])
        torch.testing.assert_close(actual[None], alone, atol=1e-10, rtol=0)
        pooled = states[-1][:, -1] if is_decoder else states[-1].mean(1)
        torch.testing.assert_close(alone, model.classifier(pooled).detach(), atol=1e-10, rtol=0)
    assert logits[:3].std() > 0.3


@pytest.mark.parametrize("mixer", ["retnet", "mamba"])
@pytest.mark.parametrize("side", ["left", "right"])
@every_direction
def test_pads_leave_the_recurrent_state_alone(mixer, side, is_decoder, tiny_model, tokens, monkeypatch):
    """The final state of every scan, which a decoder will continue from, is that of the unpadded row."""
    module = importlib.import_module(MIXERS[mixer].__module__)
    scan, states = module.linear_scan_chunked, []

    def spy(*args):
        output, state = scan(*args)
        states.append(state)
        return output, state

    monkeypatch.setattr(module, "linear_scan_chunked", spy)
    model, row = tiny_model(mixer, is_decoder=is_decoder, dtype=torch.float64), tokens(1, 13)[0]
    states.clear()
    logits_and_states(model, row[None])
    alone = states.copy()
    states.clear()
    ids, mask, _ = padded_batch([row, tokens(1, 24)[0]], 24, side, tokens)
    logits_and_states(model, ids, attention_mask=mask)
    assert len(states) == len(alone) == (2 if is_decoder else 4)
    for padded, expected in zip(states, alone, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(padded[:1], expected, atol=1e-10, rtol=0)


@every_case
def test_a_batch_is_its_rows(mixer, norm, is_decoder, tiny_model, tokens):
    model, ids = tiny_model(mixer, norm, is_decoder, dtype=torch.float64, num_experts=4), tokens(5, LENGTH)
    together, _ = logits_and_states(model, ids)
    apart = torch.cat([logits_and_states(model, row[None])[0] for row in ids])
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mixer", ["retnet", "mamba"])
@every_norm
@every_direction
def test_chunk_size_does_not_matter(mixer, norm, is_decoder, tiny_model, tokens):
    ids, outputs = tokens(2, LENGTH), []
    for chunk_size in (1, 4, C, 64):
        model = tiny_model(mixer, norm, is_decoder, dtype=torch.float64, chunk_size=chunk_size)
        outputs.append(logits_and_states(model, ids)[0])
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-10, rtol=0)


@every_case
def test_eager_equals_sdpa(mixer, norm, is_decoder, tiny_model, tokens):
    model = tiny_model(mixer, norm, is_decoder, dtype=torch.float64)
    ids = tokens(3, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, -3:] = 0
    for inputs in ({}, {"attention_mask": mask}):
        outputs = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            outputs.append(logits_and_states(model, ids, **inputs)[1][-1])
        torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)


@every_case
def test_dtype_of_the_mask_does_not_matter(mixer, norm, is_decoder, tiny_model, tokens):
    model, ids = tiny_model(mixer, norm, is_decoder), tokens(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, -C:] = 0
    expected, _ = logits_and_states(model, ids, attention_mask=mask)
    assert not torch.equal(expected, logits_and_states(model, ids)[0])
    for dtype in (torch.bool, torch.int32, torch.float32, torch.float64):
        assert torch.equal(logits_and_states(model, ids, attention_mask=mask.to(dtype))[0], expected)


@every_case
def test_shortest_sequences(mixer, norm, is_decoder, tiny_model, tokens):
    model = tiny_model(mixer, norm, is_decoder)
    logits, states = logits_and_states(model, tokens(2, 1))
    assert logits.shape == (2, 1, 61) and logits.isfinite().all()
    assert len(states) == 3
    with pytest.raises(ValueError, match="empty"):
        model(tokens(2, 0))


def test_ids_and_embeddings_exclude_each_other(tiny_model, tokens):
    model, ids = tiny_model(), tokens(2, LENGTH)
    embeds = model.get_input_embeddings()(ids)
    for wrong in ({"input_ids": ids, "inputs_embeds": embeds}, {}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)
