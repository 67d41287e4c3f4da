"""Rows of the benchmark -> the tables and the figure that people look at. Times are microseconds of one product."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from frankenlm.scripts.bench.suite import NOT_VECTORISED
from frankenlm.trainer_ext.common.figures import save_figure

Rows = Sequence[Mapping]
DESCRIPTION = "us (times faster than ggml TQ2_0, share of the limit)"


def tables_of(products: Rows, roofline: Rows, left_out: Rows) -> dict[str, list[dict]]:
    """Return every table under its title: the summary first, then the roofline, then cell by cell."""
    best = products[0]["contestant"] if products else None
    summaries = {
        f"Summary: {path}, lowest and highest over the shapes": summary(products, path) for path in (best, "avx2")
    }
    tables = summaries | {
        f"Threads: {best}, times faster than on one thread": thread_scaling(products, best),
        "SSE4.1 against plain C++, times faster": sse41_against_plain(products),
        "Roofline, measured in the same rounds": _equal_keys(roofline),
    }
    for memory, threads, tokens in _distinct(products, "memory", "threads", "tokens"):
        rows = _select(products, memory=memory, threads=threads, tokens=tokens)
        title = f"M={tokens}, weights from {memory}, {threads} thread{'s' * (threads > 1)}: {DESCRIPTION}"
        tables[title] = comparison(rows)
    tables["Left out"] = why_left_out(left_out)
    return {title: rows for title, rows in tables.items() if rows}


def comparison(rows: Rows) -> list[dict]:
    """One row a contestant, one column a shape; the limit first."""
    shapes = [_shape(*pair) for pair in _distinct(rows, "inputs", "outputs")]
    limits = {_shape(row["inputs"], row["outputs"]): row for row in rows}
    table = [{"": "limit", **{shape: f"{limits[shape]['limit_us']:.3g}" for shape in shapes}}]
    for (name,) in _distinct(rows, "contestant"):
        found = {_shape(row["inputs"], row["outputs"]): row for row in _select(rows, contestant=name)}
        table.append({"": name, **{shape: _entry(found.get(shape)) for shape in shapes}})
    return table


def summary(products: Rows, contestant: str | None) -> list[dict]:
    """One row a memory, number of threads and number of tokens: the spread over the shapes."""
    table = []
    for memory, threads, tokens in _distinct(products, "memory", "threads", "tokens"):
        rows = _select(products, memory=memory, threads=threads, tokens=tokens, contestant=contestant)
        if rows:
            table.append(
                {
                    "memory": memory,
                    "threads": threads,
                    "M": tokens,
                    "share of the limit": _spread(rows, "share_of_limit"),
                    "times TQ2_0": _spread(rows, "times_TQ2_0"),
                    "times torch int8": _spread(rows, "times_int8"),
                    "noise": _spread(rows, "noise"),
                }
            )
    return table


def thread_scaling(products: Rows, contestant: str | None) -> list[dict]:
    """One row a memory and number of tokens and threads above one; a column a shape."""
    table = []
    for memory, tokens, threads in _distinct(products, "memory", "tokens", "threads"):
        one = _by_shape(products, memory=memory, tokens=tokens, threads=1, contestant=contestant)
        more = _by_shape(products, memory=memory, tokens=tokens, threads=threads, contestant=contestant)
        ratios = {shape: one[shape]["us"] / more[shape]["us"] for shape in more if shape in one}
        if threads > 1 and ratios:
            table.append({"memory": memory, "M": tokens, "threads": threads, **ratios})
    return table


def sse41_against_plain(products: Rows) -> list[dict]:
    """One row a cell in which all three took part."""
    table = []
    for memory, threads, tokens in _distinct(products, "memory", "threads", "tokens"):
        cell = {"memory": memory, "threads": threads, "tokens": tokens}
        found = [_by_shape(products, **cell, contestant=name) for name in ("sse41", "scalar", NOT_VECTORISED)]
        for shape in found[0]:
            if all(shape in rows for rows in found):
                ours, plain, scalar = (rows[shape]["us"] for rows in found)
                ratios = {"plain C++ at -O3": plain / ours, "plain C++, not vectorised": scalar / ours}
                table.append({"memory": memory, "threads": threads, "M": tokens, "shape": shape, **ratios})
    return table


def why_left_out(left_out: Rows) -> list[dict]:
    """One row a contestant and reason; the cells themselves are in the JSON."""
    counts = Counter((row["contestant"], row["reason"]) for row in left_out)
    return [{"contestant": name, "reason": reason, "cells": count} for (name, reason), count in counts.items()]


def _equal_keys(rows: Rows) -> list[dict]:
    """Give every row every key, "-" where it had none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key, "-") for key in keys} for row in rows]


def _entry(row: Mapping | None) -> str:
    if row is None:
        return "-"
    ratio = "-" if row["times_TQ2_0"] is None else f"{row['times_TQ2_0']:.3g}x"
    return f"{row['us']:.3g} ({ratio}, {row['share_of_limit']:.1%})"


def _spread(rows: Rows, key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{min(values):.3g} to {max(values):.3g}" if values else "-"


def _shape(inputs: int, outputs: int) -> str:
    return f"{inputs}x{outputs}"


def _select(rows: Rows, **fields) -> list[Mapping]:
    return [row for row in rows if all(row[key] == value for key, value in fields.items())]


def _by_shape(rows: Rows, **fields) -> dict[str, Mapping]:
    return {_shape(row["inputs"], row["outputs"]): row for row in _select(rows, **fields)}


def _distinct(rows: Rows, *keys: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


# --- the figure: who reaches which share of the machine's limit; it needs no display


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
    save_figure(figure, path)


def _draw(panel, rows: Sequence[Mapping], color, name: str) -> None:
    if not rows:
        return
    tokens = sorted({row["tokens"] for row in rows})
    shares = [[row["share_of_limit"] for row in rows if row["tokens"] == count] for count in tokens]
    panel.plot(tokens, [statistics.median(values) for values in shares], "o-", color=color, ms=3, lw=1.4, label=name)
    panel.fill_between(tokens, list(map(min, shares)), list(map(max, shares)), color=color, alpha=0.15, lw=0)
