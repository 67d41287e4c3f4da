"""A small Gradio page: fill the masks of a sentence with a checkpoint.

python app.py [--model runs/demo]     then open the address it prints
GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are honoured.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from transformers import pipeline

import frankenlm.modeling  # noqa: F401  registers the architectures

DEFAULT_MODEL = "runs/demo"


def build_page(fill_mask) -> gr.Blocks:
    """Lay the page out around a fill-mask pipeline."""
    mask = fill_mask.tokenizer.mask_token

    def fill(sentence: str) -> dict[str, float]:
        """Return the most probable tokens for the first mask of a sentence, with their probabilities."""
        if mask not in sentence:
            raise gr.Error(f"Write {mask} where a word is missing.")
        guesses = fill_mask(sentence)
        first = guesses[0] if isinstance(guesses[0], list) else guesses
        return {guess["token_str"].strip() or repr(guess["token_str"]): guess["score"] for guess in first}

    with gr.Blocks(title="frankenlm") as page:
        gr.Markdown(f"# frankenlm\nWrite a sentence with `{mask}` in place of a word.")
        sentence = gr.Textbox(f"This function returns the {mask} of the list.", label="Sentence")
        guesses = gr.Label(num_top_classes=5, label="Guesses")
        sentence.submit(fill, sentence, guesses, api_name="fill")
        gr.Button("Fill").click(fill, sentence, guesses, api_name=False)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a trained folder or a hub name (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.model == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir():
        parser.exit(2, f"app.py: {DEFAULT_MODEL} does not exist; run `make demo` first or give --model.\n")
    build_page(pipeline("fill-mask", arguments.model)).launch()


if __name__ == "__main__":
    main()
