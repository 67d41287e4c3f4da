"""Language metrics against numbers worked out by hand and against loops written the obvious way."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from frankenlm.modeling import InfinitoForCausalLM
from frankenlm.trainer_ext.metrics.language import (
    Scores,
    _ranks_by_comparing,
    causal_scores,
    masked_lm_scores,
    perplexity_report,
    pseudo_scores,
    token_ranks,
    unigram_cross_entropy,
    windows_of,
)
from tiny_infinito import tiny_infinito

VOCABULARY = 11


class Bigram(torch.nn.Module):
    """Predicts each token from the one before it, by a table of logits [V, V]."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.largest = 0

    def forward(self, input_ids, attention_mask):
        assert not self.training and not torch.is_grad_enabled()
        self.largest = max(self.largest, input_ids.shape[1])
        return SimpleNamespace(logits=self.table[input_ids])


def summed(score):
    return score.nats, score.tokens, score.context, score.stride


def test_unigram_by_hand():
    # p = (2, 1, 3) / 6; the evaluation tokens are 0 and 1: (ln 3 + ln 6) / 2
    value = unigram_cross_entropy(torch.tensor([1, 0, 2]), torch.tensor([1, 1, 0]))
    assert value == pytest.approx(math.log(18) / 2, abs=1e-12)


def test_unigram_of_nothing_seen_is_uniform():
    assert unigram_cross_entropy(torch.zeros(7, dtype=torch.long), torch.arange(7)) == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ([1, 2], [1, 2, 3], "two \\[V\\] tensors"),
        ([[1, 2]], [[1, 2]], "two \\[V\\] tensors"),
        ([1, 2], [0, 0], "no evaluation token"),
        ([1, -2], [1, 0], "negative"),
    ],
)
def test_unigram_refuses(train, held_out, message):
    with pytest.raises(ValueError, match=message):
        unigram_cross_entropy(torch.tensor(train), torch.tensor(held_out))


def test_report_by_hand():
    assert perplexity_report(8 * math.log(2), 4, 2) == {
        "loss_nats": pytest.approx(2 * math.log(2)),
        "perplexity": pytest.approx(4.0),
        "bits_per_byte": pytest.approx(4.0),
        "tokens": 4,
        "bytes": 2,
    }


def test_report_of_a_hopeless_model_is_infinite():
    assert perplexity_report(1e6, 10, 10)["perplexity"] == math.inf


@pytest.mark.parametrize(("tokens", "size"), [(0, 1), (1, 0)])
def test_report_refuses_nothing(tokens, size):
    with pytest.raises(ValueError, match="nothing was scored"):
        perplexity_report(1.0, tokens, size)


def test_windows_by_hand():
    assert list(windows_of(list(range(10)), 4, 2)) == [
        ([0, 1, 2, 3, 4], 1),
        ([2, 3, 4, 5, 6], 3),
        ([4, 5, 6, 7, 8], 3),
        ([5, 6, 7, 8, 9], 4),  # the last one is as full as the others
    ]
    assert list(windows_of(list(range(6)), 4, 4)) == [([0, 1, 2, 3, 4], 1), ([1, 2, 3, 4, 5], 4)]
    assert list(windows_of([5, 6], 4, 2)) == [([5, 6], 1)]
    assert list(windows_of([5], 4, 2)) == []
    assert list(windows_of([], 4, 2)) == []


def test_causal_by_hand():
    # From 0: p(1) = 3/4 with logits (0, ln 3); from 1: p(0) = p(1) = 1/2.
    model = Bigram(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    score = causal_scores(model, [[0, 1, 1], [0, 0]], context_length=8)
    assert summed(score) == (pytest.approx(math.log(4 / 3) + math.log(2) + math.log(4)), 3, 8, 4)
    assert score.sums[:, :2].tolist() == [
        [pytest.approx(math.log(4 / 3) + math.log(2)), 2],
        [pytest.approx(math.log(4)), 1],
    ]
    score = causal_scores(model, [[1]], context_length=8, start_token_id=0)
    assert summed(score) == (pytest.approx(math.log(4 / 3)), 1, 8, 4)


@pytest.mark.parametrize(("context_length", "stride"), [(1, 1), (2, 1), (5, 1), (5, 5), (7, 3), (64, 64)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_token_is_scored_once(context_length, stride, batch_size):
    # The prediction depends on the token before alone, so windows of any kind must give the same sum.
    model = Bigram(torch.randn(VOCABULARY, VOCABULARY)).train()
    sequences = [torch.randint(VOCABULARY, (n,)).tolist() for n in (1, 2, 17, 40, 0, 5)]
    log_p = model.table.detach().log_softmax(-1)
    expected = -sum(float(log_p[a, b]) for s in sequences for a, b in zip(s, s[1:], strict=False))
    score = causal_scores(model, sequences, context_length=context_length, stride=stride, batch_size=batch_size)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == sum(max(len(s) - 1, 0) for s in sequences)
    assert model.largest <= context_length
    assert model.training, "left as it was"


def test_causal_equals_the_models_own_loss():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=32)).train()
    sequences = [torch.randint(VOCABULARY, (n,)) for n in (23, 9)]
    score = causal_scores(model, [s.tolist() for s in sequences], context_length=32)
    with torch.no_grad():
        model.eval()
        losses = [float(model(input_ids=s[None], labels=s[None]).loss) * (len(s) - 1) for s in sequences]
    assert summed(score) == (pytest.approx(sum(losses), rel=1e-5), 22 + 8, 32, 16)
    assert score.sums[:, 0] == pytest.approx(losses, rel=1e-5)


def test_ranks_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]] * 4)
    assert token_ranks(logits, torch.arange(4)).tolist() == [3, 0, 1, 2]
    # of equals the lower id is the likelier one
    assert token_ranks(torch.zeros(4, 4), torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert token_ranks(torch.tensor([[2.0, 5.0, 2.0, 5.0]] * 4), torch.arange(4)).tolist() == [2, 0, 3, 1]


def test_what_is_not_a_number_is_never_right():
    nan, logits = math.nan, torch.zeros(3, 9)
    logits[0, :], logits[1, 4], logits[2, 3] = nan, nan, nan
    # all NaN; one that is not the answer's, which is then not known to be less; the answer's own
    assert token_ranks(logits, torch.tensor([0, 0, 3]), most=99).tolist() == [9, 1, 9]
    assert token_ranks(logits, torch.tensor([0, 0, 3])).tolist() == [5, 1, 5]


def test_ranks_are_those_of_sorting_and_of_comparing():
    logits, answers = torch.randn(60, VOCABULARY), torch.randint(VOCABULARY, (60,))
    order = logits.argsort(-1, descending=True)
    ranks = (order == answers[:, None]).int().argmax(-1)
    assert token_ranks(logits, answers, most=99).tolist() == ranks.tolist()
    assert token_ranks(logits, answers).tolist() == ranks.clamp(max=5).tolist()
    # many of few values, so that ties stand at the border of the fifth, and some are infinite
    for odd in (logits.round(), (logits * 2).round() / 2, torch.where(logits > 0.5, math.inf, logits.round())):
        expected = _ranks_by_comparing(odd, answers).clamp(max=5)
        assert token_ranks(odd, answers).tolist() == expected.tolist()


def test_accuracies_by_hand():
    # from 0 the order is 1 2 3 4 5 6 ..., from anything else 0 first
    table = torch.full((VOCABULARY, VOCABULARY), -9.0)
    table[0] = -torch.arange(VOCABULARY).float()
    table[0, 0], table[1:, 0] = -50.0, 1.0
    model = Bigram(table)
    score = causal_scores(model, [[0, 1, 0, 3], [0, 5, 0, 6], [7]], context_length=8)
    # first text: 0 -> 1 (rank 0), 1 -> 0 (0), 0 -> 3 (2); second: 0 -> 5 (4), 5 -> 0 (0), 0 -> 6 (5); third: nothing
    assert score.sums[:, 1:].tolist() == [[3, 2, 3, 3], [3, 1, 1, 2], [0, 0, 0, 0]]
    accuracy = score.accuracy()
    assert accuracy.values() == {"top_1_accuracy": 3 / 6, "top_3_accuracy": 4 / 6, "top_5_accuracy": 5 / 6}
    assert accuracy.finish(score.sums[2]) == dict.fromkeys(accuracy.values())


def test_likelihood_of_texts_by_hand():
    nats = math.log(2) * np.array([4.0, 2.0, 0.0])  # 3 tokens in all, 6 bits
    score = Scores(np.column_stack([nats, [2, 1, 0], np.zeros((3, 3))]))
    summed = score.likelihood([2, 3, 1], words=[1, 2, 0])
    assert summed.values() == {
        "loss": pytest.approx(2 * math.log(2)),
        "perplexity": pytest.approx(4),
        "bits_per_byte": pytest.approx(1),
        "word_perplexity": pytest.approx(4),
    }
    assert summed.finish(summed.parts[2]) == dict.fromkeys(summed.values())
    assert "word_perplexity" not in score.likelihood([2, 3, 1]).values()


def rolling_nats(model, tokens, prefix, max_length, context):
    """The rolling log-likelihood of lm-evaluation-harness, from its definition, a forward a window.

    `get_rolling_token_windows`: the first window predicts max_length tokens from the prefix token and those before
    them; each later one reads the max_length tokens that end before its last target, and predicts
    max_length - context + 1 new ones, the last window what is left.
    """
    first = min(max_length, len(tokens))
    pairs = [([prefix, *tokens[: first - 1]], tokens[:first])]
    done = first
    while done < len(tokens):
        count = min(len(tokens) - done, max_length - context + 1)
        end = done + count
        pairs.append((tokens[end - max_length - 1 : end - 1], tokens[end - count : end]))
        done = end
    total = 0.0
    for inputs, targets in pairs:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([inputs])).logits[0].log_softmax(-1)
        total -= sum(float(log_p[len(inputs) - len(targets) + index, token]) for index, token in enumerate(targets))
    return total


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16, initializer_range=0.9)
    ).eval()


def infinito():
    torch.manual_seed(0)
    return InfinitoForCausalLM(tiny_infinito(vocab_size=VOCABULARY, initializer_range=0.5)).eval()


@pytest.mark.parametrize(
    ("build", "length"),
    [
        *((gpt2, length) for length in (1, 5, 15, 16, 17, 32, 33, 47, 100)),
        (infinito, 5),
        (infinito, 17),
        (infinito, 47),
    ],
)
@pytest.mark.parametrize("context", [1, 9, 16])
def test_one_text_has_the_rolling_likelihood_of_the_harness(build, length, context):
    """Positions and contexts matter to these models, so that any other cut of the text gives another sum."""
    model = build()
    tokens = torch.randint(1, VOCABULARY, (length,)).tolist()
    score = causal_scores(model, [tokens], context_length=16, stride=16 - context + 1, batch_size=3, start_token_id=0)
    assert score.tokens == length
    assert score.nats == pytest.approx(rolling_nats(model, tokens, 0, 16, context), rel=1e-5)


def test_a_model_without_weights_is_not_scored():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match="meta device, without weights"):
        causal_scores(model, [[1, 2]], context_length=8)


@pytest.mark.parametrize("stride", [0, 9])
def test_causal_refuses_a_stride_that_skips(stride):
    with pytest.raises(ValueError, match=f"stride={stride} must lie between 1 and context_length = 8"):
        causal_scores(Bigram(torch.zeros(2, 2)), [[0, 1]], context_length=8, stride=stride)


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=32,
            initializer_range=0.5,
        )
    )


CLS, SEP, MASK = 0, 1, 2


def naive_pseudo_nats(model, piece, specials):
    """One token, one forward, one loss."""
    total, count = 0.0, 0
    for index, token in enumerate(piece):
        if token in specials:
            continue
        ids = torch.tensor([piece])
        ids[0, index] = MASK
        with torch.no_grad():
            total -= float(model.eval()(input_ids=ids).logits[0, index].log_softmax(-1)[token])
        count += 1
    return total, count


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_pseudo_scores_equal_the_loop(bert, batch_size):
    sequences = [[3, 4, 5, SEP, 6, 7, 8, 9, 10], [10, 9], []]
    score = pseudo_scores(
        bert.train(),
        sequences,
        mask_token_id=MASK,
        special_ids=[CLS, SEP, MASK],
        context_length=7,
        batch_size=batch_size,
        prefix=[CLS],
        suffix=[SEP],
    )
    pieces = [[CLS, 3, 4, 5, SEP, 6, SEP], [CLS, 7, 8, 9, 10, SEP], [CLS, 10, 9, SEP]]
    expected = [naive_pseudo_nats(bert, piece, {CLS, SEP, MASK}) for piece in pieces]
    assert summed(score) == (pytest.approx(sum(nats for nats, _ in expected), rel=1e-5), 10, 7, 5)
    assert score.sums[:, 0] == pytest.approx([expected[0][0] + expected[1][0], expected[2][0], 0], rel=1e-5)
    assert sum(count for _, count in expected) == 10


def test_pseudo_scores_refuses_a_context_of_specials(bert):
    with pytest.raises(ValueError, match="context_length=2 leaves no room beside 2 specials"):
        pseudo_scores(bert, [[3]], mask_token_id=2, special_ids=[], context_length=2, prefix=[0], suffix=[1])


def test_masked_nats_do_not_average_averages(bert):
    ids = torch.randint(3, VOCABULARY, (3, 9))
    labels = torch.full_like(ids, -100)
    labels[0, 1:4], labels[2, 5] = ids[0, 1:4], ids[2, 5]
    batches = [
        {"input_ids": ids[i : i + 1], "attention_mask": torch.ones(1, 9).long(), "labels": labels[i : i + 1]}
        for i in range(3)
    ]
    score = masked_lm_scores(bert, batches)
    with torch.no_grad():
        mean = bert.eval()(input_ids=ids, labels=labels).loss
    assert summed(score) == (pytest.approx(float(mean) * 4, rel=1e-5), 4, 0, 0)
    assert score.sums[:, 1].tolist() == [3, 0, 1]
