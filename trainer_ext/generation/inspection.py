"""Look into a causal model over one text: attention weights, reads of its slot memory. Arrays for heatmaps.py."""

from collections.abc import Sequence

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoints import Checkpoint
from ..common.cli import UserError


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself."""
    return [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]


@torch.no_grad()
def attention_weights(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, numpy.ndarray]:
    """Return (L, L) attention weights of each layer that has them, mean over heads; empty where none has.

    Weights exist in eager attention only: the model is switched to it and back.
    """
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        input_ids = torch.tensor([list(ids)], device=model.device)
        output = model(input_ids=input_ids, output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(usual)
    # models without attention have no such field
    layers = output.get("attentions") or ()
    found = [(index, weights) for index, weights in enumerate(layers) if weights is not None]
    return {f"attention {index}": weights[0].float().mean(0).cpu().numpy() for index, weights in found}


def check_attention(model: PreTrainedModel, checkpoint: Checkpoint, ids: Sequence[int]) -> None:
    """Raises UserError, before anything is generated, where no layer has attention weights to draw."""
    if not attention_weights(model, ids):
        raise UserError(f"--attention_map: no layer of {checkpoint.name} has attention weights to draw.")


@torch.no_grad()
def memory_reads(
    model: PreTrainedModel, ids: Sequence[int]
) -> tuple[dict[str, numpy.ndarray], dict[str, numpy.ndarray]]:
    """Return the read mass (L, S + 1) of each memory layer, and the memory's statistics after each token, (L,).

    The statistics are those of decoding token by token: entry t has seen tokens 0 ... t.
    """
    input_ids = torch.tensor([list(ids)], device=model.device)
    reads = model(input_ids=input_ids, output_memory_reads=True, use_cache=False).memory_reads
    cache, after_token = None, []
    for index in range(len(ids)):
        output = model(input_ids=input_ids[:, index : index + 1], cache=cache, use_cache=True)
        cache = output.cache
        after_token.append({name: value.item() for name, value in output.memory_stats.items()})
    names = [f"memory of layer {layer}" for layer in sorted(model.config.memory_layers)]
    layers = {name: mass[0].float().cpu().numpy() for name, mass in zip(names, reads, strict=True)}
    statistics = {name: numpy.array([stats[name] for stats in after_token]) for name in after_token[0]}
    return layers, statistics
