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
# The one arrow back: PackedBitLinear's first forward tries to load the fast op.
PERMITTED = {("modeling/bitlinear.py", "frankenlm.kernels.ops")}


def modules_of(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def imported_names(path: Path) -> list[tuple[int, str]]:
    """Return (relative level, dotted name) of every import anywhere in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("part", PARTS)
def test_import_arrows(part):
    for path in modules_of(part):
        relative = path.relative_to(ROOT).as_posix()
        for level, name in imported_names(path):
            assert name.split(".")[0] not in PARTS or level, f"{relative}: write frankenlm.{name}"
            assert not name.startswith(("scripts", "app", "tests", "frankenlm.scripts", "frankenlm.tests"))
            if level == 0 and name.startswith("frankenlm.") and (relative, name) not in PERMITTED:
                assert name.split(".")[1] in ARROWS[part], f"{relative} must not import {name}"
            if level >= 2:
                assert part != "modeling", f"{relative}: only single-dot imports travel with a checkpoint"


def test_modeling_imports_siblings_by_name():
    """`from . import x` is not copied by save_pretrained, and a package inside would not be either."""
    for path in modules_of("modeling"):
        assert path.parent == ROOT / "modeling", f"{path}: modeling/ is flat"
        assert (1, "") not in imported_names(path), f"{path.name}: write `from .x import name`"


def test_no_circular_imports_among_siblings():
    edges = {
        path.stem: {name.split(".")[0] for level, name in imported_names(path) if level == 1}
        for path in modules_of("modeling")
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
    import frankenlm.modeling
    import frankenlm.trainer_ext

    for module in (frankenlm.modeling, frankenlm.trainer_ext):
        assert module.__all__ == sorted(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(block.splitlines()) <= 24
    exec(compile(block, "README.md", "exec"), {"__name__": "__readme__"})
