"""Subsets of layers: what stands behind the @ of a group."""

import re

_SPEC = re.compile(r"L(?P<list>[\d,-]+)|(?P<end>first|last)(?P<percent>\d+)%|every(?P<step>\d+)(\+(?P<from>\d+))?")


def parse_layers(spec: str, layers: list[int]) -> set[int]:
    """Return the layers a suffix (without its @) means, out of those there are.

    `L0-5`, `L3,7`, `first25%` and `last25%` (rounded to whole layers, half up, at least one), `every6+5`.

    Raises:
        ValueError: not a suffix, or a layer that is not there.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"layers '@{spec}' are not understood; use @L0-5, @L3,7, @first25%, @last25% or @every6+5.")
    if match["list"]:
        wanted = _listed(spec, match["list"], layers[-1])
    elif match["end"]:
        percent = int(match["percent"])
        if not 0 < percent <= 100:
            raise ValueError(f"layers '@{spec}': the percentage must lie between 1 and 100.")
        count = max(1, int(len(layers) * percent / 100 + 0.5))
        wanted = layers[:count] if match["end"] == "first" else layers[-count:]
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


def _listed(spec: str, text: str, last_layer: int) -> list[int]:
    wanted = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"layers '@{spec}': {piece!r} is no layer and no range of layers, such as 0-5.")
        # of what lies beyond the model, one is enough to say so
        wanted += range(int(first), min(int(last or first), max(int(first), last_layer + 1)) + 1)
    return wanted
