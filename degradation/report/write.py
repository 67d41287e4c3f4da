"""Result files -> measures as JSON and CSV, and a report as one HTML page with figures. Never sees a model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from frankenlm.trainer_ext.common.files import finite, write_csv, write_text

from ..measures.measure import measure_cell, measure_row
from ..measures.names import BREAKS, CORRECT, PER_TASK, RANKED, SKILLS, Measure, known_measures, meaning
from ..prompts import find_prompt, load_prompts
from .bootstrap import CONFIDENCE, DRAWS, SEED
from .cells_of_series import Series, all_rows, build_series
from .columns import FindPrompt, MeasureCell, MeasureRow, add_accuracies, measure_rows
from .curves import Curve, by_task, make_curves
from .drawing.figures import draw_all, figure_names
from .drawing.plot_style import DIGITS, curve_rows, key_columns
from .harness_tasks import task_measures
from .profile import profiles
from .result_files import ResultFile, common, read_results
from .sections import build_page
from .sentences import NOT_SHOWN, multiplicity, ranking, warnings, what_broke_first
from .written_files import WRITTEN, check_free

PAGE, RECORD = "report.html", "report.json"


@dataclass
class Analysis:
    """Everything that was computed from some result files."""

    files: list[ResultFile]
    rows: list[dict[str, Any]]
    columns: dict[str, numpy.ndarray]
    series: list[Series]
    curves: list[Curve]
    measures: Mapping[str, Measure]
    warnings: list[str] = field(default_factory=list)
    draws: int = DRAWS
    seed: int = SEED


def analyse(
    results: Iterable[str | Path],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
    measure: MeasureRow = measure_row,
    measure_texts: MeasureCell | None = measure_cell,
    workers: int = 1,
    progress: bool | None = None,
) -> Analysis:
    """Read result files, measure every row and cell, and summarise every curve.

    Args:
        results: paths of exported JSON files; the journals beside them are read for lesions, perplexity and versions.
        draws, seed: of the bootstrap; the same ones give the same numbers.
        measure, measure_texts: measures of a row and of a cell; the shipped ones unless a test puts in its own.
        workers: processes that measure, see `columns.measure_rows`.
        progress: show bars; None shows them on a terminal only.

    Raises:
        ValueError: a file is missing or is no export, or two files hold the same row.
    """
    files = read_results(results)
    rows = all_rows(files)
    find = prompt_finder(files)
    measured = measure_rows(rows, measure, find, measure_texts, workers, progress)
    chance = add_accuracies(measured.columns, rows, find, CORRECT)
    series = build_series(rows, measured, chance, files)
    measures = known_measures(measured.columns) | task_measures(cell for file in files for cell in file.cells)
    curves = make_curves(series, measures, draws, seed, progress)
    return Analysis(
        files, rows, measured.columns, series, curves, measures, warnings(files, series, curves), draws, seed
    )


def prompt_finder(files: Sequence[ResultFile]) -> FindPrompt:
    """Return a function row -> its prompt: of the sets shipped, or of the file that the manifest names; else None."""
    own = {}
    for file in files:
        for name in file.prompts:
            if Path(name).is_file():
                own |= {prompt.text: prompt for prompt in load_prompts(name)}
    return lambda row: own.get(row["prompt_text"]) or find_prompt(row)


# --- measure


def measure_file(path: str | Path, output: str | Path, **options) -> Path:
    """Measure one result file; return the path of the JSON.

    Written into the folder `output`, with NAME that of the result file:

        NAME_measures.json  what was measured, and every curve with its critical levels
        NAME_rows.csv       a line for each row: what it is, and its measures
        NAME_cells.csv      a line for each level and repeat: the means over its rows
        NAME_curves.csv     a line for each measure and level: the mean over repeats with its interval

    Args:
        options: as for `analyse`.

    Raises:
        ValueError: as `analyse`; or a file that no earlier run wrote is in the way, and nothing was written.
    """
    folder, stem = Path(output), Path(path).stem
    target = folder / f"{stem}_measures.json"
    rows, cells, curves = names = [f"{stem}_{kind}.csv" for kind in ("rows", "cells", "curves")]
    earlier = check_free(folder, target.name, names)
    analysis = analyse([path], **options)
    said = facts(analysis) | {WRITTEN: common((*names, *earlier))}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(target, said)
    write_csv(folder / rows, row_table(analysis), number=DIGITS)
    write_csv(folder / cells, cell_table(analysis.series), number=DIGITS)
    write_csv(folder / curves, [row for curve in analysis.curves for row in curve_rows(curve)], number=DIGITS)
    return target


def row_table(analysis: Analysis) -> list[dict[str, Any]]:
    """Return what each row is, and its measures; skills and parts stay out, they repeat `accuracy` and `score`."""
    names = [name for name in analysis.columns if not name.startswith(SKILLS)]
    identity = ("row_key", "experiment_id", "param_group_name", "level_value", "repeat_index", "prompt_id")
    columns = {name: analysis.columns[name].tolist() for name in names}
    return [
        {**{name: row.get(name) for name in identity}, **{name: columns[name][place] for name in names}}
        for place, row in enumerate(analysis.rows)
    ]


def cell_table(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return the means of every cell that has rows."""
    return [
        {
            **key_columns(one),
            "level": level,
            "repeat": repeat,
            "answers": int(one.answers[row, column]),
            "rel_l2": one.rel_l2[row, column],
            **{name: values[row, column] for name, values in one.cells.items()},
        }
        for one in series
        for row, repeat in enumerate(one.repeats)
        for column, level in enumerate(one.axis.levels)
        if one.answers[row, column]
    ]


# --- facts


def facts(analysis: Analysis) -> dict[str, Any]:
    """Return everything the report says, for JSON."""
    return {
        "files": [file.path.name for file in analysis.files],
        "rows": len(analysis.rows),
        "rows_without_answer": sum(file.lost for file in analysis.files),
        "models": common(one.key.model for one in analysis.series),
        "bootstrap": {"draws": analysis.draws, "seed": analysis.seed, "confidence": CONFIDENCE, "unit": "repeat"},
        "measures": {
            name: {"label": m.label, "better": m.better, "share": m.share, "meaning": meaning(name)}
            for name, m in analysis.measures.items()
            if any(name in one.cells for one in analysis.series)
        },
        "warnings": analysis.warnings,
        "broke_first": [
            key_columns(one) | what_broke_first(_of(analysis.curves, one), breaking(analysis.curves, one))
            for one in analysis.series
        ],
        "rankings": rankings(analysis),
        "profiles": profiles(analysis.curves),
        "curves": [curve_record(curve) for curve in analysis.curves],
        "not_shown": [multiplicity(analysis.curves), *NOT_SHOWN],
        "runs": {file.path.name: provenance(file) for file in analysis.files},
    }


def breaking(curves: Sequence[Curve], series: Series) -> list[str]:
    """The measures of a series that take part in "what broke first": of BREAKS, every sub-skill, part and task."""
    there = [curve.measure.name for curve in _of(curves, series)]
    skills = sorted(name for name in there if name.startswith(SKILLS))
    tasks = sorted(name for name in there if name.startswith(PER_TASK))
    return [*skills, *tasks, *(name for name in BREAKS if name in there)]


def rankings(analysis: Analysis) -> list[dict[str, Any]]:
    """One sentence for each model, task and ranked measure that has a ranking."""
    found = []
    for (model, task), curves in by_task(analysis.curves).items():
        for name in RANKED:
            chosen = [curve for curve in curves if curve.measure.name == name]
            sentence = ranking(chosen, chosen[0].measure) if chosen else None
            if sentence:
                found.append({"model": model, "task": task, "measure": name, "sentence": sentence})
    return found


def curve_record(curve: Curve) -> dict[str, Any]:
    """Return a curve for JSON."""
    axis = curve.series.axis
    return {
        **key_columns(curve.series),
        "measure": curve.measure.name,
        "levels": list(axis.levels),
        "rel_l2": curve.series.mean_rel_l2.tolist(),
        "repeats": len(curve.series.repeats),
        **{name: values.tolist() for name, values in curve.stats.items()},
        "chance": curve.chance,
        "L50": curve.half.record(axis),
        "d_crit_answers": curve.effect.record(axis) if curve.effect else None,
        "d_crit_repeats": curve.effect_repeats.record(axis),
        "spearman": dict(curve.trend),
    }


def provenance(file: ResultFile) -> dict[str, Any]:
    """Return what the manifest says about where the rows come from: settings, versions, hardware."""
    return {name: value for name, value in file.manifest.items() if name not in ("crc", "rank_files")}


def _of(curves: Sequence[Curve], series: Series) -> list[Curve]:
    return [curve for curve in curves if curve.series is series]


# --- report


def write_report(results: Sequence[str | Path], output_dir: str | Path, **options) -> Path:
    """Write the report of some result files; return the path of its page.

    `output_dir` then holds report.html (one page with everything inside), report.json (all numbers), cells.csv,
    curves.csv, and plots/ with a PNG and a CSV for each figure.

    Args:
        options: as for `analyse`.

    Raises:
        ValueError: as `analyse`; or a file that no earlier run wrote is in the way, and nothing was written.
    """
    folder = Path(output_dir)
    fixed = (PAGE, "cells.csv", "curves.csv")
    check_free(folder, RECORD, fixed)  # the figures' names are known after minutes of measuring only
    analysis = analyse(results, **options)
    planned = [f"plots/{name}.{kind}" for name in figure_names(analysis.curves).values() for kind in ("png", "csv")]
    earlier = check_free(folder, RECORD, (*fixed, *planned))
    said = facts(analysis) | {WRITTEN: common((*fixed, *planned, *earlier))}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, said)
    drawn, skipped = draw_all(analysis.curves, folder / "plots")
    said["plots"] = [
        {
            "model": model,
            "task": task,
            "name": plot.name,
            "title": plot.title,
            "png": f"plots/{plot.png.name}",
            "csv": f"plots/{plot.csv.name}",
        }
        for (model, task), plots in drawn.items()
        for plot in plots
    ]
    said["plots_without_data"] = skipped
    write_csv(folder / "cells.csv", cell_table(analysis.series), number=DIGITS)
    write_csv(folder / "curves.csv", [row for curve in analysis.curves for row in curve_rows(curve)], number=DIGITS)
    figures = [plot[kind] for plot in said["plots"] for kind in ("png", "csv")]
    said[WRITTEN] = common((*fixed, *figures, *earlier))
    write_json(folder / RECORD, said)
    page = folder / PAGE
    write_text(page, build_page(said, by_task(analysis.curves), drawn, folder))
    return page


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON: numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
