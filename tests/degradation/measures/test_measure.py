"""Measures of the lab's rows and cells: by hand, of odd texts, of answers."""

import gzip
import hashlib
import itertools
import math
import random

import pytest

from frankenlm.degradation.measures.measure import (
    CELL_MEASURES,
    ROW_MEASURES,
    carry_over,
    gzip_ratio,
    main_script,
    measure_cell,
    measure_row,
    moving_ttr,
    named_units,
    other_script_share,
    perplexity_text,
    self_bleu_4,
    sentence_overlap,
)
from frankenlm.degradation.measures.names import Measure
from frankenlm.degradation.measures.text_words import (
    word_frequency,
)
from frankenlm.degradation.prompts import LabPrompt, load_prompts, picture_path
from frankenlm.trainer_ext.metrics.text import self_bleu

DREAM = "Tell me a dream."


def row(completion, prompt_text=DREAM, **more):
    return {"completion": completion, "prompt_text": prompt_text, **more}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
        (9.9e6, "9,900,000"),
        (1.6e24, "1.6e+24"),
    ],
)
def test_values_in_tables(value, shown):
    assert Measure("perplexity", "Perplexity").text(value) == shown


# --- rows


def test_a_short_answer_by_hand():
    """Seven words, five different; the pairs are a-dog, dog-ran, ran-the, the-dog, dog-ran, ran-home."""
    measured = measure_row(row("A dog ran. The dog ran home.", tokens_generated=9, mean_logprob=-1.5, mean_entropy=2.0))
    assert measured["words"] == 7 and measured["tokens"] == 9 and measured["characters"] == 28
    assert measured["distinct_1"] == pytest.approx(5 / 7) and measured["rep_1"] == pytest.approx(2 / 7)
    assert measured["distinct_2"] == pytest.approx(5 / 6) and measured["rep_2"] == pytest.approx(1 / 6)
    assert measured["distinct_3"] == 1 and measured["rep_3"] == measured["rep_4"] == 0
    assert measured["ttr_100"] is None and measured["looped"] is False and measured["loop_start"] is None
    assert measured["sentences"] == 2 and measured["sentence_length"] == 3.5
    # of dog, ran and home, the sentences share two of three
    assert measured["sentence_overlap"] == pytest.approx(2 / 3)
    assert measured["carry_over"] == 1
    assert measured["lexical_density"] == pytest.approx(5 / 7)
    assert measured["unknown_words"] == 0 and measured["other_script"] == 0
    used = [word_frequency(word) for word in ("a", "dog", "ran", "the", "dog", "ran", "home")]
    assert measured["word_frequency"] == pytest.approx(sum(used) / 7)
    assert (measured["mean_logprob"], measured["mean_entropy"]) == (-1.5, 2.0)
    assert measured["grade"] is measured["correct"] is measured["content_units"] is measured["list_items"] is None


def test_every_row_has_every_measure():
    for text in ("", "word", "知", "\ufffd\ufffd", "a\x00b", "\ud800", "1 2 3", "a " * 500, perplexity_text()):
        measured = measure_row(row(text))
        assert set(measured) == set(ROW_MEASURES)
        for name, value in measured.items():
            assert value is None or math.isfinite(value), name
            if ROW_MEASURES[name].share and value is not None:
                assert 0 <= value <= 1, name
    assert all(measured.better in (1, -1, None) for measured in {**ROW_MEASURES, **CELL_MEASURES}.values())


def test_an_empty_answer():
    measured = measure_row(row("", finish_reason="eos"))
    there = {name for name, value in measured.items() if value is not None}
    assert there == {"words", "characters", "looped", "sentences", "prompt_overlap"}
    assert measured["words"] == 0 and measured["looped"] is False and measured["prompt_overlap"] == 0


def test_a_word():
    measured = measure_row(row("Dream"))
    assert measured["distinct_1"] == 1 and measured["distinct_2"] is measured["rep_2"] is None
    assert measured["prompt_overlap"] == 0.5  # of tell and dream
    assert measured["sentence_overlap"] is measured["carry_over"] is None


def test_a_loop():
    measured = measure_row(row("I was home. " + "and then we ran " * 30))
    assert measured["looped"] is True and measured["loop_start"] == 12
    assert measured["gzip_ratio"] < 0.15 and measured["rep_4"] > 0.9 and measured["ttr_100"] < 0.06


def test_other_scripts():
    assert main_script("Tell me") == "LATIN" and main_script("12 !") is None
    assert other_script_share("abcd да") == pytest.approx(2 / 6)
    assert other_script_share("123 ...") is None
    measured = measure_row(row("猫 cat"))
    assert measured["other_script"] == 0.25 and measured["unknown_words"] == 0 and measured["words"] == 2
    assert measure_row(row("да нет", "Расскажи сон."))["other_script"] == 0
    assert measure_row(row("да нет"))["unknown_words"] is None


def test_unknown_words():
    measured = measure_row(row("The blorf saw a snarfle in 1999"))
    assert measured["unknown_words"] == pytest.approx(2 / 6)  # numbers are no words
    known = [word_frequency(word) for word in ("the", "saw", "a", "in")]
    assert measured["word_frequency"] == pytest.approx(sum(known) / 4)


def test_moving_ttr_against_every_window():
    rng = random.Random(1)
    found = rng.choices("abcdefgh", k=60)
    slow = [len(set(found[start : start + 10])) / 10 for start in range(51)]
    assert moving_ttr(found, 10) == pytest.approx(sum(slow) / 51)
    assert moving_ttr(found[:10], 10) == pytest.approx(slow[0])
    assert moving_ttr(found[:9], 10) is None


def test_gzip_ratio():
    text = "déjà vu " * 40
    assert gzip_ratio(text) == len(gzip.compress(text.encode(), mtime=0)) / len(text.encode())
    assert gzip_ratio("") is None


def test_sentence_overlap_by_hand():
    assert sentence_overlap([{"a", "b"}, {"b", "c"}, {"d"}]) == pytest.approx((1 / 3 + 0) / 2)
    assert sentence_overlap([set(), set(), {"a"}, {"a"}]) == pytest.approx((0 + 1) / 2)
    assert sentence_overlap([{"a"}]) is sentence_overlap([]) is sentence_overlap([set(), set()]) is None


def test_carry_over_by_hand():
    # a: 1 2 . 4, b: . 2 3 .; c once. From sentences with a: to 2 yes, to 3 no. b: to 3 yes, to 4 no
    grid = [{"a", "c"}, {"a", "b"}, {"b"}, {"a"}]
    assert carry_over(grid) == pytest.approx(2 / 4)
    assert carry_over([{"a"}, {"b"}]) is carry_over([]) is None
    assert carry_over([{"a"}] * 5) == 1


# --- answers of rows

SUM = LabPrompt(id=1, text="What is 8 + 5?", set="x", skill="math", grader="number", answer=13)


@pytest.mark.parametrize(
    ("completion", "more", "expected"),
    [
        ("It is 13.", {}, "correct"),
        ("It is 14.", {}, "wrong"),
        ("It is.", {}, "unparsed"),
        ("13", {"status": "nan_logits", "finish_reason": "nan"}, "unparsed"),  # what ended in NaN is a failure
        ("13", {"status": "ok", "finish_reason": "nan"}, "unparsed"),
        ("13", {"status": "ok", "finish_reason": "length"}, "correct"),
    ],
)
def test_answers(completion, more, expected):
    measured = measure_row(row(completion, SUM.text, **more), SUM)
    assert measured["grade"] == expected
    assert measured["correct"] is (expected == "correct") and measured["unparsed"] is (expected == "unparsed")


def test_shipped_prompts_are_found_by_their_text():
    prompt = load_prompts("iq_it")[0]
    assert measure_row(row("26", prompt.text))["grade"] == "correct"
    other = LabPrompt(id=1, text=prompt.text, set="x", skill="y", grader="number", answer=25)
    assert measure_row(row("26", prompt.text), other)["grade"] == "wrong"


@pytest.mark.parametrize("status", ["oom", "error"])
def test_rows_without_an_answer(status):
    assert set(measure_row(row("", SUM.text, status=status), SUM).values()) == {None}
    assert set(measure_row(row(None, SUM.text, status=status), SUM).values()) == {None}


def test_lists():
    prompt = LabPrompt(id=1, text="List three uses for a jar.", set="x", skill="creativity", grader="list", items=3)
    measured = measure_row(row("- vase\n- Vase\n- lamp", prompt.text), prompt)
    assert (measured["list_items"], measured["list_unique"]) == (3, 2)
    assert measured["list_fulfilled"] == pytest.approx(2 / 3) and measured["correct"] is None
    assert measure_row(row("a, b, c, d", prompt.text), prompt)["list_fulfilled"] == 1
    assert measure_row(row("a, b, c, d", prompt.text, finish_reason="nan"), prompt)["list_fulfilled"] == 0
    assert measure_row(row("", prompt.text), prompt)["list_fulfilled"] == 0


def test_units_by_hand():
    units = {"cat": ("cat", "kitten"), "mug": ("cup", "coffee mug"), "shelf": ("shelf", "shelves")}
    assert named_units("Two kittens, near a COFFEE-mug!", units) == ["cat", "mug"]
    assert named_units("A catalogue of cupboards", units) == []
    assert named_units("the cat's shelves", units) == ["cat", "shelf"]
    assert named_units("", units) == []


def test_units_of_a_row():
    sha = hashlib.sha256(picture_path("kitchen").read_bytes()).hexdigest()
    text = "A woman waters the flowers while a boy plays with a dog. Milk drips from the table."
    measured = measure_row(row(text, "Describe this picture.", image_sha256=sha))
    assert measured["content_units"] == 9  # woman, watering, flowers, boy, playing, dog, milk, spilling, table
    assert measured["content_unit_share"] == pytest.approx(9 / 47)
    assert measure_row(row("", "Describe this picture.", image_sha256=sha))["content_units"] == 0
    assert measure_row(row(text, "Describe this picture.", image_sha256="00"))["content_units"] is None
    assert measure_row(row(text, "Describe this picture.", image_sha256=None))["content_units"] is None


# --- cells


def test_a_cell_by_hand():
    rows = [row("a b"), row("b c"), row(None, status="error"), row("", status="error")]
    measured = measure_cell(rows)
    assert set(measured) == set(CELL_MEASURES)
    assert measured["cell_distinct_1"] == pytest.approx(3 / 4) and measured["cell_distinct_2"] == 1
    assert measured["cell_distinct_3"] is None
    assert measure_cell([row("a b c")])["self_bleu_4"] is None
    assert measure_cell([]) == dict.fromkeys(CELL_MEASURES)
    assert measure_cell([row("the same five words here")] * 3)["self_bleu_4"] == pytest.approx(100)


def test_self_bleu_is_the_slow_one():
    rng = random.Random(2)
    source = perplexity_text().split()
    texts = [" ".join(rng.choices(source, k=rng.choice((1, 2, 5, 30, 80)))) for _ in range(8)]
    sets = [
        texts,
        [*texts, "", "a", "a", "知 知 知 知 知", "  x\n\ny\tz "],
        ["", ""],
        ["a", "b"],
        texts[:2],
        [texts[0]] * 3,
    ]
    for case in sets:
        assert self_bleu_4(case) == pytest.approx(self_bleu(case), abs=1e-9), case
    for pair in itertools.combinations(texts[:4], 2):
        assert self_bleu_4(pair) == pytest.approx(self_bleu(pair), abs=1e-9)
    assert self_bleu_4(["one"]) is None


@pytest.mark.parametrize(
    "text",
    [
        "1" * 5000,
        "1,000," * 900,
        "the answer is " * 300,
        "**" * 2000,
        "E) " * 1500,
        "\\frac{" * 800,
        "one hundred " * 400,
        "\n" * 5000,
        "1. a\n" * 1000,
        "猫狗" * 2000,
        "*_" * 2000,
        "'" * 5000,
        "x\u0301" * 2000,
        "so therefore " * 400,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_degenerate_texts_are_measured_too(text):
    for prompt in load_prompts("iq_it")[::8]:
        measured = measure_row(row(text, prompt.text), prompt)
        assert measured["grade"] in ("wrong", "unparsed", None)
        assert measured["looped"] is bool(text.strip())
