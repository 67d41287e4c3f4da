"""Which of a few choices a completion settles on."""

import re
from collections.abc import Sequence

REACH = 200  # characters behind a statement's opening words in which the answer is looked for
# in a statement of the answer, the first choice behind these words is the answer
_STATEMENT = re.compile(
    r"\b(?:answer|odd one(?: out)?|solution|correct (?:one|choice|option|word))\b[^.\n]{0,60}?"
    r"(?:\bis\b|\bwould be\b|:|=)|\\boxed",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|consequently)\b|(?:^|[.!?,;\n][ \t]*)so\b", re.IGNORECASE)
DENIAL = re.compile(
    r"(?:\bnot|n['’]t|\bneither|\bnor|\brather than|\bexcept|\bunlike)(?:\s+(?:a|an|the))?\s*[\"'“‘]?$", re.IGNORECASE
)
# these deny all of a list behind them: "unlike violin, flute and drum"
_DENIAL_OF_ALL = re.compile(r"\b(?:unlike|except|neither)\b[^.!?\n]*$", re.IGNORECASE)
_LISTED = re.compile(r"\s*(?:,|,?\s*\b(?:and|or|nor)\b)\s*(?:(?:a|an|the)\s+)?[\"'“‘]?", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*(?:[,.;:!?)]|\b(?:and|or|nor)\b|$)", re.IGNORECASE)  # behind an item of such a list
_REASON = re.compile(r"\b(?:because|since)\b|,\s+as\b", re.IGNORECASE)
_NOT_A_NO = r"(?!\s+(?:idea|one|doubt|matter|longer|more|less|such)\b)"  # "no idea" says neither yes nor no
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_JOINT = re.compile(r"[\s,;:.)\"'–—-]*(?:and|or)?\s*")  # what parts the items of a list
_OPENING = re.compile(r"[\s\"'“‘(\[>#-]*(?:(?:it['’]?s|it is|the|a|an|definitely|clearly)\s+)*[\"'“‘(]*", re.IGNORECASE)
# what may follow a choice that opens a completion as its answer: "Ladder." "Yes, since ..." but not "Ana is taller"
_STANDS_ALONE = re.compile(r"[\"'”’)]*\s*(?:$|[.!:;\n–—]|-\s|,\s|\(|(?:because|since|as)\b)")


def chosen(completion: str, choices: Sequence[str], lettered: bool = False) -> str | None:
    """Return the choice a completion settles on, None if it names none, or several without a verdict.

    What decides, in this order: the first choice after the last "the answer is" (or the like); the one that the
    completion opens with, standing alone; the only one in bold; the first one after the last "therefore" (or the
    like); the only one named; the only one of the first sentence, or else of the last, up to its "because". A choice
    that is named to be denied ("not the drum") does not count, nor do the first two rules take one of a list of them.

    Args:
        completion: the answer, possibly with Markdown.
        choices: the words to choose from.
        lettered: whether the choices also go by A, B, C, ..., in their order.
    """
    find = _ChoiceFinder(choices, lettered)
    bold = re.findall(r"\*\*(.+?)\*\*", completion, flags=re.DOTALL)
    text = plain(completion)
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]
    return (
        find.after(_STATEMENT, text)
        or find.opening(text)
        or _only(find.named(plain("\n".join(bold)), verdict=True))
        or find.after(_CONCLUSION, text)
        or _only(find.named(text))
        or next((only for part in (*sentences[:1], *sentences[-1:]) if (only := _only(find.named(_claim(part))))), None)
    )


class _ChoiceFinder:
    """Finds choices by word, and by letter if they have letters."""

    def __init__(self, choices: Sequence[str], lettered: bool):
        self.by_word = {choice.casefold(): choice for choice in sorted(choices, key=len, reverse=True)}
        names = [chr(ord("A") + place) for place in range(len(choices))] if lettered else []
        self.by_letter = dict(zip(names, choices, strict=False))
        each = (re.escape(word) + (_NOT_A_NO if word == "no" else "") for word in self.by_word)
        words = rf"(?<!\w)(?:{'|'.join(each)})(?:e?s)?(?!\w)"
        if not lettered:
            self.anywhere = self.verdict = re.compile(words, re.IGNORECASE)
            return
        every, behind_a = f"[{''.join(names)}]", f"[{''.join(names[1:])}]"
        start = r"(?<![A-Za-z0-9_'’])(?<!\b(?-i:[A-Z]) )"
        # "A" and small letters may be words, so they need a sign behind them
        closed = rf"{every}(?=[).,:;!\"'}}\]]|\s*$)"
        self.anywhere = re.compile(rf"{words}|{start}(?:(?-i:{closed})|option {every}(?!\w))", re.IGNORECASE)
        reasoned = rf"{every}(?=\s+(?:because|since)\b)"
        letter = rf"(?:option |choice )?(?:(?-i:{behind_a})(?!\w)|{closed}|{reasoned})"
        self.verdict = re.compile(rf"{words}|{start}{letter}", re.IGNORECASE)

    def named(self, text: str, verdict: bool = False) -> list[str]:
        """Return the choices named in a text, in order; bare letters count where a verdict is expected."""
        found, denied_until = [], -1
        for match in (self.verdict if verdict else self.anywhere).finditer(text):
            start, end = match.span()
            joined = denied_until >= 0 and _LISTED.fullmatch(text, denied_until, start)
            listed = joined and _GOES_ON.match(text, end)
            if listed or denied(text, start):
                denied_until = end if listed or _DENIAL_OF_ALL.search(text, max(0, start - 30), start) else -1
            else:
                found.append(self._choice(match[0]))
        return found

    def after(self, introduction: re.Pattern, text: str) -> str | None:
        """Return the first choice in the rest of the sentence behind the last introduction that has one."""
        for match in reversed(list(introduction.finditer(text))):
            rest = _SENTENCE_END.split(text[match.end() : match.end() + REACH], maxsplit=1)[0] + " "
            named = self.named(rest, verdict=True)
            if named and not self._begins_list(rest, named[0]):
                return named[0]
        return None

    def opening(self, text: str) -> str | None:
        """Return the choice that opens a text and stands alone: no further choice follows it as in a list."""
        start = _OPENING.match(text).end()
        first = self.verdict.match(text, start)
        if not first:
            return None
        found, end = self._choice(first[0]), first.end()
        if first[0].upper() in self.by_letter:  # B) shout
            end = re.compile(rf"[).:\s]*(?:{re.escape(found)})?", re.IGNORECASE).match(text, end).end()
        if not _STANDS_ALONE.match(text, end):
            return None
        following = self.verdict.search(text, end)
        return None if following and _JOINT.fullmatch(text, end, following.start()) else found

    def _begins_list(self, text: str, first: str) -> bool:
        """Whether a choice goes on to others as in a list that ends the text: A, B, C; but not: A, B is smaller."""
        end = next(match.end() for match in self.verdict.finditer(text) if self._choice(match[0]) == first)
        others = {self._choice(match[0]) for match in self.verdict.finditer(text, end)} - {first}
        rest = self.verdict.sub(" ", text[end:])
        return bool(others) and re.fullmatch(r"(?:[\s,;:.)\"'–—-]|\b(?:and|or)\b)*", rest) is not None

    def _choice(self, found: str) -> str:
        folded = found.casefold()
        for word, choice in self.by_word.items():
            if folded.startswith(word):
                return choice
        return self.by_letter[folded.split()[-1].upper()]


def denied(text: str, place: int) -> bool:
    """Whether the word at a place of a text follows a "not" or the like."""
    return DENIAL.search(text[max(0, place - 30) : place]) is not None


def _claim(sentence: str) -> str:
    """Return a sentence up to its "because", or all of it where that stands first."""
    claim = _REASON.split(sentence, maxsplit=1)[0]
    return claim if claim.strip() else sentence


def _only(named: list[str]) -> str | None:
    return named[0] if len(set(named)) == 1 else None


def plain(text: str) -> str:
    """Return the text without Markdown's and LaTeX's marks of emphasis and code."""
    text = re.sub(r"\\(?:text|mathbf|textbf|mathrm)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\*\*|__|`|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|^#+\s+", "", text, flags=re.MULTILINE)
