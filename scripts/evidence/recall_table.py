"""Which memories solve the recall task (recall.py)? Rows of one table, each a model trained and asked with one seed.

All models are two layers, 64 wide. With `window` their attention sees 16 tokens, so that what is asked for lies out of
its reach; the same trunk with attention over the whole row is the ceiling, without memory the floor.
"""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, InfinitoConfig, InfinitoForCausalLM
from frankenlm.scripts.evidence.recall_task import RecallTask, recall_accuracy, train_recall
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_csv
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.metrics.seeds import plus_minus, summary

WINDOW = 16
SOLVED = 0.95
COLUMNS = ("model", "seed", "steps", "batch", "learning_rate", "parameters", "accuracy", "chance", "cpu_seconds")
SHARED = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def titan(task: RecallTask, *, window: int | None, memory: bool = False) -> FrankensteinForCausalLM:
    """Titan attention over embeddings that each see their predecessor too."""
    return FrankensteinForCausalLM(
        FrankensteinConfig(
            is_decoder=True,
            vocab_size=task.vocab_size,
            layer_pattern=["titan_attn"],
            use_titan_memory=memory,
            attention_window=window,
            embedding_conv_kernel=2,
            use_hope=False,
            position_type="rope",
            norm_type="rms_norm",
            embedding_norm=None,
            **SHARED,
        )
    )


def infinito(
    task: RecallTask, *, window: int | None, memory: Mapping[str, str | int] | None = None, **fields: str | int
) -> InfinitoForCausalLM:
    """Infinito's trunk; `memory` are fields of one, by default at its second layer, with a slot for every token."""
    with_memory = {"memory_layers": [1], **memory} if memory else {"memory_layers": []}
    return InfinitoForCausalLM(
        InfinitoConfig(
            vocab_size=task.vocab_size,
            max_position_embeddings=task.length,
            attention_window=window,
            memory_dim=32,
            memory_heads=2,
            exploration_sigma=0.0,
            tie_word_embeddings=True,
            **{"memory_slots": task.length, **with_memory},
            **fields,
            **SHARED,
        )
    )


# Embeddings that each see their predecessor too, as titan's, and norms before the branches: without either, 290 steps
# teach this trunk nothing, whatever it can see.
pre_norm = partial(infinito, norm_style="pre", embedding_conv_kernel=2)
SLOTS = {"memory_type": "attention_slots", "memory_layers": [0, 1], "memory_segment": 8, "memory_decay": 1.0}
MODELS: dict[str, Callable[[RecallTask], PreTrainedModel]] = {
    "titan, window": partial(titan, window=WINDOW),
    "titan, window, delta memory": partial(titan, window=WINDOW, memory=True),
    "titan, whole row": partial(titan, window=None),
    "infinito, window": partial(infinito, window=WINDOW),
    "infinito, window, slot memory, segments of 16": partial(infinito, window=WINDOW, memory={"memory_segment": 16}),
    "infinito, window, slot memory, segments of 1": partial(infinito, window=WINDOW, memory={"memory_segment": 1}),
    "infinito, whole row": partial(infinito, window=None),
    "infinito pre-norm, window": partial(pre_norm, window=WINDOW),
    "infinito pre-norm, window, slot memory, segments of 1": partial(
        pre_norm, window=WINDOW, memory={"memory_segment": 1}
    ),
    "infinito pre-norm, window, attention memory, 96 slots": partial(pre_norm, window=WINDOW, memory=SLOTS),
    "infinito pre-norm, window, attention memory, 32 slots": partial(
        pre_norm, window=WINDOW, memory={**SLOTS, "memory_slots": 32}
    ),
    "infinito pre-norm, whole row": partial(pre_norm, window=None),
}


def run_row(model: str, seed: int, task: RecallTask, *, steps: int, batch: int, learning_rate: float) -> dict:
    """Train one model and return its row; the sequences it is asked are not those it was trained on."""
    start = time.process_time()
    torch.manual_seed(seed)
    built = MODELS[model](task)
    trained = train_recall(built, task, steps=steps, batch_size=batch, learning_rate=learning_rate, seed=seed)
    return {
        "model": model,
        "seed": seed,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "parameters": built.num_parameters(),
        "accuracy": round(recall_accuracy(trained, task, seed=seed + 1000), 4),
        "chance": task.chance,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def read_rows(path: Path) -> list[dict]:
    """The rows of an earlier call; none if there was none.

    Raises:
        UserError: the file is not such a table.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(set(row) != set(COLUMNS) or None in row.values() for row in rows):
        raise UserError(f"{path}: is not a table of this script; remove it or use another --output_dir.")
    kinds = {"model": str, "seed": int, "steps": int, "batch": int, "parameters": int}
    try:
        return [{name: kinds.get(name, float)(value) for name, value in row.items()} for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); remove it or use another --output_dir.") from error


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write all rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows, COLUMNS)


def recall_table(rows: Sequence[dict]) -> str:
    """Markdown: a line for each model, its accuracy over the seeds, and what the table rests on."""
    settings = {(row["steps"], row["batch"], row["learning_rate"], row["chance"]) for row in rows}
    lines = []
    for model in MODELS:
        own = [row for row in rows if row["model"] == model]
        accuracy = plus_minus(summary([row["accuracy"] for row in own]), 3)
        seeds = str(len(own)) if own else "0"
        parameters = f"{own[0]['parameters']:,}" if own else ""
        lines.append({"model": model, "parameters": parameters, "accuracy": accuracy, "seeds": seeds})
    told = "; ".join(
        f"{steps} steps of {batch} sequences, learning rate {rate:g}; chance is {chance:g}"
        for steps, batch, rate, chance in sorted(settings)
    )
    notes = "\n".join(f"- {line}" for line in recall_findings(rows))
    told = f"Share of the asked values that come first, mean ± sd over seeds. {told}."
    return f"{markdown_table(lines)}\n\n{told}\n\n{notes}\n"


def keeps_whole_row(model: str, task: RecallTask) -> bool:
    """Whether window and slots of a model's attention have room for the whole row: no query then misses a token."""
    config = MODELS[model](task).config
    if not isinstance(config, InfinitoConfig) or config.memory_type != "attention_slots" or not config.memory_layers:
        return False
    return config.attention_window + config.memory_slots >= task.length


def recall_findings(rows: Sequence[dict], task: RecallTask | None = None) -> list[str]:
    """What the rows say, by rule: for each memory whether it solves the task, and whether the task can tell at all.

    A memory whose trunk does not solve the task with the whole row in view was not put to the test by it, and one that
    never has to replace a slot is attention over the whole row: it counts as a second ceiling. `task` is by default the
    one that recall.py trains on.
    """
    task = RecallTask() if task is None else task
    accuracy = {model: [row["accuracy"] for row in rows if row["model"] == model] for model in MODELS}
    lines = []
    for model, ours in accuracy.items():
        family = model.partition(",")[0]
        floor, ceiling = accuracy[f"{family}, window"], accuracy[f"{family}, whole row"]
        if "memory" not in model or not (ours and floor and ceiling):
            continue
        if keeps_whole_row(model, task):
            lines.append(
                f"{model}: no slot was replaced: this is attention over the whole row, and counts as no memory that "
                f"solves the task (mean {_mean(ours):.3f}; without memory {_mean(floor):.3f})."
            )
            continue
        solved = sum(accuracy > SOLVED for accuracy in ours)
        line = (
            f"{model}: more than {SOLVED} with {solved} of {len(ours)} seed{'s' * (len(ours) > 1)} "
            f"(mean {_mean(ours):.3f}; without memory {_mean(floor):.3f})"
        )
        if not solved and max(ceiling) <= SOLVED:
            line += (
                f"; its trunk with the whole row in view fails too ({_mean(ceiling):.3f}), so this says little of the "
                "memory"
            )
        lines.append(f"{line}.")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
