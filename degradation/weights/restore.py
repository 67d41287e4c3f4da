"""The undamaged weights of a group: kept, damaged from, and put back bit for bit.

    with Baseline(model, "attn_only") as baseline:
        lesion = apply_damage(baseline, "mult_gauss", 0.3, seed=42, repeat_index=0)

Damage is always computed from the saved values, never from what is in the model, so it does not add up. Weights are
written in place: tied weights and hooks stay valid, addresses do not change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from frankenlm.trainer_ext.common.checks import check_choice

from ..configs import TARGETED, level_key
from ..damage import lesion_sums as lesions
from ..damage.blocks import compare_rows, for_each
from ..damage.chosen import Chosen
from ..damage.layout import Layout
from ..damage.methods import DEFAULTS, Level, MethodOptions, check_request, is_baseline
from ..damage.noise import Key, field_key
from ..damage.quant4 import QUANT_TARGET_MODES, check_requantise, is_4bit, make_dense
from ..offloaded import is_offloaded, take_over
from .checkpoint_map import CheckpointMap, checkpoint_folder
from .groups import select_group
from .parameter_index import unwrap
from .targets import Group, Target
from .tied import other_names, untie
from .undamaged import Saved, SavedPacked, keep_in_memory, keep_on_device

RESTORE_STRATEGIES = ("subset_in_memory", "subset_on_device", "mmap_checkpoint")


class Baseline:
    """The undamaged weights of one group of a model; as a context manager it puts them back at the end.

    Args:
        model: on its device, in its type; neither may change until `close`.
        group: name of a group, or a selected one.
        strategy: subset_in_memory: a copy in main memory; subset_on_device: a copy beside each weight;
            mmap_checkpoint: maps of the files the model was loaded from (`checkpoint`: their folder, if the model does
            not know it).
        tied_policy, norm_gain: of `groups.select_group`; tied embeddings are untied until `close` where it asks so.
        quant_target_mode: what is done about 4-bit weights; see `quant4`.
        threads: for damage on the CPU; default torch.get_num_threads().
    Raises:
        ValueError: the group does not fit the model, or its weights cannot be kept or damaged in that way.
    """

    def __init__(
        self,
        model: nn.Module,
        group: str | Group,
        *,
        strategy: str = "subset_in_memory",
        tied_policy: str = "both",
        quant_target_mode: str = "dense_target",
        norm_gain: bool = True,
        checkpoint: str | Path | None = None,
        threads: int | None = None,
    ):
        check_choice("restore_strategy", strategy, RESTORE_STRATEGIES)
        check_choice("quant_target_mode", quant_target_mode, QUANT_TARGET_MODES)
        if isinstance(group, str):
            group = select_group(model, group, tied_policy=tied_policy, norm_gain=norm_gain)
        self.group, self.threads, self.saved = group, threads, []
        self._undo: list[Callable[[], None]] = []
        try:
            self._save(unwrap(model), strategy, quant_target_mode, checkpoint)
        except BaseException:
            self.close()
            raise

    def _save(self, model: nn.Module, strategy: str, mode: str, checkpoint: str | Path | None) -> None:
        away = [target.name for target in self.targets if is_offloaded(model, target.name)]
        if away and self.group.needs_untie:
            raise ValueError(f"tied_policy: {away[0]} is offloaded and cannot be untied; use tied_policy='both'.")
        if away:
            self._undo.append(take_over(model, away, other_names(model, away)))
        if self.group.needs_untie:
            self._undo.append(untie(model))
        packed = [target for target in self.targets if is_packed(target)]
        if packed and mode == "dense_original":
            raise ValueError(
                f"quant_target_mode='dense_original': {packed[0].name} was loaded in 4 bits; load the model with the "
                "targeted layers left out of quantisation (skip_modules)."
            )
        if packed and mode == "dense_target":
            self._undo.append(make_dense(model, {target.name.rpartition(".")[0] for target in packed}))
            packed = []
        keep = self._keeper(model, strategy, checkpoint)
        names = {target.name for target in packed}
        for target in self.targets:
            self.saved.append(SavedPacked(target) if target.name in names else Saved(target, keep))

    def _keeper(self, model, strategy, checkpoint) -> Callable[[Target, Layout], torch.Tensor]:
        if strategy == "subset_in_memory":
            return keep_in_memory(self.targets)
        if strategy == "subset_on_device":
            return keep_on_device
        files = CheckpointMap(Path(checkpoint) if checkpoint else checkpoint_folder(model))
        return lambda target, layout: layout.rows_of(files.get(target.canonical, target.parameter))

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.group.targets

    @property
    def numel(self) -> int:
        return self.group.numel

    @property
    def damaged(self) -> bool:
        """Whether the model may hold damaged weights now."""
        return any(saved.dirty for saved in self.saved)

    def restore(self) -> None:
        """Put the undamaged weights back, bit for bit and in place; what nothing has touched is left alone."""
        for saved in self.saved:
            if saved.dirty:
                saved.restore()

    def verify(self) -> None:
        """Check that the saved values, and weights that are not damaged now, have the bits they had at first (CRC-32).

        Raises:
            RuntimeError: they have not; the message names the weight.
        """
        for_each(lambda saved: saved.verify(), self.saved, self.threads)

    def close(self) -> None:
        """Restore, take back what was done to the model's layers, and let go of the saved values."""
        try:
            self.restore()
        finally:
            self.saved.clear()
            while self._undo:
                self._undo.pop()()
            if torch.cuda.is_available() and hasattr(torch.accelerator, "empty_host_cache"):  # from torch 2.12 on
                torch.accelerator.empty_host_cache()  # pinned blocks are kept for later else

    def __enter__(self) -> "Baseline":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def is_packed(target: Target) -> bool:
    """Whether the target is the packed weight of a 4-bit layer (its bias is dense)."""
    return target.attribute == "weight" and is_4bit(target.module)


@torch.no_grad()
def apply_damage(
    baseline: Baseline,
    method: str,
    level: Level,
    seed: int,
    repeat_index: int,
    *,
    level_index: int | None = None,
    options: MethodOptions = DEFAULTS,
    chosen: Mapping[str, Chosen] | None = None,
) -> dict:
    """Write the damaged weights of a cell into the model and return the lesion record.

    Args:
        method, level: see `methods`; at the level of the baseline the weights are restored.
        seed: seed_base of the experiment. level_index: only for the record.
        chosen: the units that a method of TARGETED removes, by the label of each target; see `targeting/choosing.py`.
    Returns:
        group, method, level_value, level_index, repeat_index, seed (seed + repeat_index), elements, the numbers of
        `lesions` for the whole group, and `tensors`: name, elements and these numbers for each target; after ablation
        also `extremes_dropped`, which of its largest magnitudes were dropped (1: the largest).
    Raises:
        ValueError: the method or level is unknown, or a weight holds what it cannot work on; nothing is written then.
    """
    undamaged = is_baseline(method, level)
    if undamaged:
        baseline.restore()
        parts = [_undamaged_part(saved) for saved in baseline.saved]
    else:
        check_damage(baseline, method, level, options)
        if (method in TARGETED) != (chosen is not None):
            raise ValueError(f"method {method!r} {'needs' if chosen is None else 'takes no'} chosen units.")
        draws = draws_of(baseline, method, level, seed, repeat_index, options, chosen)
        parts = _damage_all(baseline, method, level, options, draws)
    tensors = []
    for saved, (sums, levels, more) in zip(baseline.saved, parts, strict=True):
        numbers = lesions.describe(sums, levels)
        tensors.append({"name": saved.target.label, "elements": saved.layout.numel, **numbers, **more})
    return {
        "group": baseline.group.name,
        "method": method,
        "level_value": level,
        "level_index": level_index,
        "repeat_index": repeat_index,
        "seed": seed + repeat_index,
        "elements": baseline.numel,
        **lesions.total([sums for sums, _, _ in parts], [levels for _, levels, _ in parts]),
        "tensors": tensors,
    }


def check_damage(baseline: Baseline, method: str, level: Level, options: MethodOptions = DEFAULTS) -> None:
    """Raise ValueError if a weight holds what the method cannot work on; nothing is written."""
    for saved in baseline.saved:
        if isinstance(saved, SavedPacked):
            check_requantise(method, level, options.force_requantise)
        check_request(method, options, saved.layout, saved.summary)


@dataclass(frozen=True)
class Draws:
    """What the damage of one target depends on besides its values: its field of noise, with legacy_rng torch's
    generator, or of a method of TARGETED the units that are removed."""

    key: Key = (0, 0)
    generator: torch.Generator | None = None
    chosen: Chosen | None = None


def draws_of(
    baseline: Baseline,
    method: str,
    level: float,
    seed: int,
    repeat_index: int,
    options: MethodOptions,
    chosen: Mapping[str, Chosen] | None,
) -> Iterator[tuple[Saved | SavedPacked, Draws]]:
    """Yield each kept target with its draws in a cell; a generator goes on from one target to the next."""
    generators: dict[torch.device, torch.Generator] = {}
    own_level = level_key(level) if options.noise_coupling == "independent" else None
    for saved in baseline.saved:
        if chosen is not None:
            yield saved, Draws(chosen=chosen[saved.target.label])
        elif options.legacy_rng:
            device = saved.target.parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed + repeat_index)
            yield saved, Draws(generator=generators[device])
        else:
            yield saved, Draws(field_key(seed, repeat_index, method, saved.target.canonical, own_level))


def distance(baseline: Baseline) -> float | None:
    """Return how far the weights in the model are from the undamaged ones now, relative L2; None if not finite."""
    sums = [compare_rows(saved.rows, saved.live, saved.layout, threads=baseline.threads) for saved in baseline.saved]
    return lesions.total(sums, [None] * len(sums))["rel_l2"]


def _damage_all(baseline: Baseline, method: str, level: float, options: MethodOptions, draws: Iterable) -> list[tuple]:
    parts = []
    for saved, drawn in draws:
        if drawn.generator is not None:
            sums, levels = saved.damage_legacy(method, level, drawn.generator, baseline.threads)
        elif drawn.chosen is not None:
            sums, levels = saved.damage(method, level, options, drawn.key, baseline.threads, drawn.chosen)
        else:
            sums, levels = saved.damage(method, level, options, drawn.key, baseline.threads)
        more = {"extremes_dropped": saved.dropped_extremes()} if method == "ablation" else {}
        parts.append((sums, levels, more))
    return parts


def _undamaged_part(saved) -> tuple:
    sums = np.zeros(len(lesions.SUMS))
    before = 1.0  # any norm: before and after are the same
    sums[lesions.SUMS.index("count")] = saved.layout.numel
    sums[lesions.SUMS.index("zero")] = saved.zeros()
    for name in ("before", "product", "after"):
        sums[lesions.SUMS.index(name)] = before
    return sums, None, {}
