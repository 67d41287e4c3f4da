"""Finished runs of low-bit models as rows of one table, beside what a bigram model of the same bytes reaches."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from frankenlm.scripts.evidence.ternary_findings import ternary_findings
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_csv, write_json, write_text
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.saving.training_csv import read_csv

COLUMNS = (
    "run", "preset", "weights", "w_scheme", "scale", "ternary_training", "embedding_start", "tokens_seen", "steps",
    "batch", "learning_rate", "precision", "seed", "eval_loss", "bits_per_byte", "zero_fraction", "first_flip_rate",
    "mean_flip_rate", "last_flip_rate", "tokens_per_second",
)  # fmt: skip
PARTS = {"bitnet_attention": "attention", "bitnet_ffn": "FFN", "bitnet_embedding": "embedding", "bitnet_head": "head"}
LAST_ROWS = 10  # log events that make the last flip rate; one event is one step, and noisy


def bigram_entropies(train: Iterable[str], held_out: Iterable[str]) -> dict[str, float]:
    """Return, in nats a byte, what a model that sees one byte back can reach on the held-out text.

    Documents are UTF-8 bytes, each followed by a separator that is predicted too, as when they are packed.

    cross_entropy: of the training text's pair frequencies, add-one smoothed.
    conditional_entropy: of the held-out text's own pair frequencies: no bigram model can be better.

    Raises:
        ValueError: a text without a pair.
    """
    counts, own = _pair_counts(train), _pair_counts(held_out)
    if not counts.sum() or not own.sum():
        raise ValueError("a text without two bytes in a row has no bigrams.")
    smoothed = (counts + 1) / (counts + 1).sum(1, keepdim=True)
    exact = own / own.sum(1, keepdim=True).clamp_min(1)
    total = own.sum()
    return {
        "cross_entropy": float(-(own * smoothed.log()).sum() / total),
        "conditional_entropy": float(-torch.xlogy(own, exact).sum() / total),
    }


def _pair_counts(documents: Iterable[str]) -> torch.Tensor:
    """Pairs of neighbours, float64 (257, 257); row and column 256 are the separator."""
    stream = torch.tensor([token for text in documents for token in (*text.encode(), 256)], dtype=torch.int64)
    pairs = torch.bincount(stream[:-1] * 257 + stream[1:], minlength=257 * 257)
    return pairs.double().view(257, 257)


def read_run(folder: Path) -> dict:
    """Return the row of a finished run of scripts/train.py, keyed by `COLUMNS`; flip rates are per logged step.

    Raises:
        UserError: the folder holds no finished run.
    """
    for name in ("metrics.json", "training.csv", "config.json"):
        if not (folder / name).is_file():
            raise UserError(f"--runs {folder}: {name} is missing; give output folders of finished runs.")
    facts, config = _read_object(folder / "metrics.json"), _read_object(folder / "config.json")
    if "use_bitnet" not in config or "command" not in facts:
        raise UserError(f"--runs {folder}: is no run of a low-bit family made by scripts/train.py.")
    settings = parse_run(settings_of(facts["command"])).training
    rows = read_csv(folder / "training.csv")
    flips = [row["flip_rate"] for row in rows if "flip_rate" in row]
    zeros = [row["zero_fraction"] for row in rows if "zero_fraction" in row]
    return {
        "run": folder.name,
        "preset": facts["preset"],
        "weights": describe_weights(config),
        "w_scheme": config["w_scheme"] if config["use_bitnet"] else None,
        "scale": describe_scale(config),
        "ternary_training": settings.ternary_training if config["use_bitnet"] else None,
        "embedding_start": config["embedding_initializer_range"],
        "tokens_seen": facts["tokens_seen"],
        "steps": facts["steps"],
        "batch": settings.per_device_train_batch_size,
        "learning_rate": settings.learning_rate,
        "precision": facts["precision"],
        "seed": facts["seed"],
        "eval_loss": facts["eval_loss"],
        "bits_per_byte": facts["eval_loss"] / math.log(2),
        "zero_fraction": zeros[-1] if zeros else None,
        "first_flip_rate": flips[0] if flips else None,
        "mean_flip_rate": sum(flips) / len(flips) if flips else None,
        "last_flip_rate": sum(flips[-LAST_ROWS:]) / len(flips[-LAST_ROWS:]) if flips else None,
        "tokens_per_second": facts["tokens_per_second"],
    }


def settings_of(command: str) -> list[str]:
    """The words of a run's command behind the program's name, however it was launched."""
    words = shlex.split(command)
    return words[next(place for place, word in enumerate(words) if word.startswith("--")) :]


def _read_object(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        UserError: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--runs: {path} is damaged ({error}); train that run again or leave it out.") from error
    if not isinstance(value, dict):
        raise UserError(f"--runs: {path} is damaged (no JSON object); train that run again or leave it out.")
    return value


def describe_weights(config: Mapping) -> str:
    """Say which matrices of a Legacy-1bit configuration are low-bit."""
    low = [part for field, part in PARTS.items() if config[field]] if config["use_bitnet"] else []
    if len(low) in (0, len(PARTS)):
        return "all low-bit" if low else "full precision"
    return "low-bit: " + ", ".join(low)


def describe_scale(config: Mapping) -> str | None:
    """Say what has a scale of its own: the whole matrix ("tensor"), a row, or a group of its inputs; None for none."""
    if not config["use_bitnet"]:
        return None
    return f"group of {config['group_size']}" if config["scale_axis"] == "group" else config["scale_axis"]


def markdown_table(rows: Sequence[Mapping], bigram: Mapping[str, float]) -> str:
    """Write the rows for people, in the order given."""
    lines = [
        "| run | weights | scheme | scale per | training | embedding starts at | bytes | batch | learning rate | "
        "held-out loss | bits/byte | zeros | flips a step: mean | last |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["run"],
            row["weights"],
            row["w_scheme"] or "",
            row["scale"] or "",
            row["ternary_training"] or "",
            f"{row['embedding_start']:g}",
            f"{row['tokens_seen']:,}",
            str(row["batch"]),
            f"{row['learning_rate']:g}",
            f"{row['eval_loss']:.4f}",
            f"{row['bits_per_byte']:.3f}",
            _percent(row["zero_fraction"], 1),
            _percent(row["mean_flip_rate"], 3),
            _percent(row["last_flip_rate"], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Bigram models, nats a byte: {bigram['cross_entropy']:.4f} cross-entropy with the frequencies of the training "
        f"text; {bigram['conditional_entropy']:.4f} conditional entropy of the held-out text itself.",
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float | None, digits: int) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def report_text(rows: Sequence[Mapping], bigram: Mapping[str, float]) -> str:
    """What the rows say, by rule, and the rows."""
    lines = "\n".join(f"- {line}" for line in ternary_findings(rows, bigram))
    return f"In short:\n\n{lines}\n\n{markdown_table(rows, bigram)}"


def write_report(output_dir: Path, rows: Sequence[Mapping], bigram: Mapping[str, float]) -> None:
    """Write runs.csv, report.json and table.md, each whole or not at all."""
    text = report_text(rows, bigram)  # rows that cannot be told apart are refused before anything is written
    output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(output_dir / "runs.csv", rows, COLUMNS)
    write_json(output_dir / "report.json", {"bigram_nats_per_byte": dict(bigram), "runs": list(rows)})
    write_text(output_dir / "table.md", text)
