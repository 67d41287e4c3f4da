"""Self-BLEU: the mean BLEU of each text against all the others, in percent; 100 when all are the same."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.metrics.text import self_bleu


class SelfBleu(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Zhu et al. 2018, Texygen: A Benchmarking Platform for Text Generation Models, arXiv:1802.01886",
            inputs_description="predictions: texts, at least two. order: the longest n-grams.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], order: int = 4) -> dict[str, Any]:
        return {"self_bleu": self_bleu(predictions, order)}
