"""The numbers that a text holds, in digits or in words."""

import re
import unicodedata
from fractions import Fraction

LONGEST = 400  # characters; longer runs of digits are no numbers but loops
_DIGITS = r"(?:(?!0)\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
# 7,2 and 0,875 but neither 1,000 nor a part of 4,11,18
_COMMA = r"(?<!\d,)(?:\d+,(?!\d{3}(?!\d))\d+|0,\d+)(?!\d|[.,]\d)"
_NUMBER = re.compile(
    rf"""(?<![A-Za-zÀ-ɏ])(?<![\^\d])(?<!\d\.)   # not the 2 of m2, cm^2 or x2, nor the rest of a longer number
    (?P<sign>(?i:\b(?:minus|negative)\s+)|[-\u2212\u2013][ ](?=[\d$€£.])|[-\u2212\u2013+]?)(?P<currency>[$€£]?)
    (?:
        (?P<whole>\d+)[ ](?P<mixed>\d+/[1-9]\d*)(?![\d/])   # 2 1/2
      | (?P<top>\d+)\s?[/\u2044]\s?(?P<bottom>[1-9]\d*)(?![\d/])   # 3/4
      | (?P<comma>{_COMMA})
      | (?P<decimal>{_DIGITS}?\.\d+|{_DIGITS})\s?(?P<vulgar>[¼-¾⅐-⅞])?   # 1,000.5 and 3½
      | (?P<alone>[¼-¾⅐-⅞])
    )""",
    re.VERBOSE,
)
# a + or - after one of these is an operation (7-5, 7 -5, x-5, pages 3–5), not a sign
_BEFORE_OPERATION = re.compile(r"(?:[\w)\]%½]|[\d)\]]\s+)$")
# a sign with a space behind it is one behind these, or as the first of the text; elsewhere a dash or an operation
_BEFORE_SPACED_SIGN = re.compile(
    r"(?:^|[:=({$+*/×·<>≈]|\b(?:is|be|are|equals|to|gives|get|makes))[^\S\n]*\Z", re.IGNORECASE
)
_LIST_NUMBER = re.compile(r"^[ \t]*(?:step[ ])?(\d{1,2})[.):][ \t]+(?=\S)", re.MULTILINE | re.IGNORECASE)
_LATEX = ((r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"), (r"\{,\}", ","), (r"\\[,;!]", ""))


def numbers(text: str) -> list[Fraction]:
    """Return the numbers written in a text, in order; number words count where there is no digit."""
    return numbers_in_digits(text) or numbers_in_words(text)


def numbers_in_digits(text: str) -> list[Fraction]:
    """Return the numbers written in digits, in order.

    A comma groups thousands if three digits follow (1,000), else it is a decimal one (7,2). Numbers of a list's lines
    (1. 2. 3.) and exponents of units are left out. "minus", "negative" and a sign with a space behind it count as one.
    """
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    text = _without_list_numbers(text)
    return [_value(match, text) for match in _NUMBER.finditer(text) if len(match[0]) <= LONGEST]


def _value(match: re.Match, text: str) -> Fraction:
    part = match.groupdict()
    if part["mixed"]:
        value = Fraction(part["whole"]) + Fraction(part["mixed"])
    elif part["top"]:
        value = Fraction(int(part["top"]), int(part["bottom"]))
    elif part["alone"]:
        value = _vulgar(part["alone"])
    elif part["comma"]:
        value = Fraction(part["comma"].replace(",", "."))
    else:
        value = Fraction(part["decimal"].replace(",", "")) + (_vulgar(part["vulgar"]) if part["vulgar"] else 0)
    return -value if _is_negative(part["sign"], text[max(0, match.start() - 12) : match.start()]) else value


def _is_negative(sign: str, before: str) -> bool:
    """Whether a sign makes negative what follows it, and is neither an operation nor a dash."""
    if sign in ("", "+"):
        return False
    if sign.endswith(" ") and not sign[0].isalpha():
        return _BEFORE_SPACED_SIGN.search(before) is not None
    return sign[:1] in "nN" or _BEFORE_OPERATION.search(before) is None


def _vulgar(character: str) -> Fraction:
    return Fraction(unicodedata.numeric(character)).limit_denominator(100)


def _without_list_numbers(text: str) -> str:
    """Blank the numbers that count the lines of a list, if there are at least two, from 1 upwards."""
    counting = [mark for place, mark in enumerate(_LIST_NUMBER.finditer(text), start=1) if int(mark[1]) == place]
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
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "quarters": 4}
_PARTS |= {f"{word}s": value for value, word in enumerate(_ORDINALS, start=3)}
# twenty-fourths, as one word
_PARTS |= {
    f"{ten}{part}s": 10 * i + value
    for i, ten in enumerate(_TENS, start=2)
    for value, part in enumerate(_ORDINALS[:7], start=3)
}
_COMPOUND_PART = re.compile(rf"\b({'|'.join(_TENS)})[- ]((?:{'|'.join(_ORDINALS[:7])})s)\b")
_A_NUMBER = rf"(?:(?<!\d)\d|\b(?:{'|'.join(_WORDS)})\b|[¼-¾⅐-⅞])"
_REMARK = re.compile(
    rf"({_A_NUMBER}[\d.,/%°}}$]{{0,20}}(?:[^\S\n]*[^\W\d]{{1,20}}[²³]?){{0,2}}[^\S\n]*[%€$]?[^\S\n]*)"
    r"\((?!\s*=)(?:[^()]|\([^()]*\))*\)",
    re.IGNORECASE,
)


def without_remarks(text: str) -> str:
    """Leave out what stands in brackets right behind a number and its unit, "7/8 (87.5%)", but not "5 * 4 (= 20)"."""
    return _REMARK.sub(r"\1", text)


def numbers_in_words(text: str) -> list[Fraction]:
    """Read numbers from words, up to the thousands ("twenty-five", "seven eighths"); a lone "one" is the pronoun."""
    found: list[Fraction] = []
    run: list[str] = []  # the words of the number being read
    sign, before = 1, ""
    text = _COMPOUND_PART.sub(r"\1\2", text.casefold())
    for word in [*re.findall(r"[^\W\d_]+", text), ""]:
        plural = f"{word}s" if run == ["one"] and word not in _PARTS else word  # one eighth
        if plural in _PARTS and (run or word == "half"):
            found.append(Fraction(sign * (_of_words(run) or 1), _PARTS[plural]))
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
