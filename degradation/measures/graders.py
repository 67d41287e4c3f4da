"""Judges of short answers: is the number, the choice or the word in a completion the right one?

A judge gives one of three values: "correct", "wrong", or "unparsed" where the completion holds nothing that could be an
answer. It reads text only, so damaged models' answers can be judged again at any time.

    number  the last number of the completion that does not stand in the prompt, else the last one (digits, fractions,
            "1,000", "7,2", "½"; number words where the digits say nothing new)
    choice  one of the choices, by its word or, where the prompt letters them, by its letter
    alias   any of a few words that all mean the right answer
    list    not judged: its items are counted (`list_items`)

The rule for numbers is not the usual "last number": full sentences, such as undamaged models write, often end in a
number of the question ("She rides 72 kilometres in 4 hours."), so that "last number" would call them wrong, and less
often the short or looping answers of damaged models: a bias that depends on the damage. No key of the shipped prompts
stands in its prompt, so passing over the prompt's numbers loses no answer. The price: who reaches the key and then ends
in a number of the prompt counts as right.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from ..prompts import LabPrompt
from .choices import chosen, denied, plain
from .languages import language_of
from .numerals import numbers, numbers_in_digits, numbers_in_words, without_remarks
from .speech import speech_of
from .text_words import words

CORRECT, WRONG, UNPARSED = "correct", "wrong", "unparsed"
# what people recite
SERIES = (
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    (
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ),
    ("spring", "summer", "autumn", "winter"),
    ("spring", "summer", "fall", "winter"),
    ("mercury", "venus", "earth", "mars", "jupiter", "saturn", "uranus", "neptune"),
)


def grade(completion: str, prompt: LabPrompt) -> str | None:
    """Return "correct", "wrong" or "unparsed" for the answer to a prompt; None where the prompt has no key."""
    judge = GRADERS.get(prompt.grader) if prompt.grader else None
    return judge(completion, prompt) if judge else None


def grade_number(completion: str, prompt: LabPrompt) -> str:
    """Judge by the number that `settled_number` finds; equal up to the prompt's `tolerance` and a millionth of the key.

    Not by the last number of all, for the reason that stands above.
    """
    found = settled_number(plain(completion), prompt.text)
    if found is None:
        return UNPARSED
    key = Fraction(str(prompt.answer))
    allowed = max(Fraction(str(prompt.tolerance)), abs(key) / 1_000_000)
    return CORRECT if abs(found - key) <= allowed else WRONG


def settled_number(text: str, question: str) -> Fraction | None:
    """Return the number that an answer comes to, None without any.

    It is the last one that does not equal any number of the question: first of those in digits, remarks in brackets
    left out, then of those in words. Of words the first counts: nobody calculates in words, and what follows explains
    ("four chambers: two atria and two ventricles"). An answer with the question's numbers only is taken at its last.
    """
    given = {*numbers_in_digits(question), *numbers_in_words(question)}
    digits, words = numbers_in_digits(without_remarks(text)), numbers_in_words(text)
    new_digits, new_words = ([number for number in found if number not in given] for found in (digits, words))
    return next((found for found in (*new_digits[-1:], *new_words[:1], *numbers(text)[-1:])), None)


def grade_choice(completion: str, prompt: LabPrompt) -> str:
    """Judge by the choice that the completion settles on (`choices.chosen`); "unparsed" where it settles on none."""
    found = settled_choice(completion, prompt)
    if found is None:
        return UNPARSED
    return CORRECT if found == prompt.answer else WRONG


def settled_choice(completion: str, prompt: LabPrompt) -> str | None:
    """Return the choice of a prompt that an answer settles on, None where there is none."""
    # what is asked, without "Answer yes or no." behind it
    asked = words(prompt.text[: prompt.text.rfind("?") + 1])
    content = [word for word in asked if word not in language_of(prompt.language).function_words]
    return chosen(completion, prompt.choices, has_letters(prompt), speech_of(prompt.language), content)


def has_letters(prompt: LabPrompt) -> bool:
    """Whether the prompt names its choices by letters: A) ... B) ..."""
    return all(f"{chr(ord('A') + place)}) {choice}" in prompt.text for place, choice in enumerate(prompt.choices))


def grade_alias(completion: str, prompt: LabPrompt) -> str:
    """Judge by whether one of the aliases stands in the completion as whole words.

    "unparsed" without any letter, and where the answer is only passed through: one of a series that is recited beyond
    it ("June, July, August, September").
    """
    text = plain(completion).casefold()
    if not any(character.isalpha() for character in text):
        return UNPARSED
    aliases = [prompt.answer] if isinstance(prompt.answer, str) else prompt.answer
    named = [(alias, place) for alias in aliases for place in phrase_places(text, alias) if not denied(text, place)]
    if not named:
        return WRONG
    return UNPARSED if all(passed_through(text, *each) for each in named) else CORRECT


def passed_through(text: str, word: str, place: int) -> bool:
    """Whether a word at a place is followed at once by the one that comes next in its series."""
    series = next((each for each in SERIES if word.casefold() in each), None)
    if series is None:
        return False
    after = series[(series.index(word.casefold()) + 1) % len(series)]
    return re.match(rf"(?:[\s,;/>→–-]|\d+[.)]|and\b|then\b)*{after}\b", text[place + len(word) :]) is not None


def phrase_places(text: str, phrase: str) -> list[int]:
    """Return where a phrase begins, as whole words, in a casefolded text."""
    words = r"\s+".join(re.escape(word) for word in phrase.casefold().split())
    return [match.start() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text)]


def list_items(completion: str) -> list[str]:
    """Return the items of a written list, casefolded, without their marks and what follows a colon or dash.

    They are the lines marked with a bullet or number; where there are fewer than two of them, the lines; where
    there is one line only, what its commas and semicolons part.
    """
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    marked = [match[1] for line in lines if (match := re.match(r"(?:[-*•+]|\(?\d{1,3}[.)])\s+(.*)", line))]
    items = marked if len(marked) >= 2 else lines
    if len(items) == 1:
        items = re.split(r"[,;]\s*(?:and\s+)?", items[0].rpartition(":")[2].rstrip("."))
    heads = (re.split(r":|\s[-–—]\s", plain(item), maxsplit=1)[0] for item in items)
    return [head for item in heads if (head := item.casefold().strip(" .,;:!-–—•\"'“”‘’"))]


GRADERS: dict[str, Callable[[str, LabPrompt], str]] = {
    "number": grade_number,
    "choice": grade_choice,
    "alias": grade_alias,
}
