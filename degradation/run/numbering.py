"""What is stored already, seen from an experiment whose lists of levels and prompts may have grown since."""

import dataclasses
import logging

from ..cells import Cell
from ..configs import level_key
from ..prompts import load_prompts
from ..records.store import Store
from .plan import Experiment

logger = logging.getLogger(__name__)


def as_stored(experiment: Experiment, store: Store) -> Experiment:
    """Return an experiment that knows its rows as the store does, and numbers its levels with those that have rows."""
    there = dict.fromkeys(level for level, _ in store.places(experiment.config.group).values())
    return dataclasses.replace(experiment, other_levels=tuple(there), rows_hash=store.known.config_hash)


def renumber(experiment: Experiment, store: Store) -> None:
    """Give rows, lesions and cells that exist their places in lists of levels and prompts that have grown."""
    config, places, there = experiment.config, experiment.level_places, store.places(experiment.config.group)
    cells = {Cell(places[level_key(level)], level, repeat) for level, repeat in there.values()}
    # rows of prompts that are gone keep their numbers, and move with the levels
    others = {key: (places[level_key(level)], None) for key, (level, _) in there.items()}
    store.renumber(others | experiment.numbering(cells))
    for records, append, names in (
        (store.lesions(), store.append_lesion, ("group", "method")),
        (store.cells(), store.append_cell, ("param_group_name", "degradation_method")),
    ):
        for record in records:
            if tuple(record[name] for name in names) != (config.group, config.method):
                continue
            # a cell may have been begun that has no row
            place = places.get(level_key(record["level_value"]), record["level_index"])
            if place != record["level_index"]:
                append({**record, "level_index": place})


def warn_of_other_prompts(experiment: Experiment, store: Store) -> None:
    """Say how many rows are there for prompts that were edited or taken out since: they stay, and are measured too."""
    config = experiment.config
    texts = {prompt.text for prompt in load_prompts(config.prompts)}  # without the limit of max_prompts
    other = sum(row["param_group_name"] == config.group and row["prompt_text"] not in texts for row in store.rows())
    if other:
        logger.warning(
            "%d rows are of prompts that %s no longer holds; they stay in the results: take another name_suffix to "
            "leave them out",
            other,
            config.prompts,
        )
