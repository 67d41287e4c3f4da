"""The rows of data files: lines of .txt, objects of .jsonl and .json, records of .csv and .tsv, rows of .parquet.

A reader yields a row for every line or record, blank ones too, and in a bad row's place its `BadRowError`, so that the
caller may stop or pass it over. What is wrong with a whole file (damaged, another encoding, no such column) is raised.

    .raw, .tokens   texts, as WikiText names them
    .json   a list of objects; an object with one such list; an object of columns, each a list; objects a line
    .csv    comma and quotes as RFC 4180 has them, names in the first line; .tsv with tabs

Rows are texts, or conversations where `RecordColumns` are asked for (records.py).
"""

import contextlib
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
from .records import RecordColumns, choose_form, from_cells, is_list_of_objects, is_message_list, kind_name

ROWS_AT_ONCE = 1000
TEXT_KINDS = (".txt", ".raw", ".tokens")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}

Label = str | int | bool
# the text column, and the label column if a label is asked for; or RecordColumns
Columns = Sequence[str]


class MissingColumnError(BadRowError):
    """A row, or a file, without a column that was asked for."""


class Row(NamedTuple):
    """The text of a row as it stands there (of a record, its JSON), its raw label if one was asked for, and where it
    was.
    """

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
            check_column(column, values, place, isinstance(columns, RecordColumns))
        if isinstance(columns, RecordColumns):
            return Row(columns.canonical(values, place), None, place)
        text, label = values[columns[0]], values[columns[1]] if len(columns) > 1 else None
        if not isinstance(text, str):
            raise BadRowError(f"{place}: column {columns[0]!r} holds {kind_name(text)}, a string is expected.")
        if len(columns) > 1 and not isinstance(label, Label):
            raise BadRowError(
                f"{place}: label column {columns[1]!r} holds {kind_name(label)}, a string or whole number is expected."
            )
        check_characters(text, place)
    except BadRowError as error:
        return error
    return Row(text, label, place)


def check_column(column: str, known: Collection[str], place: str, of_record: bool = False) -> None:
    """Raises MissingColumnError where a column is missing."""
    if column in known:
        return
    hint = suggest(column, map(str, known))
    if len(known) == 1 and (separators := [mark for mark in ";\t|" if mark in next(iter(known))]):
        hint = f" The columns seem to be separated by {separators[0]!r}: write commas, or tabs in a .tsv file."
    way_out = "Name the right one with text_column / label_column."
    if of_record:
        way_out = "A record has 'messages', or 'prompt' and 'completion'; record_form says which."
    elif choose_form("auto", known, column) != "text":
        way_out = "The rows are conversations, which --objective causal learns."
    raise MissingColumnError(f"{place}: no column {column!r}.{hint} Columns: {', '.join(map(str, known))}. {way_out}")


def read_columns(columns: Columns, known: Collection[str], place: str) -> list[str]:
    """Return the columns to read of those that are there.

    Raises:
        MissingColumnError: one that is needed is missing.
    """
    of_record = isinstance(columns, RecordColumns)
    for column in columns:
        check_column(column, known, place, of_record)
    return [*columns, *(name for name in (columns.beside if of_record else ()) if name in known)]


def _check_header(columns: Columns, names: list[str], path: str) -> list[str]:
    wanted = read_columns(columns, names, path)
    for column in wanted:
        if names.count(column) > 1:
            raise ValueError(f"{path}: {names.count(column)} columns have the name {column!r}; rename all but one.")
    return wanted


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
    first = content.get(columns[0])
    if isinstance(first, str) or (isinstance(columns, RecordColumns) and is_message_list(first)):
        return [content]
    if isinstance(content.get(columns[0]), list):
        return _from_columns(content, columns, path)
    lists = [key for key, value in content.items() if is_list_of_objects(value)]
    if len(lists) == 1:
        return content[lists[0]]
    found = f"lists of objects under {', '.join(map(repr, lists))}" if lists else "no list of objects"
    raise ValueError(
        f"{path}: an object with one list of objects is expected; this one has {found}. Write one list to a file."
    )


def _from_columns(content: dict, columns: Columns, path: str) -> list[dict]:
    columns = read_columns(columns, content, path)
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
            values = dict(zip(names, fields, strict=True))
            yield checked_row(from_cells(values) if isinstance(columns, RecordColumns) else values, columns, place)


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
            wanted = _check_header(columns, file.schema_arrow.names, path)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
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


def first_names(path: str) -> list[str] | None:
    """Return the names of a file's columns, of objects those of the first one; None of a text, or a damaged file."""
    kind = kind_of(path)
    if kind in TEXT_KINDS:
        return None
    try:
        if kind == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.schema_arrow.names
        if kind in _SEPARATORS:
            records = (fields for _, fields in _separated_records(path, _SEPARATORS[kind]))
            return next((fields for fields in records if fields and not isinstance(fields, BadRowError)), None)
        return _first_keys(path, kind)
    except (ValueError, pa.ArrowException, OSError):
        return None  # its reader says what is wrong with it


def _first_keys(path: str, kind: str) -> list[str] | None:
    if kind == ".json":
        try:
            return _keys(parse_json(read_text(path), path))
        except BadRowError as error:
            if "Extra data" not in str(error):
                raise
    lines = (line for _, line in checked_lines(path) if not isinstance(line, BadRowError) and line.strip())
    for line in lines:
        with contextlib.suppress(BadRowError):
            if isinstance(values := parse_json(line, path), dict):
                return list(values)
    return None


def _keys(content: Any) -> list[str] | None:
    """Return the keys of the first record of a JSON file, or its own where it is a record or an object of columns."""
    if isinstance(content, dict):
        lists = [value for value in content.values() if is_list_of_objects(value)]
        content = content if len(lists) != 1 or is_message_list(lists[0]) else lists[0]
    first = next((each for each in content if isinstance(each, dict)), None) if isinstance(content, list) else content
    return list(first) if isinstance(first, dict) else None


def known_kind(path: str | Path) -> bool:
    """Whether a file's name is that of data; Parquet has its own compression and is never packed."""
    kind = kind_of(path)
    return kind in READERS and (kind != ".parquet" or Path(path).suffix.lower() == ".parquet")
