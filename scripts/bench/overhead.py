"""What a call of the operator costs above the raw kernel: dispatcher, checks, the new tensor, Python."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from frankenlm.modeling.native_ops import native_path
from frankenlm.scripts.bench.cells import interleave
from frankenlm.scripts.bench.contestants import OurPath, TorchCalls, Weights
from frankenlm.scripts.bench.library import BenchLibrary

SHAPES = ((16, 16), (768, 768))


def overhead_rows(shapes: Sequence[tuple[int, int]] = SHAPES, seconds: float = 0.5) -> list[dict]:
    """Time one token on one thread, weights in cache: the operator from Python, the kernel in a C loop, F.linear.

    Raises:
        RuntimeError: the native operators could not be built, so there is nothing to compare.
    """
    path, library = native_path(), BenchLibrary()
    if path not in library.paths():
        raise RuntimeError(f"the operators run as {path!r}, not natively: there is no kernel below the call.")
    return [_row(library, path, inputs, outputs, seconds) for inputs, outputs in shapes]


def _row(library: BenchLibrary, path: str, inputs: int, outputs: int, seconds: float) -> dict:
    weights, x = Weights(outputs, inputs, distinct_bytes=0), torch.randn(1, inputs)
    scale = weights.scale

    def operator(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return torch.ops.frankenlm.ternary_linear(x, packed, scale, outputs)

    contestants = {
        "kernel": OurPath(library, path, x, weights),
        "operator": TorchCalls(operator, x, weights.packed().tensors),
        "linear": TorchCalls(F.linear, x, [weights.dense()]),
    }
    timings = interleave(contestants, threads=1, in_cache=True, budget=seconds)
    kernel, whole, linear = (timings[name].median * 1e6 for name in contestants)
    return {
        "inputs x outputs": f"{inputs}x{outputs}",
        "path": path,
        "kernel, us": kernel,
        "operator, us": whole,
        "overhead, us": whole - kernel,
        "F.linear fp32, us": linear,
    }
