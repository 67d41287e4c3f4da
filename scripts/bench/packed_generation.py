"""A large packed decoder with random weights, and what its generation costs: time, time outside our operators, memory.

The checkpoint is written tensor by tensor in packed form: its float weights, sixteen times as large, never exist.
"""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.packed_model import empty_layers
from frankenlm.modeling.quantizer_ternary import TernaryConfig

WEIGHT_SCALE = 0.02
# The products of packed layers; attention, rotation and norms of a decoding step count as the rest of the model.
OUR_OPERATORS = {
    f"frankenlm::{name}"
    for name in ("quantize_activations", "ternary_linear", "ternary_linear_quantized", "int8_linear")
}
PAGE = 4096  # bytes


def decoder_config(
    hidden: int, layers: int, heads: int, feedforward: int, vocabulary: int, positions: int, *, ternary: bool
) -> Legacy1BitConfig:
    """Return a Legacy-1bit decoder in the manner of today's models; without `ternary` its full-precision twin."""
    return Legacy1BitConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        norm_type="rms_norm",
        position_type="rope",
        hidden_act="relu2",
        use_bias=False,
        head_bias=False,
        use_bitnet=ternary,
        bitnet_embedding=False,
        bitnet_head=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def random_tensor(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return tiles of legal codes, int8 weights, scales, or the ones of a norm, of the shape of `like`."""
    if like.dtype == torch.uint8:
        levels = torch.arange(3, dtype=torch.uint8)
        legal = sum(plane.flatten() << 2 * g for g, plane in enumerate(torch.meshgrid(*[levels] * 4, indexing="ij")))
        return legal[torch.randint(len(legal), like.shape, generator=generator)]
    if like.dtype == torch.int8:
        return torch.randint(-127, 128, like.shape, dtype=torch.int8, generator=generator)
    if name.endswith("weight_scale"):
        return torch.full(like.shape, WEIGHT_SCALE, dtype=like.dtype)
    return torch.ones(like.shape, dtype=like.dtype)


def write_packed_checkpoint(config: Legacy1BitConfig, folder: Path, seed: int = 0) -> int:
    """Write a packed checkpoint with random weights, int8 embeddings and head; return its number of ternary weights."""
    with torch.device("meta"):
        model = Legacy1BitForCausalLM(config)
    quantization = TernaryConfig(int8_embeddings=True, int8_head=True)
    empty_layers(model, quantization.find_places(model))
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: random_tensor(name, like, generator) for name, like in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = quantization.to_dict()
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return ternary_weights(model)


def ternary_weights(model: PreTrainedModel) -> int:
    return sum(layer.num_weights for layer in packed_layers(model))


def packed_layers(model: PreTrainedModel) -> list:
    """Return the layers with two bits a weight."""
    return [layer for layer in model.modules() if getattr(layer, "weight_bits", None) == 2]


def load_packed(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generation(model: PreTrainedModel, prompt: int, new_tokens: int) -> Callable[[], None]:
    """Return a function that generates greedily, batch 1, all of `new_tokens`, from a fixed prompt."""
    ids = torch.arange(7, 7 + 7 * prompt, 7).remainder(model.config.vocab_size - 1).add(1).unsqueeze(0)
    mask = torch.ones_like(ids)

    def call() -> None:
        model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return call


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class CallRecorder(TorchDispatchMode):
    """Notes every call of some operators with its arguments: of those that `is_wanted` says of a name."""

    def __init__(self, is_wanted: Callable[[str], bool]):
        super().__init__()
        self.is_wanted = is_wanted
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if self.is_wanted(operator.name().partition(".")[0]):
            self.calls.append((operator, arguments, keywords or {}))
        return operator(*arguments, **(keywords or {}))


class DecodingStep:
    """One token after a prompt of `prompt`: as a whole, and our operators of it alone.

    The operators are recorded once with their arguments, in order; running only them tells what the rest of the model
    (norms, attention, the cache, Python) costs without any instrument in the timed step.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, prompt: int):
        self._model, self._cache = model, model.new_cache()
        self._token = torch.ones(1, 1, dtype=torch.int64)
        model(torch.ones(1, prompt, dtype=torch.int64), cache=self._cache)
        with CallRecorder(OUR_OPERATORS.__contains__) as recorder:
            self.whole()
        self._calls = recorder.calls
        if not self._calls:
            raise RuntimeError("the model calls no operator of ours: is it packed, and are the native operators built?")

    @torch.no_grad()
    def whole(self) -> None:
        self._model(self._token, cache=self._cache, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def operators(self) -> None:
        for operator, arguments, keywords in self._calls:
            operator(*arguments, **keywords)


def resident_bytes() -> int:
    """Return the memory that this process has in use (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_residence(folder: Path) -> dict[str, float]:
    """Load a packed checkpoint in this process and return what that added to it; best in a process of its own.

    Returns:
        resident_mb: growth of the resident set, every page of every tensor touched; other_tensors_mb: of it, tensors
        that are not ternary layers; ternary_weights; bits_per_weight: of the remainder.
    """
    gc.collect()
    before = resident_bytes()
    model = load_packed(folder)
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        tensor.reshape(-1)[:: max(1, PAGE // tensor.element_size())].sum().item()
    gc.collect()
    grown = resident_bytes() - before
    ternary = {id(part) for layer in packed_layers(model) for part in (*layer.parameters(), *layer.buffers())}
    others = sum(tensor.nbytes for tensor in tensors if id(tensor) not in ternary)
    weights = ternary_weights(model)
    return {
        "resident_mb": grown / 1e6,
        "other_tensors_mb": others / 1e6,
        "ternary_weights": weights,
        "bits_per_weight": 8 * (grown - others) / weights,
    }
