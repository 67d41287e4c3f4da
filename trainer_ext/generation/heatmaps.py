"""Heat maps over tokens, as PNG with the numbers beside them as CSV: attention weights, reads of a slot memory.

Takes arrays, never a model; draws without a display.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ..common.files import replaced_file, write_csv
from ..plots import EVAL, GREY, TRAIN, UNIGRAM

LONGEST_LABEL = 12  # characters
LABELS = 64  # tokens named on an axis; of more, every second, third, ... is
INCHES_PER_TOKEN = 0.16
SMALLEST, LARGEST = 4.0, 16.0  # inches of a panel's side
COLORS = "viridis"
STATISTICS = {"slots_used": TRAIN, "mean_importance": UNIGRAM, "rotation": EVAL, "null_mass": GREY}


def plot_attention(layers: Mapping[str, numpy.ndarray], tokens: Sequence[str], path: Path, *, title: str) -> Path:
    """Draw a panel for each layer's weights, (L, L), query tokens downwards; return the path of the CSV beside it.

    The CSV has a row for each pair that has weight: layer, query_index, query, key_index, key, weight.
    """
    columns = min(len(layers), 3)
    rows = -(-len(layers) // columns)
    side = _side(len(tokens))
    figure = Figure(figsize=(columns * side, rows * side + 0.4), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (name, weights) in zip(panels, layers.items(), strict=False):
        image = panel.imshow(weights, cmap=COLORS, vmin=0, vmax=1, interpolation="nearest")
        panel.set(title=name)
        _label_tokens(panel, tokens, "x")
        _label_tokens(panel, tokens, "y")
    for panel in list(panels)[len(layers) :]:
        panel.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label="attention weight, mean over heads", shrink=0.6)
    _save(figure, path, title)
    header = ("layer", "query_index", "query", "key_index", "key", "weight")
    cells = (
        (name, query, tokens[query], key, tokens[key], weights[query, key])
        for name, weights in layers.items()
        for query, key in zip(*numpy.nonzero(weights), strict=True)
    )
    return _write_beside(path, header, cells)


def plot_memory(
    layers: Mapping[str, numpy.ndarray],
    statistics: Mapping[str, numpy.ndarray],
    tokens: Sequence[str],
    path: Path,
    *,
    title: str,
) -> Path:
    """Draw, over the tokens, each layer's read mass (L, S + 1) with the null slot last, and below the statistics (L,).

    Return the path of the CSV beside it: a row for each layer and token, with the statistics after that token and the
    mass of each slot.
    """
    width = _side(len(tokens)) * 1.4
    figure = Figure(figsize=(width, 3.2 * len(layers) + 2.8), dpi=110, layout="constrained")
    *maps, below = figure.subplots(len(layers) + 1, 1, squeeze=False).flat
    for panel, (name, reads) in zip(maps, layers.items(), strict=True):
        # by its root: the null slot takes nearly all at first, and would leave the others dark
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        image = panel.imshow(reads.T, cmap=COLORS, norm=norm, aspect="auto", interpolation="nearest")
        panel.set(title=name, ylabel="slot (last: null)")
        _label_tokens(panel, tokens, "x")
        figure.colorbar(image, ax=panel, label="read mass")
    _draw_statistics(below, statistics, tokens)
    _save(figure, path, title)
    slots = next(iter(layers.values())).shape[1] - 1
    header = ("layer", "index", "token", *statistics, *(f"slot_{slot}" for slot in range(slots)), "null")
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


def _label_tokens(panel, tokens, axis: str) -> None:
    places = range(0, len(tokens), -(-len(tokens) // LABELS))
    labels = [readable(tokens[place]) for place in places]
    # a token may be a dollar sign, which would begin a formula
    if axis == "x":
        panel.set_xticks(places, labels, rotation=90, fontsize=6, parse_math=False)
    else:
        panel.set_yticks(places, labels, fontsize=6, parse_math=False)


def readable(token: str) -> str:
    """A token as a label: a middle dot for a space, control characters by their names in Python, long ones cut."""
    shown = token if len(token) <= LONGEST_LABEL else token[: LONGEST_LABEL - 1] + "…"
    return "".join("·" if sign == " " else sign if sign.isprintable() else repr(sign)[1:-1] for sign in shown) or "∅"


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), replaced_file(path) as scratch:
        # of a script that the font does not have, the labels are boxes; the CSV has the tokens
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(scratch, metadata={"Software": None})


def _write_beside(path: Path, header: Sequence[str], rows: Iterable[tuple]) -> Path:
    beside = path.with_suffix(".csv")
    write_csv(beside, (dict(zip(header, row, strict=True)) for row in rows), header, number=".6g")
    return beside
