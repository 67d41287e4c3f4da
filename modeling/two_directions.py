"""One parameter set, two directions: the rows of a batch are read left to right, or both ways, as `causal_rows` says.

Charpentier and Samuel 2024, "GPT or BERT: why not both?" (GPT-BERT), arXiv:2410.24159, section 3: a masked token is
predicted at the position before it, as the next token is. Both ways of reading then ask the same of every position, and
one head serves them. Who fills masks expects the logits for token i at position i, and gets them so: the masked head
takes the hidden state of the token before (`those_before`).
Shapes: B batch, L length, D hidden.
"""

import copy
from collections.abc import Callable

import torch

from .documents import documents_begin
from .outputs import FrankensteinModelOutput

# What a batch has a row of for each text.
ROWS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds", "seq_idx")


def facing(config, is_decoder: bool):
    """Return the configuration of a head that reads left to right, or of one that does not: where one parameter set
    serves both, the head decides, and gets a configuration of its own."""
    if not config.two_directions or config.is_decoder == is_decoder:
        return config
    config = copy.deepcopy(config)
    config.is_decoder = is_decoder
    return config


def needs_two_passes(config, causal_rows: torch.Tensor | None, batch_size: int, keeps_cache: bool) -> bool:
    """Return whether rows of both kinds are in a batch.

    Raises:
        ValueError: `causal_rows` for a model of one direction, of another shape than (B,), or beside a cache.
    """
    if causal_rows is None:
        return False
    if not config.two_directions:
        raise ValueError(
            f"causal_rows are given, but this model has one direction, is_decoder={config.is_decoder}: leave them out, "
            "or build it with two_directions=True."
        )
    if causal_rows.shape != (batch_size,) or causal_rows.dtype != torch.bool:
        raise ValueError(
            f"causal_rows is {causal_rows.dtype} of shape {tuple(causal_rows.shape)}, expected bool ({batch_size},)."
        )
    if keeps_cache:
        raise ValueError("causal_rows and a cache exclude each other: leave out cache and use_cache.")
    return bool(causal_rows.any()) and not bool(causal_rows.all())


def read_each_way(forward: Callable, causal_rows: torch.Tensor, inputs: dict) -> FrankensteinModelOutput:
    """Read the rows of each kind by themselves, and put what comes out back into their order.

    Every output is that of the rows alone, but the routers' statistics: means over the real tokens of both passes.

    Args:
        forward: of the stack, for rows of one kind. inputs: what it was called with.
    """
    if any(name.startswith("cu_seq_lens") and value is not None for name, value in inputs.items()):
        raise ValueError("cu_seq_lens_q tells the documents of a batch of one row: give seq_idx, or position_ids.")
    rows = [causal_rows.nonzero().squeeze(1), (~causal_rows).nonzero().squeeze(1)]
    parts = [forward(**_of_rows(inputs, chosen), causal_rows=causal_rows[chosen]) for chosen in rows]
    order = torch.cat(rows).argsort()

    def together(tensors):
        return torch.cat(tensors).index_select(0, order)

    merged = {"last_hidden_state": together([part.last_hidden_state for part in parts])}
    for name in ("hidden_states", "attentions"):
        if name in parts[0]:
            merged[name] = tuple(together(pair) for pair in zip(*(part[name] for part in parts), strict=True))
    if "aux_loss" in parts[0]:
        tokens = torch.stack([_real_tokens(inputs, chosen, parts[0]) for chosen in rows])
        share = tokens / tokens.sum().clamp_min(1)
        for name in ("aux_loss", "router_z_loss", "expert_load"):
            merged[name] = sum(weight * part[name] for weight, part in zip(share, parts, strict=True))
    return FrankensteinModelOutput(**merged)


def _of_rows(inputs: dict, chosen: torch.Tensor) -> dict:
    """The inputs of the chosen rows; what has one row for all of them stays as it is."""
    return {
        name: value[chosen] if name in ROWS and value is not None and len(value) > 1 else value
        for name, value in inputs.items()
    } | {"return_dict": True}


def _real_tokens(inputs: dict, chosen: torch.Tensor, part: FrankensteinModelOutput) -> torch.Tensor:
    mask = inputs.get("attention_mask")
    if mask is not None:
        return mask[chosen].bool().sum()
    return torch.tensor(len(chosen) * part.last_hidden_state.shape[1], device=chosen.device)


def those_before(
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    borders: dict,
) -> torch.Tensor:
    """Return (B, L, D): at each position the hidden state of the last real token before it in its document.

    Before the first token of a document there is none: it gets zeros, of which the head makes its bias, the
    distribution of tokens whatever stands around them.
    """
    before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
    if attention_mask is not None:  # pads stand between a token and the one before it
        mask = attention_mask[:, -hidden.shape[1] :].bool()
        places = torch.arange(hidden.shape[1], device=hidden.device)
        # (B, L), where in `before` the last real token up to the place before is; 0, where its zeros are, without one
        last = torch.where(mask, places + 1, 0).cummax(1).values.roll(1, 1).index_fill(1, places[:1], 0)
        before = before.gather(1, last[..., None].expand_as(before))
    starts = documents_begin(hidden.shape[:2], attention_mask, position_ids, borders)
    return before if starts is None else before.masked_fill(starts[..., None], 0.0)
