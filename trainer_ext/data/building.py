"""From sources to datasets: which documents are read, which side takes them, and what is kept on disk."""

import hashlib
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from frankenlm.modeling.checks import check_choice

from ..common.text_files import BadRowError
from .articles import JOIN_ARTICLES, LOOKED_AT, is_title, looks_like_articles
from .caching import cache_key, cached_dataset, read_note, write_note
from .documents import BuiltinSource, Document, FileSource, HubSource, Source, read_as_one, read_documents
from .records import RecordColumns
from .rows import Columns, Label
from .skipping import count_for, skipped_rows

logger = logging.getLogger(__name__)

AnyDataset = Dataset | IterableDataset

# Raised by hand whenever the rows made from the same files change, so that older caches are not used.
_VERSION = 2


@dataclass(frozen=True)
class Side:
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


@dataclass(frozen=True)
class Reading:
    """What to read of each source, and how."""

    text_column: str
    label_column: str | None
    max_documents: int | None
    skip_bad_rows: bool
    labels: tuple[Label, ...] | None = None
    one_text: bool = False
    record_form: str = "text"

    def __post_init__(self):
        for name in ("text_column", "label_column"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}='' is empty: give a column's name.")

    @property
    def columns(self) -> Columns:
        if self.record_form != "text":
            return RecordColumns(self.record_form)
        return [column for column in (self.text_column, self.label_column) if column is not None]

    @property
    def _limit(self) -> int | None:
        return None if self.max_documents is None else min(self.max_documents, sys.maxsize)

    def documents(self, sources: Iterable[Source]) -> Iterator[Document]:
        if self.one_text:
            return self._one_text(sources)
        return itertools.islice(read_documents(sources, self.columns, self.skip_bad_rows), self._limit)

    def _one_text(self, sources: Iterable[Source]) -> Iterator[Document]:
        text = read_as_one(sources, self.text_column, self.skip_bad_rows)
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
        if self.record_form != "text":
            return Features({"record": Value("string"), "place": Value("string")})
        features = Features({"text": Value("string")})
        if self.labels is not None:
            features["label"] = ClassLabel(names=[str(label) for label in self.labels])
        return features


@dataclass(frozen=True)
class Builder:
    """Makes a cached Dataset, or an IterableDataset, of the documents on one side of some sources."""

    spec: str
    reading: Reading
    streaming: bool
    cache_dir: str | Path | None

    def __post_init__(self):
        if self.cache_dir is not None and not str(self.cache_dir).strip():
            raise ValueError(f"cache_dir={str(self.cache_dir)!r} is empty: give a folder, or leave it out.")

    def __call__(self, sources: list[Source], side: Side | None = None) -> AnyDataset:
        side = side or Side()
        features = self.reading.features()
        # A list is split among the loader's workers, file by file; a limit on documents, and what goes on over the ends
        # of files, need them in one sequence.
        limited = self.reading.max_documents is not None or self.reading.one_text
        in_one = limited or any(source.flows for source in sources)
        given = {"sources": tuple(sources) if in_one else list(sources), "reading": self.reading, "side": side}
        if self.streaming:
            return IterableDataset.from_generator(_rows, features=features, gen_kwargs=given)
        return cached_dataset(_rows, given, features, self.cache_dir, self._cache_key(sources, side))

    def _cache_key(self, sources: list[Source], side: Side) -> str:
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
        if self.reading.record_form != "text":
            _check_records(spec, sources, join_articles)
        elif join_articles != "no" and self.reading.label_column is None:
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


def _check_records(spec: str, sources: list[Source], join_articles: str) -> None:
    """Raises ValueError where conversations are looked for in what has none."""
    if join_articles == "yes":
        raise ValueError("join_articles='yes' joins lines of a text; conversations are whole, each by itself.")
    for source in sources:
        if isinstance(source, BuiltinSource) or (isinstance(source, FileSource) and source.is_text):
            raise ValueError(
                f"dataset {spec!r} is text and holds no conversations; those are in .jsonl, .json, .csv, "
                ".tsv or .parquet files."
            )


def _rows(sources: Iterable[Source], reading: Reading, side: Side) -> Iterator[dict]:
    for document in reading.documents(sources):
        if side.takes(document):
            if reading.record_form != "text":
                yield {"record": document.text, "place": document.place}
                continue
            row = {"text": document.text}
            if reading.labels is not None:
                row["label"] = reading.label_id(document)
            yield row


def read_labels(sources: list[Source], reading: Reading) -> tuple[Label, ...] | None:
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


def is_empty(dataset: AnyDataset) -> bool:
    return next(iter(dataset), None) is None
