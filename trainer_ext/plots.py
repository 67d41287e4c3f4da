"""Records -> figures. Takes rows of training.csv, never a model; draws without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from .common.figures import save_figure

TRAIN, EVAL, UNIGRAM, GREY, AVERAGE = "#4c78a8", "#d1495b", "#3a7d44", "#666666", "#e08f2c"
MOST_POINTS = 400  # of a line; more are drawn as means with the range around them
MOST_DOTS = 60
TOP, BOTTOM = 0.85, 0.5  # inches above and below the panels
WIDE = 100  # a norm that spans this factor is drawn on a logarithmic scale
# Shares and what they are called; a panel of their own where a run has any.
SHARES = {
    "norm_f_saturation": ("final norm saturated", TRAIN),
    "expert_load_max": ("largest share of an expert", EVAL),
    "expert_load_min": ("smallest share of an expert", UNIGRAM),
    "zero_fraction": ("codes that are zero", GREY),
    "flip_rate": ("codes changed by a step", AVERAGE),
    "unrounded": ("weights trained unrounded", TRAIN),
}
# What the gradient guard saw and did: how it is marked, from the top of the panel down.
EVENTS = {
    "has_nan": ("NaN", "x", EVAL),
    "has_inf": ("Inf", "^", EVAL),
    "skip": ("skip", "s", EVAL),
    "rollback": ("rollback", "<", AVERAGE),
    "retry": ("retry", "o", AVERAGE),
    "clip": ("clip", "v", UNIGRAM),
    "vanishing": ("vanishing", "_", GREY),
}


def plot_training(
    rows: Sequence[Mapping[str, float | str]],
    path: Path,
    *,
    title: str,
    unigram: float | None = None,
    unit: str = "token",
) -> None:
    """Draw the record of a run, and save it as PNG: losses, learning rate, gradient norm with what the guard did,
    throughput, and the shares that its model has.

    Args:
        rows: rows of training.csv; rows with `loss` are training steps, rows with `eval_loss` evaluations.
        unigram: cross-entropy of the unigram model in nats per token, drawn as a line; None leaves it out.
        unit: what the loss is a mean over, for the axis label.
    """
    train = [row for row in rows if "loss" in row]
    panels = [(3.0, lambda axes: _draw_losses(axes, rows, unigram)), (1.0, lambda axes: _draw_rate(axes, train))]
    panels.append((1.6, lambda axes: _draw_norm(axes, train)))
    if _points(train, "tokens_per_second"):
        panels.append((1.0, lambda axes: _draw_speed(axes, train)))
    if any(_points(train, name) for name in SHARES):
        panels.append((1.6, lambda axes: _draw_shares(axes, train)))
    heights = [height for height, _ in panels]
    inches = TOP + BOTTOM + 1.3 * sum(heights)
    figure = Figure(figsize=(8, inches), dpi=110)
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
    # by hand, as a layout engine would draw everything twice
    figure.subplots_adjust(left=0.11, right=0.97, top=1 - TOP / inches, bottom=BOTTOM / inches, hspace=0.18)
    for panel, (_, draw) in zip(axes, panels, strict=True):
        draw(panel)
        panel.grid(alpha=0.25)
    axes[0].set(title=title, ylabel=f"loss (nats per {unit})")
    axes[0].title.set_parse_math(False)
    _add_token_axis(axes[0], rows)
    axes[-1].set_xlabel("optimizer step")
    figure.align_ylabels(axes)
    save_figure(figure, path)


def _draw_losses(axes, rows, unigram) -> None:
    _line(axes, _points(rows, "loss"), TRAIN, label="training")
    _line(axes, _points(rows, "label_loss"), GREY, label="training, its labels alone")
    evals = _points(rows, "eval_loss")
    _line(axes, evals, EVAL, width=1.6, label="held-out", dots=True)
    _line(axes, _points(rows, "eval_ema_loss"), AVERAGE, width=1.2, label="held-out, average of the weights", dots=True)
    if evals:
        axes.annotate(
            f"{evals[-1][1]:.2f}",
            evals[-1],
            xytext=(-2, 6),
            ha="right",
            textcoords="offset points",
            color=EVAL,
            fontsize=9,
        )
    if unigram is not None:
        axes.axhline(unigram, color=UNIGRAM, ls="--", lw=1.2, label=f"unigram cross-entropy {unigram:.2f}")
    _legend(axes)


def _add_token_axis(axes, rows) -> None:
    """A second scale above: steps mean nothing without the batch size, tokens do."""
    last = max(rows, key=lambda row: row["step"], default=None)
    if last is None or not last["step"] or not last["tokens_seen"]:
        return
    tokens_per_step = last["tokens_seen"] / last["step"]
    top = axes.secondary_xaxis("top", functions=(lambda s: s * tokens_per_step, lambda t: t / tokens_per_step))
    top.xaxis.set_major_formatter(EngFormatter())
    top.set_xlabel("tokens seen")


def _draw_rate(axes, train) -> None:
    _line(axes, _points(train, "learning_rate"), GREY)
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))


def _draw_norm(axes, train) -> None:
    norms = _points(train, "grad_norm")
    _line(axes, norms, TRAIN)
    positive = [norm for _, norm in norms if norm > 0]
    if positive and max(positive) > WIDE * min(positive):
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")
    place = 0.95
    for name, (label, marker, color) in EVENTS.items():
        steps = [row["step"] for row in train if row.get(name) == 1 or row.get("repair_action") == name]
        if steps:
            heights = [place] * len(steps)
            named = f"{label} ({len(steps)})"
            axes.plot(steps, heights, marker, color=color, ms=5, transform=axes.get_xaxis_transform(), label=named)
            place -= 0.08
    _legend(axes, "lower right")


def _draw_speed(axes, train) -> None:
    _line(axes, _points(train, "tokens_per_second"), TRAIN)
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter())


def _draw_shares(axes, train) -> None:
    for name, (label, color) in SHARES.items():
        _line(axes, _points(train, name), color, label=label)
    axes.set_ylabel("share")
    axes.set_ylim(-0.02, 1.02)
    _legend(axes)


def _points(rows, name: str) -> list[tuple[float, float]]:
    """The finite values of a column, with their steps."""
    return [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float, float, float]]:
    """At most `most` stretches of points: last step, mean, least, largest."""
    size = -(-len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [
        (part[-1][0], sum(y for _, y in part) / len(part), min(y for _, y in part), max(y for _, y in part))
        for part in parts
    ]


def _line(axes, points, color, *, label: str | None = None, width: float = 1.2, dots: bool = False) -> None:
    """A line through points, of many through the means of stretches; a single point is a dot."""
    if not points:
        return
    steps, means, least, largest = zip(*thinned(points), strict=True)
    marker = "o" if len(points) == 1 or (dots and len(points) <= MOST_DOTS) else None
    axes.plot(steps, means, color=color, lw=width, marker=marker, ms=4, label=label)
    if len(steps) < len(points):
        axes.fill_between(steps, least, largest, color=color, alpha=0.2, lw=0)


def _legend(axes, place: str = "best") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc=place)
