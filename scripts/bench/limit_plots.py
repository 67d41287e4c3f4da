"""Rows of the kernel benchmark -> a figure: who reaches which share of the machine's limit. Needs no display."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

PANEL = (5.0, 3.6)  # inches


def plot_shares_of_limit(rows: Sequence[Mapping], path: Path) -> None:
    """Draw a panel for each memory and number of threads: share of the limit over the number of tokens.

    Args:
        rows: each with `contestant`, `memory`, `threads`, `tokens` and `share_of_limit`; rows of one contestant and
            number of tokens differ in shape: the line is their median, the band goes from the lowest to the highest.
    """
    panels = list(dict.fromkeys((row["memory"], row["threads"]) for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    shades = colormaps["tab20"].colors
    colors = [*shades[::2], *shades[1::2]]
    figure = Figure(figsize=(len(panels) * PANEL[0], PANEL[1] + 1.0), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for (memory, threads), panel in zip(panels, axes, strict=True):
        chosen = [row for row in rows if (row["memory"], row["threads"]) == (memory, threads)]
        for name in names:
            _draw(
                panel,
                [row for row in chosen if row["contestant"] == name],
                colors[names.index(name) % len(colors)],
                name,
            )
        panel.set(title=f"weights from {memory}, {threads} thread{'s' * (threads > 1)}", xlabel="tokens M")
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks := sorted({row["tokens"] for row in chosen}), list(map(str, ticks)))
        panel.set_ylim(0, 1.05)
        panel.axhline(1, color="#666666", lw=1, ls="--")
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("share of the limit")
    handles = {label: line for panel in axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=3 * len(panels), frameon=False, fontsize=8
    )
    figure.savefig(path, metadata={"Software": None})


def _draw(panel, rows: Sequence[Mapping], color, name: str) -> None:
    if not rows:
        return
    tokens = sorted({row["tokens"] for row in rows})
    shares = [[row["share_of_limit"] for row in rows if row["tokens"] == count] for count in tokens]
    panel.plot(tokens, [statistics.median(values) for values in shares], "o-", color=color, ms=3, lw=1.4, label=name)
    panel.fill_between(tokens, list(map(min, shares)), list(map(max, shares)), color=color, alpha=0.15, lw=0)
