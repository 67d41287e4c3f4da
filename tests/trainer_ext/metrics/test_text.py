"""Measures of generated text against values worked out by hand."""

import itertools
import math
import random
import sys

import pytest

from frankenlm.trainer_ext.metrics.text import (
    bleu,
    distinct,
    diversity,
    longest_repeat,
    ngrams,
    repeated_share,
    repetition,
    self_bleu,
    vocabulary_use,
)


def test_ngrams():
    assert ngrams("abc", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("abc", 3) == [("a", "b", "c")]
    assert ngrams("abc", 4) == ngrams([], 1) == []
    with pytest.raises(ValueError, match="at least 1"):
        ngrams("abc", 0)


def test_repeated_share_by_hand():
    tokens = ["a", "b", "a", "b", "c"]  # a b, b a, a b, b c: three of four bigrams differ
    assert repeated_share(tokens, 1) == pytest.approx(2 / 5)
    assert repeated_share(tokens, 2) == pytest.approx(1 / 4)
    assert repeated_share(tokens, 3) == 0
    assert repeated_share([7] * 10, 4) == pytest.approx(6 / 7)
    assert repeated_share([7], 1) == 0
    assert repeated_share([7], 2) is repeated_share([], 1) is None


@pytest.mark.parametrize(
    ("text", "length"),
    [("", 0), ("a", 0), ("abc", 0), ("aa", 1), ("aaaa", 3), ("ababa", 3), ("abcxabcyabd", 3), ("banana", 3)],
)
def test_longest_repeat_by_hand(text, length):
    assert longest_repeat(text) == length


def test_longest_repeat_against_all_pairs():
    rng = random.Random(0)
    for _ in range(200):
        text = rng.choices("abc", k=rng.randint(0, 40))
        runs = [text[i:j] for i, j in itertools.combinations(range(len(text) + 1), 2)]
        longest = max((len(run) for run in runs if runs.count(run) > 1), default=0)
        assert longest_repeat(text) == longest


def test_longest_repeat_of_a_long_loop():
    assert longest_repeat([1, 2, 3] * 5000) == 14997


def test_repetition_of_several_texts():
    report = repetition([list("aab"), list("ab"), []])
    assert report["repetition_1"] == pytest.approx((1 / 3 + 0) / 2)  # the empty text has no share
    assert report["repetition_2"] == 0
    assert report["repetition_3"] == 0  # of one text
    assert report["repetition_4"] is None
    assert report["longest_repeat"] == 1
    assert repetition([]) == {**{f"repetition_{n}": None for n in (1, 2, 3, 4)}, "longest_repeat": 0}


def test_distinct_counts_over_all_texts():
    texts = [[1, 2, 3], [1, 2, 4], [5]]
    assert distinct(texts, 1) == pytest.approx(5 / 7)
    assert distinct(texts, 2) == pytest.approx(3 / 4)  # 12 23 12 24, none across the border 3 | 1
    assert distinct(texts, 3) == 1
    assert distinct(texts, 4) is distinct([], 1) is None
    assert diversity(texts) == {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3, 4)}


def test_vocabulary_use():
    assert vocabulary_use([[1, 2, 2], [1]], 8) == {
        "distinct_tokens": 2,
        "type_token_ratio": 0.5,
        "vocabulary_share": 0.25,
    }
    assert vocabulary_use([[], []], 8)["type_token_ratio"] is None
    assert vocabulary_use([[3]], 8)["type_token_ratio"] == 1
    with pytest.raises(ValueError, match="vocab_size=0"):
        vocabulary_use([[1]], 0)


def test_bleu_by_hand():
    # unigrams 4 of 5, bigrams 2 of 4, trigrams 1 of 3, no fourgram of 2: the first zero counts as 1 / 2 of one
    report = bleu(["the cat sat on it"], [["the cat sat under it"]])
    precisions = [4 / 5, 2 / 4, 1 / 3, 1 / (2 * 2)]
    for order in (1, 2, 3, 4):
        geometric = math.prod(precisions[:order]) ** (1 / order)
        assert report[f"bleu_{order}"] == pytest.approx(100 * geometric), order
    assert "tok:13a|smooth:exp" in report["bleu_signature"]


def test_bleu_brevity():
    report = bleu(["the cat"], [["the cat sat on the mat"]])
    assert report["bleu_1"] == pytest.approx(100 * math.exp(1 - 6 / 2))


def test_bleu_edges():
    same = "one two three four five"
    assert bleu([same], [[same]])["bleu_4"] == pytest.approx(100)
    assert bleu([same, same], [["other words"], [same, "more"]])["bleu_1"] == pytest.approx(50)
    assert bleu([""], [[same]])["bleu_1"] == 0
    for hypotheses, references in (([], []), ([same], []), ([same], [[]]), ([same], [same])):
        with pytest.raises(ValueError, match="reference"):
            bleu(hypotheses, references)


def test_self_bleu():
    assert self_bleu([]) is self_bleu(["one text"]) is None
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d", "e f g h"]) == pytest.approx(0, abs=20)
    assert self_bleu(["a b c d", "a b c d", "e f g h"]) < 80


def test_bleu_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match="pip install sacrebleu"):
        bleu(["a"], [["a"]])
