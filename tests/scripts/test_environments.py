"""Every command in odd surroundings: consoles, homes, names, devices and disks. The same lines as anywhere else.

One process a surrounding (tests/tools/odd_places.py) runs every command on a tiny model.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from copying_compiler import copying_compiler
from frankenlm.kernels import build
from odd_places import torn_reports

TOOL = Path(__file__).resolve().parents[1] / "tools" / "odd_places.py"
ODD_NAME = 'it\'s "odd"\n%s $HOME caf\u00e9 \U0001f600'
NOWHERE = os.devnull + "/nothing"  # no folder can be made there, not by root either
SURROUNDINGS = {
    # a console of ASCII, no home, a user whom the system does not know
    "ascii": ("plain", ["--stranger"], {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "HOME": None}),
    # a Western console, a home that cannot be made, odd names for all that is read and written, no /dev/shm, odd disks
    "names": (ODD_NAME, [], {"PYTHONIOENCODING": "cp1252", "HOME": NOWHERE}),
}
SLOW = {
    "c with UTF-8": (ODD_NAME, ["--stranger"], {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": None, "HOME": None}),
    "cp1252 in a C locale": ("plain", [], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}),
    "no home": ("plain", [], {"HOME": "", "TERM": None, "PATH": ""}),
}


def why_no_mounts() -> str | None:
    """Return why this process cannot mount a file system for itself alone; None where it can."""
    if not shutil.which("unshare"):
        return "unshare is missing"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True
    )
    return tried.stderr.strip() if tried.returncode else None


NO_MOUNTS = why_no_mounts()


def visit(folder: Path, name: str, options: list[str], changes: dict[str, str | None], mounts: bool = False) -> dict:
    """Run every command in changed surroundings and return the tool's report."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with contextlib.suppress(build.NoCompilerError):  # where no home keeps a library, each process makes one
        environment["CXX"] = copying_compiler(folder / "copies", build.build())
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "PYTHONIOENCODING"):
        environment.pop(variable, None)
    environment |= changes | {"MPLCONFIGDIR": str(folder / "mpl"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment = {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, str(TOOL), str(folder / name), *options]
    if mounts:
        command = [shutil.which("unshare"), "--mount", *command, "--no_shm", "--storage"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return json.loads(done.stdout)


def check(report: dict) -> None:
    assert not report["faults"], json.dumps(report["faults"], indent=1)
    assert len(report["ends"]) >= 11


def test_ascii_console_without_home_or_user(tmp_path):
    check(visit(tmp_path, *SURROUNDINGS["ascii"]))


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What came of odd names and, where this system lets us mount, of a missing /dev/shm and odd disks."""
    return visit(tmp_path_factory.mktemp("odd"), *SURROUNDINGS["names"], mounts=NO_MOUNTS is None)


@pytest.mark.slow
def test_odd_names_and_a_western_console(names):
    check(names)


@pytest.mark.slow
@pytest.mark.skipif(NO_MOUNTS is not None, reason=f"no mounts: {NO_MOUNTS}")
@pytest.mark.parametrize("place", ["read-only", "full", "filling", "filling late"])
def test_disks_that_take_nothing_or_too_little(names, place):
    ends = {verb: end for verb, end in names["ends"].items() if verb.endswith(f" {place}")}
    assert len(ends) == 9
    codes = {code for code, *_ in ends.values()}
    assert 6 in codes and codes <= {0, 6}
    assert all(told[0].startswith("storage: ") for code, _, told in ends.values() if code == 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_surroundings(tmp_path, name):
    check(visit(tmp_path, *SLOW[name]))


def test_the_tool_finds_torn_reports(tmp_path):
    for name, text in {"cut.json": '{"a": ', "empty.html": "", "whole.json": "[]", "whole.md": "x"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert torn_reports(tmp_path) == ["cut.json", "empty.html"]
