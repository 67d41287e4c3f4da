"""What a run of a method of `configs.TARGETED` removes in each cell, from importance that was measured once."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..answers.rendering import Rendering
from ..cells import Cell
from ..damage.chosen import Chosen
from ..errors import ConfigConflict
from ..records.store import Store
from ..targeting.answered import answer_greedily
from ..targeting.choosing import Ranking, chosen_of, removed, told
from ..targeting.importance import measure_importance
from ..targeting.stored import kept_scores
from ..weights.loading import Loaded
from ..weights.restore import Baseline
from ..weights.units import find_units
from .identity import stop_ids
from .plan import Experiment, prompts_of_importance

logger = logging.getLogger(__name__)

# of an experiment's fields, those that scores depend on
SCORED_FIELDS = ("dtype", "load_4bit", "quant_type", "double_quant", "quant_target_mode", "tied_policy", "norm_gain")


class RunTargets:
    """The units of a run's group and their importance, measured on the undamaged model where it is not known yet."""

    def __init__(self, experiment: Experiment, loaded: Loaded, store: Store, rendering: Rendering, baseline: Baseline):
        self.experiment, self.loaded, self.store, self.baseline = experiment, loaded, store, baseline
        self.config = experiment.config
        self._rendering = rendering
        self.table = find_units(baseline.group, self.config.unit)
        scores, self.digest = kept_scores(
            Path(store.files.results_dir), experiment.short_name, self._identity(), self._measure
        )
        self.ranking = Ranking(self.table, scores, self.config.seed_base, self.config.shuffle_importance)
        self._refuse_other_scores()

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        """The token ids of the prompts that importance is measured on."""
        return prompts_of_importance(self.experiment, self._rendering, self.loaded.tokenizer)

    def _identity(self) -> dict[str, Any]:
        config, experiment = self.config, self.experiment
        fields = experiment.config_fields
        return {
            **{name: getattr(config, name) for name in (*SCORED_FIELDS, "group", "unit", "importance")},
            **{name: fields[name] for name in ("model", "model_config", "weights", *experiment.reading)},
            "prompts": [list(ids) for ids in self.prompts],
        }

    def _measure(self):
        model, loaded = self.loaded.model, self.loaded
        stops = frozenset(stop_ids(model.generation_config, loaded.tokenizer)) if self.prompts else frozenset()
        config = self.config
        logger.info(
            "importance of %d units (%s) of %s by %s, on %d prompts",
            self.table.count,
            config.unit,
            config.group,
            config.importance,
            len(self.prompts),
        )
        answered = answer_greedily(model, self.prompts, stops, self.experiment.positions)
        return measure_importance(
            model, self.baseline, self.table, config.importance, answered, progress=self.store.rank == 0
        )

    def _refuse_other_scores(self) -> None:
        """Raise ConfigConflict where cells were damaged by other scores: their file is gone, and these are anew."""
        config = self.config
        for record in self.store.lesions():
            mine = (record["group"], record["method"]) == (config.group, config.method)
            if mine and record.get("importance", self.digest) != self.digest:
                raise ConfigConflict(
                    f"the importance of {config.group} is not the one by which the rows that are there were made: put "
                    "its file importance_*.safetensors back, name a file of the prompts of then by importance_prompts, "
                    "or choose another name_suffix."
                )

    def chosen(self, cell: Cell) -> tuple[Mapping[str, Chosen] | None, Mapping[str, Any]]:
        """Return what a cell removes, for `apply_damage`, and what its lesion record says of it."""
        if cell.is_baseline:
            return None, {"importance": self.digest}
        marks = removed(self.ranking, self.config.method, cell.repeat_index, int(cell.level))
        return chosen_of(self.table, marks), {"importance": self.digest, **told(self.table, marks)}
