"""Maps of any number of layers: rows of panels that are large enough to be read, on a page that is not wider."""

import numpy
import pytest

from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM
from frankenlm.trainer_ext.generation import heatmaps
from frankenlm.trainer_ext.generation.heatmaps import (
    MOST_DOTS,
    NO_SLOT,
    SMALLEST_MAP,
    STATISTICS,
    draw_attention,
    plot_memory,
    readable,
)
from frankenlm.trainer_ext.generation.inspection import memory_reads
from tiny_infinito import ATTENTION_SLOTS, tiny_infinito

WIDEST = 1800  # dots; the maps of a row, their tokens and the scale


def maps(layers: int, tokens: int) -> dict[str, numpy.ndarray]:
    weights = numpy.tril(numpy.ones((tokens, tokens)))
    return {f"attention {layer}": weights / weights.sum(1, keepdims=True) for layer in range(layers)}


@pytest.mark.parametrize(("layers", "tokens"), [(1, 1), (1, 200), (2, 40), (3, 5), (12, 40), (25, 8)])
def test_panels_are_readable_and_stand_apart(layers, tokens):
    figure = draw_attention(maps(layers, tokens), [f" a long token {place}" for place in range(tokens)], title="t")
    width, height = figure.get_size_inches() * figure.dpi
    assert width <= WIDEST and height < 2**16
    *panels, scale = figure.axes
    assert len(panels) == layers and scale.get_ylabel().startswith("attention weight")
    boxes = [panel.get_position().transformed(figure.transFigure) for panel in panels]
    assert all(min(box.width, box.height) >= SMALLEST_MAP * figure.dpi - 1 for box in boxes)
    for index, box in enumerate(boxes):
        assert box.x0 > 0 and box.x1 < width and box.y0 > 0 and box.y1 < height
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    for panel, (name, weights) in zip(panels, maps(layers, tokens).items(), strict=True):
        assert panel.get_title() == name and (panel.images[0].get_array() == weights).all()
        labels = panel.get_xticklabels()
        assert len(labels) == len(panel.get_yticklabels()) <= min(tokens, 64)
        assert labels[0].get_text() == readable(" a long token 0")


def test_what_is_too_high_for_a_picture_gets_fewer_dots(monkeypatch):
    monkeypatch.setattr("frankenlm.trainer_ext.generation.heatmaps.MOST_DOTS", 500)
    figure = draw_attention(maps(9, 3), ["a"] * 3, title="t")
    assert figure.get_size_inches()[1] * figure.dpi == pytest.approx(500) and MOST_DOTS < 2**16


@pytest.mark.parametrize(("fields", "last"), [({}, "null"), (ATTENTION_SLOTS, "window")], ids=["slots", "attention"])
def test_the_last_column_of_a_memory_is_what_no_slot_gets(fields, last, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(heatmaps, "_save", lambda figure, path: drawn.append(figure))
    model = InfinitoForCausalLM(tiny_infinito(**fields)).eval()
    layers, statistics = memory_reads(model, range(9))
    kind = model.config.memory_type
    beside = plot_memory(layers, statistics, ["a"] * 9, tmp_path / "reads.png", title="t", memory_type=kind)
    header, first = (line.split(",") for line in beside.read_text(encoding="utf-8").splitlines()[:2])
    assert header[-1] == last and float(first[-1]) == 1  # the first token meets no slot
    maps, colours = drawn[0].axes[: len(layers)], [line.get_color() for line in drawn[0].axes[len(layers)].lines]
    assert {panel.get_ylabel() for panel in maps} == {f"slot (last: {last})"}
    assert colours == [STATISTICS[name] for name in statistics] and len(set(colours)) == len(colours)


def test_every_memory_has_a_name_for_what_no_slot_gets():
    assert set(NO_SLOT) == set(InfinitoConfig.CHOICES["memory_type"])
