"""The skills' scores as tables: every question, the order of the skills, and their differences."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.common.timing import markdown_table

from ..configs import level_key
from ..report.level_axis import LevelAxis, number
from .items import BLOCKS, CHOSEN_BY, MEASURED_BY, SKILLS
from .measuring import BASELINE, CELLS, SETTINGS
from .order import Questions, SkillPair, WithInterval, compare, half_level
from .scores import margins, shares

PAGE, ORDER, PAIRS, SCORES = "skills.md", "order.csv", "pairs.csv", "scores.csv"
INTRODUCTION = (
    "Skills are compared on questions that the undamaged model answers, chosen by one wording (`chosen`, with their "
    "mean share by it) and measured by another (`undamaged`). A share is that of the right answer among four, 1/4 is "
    "chance. L50 is where it has fallen half way there; intervals (95 %) and p-values are over repeats and topics "
    "together. A difference is the second skill's L50 less the first's: above 0, the first breaks first. `matched`: on "
    "pairs of questions that the undamaged model answers equally surely. p (Holm): for all pairs of this table."
)


def write_tables(folder: Path) -> Path:
    """Write skills.md, order.csv, pairs.csv and scores.csv beside the cells; return the first.

    Raises:
        ValueError: no group has a repeat of which every level is there.
    """
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    baseline = _read(folder / CELLS / BASELINE)["scores"]
    cells = _by_group(folder)
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
    for path in sorted((folder / CELLS).glob("*.json")):
        cell = _read(path)
        if "group" in cell:
            found[cell["group"]][cell["level_value"], cell["repeat_index"]] = cell
    return dict(found)


def questions_of(
    baseline: Mapping[str, Mapping[str, Any]], cells: Mapping[tuple[float, int], Mapping], method: str
) -> tuple[list[Questions], numpy.ndarray]:
    """Return the chosen questions of every skill that has some, and the levels' positions, the baseline's first.

    Repeats of which a level is missing are left out.
    """
    levels = LevelAxis.of(method, sorted({level for level, _ in cells}), baseline=True)
    damaged = levels.levels[1:]
    repeats = sorted({repeat for _, repeat in cells})
    whole = [repeat for repeat in repeats if all((level, repeat) in cells for level in damaged)]
    grid = [[cells[level, repeat] for level in damaged] for repeat in whole]
    skills = [_skill(skill, baseline, grid) for skill in SKILLS]
    return [each for each in skills if whole and len(each.margins)], levels.positions


def _skill(skill: str, baseline, grid: Sequence[Sequence[Mapping]]) -> Questions:
    topics, sure, values = [], [], []
    for place, block in enumerate(BLOCKS):
        name = f"{block.skill}/{block.topic}"
        margin = margins(numpy.array(baseline[str(CHOSEN_BY)][name]))
        chosen = margin > 0
        if block.skill != skill or not chosen.any():
            continue
        first = shares(numpy.array(baseline[str(MEASURED_BY)][name]))[chosen]
        rest = [[shares(numpy.array(cell["scores"][name]))[chosen] for cell in row] for row in grid]
        topics += [place] * int(chosen.sum())
        sure.append(margin[chosen])
        values.append(numpy.array([[first, *row] for row in rest]))  # (R, L, questions)
    if not topics:
        return Questions(skill, numpy.empty(0, int), numpy.empty(0), numpy.empty((len(grid), 1, 0)))
    return Questions(skill, numpy.array(topics), numpy.concatenate(sure), numpy.concatenate(values, axis=-1))


def order_of(group: str, skills: Sequence[Questions], positions: numpy.ndarray, baseline) -> list[dict[str, Any]]:
    """Return a line for each skill, first broken first; those that were not broken last."""
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
                "chosen": len(each.margins),
                "topics": len(set(each.topics.tolist())),
                "repeats": len(each.values),
                "chosen_share": float(numpy.mean(chosen_share)),
                "undamaged_share": float(each.values[0, 0].mean()),
                "most_severe_share": float(each.values[:, -1].mean()),
                "L50": half.value if math.isfinite(half.value) else math.nan,
                "low": half.low,
                "high": half.high,
                "reached_share": half.reached,
            }
        )
    return sorted(lines, key=lambda line: math.inf if math.isnan(line["L50"]) else line["L50"])


def _both(table) -> list[tuple[float, float]]:
    scores = numpy.array(table)
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
    return {
        "group": pair.group,
        "first": pair.first,
        "second": pair.second,
        **_estimate("", pair.plain, pair.p_holm),
        "pairs": pair.pairs,
        **_estimate("matched_", pair.matched, pair.matched_p_holm),
    }


def _estimate(kind: str, found: WithInterval, raised: float) -> dict[str, float]:
    return {
        f"{kind}difference": found.value,
        f"{kind}low": found.low,
        f"{kind}high": found.high,
        f"{kind}p": found.p,
        f"{kind}p_holm": raised,
    }


def _interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "not reached"
    end = number(high) if math.isfinite(high) else "not reached"
    return number(value) if math.isnan(low) else f"{number(value)} ({number(low)} to {end})"


def _order_text(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "damaged": line["group"],
        "skill": line["skill"],
        "chosen": f"{line['chosen']} of {sum(len(b.pairs) for b in BLOCKS if b.skill == line['skill'])}, "
        f"{line['topics']} topics: {line['chosen_share']:.2f}",
        "undamaged": f"{line['undamaged_share']:.2f}",
        "most severe": f"{line['most_severe_share']:.2f}",
        "L50": _interval(line["L50"], line["low"], line["high"]),
    }


def _pair_text(line: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, kind in (("difference", ""), ("matched", "matched_")):
        found[name] = _interval(*(line[f"{kind}{end}"] for end in ("difference", "low", "high")))
        if not math.isnan(line[f"{kind}p_holm"]):
            found[name] += f", p (Holm) {line[f'{kind}p_holm']:.3f}"
    found["matched"] += f", {line['pairs']} pairs"
    return {"damaged": line["group"], "first": line["first"], "second": line["second"], **found}
