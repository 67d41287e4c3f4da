"""Who takes part in the benchmark of ternary products: our paths, torch, transformers and ggml, all behind one method.

`run(calls)` does the product that often, going round the copies of the weight, and returns the times and the number of
products. `output()` is the result, which is compared with the float one before anything is timed.
Shapes: M tokens, K inputs, N outputs; x (M, K), weight (N, K), y (M, N).
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from frankenlm.modeling.column_groups import count_groups
from frankenlm.modeling.group_scales import pack_group_scales
from frankenlm.modeling.ternary import pack_ternary
from frankenlm.scripts.bench.library import BenchLibrary, Instruction, Places, Times, ternary_problem

SCALE = 0.02  # of the weights
CODE_LIMIT = 127
SMALLEST = 1e-5
GROUP_SIZE = 128


class ProductContestant(Protocol):
    def run(self, calls: int) -> tuple[Times, float]: ...


class Weights:
    """A random ternary matrix (N, K), and as many copies of any form of it as make `distinct_bytes` together."""

    def __init__(self, rows: int, inputs: int, distinct_bytes: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.codes = torch.randint(-1, 2, (rows, inputs), dtype=torch.int8, generator=generator)
        self.scale = torch.full((rows,), SCALE)
        self.distinct_bytes = distinct_bytes
        self._forms: dict[str, Sequence] = {}

    def form(self, name: str, make: Callable[[], Sequence]) -> Sequence:
        """Return what `make()` returned for this name before, or make it."""
        if name not in self._forms:
            self._forms[name] = make()
        return self._forms[name]

    def dense(self) -> torch.Tensor:
        return self.codes.float() * SCALE

    def copies(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        count = max(1, -(-self.distinct_bytes // tensor.nbytes))
        return [tensor, *(tensor.clone() for _ in range(count - 1))]

    def packed(self) -> Places:
        return self.form("packed", lambda: Places(self.copies(pack_ternary(self.codes))))

    def scales_of_groups(self) -> Places:
        """Return as many copies of the scales of groups as there are of the packed weight."""
        return self.form("scales of groups", self._scales_of_groups)

    def _scales_of_groups(self) -> Places:
        rows, inputs = self.codes.shape
        scale = pack_group_scales(torch.full((rows, count_groups(inputs, GROUP_SIZE)), SCALE), torch.bfloat16)
        return Places([scale.clone() for _ in range(len(self.packed()))])


class OurPath:
    """One path of the operator, in a C loop; with one scale per row, or `of_groups` of GROUP_SIZE inputs."""

    def __init__(self, library: BenchLibrary, path: str, x: torch.Tensor, weights: Weights, of_groups: bool = False):
        self._library, self._weights, self._places = library, weights, weights.packed()
        self._x, self._y = x, x.new_zeros(x.shape[0], len(weights.scale))
        self._problem = ternary_problem(path, x, self._places, weights.scale, self._y)
        if of_groups:
            self._problem.group_scales = weights.scales_of_groups().address
            self._problem.group_size = GROUP_SIZE
        self._next = 0

    def run(self, calls: int) -> tuple[Times, int]:
        times = self._library.time_ternary(self._problem, self._next, calls)
        self._next = (self._next + calls) % len(self._places)
        return times, calls

    def output(self) -> torch.Tensor:
        return self._y


class TorchCalls:
    """A function of (x, one form of the weight), called from Python."""

    def __init__(self, function: Callable, x: torch.Tensor, forms: Sequence):
        self._function, self._x, self._forms, self._next = function, x, forms, 0

    @torch.no_grad()
    def run(self, calls: int) -> tuple[Times, int]:
        wall, processor = time.perf_counter(), time.thread_time()
        for number in range(self._next, self._next + calls):
            self._y = self._function(self._x, self._forms[number % len(self._forms)])
        times = Times(time.perf_counter() - wall, time.thread_time() - processor)
        self._next = (self._next + calls) % len(self._forms)
        return times, calls

    def output(self) -> torch.Tensor:
        return self._y.float()


def int8_linear_of_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Quantise x per token, multiply with int8 weight (N, K) by torch._int_mm, and scale the result back."""
    multiplier = CODE_LIMIT / x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST)
    codes = (x * multiplier).round_().to(torch.int8)
    return torch._int_mm(codes, weight.t()).float().mul_(SCALE / multiplier)


def transformers_layers(weights: Weights) -> list[torch.nn.Module]:
    """Return transformers' packed BitLinear, in bfloat16 as its checkpoints are."""
    from transformers.integrations.bitnet import BitLinear, pack_weights  # loads torch's compiler: seconds

    rows, inputs = weights.codes.shape
    packed = pack_weights(weights.codes.clone())
    layers = []
    for copy in weights.copies(packed):
        layer = BitLinear(inputs, rows, bias=False, dtype=torch.bfloat16)
        layer.weight = copy
        layer.weight_scale.fill_(1 / SCALE)
        layers.append(layer)
    return layers


def call_layer(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return layer(x)


def call_layer_uncompiled(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """As with TORCHDYNAMO_DISABLE=1: the functions it decorates with torch.compile run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        return layer(x)


# name -> (function, dtype of x, what makes the copies of the weight)
TORCH_KINDS = {
    "torch fp32": (F.linear, torch.float32, lambda weights: weights.copies(weights.dense())),
    "torch bf16": (F.linear, torch.bfloat16, lambda weights: weights.copies(weights.dense().bfloat16())),
    "torch int8": (int8_linear_of_torch, torch.float32, lambda weights: weights.copies(weights.codes)),
    "BitLinear uncompiled": (call_layer_uncompiled, torch.bfloat16, transformers_layers),
    "BitLinear as shipped": (call_layer, torch.bfloat16, transformers_layers),
}


def torch_contestant(kind: str, x: torch.Tensor, weights: Weights) -> TorchCalls:
    """Build one of TORCH_KINDS; a form of the weight is made once."""
    function, dtype, make = TORCH_KINDS[kind]
    return TorchCalls(function, x.to(dtype), weights.form(kind, lambda: make(weights)))


class Peak:
    """The loop of an instruction; what `run` counts are products."""

    def __init__(self, library: BenchLibrary, instruction: Instruction):
        self._library, self._instruction = library, instruction

    def run(self, calls: int) -> tuple[Times, float]:
        return self._library.time_peak(self._instruction, calls)


class Read:
    """Reading the packed weights and nothing else; what `run` counts are bytes."""

    def __init__(self, library: BenchLibrary, weights: Weights, four_streams: bool):
        self._library, self._places, self._four_streams, self._next = library, weights.packed(), four_streams, 0

    def run(self, calls: int) -> tuple[Times, float]:
        times, read = self._library.time_read(self._places, self._next, calls, self._four_streams)
        self._next = (self._next + calls) % len(self._places)
        return times, read
