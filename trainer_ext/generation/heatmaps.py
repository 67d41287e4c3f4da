"""Heat maps over tokens, as PNG with the numbers beside them as CSV: attention weights, reads of a slot memory.

Takes arrays, never a model; draws without a display.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ..common.figures import drawable, save_figure, spell_out
from ..common.files import replaced_file, write_csv
from ..plots import AVERAGE, EVAL, GREY, TRAIN, UNIGRAM

LONGEST_LABEL = 12  # characters
LABELS = 64  # tokens named on an axis; of more, every second, third, ... is
INCHES_PER_TOKEN = 0.16
SMALLEST, LARGEST = 4.0, 16.0  # inches of a panel's side
COLORS = "viridis"
DOTS_PER_INCH, MOST_DOTS = 110, 60_000  # a picture of 65,536 dots and more cannot be written
# Of attention maps, in inches: what the maps of a row share, and what stands above them and at their end.
ROW = 15.0
SMALLEST_MAP = 2.4  # of a map's side, however many stand in a row
ABOVE, BAR = 0.35, 1.0
LINE, LETTER = 0.11, 0.06  # of a token's label
COLUMNS = 4
STATISTICS = {  # a model has one of the last two, by its kind of memory
    "slots_used": TRAIN,
    "mean_importance": UNIGRAM,
    "rotation": EVAL,
    "utilisation": AVERAGE,
    "null_mass": GREY,
    "slot_mass": GREY,
}
# What gets the read mass that no slot gets, by a configuration's memory_type; the last column of the reads.
NO_SLOT = {"slots": "null", "attention_slots": "window"}


def plot_attention(layers: Mapping[str, numpy.ndarray], tokens: Sequence[str], path: Path, *, title: str) -> Path:
    """Draw a panel for each layer's weights, (L, L), query tokens downwards; return the path of the CSV beside it.

    The CSV has a row for each pair that has weight: layer, query_index, query, key_index, key, weight.
    """
    _save(draw_attention(layers, tokens, title=title), path)
    header = ("layer", "query_index", "query", "key_index", "key", "weight")
    cells = (
        (name, query, tokens[query], key, tokens[key], weights[query, key])
        for name, weights in layers.items()
        for query, key in zip(*numpy.nonzero(weights), strict=True)
    )
    return _write_beside(path, header, cells)


def draw_attention(
    layers: Mapping[str, numpy.ndarray],
    tokens: Sequence[str],
    *,
    title: str,
    meaning: str = "attention weight, mean over heads",
) -> Figure:
    """Draw a map (L, L) for each layer, in rows that are as wide for 100 layers as for 4; colours go by the root."""
    names = LETTER * max(len(drawable(readable(token))) for token in tokens) + 0.2  # beside a map, and below it
    rows, columns, side = _grid(len(layers), len(tokens), names)
    cell_width, cell_height = side + names, side + names + ABOVE
    width, height = columns * cell_width + BAR, rows * cell_height + ABOVE
    figure = Figure(figsize=(width, height), dpi=min(DOTS_PER_INCH, MOST_DOTS / height))
    # weights of long texts are small: on a straight scale nearly all would be one dark colour
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    labels = max(1, min(LABELS, int(side / LINE)))
    for place, (name, weights) in enumerate(layers.items()):
        row, column = divmod(place, columns)
        # by hand: a layout engine draws every label several times, a minute for 100 layers
        left, bottom = column * cell_width + names, height - ABOVE - (row + 1) * cell_height + names
        panel = figure.add_axes((left / width, bottom / height, side / width, side / height))
        image = panel.imshow(weights, cmap=COLORS, norm=norm, interpolation="nearest", aspect="auto")
        panel.set_title(name, fontsize=9, pad=3)
        _label_tokens(panel, tokens, "x", labels)
        _label_tokens(panel, tokens, "y", labels)
    top = height - 2 * ABOVE
    scale = figure.add_axes(((width - 0.8 * BAR) / width, (top - side) / height, 0.15 / width, side / height))
    figure.colorbar(image, cax=scale, label=meaning)
    figure.suptitle(title, parse_math=False, y=1 - 0.08 / height, va="top", fontsize=10)
    return spell_out(figure)


def _grid(maps: int, tokens: int, names: float) -> tuple[int, int, float]:
    """Return rows, columns, and the inches of a map's side."""
    columns = min(math.ceil(math.sqrt(maps)), COLUMNS)
    wanted = INCHES_PER_TOKEN * tokens
    return -(-maps // columns), columns, max(SMALLEST_MAP, min(wanted, ROW / columns - names))


def plot_memory(
    layers: Mapping[str, numpy.ndarray],
    statistics: Mapping[str, numpy.ndarray],
    tokens: Sequence[str],
    path: Path,
    *,
    title: str,
    memory_type: str,
) -> Path:
    """Draw, over the tokens, each layer's read mass (L, S + 1), that of no slot last, and below the statistics (L,).

    What the last column is goes by `memory_type`: the null slot, or the window. Return the path of the CSV
    beside it: a row for each layer and token, with the statistics after that token and the mass of each slot.
    """
    _save(draw_memory(layers, statistics, tokens, title=title, memory_type=memory_type), path)
    slots = next(iter(layers.values())).shape[1] - 1
    header = ("layer", "index", "token", *statistics, *(f"slot_{slot}" for slot in range(slots)), NO_SLOT[memory_type])
    rows = (
        (
            name,
            index,
            tokens[index],
            *(values[index] for values in statistics.values()),
            *reads[index],
        )
        for name, reads in layers.items()
        for index in range(len(tokens))
    )
    return _write_beside(path, header, rows)


def draw_memory(
    layers: Mapping[str, numpy.ndarray],
    statistics: Mapping[str, numpy.ndarray],
    tokens: Sequence[str],
    *,
    title: str,
    memory_type: str,
) -> Figure:
    """Draw what `plot_memory` does; without statistics, the reads alone."""
    panels = len(layers) + bool(statistics)
    width = _side(len(tokens)) * 1.4
    figure = Figure(figsize=(width, 3.2 * panels), dpi=DOTS_PER_INCH, layout="constrained")
    drawn = list(figure.subplots(panels, 1, squeeze=False).flat)
    for panel, (name, reads) in zip(drawn, layers.items(), strict=False):
        # by its root: the last column takes nearly all at first, and would leave the others dark
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        image = panel.imshow(reads.T, cmap=COLORS, norm=norm, aspect="auto", interpolation="nearest")
        panel.set(title=name, ylabel=f"slot (last: {NO_SLOT[memory_type]})")
        _label_tokens(panel, tokens, "x")
        figure.colorbar(image, ax=panel, label="read mass")
    if statistics:
        _draw_statistics(drawn[-1], statistics, tokens)
    figure.suptitle(title, parse_math=False)
    return spell_out(figure)


def _draw_statistics(panel, statistics, tokens) -> None:
    """Each statistic as a share of its largest value: they have different units."""
    for name, values in statistics.items():
        largest = float(numpy.nanmax(values))
        shares = values / largest if largest > 0 else values
        panel.plot(shares, lw=1.4, color=STATISTICS.get(name), label=f"{name.replace('_', ' ')} (1 = {largest:.3g})")
    panel.set(xlim=(-0.5, len(tokens) - 0.5), ylabel="share of the largest")
    _label_tokens(panel, tokens, "x")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8)


def _side(tokens: int) -> float:
    return min(LARGEST, max(SMALLEST, INCHES_PER_TOKEN * tokens + 1))


def _label_tokens(panel, tokens, axis: str, most: int = LABELS) -> None:
    places = range(0, len(tokens), -(-len(tokens) // most))
    labels = [drawable(readable(tokens[place])) for place in places]
    # a token may be a dollar sign, which would begin a formula
    if axis == "x":
        panel.set_xticks(places, labels, rotation=90, fontsize=6, parse_math=False)
    else:
        panel.set_yticks(places, labels, fontsize=6, parse_math=False)


def readable(token: str) -> str:
    """A token as a label: a middle dot for a space, control characters by their names in Python, long ones cut."""
    shown = token if len(token) <= LONGEST_LABEL else token[: LONGEST_LABEL - 1] + "…"
    return "".join("·" if sign == " " else sign if sign.isprintable() else repr(sign)[1:-1] for sign in shown) or "∅"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as scratch:
        save_figure(figure, scratch)


def _write_beside(path: Path, header: Sequence[str], rows: Iterable[tuple]) -> Path:
    beside = path.with_suffix(".csv")
    write_csv(beside, (dict(zip(header, row, strict=True)) for row in rows), header, number=".6g")
    return beside
