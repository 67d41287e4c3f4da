"""Perplexity of texts under a language model: nats a token, perplexity, bits per byte; pseudo-perplexity if masked."""

from typing import Any

import datasets
import evaluate

from frankenlm.trainer_ext.evaluation.perplexity import perplexity_of_texts


class LanguagePerplexity(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Salazar et al. 2020, Masked Language Model Scoring, arXiv:1910.14659",
            inputs_description=(
                "predictions: texts. model_id: folder or hub name. max_length, stride, batch_size, "
                "device: how they are read."
            ),
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        model_id: str,
        max_length: int | None = None,
        stride: int | None = None,
        batch_size: int = 16,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> dict[str, Any]:
        return perplexity_of_texts(
            predictions,
            model_id,
            max_length=max_length,
            stride=stride,
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
        )
