"""Words, sentences, stems and frequencies of texts, and the shipped lists."""

import json
import math

import pytest

import make_wordlist
from frankenlm.degradation.measures.languages import ENGLISH
from frankenlm.degradation.measures.measure import (
    measure_row,
    perplexity_text,
)
from frankenlm.degradation.measures.text_words import (
    ASSETS,
    STOPWORDS,
    sentences,
    stem,
    word_counts,
    word_frequency,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's well-known, isn't it?", ["the", "cat's", "well", "known", "isn't", "it"]),
        ("It’s 3.5 km", ["it's", "3", "5", "km"]),
        ("'quoted' _x_ **bold**", ["quoted", "x", "bold"]),
        ("我喜欢猫。", ["我", "喜", "欢", "猫"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("Ça été — naïve", ["ça", "été", "naïve"]),
        ("cafe\u0301", ["café"]),
        ("", []),
        ("... !? —", []),
        ("😀", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("He paid 3.50 euros. Done", 2),
        ('"Stop!" he said. (Really.) Yes', 3),
        ("line\nline\n\nline", 3),
        ("我来。你来！", 2),
        ("...", 0),
        ("", 0),
        ("one", 1),
    ],
)
def test_sentences(text, count):
    assert len(sentences(text)) == count


def test_stems_meet():
    for forms in (
        "dream dreams dreamed dreaming",
        "run runs running",
        "chase chases chased chasing",
        "fly flies",
        "kitchen kitchen's kitchens",
        "fall falls falling",
        "box boxes",
        "carry carries",
    ):
        assert len({stem(form) for form in forms.split()}) == 1, forms
    assert len(set(map(stem, ("dream", "drum", "glass", "class", "bus", "thing", "ring")))) == 7
    assert ENGLISH.content_stems(["the", "dogs", "of", "dog"]) == ["dog", "dog"]


def test_word_frequencies():
    counts, total = word_counts()
    assert total > 600_000 and len(counts) > 20_000 and max(counts, key=counts.get) == "the"
    assert word_frequency("the") == pytest.approx(math.log10(counts["the"] / total * 1e9))
    assert 8 > word_frequency("the") > 7 > word_frequency("river") > word_frequency("giggled") > 3
    for word in ("dreamed", "hallways", "kitchen's", "running", "stopped", "happily", "couldn't", "flies", "nobody"):
        assert word_frequency(word) is not None, word
    for word in ("blorf", "snarfle", "wreqp", "quanch", "thhe", "ondit", "vermisht"):
        assert word_frequency(word) is None, word
    assert all(word_frequency(word) for word in STOPWORDS)


def test_the_word_list_is_what_the_tool_makes(tmp_path):
    lines = [json.dumps({"text": text}) for text in ("The cat saw the dog's cat.", "A dog's 22 22 été été zoo.")]
    assert make_wordlist.word_list(make_wordlist.count_words(lines)) == "total\t13\n2\tcat dog's the\n"
    shipped = (ASSETS / "words_en.txt").read_text(encoding="utf-8")
    assert len(shipped.encode()) < 300_000
    numbers = [int(line.partition("\t")[0]) for line in shipped.splitlines()[1:]]
    assert numbers == sorted(set(numbers), reverse=True) and numbers[-1] == make_wordlist.AT_LEAST


def test_the_text_for_perplexity():
    text = perplexity_text()
    assert 800 <= len(words(text)) <= 900 and text.isascii()
    measured = measure_row({"prompt_text": "", "completion": text})
    assert measured["unknown_words"] < 0.01 and not measured["looped"] and measured["rep_4"] < 0.01
