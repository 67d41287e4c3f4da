"""A sweep's YAML file -> the runs that it asks for.

    name: rates                          # default: the file's name
    base: {preset: mini, dataset: builtin, max_steps: 200, model.num_loops: 1}
    grid:                                # every combination of these values
      learning_rate: [3e-4, 1e-3, 3e-3]
      model.num_experts: [2, 4]
    runs:                                # and these, each with a grid of its own if it has one
      muon: {matrix_optimizer: muon, grid: {learning_rate: [1e-3, 3e-3]}}
    seeds: [0, 1, 2]                     # each of them all
    metric: eval_loss

Settings are those of train.py's flags and of its run.yaml: `learning_rate`, `batch_size`, `model.num_experts`; `{seed}`
in a text is the run's seed. `choice` and `report` let a seed of its own choose a value first: choice.py.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenlm.modeling.checks import check_choice, check_keys
from frankenlm.modeling.yaml_text import YamlWord, load_yaml

from ..common.cli import UserError, check_seeds, user_mistakes
from ..presets import SECTIONS, all_config_fields, as_word, field_names, flat_settings, load_yaml_mapping, to_words
from .choice import CHOICE, REPORT, Decision, ValueChoice, decide, read_choice
from .table import METRICS

logger = logging.getLogger("frankenlm.sweep")

KEYS = ("name", "base", "grid", "runs", "choice", "report", "seeds", "metric")
MODEL, SEED = "model.", "{seed}"
# What the sweep itself says to train.py.
OWN = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "list_presets")
# What looks at the validation text of a run, which is the one that is reported: settings and metrics.
PEEKING = ("early_stopping_patience", "load_best_model_at_end")
PEEKING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # their rate follows the validation loss
PEEKING_METRICS = ("best_eval_loss", "lowest_eval_loss")
LONGEST_NAME = 100


@dataclass(frozen=True)
class SweepRun:
    """One training run.

    name: of its folder. group: its name under `runs`, "" in the grid. varied: its values in the axes of its grid.
    own: what it sets beside `base`. settings: everything that train.py is given. stage: one of STAGES, or "" where
    nothing is chosen.
    """

    name: str
    group: str
    varied: Mapping[str, Any]
    own: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int | None
    stage: str = ""

    def words(self) -> list[str]:
        """The settings as words of train.py's command line."""
        flags = {key: value for key, value in self.settings.items() if not key.startswith(MODEL)}
        fields = {key: value for key, value in self.settings.items() if key.startswith(MODEL)}
        return [*to_words(flags), *(f"--{key}={_field_word(value)}" for key, value in fields.items())]


@dataclass(frozen=True)
class Entrant:
    """What has a value chosen for it: its name under `runs`, its values in the axes of its grid, all its settings."""

    group: str
    base: Mapping[str, Any]
    own: Mapping[str, Any]
    varied: Mapping[str, Any]

    def run(self, setting: str, value: float, seed: int, stage: str, more: Mapping[str, Any]) -> SweepRun:
        """The run at a value; `more` are settings of the stage."""
        chosen = {setting: value}
        made = _run(self.group, self.base, {**self.own, **chosen, **more}, {**self.varied, **chosen}, seed)
        return dataclasses.replace(made, stage=stage)


@dataclass(frozen=True)
class Sweep:
    """The runs of one file; `metric` is a key of metrics.json.

    choice, report, seeds, entrants: of a sweep that chooses a value first; its runs grow with what is found. refused:
    the names of runs by which it would grow, had their settings been possible.
    """

    name: str
    metric: str
    runs: tuple[SweepRun, ...]
    choice: ValueChoice | None = None
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    entrants: tuple[Entrant, ...] = ()
    refused: frozenset[str] = frozenset()

    @property
    def axes(self) -> list[str]:
        """The settings that lie in a grid, in the order of the file."""
        return list(dict.fromkeys(key for run in self.runs for key in run.varied))


def read_sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file.

    Args:
        changes: `KEY=VALUE` that takes the place of what `base` says.
    Raises:
        UserError: no YAML, an unknown key or setting, an empty list, a value that stands twice.
    """
    with user_mistakes():
        content = load_yaml_mapping(str(path))
        check_keys(f"--config {path}", content, KEYS)
        base = _settings(f"{path}, base", content.get("base"))
        changed = _settings(f"{path}, --set", dict(map(_change, changes)))
        base |= changed
        metric = content.get("metric", "eval_loss")
        check_choice(f"--config {path}: metric", metric, METRICS)
        seeds = _seeds(path, content, base)
        entrants = []
        for group, own, axes in _groups(path, content):
            if "seed" in axes or ("seed" in own and seeds != [None]):
                raise UserError(f"--config {path}: seeds stand in 'seeds: [0, 1]', beside grid and runs, not in them.")
            for values in itertools.product(*axes.values()):
                varied = dict(zip(axes, values, strict=True))
                entrants.append(Entrant(group, base, {**own, **varied}, varied))
        sweep = _choosing(path, content, entrants, seeds, metric)
        _check_changed(changed, entrants, sweep)
        if sweep is not None:
            runs = sweep.runs
        else:
            runs = [_run(one.group, base, one.own, one.varied, seed) for one in entrants for seed in seeds]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--config {path}: two runs are {name!r}: a value stands twice.")
    name = str(content.get("name", path.stem))
    return Sweep(name, metric, tuple(runs)) if sweep is None else dataclasses.replace(sweep, name=name)


def _check_changed(changed: Mapping[str, Any], entrants: Sequence[Entrant], sweep: Sweep | None) -> None:
    """Raises UserError where --set would change no run; a warning names those that keep what they say themselves."""
    for key, value in changed.items():
        told = f"--set {key}={shown(value)}"
        if sweep is not None and key == sweep.choice.setting:
            raise UserError(f"{told}: is what is chosen: change the values of choice in the file.")
        keeping = [entrant for entrant in entrants if key in entrant.own]
        if len(keeping) == len(entrants):
            raise UserError(f"{told}: changes no run, as each sets {key} itself, in grid or runs: change it there.")
        if keeping:
            names = list(dict.fromkeys(entrant.group or "those of the grid" for entrant in keeping))
            logger.warning("%s: not for %s, which keep their own", told, ", ".join(names))


def _choosing(
    path: Path, content: Mapping[str, Any], entrants: list[Entrant], seeds: list, metric: str
) -> Sweep | None:
    """The sweep of a file with a choice, its first runs in it; None of a file without."""
    if content.get("choice") is None:
        if content.get("report") is not None:
            raise UserError(f"--config {path}: report does nothing without a choice.")
        return None
    choice = read_choice(str(path), content["choice"])
    (setting,) = _settings(f"{path}, choice", {choice.setting: choice.values[0]})
    report = _settings(f"{path}, report", content.get("report"))
    if seeds == [None] or choice.seed in seeds:
        raise UserError(f"--config {path}: a choice needs seeds beside its own, {choice.seed}, which are reported.")
    check_seeds([choice.seed])
    if setting in report or any(setting in one.own for one in entrants):
        raise UserError(f"--config {path}: {setting} is what is chosen: leave it out of grid, runs and report.")
    _check_peeking(path, entrants, report, metric)
    choice = dataclasses.replace(choice, setting=setting)
    return following(Sweep("", metric, (), choice, report, tuple(seeds), tuple(entrants)), {})


def _check_peeking(path: Path, entrants: Sequence[Entrant], report: Mapping[str, Any], metric: str) -> None:
    """Raises UserError where weights, or the evaluation that is told, would be chosen on the text that is reported."""
    if report.get("validation_dataset") is None:
        return
    for entrant in entrants:
        settings = {**entrant.base, **entrant.own, **report}
        for name in PEEKING:
            if settings.get(name) not in (None, False):
                raise UserError(
                    f"--config {path}: {name} would choose the weights on the text that is reported; leave it out, or "
                    f"say {name}: null in report."
                )
        if settings.get("lr_scheduler_type") in PEEKING_SCHEDULES:
            raise UserError(
                f"--config {path}: lr_scheduler_type: {settings['lr_scheduler_type']} would lower the rate by the text "
                "that is reported; take a schedule that looks at no text, such as linear."
            )
    if metric in PEEKING_METRICS:
        raise UserError(
            f"--config {path}: metric: {metric} is chosen among evaluations of the text that is reported; take "
            "eval_loss."
        )


def following(sweep: Sweep, found: Mapping[str, float]) -> Sweep:
    """The sweep with every run that follows from what is found.

    Args:
        found: the metric of finished runs by name; infinitely bad where training gave up.
    """
    runs = []
    for entrant in sweep.entrants:
        decision = decision_for(sweep, entrant, found)
        runs += [choosing_run(sweep, entrant, value) for value in decision.values]
        if decision.chosen is not None:
            runs += reported_runs(sweep, entrant, decision.chosen)
    return dataclasses.replace(sweep, runs=tuple(runs))


def decision_for(sweep: Sweep, entrant: Entrant, found: Mapping[str, float]) -> Decision:
    """What an entrant's runs of the choice come to."""
    known: dict[float, float] = {}
    while True:
        decision = decide(
            sweep.choice,
            known,
            METRICS[sweep.metric],
            lambda value: choosing_run(sweep, entrant, value).name in sweep.refused,
        )
        names = {value: choosing_run(sweep, entrant, value).name for value in decision.values}
        more = {value: found[name] for value, name in names.items() if name in found and value not in known}
        if not more:
            return decision
        known |= more


def choosing_run(sweep: Sweep, entrant: Entrant, value: float) -> SweepRun:
    return entrant.run(sweep.choice.setting, value, sweep.choice.seed, CHOICE, {})


def reported_runs(sweep: Sweep, entrant: Entrant, value: float) -> list[SweepRun]:
    return [entrant.run(sweep.choice.setting, value, seed, REPORT, sweep.report) for seed in sweep.seeds]


def _groups(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, dict, dict]]:
    """The named runs and the grid: name, settings, axes."""
    grid, named = content.get("grid"), content.get("runs")
    if grid is None and named is None and content.get("seeds") is None:
        raise UserError(f"--config {path}: nothing varies: give a grid, runs or seeds.")
    if grid is not None or named is None:
        yield "", {}, _axes(f"{path}, grid", grid)
    if named is not None and not isinstance(named, Mapping):
        raise UserError(f"--config {path}, runs: expected 'name: settings' lines, found {type(named).__name__}.")
    for name, given in (named or {}).items():
        place = f"{path}, run {name!r}"
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"--config {place}: expected 'key: value' lines, found {type(given).__name__}.")
        own = dict(given or {})
        axes = _axes(f"{place}, grid", own.pop("grid", None))
        yield str(name), _settings(place, own), axes


def _axes(place: str, grid: Any) -> dict[str, list]:
    axes = _settings(place, grid)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"--config {place}, {key}: a list of values is expected, as in [1, 2].")
    return axes


def _seeds(path: Path, content: Mapping[str, Any], base: Mapping[str, Any]) -> list[int | None]:
    seeds = content.get("seeds")
    if seeds is None:
        return [None]
    if not isinstance(seeds, list) or not seeds or any(not isinstance(s, int) or isinstance(s, bool) for s in seeds):
        raise UserError(f"--config {path}, seeds: a list of whole numbers is expected, as in [0, 1, 2].")
    if "seed" in base:
        raise UserError(f"--config {path}: base has a seed, and there are seeds: leave one of them out.")
    check_seeds(seeds)
    return [int(seed) for seed in seeds]


def _settings(place: str, given: Any) -> dict[str, Any]:
    """Settings by the names of train.py's flags, those of the model's configuration with `model.` before them."""
    if given is None:
        return {}
    where = f"--config {place}"
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected 'key: value' lines, found {type(given).__name__}.")
    flags, fields = {name for section in SECTIONS.values() for name in field_names(section)}, all_config_fields()
    settings = {}
    for key, value in flat_settings(place, given).items():
        key = _aliases().get(key, key)
        if key in OWN:
            raise UserError(f"{where}: {key} is what the sweep says to each run: leave it out.")
        if key not in flags and not key.startswith(MODEL):
            check_keys(where, [key], flags | fields)
            key = MODEL + key
        if key.startswith(MODEL):
            check_keys(where, [key], {MODEL + name for name in fields})
        if key in settings:
            raise UserError(f"{where}: {key!r} stands twice, under two names.")
        settings[key] = value
    return settings


def _aliases() -> dict[str, str]:
    """Other names of flags, such as batch_size."""
    return {
        alias.removeprefix("--"): field.name
        for section in SECTIONS.values()
        for field in dataclasses.fields(section)
        for alias in field.metadata.get("aliases", ())
    }


def _change(word: str) -> tuple[str, Any]:
    key, equals, value = word.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"--set {word}: expected KEY=VALUE, as in max_steps=10.")
    try:
        return key, load_yaml(value)
    except ValueError as error:
        raise UserError(f"--set {word[:60]}: {error}") from error


def _run(group: str, base: Mapping, own: Mapping, varied: Mapping, seed: int | None) -> SweepRun:
    settings = {key: _of_seed(value, seed) for key, value in {**base, **own}.items()}
    settings |= {} if seed is None else {"seed": seed}
    parts = [group] if group else []
    parts += [f"{key.removeprefix(MODEL)}={shown(value)}" for key, value in varied.items()]
    parts += [] if seed is None else [f"seed={seed}"]
    return SweepRun(_folder_name(",".join(parts) or "run"), group, varied, own, settings, seed)


def _of_seed(value: Any, seed: int | None) -> Any:
    return value.replace(SEED, str(seed)) if seed is not None and isinstance(value, str) and SEED in value else value


def _folder_name(text: str) -> str:
    """A text as the name of a folder; where it had to change, a hash tells it from its like."""
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII).lstrip(".-")[:LONGEST_NAME]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def shown(value: Any) -> str:
    """A value of a setting as a person writes it."""
    return as_word(value, {float})


def _field_word(value: Any) -> str:
    """A value as YAML that gives it again: a plain yes or no stays one."""
    if value is None or (isinstance(value, str) and not isinstance(value, YamlWord)):
        return json.dumps(value)
    return as_word(value, {float})
