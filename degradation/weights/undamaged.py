"""The undamaged values of one target, and how damage gets from them into the model: `Saved` and `SavedPacked`."""

import zlib
from collections.abc import Callable

import numpy as np
import torch

from ..damage.blocks import compare_rows, damage_rows
from ..damage.chosen import Chosen
from ..damage.layout import Layout
from ..damage.methods import MethodOptions, TensorRequest, legacy_damage, prepare
from ..damage.noise import Key
from ..damage.quant4 import check_blocks, dequantise, packed_crc, put_packed, requantised
from ..damage.rounding import check_dtype
from ..damage.tensor_summary import Summary
from .memory import host_memory
from .targets import Target

CRC_PIECE = 1 << 22


def layout_of(target: Target) -> Layout:
    """Return where the elements of a target lie."""
    fields = {
        "transposed": target.transposed,
        "head_dim": target.head_dim,
        "head_axis": target.head_axis,
        "gain_offset": target.gain_offset,
    }
    part = target.slice
    if part is None:
        return Layout.whole(target.shape, **fields)
    return Layout.sliced(target.shape, part.view_shape, part.dim, part.start, part.length, **fields)


def crc_of(rows: torch.Tensor, layout: Layout) -> int:
    """Return the CRC-32 of the bytes of a layout's elements [outer, length], on any device, any strides."""
    crc = 0
    for piece in layout.pieces(CRC_PIECE):
        part = piece.of(rows).cpu().contiguous().view(torch.uint8)
        crc = zlib.crc32(part.numpy(), crc)
    return crc


class Saved:
    """A dense target: the rows [outer, length] of its undamaged elements, kept as the strategy says."""

    def __init__(self, target: Target, keep: Callable[[Target, Layout], torch.Tensor]):
        self.target, self.layout = target, layout_of(target)
        self._check(target)
        self.pointer = target.parameter.data_ptr()
        self.rows = keep(target, self.layout)
        self.summary = Summary(target.label, self.rows, self.layout)
        self.crc = crc_of(self.rows, self.layout)
        self.dirty = False

    @staticmethod
    def _check(target: Target) -> None:
        parameter = target.parameter
        check_dtype(target.name, parameter.dtype)
        if parameter.device.type == "meta":
            raise ValueError(f"{target.name} is not in memory (offloaded): load the model without offloading.")
        if not parameter.is_contiguous():
            raise ValueError(f"{target.name} is not contiguous in memory: load the model afresh.")

    @property
    def live(self) -> torch.Tensor:
        """The elements in the model, [outer, length], a view."""
        parameter = self.target.parameter
        if parameter.data_ptr() != self.pointer:
            raise RuntimeError(
                f"{self.target.name} has moved in memory since its values were saved: make the Baseline after the "
                "model has its final device and type."
            )
        return self.layout.rows_of(parameter)

    def restore(self) -> None:
        """Copy the undamaged bits back in place."""
        self.live.copy_(self.rows)
        self.dirty = False

    def zeros(self) -> int:
        """Return how many undamaged elements (gains, where damage acts on these) are zero."""
        return int(torch.count_nonzero(self.rows == -self.layout.gain_offset))

    def damage(
        self,
        method: str,
        level: float,
        options: MethodOptions,
        key: Key,
        threads: int | None,
        chosen: Chosen | None = None,
    ):
        """Write the damaged elements; return (sums of `lesion_sums.SUMS`, occupied levels or None)."""
        live = self.live
        request = TensorRequest(level, options, key, self.layout, live.dtype, self.summary, chosen)
        damage, words = prepare(method, request)
        self.dirty = True
        if damage is None:
            live.copy_(self.rows)
            return compare_rows(self.rows, live, self.layout, threads=threads), 1
        return damage_rows(self.rows, live, self.layout, damage, words, threads=threads), damage.occupied()

    def damage_legacy(self, method: str, level: float, generator: torch.Generator, threads: int | None):
        """Write elements damaged with a generator's draws; return as `damage` does."""
        live = self.live
        self.dirty = True
        live.copy_(legacy_damage(self.rows.to(live.device), method, level, generator))
        return compare_rows(self.rows, live, self.layout, threads=threads), None

    def dropped_extremes(self) -> list[int]:
        """Return which of the largest magnitudes are zero now, by rank; 1 is the largest."""
        return _zero_ranks(self.live, self.summary)

    def verify(self) -> None:
        """Raise RuntimeError if the saved values have changed, or the model's though nothing has damaged them."""
        if crc_of(self.rows, self.layout) != self.crc:
            raise RuntimeError(f"the saved values of {self.target.name} have changed: the model cannot be restored.")
        if not self.dirty and crc_of(self.live, self.layout) != self.crc:
            raise RuntimeError(f"{self.target.name} has changed though nothing has damaged it: load the model afresh.")


class SavedPacked:
    """A 4-bit target of mode requantise: its packed parameter, which leaves the model while that is damaged.

    Raises:
        ValueError: the target is a part of a fused weight, whose other parts would be requantised with it, or its
            rows do not consist of whole blocks.
    """

    def __init__(self, target: Target):
        if target.slice is not None:
            raise ValueError(
                f"quant_target_mode='requantise': {target.label} is a part of a fused weight, and the rest of it would "
                "change too; use quant_target_mode='dense_target'."
            )
        self.target, self.layout = target, layout_of(target)
        self.weight = target.parameter
        self.crc = packed_crc(self.weight)
        self.dirty = False
        check_blocks(target.name, self.weight)
        dequantise(self.weight)  # fails now if it can fail

    @property
    def rows(self) -> torch.Tensor:
        """The undamaged dequantised values, [1, numel], made afresh."""
        return dequantise(self.weight).view(1, -1)

    @property
    def live(self) -> torch.Tensor:
        """The values the model computes with now, [1, numel], a copy."""
        return dequantise(self.target.parameter).view(1, -1)

    @property
    def summary(self) -> Summary:
        return Summary(self.target.label, self.rows, self.layout)

    def restore(self) -> None:
        """Put the packed parameter back."""
        put_packed(self.target.module, self.weight)
        self.dirty = False

    def zeros(self) -> int:
        """Return how many undamaged elements are zero."""
        return self.layout.numel - int(torch.count_nonzero(self.rows))

    def damage(self, method: str, level: float, options: MethodOptions, key: Key, threads: int | None):
        """Put a requantised damaged parameter in; return as `Saved.damage` does, requantisation included."""
        before = self.rows
        summary = Summary(self.target.label, before, self.layout)
        damage, words = prepare(method, TensorRequest(level, options, key, self.layout, before.dtype, summary))
        after = before.clone()
        if damage is not None:
            damage_rows(before, after, self.layout, damage, words, threads=threads)
        return self._put(before, after, threads), damage.occupied() if damage else 1

    def damage_legacy(self, method: str, level: float, generator: torch.Generator, threads: int | None):
        """The same with a generator's draws."""
        before = self.rows
        return self._put(before, legacy_damage(before, method, level, generator), threads), None

    def _put(self, before: torch.Tensor, after: torch.Tensor, threads: int | None) -> np.ndarray:
        self.dirty = True
        module = self.target.module
        put_packed(module, requantised(module, after.view(self.layout.shape)))
        return compare_rows(before, self.live, self.layout, threads=threads)

    def dropped_extremes(self) -> list[int]:
        """As `Saved.dropped_extremes`."""
        return _zero_ranks(self.live, self.summary)

    def verify(self) -> None:
        """Raise RuntimeError if the packed parameter has changed."""
        if packed_crc(self.weight) != self.crc:
            raise RuntimeError(f"the packed values of {self.target.name} have changed: load the model afresh.")


def _zero_ranks(rows: torch.Tensor, summary: Summary) -> list[int]:
    row, column = (torch.from_numpy(places).to(rows.device) for places in summary.extremes)
    zero = rows[row, column] == -summary.layout.gain_offset
    return [rank for rank, gone in enumerate(zero.tolist(), start=1) if gone]


def keep_in_memory(targets: tuple[Target, ...]) -> Callable[[Target, Layout], torch.Tensor]:
    """Return what copies to main memory; pinned for CUDA devices if all of it fits half of what is free."""
    # torch rounds every pinned block up to a power of two
    size = sum(1 << (target.numel * target.parameter.element_size() - 1).bit_length() for target in targets)
    pin = torch.cuda.is_available() and size < host_memory().available / 2

    def keep(target: Target, layout: Layout) -> torch.Tensor:
        live = layout.rows_of(target.parameter)
        return torch.empty(live.shape, dtype=live.dtype, pin_memory=pin and live.is_cuda).copy_(live)

    return keep


def keep_on_device(target: Target, layout: Layout) -> torch.Tensor:
    """Return a copy beside the parameter."""
    return layout.rows_of(target.parameter).clone(memory_format=torch.contiguous_format)
