"""Tasks of lm-evaluation-harness as probes: measured in every cell, on the damaged model, beside its answers.

They are scored by the harness itself (mostly by the likelihood of choices, which models too small to answer have too),
and stand in the records of cells; rows and their keys know nothing of them. A cell that has a task's figures keeps
them, and one that lacks them is visited again, whether its rows are there or not. Figures are of one task while these
agree: the limit, the harness's version, and a digest of the task's configuration and documents.
"""

import contextlib
import copy
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError, one_line

from .answers.requests import is_out_of_memory
from .errors import MemoryStop
from .likelihood_tasks import likelihood_tasks, sets_with_choices
from .offloaded import input_device
from .records.store import Store
from .report.harness_tasks import identity_of
from .run.plan import CellPlan, Experiment
from .weights.loading import Loaded

BATCH = 8  # requests at once
MOST_SUGGESTED = 20


class Harness:
    """Some tasks, found and loaded before any model is.

    Args:
        names: of tasks, groups or tags, of which every task is reported; or of a shipped prompt set with choices,
            whose questions are then read by likelihood (likelihood_tasks.py).
        folder: with tasks of one's own, looked at first; where it has them all, the harness's thousand are not read.
        limit: use only the first so many documents of each task.

    Raises:
        UserError: the package is missing, there is no such task or folder, or a task's data cannot be had.
    """

    def __init__(self, names: Sequence[str], folder: str | Path | None = None, limit: int | None = None):
        if limit is not None and limit < 1:
            raise UserError(f"--lm_eval_limit {limit} must be at least 1.")
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"--lm_eval_path {folder}: there is no such folder.")
        self.limit = limit
        ours = [name for name in names if name in sets_with_choices()]
        others = [name for name in names if name not in ours]
        self.manager = _manager(others, folder)
        self.tasks = self._loaded(others)
        for name in ours:
            self.tasks |= likelihood_tasks(name)
        version = importlib.metadata.version("lm_eval")
        self.identities = {
            name: {"limit": limit, "harness": version, "digest": digest(task, limit)}
            for name, task in self.tasks.items()
        }
        self._view: tuple[Any, Any] | None = None

    def _loaded(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the tasks by name, with their data."""
        if not names:
            return {}
        try:
            return dict(self.manager.load(list(names))["tasks"])
        except Exception as error:  # whatever a task's own code and the libraries of data sets raise
            raise UserError(f"--lm_eval {' '.join(names)}: cannot be loaded: {one_line(error)}") from error

    def check(self, experiment: Experiment, processes: int) -> None:
        """Raise UserError for an experiment whose cells cannot be probed."""
        if experiment.fills_masks:
            raise UserError(f"--lm_eval asks models that continue a text; {experiment.model_name} fills in masks.")
        if processes > 1:
            raise UserError(f"--lm_eval would share its tasks among the {processes} processes: start one.")

    def misses(self, known: Mapping[str, Any] | None) -> bool:
        """Whether a cell's figures (`lm_eval` of its record) lack a task, or have it of another identity."""
        return any(self._stale(name, known or {}) for name in self.tasks)

    def _stale(self, name: str, known: Mapping[str, Any]) -> bool:
        # figures of earlier versions have no digest
        return identity_of(known.get(name, {})) != identity_of(self.identities[name])

    def measure(self, loaded: Loaded, known: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Return a cell's figures: those that are known, and the others measured on the model as it is.

        Returns:
            task -> limit, harness (its version), digest, documents, version (the task's), metrics (name -> number) and
            better (name -> +1, -1 or None).
        """
        found = dict(known or {})
        tasks = {name: task for name, task in self.tasks.items() if self._stale(name, found)}
        if not tasks:
            return found
        from lm_eval import simple_evaluate

        with same_random_numbers(), torch.inference_mode():
            try:
                result = simple_evaluate(
                    model=self._wrapped(loaded),
                    tasks=list(tasks.values()),
                    task_manager=self.manager,
                    limit=self.limit,
                    bootstrap_iters=0,
                    log_samples=False,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryStop(f"--lm_eval finds no room for {BATCH} requests at once beside the model.") from error
        return found | {name: self._figures(name, result) for name in tasks}

    def _figures(self, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
        higher = result["higher_is_better"].get(name) or {}
        metrics, better = {}, {}
        for key, value in result["results"][name].items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            label = metric if kind == "none" else f"{metric},{kind}"
            metrics[label] = float(value) if math.isfinite(value) else None
            better[label] = {True: 1, False: -1}.get(higher.get(metric))
        return {
            **self.identities[name],
            "documents": result["n-samples"][name]["effective"],
            "version": result["versions"].get(name),
            "metrics": metrics,
            "better": better,
        }

    def _wrapped(self, loaded: Loaded) -> Any:
        """Return the harness's view of a model, kept until `release`; its tokenizer is a copy: it sets a pad token."""
        if self._view is None or self._view[0] is not loaded.model:
            self.release()
            with quiet():
                view = _quiet_view()(
                    pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=BATCH
                )
            self._view = loaded.model, view
        return self._view[1]

    def release(self) -> None:
        """Let go of the model: at the end of its experiment, so that it is gone before the next one is loaded."""
        self._view = None


def digest(task: Any, limit: int | None) -> str:
    """Return what tells a task from another of its name: SHA-256 of its configuration and of the documents asked.

    Where the task's file lies does not count; functions count by their source.
    """
    config = dict(task.dump_config())
    metadata = config.get("metadata") or {}
    config["metadata"] = {key: value for key, value in metadata.items() if key != "config_source"}
    found = hashlib.sha256(_canonical([config, task.VERSION]))
    for document in itertools.islice(task.eval_docs, limit):
        found.update(_canonical(document))
    return found.hexdigest()


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=_source)
    return re.sub(r"\bat 0x[0-9a-f]+", "", text).encode()  # of functions that the harness found no source for


def _source(value: Any) -> str:
    """Return what stands in JSON for a function, or for what is none of JSON's kinds (a picture)."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return repr(value)


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    """Return the harness's index of tasks that has all of the names.

    Raises:
        UserError: the package is missing, or a name is in none.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("--lm_eval needs the package lm_eval: pip install 'frankenlm[eval]'.") from error
    with quiet():
        if not names:
            return TaskManager(include_defaults=False)
        if folder is not None:
            own = TaskManager(include_path=str(folder), include_defaults=False)
            if set(names) <= set(own.all_tasks):
                return own
        manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f"--lm_eval {name}: there is no such task.{suggest(name, [*manager.all_tasks, *sets_with_choices()])}"
            )
    return manager


def _quiet_view() -> type:
    """Return the harness's model class without its progress bars, which would stand in ours."""
    from lm_eval.models.huggingface import HFLM

    class QuietView(HFLM):
        @property
        def device(self):
            return input_device(self.model)  # a model whose first weights are offloaded says meta

        def loglikelihood(self, requests, disable_tqdm=True):
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=True):
            return super().generate_until(requests, disable_tqdm=True)

    return QuietView


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness from warning of what is meant: a model in memory, tasks in a folder."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the global generators as they were: the harness seeds them all."""
    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)


def cells_to_visit(harness: Harness | None, experiment: Experiment, store: Store) -> list[CellPlan]:
    """Return the cells that miss rows, and with a harness those that miss its figures."""
    plans = experiment.pending(store.finished)
    if harness is None:
        return plans
    rows = {plan.cell: plan for plan in plans}
    found = []
    for cell in experiment.cells:
        record = store.known_cell({**experiment.cell_fields(cell)}) or {}
        if cell in rows or harness.misses(record.get("lm_eval")):
            found.append(rows.get(cell) or CellPlan(cell, ()))
    return found
