"""The tab Compare: several models of the shelf on one text, each in its own tokens, and what each expects next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch

from frankenlm.degradation.run.estimate import loaded_bytes
from frankenlm.trainer_ext.common.checkpoints import check_vocabulary
from frankenlm.trainer_ext.common.cli import UserError, user_mistakes
from frankenlm.trainer_ext.data.packing import template_ids
from frankenlm.trainer_ext.data.tokenizers import begin_id
from frankenlm.trainer_ext.evaluation.comparing import format_value
from frankenlm.trainer_ext.evaluation.lengths import scored_lengths
from frankenlm.trainer_ext.evaluation.scoring import Scorer, check_room, choose_context, score_sequences, vocabulary_of
from frankenlm.trainer_ext.generation.heatmaps import readable
from frankenlm.trainer_ext.generation.inspection import token_texts

from ..limits import Limits
from ..parts import check_prompt, on_shelf, told
from ..shelf import Opened, Shelf

TITLE = "Compare"
MOST_MODELS = 6
MOST_MASKED = 512  # tokens of a text for a masked model, each of which is a row
LONGEST_CONTEXT = 1024  # tokens; models with more positions read the text in windows, as frankenlm evaluate does
BATCH = 16
TOP = 5
MEASURES = ("bits per byte", "perplexity (per token)", "tokens", "bytes per token", "parameters", "bytes of weights")
CAUSAL, MASKED = "causal", "masked (pseudo-likelihood)"
ABOUT = """Models side by side on one text. Bits per byte compares models of any tokenizer; the lower, the better. The
second table is what each expects behind the text (a masked model: in a mask put there)."""
EXAMPLES = (
    "Return the number of items in the",
    "The quick brown fox jumps over the lazy",
    "def add(a, b):\n    return",
)
NOTES = {
    "both kinds": "A masked model guesses each token from all others, before and behind it: compare it with masked "
    "models only.",
    "tokenizers": "The tokenizers differ, so perplexities are of tokens of different size: compare bits per byte.",
}


@dataclass(frozen=True)
class Standing:
    """One model in the comparison. measures: as MEASURES has them. expected: (token, probability) of what follows."""

    name: str
    kind: str
    measures: tuple[float | int | None, ...]
    expected: tuple[tuple[str, float], ...]


def measure(opened: Opened, text: str, most_tokens: int = Limits.prompt_tokens) -> Standing:
    """Score a text with one model, and ask what it expects behind it.

    Raises:
        UserError: a text without a token to score, or one that is too long.
    """
    model, tokenizer, masked = opened.model, opened.tokenizer, opened.kind == "masked"
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    check_vocabulary(ids, vocabulary_of(model))
    if masked and tokenizer.mask_token_id is None:
        raise UserError(f"The tokenizer of {opened.name} has no mask token, which a masked model needs.")
    most = min(MOST_MASKED, most_tokens) if masked else most_tokens
    if len(ids) > most:
        raise UserError(f"The text is {len(ids):,} tokens long for {opened.name}; write at most {most:,}.")
    Limits().check_work(opened.name, model.num_parameters(), len(ids) ** (2 if masked else 1))
    known = hasattr(model.config, "max_position_embeddings")
    context = min(choose_context(opened.name, model.config, None if known else LONGEST_CONTEXT), LONGEST_CONTEXT)
    if masked:
        check_room(tokenizer, context)
    scorer = Scorer(model, tokenizer, "pseudo" if masked else "causal", context, max(1, context // 2), BATCH)
    lengths = scored_lengths(tokenizer, [text], scorer.method)
    with opened.lock:
        scores = score_sequences(scorer, [ids])
        if not scores.tokens:
            raise UserError(f"The text has no token that {opened.name} can be scored on: write more of it.")
        expected = expect(opened, ids, context)
    values = scores.likelihood(lengths.utf8_bytes).values()
    measures = (
        values["bits_per_byte"],
        values["perplexity"],
        len(ids),
        len(text.encode()) / len(ids),
        model.num_parameters(),
        loaded_bytes(model),
    )
    return Standing(opened.name, MASKED if masked else CAUSAL, measures, expected)


@torch.inference_mode()
def expect(opened: Opened, ids: Sequence[int], context: int) -> tuple[tuple[str, float], ...]:
    """Return the likeliest tokens behind a text; a masked model fills a mask that is put there."""
    model, tokenizer = opened.model, opened.tokenizer
    if opened.kind == "masked":
        with user_mistakes():
            before, behind = template_ids(tokenizer)
        room = context - len(before) - len(behind) - 1
        row = [*before, *ids[max(0, len(ids) - room) :], tokenizer.mask_token_id, *behind]
        place = len(row) - len(behind) - 1
    else:
        start = begin_id(tokenizer)  # as where the text is scored
        row = [*([] if start is None else [start]), *ids][-context:]
        place = len(row) - 1
    logits = model(input_ids=torch.tensor([row], device=model.device)).logits[0, place].float()
    probabilities, tokens = logits.softmax(-1).topk(min(TOP, len(logits)))
    texts = token_texts(tokenizer, tokens.tolist())
    return tuple(zip(texts, probabilities.tolist(), strict=True))


def check_number(names: Sequence[Any]) -> None:
    """Raises UserError for fewer than two different models, or too many."""
    if not 2 <= len(names) <= MOST_MODELS or len(set(map(str, names))) < len(names):
        raise UserError(f"Choose 2 to {MOST_MODELS} different models.")


def compare(opened: Sequence[Opened], text: str, most_tokens: int = Limits.prompt_tokens) -> Iterator[list[Standing]]:
    """Yield the standings so far, one model after the other.

    Raises:
        UserError: fewer than two models, too many, or what `measure` raises.
    """
    check_number([each.name for each in opened])
    standings: list[Standing] = []
    for each in opened:
        standings.append(measure(each, text, most_tokens))
        yield standings


def measure_rows(standings: Sequence[Standing]) -> list[list[str]]:
    """Return the table of measures: a row for each, a column for each model."""
    rows = [["kind", *(each.kind for each in standings)]]
    columns = [map(format_value, each.measures) for each in standings]
    return rows + [[name, *values] for name, *values in zip(MEASURES, *columns, strict=True)]


def expected_rows(standings: Sequence[Standing]) -> list[list[str]]:
    """Return what each model expects next: a row for each place, a column for each model."""
    return [
        [str(place + 1), *(_guess(each.expected[place]) if place < len(each.expected) else "" for each in standings)]
        for place in range(max(len(each.expected) for each in standings))
    ]


def _guess(expected: tuple[str, float]) -> str:
    token, probability = expected
    return f"{readable(token)} ({probability:.1%})"


def notes(opened: Sequence[Opened]) -> str:
    """Return what is to be kept in mind of these models, as Markdown."""
    vocabularies = [each.tokenizer.get_vocab() for each in opened]
    wanted = {
        "both kinds": len({each.kind for each in opened}) > 1,
        "tokenizers": any(each != vocabularies[0] for each in vocabularies),
    }
    return " ".join(text for name, text in NOTES.items() if wanted[name])


def compare_models(
    models: Shelf,
    chosen: list[str],
    text: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio hands it over
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the table of measures, what each model expects next, and what is to be kept in mind."""
    with told():
        text = check_prompt(text, models)
        names = chosen if isinstance(chosen, list) else [chosen]
        check_number(names)  # before any is opened
        opened = [models.open(name) for name in names]
        standings: list[Standing] = []
        for standings in compare(opened, text, models.limits.prompt_tokens):
            progress((len(standings), len(opened)), desc=standings[-1].name)
        tables = zip(("measure", "place"), (measure_rows(standings), expected_rows(standings)), strict=True)
        measures, guesses = ({"headers": [first, *names], "data": rows} for first, rows in tables)
        return measures, guesses, notes(opened)


def build(models: Shelf) -> None:
    """Lay the tab out; /compare gives (measures, next tokens, words)."""
    gr.Markdown(ABOUT)
    names = models.names()
    chosen = gr.Dropdown(
        names, value=names[:2], multiselect=True, max_choices=MOST_MODELS, allow_custom_value=True, label="Models"
    )
    text = gr.Textbox(EXAMPLES[0], label="Text", lines=3)
    button = gr.Button("Compare", variant="primary")
    words = gr.Markdown(label="To keep in mind")
    table = gr.Dataframe(label="Measures", interactive=False, wrap=True)
    expected = gr.Dataframe(label=f"The {TOP} likeliest next tokens", interactive=False, wrap=True)
    gr.Examples([[example] for example in EXAMPLES], text, label="Examples")
    gr.on(
        [button.click, text.submit],
        on_shelf(compare_models, models),
        [chosen, text],
        [table, expected, words],
        api_name="compare",
        concurrency_limit=1,
    )
