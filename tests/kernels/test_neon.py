"""The code paths of ARM processors, on an emulated one: cross-compiled, and held to plain C++ to the last bit.

compare_paths.cpp beside this file goes through every function of every path.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from disassembly import functions, vector_spills
from frankenlm.kernels import build

COMPILER, EMULATOR, OBJDUMP = "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-objdump"
# What the paths and the operators on them are made of; the other sources need torch.
SOURCES = [*build.SOURCES.glob("path*.cpp"), build.SOURCES / "linear.cpp"]
OTHERS = [source for source in build.library_sources() if source not in SOURCES]
FLAGS = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
INCLUDES = [f"-I{build.SOURCES}", f"-I{Path(torch.__file__).parent / 'include'}"]
FUSED = re.compile("fn?m(add|sub)|fml[as]")
# Processors before and from ARMv8.2's dot products on.
PATHS = {"cortex-a53": "neon scalar", "neoverse-n1": "neon_dotprod neon scalar", "max": "neon_dotprod neon scalar"}


def require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")


def cross_compile(*arguments: str | Path) -> None:
    done = subprocess.run([COMPILER, *FLAGS, "-Wall", "-Werror", *INCLUDES, *map(str, arguments)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """compare_paths for ARM; static, since no libraries of that kind need be here."""
    require(COMPILER, EMULATOR)
    folder = tmp_path_factory.mktemp("neon")
    compared = Path(__file__).with_name("compare_paths.cpp")
    cross_compile("-O1", "-c", compared, "-o", folder / "compare_paths.o")  # it is no part of what is tested
    cross_compile(folder / "compare_paths.o", *SOURCES, "-static", "-pthread", "-o", folder / "compare_paths")
    return folder / "compare_paths"


def run(program, processor: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    command = [EMULATOR, "-cpu", processor, *variables, program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("processor", "problems"),
    [
        ("neoverse-n1", 700),
        pytest.param("neoverse-n1", 2200, marks=pytest.mark.slow),
        ("cortex-a53", 100),
        pytest.param("cortex-a53", 2200, marks=pytest.mark.slow),
        pytest.param("max", 2200, marks=pytest.mark.slow),
    ],
)
def test_every_path_equals_plain_cpp_to_the_last_bit(program, processor, problems):
    done = run(program, processor, str(problems))
    assert (done.returncode, done.stdout) == (0, f"{PATHS[processor]}\nalike\n"), done.stderr


@pytest.mark.parametrize("part", ["widen", "narrow", "quantize", "ternary", "int8"])
def test_the_comparison_can_fail(program, part):
    done = run(program, "max", "5", "wrong", part)
    assert done.returncode == 1 and done.stdout.startswith(f"wrong differs from plain C++: {part}")


def test_a_path_can_be_forced_where_the_processor_has_it(program):
    done = run(program, "max", "0", FRANKENLM_TERNARY_PATH="neon")
    assert done.stdout == f"{PATHS['max']}\nbut neon runs\n"
    done = run(program, "cortex-a53", "0", FRANKENLM_TERNARY_PATH="neon_dotprod")
    assert done.returncode and "neon_dotprod: this processor lacks its instructions" in done.stderr


@pytest.fixture(scope="module")
def code(program):
    require(OBJDUMP)
    return {name: body for name, body in functions(program, OBJDUMP).items() if "frankenlm::" in name}


def test_inner_loops_keep_their_vectors_in_registers(code):
    loops, spilled = vector_spills(code)
    assert loops > 15, "the loops were not found: the test would see nothing"
    assert not spilled


def test_no_operation_melts_into_another(code):
    """ARM compilers make multiply-adds of float operations unless told not to; results would then differ."""
    operations = {name: [operation for _, operation, _ in body] for name, body in code.items()}
    assert sum(body.count("fmul") for body in operations.values()) > 20
    assert not [name for name, body in operations.items() if any(map(FUSED.match, body))]


@pytest.mark.slow
@pytest.mark.parametrize("source", OTHERS, ids=lambda source: source.stem)
def test_the_rest_of_the_library_compiles(source, tmp_path):
    require(COMPILER)
    cross_compile("-fPIC", "-c", source, "-o", tmp_path / "object.o")
