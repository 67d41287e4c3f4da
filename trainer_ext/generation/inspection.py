"""Look into a model over one text: attention weights, reads of a slot memory, what memories keep, flat norms.

Arrays for heatmaps.py and the page. Shapes: L tokens, H heads.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frankenlm.modeling.delta_memory import DeltaMemory
from frankenlm.modeling.mixer_mamba import Mamba2
from frankenlm.modeling.mixer_retention import Retention, retention_log_decay
from frankenlm.modeling.norms import Derf, DynamicTanh, at_least_float32

from ..common.checkpoints import Checkpoint
from ..common.cli import UserError


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself."""
    return [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]


def attention_weights(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, numpy.ndarray]:
    """Return (L, L) attention weights of each layer that has them, mean over heads; empty where none has."""
    return {name: heads.mean(0) for name, heads in attention_by_head(model, ids).items()}


@torch.no_grad()
def attention_by_head(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, numpy.ndarray]:
    """Return (H, L, L) attention weights of each layer that has them; empty where none has.

    Weights exist in eager attention only: the model is switched to it and back.
    """
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model(input_ids=_row(model, ids), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(usual)
    # models without attention have no such field
    layers = output.get("attentions") or ()
    found = [(index, weights) for index, weights in enumerate(layers) if weights is not None]
    return {f"attention {index}": weights[0].float().cpu().numpy() for index, weights in found}


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
    input_ids = _row(model, ids)
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


@torch.no_grad()
def memory_decays(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, numpy.ndarray]:
    """Return, for each recurrent memory, the share (H,) of it that a head keeps from one token to the next.

    That of retention is fixed. Mamba-2 and the memory of Titan attention choose it at every token: theirs is the
    geometric mean over the text, so that after n tokens its n-th power is left. Empty for models without such layers.
    """
    kept: dict[str, list[torch.Tensor]] = {}

    def remember(name: str, logarithms: torch.Tensor) -> None:
        kept.setdefault(name, []).append(logarithms.double().mean(dim=(0, 1)))

    def of_mamba(name: str, mixer: Mamba2) -> Callable:
        def look(module, inputs, output) -> None:
            steps = F.softplus(at_least_float32(output[..., -mixer.num_heads :]) + at_least_float32(mixer.dt_bias))
            remember(name, -steps * at_least_float32(mixer.A_log).exp())

        return look

    def of_titan(name: str) -> Callable:
        return lambda module, inputs, output: remember(name, F.logsigmoid(at_least_float32(output)))

    watched: list[tuple[nn.Module, Callable]] = []
    for name, module in model.named_modules():
        if isinstance(module, Retention):
            kept[name] = [retention_log_decay(module.num_heads, module.decay)]
        elif isinstance(module, Mamba2):
            watched.append((module.in_proj, of_mamba(name, module)))
        elif isinstance(module, DeltaMemory):
            watched.append((module.forget_proj, of_titan(name)))
    if watched:
        with _watching(layer.register_forward_hook(look) for layer, look in watched):
            model(input_ids=_row(model, ids), use_cache=False)
    order = [name for name, _ in model.named_modules() if name in kept]
    # a layer of a stack that is gone through in loops is asked in each of them
    return {name: torch.stack(kept[name]).mean(0).exp().cpu().numpy() for name in order}


@torch.no_grad()
def norm_saturation(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, float]:
    """Return, for each Derf and DynamicTanh layer, the share of its inputs at which the curve is flat.

    An input is a unit of a token. Empty for models without such layers.
    """
    shares: dict[str, list[float]] = {}

    def look_at(name: str) -> Callable:
        return lambda norm, inputs: shares.setdefault(name, []).append(norm.saturation(inputs[0]).item())

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, (Derf, DynamicTanh))]
    if not norms:
        return {}
    with _watching(norm.register_forward_pre_hook(look_at(name)) for name, norm in norms):
        model(input_ids=_row(model, ids), use_cache=False)
    return {name: sum(shares[name]) / len(shares[name]) for name, _ in norms if name in shares}


@contextlib.contextmanager
def _watching(handles: Iterator) -> Iterator[None]:
    """Hold hooks for as long as the block lasts."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def _row(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(ids)], device=model.device)
