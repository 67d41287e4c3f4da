"""What a converter sees of a checkpoint: tensors under the model's names, read a few rows at a time.

Nothing is kept mapped or loaded: a checkpoint may be larger than the memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ..common.opening import where_it_ends
from .ternary_values import NotTernaryError, TernaryLook, TernaryWeight, rows_at_once


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, the format it is stored in ("BF16", "TQ2_0") and its size there."""

    shape: tuple[int, ...]
    stored: str
    nbytes: int


class TensorStore(Protocol):
    """The tensors of a checkpoint.

    Attributes:
        tensors: name -> what is stored.
    """

    tensors: Mapping[str, StoredTensor]

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Return some rows of a matrix."""


class SafetensorsStore:
    """The tensors of safetensors files, shards or not.

    Raises:
        ValueError: a file that is cut short or no safetensors file; its name is in the message.
    """

    def __init__(self, files: list[Path]):
        self.tensors: dict[str, StoredTensor] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            with _opened(file) as content:
                for name in content.keys():  # noqa: SIM118  not a mapping
                    part = content.get_slice(name)
                    shape = tuple(part.get_shape())
                    self.tensors[name] = StoredTensor(shape, part.get_dtype(), _bytes(part.get_dtype(), shape))
                    self._files[name] = file

    def read(self, name: str) -> torch.Tensor:
        """As in TensorStore; a copy, so that the file does not stay mapped."""
        with _opened(self._files[name]) as content:
            return content.get_tensor(name).clone()

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in TensorStore."""
        with _opened(self._files[name]) as content:
            return content.get_slice(name)[first:last].clone()


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"damaged or cut short: {where_it_ends(file)} ({error}). Copy or download it again."
        ) from error


def _bytes(stored: str, shape: tuple[int, ...]) -> int:
    """Size of a tensor whose format ends in its bits, as all names of safetensors' formats do but a few."""
    bits = {"BOOL": 8}.get(stored) or int("".join(filter(str.isdigit, stored.partition("_")[0])))
    return bits * torch.Size(shape).numel() // 8


class RenamedStore:
    """A store seen under other names, those of the model.

    Args:
        names: name in the model -> name in the store.
    """

    def __init__(self, store: TensorStore, names: Mapping[str, str]):
        self._store, self._names = store, names
        self.tensors = {name: store.tensors[stored] for name, stored in names.items()}

    def read(self, name: str) -> torch.Tensor:
        """As in TensorStore."""
        return self._store.read(self._names[name])

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in TensorStore."""
        return self._store.rows(self._names[name], first, last)


def parts(store: TensorStore, name: str) -> Iterator[torch.Tensor]:
    """Yield a tensor in order, a matrix a few rows at a time and anything else whole."""
    shape = store.tensors[name].shape
    if len(shape) != 2:
        yield store.read(name)
        return
    step = rows_at_once(shape[1])
    for first in range(0, shape[0], step):
        yield store.rows(name, first, min(first + step, shape[0]))


def look_at(store: TensorStore, name: str) -> TernaryWeight:
    """Return a matrix as its ternary codes and scales.

    Raises:
        NotTernaryError, ValueError: as `TernaryLook.add`; the message begins with the tensor's name and format.
    """
    stored = store.tensors[name]
    look = TernaryLook(*stored.shape)
    try:
        for values in parts(store, name):
            look.add(values)
    except ValueError as error:
        kind = NotTernaryError if isinstance(error, NotTernaryError) else ValueError
        raise kind(f"{name} ({stored.stored}) {error}") from error
    return look.found()
