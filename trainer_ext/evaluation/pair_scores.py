"""How often a model prefers the grammatical sentence of a minimal pair, read in every way that it can be read.

    causal   by the log-likelihood of the sentence, from the begin token on
    pseudo   by its pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659, eq. 1): each token masked in turn

Both are sums over tokens, as in BLiMP, so that the longer sentence has more to answer for.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..common.cli import UserError, user_mistakes
from ..metrics.bootstrap import Summed, drawn_values, with_interval
from ..metrics.language import NATS
from .flags import METHODS
from .minimal_pairs import Pair, make_pairs
from .scoring import Scorer, check_room, learned_both_ways, load_scorer, score_sequences, token_ids, vocabulary_of

ALL = "all"


def pair_modes(scorer: Scorer) -> list[str]:
    """The ways in which a model is asked: both where it has learned both."""
    config = scorer.model.config
    if learned_both_ways(config.name_or_path, config):
        return ["causal", "pseudo"]
    return ["pseudo" if METHODS[scorer.method] == "mlm" else "causal"]


def pair_scorers(scorer: Scorer, name: str, *, trust_remote_code: bool) -> dict[str, Scorer]:
    """Return what asks the model in each of its ways; the head that `scorer` lacks is loaded by `name`."""
    found = {}
    for mode in pair_modes(scorer):
        if METHODS[mode] == METHODS[scorer.method]:
            found[mode] = dataclasses.replace(scorer, method=mode)
        else:
            found[mode] = load_scorer(
                name,
                mode,
                max_length=scorer.context_length,
                stride=None,
                batch_size=scorer.batch_size,
                device=str(scorer.model.device),
                trust_remote_code=trust_remote_code,
            )
        if mode == "pseudo":
            check_room(scorer.tokenizer, scorer.context_length)
    return found


def make_pairs_to_score(count: int, seed: int) -> list[Pair]:
    """`make_pairs`, whose mistakes are the user's. Raises UserError for a count that cannot be had."""
    with user_mistakes():
        return make_pairs(count, seed)


def ids_of_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the ids of the sentences, good, bad, good, ...

    Raises:
        UserError: a sentence does not fit into the model, or has tokens that it has no embedding for.
    """
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    ids = list(token_ids(scorer.tokenizer, Dataset.from_dict({"text": sentences}), vocabulary_of(scorer.model)))
    if max(map(len, ids)) >= scorer.context_length:
        raise UserError(
            f"--minimal_pairs: a sentence has {max(map(len, ids))} tokens, and the model sees {scorer.context_length} "
            "at once: raise --max_length."
        )
    return ids


def score_pairs(scorer: Scorer, pairs: Sequence[Pair], *, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return the accuracy in each phenomenon, and in all of them, with the interval over pairs, as reports have it.

    A pair whose sentences are equally likely counts half: that is what a guess would have.

    Raises:
        UserError: see `ids_of_pairs`.
    """
    ids = ids_of_pairs(scorer, pairs)
    nats = score_sequences(scorer, ids).sums[:, NATS].reshape(-1, 2)  # good, bad
    right = (nats[:, 0] < nats[:, 1]) + 0.5 * (nats[:, 0] == nats[:, 1])
    names = np.array([pair.phenomenon for pair in pairs])
    chosen = {ALL: np.ones(len(pairs), dtype=bool)} | {name: names == name for name in dict.fromkeys(names.tolist())}
    return {name: _accuracy(right[here], draws, seed) for name, here in chosen.items()}


def _accuracy(right: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    parts = np.column_stack([right, np.ones(len(right))])
    summed = Summed(parts, lambda sums: {"accuracy": float(sums[0] / sums[1])}, upper=1.0)
    drawn = drawn_values(summed, draws, seed).get("accuracy")
    return {**with_interval(summed.values()["accuracy"], drawn), "pairs": len(right)}
