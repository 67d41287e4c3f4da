"""How important the units of a group are for a task: four measures, from the undamaged model.

    magnitude   L2 norm of the unit's weights; of an element |w|
    gradient    |sum of g w| over the unit, with g the gradient of the answer's loss: what removing it changes, to first
                order (Molchanov et al. 2017, arXiv:1611.06440; heads: Michel et al. 2019, arXiv:1905.10650)
    activation  root mean square of what the unit carries: the inputs of columns, heads of the output projection and
                neurons of the down projection, else the outputs; of an element |w| times the norm of its input (Wanda,
                arXiv:2306.11695)
    ablation    by how much the answer's loss rises when what the unit carries is replaced by its mean over all tokens;
                an expert, which has no mean over tokens that it does not see, gets zero weights

A row of scores for each prompt, so that repeats can draw prompts; magnitude and elements have one row for all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..offloaded import is_offloaded
from ..weights.restore import Baseline
from ..weights.undamaged import Saved
from ..weights.units import UnitPlace, UnitsOfTarget, UnitTable, carried, check_watched
from .answered import Answered, answer_loss


def measure_importance(
    model: PreTrainedModel,
    baseline: Baseline,
    table: UnitTable,
    measure: str,
    answered: Sequence[Answered],
    *,
    progress: bool = False,
) -> np.ndarray:
    """Return the scores of all units, float32 [rows, units]: a row for each prompt, or one for all.

    Args:
        baseline: of the group, not damaged. measure: of `configs.IMPORTANCES`. answered: see `answered.py`.
        progress: show a bar, on a terminal.

    Raises:
        ValueError: the measure is not known for these units, or the weights are offloaded.
    """
    if measure == "magnitude":
        return _by_magnitude(baseline, table)
    if measure == "activation":
        return _by_activation(model, baseline, table, answered, progress)
    if measure == "gradient":
        return _by_gradient(model, table, answered, progress)
    return _by_ablation(model, table, answered, progress)


def _by_magnitude(baseline: Baseline, table: UnitTable) -> np.ndarray:
    scores = np.zeros(table.count)
    for own, saved in zip(table.targets, baseline_of(baseline, table), strict=True):
        values = saved.rows.float().cpu() + own.layout.gain_offset  # what the model scales by
        scores[own.slots] += unit_sums(own, values**2)
    return np.sqrt(scores)[None].astype(np.float32)


def baseline_of(baseline: Baseline, table: UnitTable) -> list[Saved]:
    """Return the saved values of each of the table's targets."""
    by_label = {saved.target.label: saved for saved in baseline.saved}
    return [by_label[own.target.label] for own in table.targets]


def unit_sums(own: UnitsOfTarget, rows: torch.Tensor) -> np.ndarray:
    """Return the sum over each unit of a target, float64 [units], of a number for each element, [outer, length]."""
    if own.numbers is None:
        return rows.double().reshape(-1).numpy()
    sums = np.zeros(own.count)
    for piece in own.layout.pieces():
        place = np.searchsorted(own.numbers, own.layout.numbers(own.kind, piece))
        values = piece.of(rows).double().reshape(-1).numpy()
        sums += np.bincount(place, values, minlength=own.count)
    return sums


# --- gradient


def _by_gradient(model: PreTrainedModel, table: UnitTable, answered: Sequence[Answered], progress: bool) -> np.ndarray:
    root = table.targets[0].target.root
    parameters = {own.target.name: own.target.parameter for own in table.targets}
    away = [name for name in parameters if is_offloaded(root, name)]
    if away:
        raise ValueError(f"importance='gradient': {away[0]} is offloaded; choose magnitude, activation or ablation.")
    scores = []
    with _asking_gradients(parameters.values()):
        for each in tqdm(answered, desc="importance", unit="prompt", disable=None if progress else True):
            with torch.enable_grad():
                # of these weights alone; experts that no token of the prompt reaches have none
                found = torch.autograd.grad(answer_loss(model, each), list(parameters.values()), allow_unused=True)
            gradients = dict(zip(parameters, found, strict=True))
            row = np.zeros(table.count)
            for own in table.targets:
                parameter, gradient = own.target.parameter, gradients[own.target.name]
                if gradient is not None:
                    weights = parameter.detach().float() + own.layout.gain_offset
                    product = (gradient.float() * weights).cpu().contiguous()
                    row[own.slots] += unit_sums(own, own.layout.rows_of(product))
            scores.append(np.abs(row))
    found = np.stack(scores)
    return (found.mean(0, keepdims=True) if table.kind == "element" else found).astype(np.float32)


@contextmanager
def _asking_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)


# --- activation


class Carrier:
    """The side of a layer at which a place's units carry numbers: features of its inputs, or of its outputs.

    features: of each unit, where it lies in the last axis, int64 [units, width].
    """

    def __init__(self, own: UnitsOfTarget):
        check_watched(own.target)
        self.module, self.inward = own.target.module, own.kind == "column"
        if own.kind == "head":
            self.inward = (own.target.head_axis == 1) != own.target.transposed
        side = "column" if self.inward else "row"
        pieces = own.layout.pieces()
        pairs = [_pairs(own, side, piece) for piece in pieces]
        numbers, features = np.unique(np.concatenate(pairs, axis=1), axis=1)
        self.features = features.reshape(own.count, -1)

    @contextmanager
    def watched(self, see: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """Show what is carried, [..., features], to `see`, which may return other numbers in its place."""
        if self.inward:
            handle = self.module.register_forward_pre_hook(lambda _, args: _changed(args, see(args[0])))
        else:
            handle = self.module.register_forward_hook(lambda _, args, output: see(output))
        try:
            yield
        finally:
            handle.remove()


def _pairs(own: UnitsOfTarget, side: str, piece) -> np.ndarray:
    """Return (unit, feature) of a piece's elements, each pair once, int64 [2, pairs]."""
    flat = own.layout.flat_index(piece)
    unit = own.layout.unit_of(own.kind, flat)
    return np.unique(np.stack([np.searchsorted(own.numbers, unit), own.layout.unit_of(side, flat)]), axis=1)


def _changed(args: tuple, values: torch.Tensor | None) -> tuple | None:
    return None if values is None else (values, *args[1:])


def _by_activation(
    model: PreTrainedModel, baseline: Baseline, table: UnitTable, answered: Sequence[Answered], progress: bool
) -> np.ndarray:
    if table.kind == "element":
        return _by_input_norm(model, baseline, table, answered, progress)
    carriers = [(place, Carrier(carried(table, place))) for place in table.places]
    found = np.zeros((len(answered), table.count))
    for row, squares in enumerate(_mean_squares(model, [each for _, each in carriers], answered, progress)):
        for (place, carrier), square in zip(carriers, squares, strict=True):
            found[row, place.slots] = np.sqrt(square[carrier.features].mean(1))
    return found.astype(np.float32)


def _by_input_norm(model, baseline, table, answered, progress) -> np.ndarray:
    columns = [UnitsOfTarget(own.target, own.layout, "column", 0) for own in table.targets]
    carriers = [Carrier(own) for own in columns]
    total = np.zeros(table.count)
    for squares in _mean_squares(model, carriers, answered, progress):
        for own, saved, square in zip(table.targets, baseline_of(baseline, table), squares, strict=True):
            weights = saved.rows.float().abs().cpu().reshape(-1).numpy()
            flat = np.concatenate([own.layout.flat_index(piece) for piece in own.layout.pieces()])
            total[own.slots] += weights * np.sqrt(square[own.layout.unit_of("column", flat)])
    return (total / len(answered))[None].astype(np.float32)


@torch.no_grad()
def _mean_squares(
    model: PreTrainedModel, carriers: Sequence[Carrier], answered: Sequence[Answered], progress: bool
) -> Iterator[list[np.ndarray]]:
    """Yield, for each prompt, the mean square over tokens of every feature of each carrier, float64 [features]."""
    for each in tqdm(answered, desc="importance", unit="prompt", disable=None if progress else True):
        sums, counts = _sums(model, carriers, each, lambda values: values**2)
        yield [(square / count).cpu().numpy() for square, count in zip(sums, counts, strict=True)]


def _sums(
    model: PreTrainedModel, carriers: Sequence[Carrier], answered: Answered, of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[torch.Tensor], list[int]]:
    """Return, of each carrier, the sum of a function of what it carries, float64 [features], and over how many rows.

    A row is a token, as often as the layer sees it: layers that are shared or looped run several times in a pass.
    """
    sums: dict[int, torch.Tensor] = {}
    counts = [0] * len(carriers)
    with ExitStack() as stack:
        for place, carrier in enumerate(carriers):

            def add(values: torch.Tensor, place: int = place) -> None:
                rows = of(values.double()).reshape(-1, values.shape[-1])
                sums[place] = sums.get(place, 0) + rows.sum(0)
                counts[place] += len(rows)

            stack.enter_context(carrier.watched(add))
        model(input_ids=answered.ids, use_cache=False)
    return [sums[place] for place in range(len(carriers))], counts


# --- ablation


@torch.no_grad()
def _by_ablation(model: PreTrainedModel, table: UnitTable, answered: Sequence[Answered], progress: bool) -> np.ndarray:
    undamaged = np.array([float(answer_loss(model, each)) for each in answered])
    found = np.zeros((len(answered), table.count))
    remove = _without_expert if table.kind == "expert" else _with_means(model, table, answered)
    bar = tqdm(total=table.count, desc="importance", unit="unit", disable=None if progress else True)
    with bar:
        for place in table.places:
            for number in range(place.first, place.first + place.count):
                with remove(table, place, number):
                    found[:, number] = [float(answer_loss(model, each)) for each in answered]
                bar.update()
    return (found - undamaged[:, None]).astype(np.float32)


def _with_means(model, table: UnitTable, answered: Sequence[Answered]) -> Callable:
    """Return the context in which a unit carries its mean over all tokens of all prompts."""
    carriers = [Carrier(carried(table, place)) for place in table.places]
    found = [_sums(model, carriers, each, lambda values: values) for each in answered]
    totals = [sum(parts) for parts in zip(*(sums for sums, _ in found), strict=True)]
    rows = [sum(parts) for parts in zip(*(counts for _, counts in found), strict=True)]
    means = [total / count for total, count in zip(totals, rows, strict=True)]

    @contextmanager
    def replaced(table: UnitTable, place: UnitPlace, number: int) -> Iterator[None]:
        at = table.places.index(place)
        features = torch.from_numpy(carriers[at].features[number - place.first])
        mean = means[at].cpu()[features]

        def put(values: torch.Tensor) -> torch.Tensor:
            changed = values.clone()
            changed[..., features.to(values.device)] = mean.to(values.device, values.dtype)
            return changed

        with carriers[at].watched(put):
            yield

    return replaced


@contextmanager
def _without_expert(table: UnitTable, place: UnitPlace, number: int) -> Iterator[None]:
    kept = []
    try:
        for own in table.targets:
            if own.slots.start <= number < own.slots.stop:
                whole = own.target.parameter.data
                part = whole if own.target.expert is not None else whole[number - own.first]
                kept.append((part, part.clone()))
                part.zero_()
        yield
    finally:
        for part, values in kept:
            part.copy_(values)
