"""How weights are damaged: four methods, each a function of the undamaged tensor, a level and a field of noise.

    mult_gauss  w' = w (1 + s e), s >= 0; e is normal, one number for each element
    add_gauss   w' = w + s rms(W) e
    ablation    w' = 0 where the element's word is below floor(p 2^32), 0 <= p <= 1
    uni_quant   w' = min + k D with D = (max - min) / (N - 1) and k = round((w - min) / D), the last level exactly max;
                whole N >= 2; a constant tensor stays as it is

Arithmetic is in float32 (uni_quant: float64, so that k is exact), every operation rounded by itself, and the result is
rounded once to the weight's type. e and the words come from `noise`: element i of a tensor gets the same in every run,
on every device and in every type. Level 0, for uni_quant also None, is the undamaged tensor.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from frankenlm.trainer_ext.common.checks import check_choice

from ..configs import ALL_METHODS as METHOD_NAMES
from ..configs import METHOD_OPTIONS, TARGETED, ExperimentConfig, check_levels, check_values
from .chosen import Chosen, ChosenDamage
from .layout import Layout
from .noise import Key, gaussian_tables, look_up, look_up_torch
from .rounding import round_once
from .tensor_summary import RANGE_UNITS, Ranges, Summary, value_ranges
from .words import WordSource, exact_limit

Level = float | int | None


_OptionFields = dataclasses.make_dataclass(
    "_OptionFields",
    [
        (each.name, each.type, dataclasses.field(default=each.default, metadata=each.metadata))
        for each in dataclasses.fields(ExperimentConfig)
        if each.name in METHOD_OPTIONS
    ],
    frozen=True,
)


@dataclass(frozen=True)
class MethodOptions(_OptionFields):
    """Variants of the methods: those fields of an experiment, with its defaults, which make the module's head true.

    quant_range: what shares one range (per_tensor, per_row: an output of the layer, group128: 128 inputs of one).
    quant_symmetric: a range symmetric about zero. quant_percentile: clip the weights to this percentile of |w| first.
    unit: what shares one draw (element, row: an output, column: an input, head). exact_count: drop exactly
    round(p n), those with the lowest words. noise_coupling: see `noise.field_key`. legacy_rng: draw as
    alewain/llm-degrad does, from torch's generator in the weight's own type; only to compare with it.
    force_requantise: allow damage smaller than what 4-bit requantisation itself does.
    """

    def __post_init__(self):
        check_values(self)
        if self.legacy_rng and (self.unit != "element" or self.exact_count):
            raise ValueError("legacy_rng=True draws single elements only: leave unit and exact_count as they are.")

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> "MethodOptions":
        """Return the options that an experiment's configuration holds."""
        return cls(**{name: getattr(config, name) for name in METHOD_OPTIONS})


DEFAULTS = MethodOptions()


def is_baseline(method: str, level: Level) -> bool:
    """Whether the level means the undamaged tensor.

    Raises:
        ValueError: the method is unknown, or the level none of its levels.
    """
    check_choice("method", method, METHOD_NAMES)
    check_levels(method, (level,))
    return level is None or level == 0


@dataclass(frozen=True)
class TensorRequest:
    """What a method needs to know of one tensor: level above the baseline, options, field, layout, type, summary.

    chosen: the units that a method of TARGETED removes.
    """

    level: float | int
    options: MethodOptions
    key: Key
    layout: Layout
    dtype: torch.dtype
    summary: Summary
    chosen: Chosen | None = None

    @property
    def gain(self) -> bool:
        return self.layout.gain_offset != 0


class TableDamage:
    """Gaussian methods: a factor or a summand for each word, from a table made once per tensor."""

    draws = on_device = True

    def __init__(self, tables: tuple[np.ndarray, ...], operation: str):
        self.tables = tables
        self.operation = getattr(np, operation)
        self.operation_torch = getattr(torch, operation)

    def apply(self, values: np.ndarray, drawn: np.ndarray, piece, out: np.ndarray) -> None:
        """Write the damaged values to `out`; float32 or float64 [count], drawn: uint32 [count]."""
        looked_up = out if out.dtype == np.float32 else np.empty(len(out), dtype=np.float32)
        look_up(drawn, *self.tables, looked_up)
        self.operation(values, looked_up, out=out)

    def apply_torch(self, values: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the damaged values, float32 [count]; drawn: int64 [count]."""
        tables = (torch.from_numpy(table.copy()).to(values.device) for table in self.tables)
        return self.operation_torch(values, look_up_torch(drawn, *tables))

    def occupied(self) -> int | None:
        return None


class DropDamage:
    """Ablation: elements whose word is below the threshold are zero; of those equal to it, the first ones too."""

    draws = True

    def __init__(self, threshold: int, last_equal: int = -1, unit_of=None):
        self.threshold, self.last_equal, self.unit_of = threshold, last_equal, unit_of
        self.on_device = last_equal < 0

    def apply(self, values: np.ndarray, drawn: np.ndarray, piece, out: np.ndarray) -> None:
        """Write the damaged values to `out`; float32 or float64 [count], drawn: uint32 [count]."""
        # bits times 0 or 1: exact for every value, and quicker than a write that depends on a random mask
        bits = np.uint32 if values.dtype == np.float32 else np.uint64
        np.multiply(values.view(bits), self.kept(drawn, piece).view(np.uint8), out=out.view(bits))

    def kept(self, drawn: np.ndarray, piece) -> np.ndarray:
        """Return which elements stay, bool [count]."""
        if self.threshold > 0xFFFFFFFF:
            return np.zeros(len(drawn), dtype=bool)
        kept = drawn >= np.uint32(self.threshold)
        if self.last_equal >= 0:
            kept &= (drawn != np.uint32(self.threshold)) | (self.unit_of(piece) > self.last_equal)
        return kept

    def apply_torch(self, values: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the damaged values, float32 [count]; drawn: int64 [count]."""
        return values.masked_fill(drawn < self.threshold, 0)

    def occupied(self) -> int | None:
        return None


class QuantDamage:
    """Uniform levels between the ends of a range; one range for the tensor, or one for each unit."""

    draws = False

    def __init__(self, ranges: Ranges, count: int, dtype: torch.dtype | None, unit_of=None):
        self.ranges, self.count, self.dtype, self.unit_of = ranges, count, dtype, unit_of
        self.on_device = unit_of is None
        self.steps = (ranges.high - ranges.low) / (count - 1)
        self.seen = np.zeros(count, dtype=bool)
        self.table = self._rounded(self._level(np.arange(count), 0)) if unit_of is None else None

    def _level(self, index: np.ndarray, unit) -> np.ndarray:
        """Return the values of levels in the ranges of `unit`, float64."""
        inner = self.ranges.low[unit] + index * self.steps[unit]
        return np.where(index == self.count - 1, self.ranges.high[unit], inner)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype is None else round_once(values, self.dtype)

    def apply(self, values: np.ndarray, drawn: None, piece, out: np.ndarray) -> None:
        """Write the damaged values to `out`; float32 or float64 [count]."""
        unit = 0 if self.unit_of is None else self.unit_of(piece)
        steps, low = self.steps[unit], self.ranges.low[unit]
        index = np.subtract(values, low, dtype=np.float64)
        np.divide(index, np.where(steps > 0, steps, 1), out=index)
        np.rint(index, out=index)
        np.clip(index, 0, self.count - 1, out=index)
        index = index.astype(np.intp)
        self.seen[index] = True
        if self.table is not None:
            np.take(self.table, index, out=out, mode="clip")
            return
        np.copyto(out, self._rounded(self._level(index, unit)))
        np.copyto(out, values, where=(steps == 0) & (values == low))  # the bits of a constant unit, -0 too

    def apply_torch(self, values: torch.Tensor, drawn: None) -> torch.Tensor:
        """Return the damaged values, float32 [count]; one range for the tensor only."""
        # by a tensor: CUDA turns a division by a number into a product with its reciprocal, which rounds otherwise
        step = torch.tensor(float(self.steps[0]), dtype=torch.float64, device=values.device)
        index = torch.round((values.double() - float(self.ranges.low[0])) / step)
        index = index.clamp_(0, self.count - 1).long()
        self.seen[torch.unique(index).cpu().numpy()] = True
        return torch.from_numpy(self.table).to(values.device)[index]

    def occupied(self) -> int | None:
        return int(np.count_nonzero(self.seen)) if self.table is not None else None


def mult_gauss(request: TensorRequest) -> TableDamage:
    """Return the damage w (1 + s e)."""
    level = np.float32(request.level)
    return TableDamage(tuple(np.float32(1) + level * table for table in gaussian_tables()), "multiply")


def add_gauss(request: TensorRequest) -> TableDamage:
    """Return the damage w + s rms(W) e."""
    scale = np.float32(request.level * math.sqrt(request.summary.mean_square))
    return TableDamage(tuple(scale * table for table in gaussian_tables()), "add")


def ablation(request: TensorRequest) -> DropDamage:
    """Return the damage that drops a share of the elements, or of the units."""
    if not request.options.exact_count:
        return DropDamage(math.floor(request.level * 2**32))
    unit = request.options.unit
    threshold, last_equal = exact_limit(WordSource(request.layout, request.key, unit), request.level)
    return DropDamage(threshold, last_equal, lambda piece: request.layout.numbers(unit, piece))


def uni_quant(request: TensorRequest) -> QuantDamage | None:
    """Return the damage of N levels, or None for a constant tensor.

    Raises:
        ValueError: an element is infinite or no number.
    """
    options, dtype = request.options, None if request.gain else request.dtype
    ranges = value_ranges(request.summary, options.quant_range, options.quant_symmetric, options.quant_percentile)
    if (ranges.low == ranges.high).all():
        return None
    if options.quant_range == "per_tensor":
        return QuantDamage(ranges, int(request.level), dtype)
    unit = RANGE_UNITS[options.quant_range]
    return QuantDamage(ranges, int(request.level), dtype, lambda piece: request.layout.numbers(unit, piece))


LEGACY_METHODS = ("mult_gauss", "ablation")
# name -> what makes the damage of one tensor
METHODS = {"mult_gauss": mult_gauss, "ablation": ablation, "uni_quant": uni_quant, "add_gauss": add_gauss}


def check_method(method: str, options: MethodOptions) -> None:
    """Raise ValueError for options that a method does not have, whatever the weights are."""
    if options.unit in ("neuron", "expert") and method not in TARGETED:
        raise ValueError(f"unit={options.unit!r} is known to {' and '.join(TARGETED)} alone, not to {method}.")
    if options.legacy_rng and method not in LEGACY_METHODS:
        raise ValueError(f"legacy_rng=True works with {' and '.join(LEGACY_METHODS)}, not with {method}.")


def check_request(method: str, options: MethodOptions, layout: Layout, summary: Summary) -> None:
    """Raise ValueError if a tensor cannot be damaged in that way, before anything is written."""
    check_method(method, options)
    if options.unit == "head" and method not in TARGETED and METHODS[method] is not uni_quant:
        layout.check_heads()
    if method == "uni_quant":
        _ = summary.ends
    if method == "add_gauss" and not math.isfinite(summary.mean_square):
        raise ValueError(f"{summary.name} holds infinities or NaN, so add_gauss has no scale.")


def prepare(method: str, request: TensorRequest) -> tuple[object | None, WordSource | None]:
    """Return (damage, words) for `blocks.damage_rows`; damage is None where the tensor stays as it is.

    Raises:
        ValueError: the tensor holds what the method cannot work on.
    """
    if request.chosen is not None:
        return ChosenDamage(request.chosen), None
    damage = METHODS[method](request)
    if damage is None or not damage.draws:
        return damage, None
    return damage, WordSource(request.layout, request.key, request.options.unit)


def legacy_damage(tensor: torch.Tensor, method: str, level: float, generator: torch.Generator) -> torch.Tensor:
    """Return the tensor damaged as alewain/llm-degrad does: draws in its own type, on its own device.

    Half-precision draws are coarse and their number depends on what was drawn before: for comparison only.

    Args:
        method: one of LEGACY_METHODS.
    """
    made_of = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    if method == "mult_gauss":
        return tensor * torch.normal(1.0, level, tensor.shape, **made_of)
    return tensor * (torch.rand(tensor.shape, **made_of) > level)
