"""Measures of language models, as pure functions."""

from .language import LossSum, causal_nats, masked_lm_nats, perplexity_report, pseudo_nats, unigram_cross_entropy
from .text import bleu, diversity, repetition, vocabulary_use

__all__ = [
    "LossSum",
    "bleu",
    "causal_nats",
    "diversity",
    "masked_lm_nats",
    "perplexity_report",
    "pseudo_nats",
    "repetition",
    "unigram_cross_entropy",
    "vocabulary_use",
]
