"""Vocabulary use: different tokens, in all and in 100, the share of a vocabulary, and the share of unknown tokens."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.evaluation.modules import as_tokens
from frankenlm.trainer_ext.metrics.text import vocabulary_use


class VocabularyUse(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Covington and McFall 2010, Cutting the Gordian Knot: The Moving-Average Type-Token Ratio (MATTR)",
            inputs_description=(
                "predictions: texts, or lists of token ids. vocab_size: tokens of the vocabulary. unknown: the "
                "token for what is unknown."
            ),
            # texts, split at blanks, or ids; evaluate does not tell lists of strings from lists of ids
            features=[
                datasets.Features({"predictions": datasets.Value("string")}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            ],
        )

    def _compute(self, predictions: list, vocab_size: int, unknown: int | str | None = None) -> dict[str, Any]:
        return vocabulary_use(as_tokens(predictions), vocab_size, unknown)
