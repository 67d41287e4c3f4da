"""Cells of the skills' questions: damage, read, write down; a run that was stopped goes on with the cells it lacks."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from frankenlm.trainer_ext.common.cli import user_mistakes
from frankenlm.trainer_ext.common.files import write_json

from ..answers.option_probe import LEAD, OptionProbe
from ..cells import Cell
from ..configs import TARGETED, ExperimentConfig
from ..errors import ConfigConflict
from ..lab import LOADING_FIELDS, Lab
from ..records.manifest import differences
from ..run.limits import Signals
from ..run.plan import Experiment
from ..weights.loading import Loaded
from ..weights.restore import Baseline, apply_damage
from .items import BLOCKS, CHOSEN_BY, MEASURED_BY, SIZE, Topic
from .scores import margins, scores_as_written

logger = logging.getLogger(__name__)

SETTINGS, CELLS = "settings.json", "cells"
BASELINE = "baseline.json"
# of a configuration, what scores depend on; levels, repeats and groups are those of the cells
FIELDS = ("method", "tied_policy", "norm_gain", "noise_coupling", "seed_base", *LOADING_FIELDS)
# of how texts are read (run/identity.py), what has to do with questions: nothing is written, no picture shown
READING = ("tokenizer", "special_tokens", "chat_template", "attention", "adapter", "code")


def plan_skills(lab: Lab, configs: Sequence[ExperimentConfig]) -> list[Experiment]:
    """Return the experiments, one a group, checked as far as that goes without weights.

    Raises:
        ValueError: a model that continues no text, or a method that asks the prompts which units matter.
    """
    for config in configs:
        if config.method in TARGETED:
            raise ValueError(f"skills: method={config.method!r} needs units chosen for a task; take another.")
    experiments = [lab.plan(config) for config in configs]
    if experiments[0].fills_masks:
        raise ValueError(f"skills: {lab.name} is a masked language model; only causal ones are asked here.")
    return experiments


def folder_of(output_dir: Path, experiment: Experiment) -> Path:
    return output_dir / f"skills_{experiment.config.method}_{experiment.short_name}"


def settings_of(experiment: Experiment, blocks: Sequence[Topic] = BLOCKS) -> dict[str, Any]:
    """Return all that decides a score, apart from its cell."""
    known = experiment.config_fields
    items = json.dumps([[block.skill, block.wordings, block.pairs] for block in blocks])
    return {
        **{name: known[name] for name in (*FIELDS, *READING, "model", "model_config", "weights")},
        "lead": LEAD,
        "items": hashlib.sha256(items.encode()).hexdigest()[:16],
    }


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make an experiment's folder, or find that it is the one of the same experiment.

    Raises:
        ConfigConflict: it holds scores of another one, or of one whose settings were not all written down.
    """
    path = folder / SETTINGS
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        said = differences(there, settings)
        if said:
            raise ConfigConflict(f"{folder} holds scores of another experiment ({said}): take another --output_dir.")
        return
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def cell_path(folder: Path, experiment: Experiment, cell: Cell) -> Path:
    """Return where a cell lies; all groups share the undamaged one."""
    if cell.is_baseline:
        return folder / CELLS / BASELINE
    group = re.sub(r"[^A-Za-z0-9.+-]+", "_", experiment.config.group)
    return folder / CELLS / f"{group}_{cell.key}_{cell.repeat_index}.json"


def probe_of(loaded: Loaded, blocks: Sequence[Topic], wording: int) -> OptionProbe:
    questions = [question for block in blocks for question in block.questions(wording)]
    options = [block.answers for block in blocks for _ in block.pairs]
    return OptionProbe(loaded.model, loaded.tokenizer, questions, options)


def scores_of(probe: OptionProbe, blocks: Sequence[Topic]) -> dict[str, list]:
    """Return skill/topic -> log p, [question][answer]."""
    tables = probe.measure().view(-1, SIZE, SIZE).tolist()
    return {f"{block.skill}/{block.topic}": table for block, table in zip(blocks, tables, strict=True)}


def measure_skills(lab: Lab, experiments: Sequence[Experiment], output_dir: Path, progress: bool = True) -> Path:
    """Measure every cell that is not there; return the folder.

    The undamaged model reads both wordings; damaged ones read the second, of topics in which one question was chosen.
    """
    first = experiments[0]
    folder = folder_of(output_dir, first)
    open_folder(folder, settings_of(first))
    wanted = [
        (each, [cell for cell in each.cells if not cell_path(folder, each, cell).exists()]) for each in experiments
    ]
    total = sum(len(cells) for _, cells in wanted)
    if not total:
        logger.info("all cells are there; nothing to do")
        return folder
    with Signals() as signals, tqdm(total=total, unit="cell", disable=not progress, dynamic_ncols=True) as bar:
        with user_mistakes():  # what only the weights can tell
            loaded = lab.load(first.config)
        probe, blocks = _baseline(loaded, folder, first)
        for experiment, cells in wanted:
            bar.set_description(experiment.label)
            _work(experiment, cells, loaded, probe, blocks, folder, signals, bar)
    return folder


def _baseline(loaded: Loaded, folder: Path, experiment: Experiment) -> tuple[OptionProbe, list[Topic]]:
    """Measure the undamaged model if it is not yet; return the probe of the questions for damaged ones."""
    path = folder / CELLS / BASELINE
    if not path.exists():
        both = {str(each): scores_of(probe_of(loaded, BLOCKS, each), BLOCKS) for each in (CHOSEN_BY, MEASURED_BY)}
        write_json(path, {"scores": both})
    chosen_by = json.loads(path.read_text(encoding="utf-8"))["scores"][str(CHOSEN_BY)]
    blocks = [block for block in BLOCKS if _any_chosen(chosen_by[f"{block.skill}/{block.topic}"])]
    if not blocks:
        raise ValueError(f"skills: undamaged, {loaded.name} answers none of the questions.")
    return probe_of(loaded, blocks, MEASURED_BY), blocks


def _any_chosen(table: Sequence[Sequence[float | None]]) -> bool:
    return bool((margins(scores_as_written(table)) > 0).any())


def _work(experiment, cells, loaded, probe, blocks, folder, signals, bar) -> None:
    config = experiment.config
    words = {"strategy": config.restore_strategy, "tied_policy": config.tied_policy, "norm_gain": config.norm_gain}
    with Baseline(loaded.model, config.group, **words) as baseline:
        for cell in cells:
            signals.check()
            if not cell.is_baseline:
                lesion = apply_damage(baseline, config.method, cell.level, config.seed_base, cell.repeat_index)
                facts = {name: lesion[name] for name in ("group", "level_value", "repeat_index", "rel_l2")}
                write_json(cell_path(folder, experiment, cell), facts | {"scores": scores_of(probe, blocks)})
            bar.update()
