"""From what --dataset says to the places with documents: local files, folders and globs, hub names, built-in text."""

import glob
import logging
import re
from pathlib import Path

import datasets

from frankenlm.modeling.checks import suggest

from ..common.cli import is_storage_error
from ..common.text_files import COMPRESSIONS, kind_of
from .builtin_text import BUILTIN_NAMES
from .documents import BuiltinSource, FileSource, HubSource, Source
from .rows import READERS, known_kind

logger = logging.getLogger(__name__)

# Extensions that mark a spec as a local path, so that a misspelt one is not looked up on the hub.
_FILE_LIKE = {*READERS, ".md", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?")
_PART_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
# What libraries leave beside data.
_ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def find_sources(spec: str, part: str, *, streaming: bool = False) -> list[Source]:
    """Return the sources of one part ("train" or "validation") of `spec`; [] where it has no such part of its own.

    A folder whose files (or sub-folders) are named train / validation / test, and a hub data set with such splits,
    have parts; everything else is all "train". A "test" part is never read. Raises ValueError for a spec that is
    misspelt, missing, empty, of mixed or unknown file types, or unreachable.
    """
    if not spec.strip():
        raise ValueError(f"dataset {spec!r} is empty: give 'builtin', a hub name, or a file, folder or glob.")
    if spec in BUILTIN_NAMES:
        return [BuiltinSource(spec)] if part == "train" else []
    path = _expanded(spec)
    if path.is_dir():
        paths = _folder_part(path, part)
    elif path.is_file():
        paths = [path] if part == "train" else []
    elif path.exists():
        raise ValueError(
            f"dataset {spec!r} is a pipe or a device, and a text is read more than once; write it to a file."
        )
    elif glob.has_magic(spec):
        paths = sorted(found for found in map(Path, glob.glob(str(path), recursive=True)) if found.is_file())
        if not paths:
            raise ValueError(f"dataset {spec!r} matches no file.")
        paths = paths if part == "train" else []
    else:
        _check_not_a_path(spec)
        return _hub_part(spec, part, streaming)
    _check_types(spec, paths)
    return [FileSource.of(path) for path in paths]


def _expanded(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise ValueError(f"dataset {spec!r}: {error}") from error  # ~ of nobody


def _folder_part(folder: Path, part: str) -> list[Path]:
    inside = [path for path in sorted(folder.rglob("*")) if known_kind(path) and path.is_file()]
    inside = [path for path in inside if not any(name.startswith(".") for name in path.relative_to(folder).parts)]
    inside = _without_notes(folder, [path for path in inside if path.name not in _ABOUT_DATA])
    if not inside:
        raise ValueError(f"folder {str(folder)!r} holds no {', '.join(READERS)} file.")
    parts = {path: _named_part(path.relative_to(folder)) for path in inside}
    if "train" not in parts.values():  # names that only happen to say "test" do not split a folder
        return inside if part == "train" else []
    return [path for path in inside if parts[path] == part]


def _without_notes(folder: Path, paths: list[Path]) -> list[Path]:
    """Pass over .json beside data of another kind: they are notes about it, more often than not."""
    data = [path for path in paths if kind_of(path) != ".json"]
    if data and len(data) < len(paths):
        logger.info("%s: .json files beside %s are passed over", folder, kind_of(data[0]))
    return data or paths


def _named_part(path: Path) -> str | None:
    """Return the part that a path in a folder names: train-00000-of-00008.parquet, validation/a.txt, wiki.test.raw."""
    own = path.name.removeprefix("wiki.") if kind_of(path) in (".raw", ".tokens") else path.name
    for name in (*path.parent.parts, own):
        word = re.split(r"[-_. ]", name.lower())[0]
        for part, words in _PART_WORDS.items():
            if word in words:
                return part
    return None


def _check_types(spec: str, paths: list[Path]) -> None:
    for path in paths:
        if not known_kind(path):
            known = f"Known: {', '.join(READERS)}, all but the last also as {', '.join(COMPRESSIONS)}."
            kind = kind_of(path) or path.suffix.lower()
            raise ValueError(f"{path}: unknown file type {kind!r}.{suggest(kind, READERS)} {known}")
    types = sorted(
        {"".join(path.suffixes[-2:] if path.suffix in COMPRESSIONS else path.suffixes[-1:]).lower() for path in paths}
    )
    if len(types) > 1:
        raise ValueError(
            f"dataset {spec!r} mixes {' and '.join(types)} files; name one kind with a glob such as '*{types[0]}'."
        )


def _check_not_a_path(spec: str) -> None:
    path = _expanded(spec)
    local = spec.startswith((".", "/", "~")) or path.suffix.lower() in _FILE_LIKE or spec.count("/") > 1
    if local or not _HUB_NAME.fullmatch(spec):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"dataset {spec!r} does not exist.{suggest(path.name, siblings)}")


def _hub_part(spec: str, part: str, streaming: bool) -> list[Source]:
    name, _, config = spec.partition(":")
    try:
        splits = datasets.load_dataset(name, config or None, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if is_storage_error(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
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
