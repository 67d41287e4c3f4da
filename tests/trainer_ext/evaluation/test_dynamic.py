"""Dynamic evaluation against a loop of its own with torch's SGD, and a perplexity in another tokenizer's tokens."""

import copy
import math

import numpy as np
import pytest
import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM
from frankenlm.trainer_ext.evaluation.dynamic import check_can_learn, dynamic_scores
from frankenlm.trainer_ext.metrics.language import NATS, TOKENS, Scores, causal_scores

VOCAB, START, WINDOW = 23, 0, 5
TEXTS = [[3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4], [7, 8, 9, 7]]


@pytest.fixture
def model() -> FrankensteinForCausalLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = FrankensteinConfig(vocab_size=VOCAB, layer_pattern=["retnet"], is_decoder=True, dropout=0.3, **sizes)
    return FrankensteinForCausalLM(config).train()


def options(stride: int) -> dict:
    return {"context_length": WINDOW, "stride": stride, "start_token_id": START}


def loop(model, rate: float) -> list[float]:
    """Windows that do not overlap, each scored before SGD takes a step on it."""
    model = copy.deepcopy(model).eval()
    sgd, found = torch.optim.SGD(model.parameters(), lr=rate), []
    for text in TEXTS:
        ids, nats = [START, *text], 0.0
        for end in range(WINDOW, len(ids) - 1 + WINDOW, WINDOW):
            last = min(end, len(ids) - 1)
            row, scored = torch.tensor([ids[max(0, last - WINDOW) : last + 1]]), last - (end - WINDOW)
            logits = model(row[:, :-1]).logits[0, -scored:]
            loss = torch.nn.functional.cross_entropy(logits, row[0, -scored:])
            nats += loss.item() * scored
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        found.append(nats)
    return found


def test_each_window_is_scored_before_it_is_learned(model):
    before = copy.deepcopy(model.state_dict())
    scores = dynamic_scores(model, TEXTS, rate=0.5, **options(WINDOW))
    assert scores.sums[:, NATS].tolist() == pytest.approx(loop(model, 0.5), rel=1e-5)
    assert scores.sums[:, TOKENS].tolist() == [len(text) for text in TEXTS]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    plain = causal_scores(model, TEXTS, batch_size=1, **options(WINDOW))
    assert scores.nats < plain.nats  # the text repeats itself
    first = dynamic_scores(model, [TEXTS[0][:WINDOW]], rate=0.5, **options(WINDOW)).nats
    assert first == pytest.approx(causal_scores(model, [TEXTS[0][:WINDOW]], batch_size=1, **options(WINDOW)).nats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_in_half_precision(model, dtype):
    """The steps are those of the same weights in float32; in their own precision they would mostly be rounded away."""
    model.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = dynamic_scores(model, TEXTS, rate=1e-3, **options(WINDOW))
    wide = copy.deepcopy(model).float()
    assert scores.sums[:, NATS].tolist() == pytest.approx(loop(wide, 1e-3), rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {value.dtype for value in model.state_dict().values()} == {value.dtype for value in before.values()}


@pytest.mark.parametrize("stride", [1, 3, WINDOW])
def test_without_a_rate_it_is_the_plain_figure(model, stride):
    still = dynamic_scores(model, TEXTS, rate=1e-30, **options(stride))
    plain = causal_scores(model, TEXTS, batch_size=3, **options(stride))
    np.testing.assert_allclose(still.sums[:, NATS], plain.sums[:, NATS], rtol=1e-5)


def test_a_rate_too_high_is_told_and_leaves_the_weights(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="lower the rate"):
        dynamic_scores(model, [TEXTS[0] * 9], rate=1e30, **options(WINDOW))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["whole numbers", "packed"])
def test_what_has_no_gradients_is_told_before_anything_is_scored(model, kind):
    check_can_learn(model)
    if kind == "packed":
        model.lm_head.is_packed_layer = True
    else:
        whole = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        model.register_parameter("codes", whole)
    with pytest.raises(ValueError, match="packed or quantised weights cannot learn"):
        check_can_learn(model)


def test_perplexity_by_the_tokens_of_another_tokenizer():
    """bits per byte x bytes per token of the other: the definition, from the other end."""
    sums = np.array([[30.0, 10, 0, 0, 0], [12.0, 5, 0, 0, 0]])
    bytes_of, others = [40, 20], [8, 4]
    values = Scores(sums).likelihood(bytes_of, None, others).values()
    assert values["reference_perplexity"] == pytest.approx(2 ** (values["bits_per_byte"] * 60 / 12))
    assert values["reference_perplexity"] == pytest.approx(math.exp(42 / 12)) and values["loss"] == 42 / 15
