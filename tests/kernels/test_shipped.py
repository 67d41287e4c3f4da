"""The library that a platform wheel brings: taken where it fits, passed over where it does not, no compiler needed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from frankenlm.kernels import build, shipped

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "packages" / "platform_wheel.py"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder like the wheel's, with a file in the library's place."""
    (tmp_path / shipped.LIBRARY).write_bytes(b"GLIBC_2.14 GLIBC_2.2.5 GLIBCXX_3.4.26 GLIBC_2.9")
    (tmp_path / shipped.NOTE).write_text(json.dumps(shipped.describe(tmp_path / shipped.LIBRARY)))
    return tmp_path


def test_a_library_that_fits_is_taken(folder):
    assert shipped.shipped_library(folder) == folder / shipped.LIBRARY


@pytest.mark.parametrize("field", ["flags", "machine", "sha256", "sources", "system"])
def test_a_library_of_something_else_is_passed_over(folder, field):
    note = json.loads((folder / shipped.NOTE).read_text())
    (folder / shipped.NOTE).write_text(json.dumps({**note, field: "another"}))
    assert shipped.shipped_library(folder) is None


@pytest.mark.parametrize("spoil", ["library", "note", "no library", "no note"])
def test_a_damaged_one_is_passed_over(folder, spoil):
    path = folder / (shipped.NOTE if "note" in spoil else shipped.LIBRARY)
    if spoil.startswith("no "):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert shipped.shipped_library(folder) is None


def test_a_checkout_brings_none():
    assert shipped.shipped_library() is None


def test_one_that_cannot_be_opened_is_told_and_built_here(folder, monkeypatch, caplog):
    from frankenlm.kernels import ops

    monkeypatch.delenv("FRANKENLM_CXXFLAGS", raising=False)
    monkeypatch.setattr(ops, "shipped_library", lambda: shipped.shipped_library(folder))
    assert ops._open_shipped() is None
    assert "cannot be opened" in caplog.text
    assert (folder / shipped.LIBRARY).exists(), "the package's own file stays"
    monkeypatch.setenv("FRANKENLM_CXXFLAGS", "-g")
    monkeypatch.setattr(ops, "shipped_library", lambda: pytest.fail("extra flags ask for a library of one's own"))
    assert ops._open_shipped() is None


@pytest.fixture(scope="module")
def script():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("platform_wheel", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="wheels with operators are built on Linux")
@pytest.mark.parametrize(
    ("symbols", "minor"),
    [("GLIBC_2.14 GLIBCXX_3.4.9", 17), ("GLIBC_2.32 GLIBCXX_3.4.26", 32), ("GLIBC_2.5 GLIBCXX_3.4.30", 35)],
)
def test_the_tag_is_the_oldest_glibc_that_will_do(script, tmp_path, symbols, minor):
    (tmp_path / "a.so").write_text(symbols)
    assert script.platform_tag(tmp_path / "a.so").startswith(f"manylinux_2_{minor}_")


def test_symbols_of_a_newer_compiler_are_refused(script, tmp_path):
    (tmp_path / "a.so").write_text("GLIBCXX_3.4.99")
    with pytest.raises(script.WheelError):
        script.platform_tag(tmp_path / "a.so")


RUN = """
import torch
import frankenlm.kernels.shipped as shipped
from frankenlm.modeling.native_ops import native_path
assert shipped.shipped_library() is not None
path = native_path()
from frankenlm.modeling.ternary import pack_ternary
packed = pack_ternary(torch.ones(2, 3, dtype=torch.int8))
y = torch.ops.frankenlm.ternary_linear(torch.ones(1, 3), packed, torch.ones(2), 2)
assert y.tolist() == [[3.0, 3.0]]
print(path, shipped.FOLDER)
"""


@pytest.mark.slow
def test_the_wheel_has_the_fast_path_without_a_compiler(tmp_path):
    try:
        build.compiler()
    except build.NoCompilerError as missing:
        pytest.skip(str(missing))
    line = [sys.executable, SCRIPT, "--output", tmp_path / "dist"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "py3-none-manylinux_2_" in wheel.name
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # pip checks the hashes of RECORD
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRANKENLM_")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "PATH": str(tmp_path / "empty"), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, place = done.stdout.split()
    assert path != "reference" and Path(place).is_relative_to(tmp_path / "site")
    assert shutil.which("c++", path=environment["PATH"]) is None
    assert not (tmp_path / ".cache").exists(), "nothing was built"
