"""Promises of packed rows: several documents in one row, and each gives what it gives by itself.

Each form is given as transformers' DataCollatorWithFlattening gives it: positions that begin again, and beside them
`seq_idx`, or `cu_seq_lens_q/k` with `max_length_q/k`.
"""

from typing import Any

import torch

from ..measure import Difference, distance
from ..rows import DOCUMENTS
from ..subject import CannotBeTold, ModelUnderTest
from ..trial import Trial
from .reading import distance_of_zero

LEAK = 1e-3  # in a remark beside a verdict; the verdict itself goes by measured noise
FORMS = ("position_ids", "seq_idx", "cu_seq_lens")


def borders(
    form: str, subject: ModelUnderTest, lengths: tuple[int, ...] = DOCUMENTS, *, alone: bool = False
) -> dict[str, Any]:
    """Return what a model is called with beside the ids, so that it knows the documents of a row.

    alone: without the positions that the collator gives beside the other forms.
    """
    takes_positions = "position_ids" in subject.takes or subject.swallows
    alone = alone or not takes_positions
    positions = {} if alone and form != "position_ids" else subject.positions(list(lengths))
    if form == "seq_idx":
        numbers = [torch.full((size,), number) for number, size in enumerate(lengths)]
        return {**positions, "seq_idx": torch.cat(numbers)[None].int()}
    if form == "cu_seq_lens":
        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        longest = max(lengths)
        ends_of = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends)
        return {**positions, **ends_of, "max_length_q": longest, "max_length_k": longest}
    return positions


def packed(trial: Trial, form: str) -> Difference:
    """Documents in one row give what they give one by one."""
    subject = trial.subject
    ids = trial.rows.draw(1, sum(DOCUMENTS))
    actual = subject.outputs(ids, **borders(form, subject))
    joined = subject.outputs(ids)
    expected = one_by_one(subject, ids)
    note = "ignored in silence" if torch.equal(actual, joined) else ""
    if form != "position_ids" and not note and "position_ids" in subject.takes:
        note = _alone(trial, form, ids, expected)
    return Difference(distance(actual, expected), distance(joined, expected), note)


def _alone(trial: Trial, form: str, ids: torch.Tensor, expected: torch.Tensor) -> str:
    """What becomes of a form that is given without positions beside it."""
    subject = trial.subject
    try:
        given = subject.outputs(ids, **borders(form, subject, alone=True))
    except Exception:  # whichever way a model refuses
        return "refused without position_ids"
    if torch.equal(given, subject.outputs(ids)):
        return "ignored in silence without position_ids"
    return "" if distance(given, expected) < LEAK else "leaks without position_ids"


def one_by_one(subject: ModelUnderTest, ids: torch.Tensor) -> torch.Tensor:
    """Return (1, L, V): what each of the packed documents gives by itself."""
    return torch.cat([subject.outputs(part) for part in ids.split(DOCUMENTS, 1)], 1)


def packed_gradient(trial: Trial) -> Difference:
    """What is said of one document sends no gradient into another, in whichever form the model takes."""
    subject = trial.subject
    ids = trial.rows.draw(1, sum(DOCUMENTS))
    worst: dict[str, float] = {}
    refusals = []
    start = DOCUMENTS[0] + DOCUMENTS[1]
    inside = slice(start, start + DOCUMENTS[2])
    for form in FORMS:
        try:
            gradient = trial.gradient(subject, ids, inside, **borders(form, subject))
        except CannotBeTold:
            raise
        except Exception as error:  # whichever way a model refuses a form
            refusals.append(error)
            continue
        elsewhere = torch.cat([gradient[:, :start], gradient[:, inside.stop :]], 1)
        worst[form] = distance_of_zero(elsewhere, gradient)
    if not worst:
        raise refusals[0]
    form = max(worst, key=worst.__getitem__)
    joined = trial.gradient(subject, ids, inside)
    control = distance_of_zero(torch.cat([joined[:, :start], joined[:, inside.stop :]], 1), joined)
    return Difference(worst[form], control, f"worst with {form}" if worst[form] else "")
