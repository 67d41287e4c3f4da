"""The rows of data files: lines of .txt, objects of .jsonl and .json, records of .csv and .tsv, rows of .parquet.

A reader yields a row for every line or record, blank ones too, and in a bad row's place its `BadRowError`, so that the
caller may stop or pass it over. What is wrong with a whole file (damaged, another encoding, no such column) is raised.

    .raw, .tokens   texts, as WikiText names them
    .json   a list of objects; an object with one such list; an object of columns, each a list; objects a line
    .csv    comma and quotes as RFC 4180 has them, names in the first line; .tsv with tabs
"""

import csv
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from frankenlm.modeling.checks import suggest

from ..common.text_files import (
    BadRowError,
    check_characters,
    checked_lines,
    kind_of,
    open_text,
    parse_json,
    read_text,
    undecoded,
)

ROWS_AT_ONCE = 1000
TEXT_KINDS = (".txt", ".raw", ".tokens")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}

Label = str | int | bool
Columns = Sequence[str]  # the text column, and the label column if a label is asked for


class MissingColumnError(BadRowError):
    """A row, or a file, without a column that was asked for."""


class Row(NamedTuple):
    """The text of a row as it stands there, its raw label if one was asked for, and where it was."""

    text: str
    label: Label | None
    place: str


Rows = Iterator[Row | BadRowError]


def read_rows(path: str, columns: Columns) -> Rows:
    """Yield the rows of a file whose kind is one of `READERS`.

    Raises:
        ValueError: the file is damaged, in another encoding, or has no such column.
        OSError: it cannot be read.
    """
    return READERS[kind_of(path)](path, columns)


def checked_row(values: Any, columns: Columns, place: str) -> Row | BadRowError:
    """Return the row that `values`, a mapping, makes; or what is wrong with it."""
    if not isinstance(values, dict):
        return BadRowError(f"{place}: a JSON object is expected, not {type(values).__name__}.")
    try:
        for column in columns:
            check_column(column, values, place)
        text, label = values[columns[0]], values[columns[1]] if len(columns) > 1 else None
        if not isinstance(text, str):
            raise BadRowError(f"{place}: column {columns[0]!r} holds {_kind(text)}, a string is expected.")
        if len(columns) > 1 and not isinstance(label, Label):
            raise BadRowError(
                f"{place}: label column {columns[1]!r} holds {_kind(label)}, a string or whole number is expected."
            )
        check_characters(text, place)
    except BadRowError as error:
        return error
    return Row(text, label, place)


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else type(value).__name__


def check_column(column: str, known: Collection[str], place: str) -> None:
    """Raises MissingColumnError where a column is missing."""
    if column in known:
        return
    hint = suggest(column, map(str, known))
    if len(known) == 1 and (separators := [mark for mark in ";\t|" if mark in next(iter(known))]):
        hint = f" The columns seem to be separated by {separators[0]!r}: write commas, or tabs in a .tsv file."
    raise MissingColumnError(
        f"{place}: no column {column!r}.{hint} Columns: {', '.join(map(str, known))}. "
        "Name the right one with text_column / label_column."
    )


def _check_header(columns: Columns, names: list[str], path: str) -> None:
    for column in columns:
        check_column(column, names, path)
        if names.count(column) > 1:
            raise ValueError(f"{path}: {names.count(column)} columns have the name {column!r}; rename all but one.")


def _read_txt(path: str, columns: Columns) -> Rows:
    if len(columns) > 1:
        raise ValueError(f"{path}: a .txt file has no labels; classification needs .jsonl, .csv or .parquet.")
    for number, line in checked_lines(path):
        yield line if isinstance(line, BadRowError) else Row(line, None, f"{path}, line {number}")


def _read_jsonl(path: str, columns: Columns) -> Rows:
    for number, line in checked_lines(path):
        if isinstance(line, BadRowError):
            yield line
        elif line.strip():
            yield _json_row(line, columns, f"{path}, line {number}")


def _json_row(line: str, columns: Columns, place: str) -> Row | BadRowError:
    try:
        return checked_row(parse_json(line, place), columns, place)
    except BadRowError as error:
        return BadRowError(f"{error} A .jsonl file has one object a line.")


def _read_json(path: str, columns: Columns) -> Rows:
    text = read_text(path)
    try:
        content = parse_json(text, path)
    except BadRowError as error:
        if "Extra data" not in str(error):
            raise ValueError(str(error)) from error
        yield from _read_jsonl(path, columns)  # one object a line, by another name
        return
    for number, values in enumerate(_records(content, columns, path), start=1):
        yield checked_row(values, columns, f"{path}, record {number}")


def _records(content: Any, columns: Columns, path: str) -> list:
    """Return the records of a JSON file: its list, the one list in its object, its columns, or its one object."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a list of objects is expected, not {type(content).__name__}.")
    if isinstance(content.get(columns[0]), str):
        return [content]
    if isinstance(content.get(columns[0]), list):
        return _from_columns(content, columns, path)
    lists = [
        key for key, value in content.items() if isinstance(value, list) and any(isinstance(x, dict) for x in value)
    ]
    if len(lists) == 1:
        return content[lists[0]]
    found = f"lists of objects under {', '.join(map(repr, lists))}" if lists else "no list of objects"
    raise ValueError(
        f"{path}: an object with one list of objects is expected; this one has {found}. Write one list to a file."
    )


def _from_columns(content: dict, columns: Columns, path: str) -> list[dict]:
    for column in columns:
        check_column(column, content, path)
    lists = [content[column] for column in columns]
    if not all(isinstance(values, list) and len(values) == len(lists[0]) for values in lists):
        raise ValueError(f"{path}: the columns {' and '.join(map(repr, columns))} must be lists of equal length.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _read_separated(path: str, columns: Columns) -> Rows:
    csv.field_size_limit(sys.maxsize)  # documents are longer than the 128 KiB that csv expects
    separator = _SEPARATORS[kind_of(path)]
    names: list[str] | None = None
    for number, fields in _separated_records(path, separator):
        place = f"{path}, line {number}"
        if isinstance(fields, BadRowError):
            yield fields
        elif not fields:
            continue  # an empty line is no record
        elif names is None:
            names = fields
            _check_header(columns, names, path)
        elif len(fields) != len(names):
            yield BadRowError(f"{place}: {len(fields)} fields, and the first line names {len(names)}.")
        else:
            yield checked_row(dict(zip(names, fields, strict=True)), columns, place)


def _separated_records(path: str, separator: str) -> Iterator[tuple[int, list[str] | BadRowError]]:
    """Yield (number of its first line, fields) of every record, or the error in its place."""
    with open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        while True:
            number = reader.line_num + 1
            place = f"{path}, line {number}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, BadRowError(f"{place}: not a record ({error}).")
            else:
                yield number, undecoded("".join(fields), place) or fields


def _read_parquet(path: str, columns: Columns) -> Rows:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_header(columns, file.schema_arrow.names, path)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                for values in _batch_rows(batch):
                    number += 1
                    place = f"{path}, row {number}"
                    bad = isinstance(values, UnicodeDecodeError)
                    yield BadRowError(f"{place}: not UTF-8.") if bad else checked_row(values, columns, place)
    except pa.ArrowException as error:
        raise _not_parquet(path, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _not_parquet(path, error) from error  # pyarrow's word for what cannot be unpacked


def _not_parquet(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})")


def _batch_rows(batch: pa.RecordBatch) -> list[dict | UnicodeDecodeError]:
    """Return the rows of a batch; a text that is not UTF-8, which Parquet does not check, as its error."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_single_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _single_row(batch: pa.RecordBatch) -> dict | UnicodeDecodeError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return error


READERS: dict[str, Callable[[str, Columns], Rows]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".raw": _read_txt,
    ".tokens": _read_txt,
    ".parquet": _read_parquet,
}


def known_kind(path: str | Path) -> bool:
    """Whether a file's name is that of data; Parquet has its own compression and is never packed."""
    kind = kind_of(path)
    return kind in READERS and (kind != ".parquet" or Path(path).suffix.lower() == ".parquet")
