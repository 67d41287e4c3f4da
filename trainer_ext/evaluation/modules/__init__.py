"""Modules for Hugging Face's evaluate, on top of the pure functions of metrics/: a folder each, as its Spaces have it.

    import evaluate
    from frankenlm.trainer_ext.evaluation.modules import module_path

    repetition = evaluate.load(module_path("repetition"))
    repetition.compute(predictions=["a b a b"])

A local path needs no network. evaluate copies a module's file into its cache and imports it from there, so that the
files import nothing beside them, only the installed package.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path

from frankenlm.modeling.checks import check_choice

MODULES = (
    "bleu_orders",
    "distinct_n",
    "language_perplexity",
    "repetition",
    "self_bleu",
    "top_k_accuracy",
    "vocabulary_use",
)


def module_path(name: str) -> str:
    """Return the folder of a module, for `evaluate.load`.

    Raises:
        ValueError: there is no such module; the message lists them.
    """
    check_choice("evaluate module", name, MODULES)
    return str(Path(__file__).parent / name)


def as_tokens(texts: Sequence[str | Sequence[Hashable]]) -> list[Sequence[Hashable]]:
    """Return texts as tokens: strings are split at blanks, sequences of tokens stay as they are."""
    return [text.split() if isinstance(text, str) else text for text in texts]
