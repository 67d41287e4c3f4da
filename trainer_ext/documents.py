"""Where documents come from: local files, folders and globs, the hub, and the text Python carries.

A *document* is the unit that is held out as a whole:

- `.txt`: a paragraph (lines up to a blank line), as in `load_dataset("text", sample_by="paragraph")`; a file without a
  blank line is one document a line, as `load_dataset("text")` has it.
- `.jsonl`, `.parquet`, hub: a row. - `builtin`, `builtin-code`: a topic, a module, a file (builtin_text.py).

Blank documents are passed over. Files are read line by line or row group by row group, so memory does not grow with
their size. What is wrong with a file is a ValueError that names the file and the line.
"""

import glob
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from frankenlm.modeling.checks import suggest

from .builtin_text import BUILTIN_NAMES, BUILTIN_VERSION, builtin_documents

# Extensions that mark a spec as a local path, so that a misspelt one is not looked up on the hub.
_FILE_LIKE = {".txt", ".jsonl", ".parquet", ".json", ".csv", ".tsv", ".md", ".arrow", ".gz", ".bz2", ".zst", ".zip"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?")
_PART_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
_ROWS_AT_ONCE = 1000

Label = str | int | bool


class Document(NamedTuple):
    """A text, the key its train/held-out side is drawn from, its raw label if one was asked for, and where it was."""

    key: str
    text: str
    label: Label | None
    place: str


class Source(Protocol):
    """A place with documents. `identity` changes whenever the documents may have."""

    identity: str

    def documents(self, text_column: str, label_column: str | None) -> Iterator[Document]: ...


@dataclass(frozen=True)
class BuiltinSource:
    name: str

    @property
    def identity(self) -> str:
        return f"{self.name} {BUILTIN_VERSION} {sys.version}"

    def documents(self, text_column: str, label_column: str | None) -> Iterator[Document]:
        if label_column is not None:
            raise ValueError(f"{self.name!r} has no labels; classification needs a file with a text and a label.")
        for topic, text in builtin_documents(self.name):
            yield Document(topic, text, None, topic)


@dataclass(frozen=True)
class FileSource:
    path: str
    size: int
    changed: int  # time of the last change, ns

    @classmethod
    def of(cls, path: Path) -> "FileSource":
        stat = path.stat()
        if stat.st_size == 0:
            raise ValueError(f"{path} is empty.")
        return cls(str(path), stat.st_size, stat.st_mtime_ns)

    @property
    def identity(self) -> str:
        return f"{Path(self.path).resolve()} {self.size} {self.changed}"

    def documents(self, text_column: str, label_column: str | None) -> Iterator[Document]:
        return READERS[Path(self.path).suffix.lower()](self.path, text_column, label_column)


@dataclass(frozen=True)
class HubSource:
    name: str
    dataset: "datasets.Dataset | datasets.IterableDataset"

    @property
    def identity(self) -> str:
        return f"{self.name} {self.dataset._fingerprint}"

    def class_names(self, label_column: str) -> list[str] | None:
        """Return the names the data set itself gives its labels, if it does."""
        feature = (self.dataset.features or {}).get(label_column)
        return feature.names if isinstance(feature, datasets.ClassLabel) else None

    def documents(self, text_column: str, label_column: str | None) -> Iterator[Document]:
        columns = [column for column in (text_column, label_column) if column is not None]
        names = self.class_names(label_column)
        known = self.dataset.column_names or list(next(iter(self.dataset), {}))  # a stream may not know its columns
        for column in columns:
            _check_column(column, known, self.name)
        number = 0
        for batch in self.dataset.select_columns(columns).iter(_ROWS_AT_ONCE):
            labels = batch[label_column] if label_column else [None] * len(batch[text_column])
            for text, label in zip(batch[text_column], labels, strict=True):
                number += 1
                place = f"{self.name}, row {number}"
                if names is not None:
                    if label not in range(len(names)):
                        raise ValueError(f"{place}: label {label} has no name in the data set; the row is unlabelled.")
                    label = names[label]
                yield from _document(text, label, columns, place)


# --- local files


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end)."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x}). Convert the file first, "
                    "for example with: iconv -f latin1 -t utf-8"
                ) from error


def _read_txt(path: str, text_column: str, label_column: str | None) -> Iterator[Document]:
    if label_column is not None:
        raise ValueError(f"{path}: a .txt file has no labels; classification needs .jsonl or .parquet.")
    paragraphs = _has_paragraphs(path)
    held: list[str] = []
    start = 1
    for number, line in _lines(path):
        if line.strip() and not held:
            start = number
        if line.strip():
            held.append(line)
        if held and (not paragraphs or not line.strip()):
            yield from _document("\n".join(held), None, ["text"], f"{path}, line {start}")
            held = []
    if held:
        yield from _document("\n".join(held), None, ["text"], f"{path}, line {start}")


def _has_paragraphs(path: str) -> bool:
    """Whether a blank line stands between two lines with text."""
    seen_text = seen_gap = False
    for _, line in _lines(path):
        if line.strip():
            if seen_gap:
                return True
            seen_text = True
        elif seen_text:
            seen_gap = True
    return False


def _read_jsonl(path: str, text_column: str, label_column: str | None) -> Iterator[Document]:
    columns = [column for column in (text_column, label_column) if column is not None]
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place}: not valid JSON ({error.msg}, column {error.colno}). A .jsonl file has one object a line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a JSON object is expected, not {type(row).__name__}.")
        for column in columns:
            _check_column(column, row, place)
        yield from _document(row[text_column], row.get(label_column), columns, place)


def _read_parquet(path: str, text_column: str, label_column: str | None) -> Iterator[Document]:
    columns = [column for column in (text_column, label_column) if column is not None]
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for column in columns:
                _check_column(column, file.schema_arrow.names, path)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield from _document(row[text_column], row.get(label_column), columns, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _check_column(column: str, known, place: str) -> None:
    if column not in known:
        raise ValueError(
            f"{place}: no column {column!r}.{suggest(column, known)} Columns: {', '.join(map(str, known))}. "
            "Name the right one with text_column / label_column."
        )


def _document(text, label, columns: list[str], place: str) -> Iterator[Document]:
    """Yield the checked document, or nothing for a blank one."""
    if not isinstance(text, str):
        raise ValueError(f"{place}: column {columns[0]!r} holds {type(text).__name__}, a string is expected.")
    if len(columns) > 1 and not isinstance(label, Label):
        raise ValueError(
            f"{place}: label column {columns[1]!r} holds {type(label).__name__}, a string or whole number is expected."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the text holds half a surrogate pair, which is no character.") from error
    if text.strip():
        yield Document(text, text, label, place)


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


# --- from a spec to sources


def find_sources(spec: str, part: str, *, streaming: bool = False) -> list[Source]:
    """Return the sources of one part ("train" or "validation") of `spec`; [] where it has no such part of its own.

    A folder whose files (or sub-folders) are named train / validation / test, and a hub data set with such splits,
    have parts; everything else is all "train". A "test" part is never read. Raises ValueError for a spec that is
    misspelt, missing, empty, of mixed or unknown file types, or unreachable.
    """
    if spec in BUILTIN_NAMES:
        return [BuiltinSource(spec)] if part == "train" else []
    if Path(spec).expanduser().is_dir():
        paths = _folder_part(Path(spec).expanduser(), part)
    elif Path(spec).expanduser().is_file():
        paths = [Path(spec).expanduser()] if part == "train" else []
    elif glob.has_magic(spec):
        found = (Path(path) for path in glob.glob(str(Path(spec).expanduser()), recursive=True))
        paths = sorted(path for path in found if path.is_file())
        if not paths:
            raise ValueError(f"dataset {spec!r} matches no file.")
        paths = paths if part == "train" else []
    else:
        _check_not_a_path(spec)
        return _hub_part(spec, part, streaming)
    _check_types(spec, paths)
    return [FileSource.of(path) for path in paths]


def _folder_part(folder: Path, part: str) -> list[Path]:
    inside = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in READERS and path.is_file()]
    inside = [path for path in inside if not any(name.startswith(".") for name in path.relative_to(folder).parts)]
    if not inside:
        raise ValueError(f"folder {str(folder)!r} holds no {', '.join(READERS)} file.")
    parts = {path: _named_part(path.relative_to(folder)) for path in inside}
    if "train" not in parts.values():  # names that only happen to say "test" do not split a folder
        return inside if part == "train" else []
    return [path for path in inside if parts[path] == part]


def _named_part(path: Path) -> str | None:
    """Return the part that a path inside a folder names, as in train-00000-of-00008.parquet or validation/a.txt."""
    for name in (*path.parent.parts, path.stem):
        word = re.split(r"[-_. ]", name.lower())[0]
        for part, words in _PART_WORDS.items():
            if word in words:
                return part
    return None


def _check_types(spec: str, paths: list[Path]) -> None:
    types = sorted({path.suffix.lower() for path in paths})
    for suffix in types:
        if suffix not in READERS:
            odd = next(path for path in paths if path.suffix.lower() == suffix)
            raise ValueError(
                f"{odd}: unknown file type {suffix!r}.{suggest(suffix, READERS)} Known: {', '.join(READERS)}."
            )
    if len(types) > 1:
        raise ValueError(
            f"dataset {spec!r} mixes {' and '.join(types)} files; name one kind with a glob such as '*{types[0]}'."
        )


def _check_not_a_path(spec: str) -> None:
    path = Path(spec).expanduser()
    local = spec.startswith((".", "/", "~")) or path.suffix.lower() in _FILE_LIKE or spec.count("/") > 1
    if local or not _HUB_NAME.fullmatch(spec):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"dataset {spec!r} does not exist.{suggest(path.name, siblings)}")


def _hub_part(spec: str, part: str, streaming: bool) -> list[Source]:
    name, _, config = spec.partition(":")
    try:
        splits = datasets.load_dataset(name, config or None, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"dataset {spec!r} is no local file or folder and cannot be loaded from the hub: {reason}."
            f"{suggest(spec, BUILTIN_NAMES)} Give a path, 'builtin', or OWNER/NAME:CONFIG and a connection."
        ) from error
    for key in splits:
        if key in _PART_WORDS[part]:
            return [HubSource(f"{spec} [{key}]", splits[key])]
    if part == "train":
        raise ValueError(f"dataset {spec!r} has no train split. Splits: {', '.join(splits)}.")
    return []
