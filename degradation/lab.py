"""Experiments one after the other on one model: checked all first, then loaded once, then run."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from frankenlm.trainer_ext.common.cli import UserError, is_main_process, one_line, user_mistakes

from .answers.rendering import Rendering
from .answers.requests import is_out_of_memory
from .cells import cell_levels
from .configs import ExperimentConfig
from .damage.methods import MethodOptions, check_method
from .damage.quant4 import check_requantise
from .errors import MemoryStop
from .harness import cells_to_visit
from .records.manifest import ExperimentFiles
from .records.store import Store
from .run.identity import adapter_of, code_of, config_of, known_as, read_generation, reading_identity
from .run.legacy import LegacyCount, adopt_legacy, match_legacy, read_legacy
from .run.limits import Signals, make_policy
from .run.numbering import as_stored, renumber, warn_of_other_prompts
from .run.plan import Experiment, prompts_of_importance, read_inputs, render_experiment, why_repeats_are_equal
from .run.run_facts import run_facts
from .run.runner import ExperimentRun
from .run_options import RunOptions
from .weights.fingerprint import fingerprint_model, fingerprint_name
from .weights.loading import Loaded, check_model, load_model, location, wrap_model
from .weights.model_checks import (
    attention_of,
    check_given,
    check_group,
    check_inputs,
    fills_masks,
    read_tokenizer,
    resolve_device,
)
from .weights.parameter_index import unwrap

logger = logging.getLogger(__name__)

# what a loaded model must be loaded again for
LOADING_FIELDS = ("dtype", "load_4bit", "quant_type", "double_quant")
# what a rendering of the same prompts, and what is checked of it, depends on
RENDERING_FIELDS = ("system_prompt", "max_seq_length", "max_new_tokens", "perplexity")
# How long processes wait for one another: as long as the last cell takes, or another run's lock. Who dies is noticed
# all the same, by the launcher and by the connections that break.
PATIENCE = timedelta(days=30)


class Lab:
    """A model, by name or loaded, and the experiments on it.

    Args:
        model: hub name or folder; or a loaded model, then with its tokenizer (and processor for pictures): `given`.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        options: RunOptions | None = None,
        *,
        tokenizer: Any = None,
        processor: Any = None,
    ):
        self.options = options or RunOptions()
        self.given = None if isinstance(model, str) else wrap_model(model, tokenizer, processor)
        self.name = model if isinstance(model, str) else self.given.name
        self._loaded: tuple[tuple, Loaded] | None = None
        self._renderings: dict[tuple, Rendering] = {}
        self._bar: tqdm | None = None  # over several experiments
        self.in_step = True  # false during a run, and after an error that the other processes may not have met

    def plan(self, config: ExperimentConfig) -> Experiment:
        """Check everything that can be checked without the weights.

        Raises:
            ValueError: the model, group, prompts, picture or a combination of them is wrong; the message says which.
        """
        # prompts and picture first: a mistake there need not wait for a model's configuration
        inputs = read_inputs(config)
        check_method(config.method, MethodOptions.from_config(config))
        if config.load_4bit and config.quant_target_mode == "requantise":
            for level in cell_levels(config):
                check_requantise(config.method, level, config.force_requantise)
        found, weights, tokenizer, processor, reading = self._given_model(config) or self._named_model(config)
        experiment = Experiment(config, known_as(self.name), found, weights, *inputs, reading=reading)
        self._files(experiment).check_names()
        if not (experiment.fills_masks or reading["stop_ids"]):
            raise ValueError(
                f"model {self.name}: neither its generation config nor its tokenizer names an end-of-sequence token, "
                "so no answer would end: set eos_token_id in generation_config.json."
            )
        rendering = self._rendered(experiment, tokenizer, processor)
        why = why_repeats_are_equal(config, len(prompts_of_importance(experiment, rendering, tokenizer)))
        if why and config.n_rep > 1:
            logger.warning(
                "%s, and the answers are greedy: all %d repeats will be the same; n_rep=1 is enough", why, config.n_rep
            )
        return dataclasses.replace(experiment, rendering=rendering)

    def _rendered(self, experiment: Experiment, tokenizer: Any, processor: Any) -> Rendering:
        """Return the prompts as the model reads them; experiments that ask the same share one rendering."""
        config = experiment.config
        texts = tuple(prompt.text for prompt in experiment.prompts)
        key = (texts, experiment.picture_sha256, *(getattr(config, name) for name in RENDERING_FIELDS))
        if key not in self._renderings:
            self._renderings[key] = render_experiment(experiment, tokenizer, processor)
        return self._renderings[key]

    def _files(self, experiment: Experiment) -> ExperimentFiles:
        config = experiment.config
        return ExperimentFiles(Path(self.options.output_dir), config.method, experiment.short_name, config.name_suffix)

    def _given_model(self, config: ExperimentConfig) -> tuple | None:
        """Return configuration, fingerprint, tokenizer, processor, identity of a model in memory, if there is one."""
        if self.given is None:
            return None
        model, tokenizer = self.given.model, self.given.tokenizer
        processor = self.given.processor if config.image is not None else None
        check_given(model, config)
        found = config_of(model)
        check_inputs(self.name, found, config)
        check_group(self.name, model, found, config)
        inner, masked = unwrap(model), fills_masks(found)
        generation = GenerationConfig() if masked else inner.generation_config
        reading = reading_identity(
            config,
            tokenizer,
            processor,
            generation,
            attention=attention_of(inner),
            adapter=adapter_of(model),
            fills_masks=masked,
        )
        return found, fingerprint_model(model), tokenizer, processor, reading

    def _named_model(self, config: ExperimentConfig) -> tuple:
        """Return the same of a model by its name; no weight is loaded."""
        found, attention = check_model(self.name, config, self.options)
        remote, place = self.options.trust_remote_code, location(self.name)
        tokenizer, processor = read_tokenizer(self.name, config.image is not None, remote)
        reading = reading_identity(
            config,
            tokenizer,
            processor,
            read_generation(place, found),
            attention=attention,
            adapter=adapter_of(place),
            code=code_of(place, found, remote),
            fills_masks=fills_masks(found),
        )
        return found, fingerprint_name(self.name, found), tokenizer, processor, reading

    def adopt(self, experiment: Experiment, file: str | os.PathLike) -> LegacyCount:
        """Take rows of the original program's JSON file into an experiment; see `legacy.adopt_legacy`."""
        rows = read_legacy(file)
        match_legacy(rows, file, experiment.planned_rows())  # what is wrong with them is told before a folder is made
        with self._open(experiment, self._processes(), self.options.on_conflict) as store:
            experiment = as_stored(experiment, store)
            renumber(experiment, store)
            count = adopt_legacy(rows, file, store, experiment.planned_rows())
            store.export()
            return count

    def run(self, experiment: Experiment) -> Path:
        """Write what an experiment misses; return its JSON file.

        Raises:
            LabStop: memory, a conflict, a lock or damaged records; see errors.py.
            Interrupted: a signal came.
            OSError: the storage is full, read-only or failing.
        """
        state = self._processes()
        self.in_step = state.num_processes == 1
        # signals last: while it waits for the lock, a process may be ended like any other
        with self._open(experiment, state, self.options.on_conflict) as store, Signals() as signals:
            # another suffix than asked for, after on_conflict="new-suffix"
            config = experiment.config | {"name_suffix": store.files.suffix}
            experiment = as_stored(dataclasses.replace(experiment, config=config), store)
            try:
                self._work(experiment, store, signals, state)
                state.wait_for_everyone()
            except BaseException as error:
                if store.rank > 0:
                    tell_alone(store.rank, error)
                else:
                    self._export_what_is_there(store)
                if isinstance(error, RuntimeError):
                    signals.check()  # connections that break because all processes are being ended are no failure
                raise
            if state.is_main_process:
                store.export()
            state.wait_for_everyone()
            signals.check()  # one that came behind the last token still keeps the next experiment from starting
            self.in_step = True
            return store.files.json_path

    def _export_what_is_there(self, store: Store) -> None:
        """Export on the way out of an error, which is what the user is to hear of, not of an export that fails too."""
        try:
            store.export()
        except OSError as error:
            logger.error("the JSON file could not be brought up to date, the journal has every row: %s", error)

    @property
    def processes(self) -> int:
        """How many processes the launcher started."""
        return self._processes().num_processes

    def _processes(self) -> PartialState:
        """What the launcher started; accelerate takes processes without GPUs for one unless it is told."""
        device = self.given.device.type if self.given else resolve_device(self.options.device).type
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        if self.options.device_map is not None and state.num_processes > 1:
            raise UserError(
                f"--device_map {self.options.device_map}: each of {state.num_processes} processes holds a whole model; "
                "start one process, or leave it out."
            )
        return state

    def _work(self, experiment: Experiment, store: Store, signals: Signals, state: PartialState) -> None:
        if state.is_main_process:
            renumber(experiment, store)
            warn_of_other_prompts(experiment, store)
        state.wait_for_everyone()
        store.refresh()  # what was renumbered has new attempts, which later ones must exceed
        plans = cells_to_visit(self.options.harness, experiment, store)
        state.wait_for_everyone()  # nobody writes before all have read: every process has the same plans
        rows = sum(len(plan.missing) for plan in plans)
        if self._bar is not None and self._bar.total:
            self._bar.total -= experiment.row_count - rows  # those that are there already
            self._bar.refresh()
        if not plans:
            logger.info("all %d cells are finished; nothing to do", len(experiment.cells))
            return
        logger.info("%d rows in %d of %d cells to write", rows, len(plans), len(experiment.cells))
        store.preflight(rows)
        # own share first, then whatever is left unclaimed
        rank, size = state.process_index, state.num_processes
        ordered = [plan for turn in range(size) for plan in plans[(rank + turn) % size :: size]]
        shown = self.options.progress and state.is_main_process
        run = self._begin(experiment, store, signals)
        state.wait_for_everyone()  # the first to have loaded would claim the others' cells
        if self._bar is None:
            with tqdm(total=rows, unit="row", desc=experiment.label, disable=not shown, dynamic_ncols=True) as bar:
                run.work(ordered, bar)
        else:
            self._bar.set_description(experiment.label)
            run.work(ordered, self._bar)

    @contextlib.contextmanager
    def one_bar(self, experiments: Sequence[Experiment]) -> Iterator[None]:
        """Show the progress of several experiments in one bar while they are run."""
        total = sum(experiment.row_count for experiment in experiments)
        shown = self.options.progress and is_main_process()
        with tqdm(total=total, unit="row", disable=not shown, dynamic_ncols=True) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def _begin(self, experiment: Experiment, store: Store, signals: Signals) -> ExperimentRun:
        try:
            with user_mistakes():  # what only the weights can tell
                loaded = self.load(experiment.config)
                policy = make_policy(experiment, loaded)
                return ExperimentRun(experiment, loaded, store, policy, signals, self.options.harness)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryStop(
                f"{self.name} finds no room: the command dry-run says what it takes; try a smaller dtype or load_4bit."
            ) from error

    @contextlib.contextmanager
    def session(self, experiment: Experiment, signals: Signals | None = None) -> Iterator[ExperimentRun]:
        """Open an experiment to do its cells one by one (`ExperimentRun.cell`), as benchmarks do; one process only.

        Rows of another configuration stop it, whatever `on_conflict` says: the caller knows what moves with them.

        Args:
            signals: of several sessions at a time, which the caller enters; None: of this one alone.
        """
        with self._open(experiment, self._processes(), "stop") as store, contextlib.ExitStack() as stack:
            own = signals or stack.enter_context(Signals())
            yield self._begin(as_stored(experiment, store), store, own)

    def _open(self, experiment: Experiment, state: PartialState, on_conflict: str) -> Store:
        """Open the experiment's files, rank 0 first; what it finds wrong is an error in every process."""
        store, problem = None, None
        if state.is_main_process:
            try:
                store = self._open_store(experiment, state, on_conflict)
            except Exception as error:
                if state.num_processes == 1:
                    raise
                problem = error
        if state.num_processes == 1:
            return store
        (problem, suffix) = broadcast_object_list([problem, store.files.suffix if store else None])
        if problem is not None:
            self.in_step = True
            raise problem
        if store is None:
            try:
                store = self._open_store(experiment, state, on_conflict, suffix)
            except Exception as error:
                tell_alone(state.process_index, error)
                raise
        return store

    def _open_store(
        self, experiment: Experiment, state: PartialState, on_conflict: str, suffix: str | None = None
    ) -> Store:
        options = self.options
        with user_mistakes():  # what lies in the folder, and may not be written or is in the way
            return Store.open(
                options.output_dir,
                experiment.config.method,
                experiment.short_name,
                suffix or experiment.config.name_suffix,
                config_fields=experiment.config_fields,
                manifest=run_facts(experiment, state.num_processes),
                rank=state.process_index,
                world_size=state.num_processes,
                wait_lock=options.wait_lock,
                on_conflict=on_conflict,
                rebuild=options.rebuild,
            )

    def load(self, config: ExperimentConfig) -> Loaded:
        """Return the model as an experiment wants it; the next one that wants the same finds it loaded."""
        if self.given is not None:
            return self.given
        key = tuple(dataclasses.asdict(config)[name] for name in LOADING_FIELDS) + (config.image is not None,)
        if config.load_4bit and config.quant_target_mode == "dense_original":
            key += (config.group,)  # its weights are left out of the quantisation while loading
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the old model goes before the new one comes
            self._loaded = key, load_model(self.name, config, self.options)
        return self._loaded[1]


def tell_alone(rank: int, error: BaseException) -> None:
    """Say how a process other than rank 0 ends: only that one prints a command's end, and may know of nothing."""
    logger.error("process %d stops: %s", rank, one_line(error))


def run_experiment(
    config: ExperimentConfig,
    *,
    model: str | PreTrainedModel,
    output_dir: str | os.PathLike = "results",
    tokenizer: Any = None,
    processor: Any = None,
    **options: Any,
) -> Path:
    """Run one experiment to its end, from wherever it stands, and return its JSON file.

    Args:
        config: see `get_config`.
        model: hub name or folder, or a loaded model with its tokenizer (and processor, where pictures are shown).
        options: fields of `RunOptions`.
    """
    lab = Lab(model, RunOptions(output_dir=output_dir, **options), tokenizer=tokenizer, processor=processor)
    return lab.run(lab.plan(config))
