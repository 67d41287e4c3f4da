"""The house rules a machine can keep: packaging, import arrows, what must not exist."""

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("modeling", "trainer_ext", "degradation", "sharing", "kernels")
# Who may import whom. A room is a folder, or a file that stands beside folders; modeling and kernels are one room each.
# Scripts, the command and the page may import every room, and no room imports them.
FOUNDATION = {"modeling", "trainer_ext.common"}
ARROWS = {
    "modeling": set(),
    "kernels": set(),
    "trainer_ext.metrics": {"modeling"},
    "trainer_ext.common": {"modeling", "trainer_ext.metrics"},
    "trainer_ext.data": FOUNDATION,
    "trainer_ext.generation": FOUNDATION | {"trainer_ext.data", "trainer_ext.metrics", "trainer_ext.plots"},
    "trainer_ext.evaluation": FOUNDATION | {"trainer_ext.data", "trainer_ext.generation", "trainer_ext.metrics"},
    "trainer_ext.optim": FOUNDATION | {"trainer_ext.ternary_stats"},
    "trainer_ext.losses": FOUNDATION | {"trainer_ext.data"},
    "trainer_ext.saving": FOUNDATION | {"trainer_ext.optim"},
    "trainer_ext.analysis": FOUNDATION,
    "trainer_ext.checking": FOUNDATION,
    "trainer_ext.packing": FOUNDATION,
    "trainer_ext.synthetic": FOUNDATION | {"trainer_ext.metrics"},
    "trainer_ext.sweeps": FOUNDATION
    | {f"trainer_ext.{room}" for room in ("metrics", "preflight", "presets", "resuming", "saving")},
    "degradation.errors": set(),
    "degradation.offloaded": set(),
    "degradation.configs": {"trainer_ext.common"},
    "degradation.cells": {"degradation.configs"},
    "degradation.prompts": {"trainer_ext.common"},
    "degradation.records": {"degradation.configs", "degradation.errors", "trainer_ext.common"},
    "degradation.damage": {"degradation.configs", "trainer_ext.common"},
    "degradation.layouts": set(),
    "degradation.weights": FOUNDATION
    | {f"degradation.{room}" for room in ("configs", "damage", "layouts", "offloaded")},
    "degradation.answers": FOUNDATION | {f"degradation.{room}" for room in ("configs", "damage", "offloaded")},
    "degradation.targeting": FOUNDATION
    | {f"degradation.{room}" for room in ("configs", "damage", "errors", "offloaded", "weights")},
    "degradation.measures": {"degradation.prompts", "trainer_ext.metrics"},
    "degradation.run": FOUNDATION
    | {f"degradation.{room}" for room in ("answers", "cells", "configs", "damage", "errors", "measures", "prompts")}
    | {f"degradation.{room}" for room in ("layouts", "offloaded", "records", "targeting", "weights")},
    "degradation.recovery": FOUNDATION
    | {f"degradation.{room}" for room in ("cells", "configs", "damage", "errors", "flags", "lab", "offloaded")}
    | {f"degradation.{room}" for room in ("records", "run", "several", "weights")}
    | {f"trainer_ext.{room}" for room in ("arguments", "data", "saving", "trainer")},
    "degradation.skills": FOUNDATION
    | {f"degradation.{room}" for room in ("answers", "cells", "configs", "errors", "flags", "lab", "records", "report")}
    | {"degradation.run", "degradation.weights"},
    "degradation.report": FOUNDATION
    | {f"degradation.{room}" for room in ("configs", "errors", "measures", "prompts", "records")},
}
# Files that stand beside the folders of their part may import whatever does not lead back to them.
TOP = {
    "trainer_ext": {"modeling", "trainer_ext"},
    "degradation": {"modeling", "trainer_ext.common", "degradation"},
    "sharing": {"modeling", "trainer_ext", "degradation", "sharing.live"},  # its rooms too
}
# The one arrow back: the door through which layers ask for the native operators.
PERMITTED = {("modeling/native_ops.py", "frankenlm.kernels.ops")}
LONGEST_FILE = 400
FULLEST_FOLDER = 18


def modules_of(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def imported_names(path: Path) -> list[tuple[int, str]]:
    """Return (relative level, dotted name) of every import anywhere in a file; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
    return found


def absolute_name(path: Path, level: int, name: str) -> str:
    """Return the absolute dotted name of an import found in one of our parts."""
    if level == 0:
        return name
    package = ("frankenlm", *path.relative_to(ROOT).parent.parts)
    return ".".join((*package[: len(package) - level + 1], name))


def room_of(name: str) -> str:
    """Return the room of a dotted name below frankenlm: `degradation.records.store.Store` is in degradation.records."""
    part, _, rest = name.partition(".")
    return part if part not in TOP or not rest else f"{part}.{rest.partition('.')[0]}"


def forbidden(path: Path, level: int, name: str) -> bool:
    """Whether an import crosses the arrows."""
    top, _, rest = absolute_name(path, level, name).partition(".")
    if top in (*PARTS, "scripts", "app", "tests"):
        return True  # our parts have no top-level names
    inside = path.relative_to(ROOT)
    if top != "frankenlm" or (inside.as_posix(), f"{top}.{rest}".rpartition(".")[0]) in PERMITTED:
        return False
    source, target = room_of(".".join(inside.with_suffix("").parts)), room_of(rest)
    if target in (source, "__version__"):
        return False
    if source in ARROWS:
        return target not in ARROWS[source]
    allowed = TOP[inside.parts[0]]
    return target not in allowed and target.partition(".")[0] not in allowed


@pytest.mark.parametrize("part", PARTS)
def test_import_arrows(part):
    for path in modules_of(part):
        for level, name in imported_names(path):
            assert not forbidden(path, level, name), f"{path.relative_to(ROOT)} must not import {name}"
            assert level < 2 or part != "modeling", f"{path.name}: only single-dot imports travel with a checkpoint"
            assert level > 0 or part != "modeling" or not name.startswith("frankenlm.modeling")


@pytest.mark.parametrize(
    ("file", "level", "name", "expected"),
    [
        ("modeling/norms.py", 1, "checks.suggest", False),
        ("modeling/norms.py", 0, "frankenlm.degradation", True),
        ("modeling/norms.py", 0, "trainer_ext.data", True),
        ("modeling/native_ops.py", 0, "frankenlm.kernels.ops.load", False),
        ("modeling/norms.py", 0, "frankenlm.kernels.ops.load", True),
        ("trainer_ext/data/splits.py", 0, "frankenlm.degradation.records.journal", True),
        ("trainer_ext/data/splits.py", 2, "common.cli.UserError", False),
        ("trainer_ext/data/splits.py", 2, "trainer.FrankenTrainer", True),
        ("trainer_ext/recipe.py", 1, "data.splits", False),
        ("trainer_ext/recipe.py", 0, "frankenlm.degradation.configs", True),
        ("trainer_ext/metrics/language.py", 0, "torch", False),
        ("degradation/records/store.py", 2, "report.write", True),
        ("degradation/lab.py", 0, "frankenlm.trainer_ext.common.cli", False),
        ("degradation/lab.py", 0, "frankenlm.trainer_ext.trainer", True),
        ("degradation/lab.py", 0, "frankenlm.scripts.train", True),
        ("degradation/lab.py", 0, "frankenlm.sharing.live.models", True),
        ("sharing/space/page.py", 0, "frankenlm.degradation.lab", False),
        ("sharing/space/page.py", 2, "live.models", False),
        ("sharing/space/page.py", 2, "hub.card", True),
    ],
)
def test_the_arrow_test_can_fail(file, level, name, expected):
    assert forbidden(ROOT / file, level, name) is expected


@pytest.mark.parametrize("part", PARTS)
def test_no_circular_imports_among_files(part):
    """Wherever an import stands, at the top or in a function: a part can be read from the ground up."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules_of(part)}
    needs = {
        name: {
            found
            for level, imported in imported_names(path)
            for found in (absolute_name(path, level, imported).removeprefix("frankenlm."),)
            for found in (found, found.rpartition(".")[0])
            if found in files and found != name
        }
        for name, path in files.items()
    }
    done: set[str] = set()
    while ready := {name for name in needs if name not in done and needs[name] <= done}:
        done |= ready
    assert done == set(needs), f"in a circle: {sorted(set(needs) - done)}"


def test_folders_and_files_are_of_a_size_to_read():
    for path in [path for part in (*PARTS, "scripts", "frankenlm", "tests") for path in modules_of(part)]:
        assert path.read_text(encoding="utf-8").count("\n") <= LONGEST_FILE, f"{path.relative_to(ROOT)} is too long"
        if path.parent.name != "modeling":
            assert len(list(path.parent.glob("*.py"))) <= FULLEST_FOLDER, f"{path.parent.relative_to(ROOT)} is too full"


def test_every_class_has_a_name_of_its_own():
    places: dict[str, list[str]] = {}
    for path in [path for part in (*PARTS, "scripts") for path in modules_of(part)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_modeling_imports_siblings_by_name():
    """`from . import x` is not copied by save_pretrained, and a package inside would not be either."""
    for path in modules_of("modeling"):
        assert path.parent == ROOT / "modeling", f"{path}: modeling/ is flat"
        for level, name in imported_names(path):
            assert level == 0 or "." in name, f"{path.name}: write `from .x import name`, not `from . import {name}`"


def test_kernels_is_a_namespace_folder():
    """An __init__.py there would shadow Hugging Face's library of that name and break `import transformers`."""
    assert (ROOT / "kernels").is_dir()
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {"frankenlm", "frankenlm.scripts"} | {
        "frankenlm." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for part in PARTS
        for path in [*modules_of(part), *(ROOT / part).rglob("*.yaml")]
    }
    assert listed == found


def test_imports_from_the_repository_root_are_undisturbed():
    """With the root first on the path, as under `python app.py`."""
    statement = "import transformers; transformers.AutoModel; import frankenlm.modeling"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_is_the_public_surface():
    import frankenlm.degradation
    import frankenlm.modeling
    import frankenlm.trainer_ext

    for module in (frankenlm.degradation, frankenlm.modeling, frankenlm.trainer_ext):
        assert module.__all__ == sorted(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        assert len([line for line in block.splitlines() if line]) <= 20
        exec(compile(block, "README.md", "exec"), {"__name__": "__readme__"})
