"""Where documents come from: local files, folders and globs, the hub, and the text Python carries.

A *document* is the unit that is held out as a whole:

- `.txt`: a paragraph (lines up to a blank line), as in `load_dataset("text", sample_by="paragraph")`; a file without a
  blank line is one document a line, as `load_dataset("text")` has it.
- `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, hub: a row, a text or a conversation (records.py). All files but
  Parquet may be packed (`.gz`, `.bz2`, `.xz`, `.zst`).
- any of them, where the lines or rows are those of WikiText: an article (articles.py).
- `builtin`, `builtin-code`: a topic, a module, a file (builtin_text.py).

Blank documents are passed over. Files are read line by line or row group by row group (`.json` as a whole), so memory
does not grow with their size. What is wrong with a file is a ValueError that names the file and the line.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import datasets

from ..common.text_files import BadRowError, kind_of, read_text
from .articles import as_lines, split_at_titles
from .builtin_text import BUILTIN_VERSION, builtin_documents
from .rows import ROWS_AT_ONCE, TEXT_KINDS, Columns, Label, Row, Rows, checked_row, first_names, read_columns, read_rows
from .skipping import good_rows


class Document(NamedTuple):
    """A text, the key its train/held-out side is drawn from, its raw label if one was asked for, and where it was."""

    key: str
    text: str
    label: Label | None
    place: str


class Source(Protocol):
    """A place with documents. `identity` changes whenever the documents may have.

    articles: its rows are lines of articles. flows: they go on in the next source, as those of a data set's shards do.
    """

    identity: str
    articles: bool
    flows: bool

    def column_names(self) -> list[str] | None: ...

    def rows(self, columns: Columns) -> Rows: ...

    def documents(self, columns: Columns, skip_bad_rows: bool = False) -> Iterator[Document]: ...

    def raw_text(self) -> str | None:
        """The text as it is; None of rows, which `read_as_one` joins."""
        ...


@dataclass(frozen=True)
class BuiltinSource:
    name: str
    articles: bool = False
    flows: bool = False

    @property
    def identity(self) -> str:
        return f"{self.name} {BUILTIN_VERSION} {sys.version}"

    def column_names(self) -> None:
        return None

    def rows(self, columns: Columns) -> Rows:
        for document in self.documents(columns):
            yield Row(document.text, None, document.place)

    def documents(self, columns: Columns, skip_bad_rows: bool = False) -> Iterator[Document]:
        if len(columns) > 1:
            raise ValueError(f"{self.name!r} has no labels; classification needs a file with a text and a label.")
        for topic, text in builtin_documents(self.name):
            yield Document(topic, text, None, topic)

    def raw_text(self) -> str:
        return "\n\n".join(text for _, text in builtin_documents(self.name))


@dataclass(frozen=True)
class FileSource:
    path: str
    size: int
    changed: int  # time of the last change, ns
    articles: bool = False

    @classmethod
    def of(cls, path: Path) -> "FileSource":
        stat = path.stat()
        if stat.st_size == 0:
            raise ValueError(f"{path} is empty.")
        return cls(str(path), stat.st_size, stat.st_mtime_ns)

    @property
    def identity(self) -> str:
        return f"{Path(self.path).resolve()} {self.size} {self.changed}{' articles' if self.articles else ''}"

    @property
    def is_text(self) -> bool:
        return kind_of(self.path) in TEXT_KINDS

    @property
    def flows(self) -> bool:
        return self.articles and not self.is_text

    def column_names(self) -> list[str] | None:
        return first_names(self.path)

    def rows(self, columns: Columns) -> Rows:
        return read_rows(self.path, columns)

    def documents(self, columns: Columns, skip_bad_rows: bool = False) -> Iterator[Document]:
        rows = good_rows(self.rows(columns), self.identity, skip_bad_rows)
        if self.articles:
            return _articles(rows)
        return _paragraphs(rows) if self.is_text and self._has_paragraphs() else _one_each(rows)

    def raw_text(self) -> str | None:
        return read_text(self.path) if self.is_text else None

    def _has_paragraphs(self) -> bool:
        """Whether a blank line stands between two lines with text."""
        seen_text = seen_gap = False
        for row in self.rows(["text"]):
            if isinstance(row, BadRowError) or row.text.strip():
                if seen_gap:
                    return True
                seen_text = True
            elif seen_text:
                seen_gap = True
        return False


@dataclass(frozen=True)
class HubSource:
    name: str
    dataset: "datasets.Dataset | datasets.IterableDataset"
    articles: bool = False

    @property
    def identity(self) -> str:
        # a stream is never cached, and has no fingerprint
        version = self.dataset._fingerprint if isinstance(self.dataset, datasets.Dataset) else "stream"
        return f"{self.name} {version}{' articles' if self.articles else ''}"

    @property
    def flows(self) -> bool:
        return self.articles

    def class_names(self, label_column: str | None) -> list[str] | None:
        """Return the names the data set itself gives its labels, if it does."""
        feature = (self.dataset.features or {}).get(label_column)
        return feature.names if isinstance(feature, datasets.ClassLabel) else None

    def column_names(self) -> list[str]:
        return self.dataset.column_names or list(next(iter(self.dataset), {}))  # a stream may not know its columns

    def rows(self, columns: Columns) -> Rows:
        names = self.class_names(columns[1]) if len(columns) > 1 else None
        wanted = read_columns(columns, self.column_names(), self.name)
        number = 0
        for batch in self.dataset.select_columns(wanted).iter(ROWS_AT_ONCE):
            for values in zip(*(batch[column] for column in wanted), strict=True):
                number += 1
                row = checked_row(dict(zip(wanted, values, strict=True)), columns, f"{self.name}, row {number}")
                yield row if names is None or isinstance(row, BadRowError) else _named(row, names)

    def documents(self, columns: Columns, skip_bad_rows: bool = False) -> Iterator[Document]:
        rows = good_rows(self.rows(columns), self.identity, skip_bad_rows)
        return _articles(rows) if self.articles else _one_each(rows)

    def raw_text(self) -> None:
        return None


def _named(row: Row, names: list[str]) -> Row | BadRowError:
    """Return a row with its label's name instead of its number."""
    if row.label not in range(len(names)):
        return BadRowError(f"{row.place}: label {row.label} has no name in the data set; the row is unlabelled.")
    return row._replace(label=names[row.label])


# --- from rows to documents


def read_documents(sources: Iterable[Source], columns: Columns, skip_bad_rows: bool = False) -> Iterator[Document]:
    """Yield the documents of several sources, in order; articles go on over the ends of shards.

    Raises:
        BadRowError: a bad row, unless they are to be skipped; the message names the file and the line or row.
        ValueError, OSError: a source is damaged or cannot be read.
    """
    for flows, group in itertools.groupby(sources, key=lambda source: source.flows):
        if flows:
            rows = (good_rows(source.rows(columns), source.identity, skip_bad_rows) for source in group)
            yield from _articles(itertools.chain.from_iterable(rows))
        else:
            for source in group:
                yield from source.documents(columns, skip_bad_rows)


def _one_each(rows: Iterator[Row]) -> Iterator[Document]:
    for text, label, place in rows:
        if text.strip():
            yield Document(text, text, label, place)


def _paragraphs(rows: Iterator[Row]) -> Iterator[Document]:
    for blank, group in itertools.groupby(rows, key=lambda row: not row.text.strip()):
        if not blank:
            lines = list(group)
            text = "\n".join(line.text for line in lines)
            yield Document(text, text, None, lines[0].place)


def _articles(rows: Iterator[Row]) -> Iterator[Document]:
    texts, places = itertools.tee(rows)
    # as_lines gives a line for each row; it may read ahead over blank rows, which tee keeps
    lines = zip((row.place for row in places), as_lines(row.text for row in texts), strict=True)
    for place, text in split_at_titles(lines):
        yield Document(text, text, None, place)


def read_as_one(sources: Iterable[Source], text_column: str, skip_bad_rows: bool = False) -> str:
    """Return the whole text of several sources: text files as they are, rows as the lines that they were.

    How lines end is seen from the rows of all sources together: a shard may hold nothing but blank ones.
    """
    sources = list(sources)
    texts = [text for source in sources if (text := source.raw_text()) is not None]
    if texts:
        return "".join(texts)  # one kind of file in a data set: all are text, or none
    rows = (good_rows(source.rows([text_column]), source.identity, skip_bad_rows) for source in sources)
    return "".join(as_lines(row.text for row in itertools.chain.from_iterable(rows)))
