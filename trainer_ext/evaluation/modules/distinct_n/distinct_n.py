"""Distinct-n, n = 1 ... 4: different n-grams / n-grams, over all texts together."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.evaluation.modules import as_tokens
from frankenlm.trainer_ext.metrics.text import diversity


class DistinctN(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=(
                "Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation "
                "Models, arXiv:1510.03055"
            ),
            inputs_description="predictions: texts, or lists of token ids.",
            # texts, split at blanks, or ids; evaluate does not tell lists of strings from lists of ids
            features=[
                datasets.Features({"predictions": datasets.Value("string")}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            ],
        )

    def _compute(self, predictions: list) -> dict[str, Any]:
        return diversity(as_tokens(predictions))
