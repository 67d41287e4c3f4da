"""How far are low-bit models from their full-precision twins? Finished runs of a sweep, scored on text that chose none.

    frankenlm sweep --config configs/sweeps/ternary_gap.yaml --output_dir runs/ternary_gap
    python scripts/evidence/ternary_gap.py --runs runs/ternary_twin/*/ runs/ternary_gap/*/ \
        --choice runs/ternary_choice/sweep.csv --test_dataset test.jsonl --output_dir results/samples/ternary_gap

A recipe is chosen by the loss on the validation text of its runs; what is reported is the loss on the test text, one
document a row in windows of the training length, in float32, as `frankenlm evaluate` has it. Written are runs.csv,
choice.csv (the validation losses of the sweeps that chose) and table.md; what stands in runs.csv is not scored again,
if it was scored on the same text.
"""

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frankenlm.scripts.evidence.ternary_findings import FULL
from frankenlm.scripts.evidence.ternary_table import read_run, settings_of
from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_output_dir,
    path_value,
    run_command,
    user_mistakes,
)
from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.data.splits import iter_texts, load_documents
from frankenlm.trainer_ext.evaluation.perplexity import perplexity_of_texts
from frankenlm.trainer_ext.metrics.seeds import paired_difference, plus_minus, summary
from frankenlm.trainer_ext.presets import parse_run

LENGTH = ("steps", "preset", "batch", "precision")  # what a run and its twin have in common
# of a recipe: what the table has a column for where the cells differ in it
OTHERS = ("w_scheme", "ternary_training", "embedding_start", "teacher", "teacher_temperature")
RECIPE = ("weights", "scale", "learning_rate", "ternary_start", "teacher_weight", "teacher_hidden_weight", *OTHERS)
COLUMNS = ("run", *LENGTH, *RECIPE, "seed", "tokens_seen", "eval_loss", "test_loss", "test_text")
CHOICE_COLUMNS = ("sweep", "run", "status", "eval_loss")
GOAL = 0.03  # nats a byte that a low-bit model may lose against its twin

Row = Mapping[str, Any]


def read_gap_run(folder: Path) -> dict[str, Any]:
    """The row of a finished run, its test loss and text left out.

    Raises:
        UserError: the folder holds no finished run.
    """
    row = read_run(folder)
    settings = parse_run(settings_of(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["command"]))
    taught = settings.model.teacher is not None
    return {name: "" if row[name] is None else row[name] for name in COLUMNS if name in row} | {
        "ternary_start": settings.training.ternary_start,
        "teacher_weight": settings.model.teacher_weight if taught else 0.0,
        "teacher_hidden_weight": settings.model.teacher_hidden_weight,
        "teacher": settings.model.teacher or "",
        "teacher_temperature": settings.model.teacher_temperature if taught else 0.0,
    }


def score_run(folder: Path, texts: Sequence[str]) -> float:
    """Nats a token of the texts under the model of a run, each in windows of the length that it was trained with."""
    length = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["max_length"]
    scored = perplexity_of_texts(texts, str(folder), max_length=length, device="cpu")
    return scored["loss"]


def text_digest(texts: Sequence[str]) -> str:
    """What tells a test text from others."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def read_scored(path: Path, text: str) -> dict[tuple[str, float], float]:
    """The losses that an earlier runs.csv has on the test text of this digest, by run and validation loss."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("test_text") == text]
    return {(row["run"], float(row["eval_loss"])): float(row["test_loss"]) for row in rows}


def read_choice(path: Path) -> list[dict[str, str]]:
    """The runs of a sweep's sweep.csv, finished or not.

    Raises:
        UserError: it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            runs = list(csv.DictReader(file))
        about = [(path.resolve().parent.name, run["name"], run["status"], run["eval_loss"]) for run in runs]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"--choice {path}: no sweep.csv of a sweep ({type(error).__name__}).") from error
    return [dict(zip(CHOICE_COLUMNS, run, strict=True)) for run in about]


def cells_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A cell for all runs that agree in `LENGTH` and `RECIPE`: losses over seeds, and the gap to the twin's by seed."""
    cells = []
    for members in by_recipe(rows):
        by_seed, is_twin = {row["seed"]: row["test_loss"] for row in members}, members[0]["weights"] == FULL
        cells.append(
            {
                **{name: members[0][name] for name in (*LENGTH, *RECIPE)},
                "bytes": max(row["tokens_seen"] for row in members),
                "validation": summary([row["eval_loss"] for row in members]),
                "test": summary(list(by_seed.values())),
                "gap": None if is_twin else paired_difference(by_seed, best_twin(rows, members[0])),
            }
        )
    return sorted(cells, key=lambda cell: (cell["steps"], cell["weights"] != FULL, cell["validation"]["mean"]))


def by_recipe(rows: Sequence[Row]) -> list[list[Row]]:
    """The runs that agree in `LENGTH` and `RECIPE`, together.

    Raises:
        UserError: two of them have the same seed, so that they differ in what no column tells, or in nothing.
    """
    grouped: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        runs = grouped.setdefault(tuple(row[name] for name in (*LENGTH, *RECIPE)), {})
        other = runs.setdefault(row["seed"], row)
        if other is not row:
            raise UserError(
                f"--runs: {other['run']} and {row['run']} are both seed {row['seed']} of one recipe: give one of them."
            )
    return [list(runs.values()) for runs in grouped.values()]


def best_twin(rows: Sequence[Row], run: Row) -> dict[int, float]:
    """Test losses by seed of a run's full-precision twins, by the recipe of the lowest mean validation loss."""
    twins = [row for row in rows if row["weights"] == FULL and all(row[name] == run[name] for name in LENGTH)]
    best = min(by_recipe(twins), key=lambda runs: summary([row["eval_loss"] for row in runs])["mean"], default=[])
    return {row["seed"]: row["test_loss"] for row in best}


def findings(cells: Sequence[Row]) -> list[str]:
    """For each length, the recipe with the lowest validation loss among those of most seeds, and its gap."""
    lines = []
    for steps in sorted({cell["steps"] for cell in cells}):
        low = [cell for cell in cells if cell["steps"] == steps and cell["gap"] is not None and cell["gap"]["n"]]
        most = max((cell["gap"]["n"] for cell in low), default=0)
        best = min(
            (cell for cell in low if cell["gap"]["n"] == most),
            key=lambda cell: cell["validation"]["mean"],
            default=None,
        )
        if best is None:
            continue
        gap = best["gap"]
        about = f"{best['bytes']:,} bytes: lowest on the validation text is {described(best)}"
        lines.append(f"{about}; on the test text it lies {gap_words(gap)}")
        reached = "is shown" if gap["n"] >= 3 and gap["high"] <= GOAL else "is not shown"
        lines.append(f"{best['bytes']:,} bytes: a gap of at most {GOAL} over three seeds {reached}")
    return lines


def choice_lines(choice: Sequence[Mapping[str, str]]) -> list[str]:
    """For each sweep that chose among several recipes, what each run changes in the validation loss of the first."""
    lines = []
    for sweep in dict.fromkeys(run["sweep"] for run in choice):
        losses = {run["run"]: float(run["eval_loss"]) for run in choice if run["sweep"] == sweep and run["eval_loss"]}
        if len({run.partition("seed=")[0] for run in losses}) < 2:
            continue
        (first, reference), *others = losses.items()
        changes = "; ".join(f"{run} {loss - reference:+.4f}" for run, loss in others)
        lines.append(f"{sweep}, on the validation text, against {first} ({reference:.4f}): {changes}")
    return lines


def described(cell: Row) -> str:
    """A recipe in words."""
    parts = [f"a scale per {cell['scale']}", f"rate {cell['learning_rate']:g}"]
    if cell["ternary_start"]:
        parts.append(f"unrounded for {cell['ternary_start']:g} of the run")
    if cell["teacher_weight"] or cell["teacher_hidden_weight"]:
        parts.append(f"a teacher's logits {cell['teacher_weight']:g}, hidden states {cell['teacher_hidden_weight']:g}")
    return ", ".join(parts)


def gap_words(gap: Row) -> str:
    """A gap with its sign, interval and seeds."""
    direction = "above" if gap["mean"] > 0 else "below"
    bounds = "" if gap["low"] is None else f"95 % interval {gap['low']:+.4f} to {gap['high']:+.4f}, "
    seeds = f"{gap['n']} seed{'s' if gap['n'] > 1 else ''}"
    return f"{abs(gap['mean']):.4f} nats a byte {direction} its full-precision twin ({bounds}{seeds})"


def report_text(rows: Sequence[Row], choice: Sequence[Mapping[str, str]]) -> str:
    """What the rows say, by rule; the cells; and the runs by which recipes were chosen, those not made included."""
    cells = cells_of(rows)
    lines = "\n".join(f"- {line}." for line in [*findings(cells), *choice_lines(choice)])
    chosen = [
        {
            "sweep": run["sweep"],
            "run": run["run"],
            "validation loss": f"{float(run['eval_loss']):.4f}" if run["status"] == "finished" else "not run",
        }
        for run in choice
    ]
    tables = "\n\n".join(markdown_table(table) for table in (shown(cells), chosen) if table)
    return f"In short:\n\n{lines}\n\n{tables}\n"


def shown(cells: Sequence[Row]) -> list[dict[str, str]]:
    """The cells as lines of the table, with a column for each of `OTHERS` in which low-bit ones differ."""
    told = [name for name in OTHERS if len({cell[name] for cell in cells if cell["weights"] != FULL} - {"", 0.0}) > 1]
    return [{**_shown(cell), **{name: str(cell[name]) for name in told}} for cell in cells]


def _shown(cell: Row) -> dict[str, str]:
    gap, taught = cell["gap"], f"{cell['teacher_weight']:g} / {cell['teacher_hidden_weight']:g}"
    return {
        "bytes": f"{cell['bytes']:,}",
        "weights": cell["weights"],
        "scale per": cell["scale"],
        "rate": f"{cell['learning_rate']:g}",
        "unrounded": f"{cell['ternary_start']:g}" if cell["ternary_start"] else "",
        "teacher: logits / hidden": "" if taught == "0 / 0" else taught,
        "seeds": str(cell["test"]["n"]),
        "validation loss": plus_minus(cell["validation"]),
        "test loss": plus_minus(cell["test"]),
        "above its twin": "" if gap is None or not gap["n"] else plus_minus(gap, sign=True),
    }


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--runs", nargs="+", type=path_value, required=True, help="folders of finished runs")
    add("--choice", nargs="+", type=path_value, default=[], help="sweep.csv of the sweeps in which recipes were chosen")
    add("--test_dataset", required=True, help="text that neither trained nor chose, given as to scripts/train.py")
    add("--output_dir", type=path_value, required=True, help="folder of runs.csv and table.md")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    with user_mistakes():
        rows = [read_gap_run(folder) for folder in args.runs]
        by_recipe(rows)  # refuses before anything is scored
        choice = [run for path in args.choice for run in read_choice(path)]
        texts = list(iter_texts(load_documents(args.test_dataset)))
        text = text_digest(texts)
        scored = read_scored(args.output_dir / "runs.csv", text)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for row, folder in zip(rows, args.runs, strict=True):
        known = scored.get((row["run"], row["eval_loss"]))
        row |= {"test_loss": score_run(folder, texts) if known is None else known, "test_text": text}
    write_csv(args.output_dir / "runs.csv", rows, COLUMNS)
    write_csv(args.output_dir / "choice.csv", choice, CHOICE_COLUMNS)
    table = report_text(rows, choice)
    write_text(args.output_dir / "table.md", table)
    print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
