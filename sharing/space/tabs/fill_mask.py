"""Fill mask: the likeliest tokens for every mask of a sentence."""

from dataclasses import dataclass

import gradio as gr
import torch

from frankenlm.trainer_ext.common.checkpoints import check_vocabulary, usable_positions
from frankenlm.trainer_ext.common.cli import UserError

from ..parts import check_prompt, choose_model, on_shelf, told
from ..shelf import Opened, Shelf

TITLE = "Fill mask"
ABOUT = """A masked model fills each `<mask>` of your sentence: the five likeliest tokens, each mask as if the others
stayed empty. `<mask>` and `[MASK]` stand for whatever the chosen model's mask token is."""
EXAMPLES = (
    "Return a list of the <mask> in the file.",
    "If the <mask> is not given, the <mask> is used.",
    "The <mask> method returns a new <mask>.",
)
MASKS = ("<mask>", "[MASK]")
GUESSES = 5
COLUMNS = ["mask", "guess", "probability"]


@dataclass(frozen=True)
class Guess:
    """A token for a mask. mask: which one, counted from 1."""

    mask: int
    text: str
    probability: float


def fill_masks(opened: Opened, sentence: str, most_masks: int) -> tuple[str, list[Guess]]:
    """Return the sentence with the likeliest token in each mask, and the GUESSES likeliest tokens of each.

    Raises:
        UserError: a sentence without a mask, with too many, or too long for the model.
    """
    model, tokenizer = opened.model, opened.tokenizer
    ids = mask_ids(opened, sentence, most_masks)
    masked = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    inputs = torch.tensor([ids], device=model.device)
    with opened.lock, torch.inference_mode():
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, masked]  # (masks, V)
    values, tokens = logits.float().softmax(-1).topk(GUESSES)
    guesses = [
        Guess(mask, tokenizer.decode([token]), value)
        for mask, row in enumerate(zip(tokens.tolist(), values.tolist(), strict=True), 1)
        for token, value in zip(*row, strict=True)
    ]
    for place, token in zip(masked, tokens[:, 0].tolist(), strict=True):
        ids[place] = token
    return tokenizer.decode(ids, skip_special_tokens=True), guesses


def mask_ids(opened: Opened, sentence: str, most_masks: int) -> list[int]:
    """Return the ids of a sentence.

    Raises:
        UserError: as `fill_masks`.
    """
    tokenizer, config = opened.tokenizer, opened.model.config
    mask = tokenizer.mask_token
    if mask is None:
        raise UserError(f"the tokenizer of {opened.name} has no mask token.")
    for known in MASKS:
        sentence = sentence.replace(known, mask)
    if mask not in sentence:
        raise UserError(f"Write {mask} where a word is missing.")
    ids = tokenizer(sentence, verbose=False)["input_ids"]
    masks = ids.count(tokenizer.mask_token_id)
    if not masks:
        raise UserError(f"Write {mask} where a word is missing, apart from other signs.")
    if masks > most_masks:
        raise UserError(f"The sentence has {masks:,} masks; this page fills at most {most_masks}.")
    limit = usable_positions(config) if hasattr(config, "max_position_embeddings") else None
    if limit is not None and len(ids) > limit:
        raise UserError(f"The sentence is {len(ids):,} tokens long; {opened.name} reads at most {limit:,}: shorten it.")
    check_vocabulary(ids, config.get_text_config().vocab_size)
    return ids


def fill_mask(models: Shelf, model: str, sentence: str) -> tuple[str, list[list]]:
    """Return the filled sentence, and (mask, guess, probability) of each mask's likeliest tokens."""
    with told():
        sentence = check_prompt(sentence, models, what="The sentence")
        filled, guesses = fill_masks(models.open(model, "masked"), sentence, models.limits.masks)
        return filled, [[guess.mask, guess.text, round(guess.probability, 4)] for guess in guesses]


def build(models: Shelf) -> None:
    """Lay the tab out; /fill_mask gives (filled sentence, guesses)."""
    gr.Markdown(ABOUT)
    model = choose_model(models, "masked")
    sentence = gr.Textbox(EXAMPLES[0], label="Sentence", lines=2)
    gr.Examples([[example] for example in EXAMPLES], sentence, label="Examples")
    run = gr.Button("Fill", variant="primary")
    filled = gr.Textbox(label="With the likeliest tokens", interactive=False, lines=2)
    guesses = gr.Dataframe(headers=COLUMNS, datatype=["number", "str", "number"], label="Guesses", interactive=False)
    gr.on(
        [run.click, sentence.submit],
        on_shelf(fill_mask, models),
        [model, sentence],
        [filled, guesses],
        api_name="fill_mask",
        preprocess=False,
        concurrency_limit=1,
    )
