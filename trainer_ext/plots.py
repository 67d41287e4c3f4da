"""Records -> figures. Takes rows of training.csv, never a model; draws without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

TRAIN, EVAL, UNIGRAM, GREY = "#4c78a8", "#d1495b", "#3a7d44", "#666666"


def plot_training(
    rows: Sequence[Mapping[str, float]], path: Path, *, title: str, unigram: float | None = None, unit: str = "token"
) -> None:
    """Draw the loss curves (above) and learning rate with gradient norm (below), and save them as PNG.

    Args:
        rows: rows of training.csv; rows with `loss` are training steps, rows with `eval_loss` evaluations.
        unigram: cross-entropy of the unigram model in nats per token, drawn as a line; None leaves it out.
        unit: what the loss is a mean over, for the axis label.
    """
    train = [row for row in rows if "loss" in row and math.isfinite(row["loss"])]
    evals = [row for row in rows if "eval_loss" in row and math.isfinite(row["eval_loss"])]
    figure = Figure(figsize=(8, 6.4), dpi=130, layout="constrained")
    losses, steps = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_losses(losses, train, evals, unigram)
    losses.set(title=title, ylabel=f"loss (nats per {unit})")
    _add_token_axis(losses, rows)
    _draw_step_sizes(steps, train)
    figure.savefig(path, metadata={"Software": None})


def _draw_losses(axes, train, evals, unigram) -> None:
    if train:
        axes.plot(_column(train, "step"), _column(train, "loss"), color=TRAIN, lw=1.2, label="training")
    if evals:
        last = evals[-1]
        axes.plot(_column(evals, "step"), _column(evals, "eval_loss"), "o-", color=EVAL, ms=4, lw=1.6, label="held-out")
        axes.annotate(
            f"{last['eval_loss']:.2f}",
            (last["step"], last["eval_loss"]),
            xytext=(-2, 6),
            ha="right",
            textcoords="offset points",
            color=EVAL,
            fontsize=9,
        )
    if unigram is not None:
        axes.axhline(unigram, color=UNIGRAM, ls="--", lw=1.2, label=f"unigram cross-entropy {unigram:.2f}")
    axes.grid(alpha=0.25)
    if train or evals or unigram is not None:
        axes.legend(frameon=False)


def _add_token_axis(axes, rows) -> None:
    """A second scale above: steps mean nothing without the batch size, tokens do."""
    last = max(rows, key=lambda row: row["step"], default=None)
    if last is None or not last["step"] or not last["tokens_seen"]:
        return
    tokens_per_step = last["tokens_seen"] / last["step"]
    top = axes.secondary_xaxis("top", functions=(lambda s: s * tokens_per_step, lambda t: t / tokens_per_step))
    top.xaxis.set_major_formatter(EngFormatter())
    top.set_xlabel("tokens seen")


def _draw_step_sizes(axes, train) -> None:
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    rates = [row for row in train if "learning_rate" in row]
    norms = [row for row in train if "grad_norm" in row and math.isfinite(row["grad_norm"])]
    axes.plot(_column(rates, "step"), _column(rates, "learning_rate"), color=GREY, lw=1.2)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.grid(alpha=0.25)
    right = axes.twinx()
    right.plot(_column(norms, "step"), _column(norms, "grad_norm"), color=TRAIN, lw=1.0, alpha=0.7)
    right.set_ylabel("gradient norm", color=TRAIN)
    right.tick_params(axis="y", colors=TRAIN)


def _column(rows, name) -> list[float]:
    return [row[name] for row in rows]
