"""Promises of a model that reads: the future, pads and other rows change nothing."""

import torch

from ..measure import Difference, distance, farthest
from ..subject import CannotBeTold
from ..trial import Trial

BORDERS = (1, 7, 8, 9, 22)  # of past and future: around a chunk, and the last token
PADS = 5


def repeated(trial: Trial) -> Difference:
    """A row gives the same again, at once and after other rows."""
    subject = trial.subject
    ids = trial.rows.draw(2)
    reference, again = subject.outputs(ids), subject.outputs(ids)
    subject.outputs(trial.rows.other(ids))
    return Difference(max(distance(again, reference), distance(subject.outputs(ids), reference)), None)


def causality(trial: Trial) -> Difference:
    """Other tokens from a place on change nothing before it."""
    subject = _decoder(trial)
    ids = trial.rows.draw(2)
    other, reference = trial.rows.other(ids), subject.outputs(ids)
    before, after = [], []
    for border in BORDERS:
        changed = subject.outputs(torch.cat([ids[:, :border], other[:, border:]], 1))
        before.append((changed[:, :border], reference[:, :border]))
        after.append(distance(changed[:, border:], reference[:, border:]))
    return Difference(farthest(before), min(after))


def future_gradient(trial: Trial) -> Difference:
    """What is said of the first half of a row sends no gradient to the tokens of the second."""
    subject = _decoder(trial)
    ids = trial.rows.draw(2)
    half = ids.shape[1] // 2
    gradient = trial.gradient(subject, ids, slice(0, half))
    return Difference(distance_of_zero(gradient[:, half:], gradient), 1.0)


def distance_of_zero(part: torch.Tensor, whole: torch.Tensor) -> float:
    """How large a part, which should be zero, is beside the whole."""
    return distance(part, torch.zeros_like(part)) if not len(part) else _share(part, whole)


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    if not bool(whole.isfinite().all()):
        return float("inf")
    largest = float(whole.abs().max())
    if largest == 0:
        raise CannotBeTold("no gradient reaches the embeddings")
    return float(part.abs().max()) / largest


def padding(trial: Trial, side: str, batch: int) -> Difference:
    """A row with pads beside it, which hold ids that would mislead, gives what it gives alone."""
    subject = trial.subject
    if "attention_mask" not in subject.takes and not subject.swallows:
        raise CannotBeTold("it takes no attention_mask")
    width = 18
    rows = [trial.rows.draw(1, width - PADS, which=1), trial.rows.draw(1, width, which=2)][:batch]
    ids, mask, places = padded(trial, rows, width, side)
    inputs = {"attention_mask": mask}
    if side == "left" and "position_ids" in subject.takes:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0) + subject.start  # as generate() does
    actual = subject.outputs(ids, **inputs)
    unmasked = subject.outputs(ids)
    alone = [subject.outputs(row) for row in rows]
    pairs = [(actual[i : i + 1, place], alone[i]) for i, place in enumerate(places)]
    astray = distance(unmasked[:1, places[0]], alone[0])
    if side == "right" and subject.is_decoder:
        return Difference(farthest(pairs), None)
    return Difference(farthest(pairs), astray)


def padded(trial: Trial, rows: list[torch.Tensor], width: int, side: str):
    """Return ids (B, width), mask (B, width) and the places of rows (1, L), padded with ids that mean something."""
    ids = trial.rows.draw(len(rows), width, which=3)
    mask = torch.zeros_like(ids)
    places = []
    for index, row in enumerate(rows):
        length = row.shape[1]
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[index, place], mask[index, place] = row[0], 1
        places.append(place)
    return ids, mask, places


def batch_independence(trial: Trial) -> Difference:
    """A row gives the same alone and among others."""
    ids = trial.rows.draw(3)
    together = trial.subject.outputs(ids)
    alone = torch.cat([trial.subject.outputs(row[None]) for row in ids])
    return Difference(distance(together, alone), distance(together.flip(0), alone))


def _decoder(trial: Trial):
    if not trial.subject.is_decoder:
        raise CannotBeTold("an encoder reads both ways")
    return trial.subject
