"""Which of a few choices a completion settles on."""

import re
from collections.abc import Iterable, Sequence

from .speech import ENGLISH, Speech

REACH = 200  # characters behind a statement's opening words in which the answer is looked for
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def chosen(
    completion: str,
    choices: Sequence[str],
    lettered: bool = False,
    speech: Speech = ENGLISH,
    asked: Iterable[str] = (),
) -> str | None:
    """Return the choice a completion settles on, None if it names none, or several without a verdict.

    What decides, in this order: the first choice after the last "the answer is" (or the like); the one that the
    completion opens with, standing alone; the only one in bold; the first one after the last "therefore" (or the
    like); the only one named; the only one of the first sentence, or else of the last, up to its "because". A choice
    that is named to be denied ("not the drum") does not count, nor do the first two rules take one of a list of them;
    and where whole sentences are a bare choice each, and differ, none of those is a verdict.

    Args:
        completion: the answer, possibly with Markdown.
        choices: the words to choose from.
        lettered: whether the choices also go by A, B, C, ..., in their order.
        speech: how answers are worded in their language.
        asked: content words of the question: a "no" before one of them answers it, one before others may not.
    """
    completion = speech.fold(completion)
    find = _ChoiceFinder(choices, lettered, speech, asked)
    bold = re.findall(r"\*\*(.+?)\*\*", completion, flags=re.DOTALL)
    text = plain(completion)
    sentences = find.claiming(text)
    claims = [_claim(part, speech) for part in (*sentences[:1], *sentences[-1:])]
    return (
        find.after(speech.statement, text)
        or find.opening(text)
        or _only(find.named(plain("\n".join(bold)), verdict=True))
        or find.after(speech.conclusion, text)
        or _only(find.named(text))
        or next((only for part in claims if (only := _only(find.named(part)))), None)
    )


class _ChoiceFinder:
    """Finds choices by word, and by letter if they have letters."""

    def __init__(self, choices: Sequence[str], lettered: bool, speech: Speech, asked: Iterable[str] = ()):
        self.speech = speech
        self.by_word = {speech.bare(choice.casefold()): choice for choice in sorted(choices, key=len, reverse=True)}
        names = [chr(ord("A") + place) for place in range(len(choices))] if lettered else []
        self.by_letter = dict(zip(names, choices, strict=False))
        asked = tuple(asked)
        each = (speech.written(word, asked) for word in self.by_word)
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
        found, denied_until, joint = [], -1, self.speech.alternative
        for match in (self.verdict if verdict else self.anywhere).finditer(text):
            start, end = match.span()
            joined = denied_until >= 0 and joint.fullmatch(text, denied_until, start)
            listed = joined and self.speech.goes_on.match(text, end)
            if listed or denied(text, start, self.speech):
                all_of_it = self.speech.denial_of_all.search(text, max(0, start - 30), start)
                if not listed:
                    joint = self.speech.listed if all_of_it else self.speech.alternative
                denied_until = end
            else:
                found.append(self._choice(match[0]))
                denied_until = -1
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
        start = self.speech.opening.match(text).end()
        first = self.verdict.match(text, start)
        if not first:
            return None
        found, end = self._choice(first[0]), first.end()
        if first[0].upper() in self.by_letter:  # B) shout
            end = re.compile(rf"[).:\s]*(?:{re.escape(found)})?", re.IGNORECASE).match(text, end).end()
        if not self.speech.stands_alone.match(text, end):
            return None
        following = self.verdict.search(text, end)
        joined = following and self.speech.joint.fullmatch(text, end, following.start())
        return None if joined and self._is_item(text, following.end()) else found

    def claiming(self, text: str) -> list[str]:
        """Return the sentences of a text that may hold its verdict, parted at semicolons where all parts say something.

        Sentences that are nothing but a choice are left out where they differ: "Yes. No. Yes."
        """
        sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]
        bare = {part: named[0] for part in sentences if (named := self._bare(part))}
        if len(set(bare.values())) > 1:
            sentences = [part for part in sentences if part not in bare]
        parts = [re.split(r"(?<=;)\s+", part) for part in sentences]
        return [
            clause
            for part, clauses in zip(sentences, parts, strict=True)
            for clause in ([part] if any(map(self._bare, clauses)) else clauses)
        ]

    def _bare(self, text: str) -> list[str]:
        """Return the choices of a text that is nothing but choices, as in a list; else none."""
        listed = self.speech.joints.fullmatch(self.verdict.sub(" ", text))
        return [self._choice(match[0]) for match in self.verdict.finditer(text)] if listed else []

    def _is_item(self, text: str, end: int) -> bool:
        """Whether what stands behind a choice lets it be an item of a list: its end, a joint, or another choice."""
        return bool(
            self.speech.goes_on.match(text, end) or self.verdict.match(text, self.speech.joint.match(text, end).end())
        )

    def _begins_list(self, text: str, first: str) -> bool:
        """Whether a choice goes on to others as in a list that ends the text: A, B, C; but not: A, B is smaller."""
        end = next(match.end() for match in self.verdict.finditer(text) if self._choice(match[0]) == first)
        others = {self._choice(match[0]) for match in self.verdict.finditer(text, end)} - {first}
        rest = self.verdict.sub(" ", text[end:])
        return bool(others) and self.speech.joints.fullmatch(rest) is not None

    def _choice(self, found: str) -> str:
        folded = self.speech.bare(found.casefold())
        for word, choice in self.by_word.items():
            if folded.startswith(word):
                return choice
        return self.by_letter[folded.split()[-1].upper()]


def denied(text: str, place: int, speech: Speech = ENGLISH) -> bool:
    """Whether the word at a place of a text follows a "not" or the like."""
    return speech.denial.search(text[max(0, place - 30) : place]) is not None


def _claim(sentence: str, speech: Speech) -> str:
    """Return a sentence up to its "because", or all of it where that stands first."""
    claim = speech.reason.split(sentence, maxsplit=1)[0]
    return claim if claim.strip() else sentence


def _only(named: list[str]) -> str | None:
    return named[0] if len(set(named)) == 1 else None


def plain(text: str) -> str:
    """Return the text without Markdown's and LaTeX's marks of emphasis and code."""
    text = re.sub(r"\\(?:text|mathbf|textbf|mathrm)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\*\*|__|`|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|^#+\s+", "", text, flags=re.MULTILINE)
