"""The flow of an experiment: find what is missing, damage, measure, generate, record; nothing twice, nothing lost.

Cells go to processes by their number; those left over are claimed by whoever is free. Every process holds the whole
model and writes its own journal, so no tensor travels; rank 0 holds the lock and merges.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from transformers import GenerationConfig

from frankenlm.trainer_ext.common.cli import user_mistakes

from ..answers.batch_decoder import BatchDecoder
from ..answers.mask_filling import MaskDecoder
from ..answers.masked_probe import MaskedTextProbe
from ..answers.packed_linears import packed_linears
from ..answers.rendering import Rendering
from ..answers.requests import Answer, Decoder, DecoderSettings, Request, RowsUnsupported
from ..answers.row_decoder import RowDecoder
from ..answers.sampling import Sampler, resolve_sampling
from ..answers.state_decoder import StateDecoder
from ..answers.text_probe import Probe, TextProbe, TextScore
from ..cells import Cell
from ..configs import TARGETED
from ..damage.methods import MethodOptions
from ..errors import MemoryStop
from ..measures.measure import perplexity_text
from ..records.store import Store
from ..weights.groups import select_group
from ..weights.loading import Loaded
from ..weights.memory import MemoryPolicy
from ..weights.restore import Baseline, apply_damage, check_damage
from .fill_rows import RowMaker
from .identity import stop_ids
from .limits import RunLimit, Signals
from .plan import CellPlan, Experiment, render_experiment
from .targets_of_run import RunTargets

logger = logging.getLogger(__name__)

OLDER_NOISE = "gumbel_philox"
SCORES = ("perplexity", "log_perplexity", "kl_to_baseline")


@dataclass(frozen=True)
class Subject:
    """What is damaged: the kept weights, and the text probe with its score of the undamaged model, if there is one.

    targets: of a method that removes units, which those are.
    """

    baseline: Baseline
    probe: Probe | None
    undamaged: TextScore | None
    targets: RunTargets | None = None


class ExperimentRun:
    """One experiment on a loaded model, of which the store says what is missing."""

    def __init__(
        self,
        experiment: Experiment,
        loaded: Loaded,
        store: Store,
        policy: MemoryPolicy,
        signals: Signals,
        harness: Any = None,
    ) -> None:
        """harness: `harness.Harness`, whose tasks are measured in every cell; None: none."""
        self.experiment, self.config, self.loaded, self.store = experiment, experiment.config, loaded, store
        self.limit = RunLimit(policy, signals)
        self.policy, self.harness = policy, harness
        self.expected: dict[int, int] = {}  # prompt -> tokens of its answers, the last ones counting most
        self.rendering = experiment.rendering or render_experiment(experiment, loaded.tokenizer, loaded.processor)
        # masked models have no defaults of their own
        defaults = GenerationConfig() if experiment.fills_masks else loaded.model.generation_config
        self.sampling = resolve_sampling(self.config, defaults)
        self.sampler = Sampler(self.sampling, shared_blocks=not self._has_older_noise())
        self.decoder = self._decoder()
        self.maker = RowMaker(
            experiment,
            self.rendering,
            loaded.tokenizer,
            self.sampling,
            self.decoder.name,
            loaded.devices,
            self.sampler.name,
        )

    def _has_older_noise(self) -> bool:
        """Whether the rows that are there were drawn with the noise of before: then so are the others."""
        if not self.sampling.whole_vocabulary:
            return False
        first = next(iter(self.store.rows()), None)
        return first is not None and first["sampler"].partition("/")[0] == OLDER_NOISE

    def _decoder(self) -> Decoder:
        masked, loaded = self.experiment.fills_masks, self.loaded
        settings = DecoderSettings(
            sampler=self.sampler,
            stop_ids=frozenset() if masked else stops_of(loaded),
            pad_id=0 if masked else pad_id(loaded),
            max_new_tokens=self.config.max_new_tokens,
            fixed_shape=self.config.invariance == "shape",
            picture_intact=self._damages_text_alone(),
        )
        if masked:
            return MaskDecoder(loaded.model, self.rendering, settings, loaded.tokenizer)
        return make_decoder(loaded, self.rendering, settings)

    def _damages_text_alone(self) -> bool:
        config = self.config
        group = select_group(
            self.loaded.model, config.group, tied_policy=config.tied_policy, norm_gain=config.norm_gain
        )
        return all(target.canonical.startswith("text/") for target in group.targets)

    def work(self, plans: Sequence[CellPlan], progress: tqdm) -> None:
        """Do the cells of `plans` that nobody else has claimed; the model is as it was, afterwards and on errors."""
        with self.subject() as subject:
            for number, plan in enumerate(plans, start=1):
                if self.store.claims.take(plan.cell.name(self.config)):
                    self.cell(plan, subject, progress)
                    if self.store.rank == 0:
                        self.store.export_if_due()
                if number % self.config.verify_every == 0:
                    subject.baseline.verify()

    @contextlib.contextmanager
    def subject(self) -> Iterator[Subject]:
        """Keep the undamaged weights, measure the undamaged model, and put the weights back at the end."""
        config, model = self.config, self.loaded.model
        with user_mistakes():
            baseline = Baseline(
                model,
                config.group,
                strategy=config.restore_strategy,
                tied_policy=config.tied_policy,
                quant_target_mode=config.quant_target_mode,
                norm_gain=config.norm_gain,
            )
            self._check_damage(baseline)
        try:
            with user_mistakes():
                targets = None
                if config.method in TARGETED:
                    targets = RunTargets(self.experiment, self.loaded, self.store, self.rendering, baseline)
            if not config.perplexity:
                yield Subject(baseline, None, None, targets)
            else:
                kind = MaskedTextProbe if self.experiment.fills_masks else TextProbe
                with user_mistakes():
                    probe = kind(model, self.loaded.tokenizer, perplexity_text(), self.experiment.positions)
                yield Subject(baseline, probe, probe.remember(), targets)
        finally:
            if self.harness is not None:
                self.harness.release()
            baseline.restore()
            baseline.verify()
            baseline.close()

    def _check_damage(self, baseline: Baseline) -> None:
        """Raise ValueError for weights that cannot be damaged as the experiment wants, before any row is written."""
        levels = [cell.level for cell in self.experiment.cells if not cell.is_baseline]
        try:
            if levels:
                check_damage(baseline, self.config.method, levels[0], MethodOptions.from_config(self.config))
        except ValueError:
            baseline.close()
            raise

    def cell(self, plan: CellPlan, subject: Subject, progress: tqdm) -> dict[str, Any]:
        """Damage, measure and generate: write one cell's missing rows, its lesion and its record; return the last."""
        started = time.perf_counter()
        lesion = self.damage(plan.cell, subject)
        damage_s = time.perf_counter() - started
        return self.answer(plan, subject, lesion, progress, damage_s=damage_s)

    def damage(self, cell: Cell, subject: Subject) -> dict[str, Any]:
        """Write a cell's damaged weights into the model and return its lesion record."""
        config = self.config
        chosen, more = subject.targets.chosen(cell) if subject.targets else (None, {})
        lesion = apply_damage(
            subject.baseline,
            config.method,
            cell.level,
            config.seed_base,
            cell.repeat_index,
            level_index=cell.level_index,
            options=MethodOptions.from_config(config),
            chosen=chosen,
        )
        return {**lesion, **more}

    def answer(
        self,
        plan: CellPlan,
        subject: Subject,
        lesion: Mapping[str, Any],
        progress: tqdm,
        *,
        damage_s: float = 0.0,
        score: TextScore | None = None,
    ) -> dict[str, Any]:
        """Measure the model as it is and let it answer: write a cell's missing rows, lesion and record; return that.

        Args:
            score: of the text probe, where it is known; None: as the experiment says.
        """
        place = self._place(plan.cell)
        known = self.store.known_cell(place) or {}
        if known and not plan.missing:
            return self._add_tasks(known | place)
        started = time.perf_counter()
        score = self._score(plan, subject) if score is None else score
        scored = time.perf_counter()
        record = {
            **place,
            "perplexity": score.perplexity,
            "log_perplexity": score.log_perplexity,
            "kl_to_baseline": score.kl,
            "damage_s": damage_s,
            "score_s": scored - started,
            "generate_s": None,
            "rows": 0,
        }
        record |= {name: known.get(name) for name in SCORES if record[name] is None}  # measured in an earlier run
        record |= self._tasks(known)
        # before the rows and again behind them: once the last row is there, nobody comes back for the scores
        self.store.append_lesion(lesion)
        self.store.append_cell(record)
        rows = self._rows(plan, score, lesion["rel_l2"], progress)
        record |= {"generate_s": time.perf_counter() - scored, "rows": rows}
        self.store.append_cell(record)
        return record

    def _place(self, cell: Cell) -> dict[str, Any]:
        """Return the fields by which the record of a cell is found."""
        return {
            "param_group_name": self.config.group,
            "degradation_method": self.config.method,
            "level_value": cell.level,
            "level_index": cell.level_index,
            "repeat_index": cell.repeat_index,
        }

    def _tasks(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return `lm_eval` of a cell's record, measured where it lacks something; nothing where there is none."""
        probed = known.get("lm_eval")
        if self.harness is not None:
            probed = self.harness.measure(self.loaded, probed)
        return {} if probed is None else {"lm_eval": probed}

    def _add_tasks(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of a cell that has its rows again, with its tasks: what its rows took stays known."""
        record = {**known, **self._tasks(known)}
        self.store.append_cell(record)
        return record

    def _score(self, plan: CellPlan, subject: Subject) -> TextScore:
        if subject.probe is None or (plan.cell.repeat_index > 0 and not self.config.perplexity_per_repeat):
            return TextScore(None, None)
        if plan.cell.is_baseline:
            return TextScore(subject.undamaged.log_perplexity, 0.0)
        return subject.probe.measure()

    def _rows(self, plan: CellPlan, score: TextScore, rel_l2: float, progress: tqdm) -> int:
        """Write the missing rows of a cell, each safe on the disk as soon as it is finished; return how many."""
        cell = plan.cell
        self.limit.begin_cell()
        requests = [
            Request(place, self.experiment.noise_key(cell, place), self.expected.get(place, 0))
            for place in plan.missing
        ]
        written = since_check = 0
        facts = {"perplexity": score.perplexity, "rel_l2": rel_l2}
        try:
            with packed_linears(self.loaded.model):
                for answers in self.decoder.answers(requests, self.limit):
                    usage = self._usage()
                    self.store.append([self.maker.row(cell, answer, usage=usage, **facts) for answer in answers])
                    self._learn(answers)
                    written, since_check = written + len(answers), since_check + self._places(answers)
                    progress.update(len(answers))
                    if since_check >= self.policy.batch_size or written == len(requests):
                        since_check = 0
                        self._ask_policy(self._places_left(requests, written))
        finally:
            self._record_failed(plan, rel_l2)
        return written

    def _places(self, answers: Sequence[Answer]) -> int:
        """Return how many places of a batch some answers took: one each, of a masked model one for each token."""
        return sum(len(answer.tokens) for answer in answers) if self.experiment.fills_masks else len(answers)

    def _places_left(self, requests: Sequence[Request], written: int) -> int:
        """Return how many places of a batch could still be used: what a batch may grow to."""
        if not self.experiment.fills_masks:
            return len(requests) - written
        return max(len(row.ids) for row in self.rendering.prompts) if written < len(requests) else 0

    def _record_failed(self, plan: CellPlan, rel_l2: float) -> None:
        """Write down which rows found no memory even alone, also where that ends the run."""
        lost = [
            self.maker.row_without_memory(plan.cell, request.index, usage=self._usage(), rel_l2=rel_l2)
            for request in self.limit.failed
        ]
        if lost:
            self.store.append(lost)

    def _learn(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            before = self.expected.get(answer.index, len(answer.tokens))
            self.expected[answer.index] = (before + len(answer.tokens)) // 2

    def _ask_policy(self, rows_left: int) -> None:
        if self.policy.after_batch(rows_left) == "stop":
            raise MemoryStop(
                f"memory is {self.policy.usage:.0%} used: stopped before it runs out. Finished rows are safe; close "
                "other programs or lower max_batch_size, and run the same command again."
            )

    def _usage(self) -> float | None:
        """Percent of the GPU's memory, at its peak since the last rows; None on a CPU."""
        return round(100 * self.policy.observe(), 1) if self.loaded.device.type == "cuda" else None


def make_decoder(loaded: Loaded, rendering: Rendering, settings: DecoderSettings) -> Decoder:
    """Return the loop in which rows come and go, else that in which they only go, else generate() in batches."""
    reasons = []
    for loop in (RowDecoder, StateDecoder):
        try:
            return loop(loaded.model, rendering, settings)
        except RowsUnsupported as reason:
            reasons.append(str(reason))
    logger.info("rows are written in batches of generate(), not one by one: %s", "; ".join(reasons))
    return BatchDecoder(loaded.model, rendering, settings)


def stops_of(loaded: Loaded) -> frozenset[int]:
    """Return the tokens that end an answer: those of the generation config and the tokenizer's."""
    ids = stop_ids(loaded.model.generation_config, loaded.tokenizer)
    if not ids:
        raise ValueError(f"{loaded.name}: neither generation config nor tokenizer names an end-of-sequence token.")
    return frozenset(ids)


def pad_id(loaded: Loaded) -> int:
    """Return the token pads are made of: the pad token, else a stop token; masks hide them either way."""
    pad = loaded.tokenizer.pad_token_id
    return min(stops_of(loaded)) if pad is None else pad
