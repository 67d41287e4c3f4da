"""What a finished run leaves behind: metrics.json, the figure and the model card."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import unwrap_peft_model

from .cards import library_versions, model_card
from .common.files import replaced_file, write_json, write_text
from .common.objectives import ANSWERS_LOSS, OBJECTIVES
from .common.redaction import redact_facts
from .optim.ternary_start import starting_step
from .plots import plot_training
from .presets import RunSettings
from .recipe import Unigram
from .saving.training_csv import CsvLog
from .trainer import FrankenTrainer


def final_loss(trainer: FrankenTrainer) -> dict[str, float]:
    """Metrics of the weights that are saved: the last evaluation, or a new one if it was of other weights."""
    last = next((logs for logs in reversed(trainer.state.log_history) if "eval_loss" in logs), None)
    current = last is not None and last["step"] == trainer.state.global_step
    if current and not trainer.args.load_best_model_at_end:
        return last
    # These are not the weights of the last step, so the curve does not get this point.
    trainer.pop_callback(CsvLog)
    return trainer.evaluate()


def run_facts(
    run: RunSettings, trainer: FrankenTrainer, rows: list[Mapping[str, float]], unigram: Unigram | None, final: Mapping
) -> dict[str, Any]:
    """Everything that metrics.json and the model card tell about a finished run."""
    model, state, args = trainer.model, trainer.state, trainer.args
    language_model = run.data.objective != "classification"
    mixes = OBJECTIVES[run.data.objective].goes_both_ways
    has_one_loss = language_model and not mixes
    # what is saved was evaluated last, be there a row of it or not
    goes_back = args.load_best_model_at_end and state.best_global_step
    evals = [row for row in rows if "eval_loss" in row]
    evals.append({**final, "step": state.best_global_step if goes_back else state.global_step})
    best = min(evals, key=lambda row: row["eval_loss"])
    return {
        "adapter": adapter_facts(run, model) if run.model.lora else None,
        "architecture": type(unwrap_peft_model(model)).__name__,
        "best_eval_loss": best["eval_loss"],
        "best_step": best["step"],
        "command": run.command,
        "dataset": run.data.dataset,
        "device": args.device.type,
        "eval_accuracy": final.get("eval_accuracy"),
        "eval_loss": final["eval_loss"],
        "causal_share": run.data.causal_share if mixes else None,
        "ema_eval_loss": final.get("eval_ema_loss"),
        "ema_step": trainer.average.step(state) if trainer.average is not None else None,
        **loss_by_direction(run, final),
        # of a mixture of two losses there is none
        "eval_perplexity": math.exp(final["eval_loss"]) if has_one_loss and final["eval_loss"] < 700 else None,
        "expert_load": last_expert_load(state.log_history),
        "ln_vocab_size": math.log(model.config.vocab_size) if language_model else None,
        "local_sources": local_sources(run),
        "loss_at_init": next((row["eval_loss"] for row in evals if row["step"] == 0), None),
        "lowest_eval_loss": lowest_loss(evals),
        "loss_meaning": loss_meaning(run, trainer),
        "max_length": run.data.max_length,
        "model_name_or_path": run.model.model_name_or_path,
        "model_type": model.config.model_type,
        "num_processes": trainer.accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "objective": run.data.objective,
        "packed_documents": documents_in_rows(trainer.train_dataset.column_names),
        "parameters": model.num_parameters(),
        "peak_memory_mib": max((row.get("peak_memory_mib", 0.0) for row in rows), default=0.0),
        "precision": {"no": "fp32"}.get(args.mixed_precision, args.mixed_precision),
        "preset": run.model.preset,
        "seed": args.seed,
        "steps": state.global_step,
        "steps_unrounded": starting_step(args.ternary_start, state.max_steps) if args.ternary_start else None,
        "stopped_early": state.global_step < state.max_steps,
        "streaming": run.data.streaming,
        "teacher": teacher_facts(run, trainer) if run.model.teacher is not None else None,
        "tokens_per_second": mean_speed(rows),
        "tokens_seen": state.num_input_tokens_seen,
        "train_tokens": unigram.train_tokens if unigram else None,
        "unigram_cross_entropy": unigram.cross_entropy if unigram else None,
        "validation_tokens": unigram.validation_tokens if unigram else None,
        "versions": library_versions(),
        "vocab_size": model.config.vocab_size,
    }


def lowest_loss(rows: Iterable[Mapping[str, float]]) -> float | None:
    """The lowest loss of any evaluation, of the weights or of their average; None without one.

    Of weights that are saved it is where the best are kept (load_best_model_at_end).
    """
    return min((row[name] for row in rows for name in ("eval_loss", "eval_ema_loss") if name in row), default=None)


def loss_by_direction(run: RunSettings, final: Mapping[str, float]) -> dict[str, float | None]:
    """The losses left to right and of hidden tokens; of a run that learned one of them, that is its loss."""
    objective = OBJECTIVES[run.data.objective]
    if objective.goes_both_ways:
        return {name: final[name] for name in ("eval_causal_loss", "eval_masked_loss")}
    return {
        "eval_causal_loss": final["eval_loss"] if objective.continues else None,
        "eval_masked_loss": final["eval_loss"] if objective.masks else None,
    }


def adapter_facts(run: RunSettings, model: torch.nn.Module) -> dict[str, Any]:
    """What an adapter is made of, and the model that it belongs to."""
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model.active_peft_config
    return {
        "base": config.base_model_name_or_path,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "layers": sorted({name.rpartition(".")[2] for name in model.targeted_module_names}),
        "parameters": learned,
    }


def teacher_facts(run: RunSettings, trainer: FrankenTrainer) -> dict[str, Any]:
    """Who the teacher was, and how much each part of the loss counted."""
    teaching = trainer.teaching
    return {
        "name": run.model.teacher,
        "parameters": teaching.model.num_parameters(),
        "stage": run.model.teacher_stage,
        "layers": list(teaching.layers),
        **dataclasses.asdict(teaching.plan),
    }


def local_sources(run: RunSettings) -> list[str]:
    """The names of model and data that are places of this machine, and none of the Hub's."""
    names = (run.model.model_name_or_path, run.model.teacher, run.data.dataset)
    return [name for name in names if name and os.path.lexists(os.path.expanduser(name))]


def documents_in_rows(columns: list[str]) -> str | None:
    """Whether packed documents are apart or joined; None where each has a row of its own."""
    if "length" in columns or "labels" in columns:
        return None
    return "apart" if "seq_lengths" in columns else "joined"


def loss_meaning(run: RunSettings, trainer: FrankenTrainer) -> str:
    """What the evaluation loss is, in words; rows that bring labels of their own are conversations."""
    answers = run.data.objective == "causal" and "labels" in trainer.eval_dataset.column_names
    return ANSWERS_LOSS if answers else OBJECTIVES[run.data.objective].loss


def mean_speed(rows: list[Mapping[str, float]]) -> float | None:
    """Tokens per second over the run, evaluations left out; None without a timed row."""
    tokens = seconds = previous = 0.0
    for row in rows:
        if "tokens_per_second" in row:
            seconds += (row["tokens_seen"] - previous) / row["tokens_per_second"]
            tokens, previous = tokens + row["tokens_seen"] - previous, row["tokens_seen"]
    return round(tokens / seconds, 1) if seconds else None


def last_expert_load(log_history: list[Mapping[str, float]]) -> list[list[float]] | None:
    """[smallest, largest] share of tokens of an expert, per logical layer, at the last log event (None: no experts)."""
    for logs in reversed(log_history):
        layers = sum(name.startswith("expert_load_min/") for name in logs)
        if layers:
            return [[logs[f"expert_load_{end}/layer_{i}"] for end in ("min", "max")] for i in range(layers)]
    return None


def write_results(output_dir: Path, facts: Mapping[str, Any], rows: list[Mapping[str, float]]) -> None:
    """Write metrics.json, training.png and the model card."""
    unit = "document" if facts["objective"] == "classification" else "token"
    name = facts["preset"] or facts["model_name_or_path"]
    title = f"{name}, {facts['objective']}, {facts['parameters']:,} parameters"
    with replaced_file(output_dir / "training.png") as scratch:
        plot_training(rows, scratch, title=title, unigram=facts["unigram_cross_entropy"], unit=unit)
    facts = redact_facts(facts)
    write_json(output_dir / "metrics.json", facts)
    write_text(output_dir / "README.md", model_card(output_dir.resolve().name, facts))
