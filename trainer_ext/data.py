"""From `--dataset` to what a Trainer takes: load_splits -> load_tokenizer -> prepare_dataset -> build_collator.

    splits = load_splits("builtin")
    tokenizer = load_tokenizer("train", documents=iter_texts(splits["train"]), objective="mlm")
    train = prepare_dataset(splits["train"], tokenizer, max_length=128, objective="mlm")
    collator = build_collator("mlm", tokenizer)

Where documents lie is in sources.py; what a document is, file by file, in documents.py; how lines are joined into
articles, in articles.py; how documents become rows of ids, in packing.py.

Held-out documents are chosen by a hash of their text (built-in text: of their topic), not by position: equal documents
fall on the same side, a document keeps its side when others are added, streamed and cached data agree, and nothing
has to be counted first. Every run with the same `seed` holds out the same documents.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from frankenlm.modeling.checks import check_choice

from .articles import JOIN_ARTICLES, LOOKED_AT, is_heading, is_title, looks_like_articles
from .caching import cache_key, cached_dataset, read_note, write_note
from .collators import build_collator
from .documents import BuiltinSource, Document, FileSource, HubSource, Label, Source, read_documents
from .packing import prepare_dataset
from .skipping import count_for, skipped_rows
from .sources import find_sources
from .text_files import BadRowError
from .tokenizers import load_tokenizer

__all__ = [
    "BadRowError",
    "build_collator",
    "count_bytes",
    "count_tokens",
    "iter_texts",
    "label_names",
    "load_documents",
    "load_splits",
    "load_tokenizer",
    "prepare_dataset",
    "skipped_rows",
]

logger = logging.getLogger(__name__)

AnyDataset = Dataset | IterableDataset

# Raised by hand whenever the rows made from the same files change, so that older caches are not used.
_VERSION = 2
_HASH_RANGE = 2**64
# Characters; shorter texts may stand on both sides: headings and the like, which give nothing away.
_SHORTEST_UNIQUE = 30


def load_splits(
    spec: str,
    *,
    validation: str | None = None,
    validation_fraction: float = 0.05,
    seed: int = 0,
    streaming: bool = False,
    text_column: str = "text",
    label_column: str | None = None,
    max_documents: int | None = None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    cache_dir: str | Path | None = None,
) -> dict[str, AnyDataset]:
    """Return {"train": ..., "validation": ...} with the column "text" (and "label", a ClassLabel).

    spec: "builtin", "builtin-code", a hub name ("owner/name:config"), or a file, folder or glob of a kind that
        documents.py lists.
    validation: a second spec to evaluate on. Without it, the validation part of a folder or hub data set that has one;
        else about `validation_fraction` of the documents, drawn by a hash of (seed, text), at least one.
        Training documents that also stand in the validation data are left out of training, but for headings and the
        like: texts without a label of less than 30 characters.
    streaming: IterableDatasets at constant memory instead of Datasets cached on disk; the same documents on each side.
    label_column: for classification; strings or whole numbers, numbered in sorted order (see `label_names`).
    max_documents: read at most so many documents of `spec` (and of `validation`), for quick trials.
    join_articles: "auto" joins the lines or rows of WikiText-like data into articles where it finds their titles, and
        says so; "yes" insists on it, "no" reads them one by one.
    skip_bad_rows: pass bad rows over (no text, null, not JSON, not UTF-8) instead of raising; `skipped_rows()` counts.

    Raises BadRowError (a ValueError) for a bad row, ValueError naming the file, line, column or value that is wrong.
    Of a stream, only what is read to find one document a side is checked at once; the rest raises when it is reached.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must lie between 0 and 1.")
    if max_documents is not None and max_documents < 2:
        raise ValueError(f"max_documents={max_documents} must be at least 2, one document a side.")
    reading = _Reading(text_column, label_column, max_documents, skip_bad_rows)
    build = _Builder(reading, streaming, cache_dir)
    sources = build.open(spec, find_sources(spec, "train", streaming=streaming), join_articles)
    if validation is None:
        held_out = build.open(spec, find_sources(spec, "validation", streaming=streaming), join_articles)
    else:
        held_out = build.open(validation, _all_sources(validation, "validation", streaming), join_articles)
    build = replace(build, reading=replace(reading, labels=_labels(sources, reading)))
    if held_out:
        splits = _given_validation(build, sources, held_out)
    else:
        splits = _drawn_validation(build, sources, seed, int(validation_fraction * _HASH_RANGE))
    for name, split in splits.items():
        if _is_empty(split):
            joined = any(source.articles for source in sources)
            raise ValueError(f"dataset {spec!r}: no document is left for {name}; {_way_out(name, validation, joined)}")
    build.tell_skipped([*sources, *held_out])
    return splits


def load_documents(
    spec: str,
    *,
    streaming: bool = False,
    text_column: str = "text",
    label_column: str | None = None,
    max_documents: int | None = None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    one_text: bool = False,
    cache_dir: str | Path | None = None,
) -> AnyDataset:
    """Return all documents of `spec`, unsplit, in order: for evaluating on a file of its own. See `load_splits`.

    Of a folder or hub data set with parts, the validation part.
    one_text: everything as one document with the raw text of it: a .txt file as it is, rows as lines (articles.py).
        Not together with label_column or max_documents.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents={max_documents} must be at least 1.")
    if one_text and (label_column is not None or max_documents is not None):
        raise ValueError("one_text takes the whole text: leave out label_column and max_documents.")
    reading = _Reading(text_column, label_column, max_documents, skip_bad_rows, one_text=one_text)
    build = _Builder(reading, streaming, cache_dir)
    sources = build.open(spec, _all_sources(spec, "validation", streaming), "no" if one_text else join_articles)
    build = replace(build, reading=replace(reading, labels=_labels(sources, reading)))
    dataset = build(sources)
    if _is_empty(dataset):
        raise ValueError(f"dataset {spec!r} has no text.")
    build.tell_skipped(sources)
    return dataset


def _all_sources(spec: str, part: str, streaming: bool) -> list[Source]:
    return find_sources(spec, part, streaming=streaming) or find_sources(spec, "train", streaming=streaming)


# --- sides


@dataclass(frozen=True)
class _Side:
    """Which documents a dataset takes: key's hash below `limit`, or not below it; no text whose hash is `excluded`."""

    seed: int = 0
    limit: int = 0
    below: bool = False
    excluded: frozenset[int] = frozenset()

    def takes(self, document: Document) -> bool:
        if self.excluded and document_hash(document.text, 0) in self.excluded:
            return False
        return (document_hash(document.key, self.seed) < self.limit) == self.below


def document_hash(key: str, seed: int) -> int:
    """Return a number in [0, 2^64) that depends on nothing but the two arguments."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, key=str(seed).encode()).digest(), "big")


def _drawn_validation(build: "_Builder", sources: list[Source], seed: int, limit: int) -> dict[str, AnyDataset]:
    validation = build(sources, _Side(seed, limit, below=True))
    if _is_empty(validation):
        # Few documents: hold out the one that a larger fraction would hold out first.
        hashes = (document_hash(document.key, seed) for document in build.reading.documents(sources))
        smallest = min(hashes, default=None)
        if smallest is None:
            raise ValueError("the dataset has no text: all its documents are blank.")
        limit = smallest + 1
        logger.warning("the held-out fraction catches none of the few documents; one document is held out.")
        validation = build(sources, _Side(seed, limit, below=True))
    return {"train": build(sources, _Side(seed, limit, below=False)), "validation": validation}


def _given_validation(build: "_Builder", sources: list[Source], held_out: list[Source]) -> dict[str, AnyDataset]:
    # headings stand everywhere; a labelled row is a case of its own, however short
    excluded = frozenset(
        document_hash(document.text, 0)
        for document in build.reading.documents(held_out)
        if build.reading.labels is not None or _gives_away(document.text)
    )
    return {"train": build(sources, _Side(excluded=excluded)), "validation": build(held_out)}


def _gives_away(text: str) -> bool:
    """Whether a held-out text, met in training, would give away what is to be predicted."""
    return len(text.strip()) >= _SHORTEST_UNIQUE and not is_heading(text)


def _way_out(name: str, validation: str | None, joined: bool) -> str:
    if name == "validation":
        return "the validation data has no text."
    if validation is not None:
        return f"every one stands in the validation data {validation!r} too."
    apart = ", or --join_articles no, which reads its lines one by one" if joined else ""
    return f"it has only one distinct document. Give more text, or a validation set of its own{apart}."


# --- documents to datasets


@dataclass(frozen=True)
class _Reading:
    """What to read of each source, and how."""

    text_column: str
    label_column: str | None
    max_documents: int | None
    skip_bad_rows: bool
    labels: tuple[Label, ...] | None = None
    one_text: bool = False

    def __post_init__(self):
        for name in ("text_column", "label_column"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}='' is empty: give a column's name.")

    @property
    def columns(self) -> list[str]:
        return [column for column in (self.text_column, self.label_column) if column is not None]

    def documents(self, sources: Iterable[Source]) -> Iterator[Document]:
        if self.one_text:
            return self._one_text(sources)
        return itertools.islice(read_documents(sources, self.columns, self.skip_bad_rows), self.max_documents)

    def _one_text(self, sources: Iterable[Source]) -> Iterator[Document]:
        text = "".join(source.raw_text(self.text_column, self.skip_bad_rows) for source in sources)
        if text.strip():
            yield Document(text, text, None, "the whole text")

    def label_id(self, document: Document) -> int:
        try:
            return self.labels.index(document.label)
        except ValueError:
            known = ", ".join(map(str, self.labels))
            raise ValueError(
                f"{document.place}: label {document.label!r} is not in the training data ({known})."
            ) from None

    def features(self) -> Features:
        features = Features({"text": Value("string")})
        if self.labels is not None:
            features["label"] = ClassLabel(names=[str(label) for label in self.labels])
        return features


@dataclass(frozen=True)
class _Builder:
    """Makes a cached Dataset, or an IterableDataset, of the documents on one side of some sources."""

    reading: _Reading
    streaming: bool
    cache_dir: str | Path | None

    def __post_init__(self):
        if self.cache_dir is not None and not str(self.cache_dir).strip():
            raise ValueError(f"cache_dir={str(self.cache_dir)!r} is empty: give a folder, or leave it out.")

    def __call__(self, sources: list[Source], side: _Side | None = None) -> AnyDataset:
        side = side or _Side()
        features = self.reading.features()
        # A list is split among the loader's workers, file by file; a limit on documents, and what goes on over the ends
        # of files, need them in one sequence.
        limited = self.reading.max_documents is not None or self.reading.one_text
        in_one = limited or any(source.flows for source in sources)
        given = {"sources": tuple(sources) if in_one else list(sources), "reading": self.reading, "side": side}
        if self.streaming:
            return IterableDataset.from_generator(_rows, features=features, gen_kwargs=given)
        return cached_dataset(_rows, given, features, self.cache_dir, self._cache_key(sources, side))

    def _cache_key(self, sources: list[Source], side: _Side) -> str:
        identities = [source.identity for source in sources]
        excluded = sorted(side.excluded)
        return cache_key(_VERSION, identities, astuple(self.reading), side.seed, side.limit, side.below, excluded)

    def open(self, spec: str, sources: list[Source], join_articles: str) -> list[Source]:
        """Return the sources, told whether their rows are lines of articles, with the counters of bad rows ready.

        Raises ValueError for `join_articles` "yes" where there is nothing to join.
        """
        check_choice("join_articles", join_articles, JOIN_ARTICLES)
        if join_articles == "yes" and self.reading.label_column is not None:
            raise ValueError(
                "join_articles='yes' makes one document of many rows; classification needs each by itself."
            )
        if join_articles != "no" and self.reading.label_column is None:
            sources = self._joined(spec, sources, join_articles)
        for source in sources if self.reading.skip_bad_rows else ():
            count_for(source.identity, self._note(self._skipped_key(source), int) or 0)
        return sources

    def _joined(self, spec: str, sources: list[Source], join_articles: str) -> list[Source]:
        # text files are apart; the others are shards of one data set, of which the first tells
        apart = [source for source in sources if isinstance(source, FileSource) and source.is_text]
        found = [self._holds_articles(source, join_articles) for source in apart or sources[:1]]
        if join_articles == "yes" and sources and not any(found):
            raise ValueError(f"join_articles='yes': {spec!r} has no line '= Title =' among its first {LOOKED_AT}.")
        if not any(found):
            return sources
        logger.info(
            "%s: lines are joined into articles at '= Title =' (--join_articles no reads them one by one)", spec
        )
        each = found if apart else found * len(sources)
        return [replace(source, articles=joined) for source, joined in zip(sources, each, strict=True)]

    def _holds_articles(self, source: Source, join_articles: str) -> bool:
        if isinstance(source, BuiltinSource):
            return False
        key = cache_key("articles", _VERSION, source.identity, self.reading.text_column, join_articles)
        if (noted := self._note(key, bool)) is not None:
            return noted
        rows = itertools.islice(source.rows([self.reading.text_column]), LOOKED_AT)
        lines = [row.text for row in rows if not isinstance(row, BadRowError)]
        found = looks_like_articles(lines) if join_articles == "auto" else any(map(is_title, lines))
        if not self.streaming:
            write_note(self.cache_dir, key, found)
        return found

    def tell_skipped(self, sources: list[Source]) -> None:
        """Say how many bad rows were passed over, and note it for the next run, which reads from the cache."""
        if self.streaming or not self.reading.skip_bad_rows:
            return  # of a stream nobody knows yet
        for source in sources:
            write_note(self.cache_dir, self._skipped_key(source), skipped_rows([source.identity]))
        if count := skipped_rows([source.identity for source in sources]):
            logger.warning("%d bad row(s) are left out (--skip_bad_rows)", count)

    def _skipped_key(self, source: Source) -> str:
        return cache_key("skipped", _VERSION, source.identity, self.reading.columns, self.reading.max_documents)

    def _note(self, key: str, kind: type) -> bool | int | None:
        noted = None if self.streaming else read_note(self.cache_dir, key)
        return noted if type(noted) is kind else None


def _rows(sources: Iterable[Source], reading: _Reading, side: _Side) -> Iterator[dict]:
    for document in reading.documents(sources):
        if side.takes(document):
            row = {"text": document.text}
            if reading.labels is not None:
                row["label"] = reading.label_id(document)
            yield row


def _labels(sources: list[Source], reading: _Reading) -> tuple[Label, ...] | None:
    """Return the distinct labels of the training data in sorted order; None where no label is asked for."""
    label_column = reading.label_column
    if label_column is None:
        return None
    for source in sources:
        if isinstance(source, HubSource) and (names := source.class_names(label_column)):
            return tuple(names)  # the data set's own order
    places: dict[Label, str] = {}
    for source in sources:
        for document in source.documents(reading.columns, reading.skip_bad_rows):
            places.setdefault(document.label, document.place)
    kinds = {type(label): place for label, place in places.items()}
    if len(kinds) > 1:
        raise ValueError(
            f"label column {label_column!r} mixes types: "
            + ", ".join(f"{kind.__name__} ({place})" for kind, place in kinds.items())
        )
    if len(places) < 2:
        raise ValueError(f"label column {label_column!r} has fewer than two distinct labels; nothing to tell apart.")
    return tuple(sorted(places))


def _is_empty(dataset: AnyDataset) -> bool:
    return next(iter(dataset), None) is None


# --- what training and evaluation ask about a dataset


def iter_texts(dataset: AnyDataset) -> Iterator[str]:
    """Yield the documents of a split as strings."""
    for batch in dataset.select_columns(["text"]).iter(1000):
        yield from batch["text"]


def label_names(dataset: AnyDataset) -> list[str]:
    """Return the names of the labels, in the order of their ids, of a split or a prepared classification dataset."""
    for column in ("label", "labels"):
        if column in dataset.features:
            return list(dataset.features[column].names)
    raise ValueError("the dataset has no labels; load it with label_column.")


def count_bytes(dataset: AnyDataset) -> int:
    """Return the UTF-8 bytes of all documents, the denominator of bits per byte."""
    return sum(len(text.encode()) for text in iter_texts(dataset))


def count_tokens(dataset: AnyDataset, vocab_size: int, *, exclude: Iterable[int] = ()) -> torch.LongTensor:
    """Return how often each id stands in `input_ids`, [vocab_size] int64.

    exclude: ids that are never predicted and count 0; for a masked model pass `special_token_ids(tokenizer)`, for a
    causal one nothing (it predicts the separators too). Raises ValueError for an id of `vocab_size` or more.
    """
    counts = np.zeros(vocab_size, np.int64)
    for batch in dataset.select_columns(["input_ids"]).with_format("numpy").iter(1000):
        counted = np.bincount(np.concatenate(batch["input_ids"]), minlength=vocab_size)
        if len(counted) > vocab_size:
            raise ValueError(f"token id {len(counted) - 1} does not fit into vocab_size={vocab_size}.")
        counts += counted
    counts[list(exclude)] = 0
    return torch.from_numpy(counts)
