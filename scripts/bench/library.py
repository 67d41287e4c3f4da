"""The benchmark's own library: the operator in a C loop, and loops that measure what the machine can do at most.

`csrc/` here is compiled together with the operator's sources, without their binding to torch, and reached through
ctypes. Threads are torch's: `torch.set_num_threads` holds for every function here.
"""

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from frankenlm.kernels.build import SOURCES, cached_library, fingerprint, library_sources
from frankenlm.modeling.ternary import packed_shape

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MESSAGE_SIZE = 256
BENCH_SOURCES = Path(__file__).resolve().parent / "csrc"
REGISTERS = "STABLE_TORCH_LIBRARY"  # in a source that binds operators to torch, which can be done once a process
NOT_VECTORISED_FLAG = "-fno-tree-vectorize"


def build_bench_library(flags: Sequence[str] = ()) -> Path:
    """Return the benchmark's library, compiled now or found in the cache of the operators.

    Raises:
        NoCompilerError, BuildError: as `build.cached_library`.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(BENCH_SOURCES.iterdir()))).hexdigest()[:16]
    sources = [path for path in library_sources() if REGISTERS not in path.read_text(encoding="utf-8")]
    sources += sorted(BENCH_SOURCES.glob("*.cpp"))
    flags = [*flags, f"-I{SOURCES}"]
    return cached_library(fingerprint([*flags, digest]), "frankenlm_bench.so", sources, flags)


class Times(ctypes.Structure):
    """Seconds of a run: the wall's, and the processor time of the calling thread."""

    _fields_ = [("wall", ctypes.c_double), ("processor", ctypes.c_double)]


class Problem(ctypes.Structure):
    """struct Problem of csrc/timer.cpp."""

    _fields_ = [
        ("path", ctypes.c_char_p),
        ("x", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("tokens", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("tiles", ctypes.c_void_p),
        ("copies", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("group_scales", ctypes.c_void_p),
        ("group_size", ctypes.c_int64),
    ]


class Places:
    """Addresses of tensors of equal size, in the order in which they are used."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.tensors = list(tensors)  # kept alive
        self.array = (ctypes.c_void_p * len(self.tensors))(*(tensor.data_ptr() for tensor in self.tensors))
        self.address = ctypes.addressof(self.array)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True)
class Instruction:
    index: int
    name: str
    available: bool


class BenchLibrary:
    """The functions of csrc/.

    Args:
        vectorize: False forbids the compiler to vectorise plain C++ by itself.

    Raises:
        NoCompilerError, BuildError: as `build.compile_library`.
    """

    def __init__(self, vectorize: bool = True):
        self._library = ctypes.CDLL(str(build_bench_library(() if vectorize else (NOT_VECTORISED_FLAG,))))
        declare = {
            "frankenlm_path": (ctypes.c_char_p, [ctypes.c_long, ctypes.POINTER(ctypes.c_int32)]),
            "frankenlm_instruction": (ctypes.c_char_p, [ctypes.c_long, ctypes.POINTER(ctypes.c_int32)]),
            "frankenlm_time_peak": (ctypes.c_double, [ctypes.c_long, ctypes.c_long, ctypes.POINTER(Times)]),
            "frankenlm_time_read": (
                ctypes.c_double,
                [ctypes.c_void_p, *[ctypes.c_long] * 4, ctypes.c_int32, ctypes.POINTER(Times)],
            ),
            "frankenlm_time_ternary": (
                ctypes.c_int32,
                [ctypes.POINTER(Problem), ctypes.c_long, ctypes.c_long, ctypes.POINTER(Times), ctypes.c_char_p]
                + [ctypes.c_long],
            ),
        }
        for name, (result, arguments) in declare.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def paths(self) -> dict[str, bool]:
        """Return every path, fastest first, and whether this processor has it."""
        return dict(self._table(self._library.frankenlm_path))

    def instructions(self) -> list[Instruction]:
        """Return the instructions whose peak can be measured; empty on processors without such loops."""
        table = self._table(self._library.frankenlm_instruction)
        return [Instruction(index, name, available) for index, (name, available) in enumerate(table)]

    @staticmethod
    def _table(function) -> list[tuple[str, bool]]:
        rows, available = [], ctypes.c_int32()
        while name := function(len(rows), ctypes.byref(available)):
            rows.append((name.decode(), bool(available.value)))
        return rows

    def time_peak(self, instruction: Instruction, turns: int) -> tuple[Times, float]:
        """Run an instruction's loop on every thread; return the times and how many products that was."""
        times = Times()
        return times, self._library.frankenlm_time_peak(instruction.index, turns, times)

    def time_read(self, places: Places, first: int, calls: int, four_streams: bool) -> tuple[Times, float]:
        """Read `calls` tensors, from number `first` on; return the times and how many bytes that was."""
        times, size = Times(), places.tensors[0].nbytes
        read = self._library.frankenlm_time_read(places.address, len(places), first, size, calls, four_streams, times)
        return times, read

    def time_ternary(self, problem: Problem, first: int, calls: int) -> Times:
        """Multiply `calls` times, with the weights from number `first` on; return the times of all calls."""
        times, message = Times(), ctypes.create_string_buffer(MESSAGE_SIZE)
        if self._library.frankenlm_time_ternary(problem, first, calls, times, message, MESSAGE_SIZE):
            raise RuntimeError(message.value.decode())
        return times


def ternary_problem(path: str, x: torch.Tensor, tiles: Places, scale: torch.Tensor, y: torch.Tensor) -> Problem:
    """Describe y (M, N) = x (M, K) times packed weights; every tensor must outlive the result.

    Raises:
        ValueError: dtypes, shapes or strides that the C loop does not check itself.
    """
    shape = packed_shape(y.shape[1], x.shape[1])
    if any(tuple(tile.shape) != shape or tile.dtype != torch.uint8 for tile in tiles.tensors):
        raise ValueError(f"the packed weights must be uint8 {shape}.")
    if y.dtype != x.dtype or y.shape[0] != x.shape[0] or scale.dtype != torch.float32 or len(scale) != y.shape[1]:
        raise ValueError("y must have x's dtype and rows, and scale a float32 for every output.")
    if not all(tensor.is_contiguous() for tensor in (x, y, scale, *tiles.tensors)):
        raise ValueError("every tensor must be contiguous.")
    return Problem(
        path.encode(),
        x.data_ptr(),
        DTYPES[x.dtype],
        x.shape[0],
        x.shape[1],
        tiles.address,
        len(tiles),
        scale.data_ptr(),
        y.shape[1],
        y.data_ptr(),
    )
