"""Intervals over documents: by hand, against all drawings there are, and how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest

from frankenlm.trainer_ext.metrics.bootstrap import (
    Summed,
    drawn_sums,
    drawn_together,
    drawn_values,
    interval,
    widening,
    with_interval,
)


def ratio(sums):
    return {"loss": sums[0] / sums[1] if sums[1] else None}


def test_widening_by_hand():
    assert widening(2) == pytest.approx(12.706 / 1.96 * math.sqrt(2))
    assert widening(10) == pytest.approx(2.262 / 1.96 * math.sqrt(10 / 9))
    # the approximation of Student's quantile behind the table: 2.228, 2.086 and 1.984 for 10, 20 and 99
    for documents, quantile in ((11, 2.228), (21, 2.086), (100, 1.984)):
        assert widening(documents) == pytest.approx(quantile / 1.96 * math.sqrt(documents / (documents - 1)), rel=2e-3)


def test_drawings_are_those_that_there_are():
    """Three documents have 27 ordered drawings; their sums come as often as chance has it."""
    parts = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 3.0]])
    sums = drawn_sums(parts, 27_000, seed=1)
    wanted = [tuple(parts[list(places)].sum(axis=0)) for places in itertools.product(range(3), repeat=3)]
    found = {tuple(map(float, row)): 0 for row in sums}
    for row in sums:
        found[tuple(map(float, row))] += 1
    assert set(found) == set(wanted)
    for row, times in found.items():
        assert times == pytest.approx(1000 * wanted.count(row), rel=0.12)


def test_same_seed_same_drawings():
    sums = drawn_sums(np.ones((10, 2)), 7, seed=0)
    assert sums.shape == (7, 2) and (sums == 10).all()
    assert (drawn_sums(np.eye(10), 7, seed=0) == drawn_sums(np.eye(10), 7, seed=0)).all()
    assert (drawn_sums(np.eye(10), 7, seed=(0, 0)) != drawn_sums(np.eye(10), 7, seed=(0, 1))).any()


def test_documents_that_are_alike_leave_no_doubt():
    drawn = drawn_values(Summed(np.tile([6.0, 2.0], (5, 1)), ratio))
    assert interval(drawn["loss"]) == (pytest.approx(3.0), pytest.approx(3.0))


def test_nothing_is_drawn_where_nothing_can_be():
    assert drawn_values(Summed(np.array([[6.0, 2.0]]), ratio)) == {}
    assert drawn_values(Summed(np.ones((4, 2)), ratio), draws=0) == {}
    assert drawn_values(Summed(np.zeros((4, 2)), ratio)) == {}
    assert drawn_values(Summed(np.ones((4, 2)), lambda sums: {"perplexity": math.inf})) == {}
    assert interval(np.array([math.nan])) is None
    assert with_interval(3.0, None) == {"value": 3.0, "low": None, "high": None}


def test_drawings_without_anything_to_measure_are_left_out():
    drawn = drawn_values(Summed(np.array([[1.0, 1.0], [0.0, 0.0]]), ratio), draws=200)["loss"]
    assert np.isnan(drawn).any() and interval(drawn) == (1.0, 1.0)


def test_ends_stay_where_a_measure_can_be():
    hits = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    low, high = interval(drawn_values(Summed(hits, ratio, upper=1.0))["loss"])
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("documents", [2, 3, 5])
def test_a_perplexity_is_at_least_one_and_ends_where_its_loss_does(documents):
    """Of few documents the ends lie far outside, and the lower ones at what the measures cannot go below."""
    parts = np.array([[90.0, 10.0], [9.0, 9.0], [8.0, 80.0], [0.0, 7.0], [50.0, 20.0]])[:documents]

    def finish(sums):
        return {"loss": sums[0] / sums[1], "perplexity": math.exp(sums[0] / sums[1])}

    drawn = drawn_values(Summed(parts, finish, logarithms=("perplexity",)))
    assert interval(drawn["loss"])[0] == 0.0 and interval(drawn["perplexity"])[0] == 1.0
    np.testing.assert_allclose(drawn["perplexity"], np.exp(drawn["loss"]), rtol=1e-12)


@pytest.mark.parametrize(("documents", "least"), [(5, 0.90), (20, 0.90)])
def test_the_interval_holds_the_truth_as_often_as_it_says(documents, least):
    """A ratio of sums over documents of very different lengths, 300 times. Of 2,500 it was 93.6 % for both."""
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        tokens = rng.integers(10, 200, documents).astype(float)
        losses = 3.0 + rng.normal(0, 0.5, documents)
        drawn = drawn_values(Summed(np.stack([losses * tokens, tokens], axis=1), ratio), draws=300, seed=trial)
        low, high = interval(drawn["loss"])
        held += low <= 3.0 <= high
    assert least <= held / 300 <= 0.995


def test_tokens_of_a_document_are_no_witnesses_of_their_own():
    """Ten documents of a thousand equal tokens are ten observations; taken one by one they look ten times surer."""
    losses = np.random.default_rng(0).normal(3, 1, 10)
    documents = Summed(np.stack([losses * 1000, np.full(10, 1000.0)], axis=1), ratio)
    tokens = Summed(np.stack([np.repeat(losses, 1000), np.ones(10_000)], axis=1), ratio)
    wide, narrow = (interval(drawn_values(each, draws=200)["loss"]) for each in (documents, tokens))
    assert wide[1] - wide[0] > 10 * (narrow[1] - narrow[0])


def test_measures_of_the_same_documents_share_their_drawings(monkeypatch):
    generator = np.random.default_rng(0)
    first, second, other = (Summed(generator.random((size, 2)), ratio_as(name)) for size, name in SHARED)
    alone = {name: values for each in (first, second, other) for name, values in drawn_values(each, 20, 3).items()}
    asked = []
    together = drawn_together([first, second, other], 20, 3, lambda draws: asked.append(draws) or draws)
    assert len(asked) == 2  # 30 documents, and 8
    assert together.keys() == alone.keys() == {"a", "b", "c"}
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-12)


SHARED = ((30, "a"), (30, "b"), (8, "c"))


def ratio_as(name):
    return lambda sums: {name: float(sums[0] / sums[1])}
