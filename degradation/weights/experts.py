"""Experts by number: those of a stack in one tensor (expert, rows, columns), or of a list of layers."""

import dataclasses
import math

from ..layouts.cuts import Slice
from .layer_subsets import listed_numbers
from .targets import Target

EXPERTS = "mlp_experts"


def count_experts(targets: list[Target]) -> int:
    """Return one more than the largest number of an expert in a group; 0 where it has none."""
    counts = [target.shape[0] if target.expert is None else target.expert + 1 for target in targets]
    return max(counts) if all(target.group == EXPERTS for target in targets) else 0


def keep_experts(targets: list[Target], part: str, spec: str) -> list[Target]:
    """Return the experts of some numbers, `0,3` or `0-2`, in every layer that has them.

    Raises:
        ValueError: the group has no experts, or none of a number.
    """
    count = count_experts(targets)
    if not count:
        raise ValueError(f"group {part!r}: only {EXPERTS} has experts by number; leave out '#{spec}'.")
    wanted = sorted(set(listed_numbers(f"experts '#{spec}'", spec, count - 1)))
    if wanted[-1] >= count:
        raise ValueError(f"group {part!r}: the model has no expert {wanted[-1]}; there are experts 0 to {count - 1}.")
    kept = []
    for target in targets:
        if target.expert is None:
            kept += [_one_of(target, number) for number in wanted if number < target.shape[0]]
        elif target.expert in wanted:
            kept.append(target)
    return kept


def _one_of(stack: Target, number: int) -> Target:
    cut = Slice(stack.shape, 0, number, 1)
    return dataclasses.replace(stack, numel=math.prod(stack.shape[1:]), slice=cut, part=f"expert {number}")
