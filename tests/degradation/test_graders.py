"""Judges of answers against completions that were judged by hand."""

from fractions import Fraction

import pytest

from frankenlm.degradation.choices import chosen, plain
from frankenlm.degradation.graders import GRADERS, GRADES, grade, grade_alias, has_letters, list_items
from frankenlm.degradation.numerals import numbers
from frankenlm.degradation.prompts import GRADER_NAMES, Prompt


def test_tables_agree():
    assert set(GRADERS) == set(GRADER_NAMES) - {"list"}


# --- numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", "1000"),
        ("1,234,567.89", "1234567.89"),
        ("100,000 euros", "100000"),
        ("½", "1/2"),
        ("3½ hours", "7/2"),
        ("3 ½", "7/2"),
        ("2 1/2", "5/2"),
        ("3/4", "3/4"),
        ("3 / 4", "3/4"),
        ("-5", "-5"),
        ("−5", "-5"),  # the minus sign proper
        ("is –5", "-5"),  # a dash for it
        ("= -27.", "-27"),
        ("x=-27", "-27"),
        ("(-27)", "-27"),
        ("+4", "4"),
        ("$12.50", "25/2"),
        ("-$3", "-3"),
        ("12km", "12"),
        ("25%", "25"),
        ("90°", "90"),
        (".5", "1/2"),
        ("5.", "5"),
        ("392 cm^2", "392"),
        ("392 cm²", "392"),
        ("392 m2", "392"),
        ("**392** square centimetres", "392"),
        (r"\boxed{42}", "42"),
        (r"$\frac{11}{24}$", "11/24"),
        ("1{,}000", "1000"),
        ("٤٢", "42"),
        ("答案是 42。", "42"),
        ("答案是42。", "42"),
        ("H2", None),  # a digit behind a Latin letter is part of a name
        ("twelve", "12"),
        ("Twenty-five bags.", "25"),
        ("one hundred and twenty", "120"),
        ("two thousand three hundred and five", "2305"),
        ("minus twenty-seven", "-27"),
        ("three quarters", "3/4"),
        ("one half", "1/2"),
        ("I cannot say which one", None),
        ("", None),
        ("no number", None),
        ("NaN", None),
        ("²", None),
        ("4/0", "0"),  # no fraction: two numbers
    ],
)
def test_the_last_number(text, expected):
    found = numbers(plain(text))
    assert (found[-1] if found else None) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7-5", [7, 5]),
        ("7 - 5 = 2", [7, 5, 2]),
        ("7 -5", [7, 5]),
        ("5 + -3", [5, -3]),
        ("pages 3–5", [3, 5]),
        ("4,11,18", [4, 11, 18]),
        ("3 * 4 = 12", [3, 4, 12]),
        ("7,200 ml = 7.2 L", [7200, Fraction("7.2")]),
        ("1. Add\n2. Divide 8\n3. Done", [8]),
        ("Step 1: 7 * 24\nStep 2: 168 - 18\n", [7, 24, 168, 18]),
        ("1. 26", [1, 26]),  # one line is no list
        ("three apples and 4 pears", [4]),  # words count only without digits
        ("five six seven", [5, 6, 7]),
        ("twenty five and thirty", [25, 30]),
        ("1.2.3", [Fraction("1.2")]),
    ],
)
def test_all_numbers(text, expected):
    assert numbers(text) == expected


def number(answer, tolerance=0.0) -> Prompt:
    return Prompt(id=1, text="How many?", set="x", skill="math", grader="number", answer=answer, tolerance=tolerance)


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("The answer is 26.", 26, "correct"),
        ("First 24, then 47, so 26", 26, "correct"),  # the last one counts
        ("26 is more than 24", 26, "wrong"),
        ("26.0", 26, "correct"),
        ("7.2 litres", 7.2, "correct"),
        ("7.20001", 7.2, "wrong"),
        ("0.75", "3/4", "correct"),
        ("¾", "3/4", "correct"),
        ("-27", -27, "correct"),
        ("27", -27, "wrong"),
        ("I do not know.", 26, "unparsed"),
        ("", 26, "unparsed"),
        ("\n \t", 26, "unparsed"),
        ("知りません", 26, "unparsed"),
        ("26 26 26 26 26", 26, "correct"),
        ("2" * 6000, 26, "unparsed"),  # a loop, and more digits than Python turns into a number
        ("hundred thousand " * 500, 26, "unparsed"),
    ],
)
def test_numbers_judged(completion, answer, expected):
    assert grade(completion, number(answer)) == expected


def test_tolerance_is_absolute():
    assert grade("0.46", number("11/24", tolerance=0.002)) == "correct"
    assert grade("0.46", number("11/24")) == "wrong"
    assert grade("0.45", number("11/24", tolerance=0.002)) == "wrong"


# --- choices

LETTERS = ("whisper", "shout", "mumble", "climb")
WORDS = ("violin", "flute", "ladder", "drum", "harp")
NAMES = ("Carl", "Ana", "Ben")
YES_NO = ("yes", "no")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("the answer is B.", "shout"),
        ("The answer is b.", "shout"),
        ("B", "shout"),
        ("b", "shout"),
        ("(B)", "shout"),
        ("B.", "shout"),
        ("B) shout", "shout"),
        ("**D) climb**", "climb"),
        ("Option C", "mumble"),
        ("Answer: d", "climb"),
        (r"\boxed{D}", "climb"),
        ("I think it's D.", "climb"),
        ("D because the others are sounds", "climb"),
        ("The answer is D because B is a sound", "climb"),
        ("The answer is D) climb, as A) whisper and B) shout are sounds.", "climb"),
        ("D, because whisper, shout and mumble are ways of speaking.", "climb"),
        ("The correct answer is **D) climb**.\n\nHere's why: A, B and C are sounds", "climb"),
        ("A person can climb.", "climb"),  # the article is no letter
        ("答案是 B", "shout"),
        ("A) whisper B) shout C) mumble D) climb", None),  # the question again
        ("A B C D", None),
        ("E", None),
        ("Because", None),
        ("", None),
        ("kjh qwe lkj", None),
        ("ответ неизвестен", None),
    ],
)
def test_choices_by_letter(completion, expected):
    assert chosen(completion, LETTERS, lettered=True) == expected


@pytest.mark.parametrize(
    ("completion", "choices", "expected"),
    [
        ("ladder", WORDS, "ladder"),
        ("Ladder.", WORDS, "ladder"),
        ("ladders", WORDS, "ladder"),
        ('"Ladder" is the answer', WORDS, "ladder"),
        ("The answer: *ladder*", WORDS, "ladder"),
        ("The odd one out is the **ladder**. Violin, flute, drum and harp are instruments.", WORDS, "ladder"),
        ("The ladder is no instrument. The violin and the drum are.", WORDS, "ladder"),
        ("Violin, flute, drum and harp are instruments. A ladder is not.", WORDS, "ladder"),
        ("It is not the drum but the ladder.", WORDS, "ladder"),
        ("The answer is not the violin, it is the ladder.", WORDS, "ladder"),
        ("It isn't a drum.", WORDS, None),
        ("violin flute ladder drum harp", WORDS, None),
        ("A drummer", WORDS, None),  # whole words only
        ("B", WORDS, None),  # there are no letters
        ("Yes.", YES_NO, "yes"),
        ("No, because yes would be wrong", YES_NO, "no"),
        ("Since they do, the answer is **no**", YES_NO, "no"),
        ("YES", YES_NO, "yes"),
        ("yes no yes no", YES_NO, None),
        ("Nobody knows", YES_NO, None),
        ("Ana", NAMES, "Ana"),
        ("Ana's the tallest", NAMES, "Ana"),
        ("Banana", NAMES, None),
        ("Ana is taller than Ben, and Ben than Carl. So Ana is the tallest.", NAMES, "Ana"),
        ("Ben is taller than Carl.\n\nTherefore, Ana is the tallest.", NAMES, "Ana"),
        ("**Reasoning:** Ana > **Ben**. The tallest is **Ana**. The solution is Ana", NAMES, "Ana"),
        (r"The final answer is $\boxed{Ana}$", NAMES, "Ana"),
        ("The answer is Ben. No: the answer is Ana.", NAMES, "Ana"),
    ],
)
def test_choices_by_word(completion, choices, expected):
    assert chosen(completion, choices) == expected


def test_a_choice_is_right_wrong_or_neither():
    text = "Which differs? A) whisper B) shout C) mumble D) climb"
    prompt = Prompt(id=1, text=text, set="x", skill="y", grader="choice", choices=LETTERS, answer="climb", chance=0.25)
    assert has_letters(prompt)
    assert [grade(answer, prompt) for answer in ("D", "climb", "B", "shout", "")] == [
        "correct", "correct", "wrong", "wrong", "unparsed"
    ]  # fmt: skip


# --- aliases


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Carbon dioxide.", "correct"),
        ("It is **CO2**", "correct"),
        ("carbon\ndioxide", "correct"),
        ("Oxygen", "wrong"),
        ("not carbon dioxide but oxygen", "wrong"),
        ("carbondioxides", "wrong"),
        ("二酸化炭素", "wrong"),
        ("", "unparsed"),
        ("... 12 !", "unparsed"),
    ],
)
def test_aliases(completion, expected):
    prompt = Prompt(id=1, text="Which gas?", set="x", skill="y", grader="alias", answer=("carbon dioxide", "co2"))
    assert grade_alias(completion, prompt) == expected


def test_no_key_no_grade():
    assert grade("12", Prompt(id=1, text="Tell.", set="x", skill="y")) is None
    assert grade("12", Prompt(id=1, text="List two.", set="x", skill="y", grader="list", items=2)) is None
    assert GRADES == ("correct", "wrong", "unparsed")


# --- lists


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("1. A vase\n2. A lamp\n3. A vase", ["a vase", "a lamp", "a vase"]),
        ("Here are two:\n* **Vase:** for flowers\n* Lamp - with a candle\n\nEnjoy!", ["vase", "lamp"]),
        ("vase, lamp; bank, and drum", ["vase", "lamp", "bank", "drum"]),
        ("Nine words: soft, wet.", ["soft", "wet"]),
        ("vase\nlamp\n", ["vase", "lamp"]),
        ("(1) vase\n(2) lamp", ["vase", "lamp"]),
        ("• vase\n• lamp", ["vase", "lamp"]),
        ("word", ["word"]),
        ("", []),
        ("\n - \n", []),
    ],
)
def test_list_items(completion, expected):
    assert list_items(completion) == expected
