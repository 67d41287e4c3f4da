"""Measures of generated text against values worked out by hand."""

import itertools
import json
import math
import random
import re
import subprocess
import sys

import pytest
import sacrebleu

from frankenlm.trainer_ext.metrics.text import (
    bleu,
    character_repetition,
    distinct,
    diversity,
    longest_repeat,
    ngrams,
    repeated_share,
    repetition,
    self_bleu,
    summed_repetition,
    unique_per_100,
    unknown_share,
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
        "vocabulary_coverage": 0.25,
        "unique_per_100": None,  # there are no hundred
        "unknown_share": None,
    }
    assert vocabulary_use([[], []], 8)["type_token_ratio"] is None
    assert vocabulary_use([[3]], 8)["type_token_ratio"] == 1
    with pytest.raises(ValueError, match="vocab_size=0"):
        vocabulary_use([[1]], 0)


def test_unique_per_100_by_hand():
    assert unique_per_100([range(99)]) is unique_per_100([]) is None
    assert unique_per_100([range(100)]) == 100
    assert unique_per_100([[7] * 500]) == 1
    assert unique_per_100([range(60), range(60)]) == 60  # read as one: every run holds all sixty
    # the runs of 0 ... 99, 0 that begin at its first and second token
    assert unique_per_100([[*range(100), 0]]) == 100
    # 99 ones and a two in the first run, 98 ones, a two and a three in the second
    assert unique_per_100([[1] * 99, [2, 3]]) == (2 + 3) / 2


def test_unique_per_100_is_the_mean_over_all_runs():
    rng = random.Random(1)
    texts = [rng.choices(range(60), k=rng.randint(0, 90)) for _ in range(8)]
    flat = [token for text in texts for token in text]
    runs = [len(set(flat[start : start + 100])) for start in range(len(flat) - 99)]
    assert unique_per_100(texts) == pytest.approx(sum(runs) / len(runs))
    assert vocabulary_use(texts, 60)["unique_per_100"] == unique_per_100(texts)


def test_unknown_share_by_hand():
    assert unknown_share([[3, 0, 0], [5]], 0) == 0.5
    assert unknown_share([[3], [5]], 0) == 0
    assert unknown_share([[3]], None) is unknown_share([[]], 0) is None
    assert vocabulary_use([[3, 0], [0, 0]], 9, 0)["unknown_share"] == 0.75


def test_character_repetition_by_hand():
    # "abab": a b of four characters; ab ba of three pairs; aba bab; abab
    report = character_repetition(["abab"])
    assert report == {
        "character_repetition_1": 0.5,
        "character_repetition_2": pytest.approx(1 / 3),
        "character_repetition_3": 0,
        "character_repetition_4": 0,
    }
    assert character_repetition(["abab", "xyz"])["character_repetition_1"] == 0.25
    # a text that repeats no word repeats its characters
    text = "the hens then ate"
    assert repetition([text.split()])["repetition_1"] == 0 < character_repetition([text])["character_repetition_1"]


def test_bleu_by_hand():
    # unigrams 4 of 5, bigrams 2 of 4, trigrams 1 of 3, no fourgram of 2: the first zero counts as 1 / 2 of one
    report = bleu(["the cat sat on it"], [["the cat sat under it"]])
    precisions = [4 / 5, 2 / 4, 1 / 3, 1 / (2 * 2)]
    for order in (1, 2, 3, 4):
        geometric = math.prod(precisions[:order]) ** (1 / order)
        assert report[f"bleu_{order}"] == pytest.approx(100 * geometric), order
    assert "tok:13a|smooth:exp" in report["bleu_signature"]


def test_bleu_is_what_the_command_of_sacrebleu_gives(tmp_path):
    """Its precisions and brevity penalty of each order, the geometric means worked out here."""
    hypotheses = ["the cat sat on it all day", "dogs run over the green hills", "rain", "the the the hills"]
    references = [
        "the cat sat under it all day",
        "the dogs run over green hills",
        "it rains in spring",
        "green hills run",
    ]
    (tmp_path / "ours").write_text("\n".join(hypotheses) + "\n")
    (tmp_path / "theirs").write_text("\n".join(references) + "\n")
    words = [tmp_path / "theirs", "-i", tmp_path / "ours", "-m", "bleu", "-w", "12", "--format", "json"]
    done = subprocess.run([sys.executable, "-m", "sacrebleu", *words], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    # "P1/P2/P3/P4 (BP = 0.9 ratio = ... hyp_len = 18 ref_len = 20)"; the penalty is shown with three digits
    shown, _, lengths = told["verbose_score"].partition(" (")
    precisions = [float(value) for value in shown.split("/")]
    ours, theirs = (int(re.search(rf"{name}_len = (\d+)", lengths)[1]) for name in ("hyp", "ref"))
    penalty = math.exp(1 - theirs / ours) if ours < theirs else 1.0
    report = bleu(hypotheses, [[reference] for reference in references])
    for order in (1, 2, 3, 4):
        expected = penalty * math.prod(precisions[:order]) ** (1 / order)
        assert report[f"bleu_{order}"] == pytest.approx(expected, rel=0.01), (
            order
        )  # one digit behind the point is shown
    assert report["bleu_4"] == pytest.approx(told["score"], abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_sacrebleus_of_that_order(order):
    hypotheses = ["the cat sat on it", "dogs run", "", "x y z"]
    references = [["the cat sat under it", "a cat sat on it"], ["the dogs run"], ["rain"], ["z y x", "x y", "x y z"]]
    columns = [[row[i] if i < len(row) else None for row in references] for i in range(3)]
    theirs = sacrebleu.BLEU(max_ngram_order=order).corpus_score(hypotheses, columns)
    assert bleu(hypotheses, references)[f"bleu_{order}"] == pytest.approx(theirs.score, abs=1e-12)


def test_sums_over_texts_are_the_measures():
    tokens = [[1, 2, 1, 2, 3], [4, 4], [5], []]
    shares = summed_repetition(tokens)
    assert shares.parts.shape == (4, 8)
    assert shares.values().items() <= repetition(tokens).items()
    halves = [summed_repetition(tokens[:2]), summed_repetition(tokens[2:])]
    assert shares.finish(sum(half.parts.sum(axis=0) for half in halves)) == shares.values()
    assert all(parts == [0.0] * 8 for parts in summed_repetition([[]]).parts.tolist())


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
