"""Bad rows that are passed over on request, counted and told.

A text is read more than once (for each side, for the labels, in every epoch of a stream), and its bad rows are met each
time: what counts is the most that one pass has met. The counters are shared with loader workers that are forked.
"""

import logging
import multiprocessing
from collections.abc import Iterator

from ..common.text_files import BadRowError
from .rows import MissingColumnError, Row, Rows

logger = logging.getLogger(__name__)

WAY_OUT = "(--skip_bad_rows leaves such rows out and counts them.)"
# Told one by one, so that a reader sees what kind they are.
_TOLD = 3

_counters: dict[str, multiprocessing.RawValue] = {}


def count_for(identity: str, rows: int = 0) -> None:
    """Make the counter of a source; `rows`: how many are known from an earlier reading."""
    if identity not in _counters:
        _counters[identity] = multiprocessing.RawValue("q", 0)
    _counters[identity].value = max(_counters[identity].value, rows)


def skipped_rows(identities: list[str] | None = None) -> int:
    """Return how many bad rows of these sources, by default of all, have been passed over in this process."""
    wanted = _counters if identities is None else [name for name in identities if name in _counters]
    return sum(_counters[name].value for name in wanted)


def good_rows(rows: Rows, identity: str, skip: bool) -> Iterator[Row]:
    """Yield the good rows of a source. With `skip`, bad ones are counted; else the first one is raised.

    Raises:
        BadRowError: a bad row, or nothing but bad rows.
    """
    bad = good = 0
    first: BadRowError | None = None
    for row in rows:
        if not isinstance(row, BadRowError):
            good += 1
            yield row
            continue
        if not skip:
            # a column that the first row lacks already is misspelt, and no bad row
            known = good or not isinstance(row, MissingColumnError)
            raise BadRowError(f"{row}{f' {WAY_OUT}' if known else ''}")
        bad += 1
        first = first or row
        _count(identity, bad, row)
    if first is not None and not good:
        raise BadRowError(f"every row is bad; the first: {first}")


def _count(identity: str, bad: int, row: BadRowError) -> None:
    count_for(identity)
    if bad <= _counters[identity].value:
        return  # met in an earlier pass
    _counters[identity].value = bad
    if bad <= _TOLD:
        logger.warning("a bad row is left out: %s", row)
