"""llama.cpp as a peer of ternary_generate.py: a model of as many ternary weights, timed on request.

    python scripts/bench/llamacpp_peer.py FILE.gguf --hidden 2048 --layers 16 --heads 32 --ffn 5632 --vocabulary 32000

Needs llama-cpp-python, gguf and numpy, and nothing of frankenlm: it runs under the interpreter that has them. FILE is
made when it does not exist: random weights, matrices as TQ2_0, embeddings and head as Q8_0. Reads lines such as
{"threads": 1, "prompt": 128, "new_tokens": 48} and answers each with {"prefill": seconds, "decode": seconds}.
"""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

CONTEXT = 1024
TERNARY, HEAD = gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.Q8_0


def write_model(arguments: argparse.Namespace) -> None:
    random, hidden = np.random.default_rng(0), arguments.hidden
    writer = gguf.GGUFWriter(str(arguments.file), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(arguments.layers)
    writer.add_feed_forward_length(arguments.ffn)
    writer.add_head_count(arguments.heads)
    writer.add_head_count_kv(arguments.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // arguments.heads)
    writer.add_vocab_size(arguments.vocabulary)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, columns: int, kind) -> None:
        values = random.integers(-1, 2, size=(rows, columns)).astype(np.float32) * 0.03
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", arguments.vocabulary, hidden, HEAD)
    matrix("output", arguments.vocabulary, hidden, HEAD)
    norm("output_norm")
    for layer in range(arguments.layers):
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}", hidden, hidden, TERNARY)
        for name in ("ffn_gate", "ffn_up"):
            matrix(f"blk.{layer}.{name}", arguments.ffn, hidden, TERNARY)
        matrix(f"blk.{layer}.ffn_down", hidden, arguments.ffn, TERNARY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Model:
    """The file, loaded once; its context takes any number of threads."""

    def __init__(self, file: Path, vocabulary: int):
        llama_cpp.llama_backend_init()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._quiet = signature(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self._vocabulary = vocabulary

    def _decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self._context)

    def time(self, threads: int, prompt: int, new_tokens: int) -> dict[str, float]:
        """Return the seconds of a prompt, and of `new_tokens` tokens after it, one by one."""
        llama_cpp.llama_set_n_threads(self._context, threads, threads)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        ids = [7 * (number + 1) % (self._vocabulary - 1) + 1 for number in range(prompt)]
        start = time.perf_counter()
        self._decode(ids)
        middle = time.perf_counter()
        for number in range(new_tokens):
            self._decode([ids[number % prompt]])
        return {"prefill": middle - start, "decode": time.perf_counter() - middle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    for name in ("hidden", "layers", "heads", "ffn", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    if not arguments.file.exists():
        write_model(arguments)
    model = Model(arguments.file, arguments.vocabulary)
    for line in sys.stdin:
        print(json.dumps(model.time(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
