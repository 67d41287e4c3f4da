"""Several causal models on the same prompts and data: what scripts/compare.py does, as functions.

The same seeds, settings and context length go to every model. What is counted in tokens (loss, perplexity, repetition,
diversity, vocabulary use) compares models of one tokenizer; bits per byte and BLEU compare any.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from frankenlm.modeling.checks import suggest

from ..common.checkpoints import Checkpoint, usable_positions
from ..common.cli import UserError
from ..common.files import written_out
from ..common.redaction import public_name
from ..generation.generate import Text, generate_texts, text_tokens, tokens_per_second, written
from ..generation.prompts import Prompt
from ..generation.sampling import Sampling
from ..metrics.text import ORDERS, measure_written
from .flags import COMPARED
from .scoring import Scorer, score

# panel of the figure -> measures that share a scale
PANELS = {
    "parameters": ("parameters",),
    "loss (nats per token)": ("loss",),
    "perplexity": ("perplexity",),
    "bits per byte": ("bits_per_byte",),
    "BLEU-n (percent)": COMPARED["bleu"],
    "repetition-n": COMPARED["repetition"][: len(ORDERS)],
    "repetition-n of characters": COMPARED["repetition"][-len(ORDERS) :],
    "distinct-n": COMPARED["diversity"][: len(ORDERS)],
    "self-BLEU (percent)": ("self_bleu",),
    "vocabulary use": ("type_token_ratio", "vocabulary_coverage", "unknown_share"),
    "different tokens in 100": ("unique_per_100",),
    "tokens per second": ("tokens_per_second",),
}
LIKELIHOOD = ("loss", "perplexity", "bits_per_byte")
MODELS_IN_TABLE = 6  # of compare.md; of more there are several tables
LONG_NAME = 20  # characters of a heading that may be broken at underscores
PROMPT_IN_TABLE = 200  # characters of a prompt in compare.md; compare.json has all


@dataclass(frozen=True)
class Contestant:
    """One of the models: its label in tables, what is known of it, its weights, and the prompts in its tokens."""

    label: str
    checkpoint: Checkpoint
    model: PreTrainedModel
    prompt_ids: list[list[int]]


@dataclass(frozen=True)
class Likelihood:
    """What the models are scored on, and how: see scoring.Scorer."""

    documents: Dataset
    context_length: int
    stride: int
    batch_size: int


def choose_metrics(text: str, *, has_data: bool, has_references: bool) -> list[str]:
    """Read --metrics: `all` (of what can be measured) or names with commas, in the order of COMPARED.

    Raises:
        UserError: an unknown name, or one that needs a data set or references that are not there.
    """
    missing = {} if has_data else dict.fromkeys(LIKELIHOOD, "needs --dataset")
    if not has_references:
        missing["bleu"] = 'needs a "reference" in every row of the --prompts file (.jsonl)'
    if text == "all":
        return [name for name in COMPARED if name not in missing]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COMPARED:
            raise UserError(
                f"--metrics: unknown metric {name!r}.{suggest(name, COMPARED)} Known: all, {', '.join(COMPARED)}."
            )
        if name in missing:
            raise UserError(f"--metrics {name}: {missing[name]}.")
    if not names:
        raise UserError(f"--metrics is empty. Known: all, {', '.join(COMPARED)}.")
    return [name for name in COMPARED if name in names]


def make_labels(names: Sequence[str]) -> list[str]:
    """Short names for tables: the last part of each path; equal ones are numbered."""
    short = ["".join(map(_visible, Path(public_name(name)).name)) for name in names]
    return [
        f"{name} #{short[: index + 1].count(name)}" if short.count(name) > 1 else name
        for index, name in enumerate(short)
    ]


def _visible(sign: str) -> str:
    """A character of a folder's name as a table can show it: line ends and the like by their names in Python."""
    return sign if sign.isprintable() else repr(sign)[1:-1]


def common_context(checkpoints: Sequence[Checkpoint], max_length: int | None) -> int:
    """Return the tokens every model sees at once: the smallest limit among them, or fewer.

    Raises:
        UserError: a max_length beyond it, or no model that says how long its inputs may be.
    """
    limits = {
        checkpoint.name: usable_positions(checkpoint.config)
        for checkpoint in checkpoints
        if hasattr(checkpoint.config, "max_position_embeddings")
    }
    if not limits:
        if max_length is None:
            raise UserError("no model says how long its inputs may be: give --max_length.")
        return max_length
    shortest = min(limits, key=limits.__getitem__)
    if max_length is not None and max_length > limits[shortest]:
        raise UserError(
            f"--max_length {max_length} exceeds max_position_embeddings={limits[shortest]} of {shortest!r}."
        )
    return max_length or limits[shortest]


# --- measuring


def compare(
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    metrics: Sequence[str],
    *,
    likelihood: Likelihood | None,
    device: str,
) -> Iterator[dict[str, Any]]:
    """Measure one model after the other; yield a row for each, with its texts."""
    with tqdm(total=len(contestants) * len(prompts), unit="prompt", disable=None) as bar:
        for contestant in contestants:
            bar.set_description(contestant.label)
            model = contestant.model.to(device)
            yield measure(contestant, prompts, sampling, metrics, likelihood, bar)
            model.to("cpu")


def measure(
    contestant: Contestant,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    metrics: Sequence[str],
    likelihood: Likelihood | None,
    bar: tqdm,
) -> dict[str, Any]:
    """Everything the report says of one model: the measures asked for, None where there is nothing to measure."""
    model, checkpoint = contestant.model, contestant.checkpoint
    # the first call is slow: it sets things up that later ones find
    warm_up = dataclasses.replace(sampling, max_new_tokens=2, num_return_sequences=1)
    generate_texts(model, checkpoint, contestant.prompt_ids[0][:1], warm_up, index=0)
    texts: list[list[Text]] = []
    for index, ids in enumerate(contestant.prompt_ids):
        texts.append(generate_texts(model, checkpoint, ids, sampling, index=index))
        bar.update()
    values: dict[str, Any] = {"parameters": model.num_parameters()}
    flat = [text for of_prompt in texts for text in of_prompt]
    references = [prompt.references for prompt, of_prompt in zip(prompts, texts, strict=True) for _ in of_prompt]
    values |= measure_written(written(flat, model, checkpoint.tokenizer, references), metrics)
    values["tokens_per_second"] = tokens_per_second(flat)
    extra = {"bleu_signature": values["bleu_signature"]} if "bleu" in metrics else {}
    if likelihood is not None and any(name in metrics for name in LIKELIHOOD):
        scorer = Scorer(
            model, checkpoint.tokenizer, "causal", likelihood.context_length, likelihood.stride, likelihood.batch_size
        )
        scored = score(scorer, likelihood.documents, mlm_probability=0.0, seed=sampling.seed)
        values |= {name: scored.measures()[name] for name in LIKELIHOOD}
        extra["scored_tokens"] = scored.facts["tokens"]
    return {
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "label": contestant.label,
        "measures": {measure: values[measure] for name in metrics for measure in COMPARED[name]},
        "model": public_name(checkpoint.name),
        "texts": [
            {"prompt": prompt.text, "references": list(prompt.references), **text_row(text, model)}
            for prompt, of_prompt in zip(prompts, texts, strict=True)
            for text in of_prompt
        ],
        "vocab_size": len(checkpoint.tokenizer),
        **extra,
    }


def text_row(text: Text, model: PreTrainedModel) -> dict[str, Any]:
    """One text in the report."""
    facts = dataclasses.asdict(text)
    del facts["tokens"]
    return {**facts, "tokens": len(text_tokens(model, text.tokens))}


def same_tokenizer(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether all models cut text into the same tokens, as far as their vocabularies tell."""
    vocabularies = [checkpoint.tokenizer.get_vocab() for checkpoint in checkpoints]
    return all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


# --- tables and figure


def figure_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """The PANELS whose measures the rows have."""
    return {name: measures for name, measures in PANELS.items() if set(measures) <= set(rows[0]["measures"])}


def format_value(value: float | int | None) -> str:
    """A figure in a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else written_out(value, 0)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The measures, a line each, a column for each model."""
    names = list(rows[0]["measures"])
    width = max(14, *(len(row["label"]) + 2 for row in rows))
    first = max(18, *(len(name) for name in names))
    lines = [" " * first + "".join(f"{row['label']:>{width}}" for row in rows)]
    for name in names:
        lines.append(f"{name:<{first}}" + "".join(f"{format_value(row['measures'][name]):>{width}}" for row in rows))
    return "\n".join(lines)


def csv_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model: label, model, measures."""
    return [{"label": row["label"], "model": row["model"], **row["measures"]} for row in rows]


def markdown_report(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """compare.md: the table, how it was made, and the texts side by side."""
    lines = ["# Comparison", ""]
    for start in range(0, len(rows), MODELS_IN_TABLE):
        some = rows[start : start + MODELS_IN_TABLE]
        values = [[name, *(format_value(row["measures"][name]) for row in some)] for name in rows[0]["measures"]]
        lines += [*markdown_table(["measure", *(row["label"] for row in some)], values), ""]
    lines += [
        f"- {markdown_cell(row['label'])}: {markdown_cell(row['model'])}, {row['architecture']}, {row['dtype']}"
        for row in rows
    ]
    settings = {name: value for name, value in facts["settings"].items() if value not in (None, (), [])}
    lines += ["", "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."]
    if facts["dataset"]:
        lines += [
            f"Data: {facts['dataset']} ({facts['split']}), {facts['documents']} documents, windows of "
            f"{facts['context_length']} tokens that move on by {facts['stride']}."
        ]
    if facts["bleu_signature"]:
        lines += [f"BLEU in percent, sacrebleu `{facts['bleu_signature']}`."]
    if not facts["same_tokenizer"]:
        lines += [
            "The models have different tokenizers: loss, perplexity, repetition, diversity and vocabulary use are "
            "counted in tokens of different size; compare bits per byte and BLEU."
        ]
    lines += ["", "![comparison](compare.png)", "", "## Texts", ""]
    for index, first in enumerate(rows[0]["texts"]):
        cells = [[row["label"], row["texts"][index]["text"]] for row in rows]
        if first["references"]:
            cells.append(["(reference)", first["references"][0]])
        prompt = first["prompt"]
        shown = prompt if len(prompt) <= PROMPT_IN_TABLE else "..." + prompt[-PROMPT_IN_TABLE:]
        lines += [f"**{markdown_cell(shown)}**", "", *markdown_table(["model", "continuation"], cells), ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; long names at its head may be broken at underscores, where a page is narrow."""
    heads = [markdown_cell(name).replace("_", "_<wbr>" if len(name) > LONG_NAME else "_") for name in header]
    lines = [heads, ["---"] * len(header), *([markdown_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = "".join("\\" + sign if sign in "\\`*_[]<>|#" else sign for sign in text)
    return " ⏎ ".join(plain.splitlines())
