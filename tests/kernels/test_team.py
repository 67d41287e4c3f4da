"""team.h on pools that give a call fewer threads than it has shares; team_of_few.cpp beside this file tells more."""

import subprocess
from pathlib import Path

import pytest
import torch

from frankenlm.kernels import build


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    try:
        compiler = build.compiler()
    except build.NoCompilerError as missing:
        pytest.skip(str(missing))
    program, includes = tmp_path_factory.mktemp("team") / "team_of_few", Path(torch.__file__).parent / "include"
    source = Path(__file__).with_name("team_of_few.cpp")
    words = ["-std=c++17", "-O1", "-Wall", "-Werror", f"-I{build.SOURCES}", f"-I{includes}", source, "-pthread"]
    done = subprocess.run([compiler, *map(str, words), "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize(("pool", "most"), [("each", 5), ("lump", 1), ("one", 1), ("last", 1), ("few", 2)])
def test_a_call_ends_on_any_pool_and_leaves_nothing_out(program, pool, most):
    done = subprocess.run([program, pool], capture_output=True, text=True, timeout=60)
    count, _, verdict = done.stdout.partition(" ")
    assert verdict == "right\n", done.stdout + done.stderr
    assert 1 <= int(count) <= most
