"""From the runs of the memory evidence to numbers: means over seeds, paired differences, loss by position.

Nothing is filled in: a row without all its runs says which ones are missing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frankenlm.scripts.evidence.card import card_markdown, tables_markdown
from frankenlm.scripts.evidence.comparisons import COMPARISONS, SHUFFLED
from frankenlm.scripts.evidence.data import HELD_OUT_FILES
from frankenlm.scripts.evidence.figures import plot_positions, plot_training_runs
from frankenlm.scripts.evidence.models import INFINITO, MEMORY_OFF, Variant
from frankenlm.scripts.evidence.plan import Table
from frankenlm.scripts.evidence.runs import GAVE_UP, RunKey, RunStore, differences
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_csv, write_json, write_text
from frankenlm.trainer_ext.metrics.seeds import paired_difference, summary

Run = dict[str, Any]


def make_report(tables: Sequence[Table], store: RunStore, seeds: Sequence[int]) -> dict[str, Any]:
    """Gather every finished run of the tables.

    Raises:
        UserError: there is none, or they were made with other settings than these or than each other.
    """
    report: dict[str, Any] = {"seeds": list(seeds), "tables": {}}
    runs = {table.name: runs_of(table, store) for table in tables}
    if not any(runs.values()):
        raise UserError(f"{store.folder} holds no finished run of {', '.join(runs)}; leave out --report_only.")
    for table in tables:
        check_alike(table, runs[table.name], store)
        report["tables"][table.name] = table_report(table, runs[table.name], seeds)
    everything = [run for part in runs.values() for run in part]
    report["versions"] = _distinct(run["versions"] for run in everything)
    report["processors"] = _distinct(run["processor"] for run in everything)
    report["threads"] = _distinct(run["threads"] for run in everything)
    report["cpu_minutes"] = sum(table["cpu_minutes"] for table in report["tables"].values())
    return report


def runs_of(table: Table, store: RunStore) -> list[Run]:
    """The finished runs of the table's models, at any learning rate."""
    names = {name for variant in table.variants for name in row_names(variant)}
    return [run for run in store.all_runs(table.name) if run["model"] in names]


def check_alike(table: Table, runs: Sequence[Run], store: RunStore) -> None:
    """Make sure that runs which stand in one table had one recipe and one text, those that the options name.

    Raises:
        UserError: one differs; the message says in what.
    """
    for run in runs:
        expected = {"recipe": table.recipe.facts(), "data": runs[0]["settings"]["data"]}
        changes = differences({name: run["settings"][name] for name in expected}, expected)
        if changes:
            path = store.path(RunKey(run["table"], run["model"], run["learning_rate"], run["seed"]))
            raise UserError(
                f"{path} does not belong into this report ({'; '.join(changes[:4])}). Give the options that it was "
                "made with, or use another --output_dir."
            )


def table_report(table: Table, runs: Sequence[Run], seeds: Sequence[int]) -> dict[str, Any]:
    """One table: its rows, the sweep, the differences, what is missing."""
    lost = [run for run in runs if GAVE_UP in run]
    runs = [run for run in runs if GAVE_UP not in run]
    outside = [run for run in runs if run["learning_rate"] not in table.learning_rates]
    runs = [run for run in runs if run["learning_rate"] in table.learning_rates]
    found = {(run["model"], run["learning_rate"], run["seed"]): run for run in runs}
    rows, chosen = [], {}
    for variant in table.variants:
        gone = {(run["learning_rate"], run["seed"]) for run in lost if run["model"] == variant.name}
        rates = [rate for rate in table.learning_rates if (rate, seeds[0]) not in gone]
        rate = best_rate(found, variant.name, rates, seeds[0])
        expected = [seed for seed in seeds if (rate, seed) not in gone] if rates else []
        for name, description in row_names(variant).items():
            chosen[name] = {seed: found[name, rate, seed] for seed in seeds if (name, rate, seed) in found}
            swept = rates if name == variant.name else ()
            rows.append(
                {
                    "model": name,
                    "description": description,
                    "learning_rate": rate,
                    "missing": missing_runs(found, name, rate, swept, expected),
                    **row_facts(list(chosen[name].values())),
                }
            )
    return {
        "name": table.name,
        "title": table.title,
        "smoke": table.smoke,
        "splits": splits_of(runs[0]) if runs else [],
        "rows": rows,
        "missing": [text for row in rows for text in row["missing"]],
        "gave_up": [f"{run['model']}, rate {run['learning_rate']:g}, seed {run['seed']}" for run in lost],
        "sweep": sweep_facts(table, found, seeds[0]),
        "other_rates": other_rates(outside),
        "differences": difference_facts(table, chosen),
        "positions": position_facts(table, chosen),
        "curves": curve_facts(table, chosen),
        "recipe": table.recipe.facts(),
        "attention_window": table.shape.attention_window,
        "budget": table.shape.budget,
        "learning_rates": list(table.learning_rates),
        "data": runs[0]["settings"]["data"] if runs else None,
        "exploration": _exploration(chosen),
        "losses": loss_rows([*runs, *outside]),
        "cpu_minutes": sum(_cpu_seconds(run) for run in runs) / 60,
        "runs": len(runs),
        "same_document_neighbours": sum(sum(run["same_document_neighbours"].values()) for run in runs),
    }


def row_names(variant: Variant) -> dict[str, str]:
    """The rows of a model, with what they are: its own, and the shuffled evaluation if it has a memory to shuffle."""
    names = {variant.name: variant.description}
    if variant.has_memory:
        names[SHUFFLED] = f"the checkpoints of {variant.name}, each row reading the memory of another text"
    return names


def missing_runs(
    found: Mapping, model: str, rate: float | None, swept: Sequence[float], seeds: Sequence[int]
) -> list[str]:
    """Name every run that a row lacks: of its sweep (the first seed), and of the seeds at the chosen rate."""
    missing = [f"{model}, rate {one:g}, seed {seeds[0]}" for one in swept if (model, one, seeds[0]) not in found]
    later = [seed for seed in (seeds[1:] if swept else seeds) if (model, rate, seed) not in found]
    at = "the best rate" if rate is None else f"rate {rate:g}"
    return missing + [f"{model}, {at}, seed {seed}" for seed in later]


def best_rate(found: Mapping, model: str, rates: Sequence[float], seed: int) -> float | None:
    """The rate that the sweep chooses among those at which training went on; None while a run of it is missing."""
    if not rates or any((model, rate, seed) not in found for rate in rates):
        return None
    return min(rates, key=lambda rate: found[model, rate, seed]["held_out"]["validation"]["loss"])


def row_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over the seeds of a model."""
    splits = splits_of(runs[0]) if runs else []
    statistics = list(runs[0]["memory"].get("validation", {})) if runs else []
    return {
        "parameters": runs[0]["parameters"] if runs else None,
        "trained_parameters": runs[0].get("trained_parameters") if runs else None,
        "held_out": {
            split: {
                measure: summary([run["held_out"][split][measure] for run in runs])
                for measure in ("loss", "perplexity", "bits_per_byte")
            }
            for split in splits
        },
        "by_seed": validation_by_seed(runs),
        "memory": {name: summary([run["memory"]["validation"][name] for run in runs]) for name in statistics},
        "tokens_per_cpu_second": summary(
            [run["tokens_per_cpu_second"] for run in runs if "tokens_per_cpu_second" in run]
        ),
    }


def validation_by_seed(runs: Sequence[Run]) -> dict[str, float]:
    """The validation loss of each run, by its seed as JSON keeps it."""
    return {str(run["seed"]): run["held_out"]["validation"]["loss"] for run in runs}


def loss_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each run, trials included: what the report was made from."""
    return [
        {
            **{name: run[name] for name in ("model", "learning_rate", "seed", "parameters")},
            **{f"{split}_loss": run["held_out"][split]["loss"] for split in splits_of(run)},
        }
        for run in runs
    ]


def splits_of(run: Run) -> list[str]:
    """The held-out splits of a run, validation first; a file sorts them otherwise."""
    return sorted(run["held_out"], key=HELD_OUT_FILES.index)


def sweep_facts(table: Table, found: Mapping, seed: int) -> list[dict[str, Any]]:
    """Validation loss of the first seed at each rate, by model; None for a missing run."""
    facts = []
    for variant in table.variants:
        runs = [found.get((variant.name, rate, seed)) for rate in table.learning_rates]
        losses = [run and run["held_out"]["validation"]["loss"] for run in runs]
        facts.append({"model": variant.name, "losses": losses})
    return facts


def other_rates(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Validation loss of the runs at rates that are not the table's, by model and rate: trials worth knowing of."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["model"], run["learning_rate"]), []).append(run)
    return [
        {
            "model": model,
            "learning_rate": rate,
            "validation_loss": summary(list(validation_by_seed(group).values())),
            "by_seed": validation_by_seed(group),
        }
        for (model, rate), group in groups.items()
    ]


def measures(table: Table, run: Run) -> dict[str, float]:
    """The losses that are compared: each split's; with an attention window, also those of far positions.

    A token has as many predecessors as its position in the row; a layer of attention reaches `window` of them.
    """
    losses = {f"{split} loss": run["held_out"][split]["loss"] for split in splits_of(run)}
    window = table.shape.attention_window
    if table.by_position and window:
        for split, by_position in run["by_position"].items():
            for start in (window, 4 * window):
                far = by_position[start:]  # the first entry is the loss of the token at position 1
                losses[f"{split} loss beyond position {start}"] = sum(far) / len(far)
    return losses


def difference_facts(table: Table, chosen: Mapping[str, Mapping[int, Run]]) -> list[dict[str, Any]]:
    """Every comparison whose two models stand in the table, for every measure."""
    facts = []
    for comparison in COMPARISONS:
        if not {comparison.ours, comparison.theirs} <= chosen.keys():
            continue
        ours, theirs = (
            {seed: measures(table, run) for seed, run in chosen[name].items()}
            for name in (comparison.ours, comparison.theirs)
        )
        for measure in dict.fromkeys(name for losses in (*ours.values(), *theirs.values()) for name in losses):
            difference = paired_difference(
                {seed: losses[measure] for seed, losses in ours.items()},
                {seed: losses[measure] for seed, losses in theirs.items()},
            )
            difference["share"] = share_of_loss(difference, [losses[measure] for losses in theirs.values()])
            facts.append({"name": comparison.name, "measure": measure, **difference})
    return facts


def share_of_loss(difference: Mapping[str, Any], losses: Sequence[float]) -> float | None:
    """The size of a difference as a share of the loss that it changes."""
    return None if difference["mean"] is None else abs(difference["mean"]) / _mean(losses)


def position_facts(table: Table, chosen: Mapping[str, Mapping[int, Run]]) -> list[dict[str, Any]]:
    """Mean validation loss in bins of positions as wide as the window: one entry for each model and bin."""
    window = table.shape.attention_window
    if not (table.by_position and window):
        return []
    return [
        {
            "model": name,
            "first_position": start + 1,
            "last_position": min(start + window, table.recipe.length - 1),
            **summary([_mean(run["by_position"]["validation"][start : start + window]) for run in runs.values()]),
        }
        for name, runs in chosen.items()
        if runs
        for start in range(0, table.recipe.length - 1, window)
    ]


def curve_facts(table: Table, chosen: Mapping[str, Mapping[int, Run]]) -> dict[str, list[list[float]]]:
    """Training loss by step, the mean over the seeds, for each trained model."""
    return {
        name: [
            [points[0][0], _mean([point[1] for point in points])]
            for points in zip(*(run["curve"] for run in runs.values()), strict=True)
        ]
        for name, runs in chosen.items()
        if name != SHUFFLED and runs
    }


def write_report_files(report: Mapping[str, Any], folder: Path, card: Path | None) -> None:
    """Write report.json, table.md, the figures and the tables behind them into `folder`, and the card if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_text(folder / "table.md", tables_markdown(report))
    for name, table in report["tables"].items():
        if table["losses"]:
            write_csv(folder / f"{name}_runs.csv", table["losses"], number=".5f")
        if table["curves"]:
            plot_training_runs(table, folder / f"{name}_training.png")
        if table["positions"]:
            plot_positions(table, folder / f"{name}_positions.png")
            write_csv(folder / f"{name}_positions.csv", table["positions"], number=".5f")
    if card is not None:
        write_card(report, folder, card)


def write_card(report: Mapping[str, Any], folder: Path, card: Path) -> None:
    """Write the card of a report whose figures lie in `folder`."""
    card.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_text(card, card_markdown(report, figures_in(report, folder), card))


def figures_in(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The figures that write_report_files makes of this report, by name."""
    kinds = {"training": "curves", "positions": "positions"}
    return {
        f"{name}_{kind}": folder / f"{name}_{kind}.png"
        for name, table in report["tables"].items()
        for kind, source in kinds.items()
        if table[source]
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json, to write its card anew.

    Raises:
        UserError: there is none, or it is not a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--from_report {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--from_report {path}: is not JSON ({error}).") from error
    try:
        card_markdown(report, {}, path)  # a file that says less than a report cannot be put into words
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--from_report {path}: is no report of this script ({type(error).__name__}).") from error
    return report


def _exploration(chosen: Mapping[str, Mapping[int, Run]]) -> dict[str, Any] | None:
    """The exploration noise of the models that have it; those of one table share it."""
    for name in (INFINITO.name, MEMORY_OFF.name):
        for run in chosen.get(name, {}).values():
            config = run["settings"]["config"]
            return {"sigma": config["exploration_sigma"], "schedule": config["exploration_schedule"]}
    return None


def _cpu_seconds(run: Run) -> float:
    return run.get("cpu_seconds", 0.0) + run["evaluation_cpu_seconds"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _distinct(values) -> list:
    kept: list = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept
