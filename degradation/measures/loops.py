"""Loops: the end of a text that says the same again and again, until the limit of its length cuts it off."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MAX_PERIOD = 20  # words; a model's tokens are at most as many more as words have pieces
REPEATS = 4
# without spaces there are no words to count; 20 tokens are about so many characters
MAX_PERIOD_CHARACTERS = 60
MIN_LOOP_CHARACTERS = 20  # "Hmmmm" and "..." are no loops


@dataclass(frozen=True)
class Loop:
    """start: characters of the text before the loop. period: characters of one round, at least."""

    start: int
    period: int


def find_loop(text: str) -> Loop | None:
    """Return the loop that a text ends in, None if it ends in none.

    A loop is a run of at most 20 words, told apart by white space and case, that stands at least four times in a row
    at the end; the last round may be unfinished, down to a part of a word, as where the limit cut it off. A last
    stretch without spaces is looked at by characters: a run of at most 60, at least four times in a row, at least 20
    characters in all. The shortest run counts.
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    if not places:
        return None
    words = [text[start:end].casefold() for start, end in places]
    for cut in (0, 1):  # the last word may be cut off
        end = len(words) - cut
        if found := periodic_end(words[:end], MAX_PERIOD, REPEATS):
            first, period = found
            if cut == 0 or words[end - period].startswith(words[end]):
                last = places[first + period - 1][1]
                return Loop(places[first][0], last - places[first][0])
    start, end = places[-1]
    if found := periodic_end(text[start:end], MAX_PERIOD_CHARACTERS, REPEATS):
        first, period = found
        if end - start - first >= MIN_LOOP_CHARACTERS:
            return Loop(start + first, period)
    return None


def periodic_end(items: Sequence[Hashable], max_period: int, repeats: int) -> tuple[int, int] | None:
    """Return (start, period) of the longest periodic end with the smallest period that stands `repeats` times.

    The work is at most max_period x the length of that end.
    """
    count = len(items)
    for period in range(1, min(max_period, count // repeats) + 1):
        start = count - period
        while start > 0 and items[start - 1] == items[start - 1 + period]:
            start -= 1
        if count - start >= repeats * period:
            return start, period
    return None
