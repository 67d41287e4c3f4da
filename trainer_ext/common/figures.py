"""Figures onto the disk: legible whatever names they hold, and equal numbers giving equal bytes.

A name, a label or a token may be in a script that the figures' font does not have; matplotlib draws a box for each such
character and warns on the console. Here they are spelled as in Python: 模 is \\u6a21.
"""

import functools
import warnings
from pathlib import Path
from typing import IO

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text


def save_figure(figure: Figure, path: Path | IO[bytes]) -> None:
    """Write a figure as PNG, its texts spelled out; a file or a folder that cannot be written is an OSError."""
    spell_out(figure)
    with warnings.catch_warnings():
        # what is left are texts that matplotlib makes as it draws
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", metadata={"Software": None})


def spell_out(figure: Figure) -> Figure:
    """Spell in all texts of a figure, the labels of its ticks among them, what their font does not have."""
    for text in figure.findobj(Text):
        shown = drawable(text.get_text(), text.get_fontproperties())
        if shown != text.get_text():
            text.set_text(shown)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [(label.get_text(), label.get_fontproperties()) for label in axis.get_ticklabels()]
            shown = [drawable(*label) for label in labels]
            if shown != [text for text, _ in labels]:  # else the axis goes on making its own
                axis.set_ticks(axis.get_ticklocs(), shown)
    return figure


def drawable(text: str, font: FontProperties | None = None) -> str:
    """Return a text with each character that none of a font's families has as Python writes it: \\u6a21."""
    if text.isascii():
        return text
    families = (font or FontProperties()).get_family()
    known = [_characters(findfont(FontProperties(family=[family]))) for family in families]
    has = {sign: sign.isspace() or any(ord(sign) in each for each in known) for sign in set(text)}
    return "".join(sign if has[sign] else ascii(sign)[1:-1] for sign in text)


@functools.cache
def _characters(font_file: str) -> frozenset[int]:
    return frozenset(get_font(font_file).get_charmap())
