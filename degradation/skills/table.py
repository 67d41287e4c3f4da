"""The skills' scores as tables: every question, the order of the skills, and their differences."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.common.timing import markdown_table

from ..configs import level_key
from ..report.critical import AT_CHANCE, NO_BASELINE
from ..report.level_axis import LevelAxis, number
from .items import BLOCKS, CHOSEN_BY, MEASURED_BY, SKILLS
from .measuring import BASELINE, CELLS, SETTINGS
from .order import Questions, SkillPair, WithInterval, compare, half_level
from .scores import known, margins, scores_as_written, shares

PAGE, ORDER, PAIRS, SCORES = "skills.md", "order.csv", "pairs.csv", "scores.csv"
CAPPED, DIFFERENCE = "min(L50, last level)", "difference_of_capped_L50"
INTRODUCTION = (
    "Skills are compared on questions that the undamaged model answers, chosen by one wording (`chosen`, with their "
    "mean share by it) and measured by another (`undamaged`). A share is that of the right answer among four, 1/4 is "
    "chance. L50 is where it has fallen half way there; intervals (95 %) and p-values are over repeats and topics "
    "together, and `reached` is in which share of their draws it is reached within the levels. A difference is the "
    "second skill's min(L50, last level) less the first's, the last level being the most severe one that was measured: "
    "above 0, the first breaks first; where one is not reached, it is rather larger. `matched`: on pairs of "
    "questions that the undamaged model answers equally surely by either wording, with their undamaged shares as "
    "measured, first and second. p (Holm): for all p-values of this page together."
)
logger = logging.getLogger(__name__)


def write_tables(folder: Path) -> Path:
    """Write skills.md, order.csv, pairs.csv and scores.csv beside the cells; return the first.

    Raises:
        ValueError: no group has a repeat of which every level is there.
    """
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    baseline = _read(folder / CELLS / BASELINE)["scores"]
    cells = _by_group(folder)
    notes = [*left_out(cells, settings["method"]), *not_finite(cells)]
    for note in notes:
        logger.warning("%s: %s", folder, note)
    groups = {name: questions_of(baseline, found, settings["method"]) for name, found in cells.items()}
    groups = {name: found for name, found in groups.items() if found[0]}
    if not groups:
        raise ValueError(f"{folder}: no group has a repeat of which every level was measured; run the command again.")
    order = [line for name, found in groups.items() for line in order_of(name, *found, baseline)]
    pairs = [_pair_row(pair) for pair in compare(groups)]
    write_csv(folder / ORDER, order, number=".6g")
    write_csv(folder / PAIRS, pairs, number=".6g")
    write_csv(folder / SCORES, _score_rows(baseline, cells), number=".6g")
    text = "\n\n".join(
        [
            f"# What damage does to the skills of {settings['model']}",
            INTRODUCTION,
            *notes,
            markdown_table([_order_text(line) for line in order]),
            markdown_table([_pair_text(line) for line in pairs]),
        ]
    )
    write_text(folder / PAGE, text + "\n")
    return folder / PAGE


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _by_group(folder: Path) -> dict[str, dict[tuple[float, int], dict[str, Any]]]:
    """group -> (level, repeat) -> the cell; the undamaged one is in none."""
    found: dict[str, dict] = defaultdict(dict)
    for path in sorted((folder / CELLS).glob("[!.]*.json")):  # without what a stopped run had begun to write
        cell = _read(path)
        if "group" in cell:
            found[cell["group"]][cell["level_value"], cell["repeat_index"]] = cell
    return dict(found)


def left_out(cells: Mapping[str, Mapping], method: str) -> list[str]:
    """Return a sentence for each group of which a repeat lacks a level that another one has: it counts nowhere."""
    notes = []
    for group, found in cells.items():
        levels, repeats, whole = grid_of(found, method)
        for repeat in sorted(set(repeats) - set(whole)):
            missing = ", ".join(level_key(level) for level in levels.levels[1:] if (level, repeat) not in found)
            notes.append(
                f"{group}: repeat {repeat} is left out, levels that other repeats have are missing: {missing}."
            )
    return notes


def not_finite(cells: Mapping[str, Mapping]) -> list[str]:
    """Return a sentence for each cell that has scores that are not finite: their topics count as not known."""
    notes = []
    for group, found in cells.items():
        for (level, repeat), cell in sorted(found.items()):
            topics = [name for name, scores in cell["scores"].items() if not known(scores_as_written(scores)).all()]
            if topics:
                notes.append(
                    f"{group}, level {level_key(level)}, repeat {repeat}: {len(topics)} of {len(cell['scores'])} "
                    "topics have scores that are not finite; their shares are taken for chance, 1/4."
                )
    return notes


def grid_of(cells: Mapping[tuple[float, int], Any], method: str) -> tuple[LevelAxis, list[int], list[int]]:
    """Return the levels of a group's cells, its repeats, and those of which every level is there."""
    levels = LevelAxis.of(method, sorted({level for level, _ in cells}), baseline=True)
    repeats = sorted({repeat for _, repeat in cells})
    return (
        levels,
        repeats,
        [repeat for repeat in repeats if all((level, repeat) in cells for level in levels.levels[1:])],
    )


def questions_of(
    baseline: Mapping[str, Mapping[str, Any]], cells: Mapping[tuple[float, int], Mapping], method: str
) -> tuple[list[Questions], numpy.ndarray]:
    """Return the chosen questions of every skill that has some, and the levels' positions, the baseline's first.

    Repeats of which a level is missing are left out, see `left_out`.
    """
    levels, _, whole = grid_of(cells, method)
    grid = [[cells[level, repeat] for level in levels.levels[1:]] for repeat in whole]
    skills = [_skill(skill, baseline, grid) for skill in SKILLS]
    return [each for each in skills if whole and len(each.topics)], levels.positions


def _skill(skill: str, baseline, grid: Sequence[Sequence[Mapping]]) -> Questions:
    topics, sure, values = [], [numpy.empty((2, 0))], [numpy.empty((len(grid), len(grid[0]) + 1 if grid else 1, 0))]
    for place, block in enumerate(BLOCKS):
        if block.skill != skill:
            continue
        name = f"{block.skill}/{block.topic}"
        undamaged = [scores_as_written(baseline[str(wording)][name]) for wording in (CHOSEN_BY, MEASURED_BY)]
        chosen = margins(undamaged[0]) > 0
        if not chosen.any():
            continue
        first = shares(undamaged[1])[chosen]
        rest = [[shares(scores_as_written(cell["scores"][name]))[chosen] for cell in row] for row in grid]
        topics += [place] * int(chosen.sum())
        sure.append(margins(numpy.stack(undamaged))[:, chosen])
        values.append(numpy.array([[first, *row] for row in rest]).reshape(len(grid), -1, len(first)))  # (R, L, n)
    return Questions(skill, numpy.array(topics, int), numpy.concatenate(sure, -1), numpy.concatenate(values, -1))


def order_of(group: str, skills: Sequence[Questions], positions: numpy.ndarray, baseline) -> list[dict[str, Any]]:
    """Return a line for each skill, first broken first; then those that were not, and those at chance undamaged."""
    lines = []
    for each in skills:
        half = half_level(each, positions)
        chosen_share = [
            share
            for block in BLOCKS
            if block.skill == each.skill
            for share, margin in _both(baseline[str(CHOSEN_BY)][f"{block.skill}/{block.topic}"])
            if margin > 0
        ]
        lines.append(
            {
                "group": group,
                "skill": each.skill,
                "chosen": len(each.topics),
                "topics": len(set(each.topics.tolist())),
                "repeats": len(each.values),
                "chosen_share": float(numpy.mean(chosen_share)),
                "undamaged_share": float(each.values[0, 0].mean()),
                "most_severe_share": float(each.values[:, -1].mean()),
                "L50": half.value,
                "low": half.low,
                "high": half.high,
                "reached": half.reached,
            }
        )
    return sorted(lines, key=lambda line: (math.isnan(line["L50"]), line["L50"]))


def _both(table) -> list[tuple[float, float]]:
    scores = scores_as_written(table)
    return list(zip(shares(scores).tolist(), margins(scores).tolist(), strict=True))


def _score_rows(baseline, cells) -> list[dict[str, Any]]:
    """A line for each question of every cell, the undamaged model's first."""
    undamaged = {"group": "", "level": 0, "repeat": 0, "rel_l2": 0.0}
    sources = [(undamaged | {"wording": wording + 1}, baseline[str(wording)]) for wording in (CHOSEN_BY, MEASURED_BY)]
    for group, found in cells.items():
        for (level, repeat), cell in sorted(found.items()):
            facts = {"group": group, "level": level_key(level), "repeat": repeat, "rel_l2": cell["rel_l2"]}
            sources.append((facts | {"wording": MEASURED_BY + 1}, cell["scores"]))
    return [
        {**facts, "skill": block.skill, "topic": block.topic, "answer": answer, "share": share, "margin": margin}
        for facts, scores in sources
        for block in BLOCKS
        if f"{block.skill}/{block.topic}" in scores
        for answer, (share, margin) in zip(block.answers, _both(scores[f"{block.skill}/{block.topic}"]), strict=True)
    ]


def _pair_row(pair: SkillPair) -> dict[str, Any]:
    first, second = pair.matched.shares
    return {
        "group": pair.group,
        "first": pair.first,
        "second": pair.second,
        **_estimate("", pair.plain, pair.p_holm),
        "pairs": pair.matched.pairs,
        "matched_share_first": first,
        "matched_share_second": second,
        **_estimate("matched_", pair.matched.estimate, pair.matched_p_holm),
    }


def _estimate(kind: str, found: WithInterval, raised: float) -> dict[str, float]:
    return {
        f"{kind}{DIFFERENCE}": found.value,
        f"{kind}low": found.low,
        f"{kind}high": found.high,
        f"{kind}reached": found.reached,
        f"{kind}p": found.p,
        f"{kind}p_holm": raised,
    }


def _interval(value: float, low: float, high: float) -> str:
    if math.isinf(value):
        return "not reached"
    end = number(high) if math.isfinite(high) else "not reached"
    return number(value) if math.isnan(low) else f"{number(value)} ({number(low)} to {end})"


def _order_text(line: Mapping[str, Any]) -> dict[str, Any]:
    half = _interval(line["L50"], line["low"], line["high"])
    return {
        "damaged": line["group"],
        "skill": line["skill"],
        "chosen": f"{line['chosen']} of {sum(len(b.pairs) for b in BLOCKS if b.skill == line['skill'])}, "
        f"{line['topics']} topics: {line['chosen_share']:.2f}",
        "repeats": line["repeats"],
        "undamaged": f"{line['undamaged_share']:.2f}",
        "most severe": f"{line['most_severe_share']:.2f}",
        "L50": AT_CHANCE if math.isnan(line["L50"]) else half,
        "reached": f"{line['reached']:.2f}",
    }


def _pair_text(line: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, kind in ((f"difference of {CAPPED}", ""), ("matched", "matched_")):
        found[name] = _difference_text(line, kind)
    if line["pairs"]:
        shares_of_pairs = " and ".join(f"{line[f'matched_share_{side}']:.2f}" for side in ("first", "second"))
        found["matched"] += f", {line['pairs']} pairs, undamaged {shares_of_pairs}"
    return {"damaged": line["group"], "first": line["first"], "second": line["second"], **found}


def _difference_text(line: Mapping[str, Any], kind: str) -> str:
    value = line[f"{kind}{DIFFERENCE}"]
    if math.isnan(value):
        return NO_BASELINE
    text = _interval(value, line[f"{kind}low"], line[f"{kind}high"]) + f", reached {line[f'{kind}reached']:.2f}"
    raised = line[f"{kind}p_holm"]
    return text if math.isnan(raised) else f"{text}, p (Holm) {raised:.3f}"
