"""Judges of short answers: is the number, the choice or the word in a completion the right one?

A judge gives one of three values: "correct", "wrong", or "unparsed" where the completion holds nothing that could be an
answer. It reads text only, so damaged models' answers can be judged again at any time.

    number  the last number of the completion (digits, fractions, "1,000", "½"; number words where there are no digits)
    choice  one of the choices, by its word or, where the prompt letters them, by its letter
    alias   any of a few words that all mean the right answer
    list    not judged: its items are counted (`list_items`)
"""

import re
from collections.abc import Callable
from fractions import Fraction

from .choices import chosen, denied, plain
from .numerals import numbers
from .prompts import Prompt

CORRECT, WRONG, UNPARSED = "correct", "wrong", "unparsed"
GRADES = (CORRECT, WRONG, UNPARSED)


def grade(completion: str, prompt: Prompt) -> str | None:
    """Return "correct", "wrong" or "unparsed" for the answer to a prompt; None where the prompt has no key."""
    judge = GRADERS.get(prompt.grader) if prompt.grader else None
    return judge(completion, prompt) if judge else None


def grade_number(completion: str, prompt: Prompt) -> str:
    """Judge by the last number; equal up to the prompt's `tolerance` and a millionth of the key."""
    found = numbers(plain(completion))
    if not found:
        return UNPARSED
    key = Fraction(str(prompt.answer))
    allowed = max(Fraction(str(prompt.tolerance)), abs(key) / 1_000_000)
    return CORRECT if abs(found[-1] - key) <= allowed else WRONG


def grade_choice(completion: str, prompt: Prompt) -> str:
    """Judge by the choice that the completion settles on (`choices.chosen`); "unparsed" where it settles on none."""
    found = chosen(completion, prompt.choices, lettered=has_letters(prompt))
    if found is None:
        return UNPARSED
    return CORRECT if found == prompt.answer else WRONG


def has_letters(prompt: Prompt) -> bool:
    """Whether the prompt names its choices by letters: A) ... B) ..."""
    return all(f"{chr(ord('A') + place)}) {choice}" in prompt.text for place, choice in enumerate(prompt.choices))


def grade_alias(completion: str, prompt: Prompt) -> str:
    """Judge by whether one of the aliases stands in the completion as whole words; "unparsed" without any letter."""
    text = plain(completion).casefold()
    if not any(character.isalpha() for character in text):
        return UNPARSED
    aliases = [prompt.answer] if isinstance(prompt.answer, str) else prompt.answer
    named = any(not denied(text, place) for alias in aliases for place in phrase_places(text, alias))
    return CORRECT if named else WRONG


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


GRADERS: dict[str, Callable[[str, Prompt], str]] = {
    "number": grade_number,
    "choice": grade_choice,
    "alias": grade_alias,
}
