"""The build: what the compiler made of the inner loops, the cache, and machines without a compiler."""

import os
import shutil

import pytest

from copying_compiler import copying_compiler
from disassembly import functions, inner_loops, stack_vectors, vector_spills
from forking import ForkServer
from frankenlm.kernels import build, ops


def test_inner_loops_keep_their_vectors_in_registers():
    """A sum that moves to the stack inside a loop costs a fifth of the speed, and nothing else shows it."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    if os.environ.get("FRANKENLM_CXXFLAGS"):
        pytest.skip("built with extra flags")
    try:
        loops, spilled = vector_spills(functions(build.build()))
    except build.NoCompilerError as missing:
        pytest.skip(str(missing))
    assert loops > (15 if "neon" in ops.NATIVE_PATHS else 30), "the test would see nothing"
    assert not spilled


def test_the_search_for_spills_can_fail():
    loop = [(16, "vpdpbusd", "%zmm1,%zmm2,%zmm3"), (22, "vmovdqa64", "%zmm3,0x40(%rsp)"), (30, "jne", "10 <f+0x4>")]
    (found,) = inner_loops(loop)
    assert found == loop and stack_vectors(found) == ["vmovdqa64 %zmm3,0x40(%rsp)"]
    loop = [(16, "sdot", "v1.4s, v2.16b, v3.4b[0]"), (20, "stp", "q8, q9, [sp, #64]"), (24, "b.ne", "10 <f+0x4>")]
    (found,) = inner_loops(loop)
    assert found == loop and stack_vectors(found) == ["stp q8, q9, [sp, #64]"]


IMPORTS = """
import logging; logging.basicConfig(format="%(name)s|%(message)s")
import torch
from frankenlm.kernels.ops import load, which_path
from frankenlm.modeling.native_ops import REFERENCE, native_path
from frankenlm.modeling.ternary import pack_ternary
"""
CALL = """
assert which_path() is None
load(REFERENCE); load(REFERENCE)
assert native_path() == which_path()
packed = pack_ternary(torch.ones(2, 3, dtype=torch.int8))
y = torch.ops.frankenlm.ternary_linear(torch.ones(1, 3), packed, torch.ones(2), 2)
print(which_path(), y.tolist())
"""


@pytest.fixture(scope="module")
def call():
    """call(**environment) calls an operator in a process that has not looked for a library yet."""
    with ForkServer(IMPORTS) as server:
        yield lambda **environment: server.run(CALL, env={**os.environ, **environment})


def test_without_a_compiler_one_line_is_logged_and_the_reference_runs(call, tmp_path):
    done = call(PATH=str(tmp_path), CXX="", FRANKENLM_CACHE=str(tmp_path), FRANKENLM_TERNARY_PATH="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "reference [[3.0, 3.0]]\n"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("frankenlm.kernels.ops|")]
    assert "no C++ compiler" in line


def test_a_compiler_that_fails_is_reported_and_leaves_nothing_behind(call, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: out of ideas' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = call(CXX=str(compiler), FRANKENLM_CACHE=str(tmp_path / "cache"), FRANKENLM_TERNARY_PATH="")
    assert done.returncode == 0 and "out of ideas" in done.stderr and done.stdout.startswith("reference")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_damaged_library_is_built_anew(call, tmp_path):
    """The compiler is one that copies a library that was built: what the real one makes is tested above."""
    try:
        built = build.build()
    except build.NoCompilerError as missing:
        pytest.skip(str(missing))
    compiler = copying_compiler(tmp_path / "copies", built)
    library = tmp_path / built.parent.name / built.name
    library.parent.mkdir()
    library.write_bytes(b"not a library")
    done = call(CXX=compiler, FRANKENLM_CACHE=str(tmp_path), FRANKENLM_TERNARY_PATH="scalar")
    assert done.returncode == 0 and done.stdout.startswith("scalar"), done.stderr
    assert library.read_bytes() == built.read_bytes()


def test_a_user_without_a_home_gets_the_reference(monkeypatch):
    monkeypatch.delenv("FRANKENLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", no_home)
    with pytest.raises(build.BuildError, match="set FRANKENLM_CACHE"):
        build.cache_folder()


def test_a_cache_that_cannot_be_written_is_named(call, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = call(FRANKENLM_CACHE=str(tmp_path / "file"), FRANKENLM_TERNARY_PATH="")
    assert done.returncode == 0 and done.stdout.startswith("reference")
    assert "set FRANKENLM_CACHE" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("avx1024", "there is none of this name"), ("sse", f"reference, {ops.NATIVE_PATHS[-1]}")]
)
def test_a_path_that_does_not_exist_is_named(call, name, message):
    done = call(FRANKENLM_TERNARY_PATH=name)
    assert done.returncode == 1 and name in done.stderr and message in done.stderr


def test_a_forced_path_without_a_compiler_is_an_error(call, tmp_path):
    done = call(PATH=str(tmp_path), CXX="", FRANKENLM_CACHE=str(tmp_path), FRANKENLM_TERNARY_PATH="avx2")
    assert done.returncode == 1 and "FRANKENLM_TERNARY_PATH=avx2 cannot be had here" in done.stderr


def test_the_cache_depends_on_the_sources(monkeypatch, tmp_path):
    copy = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, copy)
    before = build.fingerprint()
    monkeypatch.setattr(build, "SOURCES", copy)
    assert build.fingerprint() == before
    (copy / "ternary.h").write_text((copy / "ternary.h").read_text() + "\n// changed\n")
    assert build.fingerprint() != before != build.fingerprint(["-O1"])
