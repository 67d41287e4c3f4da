"""Repetition: the share of a text's n-grams, n = 1 ... 4, that it has said before, and its longest repeat."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.evaluation.modules import as_tokens
from frankenlm.trainer_ext.metrics.text import character_repetition, repetition


class Repetition(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Welleck et al. 2020, Neural Text Generation with Unlikelihood Training, arXiv:1908.04319",
            inputs_description=("predictions: texts, or lists of token ids. characters: over characters instead."),
            # texts, split at blanks, or ids; evaluate does not tell lists of strings from lists of ids
            features=[
                datasets.Features({"predictions": datasets.Value("string")}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            ],
        )

    def _compute(self, predictions: list, characters: bool = False) -> dict[str, Any]:
        if not characters:
            return repetition(as_tokens(predictions))
        if not all(isinstance(text, str) for text in predictions):
            raise ValueError("characters=True needs texts; got tokens.")
        return character_repetition(predictions)
