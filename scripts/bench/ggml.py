"""ggml (llama.cpp's, and ik_llama.cpp's) as a peer: matrix products on the processor, through ctypes in this process.

Only functions of ggml's public headers are called. A product takes float32 and gives float32; the quantisation of the
activations is ggml's own and inside the time, as it is in llama.cpp. Weights hold ternary values, so the ternary
formats keep them exactly.
"""

import ctypes
import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import torch

from frankenlm.scripts.bench.library import Times

# enum ggml_type; IQ2_BN and IQ2_BN_R4, four rows interleaved, are ik_llama.cpp's own
TYPES = {"F32": 0, "Q4_0": 2, "TQ1_0": 34, "TQ2_0": 35, "IQ2_BN": 135, "IQ2_BN_R4": 335}
LLAMA_CPP = ("ggml-base", "ggml-cpu")  # libraries, the second made of the first
IK_LLAMA_CPP = ("ggml", "ggml")
NODES_PER_GRAPH = 8  # starting a graph costs about a microsecond, which a real model's graph pays once
PRODUCTS_PER_GRAPH = 2e8
SLACK = 4096  # bytes a tensor, for alignment
GRAPH_SIZE = 64


class InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """The head of struct ggml_cplan; the rest is room for what newer versions append."""

    _fields_ = [
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("rest", ctypes.c_uint8 * 128),
    ]


def find_ggml(package: str = "llama_cpp") -> Path | None:
    """Return the library folder of this interpreter's llama_cpp or ik_llama_cpp, or None where it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = [Path(place) / "lib" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if any(folder.glob("libggml*.so*"))), None)


class Ggml:
    """The functions of a ggml in `folder`, whose libraries are `names`: LLAMA_CPP or IK_LLAMA_CPP.

    Raises:
        FileNotFoundError: `folder` does not hold them.
    """

    def __init__(self, folder: Path, names: tuple[str, str] = LLAMA_CPP):
        pointer, size, long, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
        base, cpu = (self._open(folder, name) for name in names)
        self.init = self._function(base, "ggml_init", pointer, [InitParams])
        self.free = self._function(base, "ggml_free", None, [pointer])
        self.new_tensor = self._function(base, "ggml_new_tensor_2d", pointer, [pointer, number, long, long])
        self.mul_mat = self._function(base, "ggml_mul_mat", pointer, [pointer] * 3)
        self.data = self._function(base, "ggml_get_data", pointer, [pointer])
        self.block = self._function(base, "ggml_blck_size", long, [number])
        self.row_size = self._function(base, "ggml_row_size", size, [number, long])
        self.overhead = self._function(base, "ggml_tensor_overhead", size, [])
        self.graph_overhead = self._function(base, "ggml_graph_overhead_custom", size, [size, ctypes.c_bool])
        self.new_graph = self._function(base, "ggml_new_graph_custom", pointer, [pointer, size, ctypes.c_bool])
        self.expand = self._function(base, "ggml_build_forward_expand", None, [pointer] * 2)
        quantize = [number, pointer, pointer, long, long, long, pointer]
        self.quantize = self._function(base, "ggml_quantize_chunk", size, quantize)
        self.plan = self._function(cpu, "ggml_graph_plan", Plan, [pointer, number, pointer])
        self.compute = self._function(cpu, "ggml_graph_compute", number, [pointer, ctypes.POINTER(Plan)])
        if names == LLAMA_CPP:
            self._function(cpu, "ggml_cpu_init", None, [])()

    @staticmethod
    def _open(folder: Path, name: str) -> ctypes.CDLL:
        files = sorted(folder.glob(f"lib{name}.so*"))
        if not files:
            raise FileNotFoundError(f"{str(folder)!r} holds no lib{name}.so.")
        # Two ggmls have functions of the same names: each is to find its own.
        return ctypes.CDLL(str(files[0]), mode=os.RTLD_LOCAL | os.RTLD_NOW | os.RTLD_DEEPBIND)

    @staticmethod
    def _function(library, name, result, arguments):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        return function

    def fits(self, kind: str, inputs: int) -> bool:
        """Whether rows of `inputs` values divide into the blocks of the type."""
        return inputs % self.block(TYPES[kind]) == 0

    def context(self, size: int) -> int:
        handle = self.init(InitParams(size, None, False))
        if not handle:
            raise MemoryError(f"ggml gave no context of {size} bytes.")
        return handle


class GgmlWeights:
    """As many copies of one float32 weight (N, K), quantised, as make at least `distinct_bytes`."""

    def __init__(self, ggml: Ggml, kind: str, weight: torch.Tensor, distinct_bytes: int):
        self.ggml, (rows, self.inputs) = ggml, weight.shape
        size = ggml.row_size(TYPES[kind], self.inputs) * rows
        copies = max(1, -(-distinct_bytes // size))
        self.rows = rows
        self.handle = ggml.context(copies * (size + ggml.overhead() + SLACK))
        self.tensors = [ggml.new_tensor(self.handle, TYPES[kind], self.inputs, rows) for _ in range(copies)]
        source = np.ascontiguousarray(weight.float().numpy())
        first = ggml.data(self.tensors[0])
        ggml.quantize(TYPES[kind], source.ctypes.data, first, 0, rows, self.inputs, None)
        for tensor in self.tensors[1:]:
            ctypes.memmove(ggml.data(tensor), first, size)

    def close(self) -> None:
        self.ggml.free(self.handle)


class GgmlProduct:
    """x (M, K) times the weights, one after the other, in graphs of a few products each."""

    def __init__(self, weights: GgmlWeights, x: torch.Tensor, threads: int):
        self.weights, self.ggml, self.tokens = weights, weights.ggml, x.shape[0]
        ggml, products = self.ggml, x.shape[0] * weights.inputs * weights.rows
        self.nodes = int(min(NODES_PER_GRAPH, max(1, PRODUCTS_PER_GRAPH // products)))
        graphs = max(1, len(weights.tensors) // self.nodes)
        result_bytes = x.shape[0] * weights.rows * 4 + ggml.overhead() + SLACK
        graph_bytes = self.nodes * result_bytes + ggml.graph_overhead(GRAPH_SIZE, False) + SLACK
        self.handle = ggml.context(x.nbytes + SLACK + ggml.overhead() + graphs * graph_bytes)
        source = np.ascontiguousarray(x.float().numpy())
        tokens = ggml.new_tensor(self.handle, TYPES["F32"], weights.inputs, x.shape[0])
        ctypes.memmove(ggml.data(tokens), source.ctypes.data, source.nbytes)
        self.graphs = [self._graph(number, tokens, threads) for number in range(graphs)]
        self.next = 0

    def _graph(self, number: int, tokens: int, threads: int):
        ggml, weights = self.ggml, self.weights.tensors
        graph = ggml.new_graph(self.handle, GRAPH_SIZE, False)
        for node in range(number * self.nodes, (number + 1) * self.nodes):
            self.last = ggml.mul_mat(self.handle, weights[node % len(weights)], tokens)
            ggml.expand(graph, self.last)
        plan = ggml.plan(graph, threads, None)
        work = np.zeros(plan.work_size + 64, np.uint8)
        plan.work_data = (work.ctypes.data + 63) // 64 * 64
        return graph, plan, work

    def run(self, calls: int) -> tuple[Times, int]:
        """Compute graphs of at least `calls` products; return the times and the number of products."""
        count = -(-calls // self.nodes)
        wall, processor = time.perf_counter(), time.thread_time()
        for number in range(self.next, self.next + count):
            graph, plan, _ = self.graphs[number % len(self.graphs)]
            if self.ggml.compute(graph, plan):
                raise RuntimeError("ggml_graph_compute failed.")
        times = Times(time.perf_counter() - wall, time.thread_time() - processor)
        self.next = (self.next + count) % len(self.graphs)
        return times, count * self.nodes

    def output(self) -> torch.Tensor:
        """Compute the last graph and return its last product (M, N) float32."""
        graph, plan, _ = self.graphs[-1]
        if self.ggml.compute(graph, plan):
            raise RuntimeError("ggml_graph_compute failed.")
        place = ctypes.cast(self.ggml.data(self.last), ctypes.POINTER(ctypes.c_float))
        return torch.from_numpy(np.ctypeslib.as_array(place, shape=(self.tokens, self.weights.rows)).copy())

    def close(self) -> None:
        self.ggml.free(self.handle)
