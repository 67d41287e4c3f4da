"""Figures and CSV of the memory evidence: training curves with the sweep, and loss by position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from frankenlm.trainer_ext.common.figures import save_figure
from frankenlm.trainer_ext.common.files import replaced_file

COLOURS = {
    "infinito-small": "#4c78a8",
    "memory-off": "#d1495b",
    "shuffled-memory": "#edae49",
    "hybrid": "#3a7d44",
    "attention": "#f58518",
    "gpt2": "#666666",
    "titan": "#8d6a9f",
    "titan-memory": "#00798c",
}


def plot_training_runs(table: Mapping[str, Any], path: Path) -> None:
    """Draw training loss by tokens (mean over seeds) and, beside it, the learning-rate sweep; save them as PNG."""
    swept = len(table["learning_rates"]) > 1
    figure = Figure(figsize=(9 if swept else 6, 4), dpi=130, layout="constrained")
    axes = figure.subplots(1, 2 if swept else 1, squeeze=False, width_ratios=[3, 2] if swept else None)[0]
    tokens = table["recipe"]["batch_rows"] * table["recipe"]["length"]
    for name, curve in table["curves"].items():
        axes[0].plot(
            [step * tokens for step, _ in curve], [loss for _, loss in curve], lw=1.3, color=COLOURS[name], label=name
        )
    axes[0].xaxis.set_major_formatter(EngFormatter())
    axes[0].set(title=table["title"], xlabel="tokens trained on", ylabel="training loss (nats per token)")
    axes[0].legend(frameon=False)
    if swept:
        for row in table["sweep"]:
            pairs = [(x, y) for x, y in zip(table["learning_rates"], row["losses"], strict=True) if y is not None]
            axes[1].plot([x for x, _ in pairs], [y for _, y in pairs], "o-", ms=4, lw=1.2, color=COLOURS[row["model"]])
        axes[1].set(xscale="log", xlabel="peak learning rate", ylabel="validation loss, first seed", title="sweep")
    for one in axes:
        one.grid(alpha=0.25)
    with replaced_file(path) as scratch:
        save_figure(figure, scratch)


def plot_positions(table: Mapping[str, Any], path: Path) -> None:
    """Draw the validation loss by position (above) and each model's distance from memory-off or titan (below)."""
    figure = Figure(figsize=(8, 6.4), dpi=130, layout="constrained")
    losses, gaps = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    bins = _by_model(table["positions"])
    for name, entries in bins.items():
        _band(losses, entries, COLOURS[name], name)
        twin = {"infinito-small": "memory-off", "shuffled-memory": "memory-off", "titan-memory": "titan"}.get(name)
        if twin in bins:
            difference = [ours["mean"] - theirs["mean"] for ours, theirs in zip(entries, bins[twin], strict=True)]
            gaps.plot(_centres(entries), difference, "o-", ms=3, color=COLOURS[name], label=f"{name} minus {twin}")
    for axes in (losses, gaps):
        axes.axvline(table["attention_window"], color="#999999", ls="--", lw=1)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    gaps.axhline(0, color="#333333", lw=0.8)
    losses.set(title="Validation loss by position (dashed: the attention window)", ylabel="nats per token")
    gaps.set(xlabel="position in the row", ylabel="difference (nats)")
    with replaced_file(path) as scratch:
        save_figure(figure, scratch)


def _by_model(positions: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    bins: dict[str, list[Mapping[str, Any]]] = {}
    for entry in positions:
        bins.setdefault(entry["model"], []).append(entry)
    return bins


def _band(axes, entries, colour: str, name: str) -> None:
    """A line of means with a band of one standard deviation, where there is one."""
    centres = _centres(entries)
    axes.plot(centres, [entry["mean"] for entry in entries], "o-", ms=3, lw=1.3, color=colour, label=name)
    if all(entry["sd"] is not None for entry in entries):
        low, high = ([entry["mean"] + sign * entry["sd"] for entry in entries] for sign in (-1, 1))
        axes.fill_between(centres, low, high, color=colour, alpha=0.15, lw=0)


def _centres(entries) -> list[float]:
    return [(entry["first_position"] + entry["last_position"]) / 2 for entry in entries]
