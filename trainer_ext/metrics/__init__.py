"""Measures of language models, as pure functions."""

from .language import (
    LossSum,
    causal_nats,
    masked_lm_nats,
    perplexity_report,
    pseudo_nats,
    unigram_cross_entropy,
)

__all__ = [
    "LossSum",
    "causal_nats",
    "masked_lm_nats",
    "perplexity_report",
    "pseudo_nats",
    "unigram_cross_entropy",
]
