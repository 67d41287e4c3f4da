"""From log-likelihoods of a block's answers to a grade of each of its questions.

The four questions of a block share their four answers, so what a model thinks of an answer whatever the question (it is
frequent, short, the last one it read) is the answer's mean over the four, and is taken off: what is left can only come
from the question. A model that no longer reads it has the same left for all, and the right answer's share is exactly
1/4: chance, also of questions that were chosen. The idea is that of contextual calibration (Zhao et al. 2021,
arXiv:2102.09690) and of domain-conditional PMI (Holtzman et al. 2021, arXiv:2104.08315).

A block with a score that is not finite, as overflowing weights give, says nothing of its questions: 1/4 is the share of
each, 0 its margin.
"""

from collections.abc import Sequence

import numpy


def scores_as_written(table: Sequence[Sequence[float | None]]) -> numpy.ndarray:
    """Return the scores of a block's table in a JSON file, where null is a number that was not finite, as NaN."""
    return numpy.array(table, dtype=numpy.float64)


def known(scores: numpy.ndarray) -> numpy.ndarray:
    """Whether all of a block's scores are finite: [..., 4, 4] -> [..., 1, 1]."""
    return numpy.isfinite(scores).all(axis=(-2, -1), keepdims=True)


def without_habits(scores: numpy.ndarray) -> numpy.ndarray:
    """Take off each answer's mean over the questions: log p [..., questions, answers] -> the same shape.

    All are 0 in a block that has a score that is not finite.
    """
    scores = numpy.where(known(scores), scores, 0.0)
    return scores - scores.mean(axis=-2, keepdims=True)


def shares(scores: numpy.ndarray) -> numpy.ndarray:
    """Return the right answers' shares of the four, 0 to 1: [..., 4, 4], the right ones on the diagonal -> [..., 4]."""
    left = without_habits(scores)
    weights = numpy.exp(left - left.max(axis=-1, keepdims=True))
    return numpy.diagonal(weights / weights.sum(axis=-1, keepdims=True), axis1=-2, axis2=-1)


def margins(scores: numpy.ndarray) -> numpy.ndarray:
    """Return by how many nats the right answer leads the best wrong one: [..., 4, 4] -> [..., 4]."""
    left = without_habits(scores)
    right = numpy.diagonal(left, axis1=-2, axis2=-1)
    own = numpy.eye(left.shape[-1], dtype=bool)
    return right - numpy.where(own, -numpy.inf, left).max(axis=-1)
