"""Judges of answers against completions that were judged by hand."""

from fractions import Fraction

import pytest

from frankenlm.degradation.measures.battery import SCORES
from frankenlm.degradation.measures.choices import chosen, plain
from frankenlm.degradation.measures.graders import GRADERS, grade, grade_alias, has_letters, list_items
from frankenlm.degradation.measures.numerals import numbers, numbers_in_digits, numbers_in_words
from frankenlm.degradation.prompts import GRADER_NAMES, LabPrompt, load_prompts


def test_tables_agree():
    assert {*GRADERS, *SCORES, "list"} == set(GRADER_NAMES)


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
        ("minus 27", "-27"),
        ("Negative 27.", "-27"),
        ("Answer: - 27", "-27"),
        ("- 27", "-27"),
        ("is − 27", "-27"),
        (r"\boxed{- 27}", "-27"),
        ("Answer:\n- 27", "27"),  # the mark of a list
        ("The rent - 660", "660"),  # a dash
        ("8 minus 35", "35"),
        ("7,2 litres", "36/5"),
        ("0,875", "7/8"),  # no thousands begin with 0
        ("660,00 euros", "660"),
        ("12,5", "25/2"),
        ("10,875", "10875"),
        ("seven eighths", "7/8"),
        ("eleven twenty-fourths", "11/24"),
        ("one eighth", "1/8"),
        ("minus two fifths", "-2/5"),
        ("the fifth", None),
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
        ("5(y - 2) = 2y + 17", [5, 2, 2, 17]),
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


def number(answer, tolerance=0.0) -> LabPrompt:
    return LabPrompt(id=1, text="How many?", set="x", skill="math", grader="number", answer=answer, tolerance=tolerance)


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


@pytest.mark.parametrize(
    ("question", "completion", "answer", "expected"),
    [
        ("She rides 18 km every hour. How far in 4 hours?", "She rides 72 kilometres in 4 hours.", 72, "correct"),
        ("She rides 18 km every hour. How far in 4 hours?", "She rides 36 kilometres in 4 hours.", 72, "wrong"),
        ("She rides 18 km every hour. How far in 4 hours?", "In 4 hours", 72, "wrong"),  # the question's number only
        ("She rides 18 km every hour. How far in 4 hours?", "She rides far.", 72, "unparsed"),
        ("Find the x for which 3x + 19 = 52.", "x = 11. Check: 3*11 + 19 = 52", 11, "correct"),
        ("Find the x for which 3x + 19 = 52.", "3x = 33, so x = 11", 11, "correct"),  # the last of the new ones
        ("What is 96/12 - 35?", "8 - 35 = -27", -27, "correct"),
        ("It holds twelve. How many do 2 hold?", "24 are held, by 12 each.", 24, "correct"),  # by value
        ("He packs bags of 6. How many?", "Twenty-five bags of 6.", 25, "correct"),  # the digits say nothing new
        ("Into how many chambers?", "Four: two atria and two ventricles.", 4, "correct"),
        ("Into how many chambers?", "4 (2 atria and 2 ventricles)", 4, "correct"),
        ("Into how many chambers?", "Four chambers (2 atria and 2 ventricles)", 4, "correct"),
        ("How much?", "7/8 (87.5%)", "7/8", "correct"),
        ("How much?", "7/8 (that is (about) 87.5%).", "7/8", "correct"),
        ("How much?", r"\frac{7}{8} (87.5%)", "7/8", "correct"),
        ("How much?", "(7/8)", "7/8", "correct"),
        ("How much?", "5 * 4 (= 20)", 20, "correct"),
        ("How much?", "3 4 (" + "9" * 5000, 4, "correct"),
    ],
)
def test_numbers_of_the_question_are_passed_over(question, completion, answer, expected):
    prompt = LabPrompt(id=1, text=question, set="x", skill="math", grader="number", answer=answer)
    assert grade(completion, prompt) == expected


@pytest.mark.parametrize("name", ["iq_it", "smoke"])
def test_no_key_stands_in_its_prompt(name):
    """Else passing over the numbers of the question would pass over the answer."""
    for prompt in load_prompts(name):
        if prompt.grader == "number":
            given = numbers_in_digits(prompt.text) + numbers_in_words(prompt.text)
            assert Fraction(str(prompt.answer)) not in given, prompt.id
            assert grade(str(prompt.answer), prompt) == "correct"


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
        ("A whisper is quiet. The odd one is D", "climb"),
        ("I think it's climb since whisper, shout and mumble are ways to speak.", "climb"),
        ("The answer is A, B, C, D", None),
        ("The answer is A) whisper B) shout C) mumble D) climb", None),
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
        ("A ladder is not a musical instrument, unlike violin, flute, drum, harp.", WORDS, "ladder"),
        ("Unlike the violin, flute, drum and harp, a ladder is not played.", WORDS, "ladder"),
        ("Unlike Ben, Ana is tall.", NAMES, "Ana"),
        ("Not Ben, Ana.", NAMES, "Ana"),
        ("The answer is Ana, Ben is shorter.", NAMES, "Ana"),
        ("The answer is violin, flute and ladder.", WORDS, None),
        ("Ana is the tallest because Ben is shorter and Carl, too.", NAMES, "Ana"),
        ("Because Ben is taller than Carl.", NAMES, None),
        ("xx no idea", YES_NO, None),
        ("No one knows", YES_NO, None),
        ("No doubt: yes", YES_NO, "yes"),
        ("There is no way. No", YES_NO, "no"),
        ("The bell is not ringing.", YES_NO, None),  # needs the question: not judged
        ("Rita tells the truth and Sam lies.", ("Sam", "Rita"), None),  # the same
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
    prompt = LabPrompt(
        id=1, text=text, set="x", skill="y", grader="choice", choices=LETTERS, answer="climb", chance=0.25
    )
    assert has_letters(prompt)
    assert [grade(answer, prompt) for answer in ("D", "climb", "B", "shout", "")] == [
        "correct",
        "correct",
        "wrong",
        "wrong",
        "unparsed",
    ]


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
    prompt = LabPrompt(id=1, text="Which gas?", set="x", skill="y", grader="alias", answer=("carbon dioxide", "co2"))
    assert grade_alias(completion, prompt) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("June, July, August", "correct"),
        ("June July August September", "unparsed"),
        ("1. June\n2. July\n3. August\n4. September", "unparsed"),
        ("August, then September", "unparsed"),
        ("August. September follows.", "correct"),
        ("August, September, October ... so it is August.", "correct"),
        ("July", "wrong"),
    ],
)
def test_an_answer_that_a_series_passes_through(completion, expected):
    prompt = LabPrompt(id=1, text="Which month?", set="x", skill="y", grader="alias", answer=("august",))
    assert grade_alias(completion, prompt) == expected


def test_no_key_no_grade():
    assert grade("12", LabPrompt(id=1, text="Tell.", set="x", skill="y")) is None
    assert grade("12", LabPrompt(id=1, text="List two.", set="x", skill="y", grader="list", items=2)) is None


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
