"""What can be measured of a model, by name, and the flags that say on which text. Nothing here needs torch."""

import argparse

from ..data.articles import JOIN_ARTICLES
from ..metrics.text import TEXT_MEASURES

LIKELIHOOD = ("bits_per_byte", "loss", "perplexity", "word_perplexity")
CAUSAL_ONLY = ("word_perplexity",)
# of texts that a causal model writes: continuations.py
TEXT_METRICS = tuple(TEXT_MEASURES)
METRICS = LIKELIHOOD + TEXT_METRICS
# how text is scored -> the objective of the models that are scored so
METHODS = {"mlm": "mlm", "pseudo": "mlm", "causal": "causal"}
# of a document: what a model goes on from, and how far
PROMPT_TOKENS, NEW_TOKENS = 32, 64
# --metrics of several models side by side: group -> measures, in the order of the tables
COMPARED = {
    "parameters": ("parameters",),
    "loss": ("loss",),
    "perplexity": ("perplexity",),
    "bits_per_byte": ("bits_per_byte",),
    **{group: measure.names for group, measure in TEXT_MEASURES.items()},
    "speed": ("tokens_per_second",),
}


def add_text_flags(parser: argparse._ActionsContainer, *, max_length: str, stride: str) -> None:
    """Add which text is scored, and in which windows; `max_length` and `stride` are the help of these two."""
    add = parser.add_argument
    add(
        "--split",
        choices=["all", "validation"],
        help="score all documents, or those that train.py holds out. Default: validation of the built-in texts and of "
        "data sets that have one, else all",
    )
    add("--max_documents", type=int, help="score only the first so many documents")
    add("--max_length", type=int, help=max_length)
    add("--stride", type=int, help=stride)
    add("--batch_size", type=int, default=16, help="rows at once (default: 16)")
    add("--text_column", default="text", help="column that holds the text (default: text)")
    add(
        "--join_articles",
        choices=JOIN_ARTICLES,
        default="auto",
        help="join the lines of WikiText-like data into articles (default: where there are '= Title =' lines)",
    )
    add("--skip_bad_rows", action="store_true", help="pass rows over that are no text, and say how many")
    add("--validation_fraction", type=float, default=0.05, help="as in training (default: 0.05)")
    add("--split_seed", type=int, default=0, help="as in training (default: 0)")
