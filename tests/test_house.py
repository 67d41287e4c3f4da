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
PARTS = ("modeling", "trainer_ext", "degradation", "kernels")
# who may import whom, among our parts; scripts and app may import every part
ARROWS = {
    "modeling": set(),
    "kernels": {"modeling"},
    "trainer_ext": {"modeling"},
    "degradation": {"modeling", "trainer_ext"},
}
# The one arrow back: the door through which layers ask for the native operators.
PERMITTED = {("modeling/native_ops.py", "frankenlm.kernels.ops")}


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


def forbidden(path: Path, part: str, level: int, name: str) -> bool:
    """Whether an import crosses the arrows."""
    top, _, rest = absolute_name(path, level, name).partition(".")
    if top in (*PARTS, "scripts", "app", "tests"):
        return True  # our parts have no top-level names
    if top != "frankenlm" or (path.relative_to(ROOT).as_posix(), f"{top}.{rest}".rpartition(".")[0]) in PERMITTED:
        return False
    target = rest.partition(".")[0]
    return target not in ARROWS[part] | {part, "__version__"}


@pytest.mark.parametrize("part", PARTS)
def test_import_arrows(part):
    for path in modules_of(part):
        for level, name in imported_names(path):
            assert not forbidden(path, part, level, name), f"{path.relative_to(ROOT)} must not import {name}"
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
        ("trainer_ext/data.py", 2, "degradation.journal", True),
        ("trainer_ext/data.py", 2, "modeling.checks", False),
        ("trainer_ext/metrics/language.py", 0, "torch", False),
    ],
)
def test_the_arrow_test_can_fail(file, level, name, expected):
    assert forbidden(ROOT / file, file.split("/")[0], level, name) is expected


def test_modeling_imports_siblings_by_name():
    """`from . import x` is not copied by save_pretrained, and a package inside would not be either."""
    for path in modules_of("modeling"):
        assert path.parent == ROOT / "modeling", f"{path}: modeling/ is flat"
        for level, name in imported_names(path):
            assert level == 0 or "." in name, f"{path.name}: write `from .x import name`, not `from . import {name}`"


@pytest.mark.parametrize("part", ["modeling", "degradation"])
def test_no_circular_imports_among_siblings(part):
    edges = {
        path.stem: {name.split(".")[0] for level, name in imported_names(path) if level == 1}
        - {path.stem for path in (ROOT / part).iterdir() if path.is_dir()}
        for path in (ROOT / part).glob("*.py")
        if path.stem != "__init__"
    }
    done: set[str] = set()
    while ready := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= ready
    assert done == set(edges), f"in a circle: {sorted(set(edges) - done)}"


def test_kernels_is_a_namespace_folder():
    """An __init__.py there would shadow Hugging Face's library of that name and break `import transformers`."""
    assert (ROOT / "kernels").is_dir()
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {"frankenlm"} | {
        "frankenlm." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for part in PARTS
        for path in [*modules_of(part), *(ROOT / part).rglob("*.yaml")]
    }
    assert listed == found


@pytest.mark.parametrize("statement", ["import transformers; transformers.AutoModel", "import frankenlm.modeling"])
def test_imports_from_the_repository_root_are_undisturbed(statement):
    """With the root first on the path, as under `python app.py`."""
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
    assert len(blocks) == 3
    for block in blocks:
        assert len([line for line in block.splitlines() if line]) <= 20
        exec(compile(block, "README.md", "exec"), {"__name__": "__readme__"})
