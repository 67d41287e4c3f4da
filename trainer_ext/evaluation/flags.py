"""What can be measured of a model, by name, and the flags that say on which text. Nothing here needs torch."""

import argparse

from ..data.articles import JOIN_ARTICLES
from ..metrics.text import TEXT_MEASURES

# --metrics of one model: metric -> measures, as reports name them. What is measured on the text that is scored:
SCORED = {
    "loss": ("loss",),
    "perplexity": ("perplexity",),
    "bits_per_byte": ("bits_per_byte",),
    "word_perplexity": ("word_perplexity",),
    "reference_perplexity": ("reference_perplexity",),
    "accuracy": ("top_1_accuracy", "top_3_accuracy", "top_5_accuracy"),
}
CAUSAL_ONLY = ("word_perplexity", "reference_perplexity")
# on the text in the model's tokens, without the model:
TOKENIZED = {"text": ("text_unique_per_100", "text_unknown_share", "text_vocabulary_coverage")}
# of texts that a causal model writes: continuations.py
TEXT_METRICS = tuple(TEXT_MEASURES)
METRICS = {**SCORED, **TOKENIZED, **{name: measure.names for name, measure in TEXT_MEASURES.items()}}
SPLITS = ("all", "train", "validation", "test")
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


def add_text_flags(
    parser: argparse._ActionsContainer, *, max_length: str, stride: str, several_splits: bool = False
) -> None:
    """Add which text is scored, and in which windows; `max_length` and `stride` are the help of these two.

    several_splits: --split takes some of SPLITS with commas, instead of one of two.
    """
    add = parser.add_argument
    default = "Default: validation of the built-in texts and of data sets that have one, else all"
    if several_splits:
        add(
            "--split",
            "--splits",
            help="all documents, or some of train and validation, the sides of `frankenlm train`, and test, with "
            f"commas: each is measured, and the gap of the others to the first told. {default}",
        )
        add("--validation_dataset", help="text to take as validation, as for `frankenlm train`")
        add("--test_dataset", help="text to take as test, where --dataset has no test part of its own")
    else:
        add(
            "--split",
            choices=["all", "validation"],
            help=f"score all documents, or those that `frankenlm train` holds out. {default}",
        )
    add("--max_documents", type=int, help="score only the first so many documents of a split")
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
