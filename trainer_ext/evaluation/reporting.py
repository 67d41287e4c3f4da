"""What was measured of one model, as JSON (report.schema.json), table, Markdown, CSV and figure.

`describe` makes the report of what was measured; everything else is made of the report, and never of a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from ..metrics.bootstrap import CONFIDENCE, Summed, drawn_together, with_interval
from .comparing import PANELS, format_value, markdown_cell, markdown_table
from .flags import METRICS

SCHEMA_VERSION = 1
UNITS = {
    "loss": "loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity (per token)",
    "word_perplexity": "perplexity per word",
    "reference_perplexity": "perplexity per token of the reference",
}
COUNTED = ("documents", "tokens", "words", "reference_tokens", "bytes")
# panel of the figure -> measures that share a scale; every measure of --metrics stands in one
FIGURE_PANELS = {
    **{name: measures for name, measures in PANELS.items() if name not in ("parameters", "tokens per second")},
    "perplexity per word": METRICS["word_perplexity"],
    "perplexity per token of the reference": METRICS["reference_perplexity"],
    "top-k accuracy": METRICS["accuracy"],
    "distinct tokens": ("distinct_tokens",),
    "longest repeat (tokens)": ("longest_repeat",),
    "the text: different tokens in 100": METRICS["text"][:1],
    "the text: vocabulary use": METRICS["text"][1:],
}


@dataclass
class MeasuredSplit:
    """What was measured on one split.

    facts: how much was scored, and how. measures: their values. summed: of those that are made of sums over documents
    or texts, the sums. continuations: how the texts were written, None where none were.
    """

    name: str
    facts: dict[str, Any]
    measures: dict[str, Any] = field(default_factory=dict)
    summed: list[Summed] = field(default_factory=list)
    unit: str = "document"
    continuations: dict[str, Any] | None = None


def describe(
    measured: Sequence[MeasuredSplit],
    metrics: Sequence[str],
    *,
    draws: int,
    seed: int,
    preferences: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return metrics, bootstrap, splits and gaps of a report: measures with intervals, and what they differ by.

    preferences: what was made of minimal pairs, for each way of asking.

    A gap is the value of a split less that of the first one; its interval is drawn from both, each by itself.
    """
    names = measure_names(metrics)
    # seeds of their own: splits of equal size would else be drawn alike
    bar = partial(tqdm, desc="bootstrap", unit="draw", delay=1, leave=False, disable=None)
    drawn = [drawn_together(split.summed, draws, (seed, place), bar) for place, split in enumerate(measured)]
    first, of_first = measured[0], drawn[0]
    return {
        "metrics": list(metrics),
        "minimal_pairs": preferences or None,
        "bootstrap": {"confidence": CONFIDENCE, "draws": draws, "seed": seed, "unit": first.unit} if draws else None,
        "splits": {
            split.name: {
                **split.facts,
                "continuations": split.continuations,
                "measures": {
                    name: with_interval(split.measures[name], values.get(name))
                    for name in names
                    if name in split.measures
                },
            }
            for split, values in zip(measured, drawn, strict=True)
        },
        "gaps": [
            {"split": split.name, "against": first.name, "measures": _gap(first, split, of_first, values, names)}
            for split, values in zip(measured[1:], drawn[1:], strict=True)
        ],
    }


def _gap(
    first: MeasuredSplit,
    other: MeasuredSplit,
    of_first: Mapping[str, np.ndarray],
    of_other: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> dict[str, Any]:
    found = {}
    for name in names:
        if name not in first.measures or name not in other.measures:
            continue
        values = other.measures[name], first.measures[name]
        difference = None if None in values else values[0] - values[1]
        both = name in of_first and name in of_other
        found[name] = with_interval(difference, of_other[name] - of_first[name] if both else None)
    return found


def measure_names(metrics: Sequence[str]) -> list[str]:
    """The names in the report of what --metrics names, in the order of METRICS."""
    return [measure for metric in METRICS if metric in metrics for measure in METRICS[metric]]


# --- made of the report


def columns(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The columns of a table: heading -> measure -> value, low and high."""
    splits = {name: split["measures"] for name, split in report["splits"].items()}
    return splits | {f"{gap['split']} - {gap['against']}": gap["measures"] for gap in report["gaps"]}


def rows(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield (measure, a text for each column): its value, and its interval where it has one."""
    heads = columns(report)
    for name in measure_names(report["metrics"]):
        if any(name in measures for measures in heads.values()):
            label = UNITS.get(name, name)
            if name == "perplexity" and report["method"] == "pseudo":
                label = "pseudo-perplexity"
            yield label, [_figure(measures.get(name)) for measures in heads.values()]


def _figure(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    ends = "" if entry["low"] is None else f" [{format_value(entry['low'])}, {format_value(entry['high'])}]"
    return format_value(entry["value"]) + ends


def text_table(model: str, report: Mapping[str, Any]) -> str:
    """The measures, a line each, a column for each split and gap, and how much was scored."""
    heads = list(columns(report))
    lines = [(f"{model}, {report['method']}", heads), *rows(report)]
    for name in COUNTED:
        counts = [split.get(name) for split in report["splits"].values()]
        if any(count is not None for count in counts):
            cells = ["-" if count is None else f"{count:,}" for count in counts]
            lines.append((name, cells + [""] * (len(heads) - len(cells))))
    first = max(len(label) for label, _ in lines[1:]) + 2
    widths = [max(len(cells[place]) for _, cells in lines) + 2 for place in range(len(heads))]
    table = [
        (
            f"  {label:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        ).rstrip()
        for label, cells in lines[1:]
    ]
    head = " " * (first + 2) + "".join(f"{cell:>{width}}" for cell, width in zip(heads, widths, strict=True))
    return "\n".join([lines[0][0], head, *table, *dynamic_lines(report), *_pairs_text(report)])


def dynamic_lines(report: Mapping[str, Any]) -> list[str]:
    """What the model scores while it learns from the text, a line for each split where that was asked for."""
    lines = []
    for name, split in report["splits"].items():
        learned = split.get("dynamic_evaluation")
        if learned is not None:
            figures = ", ".join(f"{UNITS[each]} {format_value(value)}" for each, value in learned["measures"].items())
            lines.append(f"  {name}, learning from the text behind each window (rate {learned['rate']:g}): {figures}")
    return lines


def pair_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """A row for all of --minimal_pairs together and each phenomenon: its name, how many pairs, and the accuracy in each
    way of asking."""
    modes = report["minimal_pairs"] or {}
    names = next(iter(modes.values()), {})
    return [
        [name, str(entry["pairs"]), *(_figure(scores[name]) for scores in modes.values())]
        for name, entry in names.items()
    ]


def _pairs_text(report: Mapping[str, Any]) -> list[str]:
    if not report["minimal_pairs"]:
        return []
    table = [["minimal pairs", "pairs", *report["minimal_pairs"]], *pair_rows(report)]
    widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
    return [
        f"  {row[0]:<{widths[0]}}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in table
    ]


def csv_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure of each split and gap: split, against, measure, value, low, high."""
    parts = [(name, "", split["measures"]) for name, split in report["splits"].items()]
    parts += [(gap["split"], gap["against"], gap["measures"]) for gap in report["gaps"]]
    return [
        {"split": split, "against": against, "measure": name, **entry}
        for split, against, measures in parts
        for name, entry in measures.items()
    ]


def figure_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each split, as barcharts.plot_comparison takes them."""
    return [
        {
            "label": name,
            "measures": {measure: entry["value"] for measure, entry in split["measures"].items()},
            "intervals": {
                measure: (entry["low"], entry["high"])
                for measure, entry in split["measures"].items()
                if entry["low"] is not None
            },
        }
        for name, split in report["splits"].items()
    ]


def figure_panels(report: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The panels whose measures every split has."""
    have = set.intersection(*(set(split["measures"]) for split in report["splits"].values()))
    return {name: measures for name, measures in FIGURE_PANELS.items() if set(measures) <= have}


def markdown_report(report: Mapping[str, Any], figure: str) -> str:
    """The page: the table, what the figures rest on, and the figure, a file beside it."""
    heads = list(columns(report))
    splits = report["splits"]
    windows = f"windows of {report['context_length']} tokens that move on by {report['stride']}"
    lines = [
        f"# Evaluation of {markdown_cell(report['model'])}",
        "",
        *markdown_table(["measure", *heads], [[label, *cells] for label, cells in rows(report)]),
        "",
        f"![evaluation]({figure})",
        "",
        f"Text: {markdown_cell(report['dataset'])}, scored by `{report['method']}`, {windows}.",
        "",
        *markdown_table(
            ["split", *COUNTED],
            [[name, *(format_value(split.get(count)) for count in COUNTED)] for name, split in splits.items()],
        ),
    ]
    if dynamic_lines(report):
        lines += ["", "Dynamic evaluation, the figures of other weights than those that were saved:", ""]
        lines += [f"- {line.strip()}" for line in dynamic_lines(report)]
    if report["minimal_pairs"]:
        heads = ["minimal pairs", "pairs", *report["minimal_pairs"]]
        told = (
            "The share of pairs whose grammatical sentence is the likelier; 0.5 is a guess. Intervals are over pairs."
        )
        lines += ["", *markdown_table(heads, pair_rows(report)), "", told]
    boot = report["bootstrap"]
    if boot is not None:
        lines += [
            "",
            f"In brackets: {boot['confidence']:.0%} intervals over {boot['unit']}s ({boot['draws']} drawings, seed "
            f"{boot['seed']}), those of what the model wrote over texts. They say how much hangs on these documents, "
            "and nothing of other trainings.",
        ]
    if report["gaps"]:
        lines += ["", f"A gap is the value of a split less that of {report['gaps'][0]['against']}."]
    lines += [f"\n{_written(name, split['continuations'])}" for name, split in splits.items() if split["continuations"]]
    return "\n".join([*lines, ""])


def _written(split: str, made: Mapping[str, Any]) -> str:
    told = (
        f"{split}: {made['documents']} documents gone on with, {made['new_tokens']} tokens from "
        f"{made['prompt_tokens']}, temperature {made['temperature']}, seed {made['seed']}"
    )
    return told + (f", BLEU by sacrebleu `{made['bleu_signature']}`." if made["bleu_signature"] else ".")
