"""The whole benchmark: which contestants meet in which cells, and what their results are checked against."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from frankenlm.scripts.bench.cells import (
    FEWEST_ROUNDS,
    LONGEST_CELL,
    BenchCell,
    Roofline,
    Timing,
    interleave,
    relative_error,
    rows_of,
)
from frankenlm.scripts.bench.contestants import TORCH_KINDS, OurPath, Peak, Read, Weights, torch_contestant
from frankenlm.scripts.bench.ggml import IK_LLAMA_CPP, Ggml, GgmlProduct, GgmlWeights
from frankenlm.scripts.bench.library import BenchLibrary

SHAPES = ((768, 768), (768, 3072), (2048, 2048), (2560, 6912), (4096, 4096))  # inputs x outputs
TOKENS = (1, 2, 4, 8, 32, 128, 512)
THREADS = (1, 2)
MEMORY = ("cache", "dram")
NOT_VECTORISED = "scalar_not_vectorised"
# path -> the instruction it multiplies with
INSTRUCTIONS = {
    "avx512_vnni": "vpdpbusd zmm",
    "avx_vnni": "vpdpbusd ymm",
    "avx2": "vpmaddubsw ymm",
    "sse41": "pmaddubsw xmm",
    "scalar": "pmaddwd xmm",
    NOT_VECTORISED: "pmaddwd xmm",
}
GGML_KINDS = ("ggml TQ2_0", "ggml TQ1_0", "ggml Q4_0")
IK_KINDS = ("ik IQ2_BN", "ik IQ2_BN_R4")
PEERS = (*TORCH_KINDS, *GGML_KINDS, *IK_KINDS)
OF_GROUPS = " of groups"  # after a path's name: with a scale for each 128 inputs of a row
# Relative, of the result. int8 activations alone make 0.004; Q4_0 has no two opposite values of full size.
LARGEST_ERROR, LARGEST_ERROR_OF = 0.03, {"ggml Q4_0": 0.12}
# One token waits for torch's wide weights; of many tokens each costs down to this much less.
GAIN_OF_MANY_TOKENS = 32
SMALLEST_DRAM_BYTES = 96 * 2**20
# Unless all is asked for: everybody at these numbers of tokens from cache with the first number of threads; elsewhere
# the fastest path, the one that compares with ggml's AVX2, and the quick peers.
TOKENS_FOR_ALL = (1, 8)
ALWAYS_MEASURED = "avx2"
SLOW_PEERS = ("BitLinear uncompiled", "BitLinear as shipped", "ggml TQ1_0")


@dataclass(frozen=True)
class Selection:
    """What to measure. `paths` are those of `paths_of_this_processor`, `peers` of PEERS, `ggml`, `ik` folders."""

    shapes: Sequence[tuple[int, int]] = SHAPES
    tokens: Sequence[int] = TOKENS
    threads: Sequence[int] = THREADS
    memory: Sequence[str] = MEMORY
    paths: Sequence[str] = ()
    peers: Sequence[str] = PEERS
    ggml: Path | None = None
    ik: Path | None = None
    groups: bool = False
    full: bool = False
    seconds: float = 0.2

    def contestants(self, cell: BenchCell) -> list[str]:
        """Return the names that meet in a cell, our paths first."""
        names = self._contestants(cell)
        ours = [name for name in names if name in self.paths and name != NOT_VECTORISED] if self.groups else []
        return [*names, *(name + OF_GROUPS for name in ours)]

    def _contestants(self, cell: BenchCell) -> list[str]:
        names = [*self.paths, *self.peers]
        if self.full:
            return names
        if cell.memory == "cache" and cell.tokens == TOKENS_FOR_ALL[0] and cell.threads == self.threads[0]:
            return [name for name in names if name != "BitLinear as shipped"]
        if cell.memory == "cache" and cell.tokens in TOKENS_FOR_ALL and cell.threads == self.threads[0]:
            return [name for name in names if name not in SLOW_PEERS]
        leading = [path for path in self.paths if path in (self.paths[0], ALWAYS_MEASURED)]
        return [*leading, *(peer for peer in self.peers if peer not in SLOW_PEERS)]

    def cells(self) -> Iterator[BenchCell]:
        """Yield the cells, those of one shape and memory together, few tokens first."""
        for inputs, outputs in self.shapes:
            for memory in self.memory:
                for tokens in sorted(self.tokens):
                    for threads in self.threads:
                        # From DRAM it is decoding that matters: more tokens hide the memory.
                        if self.full or memory == "cache" or tokens == min(self.tokens):
                            yield BenchCell(inputs, outputs, tokens, threads, memory)


@dataclass
class Results:
    """Rows of contestants, rows of the roofline, and why what is missing is missing."""

    products: list[dict] = field(default_factory=list)
    roofline: list[dict] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)


def paths_of_this_processor(library: BenchLibrary) -> list[str]:
    """Return the paths that run here, fastest first, the plain C++ twice: as compiled, and not vectorised."""
    return [*(name for name, available in library.paths().items() if available), NOT_VECTORISED]


def largest_cache() -> int:
    """Return the bytes of the largest cache that the system tells of; 0 where it does not."""
    sizes = []
    for place in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = place.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes, default=0)


def dram_bytes() -> int:
    """Return how many bytes of distinct weights no cache can hold: three times the largest, at least 96 MiB."""
    return max(SMALLEST_DRAM_BYTES, 3 * largest_cache())


class Suite:
    """Runs a selection; `progress(cell)` is called before every cell."""

    def __init__(self, selection: Selection, progress: Callable[[BenchCell], None] = lambda cell: None):
        self.selection, self.progress, self.results = selection, progress, Results()
        self._library = BenchLibrary()
        self._plain = BenchLibrary(vectorize=False) if NOT_VECTORISED in selection.paths else None
        self._ggml = Ggml(selection.ggml) if selection.ggml else None
        self._ik = Ggml(selection.ik, IK_LLAMA_CPP) if selection.ik else None
        self._weights: tuple[tuple, Weights, dict[str, GgmlWeights]] | None = None
        self._seconds: dict[tuple, float] = {}  # of one product, at the tokens measured last

    def run(self) -> Results:
        """Measure every cell.

        Raises:
            RuntimeError: a contestant computes something else than the product.
        """
        for cell in self.selection.cells():
            self.progress(cell)
            self._run_cell(cell)
        self._drop_weights()
        return self.results

    def _run_cell(self, cell: BenchCell) -> None:
        weights = self._weights_of(cell)
        x = torch.randn(cell.tokens, cell.inputs, generator=torch.Generator().manual_seed(1))
        contestants = self._contestants(cell, x, weights)
        self._check(cell, contestants, x @ weights.dense().t())
        rooflines = self._rooflines(weights, contestants)
        timings = interleave(
            contestants | rooflines,
            threads=cell.threads,
            in_cache=cell.memory == "cache",
            budget=self.selection.seconds,
        )
        measured = {name: timings.pop(name) for name in rooflines}
        roofline = Roofline.from_timings(measured)
        for name, timing in timings.items():
            self._seconds[self._family(name, cell)] = timing.median / cell.tokens
        instructions = INSTRUCTIONS | {path + OF_GROUPS: name for path, name in INSTRUCTIONS.items()}
        self.results.products += rows_of(cell, timings, roofline, instructions)
        self.results.roofline.append(_roofline_row(cell, measured))
        for contestant in contestants.values():
            if isinstance(contestant, GgmlProduct):
                contestant.close()

    def _contestants(self, cell: BenchCell, x: torch.Tensor, weights: Weights) -> dict:
        found = {}
        for name in self.selection.contestants(cell):
            reason = self._reason_against(name, cell)
            if reason:
                self.results.left_out.append({"contestant": name, **cell.__dict__, "reason": reason})
            elif name in TORCH_KINDS:
                found[name] = torch_contestant(name, x, weights)
            elif name in (*GGML_KINDS, *IK_KINDS):
                found[name] = GgmlProduct(self._ggml_weights(name, weights), x, cell.threads)
            else:
                library = self._plain if name == NOT_VECTORISED else self._library
                path = "scalar" if name == NOT_VECTORISED else name.removesuffix(OF_GROUPS)
                found[name] = OurPath(library, path, x, weights, of_groups=name.endswith(OF_GROUPS))
        return found

    def _reason_against(self, name: str, cell: BenchCell) -> str:
        """Return why a contestant cannot take part, or nothing."""
        of_ggml = name in (*GGML_KINDS, *IK_KINDS)
        if of_ggml and self._ggml_of(name) is None:
            return f"no {name.split()[0]} library"
        if of_ggml and not self._ggml_of(name).fits(name.split()[1], cell.inputs):
            return f"{cell.inputs} inputs do not divide into its blocks"
        if name.startswith("BitLinear") and cell.outputs % 4:
            return f"{cell.outputs} outputs are not a multiple of 4"
        expected = self._seconds.get(self._family(name, cell), 0.0) * cell.tokens
        if name in TORCH_KINDS:
            expected /= GAIN_OF_MANY_TOKENS
        if expected * (FEWEST_ROUNDS + 1) > LONGEST_CELL:
            return f"a call would take {expected:.1f} s"
        return ""

    @staticmethod
    def _family(name: str, cell: BenchCell) -> tuple:
        return name, cell.shape, cell.memory, cell.threads

    def _check(self, cell: BenchCell, contestants: Mapping, expected: torch.Tensor) -> None:
        for name, contestant in contestants.items():
            contestant.run(1)
            error = relative_error(contestant.output(), expected)
            if not error <= LARGEST_ERROR_OF.get(name, LARGEST_ERROR):
                raise RuntimeError(f"{name} is wrong by {error:.3f} (relative) at {cell}.")

    def _rooflines(self, weights: Weights, contestants: Mapping) -> dict:
        needed = {INSTRUCTIONS[name] for name in contestants if name in INSTRUCTIONS}
        instructions = [item for item in self._library.instructions() if item.available]
        # The machine's limit is that of its best instruction, whether or not a path that uses it is measured.
        chosen = [item for item in instructions if item.name in needed or item is instructions[0]]
        reads = {f"read {n} stream{'s' * (n > 1)}": Read(self._library, weights, n > 1) for n in (1, 4)}
        return reads | {f"peak {item.name}": Peak(self._library, item) for item in chosen}

    def _weights_of(self, cell: BenchCell) -> Weights:
        key = (cell.shape, cell.memory)
        if self._weights is None or self._weights[0] != key:
            self._drop_weights()
            distinct = dram_bytes() if cell.memory == "dram" else 0
            self._weights = key, Weights(cell.outputs, cell.inputs, distinct), {}
        return self._weights[1]

    def _ggml_of(self, name: str) -> Ggml | None:
        return self._ik if name in IK_KINDS else self._ggml

    def _ggml_weights(self, name: str, weights: Weights) -> GgmlWeights:
        made = self._weights[2]
        if name not in made:
            made[name] = GgmlWeights(self._ggml_of(name), name.split()[1], weights.dense(), weights.distinct_bytes)
        return made[name]

    def _drop_weights(self) -> None:
        if self._weights is not None:
            for weights in self._weights[2].values():
                weights.close()
        self._weights = None
        gc.collect()


def _roofline_row(cell: BenchCell, measured: Mapping[str, Timing]) -> dict:
    reads = {f"{name}, GB/s": 1e-9 / timing.median for name, timing in measured.items() if name.startswith("read ")}
    peaks = {f"{name}, GOPS": 2e-9 / timing.median for name, timing in measured.items() if name.startswith("peak ")}
    return {**cell.__dict__, **reads, **peaks}
