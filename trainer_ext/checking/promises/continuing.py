"""Promises of a model that goes on: with a cache, in pieces, after a step back, it says what the whole row gives."""

import torch

from ..measure import Difference, distance
from ..subject import CannotBeTold, ModelUnderTest, Refused
from ..trial import Trial

PREFILL = 9
PIECES = (5, 1, 10, 7)
STEPS_BACK = 4


def cache(trial: Trial) -> Difference:
    """A prefill and then token by token, against the row without a cache."""
    ids = trial.rows.draw(2)
    sizes = (PREFILL, *[1] * (ids.shape[1] - PREFILL))
    return _against_whole(trial, ids, sizes)


def pieces(trial: Trial) -> Difference:
    """A prompt that is read in pieces, against the row at once."""
    return _against_whole(trial, trial.rows.draw(2), PIECES)


def cropping(trial: Trial) -> Difference:
    """Tokens are taken back from the cache, and others read in their place."""
    ids = trial.rows.draw(1)
    subject = _with_cache(trial)
    other = ids.clone()
    other[:, -STEPS_BACK:] = trial.rows.other(ids)[:, -STEPS_BACK:]
    _, past = read(subject, ids, (ids.shape[1] - STEPS_BACK,))
    if hasattr(past, "activate_past_recording"):
        past.activate_past_recording()  # as generate() does where it will go back
    if not hasattr(past, "crop"):
        raise CannotBeTold("its cache has no crop()")
    _, past = subject.continued(ids[:, -STEPS_BACK:], past, **_places(subject, ids.shape[1] - STEPS_BACK, STEPS_BACK))
    if not getattr(past, "is_croppable", True):
        raise Refused("its cache says that it cannot be cropped")
    past.crop(-STEPS_BACK)
    place = ids.shape[1] - STEPS_BACK
    after, _ = subject.continued(other[:, place:], past, **_places(subject, place, STEPS_BACK))
    whole = subject.outputs(other)[:, place:]
    return Difference(distance(after, whole), distance(subject.outputs(ids)[:, place:], whole))


def _against_whole(trial: Trial, ids: torch.Tensor, sizes: tuple[int, ...]) -> Difference:
    subject = _with_cache(trial)
    parts, _ = read(subject, ids, sizes)
    whole = subject.outputs(ids)
    start = sizes[0]
    without_past = subject.outputs(ids[:, start:])
    return Difference(distance(parts, whole), distance(without_past, whole[:, start:]))


def read(subject: ModelUnderTest, ids: torch.Tensor, sizes: tuple[int, ...]):
    """Return what is said of a row that is read in pieces of these sizes (B, L, V), and the cache after it."""
    past, parts, place = None, [], 0
    for size in sizes:
        said, past = subject.continued(ids[:, place : place + size], past, **_places(subject, place, size))
        parts.append(said)
        place += size
    return torch.cat(parts, 1), past


def _places(subject: ModelUnderTest, start: int, size: int) -> dict[str, torch.Tensor]:
    """The positions of the next tokens, as generate() gives them."""
    if "position_ids" not in subject.takes:
        return {}
    return {"position_ids": torch.arange(start, start + size)[None] + subject.start}


def _with_cache(trial: Trial) -> ModelUnderTest:
    if not trial.subject.is_decoder:
        raise CannotBeTold("an encoder has no cache")
    if trial.subject.cache_name is None:
        raise CannotBeTold("it takes no cache")
    return trial.subject
