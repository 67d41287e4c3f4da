"""Texts of figures in scripts that the font does not have, wherever a figure has texts."""

import io
import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from frankenlm.trainer_ext.common.figures import drawable, save_figure
from frankenlm.trainer_ext.generation.heatmaps import draw_attention


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("runs/größer π", "runs/größer π"),
        ("模型a", "\\u6a21\\u578ba"),
        ("🐈", "\\U0001f408"),
        ("a\u3000b\nc", "a\u3000b\nc"),
        ("", ""),
    ],
)
def test_what_the_font_does_not_have_is_spelled(text, shown):
    assert drawable(text) == shown


def test_every_text_of_a_figure_is_spelled_and_nothing_is_warned_of():
    figure = Figure()
    axes, other = figure.subplots(2)
    axes.bar(["模", "b"], [1, 2], label="型")
    axes.set(title="甲", xlabel="乙")
    axes.legend()
    other.plot([1, 1000], [1, 2])
    other.set_xscale("log")
    figure.suptitle("丙")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, io.BytesIO())
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert {"\\u6a21", "b", "\\u578b", "\\u7532", "\\u4e59", "\\u4e19"} <= set(texts) and "".join(texts).isascii()
    assert any("10^" in text for text in texts), "the axis without names makes its own labels"


def test_tokens_of_a_map_are_spelled():
    figure = draw_attention({"layer 0": [[1.0, 0.0], [0.5, 0.5]]}, ["模", "a"], title="模型")
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"\\u6a21", "a", "\\u6a21\\u578b"} <= texts
