"""BLEU-1 ... BLEU-4 in percent, each as sacrebleu computes it for that order, and the signature."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.metrics.text import bleu


class BleuOrders(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=(
                "Papineni et al. 2002, Bleu: a Method for Automatic Evaluation of Machine Translation; "
                "Post 2018, arXiv:1804.08771"
            ),
            inputs_description="predictions: texts. references: for each of them a text, or a list of texts.",
            # one reference a text, or several
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
                datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Sequence(datasets.Value("string")),
                    }
                ),
            ],
        )

    def _compute(self, predictions: list[str], references: list) -> dict[str, Any]:
        return bleu(predictions, [[known] if isinstance(known, str) else known for known in references])
