"""Small models of transformers with random ternary weights, saved in each form in which such models are published."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from frankenlm.modeling.quantizer_ternary import packed_layers

SIZES = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "bitnet": BitNetConfig,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def small_model(family: str, *, tie: bool = False, **sizes) -> PreTrainedModel:
    """Return a dense random model of a family of `CONFIGS`."""
    torch.manual_seed(0)
    fields = SIZES | {"tie_word_embeddings": tie} | sizes
    if family == "bitnet":
        del fields["head_dim"]
    return AutoModelForCausalLM.from_config(CONFIGS[family](**fields)).eval()


def random_ternary(rows: int, columns: int, axis: str | int, generator: torch.Generator) -> torch.Tensor:
    """Return codes times scales that float16 and bfloat16 hold exactly; axis: "tensor", "row", or a group size.

    The first group has the same sign everywhere and the second one is all zeros, as happens.
    """
    codes = torch.randint(-1, 2, (rows, columns), generator=generator).float()
    groups = -(-columns // axis) if isinstance(axis, int) else 1
    scale = torch.randint(1, 128, (1 if axis == "tensor" else rows, groups), generator=generator) / 1024
    size = axis if isinstance(axis, int) else columns
    codes[0, : min(size, 32)].abs_()
    codes[-1, :size] = 0
    return codes * scale.repeat_interleave(size, 1)[:, :columns]


@torch.no_grad()
def make_ternary(model: PreTrainedModel, axis: str | int, *, ends: bool = False) -> PreTrainedModel:
    """Give the linear layers of a model, and with `ends` its table and head, random ternary weights."""
    generator = torch.Generator().manual_seed(1)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    for layer in model.modules():
        plain = type(layer) is nn.Linear and layer is not head
        if plain or (ends and (layer is table or (layer is head and not model.config.tie_word_embeddings))):
            layer.weight.copy_(random_ternary(*layer.weight.shape, axis, generator))
        if type(layer) is nn.Linear and layer.bias is not None:
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) / 8)
    return model


@torch.no_grad()
def dense_twin(packed: PreTrainedModel) -> PreTrainedModel:
    """Return the dense model in float32 that a packed one stands for; its activations are not rounded."""
    config = type(packed.config).from_dict(packed.config.to_dict())
    del config.quantization_config
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    layers = dict(packed_layers(packed))
    state = {name: tensor for name, tensor in packed.state_dict().items() if name.rpartition(".")[0] not in layers}
    for name, layer in layers.items():
        if hasattr(layer, "dequantized_weight"):
            state[f"{name}.weight"] = layer.dequantized_weight()
        else:
            state[f"{name}.weight"] = layer.weight * layer.weight_scale.unsqueeze(1)
        if getattr(layer, "bias", None) is not None:
            state[f"{name}.bias"] = layer.bias
    twin.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return twin.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of a few tokens."""
    with torch.compiler.set_stance("force_eager"):
        return model(input_ids=torch.arange(3, 20)[None]).logits.float()


def greedy(model: PreTrainedModel, tokens: int = 100) -> torch.Tensor:
    """Return a greedy text."""
    ids = torch.tensor([[5, 9, 11]])
    return model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)


# --- GGUF


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the rows of a llama's q and k: halves of a head become pairs."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def q2_0(values: np.ndarray, block: int) -> np.ndarray:
    """Pack rows as Q2_0 does, in blocks of 64 or 128: the scale, then code (w / d) + 1 in two bits each."""
    blocks = values.reshape(-1, block)
    scale = np.abs(blocks).max(1, keepdims=True)
    codes = (np.sign(blocks) + 1).astype(np.uint8).reshape(len(blocks), -1, 4)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    return np.concatenate([scale.astype(np.float16).view(np.uint8), packed], 1).reshape(len(values), -1)


def i2_s(values: np.ndarray) -> np.ndarray:
    """Pack a whole weight of one scale as I2_S does: 32 bytes hold 128 weights, the scale follows as float32."""
    codes = (np.sign(values) + 1).astype(np.uint8).reshape(-1, 4, 32)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    tail = np.zeros(8, np.float32)
    tail[0] = np.abs(values).max()
    return np.concatenate([packed.reshape(-1), tail.view(np.uint8)])


def ptq1_0(values: np.ndarray) -> np.ndarray:
    """Pack rows as PTQ1_0 does: 16 bytes of 5 trits, 8 bytes of 5, 2 bytes of 4, the scale."""
    blocks = values.reshape(-1, 128)
    trits = (np.sign(blocks) + 1).astype(np.uint32)
    runs = []
    for first, count, each in ((0, 16, 5), (80, 8, 5), (120, 2, 4)):
        digits = trits[:, first : first + count * each].reshape(-1, each, count)
        whole = sum(digits[:, digit] * 3 ** (4 - digit) for digit in range(each))
        runs.append((whole * 256 + 242) // 243)
    scale = np.abs(blocks).max(1, keepdims=True).astype(np.float16).view(np.uint8)
    return np.concatenate([*(run.astype(np.uint8) for run in runs), scale], 1).reshape(len(values), -1)


# types that gguf has no name for: their number, and what packs a weight
OTHER_TYPES = {
    "Q2_0": (42, lambda values: q2_0(values, 64)),
    "Q2_0 of 128": (42, lambda values: q2_0(values, 128)),
    "PQ2_0": (142, lambda values: q2_0(values, 128)),
    "PTQ1_0": (143, ptq1_0),
    "I2_S": (36, i2_s),
}


class GgufFile(gguf.GGUFWriter):
    """Writes a model as llama.cpp's converter would; types unknown to gguf are written as I8 and renumbered."""

    def __init__(self, path: Path, architecture: str, **options):
        super().__init__(path, architecture, **options)
        self.renumbered: dict[str, tuple[int, tuple[int, ...]]] = {}

    def add_weight(self, name: str, weight: torch.Tensor, kind: str) -> None:
        """Add a weight in a type of gguf or of `OTHER_TYPES`."""
        values = weight.float().numpy()
        if kind in OTHER_TYPES:
            number, pack = OTHER_TYPES[kind]
            self.renumbered[name] = number, tuple(weight.shape)
            self.add_tensor(name, pack(values).view(np.int8))
        elif kind in ("F32", "F16"):
            self.add_tensor(name, values.astype({"F32": np.float32, "F16": np.float16}[kind]))
        else:
            self.add_tensor(name, gguf.quants.quantize(values, Type[kind]), raw_dtype=Type[kind])

    def write_ti_data_to_file(self) -> None:
        """As in gguf, with the numbers and shapes of the types that it does not know."""
        for tensors in self.tensors:
            for name, info in tensors.items():
                if name in self.renumbered:
                    number, shape = self.renumbered[name]
                    info.dtype, info.shape = _Number(number), shape
        super().write_ti_data_to_file()

    def finish(self) -> None:
        """Write everything."""
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        self.close()


def own_name(base: str) -> str:
    """Of BitNet's norms and head, which gguf knows by the names of an older BitNet."""
    return "output" if base == "lm_head" else f"blk.{base.split('.')[2]}.{base.split('.')[-1]}"


class _Number(int):
    """A type's number where gguf wants its enumeration's member."""


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    kind: str,
    *,
    ends: str = "F16",
    architecture: str | None = None,
    keys: dict[str, str] | None = None,
    rope_factor: float | None = None,
    extra: dict[str, np.ndarray] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    **options,
) -> Path:
    """Write a model of this file as GGUF: its linear layers as `kind`, table and head as `ends`, the rest as F32.

    keys: further metadata. extra: further tensors. tokenizer: adds one. options: gguf's, for shards.
    """
    config = model.config
    family = {"mistral": "llama"}.get(config.model_type, config.model_type)
    architecture = architecture or family
    writer = GgufFile(path, architecture, **options)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if family in ("qwen3", "gemma2"):
        writer.add_key_length(config.head_dim)
    elif family == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    for key, text in (keys or {}).items():
        writer.add_string(key, text)
    if rope_factor is not None:
        writer.add_rope_scaling_factor(rope_factor)
    if tokenizer is not None:
        tokenizer(writer)
    arch = next(known for known, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        base, _, part = name.rpartition(".")
        stored = f"{names.get_name(base) or own_name(base)}.{part}"
        if family == "llama" and stored.split(".")[-2] in heads:
            weight = permuted(weight, heads[stored.split(".")[-2]])
        if family == "gemma2" and "norm" in name:
            weight = weight + 1
        linear = name.endswith("proj.weight")
        writer.add_weight(stored, weight, kind if linear else ends if weight.dim() > 1 else "F32")
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.finish()
    return path
