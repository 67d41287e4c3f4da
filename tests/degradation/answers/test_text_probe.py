"""Perplexity and divergence of a fixed text, against the plain computation in one window."""

import math

import pytest
import torch
import torch.nn.functional as F

from frankenlm.degradation.answers.text_probe import CONTEXT, TextProbe, divergence
from frankenlm.degradation.measures.measure import perplexity_text


@pytest.fixture
def probe_of(tiny_model, tiny_tokenizer):
    def make(text, **model):
        return TextProbe(tiny_model("llama", **model), tiny_tokenizer(), text)

    return make


def losses(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").double()


def test_a_short_text_is_one_window_behind_bos(probe_of, tiny_tokenizer):
    text, tokenizer = "A short text about rain.", tiny_tokenizer()
    probe = probe_of(text)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    score = probe.measure()
    assert score.log_perplexity == pytest.approx(float(losses(probe.model, ids).mean()), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.log_perplexity))
    assert score.kl is None


def test_long_texts_score_every_token_once_with_what_stands_before_it(probe_of, tiny_tokenizer):
    """An independent loop over windows of 512 that move on by 256."""
    text, tokenizer = perplexity_text()[:1500], tiny_tokenizer()
    probe = probe_of(text)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total, count = losses(probe.model, ids[:CONTEXT]).sum(), CONTEXT - 1
    end = CONTEXT
    while end < len(ids):
        start = end - CONTEXT + CONTEXT // 2
        window = ids[start : start + CONTEXT]
        fresh = losses(probe.model, window)[-(start + len(window) - end) :]
        total, count, end = total + fresh.sum(), count + len(fresh), start + len(window)
    assert count == len(ids) - 1
    assert probe.measure().log_perplexity == pytest.approx(float(total / count), rel=1e-5)


def test_divergence_is_zero_undamaged_and_right_when_damaged(probe_of):
    probe = probe_of("Some words to be read twice, before and after the damage.")
    undamaged = probe.remember()
    again = probe.measure()
    assert again.log_perplexity == undamaged.log_perplexity
    assert again.kl == 0
    with torch.no_grad():
        before = probe.model(probe.ids[None]).logits[0, :-1].log_softmax(-1)
        probe.model.lm_head.weight.mul_(1.5)
        after = probe.model(probe.ids[None]).logits[0, :-1].log_softmax(-1)
    expected = (before.exp() * (before - after)).sum(-1).mean()
    damaged = probe.measure()
    assert damaged.kl == pytest.approx(float(expected), rel=1e-3)
    assert damaged.log_perplexity > undamaged.log_perplexity


def test_a_broken_model_has_no_perplexity(probe_of):
    probe = probe_of("Some words.")
    with torch.no_grad():
        probe.model.lm_head.weight[5] = torch.nan
    score = probe.measure()
    assert score.log_perplexity is None and score.perplexity is None


def test_a_token_that_cannot_be_adds_nothing_to_the_divergence():
    """A masked row of the vocabulary has log-probability -inf in both models."""
    before, after = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert float(divergence(before, after)) == pytest.approx(expected)
    assert float(divergence(after, torch.tensor([0.0, 0.5, 0.5]).log())) == math.inf
