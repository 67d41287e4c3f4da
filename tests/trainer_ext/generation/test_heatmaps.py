"""Maps of any number of layers: rows of panels that are large enough to be read, on a page that is not wider."""

import numpy
import pytest

from frankenlm.trainer_ext.generation.heatmaps import MOST_DOTS, SMALLEST_MAP, draw_attention, readable

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
