"""Texts that come line by line and are articles in truth: WikiText, in which ` = Title = ` opens an article.

The hub's Parquet of WikiText has a row a line, its raw files a line a line. Read one by one, rows would be documents of
a sentence or a heading: an end token after each, next to no context, and no perplexity that compares with others'.
Joined, an article is a document, every line and blank line of it as in the raw file.

Titles stand at level one, ` = Title = `; ` = = Section = = ` and deeper ones stand within an article. The first line
need not be a title: what stands before one is an article of its own (a shard may begin in the middle of one).
"""

import re
from collections.abc import Iterable, Iterator

JOIN_ARTICLES = ("auto", "yes", "no")

_TITLE = re.compile(r"\s*= (?!=( |$)).*(?<! =) =\s*")
_SECTION = re.compile(r"\s*= = .* = =\s*")
# Long enough for an article with its sections, short enough to read before the work.
LOOKED_AT = 2000


def is_title(line: str) -> bool:
    """Whether a line is ` = Title = `, and not ` = = Section = = `."""
    return _TITLE.fullmatch(line) is not None


def is_heading(line: str) -> bool:
    """Whether a line is a heading of any level."""
    return is_title(line) or _SECTION.fullmatch(line) is not None


def looks_like_articles(lines: Iterable[str]) -> bool:
    """Whether lines (of which the first `LOOKED_AT` are given) are those of articles: two titles, or one and a section.

    One title alone may be anything. Rows that hold several lines are documents already.
    """
    titles = sections = 0
    for line in lines:
        if "\n" in line.rstrip("\n"):
            return False
        titles += is_title(line)
        sections += _SECTION.fullmatch(line) is not None
    return titles >= 2 or (titles == 1 and sections >= 1)


def as_lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield each row with its line end, so that joined they are the raw text.

    The hub keeps the line ends of WikiText and has emptied the blank lines, which are " \\n" in the raw files: where
    the rows carry their line ends, an empty row is such a line.
    """
    blank = 0
    blank_line: str | None = None
    for row in rows:
        if row == "" and blank_line is None:
            blank += 1  # how rows end is not known yet
            continue
        if blank_line is None:
            blank_line = " \n" if row.endswith("\n") else "\n"
            yield from [blank_line] * blank
        yield blank_line if row == "" else row if row.endswith("\n") else row + "\n"
    if blank_line is None:
        yield from ["\n"] * blank


def split_at_titles(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each article, from (place, line with its end)s; blank lines before the first are left."""
    held: list[str] = []
    start = ""
    for place, line in lines:
        if is_title(line) and any(map(str.strip, held)):
            yield start, "".join(held)
            held = []
        if not any(map(str.strip, held)):  # nothing but blank lines so far
            held, start = [], place
        held.append(line)
    if any(map(str.strip, held)):
        yield start, "".join(held)
