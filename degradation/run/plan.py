"""An experiment, planned: its prompts, its picture, its cells, and the key of every row it will write."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from frankenlm.trainer_ext.common.checkpoints import position_limit
from frankenlm.trainer_ext.common.checks import check_choice

from ..answers.mask_filling import render_texts, surroundings
from ..answers.masked_probe import WINDOW
from ..answers.rendering import Rendering, file_sha256, load_picture, render_prompts
from ..answers.sampling import occurrences, sampling_key
from ..answers.text_probe import window_of
from ..cells import Cell, level_places, make_cells
from ..configs import TARGETED, ExperimentConfig, level_key
from ..layouts.families import SKIPS_POSITIONS
from ..prompts import LabPrompt, load_prompts, picture_path
from ..records.row_keys import config_hash, row_key
from ..weights.model_checks import fills_masks

# Where a configuration lies and who wrote it says nothing about the model.
NO_IDENTITY = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"})


@dataclass(frozen=True)
class CellPlan:
    """One cell with the prompts (0-based places) that have no finished row yet."""

    cell: Cell
    missing: tuple[int, ...]


def read_inputs(config: ExperimentConfig) -> tuple[tuple[LabPrompt, ...], Path | None]:
    """Read the prompts and find the picture.

    Raises:
        ValueError: there is no such prompt set or picture, it is no picture, or force_where names no rows.
    """
    parse_where(config.force_where)
    if config.importance_prompts is not None:
        load_prompts(config.importance_prompts)
    prompts = load_prompts(config.prompts)[: config.max_prompts]
    if config.image is None:
        return prompts, None
    picture = picture_path(config.image)
    load_picture(picture)
    return prompts, picture


@dataclass(frozen=True)
class Experiment:
    """What is known before the model's weights are read."""

    config: ExperimentConfig
    model_name: str  # a hub name as given; of a folder the last part, wherever it lies
    model_config: PreTrainedConfig
    weights: str  # the fingerprint of the model's weights
    prompts: tuple[LabPrompt, ...]
    picture: Path | None
    reading: Mapping[str, Any] = field(default_factory=dict)  # see `identity.reading_identity`
    other_levels: tuple[float | int | None, ...] = ()  # that have rows; known when the files are open
    rendering: Rendering | None = None  # the prompts as the model reads them, once they are
    rows_hash: str | None = None  # of the configuration that rows are known by, once the files are open

    @property
    def short_name(self) -> str:
        """The last part of the model's name, as in the names of files."""
        return Path(self.model_name).name

    @property
    def experiment_id(self) -> str:
        return f"{self.config.method}|{self.model_name}|{self.config.name_suffix}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.config.method} {self.config.group} {self.config.name_suffix}"

    @property
    def row_count(self) -> int:
        """How many rows it has when it is done."""
        return len(self.cells) * len(self.prompts)

    @property
    def fills_masks(self) -> bool:
        """Whether the model fills in masked tokens instead of continuing a text."""
        return fills_masks(self.model_config)

    @property
    def positions(self) -> int | None:
        """How many tokens the model has positions for; None where they are computed, or there are none."""
        config = self.model_config.get_text_config()
        limit = position_limit(config)
        if limit is None or limit < 0:  # XLNet says -1
            return None
        return limit - (config.pad_token_id + 1) if config.model_type in SKIPS_POSITIONS else limit

    @property
    def prompt_group(self) -> str:
        return self.config.prompt_group or self.prompts[0].set

    @cached_property
    def picture_sha256(self) -> str | None:
        return None if self.picture is None else file_sha256(self.picture)

    @cached_property
    def config_fields(self) -> dict[str, Any]:
        """All that decides what a row holds, apart from its cell and prompt: the experiment's fields and the model."""
        identity = {name: value for name, value in self.model_config.to_diff_dict().items() if name not in NO_IDENTITY}
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return {
            **self.config.result_fields(),
            "image": self.picture_sha256,
            "model": self.short_name,
            "model_config": digest,
            "weights": self.weights,
            **self.reading,
        }

    @cached_property
    def cells(self) -> list[Cell]:
        return make_cells(self.config, self.other_levels)

    @property
    def level_places(self) -> dict[str, int]:
        """The level_index of every level, of those with rows too, by its key."""
        return level_places(self.config, self.other_levels)

    @cached_property
    def occurrences(self) -> list[int]:
        return occurrences([prompt.text for prompt in self.prompts])

    @cached_property
    def _hash(self) -> str:
        return self.rows_hash or config_hash(self.config_fields)

    def key(self, cell: Cell, place: int) -> str:
        """Return the key of a row: of a cell and a prompt (0-based place)."""
        prompt, occurrence = self.prompts[place], self.occurrences[place]
        return row_key(
            self._hash,
            self.config.group,
            self.config.method,
            cell.key,
            cell.repeat_index,
            prompt.text,
            occurrence,
            self.picture_sha256,
        )

    def noise_key(self, cell: Cell, place: int) -> tuple[int, int]:
        """Return the key of a row's sampling noise."""
        return sampling_key(
            self.config.seed_base,
            cell.repeat_index,
            self.prompts[place].text,
            self.occurrences[place],
            None if self.config.couple_levels else cell.key,
        )

    def numbering(self, others: Iterable[Cell] = ()) -> dict[str, tuple[int, int]]:
        """Return row_key -> (level_index, prompt_id) of every row of the experiment, and of other cells."""
        return {
            self.key(cell, place): (cell.level_index, place + 1)
            for cell in {*self.cells, *others}
            for place in range(len(self.prompts))
        }

    def planned_rows(self) -> dict[str, dict[str, Any]]:
        """Return row_key -> what is known of a row before it is generated."""
        return {
            self.key(cell, place): {**self.cell_fields(cell), **self.prompt_fields(place)}
            for cell in self.cells
            for place in range(len(self.prompts))
        }

    def cell_fields(self, cell: Cell) -> dict[str, Any]:
        """Return the fields of a row that its cell decides."""
        config, level = self.config, cell.level
        return {
            "model_name": self.model_name,
            "model_variant": config.model_variant,
            "experiment_id": self.experiment_id,
            "config_name": config.config_name,
            "prompt_group": self.prompt_group,
            "std_dev": level,
            "level_value": level,
            "degrad_level": level,
            "level_index": cell.level_index,
            "repeat_index": cell.repeat_index,
            "param_group_name": config.group,
            "degradation_method": config.method,
            "seed": config.seed_base + cell.repeat_index,
            "noise_coupling": config.noise_coupling,
            "quant_target_mode": config.quant_target_mode,
            "tied_policy": config.tied_policy,
            "is_baseline": cell.is_baseline,
        }

    def prompt_fields(self, place: int) -> dict[str, Any]:
        """Return the fields of a row that its prompt (0-based place) decides."""
        prompt, picture = self.prompts[place], self.picture
        return {
            "prompt_id": place + 1,
            "prompt_skill": prompt.skill,
            "prompt_text": prompt.text,
            "image_used": picture is not None,
            "image_filename": None if picture is None else picture.name,
            "image_sha256": self.picture_sha256,
        }

    def pending(self, finished: Mapping[str, int]) -> list[CellPlan]:
        """Return the cells that miss rows; with force_run, the rows it chooses are missing whatever is there."""
        forced = self._forced()
        plans = []
        for cell in self.cells:
            missing = tuple(
                place
                for place in range(len(self.prompts))
                if self.key(cell, place) not in finished or forced(cell, place)
            )
            if missing:
                plans.append(CellPlan(cell, missing))
        return plans

    def _forced(self):
        """Return the test whether force_run writes a row again."""
        if not self.config.force_run:
            return lambda cell, place: False
        wanted = parse_where(self.config.force_where)
        return lambda cell, place: all(str(self._facts(cell, place)[name]) in values for name, values in wanted.items())

    def _facts(self, cell: Cell, place: int) -> dict[str, Any]:
        return {
            "level": cell.key,
            "level_index": cell.level_index,
            "repeat_index": cell.repeat_index,
            "prompt_id": place + 1,
            "group": self.config.group,
        }


def render(
    config: ExperimentConfig, prompts: Iterable[LabPrompt], tokenizer: Any, processor: Any, masked: bool
) -> Rendering:
    """Render prompts as an experiment shows them; `masked`: to a masked language model.

    Raises:
        ValueError: one is longer than max_seq_length, or cannot be rendered.
    """
    texts = [prompt.text for prompt in prompts]
    if masked:
        return render_texts(texts, tokenizer, config.max_seq_length)
    return render_prompts(
        texts,
        tokenizer,
        system_prompt=config.system_prompt,
        max_length=config.max_seq_length,
        processor=processor,
        picture=load_picture(picture_path(config.image)) if config.image is not None else None,
    )


def render_experiment(experiment: Experiment, tokenizer: Any, processor: Any = None) -> Rendering:
    """Render an experiment's prompts, with its picture if it has one.

    Raises:
        ValueError: a prompt is longer than max_seq_length, or with its answer longer than the model's positions.
    """
    config, limit = experiment.config, experiment.positions
    if config.perplexity:
        window_of(WINDOW, limit, sum(map(len, surroundings(tokenizer))) if experiment.fills_masks else 0)
    rendering = render(config, experiment.prompts, tokenizer, processor, experiment.fills_masks)
    longest = max(len(row.ids) for row in rendering.prompts)
    if experiment.fills_masks:
        if limit is not None and longest > limit:
            raise ValueError(
                f"a prompt has {longest} tokens, more than the {limit} positions of {experiment.model_name}: shorten "
                "it."
            )
        return rendering
    if limit is not None and longest + config.max_new_tokens > limit:
        room = limit - longest
        way_out = f"lower it to {room}" if room > 0 else "shorten the prompts, or take a model with more positions"
        raise ValueError(
            f"max_new_tokens={config.max_new_tokens} behind a prompt of {longest} tokens needs more than the {limit} "
            f"positions of {experiment.model_name}: {way_out}."
        )
    return rendering


def prompts_of_importance(experiment: Experiment, asked: Rendering, tokenizer: Any) -> list[tuple[int, ...]]:
    """Return the token ids of the prompts that importance is measured on; none where it is asked of no prompt.

    Args:
        asked: the experiment's own prompts, which are taken where it names no others.

    Raises:
        ValueError: one is longer than max_seq_length, or the model has no position left for an answer to it.
    """
    config, limit = experiment.config, experiment.positions
    if config.method not in TARGETED or config.importance == "magnitude":
        return []
    if config.importance_prompts is not None:
        asked = render(config, load_prompts(config.importance_prompts), tokenizer, None, experiment.fills_masks)
    prompts = [row.ids for row in asked.prompts]
    longest = max(map(len, prompts))
    if limit is not None and longest >= limit:
        raise ValueError(
            f"importance_prompts={config.importance_prompts!r}: a prompt has {longest} tokens, which leaves none of "
            f"the {limit} positions of {experiment.model_name} for an answer: shorten it."
        )
    return prompts


def why_repeats_are_equal(config: ExperimentConfig, prompts: int) -> str | None:
    """Return why all repeats of an experiment would be the same; None where they may differ.

    Args:
        prompts: how many importance is measured on.
    """
    if config.do_sample and config.top_k != 1:
        return None
    if config.method == "uni_quant" and not config.legacy_rng:
        return "uni_quant draws nothing"
    if config.method == "targeted" and not config.shuffle_importance and (config.unit == "element" or prompts < 2):
        return f"importance={config.importance!r} of unit={config.unit!r} has no prompts that repeats could draw"
    return None


WHERE_FIELDS = ("group", "level", "level_index", "prompt_id", "repeat_index")


def parse_where(text: str | None) -> dict[str, set[str]]:
    """Read `field=value`, with commas between several; a field named twice takes either value.

    Raises:
        ValueError: no such field, or no value.
    """
    wanted: dict[str, set[str]] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"force_where={text!r}: write field=value, with commas between several.")
        check_choice("force_where", name, WHERE_FIELDS)
        if name == "level":
            try:
                value = value if value == "null" else level_key(float(value))
            except ValueError:
                raise ValueError(f"force_where={text!r}: {value!r} is no level.") from None
        wanted.setdefault(name, set()).add(value)
    return wanted
