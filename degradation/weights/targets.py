"""What a lesion touches: a group of targets, each a parameter of the model or a part of one."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..layouts.cuts import Slice
from ..offloaded import value_of

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter, or a part of it, that a lesion touches.

    Attributes:
        name: in the model. `canonical`: see `canonical_name`; with the flat index it keys the noise.
        root: the model without wrappers. `module` and `parameter` are looked up in it each time, so that replaced
            modules are found.
        shape: of the whole tensor as the layer computes with it, also where it is stored packed in 4 bits.
        numel: elements that are touched.
        slice: the part, None for all; `part` is its name (q, k, v, gate, up).
        group: the group it was found for. `layer`: index of its layer, or None.
        transposed: the weight is stored (inputs, outputs), as in a Conv1D; else (outputs, inputs).
        head_dim: width of an attention head, None where heads are not known; `head_axis`: the axis of `shape` along
            which heads lie, one after the other. The head of an element is its index there // head_dim.
        gain_offset: the layer scales by `parameter + gain_offset`: 1.0 for norms that do so, else 0.0.
    """

    name: str
    canonical: str
    root: nn.Module
    shape: tuple[int, ...]
    numel: int
    slice: Slice | None = None
    part: str | None = None
    group: str = ""
    layer: int | None = None
    transposed: bool = False
    head_dim: int | None = None
    head_axis: int | None = None
    gain_offset: float = 0.0

    @property
    def module(self) -> nn.Module:
        return self.root.get_submodule(self.name.rpartition(".")[0])

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def parameter(self) -> torch.Tensor:
        """The parameter; of one that is offloaded, the values in main memory that it is made of at a call."""
        return value_of(self.root, self.name)

    @property
    def label(self) -> str:
        """The canonical name, with the part in brackets: unique within a group."""
        return self.canonical if self.part is None else f"{self.canonical}[{self.part}]"

    @property
    def expert(self) -> int | None:
        """The number of the expert whose own tensor this is; None for stacks of them, and where there are none."""
        found = _EXPERT.search(self.canonical)
        return int(found[1]) if found else None

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the touched part of a tensor of the whole parameter's `shape`, as a view."""
        if self.slice is None:
            return tensor
        return tensor.view(self.slice.view_shape).narrow(self.slice.dim, self.slice.start, self.slice.length)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (flat start in the whole tensor, length) of each contiguous run of touched elements, ascending."""
        if self.slice is None:
            yield 0, math.prod(self.shape)
        else:
            yield from self.slice.runs()


@dataclass(frozen=True)
class Group:
    """What a lesion touches. `needs_untie`: `untie` has to be called before the weights are changed."""

    name: str
    targets: tuple[Target, ...]
    needs_untie: bool = False

    @property
    def numel(self) -> int:
        return sum(target.numel for target in self.targets)

    @property
    def elements(self) -> dict[str, int]:
        """Elements by the label of each target."""
        return {target.label: target.numel for target in self.targets}

    @property
    def tensors(self) -> int:
        """Number of different parameters."""
        return len({target.name for target in self.targets})
