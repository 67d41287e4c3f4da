"""The text every Python installation already carries, so that a first run needs no download and no text of others.

`builtin`       English documentation: the topics of `pydoc` and the docstrings of the standard library, one document
                a topic or module (about 1.8 MB with Python 3.11).
`builtin-code`  the source of the standard library's modules, one document a file (about 7 MB), for long documents.

Nothing is imported or executed: source files are read and parsed with `ast`, so no module's side effects run and
`-OO` makes no difference. Every long paragraph is kept once: pydoc's topics quote each other ("if" lies inside
"compound"), and without that the held-out documents would be found, word for word, among the training ones.

Which modules count. Only names in `sys.stdlib_module_names`, which is the same on all platforms of a Python version:
that leaves out site-packages, sitecustomize, tests and generated build data. Left out besides are folders that
distributions ship separately or not at all (tkinter, idlelib, lib2to3, ...), whose presence would make the corpus
depend on the machine, `encodings` (a hundred near-equal tables) and `pydoc_data` (its topics are read on their own).
"""

import ast
import functools
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUILTIN_NAMES = ("builtin", "builtin-code")

# Raised by hand whenever the rules of this file change, so that caches made from the older text are not used.
BUILTIN_VERSION = 1

_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}  # not the library itself
    | {"idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip", "venv", "msilib"}  # not everywhere
    | {"encodings", "pydoc_data"}  # tables; data that `_topics` reads
)
_SHORTEST_DOCUMENT = 100  # characters; shorter documents are a lone docstring such as "Helper."
_SHORTEST_UNIQUE = 60  # characters; shorter paragraphs ("Example:") may repeat, they give nothing away
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class BuiltinDocument(NamedTuple):
    """One document and the name its train/held-out side is drawn from."""

    topic: str
    text: str


def builtin_documents(name: str) -> list[BuiltinDocument]:
    """Return the documents of `builtin` or `builtin-code`, sorted by topic and free of duplicates.

    The same Python version gives the same documents, whatever else is installed. Takes 3 s the first time.
    Raises ValueError for another name, or where this Python carries no library source.
    """
    if name not in BUILTIN_NAMES:
        raise ValueError(f"unknown built-in text {name!r}. Known: {', '.join(BUILTIN_NAMES)}.")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    return list(_read_builtin(name, stdlib))


@functools.lru_cache(maxsize=2)
def _read_builtin(name: str, stdlib: Path) -> tuple[BuiltinDocument, ...]:
    sources = list(_library_files(stdlib))
    if not sources:
        raise ValueError(f"{name!r} needs the standard library's source files; {stdlib} has none. Give a file instead.")
    if name == "builtin-code":
        documents = [BuiltinDocument(topic, _read_source(path)) for topic, path in sources]
        return _unique_files(documents)
    documents = [BuiltinDocument(f"topic {topic}", text) for topic, text in _topics(stdlib).items()]
    documents += [BuiltinDocument(f"module {topic}", _module_text(topic, path)) for topic, path in sources]
    return _unique_paragraphs(documents)


def _library_files(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to the library with forward slashes, path), sorted."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).parts
        if parts[0].removesuffix(".py") in sys.stdlib_module_names and not _LEFT_OUT.intersection(parts):
            yield "/".join(parts), path


def _read_source(path: Path) -> str:
    with tokenize.open(path) as file:  # honours the file's coding line
        return file.read()


def _topics(stdlib: Path) -> dict[str, str]:
    """Return pydoc's topics: the one literal dict of `pydoc_data/topics.py`, read without importing it."""
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise ValueError(f"'builtin' needs pydoc's topics; {path} is missing from this Python. Give a file instead.")
    for node in ast.parse(_read_source(path)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            return ast.literal_eval(node.value)
    raise ValueError(f"'builtin' needs pydoc's topics; {path} does not define them. Give a file instead.")


def _module_text(topic: str, path: Path) -> str:
    """Return a module's docstrings in source order, each below the dotted name of what it documents."""
    name = topic.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    entries = dict.fromkeys(_docstrings(ast.parse(_read_source(path)), name))
    return "\n\n".join(f"{owner}\n\n{text}" for owner, text in entries)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node)
        if text:
            yield name, text.strip()
    for child in ast.iter_child_nodes(node):
        inner = f"{name}.{child.name}" if hasattr(child, "name") and isinstance(child, _DOCUMENTED) else name
        yield from _docstrings(child, inner)


def _unique_files(documents: list[BuiltinDocument]) -> tuple[BuiltinDocument, ...]:
    """Drop files without text and files whose text came before."""
    first = {}
    for document in documents:
        if document.text.strip():
            first.setdefault(document.text, document)
    return tuple(first.values())


def _unique_paragraphs(documents: list[BuiltinDocument]) -> tuple[BuiltinDocument, ...]:
    """Keep every long paragraph once, in the longest document that has it, so that the long ones stay whole."""
    seen: set[str] = set()
    kept = []
    for topic, text in sorted(documents, key=lambda document: (-len(document.text), document.topic)):
        paragraphs = []
        for paragraph in re.split(r"\n[ \t]*\n", text):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                paragraphs.append(paragraph.strip("\n").rstrip())
            if len(words) >= _SHORTEST_UNIQUE:
                seen.add(words)
        text = "\n\n".join(paragraphs)
        if len(text) >= _SHORTEST_DOCUMENT:
            kept.append(BuiltinDocument(topic, text))
    return tuple(sorted(kept))
