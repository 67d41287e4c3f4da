"""What a memory remembers of each row of text, as tensors with the batch first, of which none is changed in place."""

from collections.abc import Sequence
from typing import Self

import torch


class RowState:
    """What dataclasses of such tensors share: rows are chosen, exchanged, joined, and cut off from their graph."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return dict(self.__dict__)

    def detach(self) -> Self:
        """Return the state cut off from the graph that made it."""
        return self.__class__(**{name: tensor.detach() for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str | int) -> Self:
        """Return the state on a device; accelerate's hooks ask for it, where a model lies on several."""
        return self.__class__(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def select(self, rows: torch.Tensor) -> Self:
        """Return the state of the rows `rows` (N,) int64, in that order; a row may come more than once."""
        return self.__class__(
            **{name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in self.tensors().items()}
        )

    def where(self, rows: torch.Tensor, other: Self) -> Self:
        """Return this state in the rows where `rows` (B,) bool is True, and `other` elsewhere."""
        theirs = other.tensors()
        return self.__class__(
            **{
                name: torch.where(rows.view(-1, *[1] * (tensor.ndim - 1)), tensor, theirs[name])
                for name, tensor in self.tensors().items()
            }
        )

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """Return the rows of all states in one."""
        tensors = [state.tensors() for state in states]
        return cls(**{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})
