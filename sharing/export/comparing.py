"""How far a written program is from its model: both run on the same inputs, of other sizes than it was made with."""

from collections.abc import Callable

import torch

from frankenlm.trainer_ext.common.cli import Failed

from .programs import Program

# Of the largest number of an output. Rounding explains about 1e-6; ternary layers round what enters them to 127 levels,
# and a tie that falls the other way is worth more.
TOLERANCE = 1e-3
SIZES = ((3, 11), (1, 1), (2, 24))
LEAST = 1e30  # in magnitude: what stands for minus infinity


def largest_difference(program: Program, run: Callable[..., list[torch.Tensor]]) -> float:
    """Return the largest relative difference between a written program's outputs and the model's.

    Raises:
        Failed: it is larger than TOLERANCE, or a shape is another one.
    """
    longest = min((limit for limit in program.limits.values() if limit is not None), default=None)
    found = 0.0
    for batch, length in SIZES:
        inputs = program.sample(batch, length if longest is None else min(length, longest))
        with torch.no_grad():
            expected = program.module(*(tensor.clone() for tensor in inputs.values()))
        for name, ours, theirs in zip(program.outputs, expected, run(*inputs.values()), strict=True):
            difference = relative_difference(ours, theirs)
            if difference is None or difference > TOLERANCE:
                what = (
                    "another shape, or no number" if difference is None else f"{difference:.1e} of its largest number"
                )
                raise Failed(
                    f"{program.name}: what was written differs from the model in {name} by {what}, for {batch} rows of "
                    f"{length} tokens (at most {TOLERANCE:.0e} is rounding). Nothing was kept."
                )
            found = max(found, difference)
    return found


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float | None:
    """Return the largest difference over the largest number of `ours`; None where shapes differ, or one holds a number
    where the other has none."""
    if ours.shape != theirs.shape:
        return None
    ours, theirs = ours.double(), theirs.double()
    counts = ours.abs() < LEAST
    if not torch.equal(counts, theirs.abs() < LEAST) or not torch.equal(ours[~counts].sign(), theirs[~counts].sign()):
        return None
    if not counts.any():
        return 0.0
    return float((ours[counts] - theirs[counts]).abs().max() / ours[counts].abs().max().clamp_min(1e-6))
