"""Figures of the page: what memories keep, flat norms, a curve over the levels of a damage.

They take numbers, never a model. Maps over tokens are drawn by trainer_ext/generation/heatmaps.py.
"""

import math
from collections.abc import Mapping, Sequence

import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from frankenlm.trainer_ext.common.figures import spell_out
from frankenlm.trainer_ext.plots import EVAL, GREY, TRAIN

DOTS_PER_INCH = 110
COLUMNS = 3
PANEL = (3.6, 2.4)  # inches
LONGEST_MEMORY = 1e6  # tokens; what is never forgotten is drawn as this
BAR = 0.26  # inches


def half_life(kept: float) -> float:
    """Return after how many tokens half of a memory is left that keeps this share of itself at each; perhaps inf."""
    if kept >= 1:
        return math.inf
    return 0.0 if kept <= 0 else math.log(0.5) / math.log(kept)


def draw_decays(decays: Mapping[str, numpy.ndarray], *, title: str) -> Figure:
    """Draw a panel for each memory, with a bar for each head: how many tokens it takes until half is forgotten."""
    columns = min(COLUMNS, len(decays))
    rows = -(-len(decays) // columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1] + 0.4), dpi=DOTS_PER_INCH, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for panel, (name, kept) in zip(panels, decays.items(), strict=False):
        lives = [min(half_life(float(share)), LONGEST_MEMORY) for share in kept]
        panel.bar(range(len(lives)), lives, color=TRAIN)
        panel.set_yscale("log")
        panel.set_title(name, fontsize=9, parse_math=False)
        panel.set_xlabel("head", fontsize=8)
        panel.set_xticks(range(0, len(lives), -(-len(lives) // 16)))
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
    for panel in panels[::columns]:
        panel.set_ylabel("half-life (tokens)", fontsize=8)
    for panel in panels[len(decays) :]:
        panel.set_axis_off()
    figure.suptitle(title, parse_math=False, fontsize=10)
    return spell_out(figure)


def draw_saturation(shares: Mapping[str, float], *, title: str) -> Figure:
    """Draw a bar for each norm, from the first downwards: the share of its inputs at which the curve is flat."""
    figure = Figure(figsize=(8, BAR * len(shares) + 1.2), dpi=DOTS_PER_INCH, layout="constrained")
    panel = figure.subplots()
    places = range(len(shares))
    panel.barh(places, list(shares.values()), color=EVAL)
    panel.set_yticks(places, list(shares), fontsize=7, parse_math=False)
    panel.invert_yaxis()
    panel.set(xlim=(0, 1), xlabel="share of the inputs where the curve is flat")
    panel.grid(axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    figure.suptitle(title, parse_math=False, fontsize=10)
    return spell_out(figure)


def draw_curve(
    levels: Sequence[float], perplexities: Sequence[float | None], unchanged: Sequence[float], *, level: str, title: str
) -> Figure:
    """Draw the perplexity of a text (logarithmic), and the share of tokens that are as undamaged, over the levels.

    Args:
        level: what the levels are called. A perplexity that is None, which is no number any more, has no dot.
    """
    figure = Figure(figsize=(8, 4.6), dpi=DOTS_PER_INCH, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    places = range(len(levels))  # evenly: the levels of quantisation would else lie on top of each other
    seen = [(place, value) for place, value in zip(places, perplexities, strict=True) if value is not None]
    if seen:
        above.plot(*zip(*seen, strict=True), color=TRAIN, marker="o", ms=4)
        above.set_yscale("log")
        for which in (above.yaxis.set_major_formatter, above.yaxis.set_minor_formatter):
            which(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))  # 20 rather than 2 x 10^1
    above.set(ylabel="perplexity")
    below.plot(places, unchanged, color=EVAL, marker="o", ms=4)
    below.set(ylabel="tokens unchanged", ylim=(-0.05, 1.05), xlabel=level)
    below.set_xticks(places, [f"{each:g}" for each in levels])
    for panel in (above, below):
        panel.grid(alpha=0.25, color=GREY)
    figure.suptitle(title, parse_math=False, fontsize=10)
    return spell_out(figure)
