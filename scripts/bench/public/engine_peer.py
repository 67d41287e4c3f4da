"""llama.cpp or ik_llama.cpp with a model of a public shape, timed on request.

    python scripts/bench/public/engine_peer.py llama_cpp TQ2_0 bitnet-2b FOLDER

Needs the engine's package (llama-cpp-python, ik-llama-cpp-python), gguf and numpy, and nothing of frankenlm: it runs
under the interpreter that has them. The GGUF file is made in FOLDER when it is not there: random codes, matrices in the
given type, the table, which is the head too, in it or in Q8_0. The model is one of the type `llama`, or `qwen3` where
the shape is: BitNet's sub-norms are left out, a little less work than ours. Reads lines such as
{"threads": 1, "prompt": 128, "new_tokens": 48} and answers each with {"prefill": seconds, "decode": seconds,
"resident_mb": of the process}.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import gguf
import numpy as np
from shapes import SHAPES, PublicShape

CONTEXT = 512
Q8_0 = 8
# Type number, bytes of a row of n inputs, and what stands before a row's codes: ggml's names.
# https://github.com/ikawrakow/ik_llama.cpp numbers its own types from 134 on.
TYPES = {
    "TQ2_0": (35, lambda inputs: inputs // 256 * 66),
    "IQ2_BN": (135, lambda inputs: 4 + inputs // 4),
    "IQ2_BN_R4": (335, lambda inputs: 4 + inputs // 4),
}
SCALE = 0.02


def _legal_bytes(random: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Return bytes of four codes 0, 1 or 2 each."""
    levels = np.arange(3, dtype=np.uint8)
    legal = np.array([a | b << 2 | c << 4 | d << 6 for a in levels for b in levels for c in levels for d in levels])
    return legal.astype(np.uint8)[random.integers(0, 81, size)]


def ternary_rows(random: np.random.Generator, rows: int, inputs: int, kind: str) -> np.ndarray:
    """Return uint8 (rows, bytes of a row) of a type, with one scale everywhere."""
    data = _legal_bytes(random, (rows, TYPES[kind][1](inputs)))
    if kind == "TQ2_0":  # blocks of 256 weights: 64 bytes of codes, a float16
        data.reshape(rows, -1, 66)[..., 64:] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
        return data
    scale = np.frombuffer(np.float32(SCALE).tobytes(), np.uint8)
    if kind == "IQ2_BN":
        data[:, :4] = scale
    else:  # four rows interleaved, their four scales first
        data.reshape(rows // 4, -1)[:, :16] = np.tile(scale, 4)
    return data


def write_model(file: Path, shape: PublicShape, kind: str) -> None:
    random = np.random.default_rng(0)
    architecture = "qwen3" if shape.model_type == "qwen3" else "llama"
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feedforward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    tensors = []

    def add(name: str, sizes: tuple[int, ...], data, raw_type=None) -> None:
        writer.add_tensor_info(f"{name}.weight", sizes, np.dtype(np.float32), data().nbytes, raw_dtype=raw_type)
        tensors.append(data)

    def matrix(name: str, rows: int, inputs: int) -> None:
        data = ternary_rows(random, rows, inputs, kind)
        add(name, (rows, inputs), lambda: data, TYPES[kind][0])

    def norm(name: str, size: int = shape.hidden) -> None:
        add(name, (size,), lambda: np.ones(size, np.float32))

    if shape.ternary_table:
        matrix("token_embd", shape.vocabulary, shape.hidden)
    else:
        values = random.standard_normal((shape.vocabulary, shape.hidden), np.float32) * SCALE
        add("token_embd", values.shape, lambda: gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), Q8_0)
    norm("output_norm")
    for layer in range(shape.layers):
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")
        if architecture == "qwen3":
            norm(f"blk.{layer}.attn_q_norm", shape.head_size)
            norm(f"blk.{layer}.attn_k_norm", shape.head_size)
        for name, (rows, inputs) in shape.matrices().items():
            matrix(f"blk.{layer}.{name}", rows, inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in tensors:
        writer.write_tensor_data(data())
    writer.close()


class EngineModel:
    """The file, loaded once; a context for each number of threads."""

    def __init__(self, library: str, file: Path, vocabulary: int):
        self._api = importlib.import_module(library)
        if library == "ik_llama_cpp":
            self._api = importlib.import_module("ik_llama_cpp._ctypes_api")
        api = self._api
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(file).encode(), settings)
        if not self._model:
            raise RuntimeError(f"{library} cannot load {file}")
        self._contexts, self._vocabulary = {}, vocabulary
        self._batch = api.llama_batch_init(CONTEXT, 0, 1)

    def _context(self, threads: int):
        if threads not in self._contexts:
            options = self._api.llama_context_default_params()
            options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
            options.n_threads = options.n_threads_batch = threads
            context = self._api.llama_init_from_model(self._model, options)
            if not context:
                raise RuntimeError("no context could be made")
            self._contexts[threads] = context
        return self._contexts[threads]

    def _clear(self, context) -> None:
        if hasattr(self._api, "llama_kv_cache_clear"):
            self._api.llama_kv_cache_clear(context)
        else:
            self._api.llama_memory_clear(self._api.llama_get_memory(context), True)

    def _decode(self, context, tokens: list[int], first: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, first + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index == len(tokens) - 1
        if self._api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        if not self._api.llama_get_logits_ith(context, len(tokens) - 1):  # waits for the end
            raise RuntimeError("no logits came")

    def time(self, threads: int, prompt: int, new_tokens: int) -> dict[str, float]:
        """Return the seconds of a prompt, and of `new_tokens` tokens after it, one by one."""
        context = self._context(threads)
        self._clear(context)
        ids = [7 * (number + 1) % (self._vocabulary - 1) + 1 for number in range(prompt)]
        start = time.perf_counter()
        self._decode(context, ids, 0)
        middle = time.perf_counter()
        for number in range(new_tokens):
            self._decode(context, [ids[number % prompt]], prompt + number)
        end = time.perf_counter()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {"prefill": middle - start, "decode": end - middle, "resident_mb": pages * 4096 / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["llama_cpp", "ik_llama_cpp"])
    parser.add_argument("kind", choices=list(TYPES))
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    shape, file = SHAPES[arguments.shape], arguments.folder / f"{arguments.shape}-{arguments.kind}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        write_model(part, shape, arguments.kind)
        part.rename(file)
    model = EngineModel(arguments.library, file, shape.vocabulary)
    for line in sys.stdin:
        print(json.dumps(model.time(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
