"""The command `frankenlm VERB ...`: one verb a file of scripts/, which is what the wheel installs of that folder."""

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .trainer_ext.common.checks import suggest
from .trainer_ext.common.cli import EXIT_FAILED, EXIT_USER_MISTAKE, run_command

# Verbs that are not their file's name.
NAMES = {"analyze_run": "analyze"}
# The packages that a verb needs, as an extra of setup.cfg, where they are not those of most.
EXTRAS = {"app": "app", "serve": "serve", "export": "export"}


def verbs() -> dict[str, Path]:
    """Return the file of each verb; what begins with an underscore is none."""
    (folder,) = set(find_spec("frankenlm.scripts").submodule_search_locations)
    return {NAMES.get(path.stem, path.stem): path for path in sorted(Path(folder).glob("[!_]*.py"))}


def overview() -> str:
    """Return what each verb does: the first sentence of its file, which is read and not run."""
    lines = ["usage: frankenlm VERB [options]     frankenlm VERB --help lists the options", ""]
    for verb, path in verbs().items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        lines.append(f"  {verb:<10} {' '.join(about.split()).partition(' (')[0].partition('. ')[0].rstrip('.')}")
    return "\n".join([*lines, "", f"frankenlm {__version__}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb with the rest of the words and return its exit code."""
    verb, *words = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb == "help":  # of a verb, or of them all
        verb, *words = [*words, "--help"]
    if verb in ("-h", "--help"):
        print(overview())
        return 0
    if verb == "--version":
        print(__version__)
        return 0
    known = verbs()
    if verb not in known:
        print(f"error: unknown verb {verb!r}.{suggest(verb, known)} Known: {', '.join(known)}.", file=sys.stderr)
        return EXIT_USER_MISTAKE
    sys.argv[0] = f"frankenlm {verb}"  # what a parser calls itself
    try:
        return run_command(importlib.import_module(f"frankenlm.scripts.{known[verb].stem}").main, words)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("frankenlm"):
            raise
        extra = EXTRAS.get(verb, "train,lab")
        print(f"error: the package {error.name} is missing: pip install 'frankenlm[{extra}]'.", file=sys.stderr)
        return EXIT_FAILED
