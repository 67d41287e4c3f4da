"""A small Gradio page: fill the masks of a sentence with a checkpoint.

python app.py [--model runs/demo]     then open the address it prints
GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are honoured.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from transformers import AutoModelForMaskedLM, pipeline

import frankenlm.modeling  # noqa: F401  registers the architectures
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, one_line, run_command, user_mistakes
from frankenlm.trainer_ext.common.opening import check_runs, read_config, read_tokenizer, read_weights
from frankenlm.trainer_ext.evaluation.scoring import choose_method, usable_positions

DEFAULT_MODEL = "runs/demo"
LONGEST_SENTENCE = 100_000  # characters; what a visitor sends is tokenised before it can be counted in tokens


def load_pipeline(name: str):
    """Return the fill-mask pipeline of a saved model.

    Raises:
        UserError: no such model, one that fills no masks, or files of it that cannot be used.
    """
    config = read_config(name)
    choose_method(name, config.architectures or [], "mlm")
    tokenizer = read_tokenizer(name)
    if tokenizer.mask_token is None:
        raise UserError(f"--model {name}: its tokenizer has no mask token.")
    model = read_weights(AutoModelForMaskedLM, name, config)
    check_runs(model, name)
    return pipeline("fill-mask", model=model, tokenizer=tokenizer)


def check_sentence(fill_mask, sentence: str) -> None:
    """Raises gr.Error, which the visitor reads, for a sentence that cannot be filled."""
    mask, tokenizer, config = fill_mask.tokenizer.mask_token, fill_mask.tokenizer, fill_mask.model.config
    if mask not in sentence:
        raise gr.Error(f"Write {mask} where a word is missing.")
    if any("\ud800" <= sign <= "\udfff" for sign in sentence):
        raise gr.Error("The sentence holds half a character (a lone surrogate): write it anew.")
    if len(sentence) > LONGEST_SENTENCE:
        raise gr.Error(f"The sentence has {len(sentence):,} characters; write at most {LONGEST_SENTENCE:,}.")
    ids = tokenizer(sentence, verbose=False)["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise gr.Error(f"Write {mask} where a word is missing, apart from other signs.")
    limit = usable_positions(config) if hasattr(config, "max_position_embeddings") else None
    if limit is not None and len(ids) > limit:
        raise gr.Error(f"The sentence is {len(ids):,} tokens long; this model reads at most {limit:,}: shorten it.")


def guess(fill_mask, sentence: str) -> dict[str, float]:
    """Return the most probable tokens for the first mask of a sentence, with their probabilities."""
    check_sentence(fill_mask, sentence)
    guesses = fill_mask(sentence)
    first = guesses[0] if isinstance(guesses[0], list) else guesses
    return {each["token_str"].strip() or repr(each["token_str"]): each["score"] for each in first}


def build_page(fill_mask) -> gr.Blocks:
    """Lay the page out around a fill-mask pipeline."""
    mask = fill_mask.tokenizer.mask_token

    def fill(sentence: str) -> dict[str, float]:
        """Return the most probable tokens for the first mask of a sentence, with their probabilities."""
        return guess(fill_mask, sentence)

    with gr.Blocks(title="frankenlm") as page:
        gr.Markdown(f"# frankenlm\nWrite a sentence with `{mask}` in place of a word.")
        sentence = gr.Textbox(f"This function returns the {mask} of the list.", label="Sentence")
        guesses = gr.Label(num_top_classes=5, label="Guesses")
        sentence.submit(fill, sentence, guesses, api_name="fill")
        gr.Button("Fill").click(fill, sentence, guesses, api_name=False)
    return page


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a trained folder or a hub name (default: %(default)s)")
    arguments = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    if arguments.model == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir():
        raise UserError(f"{DEFAULT_MODEL} does not exist; run `make demo` first or give --model.")
    with user_mistakes():
        page = build_page(load_pipeline(arguments.model))
    try:
        page.launch()
    except (OSError, ValueError) as error:  # a port that is taken, an odd GRADIO_SERVER_PORT or _NAME
        raise UserError(f"the page cannot be served: {one_line(error)}") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
