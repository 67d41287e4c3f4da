"""The elements that the damage of a cell is meant for, and training that leaves them alone."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ..configs import TARGETED
from ..damage.blocks import damage_rows
from ..damage.chosen import Chosen
from ..damage.methods import Level, MethodOptions, TensorRequest, is_baseline, legacy_damage, prepare
from ..weights.restore import Baseline, Draws, draws_of
from ..weights.undamaged import Saved

REMOVING = ("ablation", *TARGETED)  # meant for some elements; the other methods are meant for all


def addressed(
    baseline: Baseline,
    method: str,
    level: Level,
    seed: int,
    repeat_index: int,
    options: MethodOptions,
    chosen: Mapping[str, Chosen] | None = None,
) -> list[torch.Tensor]:
    """Return which elements the damage of a cell is meant for, of each target bool [outer, length].

    Whatever their values: what is zero already is removed all the same. Arguments: see `restore.apply_damage`.
    """
    if is_baseline(method, level):
        return [torch.zeros_like(saved.rows, dtype=torch.bool) for saved in baseline.saved]
    if method not in REMOVING:
        return [torch.ones_like(saved.rows, dtype=torch.bool) for saved in baseline.saved]
    draws = draws_of(baseline, method, level, seed, repeat_index, options, chosen)
    return [_removed(saved, method, level, options, drawn) for saved, drawn in draws]


def _removed(saved: Saved, method: str, level: float, options: MethodOptions, drawn: Draws) -> torch.Tensor:
    """Return what becomes of ones under the same draws: those that are meant are zero then."""
    if drawn.generator is not None:
        return legacy_damage(torch.ones_like(saved.live), method, level, drawn.generator) == 0
    plain = dataclasses.replace(saved.layout, gain_offset=0.0)
    request = TensorRequest(level, options, drawn.key, plain, torch.float32, saved.summary, drawn.chosen)
    ones = torch.ones(saved.rows.shape)
    after = torch.empty_like(ones)
    damage_rows(ones, after, plain, *prepare(method, request))
    return after == 0


@contextmanager
def held(baseline: Baseline, masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Keep elements of a group at the values that they have, while the rest is trained.

    Args:
        masks: which, of each target bool [outer, length].
    """
    handles = []
    for saved, mask in zip(baseline.saved, masks, strict=True):
        if mask.any():
            kept = mask.to(saved.live.device)
            handles.append(saved.target.parameter.register_hook(_without(saved.layout, kept)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(layout, mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone(memory_format=torch.contiguous_format)
        layout.rows_of(kept).masked_fill_(mask, 0)
        return kept

    return hook
