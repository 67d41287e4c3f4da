"""The units of a group: heads, neurons, experts, rows, columns or elements, numbered over all its targets.

A head, a neuron or an expert is one unit in all tensors of its layer that belong to the group: neuron 7 is a row of
the gate, one of the up and a column of the down projection.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from ..damage.layout import Layout
from .experts import EXPERTS
from .targets import Group, Target
from .undamaged import layout_of

JOINT = ("head", "neuron", "expert")
NEURONS = {"mlp_gate": "row", "mlp_up": "row", "mlp_down": "column"}


@dataclass(frozen=True, eq=False)
class UnitsOfTarget:
    """The units of one target. kind: of `Layout.unit_of`, or element. first: number of its first one in the group."""

    target: Target
    layout: Layout
    kind: str
    first: int

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """The sorted numbers of its units in the whole tensor; None for elements."""
        if self.kind == "element":
            return None
        found = [np.unique(self.layout.numbers(self.kind, piece)) for piece in self.layout.pieces()]
        return np.unique(np.concatenate(found))

    @property
    def count(self) -> int:
        return self.layout.numel if self.numbers is None else len(self.numbers)

    @property
    def slots(self) -> slice:
        """The places of its units among those of the group."""
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True)
class UnitPlace:
    """Units that stand side by side, as the heads of a layer: which they are, and which layer's.

    numbers: of the experts of a layer, where a group lists only some (`mlp_experts#0,3`); empty: all, from 0 on.
    """

    name: str
    layer: int | None
    first: int
    count: int
    numbers: tuple[int, ...] = ()

    @property
    def slots(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True, eq=False)
class UnitTable:
    """All units of a group. targets: what each target has of them. places: side by side, in the model's order."""

    kind: str
    targets: tuple[UnitsOfTarget, ...]
    places: tuple[UnitPlace, ...]

    @property
    def count(self) -> int:
        return sum(place.count for place in self.places)

    def name(self, number: int) -> str:
        """Return what a unit is called: `text/layers.3 head 2`."""
        place = next(place for place in self.places if number < place.first + place.count)
        inside = number - place.first
        return f"{place.name} {self.kind} {place.numbers[inside] if place.numbers else inside}"


def find_units(group: Group, kind: str) -> UnitTable:
    """Return the units of a group.

    Raises:
        ValueError: the group has none of that kind, or its tensors have different numbers of them.
    """
    together: dict[str, list[Target]] = {}
    for target in group.targets:
        together.setdefault(_place_of(target, kind), []).append(target)
    targets, places, end = [], [], 0
    for name, sharing in _apart(together, kind):
        found = (UnitsOfTarget(target, layout_of(target), _kind_in(target, kind), 0) for target in sharing)
        members = [(own, own.count) for own in found]
        # experts in tensors of their own: each adds one to the units of its layer
        listed = sorted({own.target.expert for own, _ in members if kind == "expert"} - {None})
        sizes = {count for _, count in members}
        if len(sizes) > 1:
            raise ValueError(
                f"unit={kind!r}: the tensors of {name} have different numbers of them, {sorted(sizes)}: choose a group "
                "in which they are the same, such as attn_o or mlp_down."
            )
        count = len(listed) or sizes.pop()
        places.append(UnitPlace(name, members[0][0].target.layer, end, count, tuple(listed)))
        for own, _ in members:
            first = end + (listed.index(own.target.expert) if listed else 0)
            targets.append(UnitsOfTarget(own.target, own.layout, own.kind, first))
        end += count
    return UnitTable(kind, tuple(targets), tuple(places))


def carried(table: UnitTable, place: UnitPlace) -> UnitsOfTarget:
    """Return the target at which a place's units are watched: where they flow together, if it is in the group."""
    members = [own for own in table.targets if own.first == place.first]
    inward = [own for own in members if own.kind == "column" or own.target.group == "attn_o"]
    return (inward or members)[0]


def check_watched(target: Target) -> None:
    """Raise ValueError for a tensor whose module is no linear layer: what it carries cannot be told apart by units."""
    module = target.module
    if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
        raise ValueError(
            f"{target.label} is no linear layer that could be watched: choose importance='magnitude' or 'gradient', or "
            "for experts 'ablation'."
        )


def _kind_in(target: Target, kind: str) -> str:
    if kind == "head" and target.head_dim is None:
        raise ValueError(
            f"unit='head': no heads are known in {target.name}; choose attn_o, attn_only, attn_q or attn_k."
        )
    if kind == "neuron":
        if target.group not in NEURONS:
            raise ValueError(f"unit='neuron': {target.label} has none; choose mlp_only, mlp_gate, mlp_up or mlp_down.")
        return NEURONS[target.group]
    stack = target.group == EXPERTS and len(target.shape) == 3 and target.slice is None
    if kind == "expert" and target.expert is None and not stack:
        raise ValueError(f"unit='expert': {target.label} is no expert; choose group mlp_experts, without numbers.")
    return kind


def _apart(together: Mapping[str, Sequence[Target]], kind: str) -> Iterator[tuple[str, Sequence[Target]]]:
    """Yield places, those parted in which a part stands twice, as its output projections: these are of two layers.

    Names of modules say which layer a tensor is of only where they are the usual ones; `blocks.first.attn` is not.
    """
    for name, targets in together.items():
        if max(Counter(_part_in(target, kind) for target in targets).values()) == 1:
            yield name, targets
            continue
        paths = [target.canonical.split(".") for target in targets]
        same = len(os.path.commonprefix(paths))
        parts: dict[str, list[Target]] = {}
        for target, path in zip(targets, paths, strict=True):
            parts.setdefault(".".join(path[: same + 1]), []).append(target)
        yield from _apart(parts, kind)


def _part_in(target: Target, kind: str) -> tuple:
    """Return what a tensor is in its place: the part of which there is one for each unit."""
    if kind not in JOINT:
        return (target.label,)
    tail = target.canonical.split(".")[-2:] if kind == "expert" else ()  # up, gate and down are of one group there
    return target.group, target.part, target.expert, *tail


def _place_of(target: Target, kind: str) -> str:
    """Return what units of several tensors share: the layer, and which of its attentions or experts."""
    if kind not in JOINT:
        return target.label
    head, layer, rest = re.match(r"(.*?)(\.\d+|)\.(.*)$", target.canonical).groups()
    inner = [part for part in rest.split(".")[:-1] if part.isdigit() or "expert" in part]
    if kind == "expert":
        inner = [part for part in inner if not part.isdigit()]
    return ".".join((head + layer, *inner))
