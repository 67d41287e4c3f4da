"""What an experiment takes up: bytes by part, from a model without weights. Formulas: section "Memory" of README.md.

e: bytes of an element. B rows in flight, P tokens of a rendered prompt, S tokens of prompt and answer, H hidden, I
intermediate, V vocabulary, A heads times their width.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from frankenlm.modeling.packed_model import output_layer

from ..answers.masked_probe import SCORED_EVERY, WINDOW
from ..answers.row_cache import COLUMN_STEP
from ..answers.text_probe import CONTEXT, KEPT_POSITIONS
from ..configs import ExperimentConfig
from ..damage.noise import TORCH_CHUNK
from ..weights.attention_heads import attention_heads
from ..weights.groups import select_group
from ..weights.model_checks import fills_masks
from ..weights.parameter_index import index_parameters, logical_shape
from ..weights.targets import Group

QUARTER = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}  # bytes a weight in 4 bits, by double_quant
SAMPLING_COPIES = 5  # float32 tensors [B, V] that choosing a token makes
NOISE_BYTES = 80  # of scratch for each element that is damaged on a GPU
HOST_SCRATCH = 8 << 20  # damage on a CPU works in blocks that fit a cache


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that its activations depend on; vision ones are 0 without pictures."""

    hidden: int
    intermediate: int
    vocabulary: int
    layers: int
    query_width: int
    key_value_width: int
    fills_masks: bool = False
    image_tokens: int = 0
    patches: int = 0
    vision_hidden: int = 0
    vision_intermediate: int = 0


class PromptLength(NamedTuple):
    """Tokens of the longest rendered prompt, and how many of them all prompts begin with, which are read once."""

    prompt: int
    prefix: int


def read_shape(empty: PreTrainedModel) -> ModelShape:
    """Return the sizes of a model, with or without weights."""
    config = empty.config.get_text_config()
    # fields that some families have and others do not
    fields = config.to_dict()
    heads = attention_heads(config) or 0  # a model without attention keeps a state, whose size is not known here
    width = fields.get("head_dim") or (config.hidden_size // heads if heads else 0)
    key_value = fields.get("num_key_value_heads") or heads
    return ModelShape(
        hidden=config.hidden_size,
        intermediate=_intermediate(empty, config),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        query_width=heads * width,
        key_value_width=key_value * width,
        fills_masks=fills_masks(empty.config),
        **_vision(empty.config),
    )


def _intermediate(empty: PreTrainedModel, config: PreTrainedConfig) -> int:
    """Return the features that a token has at once inside a feed-forward."""
    try:
        target = select_group(empty, "mlp_up").targets[0]
    except ValueError:  # no feed-forward that is known: the usual ratio does for an estimate
        return 4 * config.hidden_size
    features = target.numel // config.hidden_size
    fields = config.to_dict()
    experts = target.shape[0] if len(target.shape) == 3 else 1
    return max(features // experts * (fields.get("num_experts_per_tok") or 1 if experts > 1 else 1), 1)


def _vision(config: PreTrainedConfig) -> dict[str, int]:
    fields = config.to_dict()
    vision = fields.get("vision_config")
    if not vision or not {"image_size", "patch_size", "hidden_size", "intermediate_size"} <= vision.keys():
        return {}
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return {
        "image_tokens": fields.get("mm_tokens_per_image") or patches,
        "patches": patches,
        "vision_hidden": vision["hidden_size"],
        "vision_intermediate": vision["intermediate_size"],
    }


def weight_bytes(empty: PreTrainedModel, group: Group, config: ExperimentConfig) -> dict[str, int]:
    """Return the bytes of the parameters and buffers: `weights`, and what damage adds to them, `dense copies`.

    Args:
        empty: the model, on any device; dense.
    """
    element = element_size(config.dtype)
    targeted = {target.name for target in group.targets}
    in_4bit = layers_in_4bit(empty, group, config)
    total, added = 0.0, 0
    for entry in index_parameters(empty):
        numel = math.prod(entry.shape)
        packed = entry.attribute == "weight" and entry.module in in_4bit
        total += numel * (QUARTER[config.double_quant] if packed else element)
        if packed and config.quant_target_mode == "dense_target" and entry.name in targeted:
            added += numel * element
    if group.needs_untie:
        added += math.prod(logical_shape(empty.get_input_embeddings(), "weight")) * element
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    return {"weights": int(total) + buffers, "dense copies": added}


def layers_in_4bit(empty: PreTrainedModel, group: Group, config: ExperimentConfig) -> set[nn.Linear]:
    """Return the layers whose weights are loaded in 4 bits."""
    if not config.load_4bit:
        return set()
    layers = {module for module in empty.modules() if isinstance(module, nn.Linear)} - {output_layer(empty)}
    if config.quant_target_mode == "dense_original":
        targeted = {target.name for target in group.targets}
        layers -= {entry.module for entry in index_parameters(empty) if entry.name in targeted}
    return layers


def element_size(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def baseline_bytes(group: Group, config: ExperimentConfig) -> int:
    """Return the bytes of the undamaged weights that are kept."""
    if config.restore_strategy == "mmap_checkpoint":
        return 0
    in_4bit = config.load_4bit and config.quant_target_mode == "requantise"
    size = QUARTER[config.double_quant] if in_4bit else element_size(config.dtype)
    return int(group.numel * size)


def damage_scratch(group: Group, dtype: str, on_gpu: bool) -> int:
    """Return the bytes that damaging the largest target takes besides it."""
    largest = max(target.numel for target in group.targets)
    if not on_gpu:
        return min(HOST_SCRATCH, 64 * largest)
    return min(largest, TORCH_CHUNK) * NOISE_BYTES + largest * element_size(dtype)


def cache_bytes(shape: ModelShape, element: int, rows: int, tokens: int) -> int:
    """Return the bytes of keys and values: rows are laid out in full, also where a layer sees a window only."""
    return rows * tokens * shape.layers * 2 * shape.key_value_width * element


def generation_bytes(
    shape: ModelShape, dtype: str, rows: int, length: PromptLength, answer: int, *, more_wait: bool, pictures: bool
) -> dict[str, int]:
    """Return the bytes that generating takes at its peak: `cache` of keys and values, and the `activations` then.

    Rows are read in with a cache of their own, which is then copied into slots; the slots are laid out after the first
    rows were read. `more_wait`: others are read in later, beside the slots.
    """
    element = element_size(dtype)
    if shape.fills_masks:
        return {"cache": 0, "activations": _filling(shape, element, rows, length.prompt)}
    columns = -(-(length.prompt + answer) // COLUMN_STEP) * COLUMN_STEP
    behind = length.prompt - length.prefix
    slots = cache_bytes(shape, element, rows, columns)
    read = cache_bytes(shape, element, rows, length.prompt)

    inside = max(_activations(shape, element, rows * behind), _activations(shape, element, length.prefix))
    choosing = rows * shape.vocabulary * 4 * SAMPLING_COPIES
    mask = rows * (element + 1)
    # attention repeats the keys and values that heads share
    repeated = rows * 2 * shape.query_width * element if shape.query_width > shape.key_value_width else 0
    prefill = read + inside + (mask * behind + repeated) * length.prompt
    step = columns * (repeated + mask) + choosing
    vision = shape.patches * (shape.vision_intermediate + 4 * shape.vision_hidden) * element if pictures else 0

    phases = [(0, prefill), (0, vision), (slots, read + rows * shape.vocabulary * element), (slots, step)]
    if more_wait:
        phases.append((slots, prefill))
    cache, activations = max(phases, key=sum)
    return {"cache": cache, "activations": activations}


def _filling(shape: ModelShape, element: int, copies: int, tokens: int) -> int:
    """Return the bytes of a call of a masked model, logits of every position included, and of choosing tokens."""
    read = _activations(shape, element, copies * tokens)
    return read + copies * shape.vocabulary * (tokens * element + 4 * SAMPLING_COPIES)


def _activations(shape: ModelShape, element: int, tokens: int) -> int:
    return tokens * (2 * shape.intermediate + 4 * shape.hidden) * element


def probe_bytes(shape: ModelShape, dtype: str) -> int:
    """Return the bytes that one window of the perplexity text takes: logits, in float32 and as log-probabilities,
    activations, and masks for two kinds of attention."""
    element = element_size(dtype)
    if shape.fills_masks:
        return _filling(shape, element, WINDOW // SCORED_EVERY, WINDOW)
    copies = 4 if dtype == "float32" else 8
    return CONTEXT * (shape.vocabulary * (element + copies) + 2 * CONTEXT) + _activations(shape, element, CONTEXT)


def kept_predictions(shape: ModelShape) -> int:
    """Return the bytes of the undamaged predictions that are kept, in float32, in main memory."""
    return KEPT_POSITIONS * shape.vocabulary * 4
