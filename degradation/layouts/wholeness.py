"""Whether a group made of parts, such as attn_qkvo, has all it promises where a family's layout is guessed."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .usual_names import LISTS

# The parts a composite promises; a gate is not in every feed-forward.
PROMISED = {"attn_qkvo": ("attn_q", "attn_k", "attn_only", "attn_o"), "mlp_only": ("mlp_up", "mlp_down")}
_PLACE = re.compile(rf"text/(?:\w+\.)*?{LISTS}\.(\d+)\.(\w+)")


class Weight(NamedTuple):
    """A parameter by its canonical name; group: what it was found as, empty where no group holds it."""

    canonical: str
    shape: tuple[int, ...]
    group: str = ""


class Missing(NamedTuple):
    """What a composite lacks: parts not found in some layer, and the matrices there that may be them."""

    parts: tuple[str, ...]
    beside: tuple[str, ...]

    def why(self, composite: str, known: Sequence[str]) -> str:
        """Say on one line why the composite is refused, and which groups to name."""
        return (
            f"group {composite!r} would not be whole: {' and '.join(self.parts)} of a layer may lie in "
            f"{self.beside[0]}, which is in no group. Name what is known: {'+'.join(known)}."
        )


def missing_parts(composite: str, members: Iterable[Weight], others: Iterable[Weight]) -> Missing | None:
    """Return what a composite lacks, or None.

    A layer lacks a part where it is not found, though a matrix that no group holds lies in a module of the layer in
    which parts of the composite lie, there or in other layers.
    """
    found: dict[str, set[str]] = {}
    places = set()
    for weight in members:
        if placed := _PLACE.match(weight.canonical):
            found.setdefault(placed[1], set()).add(weight.group)
            places.add(placed[2])
    parts, beside = set(), []
    for weight in others:
        placed = _PLACE.match(weight.canonical)
        if placed is None or placed[2] not in places or not _is_matrix(weight.shape):
            continue
        lacking = set(PROMISED[composite]) - found.get(placed[1], set())
        if lacking:
            parts |= lacking
            beside.append(weight.canonical)
    return Missing(tuple(part for part in PROMISED[composite] if part in parts), tuple(beside)) if parts else None


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether there are two dimensions that are not 1."""
    return len(shape) > 1 and math.prod(shape) > max(shape)
