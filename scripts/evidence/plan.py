"""Do the memories and the mixers help? Tables of equal runs, and the order in which they are made.

    mixers     the standard library's documentation, windows of 256 packed tokens: a hybrid, plain attention with the
               same safeguards, GPT-2
    wikipedia  short articles, windows of 256 packed tokens: infinito-small, its memory-off twin, a hybrid, plain
               attention with the same safeguards, GPT-2
    code       long files, 1,024 tokens of one file, attention window 64: infinito-small, memory-off, Titan attention
               without and with the delta memory

Every model gets the same tokens in the same order, the same number of parameters and the same recipe. Its learning
rate is the best of the table's rates by the validation loss of the first seed; the other seeds run at that rate. The
shuffled-memory row is no training: it scores infinito-small's checkpoints while each row of a batch reads the memory of
the next one.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedConfig

from frankenlm.scripts.evidence.comparisons import SHUFFLED
from frankenlm.scripts.evidence.data import Corpus, load_code, load_documentation, load_wikipedia
from frankenlm.scripts.evidence.models import (
    ATTENTION,
    GPT2,
    HYBRID_VARIANT,
    INFINITO,
    MEMORY_OFF,
    TITAN,
    TITAN_MEMORY,
    Shape,
    Variant,
    check_budget,
)
from frankenlm.scripts.evidence.runs import GAVE_UP, MEASURES, RunKey, RunStore
from frankenlm.scripts.evidence.training import Recipe, Trained, build, loss_facts, score, train
from frankenlm.trainer_ext.cards import library_versions
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.timing import environment

TOKENS = 400_000
MIXERS_TOKENS = 81_920
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Table:
    """One comparison.

    needs_data: its text lies in a folder that the caller names; without, it is text that every Python carries.
    by_position: whether runs keep their loss at every position of a row. smoke: tiny, for a test.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    shape: Shape
    recipe: Recipe
    learning_rates: tuple[float, ...]
    needs_data: bool = False
    by_position: bool = False
    max_documents: int | None = None
    smoke: bool = False

    def load(self, folder: Path | None) -> Corpus:
        """Read the table's text; `folder` is for a table that needs data."""
        sizes = {
            "length": self.recipe.length,
            "vocab_size": self.shape.vocab_size,
            "max_documents": self.max_documents,
        }
        if self.needs_data:
            return load_wikipedia(folder, **sizes)
        return load_code(**sizes) if self.by_position else load_documentation(**sizes)


MIXERS = Table(
    name="mixers",
    title="Mixers against plain attention: the standard library's documentation",
    variants=(HYBRID_VARIANT, ATTENTION, GPT2),
    shape=Shape(2_000_000, 8192, 128, 4, positions=1024, attention_window=None),
    recipe=Recipe(MIXERS_TOKENS, length=256, batch_rows=8, eval_rows=16),
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
)
WIKIPEDIA = Table(
    name="wikipedia",
    title="Short articles: wikipedia-vital",
    variants=(INFINITO, MEMORY_OFF, HYBRID_VARIANT, ATTENTION, GPT2),
    shape=Shape(2_000_000, 8192, 128, 4, positions=1024, attention_window=None),
    recipe=Recipe(TOKENS, length=256, batch_rows=8, eval_rows=16),
    learning_rates=(1e-3, 3e-3, 1e-2),
    needs_data=True,
)
CODE = Table(
    name="code",
    title="Long documents: the standard library's source",
    variants=(INFINITO, MEMORY_OFF, TITAN, TITAN_MEMORY),
    shape=Shape(2_000_000, 8192, 128, 4, positions=1024, attention_window=64),
    recipe=Recipe(TOKENS, length=1024, batch_rows=2, eval_rows=4),
    learning_rates=(3e-3,),
    by_position=True,
)
TABLES = {table.name: table for table in (MIXERS, WIKIPEDIA, CODE)}
SMOKE_POSITIONS = 256
SMOKE_BUDGET = 77_000


def smoke_table(table: Table) -> Table:
    """The same table at a size that takes seconds: 32 wide, 512 tokens of vocabulary, four steps."""
    length = table.recipe.length // 4
    window = table.shape.attention_window and table.shape.attention_window // 4
    return replace(
        table,
        shape=Shape(SMOKE_BUDGET, 512, 32, 2, positions=SMOKE_POSITIONS, attention_window=window),
        recipe=replace(table.recipe, tokens=4 * table.recipe.batch_rows * length, length=length),
        max_documents=60,
        smoke=True,
    )


def change_recipe(table: Table, **changes) -> Table:
    """The table with other recipe fields.

    Raises:
        UserError: the tokens do not fill one step.
    """
    recipe = replace(table.recipe, **changes)
    if recipe.steps < 1:
        step = recipe.batch_rows * recipe.length
        raise UserError(f"--tokens {recipe.tokens}: one step takes {step:,} tokens; give at least as many.")
    return replace(table, recipe=recipe)


class Laboratory:
    """Makes the runs of one table that are missing.

    Args:
        seeds: the first one chooses the learning rates.
    """

    def __init__(self, table: Table, corpus: Corpus, store: RunStore, seeds: Sequence[int], models: Sequence[str]):
        self.table, self.corpus, self.store, self.seeds = table, corpus, store, list(seeds)
        self.variants = [variant for variant in table.variants if variant.name in models]
        self.configs = {v.name: v.configure(table.shape, corpus.special_ids) for v in self.variants}
        for variant in self.variants:
            check_budget(variant.name, self.parameters(variant), table.shape.budget)

    def parameters(self, variant: Variant) -> int:
        """Count the parameters of a model, those that it does not use included."""
        with torch.device("meta"):
            return variant.model_class(self.configs[variant.name]).num_parameters()

    def settings(self, name: str) -> dict[str, Any]:
        """All that the result of a model's run depends on, apart from its learning rate and seed."""
        variant = next(v for v in self.variants if v.name == name)
        return {
            "recipe": self.table.recipe.facts(),
            "data": self.corpus.facts,
            "config": config_facts(self.configs[name]),
            "forward": dict(variant.forward),
        }

    def key(self, name: str, learning_rate: float, seed: int) -> RunKey:
        return RunKey(self.table.name, name, learning_rate, seed)

    def finished(self, name: str, learning_rate: float, seed: int) -> dict[str, Any] | None:
        return self.store.finished(self.key(name, learning_rate, seed), self.settings(name))

    def best_rate(self, name: str) -> float | None:
        """The rate with the smallest validation loss of the first seed; None while one of them is missing, and where
        training gave up at each."""
        runs = [self.finished(name, rate, self.seeds[0]) for rate in self.table.learning_rates]
        if any(run is None for run in runs):
            return None
        whole = [run for run in runs if GAVE_UP not in run]
        return min(whole, key=lambda run: run["held_out"]["validation"]["loss"])["learning_rate"] if whole else None

    def pending(self) -> int:
        """Count the trainings that are left, and find every finished run with other settings on the way."""
        count = 0
        for variant in self.variants:
            sweep = [self.finished(variant.name, rate, self.seeds[0]) for rate in self.table.learning_rates]
            count += sum(run is None for run in sweep)
            rate = self.best_rate(variant.name)
            if rate is None and None not in sweep:
                continue
            done = [rate is not None and self.finished(variant.name, rate, seed) for seed in self.seeds[1:]]
            count += sum(not run for run in done)
            if variant.has_memory and rate is not None:
                for seed in self.seeds:
                    self.store.finished(self.key(SHUFFLED, rate, seed), self.settings(variant.name))
        return count

    def work(self, bar: tqdm) -> None:
        """Make every run that is missing: the sweep of each model, its other seeds, the shuffled evaluations."""
        for variant in self.variants:
            for rate in self.table.learning_rates:
                self.run(variant, rate, self.seeds[0], bar)
            best = self.best_rate(variant.name)
            if best is None:
                continue  # training gave up at every rate: there is nothing to report
            for seed in self.seeds[1:]:
                self.run(variant, best, seed, bar)
            if variant.has_memory:
                for seed in self.seeds:
                    if GAVE_UP not in self.finished(variant.name, best, seed):
                        self.run_shuffled(variant, best, seed, bar)

    def run(self, variant: Variant, learning_rate: float, seed: int, bar: tqdm) -> None:
        """Train and score one model, unless that is done; one that gives up is a run too, and not tried again."""
        key = self.key(variant.name, learning_rate, seed)
        settings = self.settings(variant.name)
        if self.store.finished(key, settings):
            return
        bar.set_description(str(key))
        model = build(variant, self.corpus, self.configs[variant.name], seed)
        try:
            trained = train(
                variant,
                model,
                self.corpus.train,
                self.table.recipe,
                learning_rate=learning_rate,
                seed=seed,
                on_step=bar.update,
            )
        except FloatingPointError as error:
            bar.write(f"gave up: {error}", file=sys.stderr)
            facts = {**self.run_facts(key, settings), "parameters": model.num_parameters()}
            self.store.write(key, {**facts, **self.no_scores(), GAVE_UP: str(error)})
            return
        check_budget(f"the trained part of {variant.name}", trained.trained_parameters, self.table.shape.budget)
        if variant.has_memory:
            self.store.keep_model(key, trained.model)
        self.store.write(
            key,
            {
                **self.run_facts(key, settings),
                **training_facts(trained, self.table.recipe),
                **self.scores(variant, trained.model),
            },
        )

    def run_shuffled(self, variant: Variant, learning_rate: float, seed: int, bar: tqdm) -> None:
        """Score a kept model while every row reads the memory of its neighbour in the batch.

        Raises:
            UserError: the model was not kept.
        """
        key, source = self.key(SHUFFLED, learning_rate, seed), self.key(variant.name, learning_rate, seed)
        settings = self.settings(variant.name)
        if self.store.finished(key, settings):
            return
        bar.set_description(str(key))
        folder = self.store.checkpoint(source)
        if not folder.is_dir():
            raise UserError(f"{folder} is missing; remove {self.store.path(source)} to train the model again.")
        model = variant.model_class.from_pretrained(folder)
        parameters = {"parameters": model.num_parameters(), "checkpoint_of": str(source)}
        self.store.write(
            key, {**self.run_facts(key, settings), **parameters, **self.scores(variant, model, shuffle_memory=True)}
        )

    def run_facts(self, key: RunKey, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "table": key.table,
            "model": key.model,
            "learning_rate": key.learning_rate,
            "seed": key.seed,
            "settings": settings,
            "processor": environment()["processor"],
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        }

    def no_scores(self) -> dict[str, Any]:
        """What `scores` tells, of a model that there is nothing to tell of."""
        held_out = {name: dict.fromkeys(MEASURES) for name in self.corpus.held_out}
        return {"held_out": held_out, "memory": {}, "same_document_neighbours": {}, "evaluation_cpu_seconds": 0.0}

    def scores(self, variant: Variant, model, **more) -> dict[str, Any]:
        """Score every held-out split of the table."""
        recipe, start = self.table.recipe, time.process_time()
        facts: dict[str, Any] = {"held_out": {}, "memory": {}, "same_document_neighbours": {}}
        for name, held_out in self.corpus.held_out.items():
            result = score(variant, model, held_out, recipe, **more)
            facts["held_out"][name] = loss_facts(result, held_out)
            facts["memory"][name] = result.memory
            facts["same_document_neighbours"][name] = held_out.shared_neighbours(recipe.eval_rows)
            if self.table.by_position:
                facts.setdefault("by_position", {})[name] = [round(loss, 5) for loss in result.by_position]
        facts["evaluation_cpu_seconds"] = round(time.process_time() - start, 2)
        return facts


def config_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration's fields without what depends on the library's version or on where it was saved."""
    dropped = ("transformers_version", "_name_or_path", "auto_map", "architectures", "dtype")
    return {name: value for name, value in config.to_dict().items() if name not in dropped}


def training_facts(trained: Trained, recipe: Recipe) -> dict[str, Any]:
    tokens = recipe.steps * recipe.batch_rows * recipe.length
    return {
        "parameters": trained.model.num_parameters(),
        "trained_parameters": trained.trained_parameters,
        "tokens": tokens,
        "curve": trained.curve,
        "seconds": round(trained.seconds, 2),
        "cpu_seconds": round(trained.cpu_seconds, 2),
        "tokens_per_cpu_second": round(tokens / trained.cpu_seconds, 1),
    }


def make_runs(laboratories: Sequence[Laboratory]) -> None:
    """Make all missing runs behind one progress bar."""
    left = sum(
        lab.pending() * lab.table.recipe.steps * lab.table.recipe.batch_rows * lab.table.recipe.length
        for lab in laboratories
    )
    with tqdm(total=left, unit="token", unit_scale=True, smoothing=0.05) as bar:
        for laboratory in laboratories:
            laboratory.work(bar)


def parameter_lines(laboratories: Sequence[Laboratory]) -> Iterator[str]:
    """One line a model: its exact size beside the budget."""
    for lab in laboratories:
        for variant in lab.variants:
            count, budget = lab.parameters(variant), lab.table.shape.budget
            yield f"{lab.table.name:<10} {variant.name:<15} {count:>10,} parameters ({count / budget - 1:+.2%})"
