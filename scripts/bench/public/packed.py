"""Our model of a public shape: transformers' class with packed layers, written in packed form, loaded as any other.

Its float weights, eight times as large, never exist. `python -m frankenlm.scripts.bench.public.packed SHAPE FOLDER`
writes one: in a process of its own, whose memory is not counted as the model's.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitNetConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from frankenlm.modeling.packed_model import empty_layers
from frankenlm.modeling.ternary_config import TernaryConfig
from frankenlm.scripts.bench.packed_generation import random_tensor
from frankenlm.scripts.bench.public.shapes import SHAPES, PublicShape

POSITIONS = 4096


def config_of(shape: PublicShape, dtype: torch.dtype) -> PreTrainedConfig:
    """Return the configuration of transformers' class for a shape."""
    classes = {"bitnet": BitNetConfig, "qwen3": Qwen3Config}
    return classes[shape.model_type](
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feedforward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype=dtype,
    )


def quantization_of(shape: PublicShape) -> TernaryConfig:
    """Return how the model of a shape is packed."""
    if shape.ternary_table:
        return TernaryConfig(
            plain_layers=True, ternary_embeddings=True, group_size=shape.group_size, scale_dtype="float16"
        )
    return TernaryConfig(
        plain_layers=True,
        group_size=shape.group_size,
        int8_embeddings=True,
        int8_head=True,
        modules_to_not_convert=["lm_head"],
    )


def write_checkpoint(shape: PublicShape, folder: Path, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
    """Write a packed checkpoint of a shape with random weights into a new folder."""
    config = config_of(shape, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantization = quantization_of(shape)
    empty_layers(model, quantization.find_places(model))
    generator = torch.Generator().manual_seed(seed)
    shared = set(model.all_tied_weights_keys)
    tensors = {
        name: random_tensor(name, like, generator) for name, like in model.state_dict().items() if name not in shared
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = quantization.to_dict()
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


if __name__ == "__main__":
    write_checkpoint(SHAPES[sys.argv[1]], Path(sys.argv[2]))
