"""The numbers that a text holds, in digits or in words."""

import re
import unicodedata
from fractions import Fraction

LONGEST = 400  # characters; longer runs of digits are no numbers but loops
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""(?<![A-Za-zÀ-ɏ])(?<![\^\d])(?<!\d\.)   # not the 2 of m2, cm^2 or x2, nor the rest of a longer number
    (?P<sign>[-\u2212\u2013+]?)(?P<currency>[$€£]?)
    (?:
        (?P<whole>\d+)[ ](?P<mixed>\d+/[1-9]\d*)(?![\d/])   # 2 1/2
      | (?P<top>\d+)\s?[/\u2044]\s?(?P<bottom>[1-9]\d*)(?![\d/])   # 3/4
      | (?P<decimal>{_DIGITS}?\.\d+|{_DIGITS})\s?(?P<vulgar>[¼-¾⅐-⅞])?   # 1,000.5 and 3½
      | (?P<alone>[¼-¾⅐-⅞])
    )""",
    re.VERBOSE,
)
# a + or - after one of these is an operation (7-5, 7 -5, x-5, pages 3–5), not a sign
_BEFORE_OPERATION = re.compile(r"(?:[\w)\]%½]|[\d)\]]\s+)$")
_LIST_NUMBER = re.compile(r"^[ \t]*(?:step[ ])?(\d{1,2})[.):][ \t]+(?=\S)", re.MULTILINE | re.IGNORECASE)
_LATEX = ((r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"), (r"\{,\}", ","), (r"\\[,;!]", ""))


def numbers(text: str) -> list[Fraction]:
    """Return the numbers written in a text, in order.

    A comma before three digits groups thousands. Numbers of a list's lines (1. 2. 3.) and exponents of units are
    left out. Where there is no digit, number words up to the thousands count ("twenty-five", "three quarters").
    """
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    text = _without_list_numbers(text)
    found = [_value(match, text) for match in _NUMBER.finditer(text) if len(match[0]) <= LONGEST]
    return found or _number_words(text)


def _value(match: re.Match, text: str) -> Fraction:
    part = match.groupdict()
    if part["mixed"]:
        value = Fraction(part["whole"]) + Fraction(part["mixed"])
    elif part["top"]:
        value = Fraction(int(part["top"]), int(part["bottom"]))
    elif part["alone"]:
        value = _vulgar(part["alone"])
    else:
        value = Fraction(part["decimal"].replace(",", "")) + (_vulgar(part["vulgar"]) if part["vulgar"] else 0)
    before = text[max(0, match.start() - 4) : match.start()]
    return -value if part["sign"] not in ("", "+") and not _BEFORE_OPERATION.search(before) else value


def _vulgar(character: str) -> Fraction:
    return Fraction(unicodedata.numeric(character)).limit_denominator(100)


def _without_list_numbers(text: str) -> str:
    """Blank the numbers that count the lines of a list, if there are at least two, from 1 upwards."""
    marks = list(
        re.finditer(r"^[ \t]*(?:step[ ])?(\d{1,2})[.):][ \t]+(?=\S)", text, flags=re.MULTILINE | re.IGNORECASE)
    )
    counting = [mark for place, mark in enumerate(marks, start=1) if int(mark[1]) == place]
    if len(counting) < 2:
        return text
    for mark in reversed(counting):
        text = text[: mark.start()] + text[mark.end() :]
    return text


_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: value for value, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourths": 4}


def _number_words(text: str) -> list[Fraction]:
    """Read numbers from words; a lone "one" is taken for the pronoun."""
    found: list[Fraction] = []
    run: list[str] = []  # the words of the number being read
    sign, before = 1, ""
    for word in [*re.findall(r"[^\W\d_]+", text.casefold()), ""]:
        if word in _PARTS and (run or word == "half"):
            found.append(Fraction(sign * (_of_words(run) or 1), _PARTS[word]))
            run = []
        elif run and (_continues(run, word) or (word == "and" and run[-1] in _SCALES)):
            run.append(word)
        else:
            if run and run != ["one"]:
                found.append(Fraction(sign * _of_words(run)))
            run = [word] if word in _WORDS else []
            sign = -1 if before in ("minus", "negative") else 1
        before = word
    return found


def _continues(run: list[str], word: str) -> bool:
    """Whether a number goes on: twenty|five, two|hundred, hundred and|fourteen, but not five|six."""
    if word in _SCALES:
        return run[-1] != "and" and word not in run
    if word not in _WORDS:
        return False
    return run[-1] == "and" or run[-1] in _SCALES or (run[-1] in _TENS and 0 < _WORDS[word] < 10)


def _of_words(run: list[str]) -> int:
    total = below = 0
    for word in run:
        if word == "thousand":
            total, below = total + below * 1000, 0
        elif word == "hundred":
            below *= 100
        else:
            below += _WORDS.get(word, 0)  # "and" adds nothing
    return total + below
