"""Which documents are scored: all of a data set, or its sides, train, validation and test, together."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from frankenlm.modeling.checks import suggest

from ..common.cli import UserError
from ..data.building import Builder, Reading
from ..data.sources import find_sources
from ..data.splits import load_documents, load_splits
from .flags import SPLITS


def parse_splits(text: str) -> list[str]:
    """Read --split: `all`, or some of train, validation, test with commas.

    Raises:
        UserError: an unknown name, one that stands twice, or `all` beside others.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SPLITS:
            raise UserError(f"--split: unknown split {name!r}.{suggest(name, SPLITS)} Known: {', '.join(SPLITS)}.")
    if not names:
        raise UserError(f"--split is empty. Known: {', '.join(SPLITS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"--split {text}: names a split twice.")
    if "all" in names and len(names) > 1:
        raise UserError(f"--split {text}: 'all' stands alone; name train, validation and test instead.")
    return names


def load_split_texts(
    spec: str,
    splits: Sequence[str],
    *,
    validation: str | None = None,
    test: str | None = None,
    validation_fraction: float,
    split_seed: int,
    text_column: str,
    max_documents: int | None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    one_text: bool = False,
) -> dict[str, Dataset]:
    """Return the documents of each of the splits.

    all: every document, in order. train, validation: the two sides of train.py, drawn by the same hash or named by
    `validation`. test: the test part of a folder or hub data set, which training never reads, or `test`, another data
    set. max_documents: at most so many of each. one_text: all of it as a single document, as the raw text has it.

    Raises:
        UserError: a test split of data that has none.
    """
    reading = {"text_column": text_column, "join_articles": join_articles, "skip_bad_rows": skip_bad_rows}
    found: dict[str, Dataset] = {}
    if "test" in splits:  # first: where there is none, nothing else need be read
        found["test"] = load_documents(test, **reading) if test is not None else _test_part(spec, **reading)
    if "all" in splits:
        found["all"] = load_documents(spec, max_documents=max_documents, one_text=one_text, **reading)
    if "train" in splits or "validation" in splits:
        sides = {"validation": validation, "validation_fraction": validation_fraction, "seed": split_seed}
        found |= load_splits(spec, **sides, **reading)
    return {name: _first(found[name], max_documents) for name in splits}


def _first(documents: Dataset, most: int | None) -> Dataset:
    return documents if most is None else documents.select(range(min(most, len(documents))))


def _test_part(spec: str, *, text_column: str, join_articles: str, skip_bad_rows: bool) -> Dataset:
    sources = find_sources(spec, "test")
    if not sources:
        raise UserError(f"--split test: {spec!r} has no test part of its own; name one with --test_dataset.")
    build = Builder(spec, Reading(text_column, None, None, skip_bad_rows), False, None)
    sources = build.open(spec, sources, join_articles)
    documents = build(sources)
    if not len(documents):
        raise UserError(f"--split test: the test part of {spec!r} has no text.")
    build.tell_skipped(sources)
    return documents


def check_split_flags(args: Any, splits: Sequence[str]) -> None:
    """Raises UserError for a data set that is named for a split that is not scored."""
    needs: Mapping[str, tuple[str, ...]] = {"validation_dataset": ("train", "validation"), "test_dataset": ("test",)}
    for name, wanted in needs.items():
        if getattr(args, name) is not None and not set(wanted) & set(splits):
            raise UserError(f"--{name}: goes with --split {wanted[-1]}; --split is {','.join(splits)}.")
