"""Top-1, top-3 and top-5 accuracy: how often the right class is among the k that scored highest."""

from typing import Any

import datasets
import evaluate
import torch

from frankenlm.trainer_ext.metrics.language import top_accuracies


class TopKAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=(
                "predictions: for each question the scores of all classes. references: the right class, -100 for none."
            ),
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, Any]:
        return top_accuracies(torch.tensor(predictions), torch.tensor(references))
