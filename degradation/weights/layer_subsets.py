"""Subsets of layers: what stands behind the @ of a group."""

import re
from collections.abc import Iterable

_SPEC = re.compile(
    r"L(?P<list>[\d,-]+)|(?P<end>first|last)(?P<percent>\d+)%|every(?P<step>\d+)(\+(?P<from>\d+))?|(?P<window>\d+)of(?P<windows>\d+)"
)


def parse_layers(spec: str, layers: list[int]) -> set[int]:
    """Return the layers a suffix (without its @) means, out of those there are.

    `L0-5`, `L3,7`, `first25%` and `last25%` (rounded to whole layers, half up, at least one), `every6+5`, and `2of4`,
    the second of four windows as equal as can be.

    Raises:
        ValueError: not a suffix, or a layer that is not there.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(
            f"layers '@{spec}' are not understood; use @L0-5, @L3,7, @first25%, @last25%, @every6+5 or @2of4."
        )
    if match["list"]:
        wanted = listed_numbers(f"layers '@{spec}'", match["list"], layers[-1])
    elif match["end"]:
        percent = int(match["percent"])
        if not 0 < percent <= 100:
            raise ValueError(f"layers '@{spec}': the percentage must lie between 1 and 100.")
        count = max(1, int(len(layers) * percent / 100 + 0.5))
        wanted = layers[:count] if match["end"] == "first" else layers[-count:]
    elif match["window"]:
        wanted = _window(spec, int(match["window"]), int(match["windows"]), layers)
    else:
        step, start = int(match["step"]), int(match["from"] or 0)
        if step < 1:
            raise ValueError(f"layers '@{spec}': the step must be at least 1.")
        wanted = [layer for layer in layers if layer >= start and (layer - start) % step == 0]
    missing = sorted(set(wanted) - set(layers))
    if missing or not wanted:
        what = f"has no layer {missing[0]}" if missing else "leaves no layer"
        raise ValueError(f"layers '@{spec}': the model {what}; there are layers {layers[0]} to {layers[-1]}.")
    return set(wanted)


def _window(spec: str, number: int, count: int, layers: list[int]) -> list[int]:
    if not 1 <= number <= count <= len(layers):
        raise ValueError(f"layers '@{spec}': write 1of{len(layers)} to {len(layers)}of{len(layers)}, or fewer windows.")
    return layers[(number - 1) * len(layers) // count : number * len(layers) // count]


def listed_numbers(what: str, text: str, last: int) -> list[int]:
    """Return the numbers of a list such as `0-5,7`; of those beyond `last`, one is enough to say so.

    Raises:
        ValueError: something is no number and no range; the message begins with `what`.
    """
    wanted = []
    for piece in text.split(","):
        first, dash, end = piece.partition("-")
        if not first.isdigit() or (dash and not end.isdigit()) or (dash and int(end) < int(first)):
            kind = what.split()[0]  # layers or experts
            raise ValueError(f"{what}: {piece!r} is no {kind[:-1]} and no range of {kind}, such as 0-5.")
        wanted += range(int(first), min(int(end or first), max(int(first), last + 1)) + 1)
    return wanted


def layer_ranges(layers: Iterable[int]) -> str:
    """Return layers as text, `0-2,5`; `-` for none."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "-"
