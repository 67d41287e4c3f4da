"""A report as one HTML page: figures inside it, nothing from a network, readable on a telephone, light and dark."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .drawing.plot_style import Plot

MANY_COLUMNS = 8  # of a table that gets smaller letters
INTERVAL = re.compile(r"\([^)]*\)|\[[^\]]*\]|[<>=] \S+")
NO_BREAK = "\N{NO-BREAK SPACE}"
JOINED_DASH = "\N{WORD JOINER}–\N{WORD JOINER}"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --line: #dde1e8; --paper: #ffffff; --card: #f6f7f9;
  --accent: #2f6690; --warn: #8a5a00; --warn-card: #fff6e0; --warn-line: #f0d493; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a2abba; --line: #333b49; --paper: #12161d;
  --card: #1a202a; --accent: #8fbfe0; --warn: #f0c674; --warn-card: #2b2415; --warn-line: #54451f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 79rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: .4rem 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, ul, ol { margin: .5rem 0; max-width: 60rem; } li { margin: .3rem 0; } ul, ol { padding-left: 1.3rem; }
a { color: var(--accent); } .soft, figcaption { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1rem 0; }
nav a { padding: .3rem .7rem; border: 1px solid var(--line); border-radius: 1rem; text-decoration: none;
  font-size: .9rem; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
dl.facts div { background: var(--card); border-radius: .5rem; padding: .5rem .7rem; }
dl.facts dt { color: var(--soft); font-size: .8rem; } dl.facts dd { margin: 0; font-size: .95rem;
  font-weight: 600; }
.said { background: var(--card); border-left: 4px solid var(--accent); border-radius: .3rem; padding: .6rem .9rem;
  margin: .6rem 0; }
.warn { background: var(--warn-card); border: 1px solid var(--warn-line); border-radius: .5rem; padding: .5rem .9rem;
  margin: 1rem 0; }
.warn strong { color: var(--warn); }
.wide { overflow-x: auto; margin: .6rem 0; -webkit-overflow-scrolling: touch; }
.many table { font-size: .8rem; } .many th, .many td { padding: .34rem .3rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .34rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  font-weight: 500; }
.text td:last-child { white-space: normal; text-align: left; min-width: 16rem; }
@media (max-width: 40rem) { th:first-child { white-space: normal; min-width: 7rem; max-width: 8.5rem; } }
figure { margin: 1.2rem 0 1.8rem; max-width: 60rem; }
.paper { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .4rem; overflow-x: auto; }
.paper img { display: block; max-width: 100%; height: auto; min-width: 34rem; margin: 0 auto; }
@media (prefers-color-scheme: dark) { .paper { background: #e9ebef; } .paper img { mix-blend-mode: multiply; } }
figcaption { margin-top: .4rem; }
details { border: 1px solid var(--line); border-radius: .5rem; padding: .1rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
code { font-size: .88em; overflow-wrap: anywhere; }
@media print { body { max-width: none; } details { break-inside: avoid; } nav { display: none; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """Return the whole page; `title` is plain text, `body` are pieces of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def navigation(links: Sequence[tuple[str, str]]) -> str:
    """Return links to places of this page: (anchor, text)."""
    return "<nav>" + "".join(f'<a href="#{escape(to)}">{escape(text)}</a>' for to, text in links) + "</nav>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a row of small cards: (name, value)."""
    cards = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{"".join(cards)}</dl>'


def heading(level: int, text: str, anchor: str | None = None) -> str:
    place = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{place}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str | None = None) -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def said(lead: str, rest: str) -> str:
    """Return a statement that stands out, with what goes with it."""
    return f'<p class="said"><strong>{escape(lead)}</strong> {escape(rest)}</p>'


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def warning_box(texts: Sequence[str], shown: int = 6) -> str:
    """Return the warnings; of many, the rest is folded away."""
    if not texts:
        return '<p class="soft">No warnings: every cell has its rows, its repeats and finite numbers.</p>'
    rest = f"<details><summary>{len(texts) - shown} more</summary>{bullets(texts[shown:])}</details>"
    return f'<div class="warn"><strong>Before you read on</strong>{bullets(texts[:shown])}' + (
        f"{rest}</div>" if len(texts) > shown else "</div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table that fits 1280 dots: names wrap, and an interval stands below its value where there is no room.

    On a narrow screen it scrolls sideways, and the first column stays.
    """
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    # a caption inside would be as wide as the table, and its end out of sight on a telephone
    head = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    kind = "wide many" if len(header) > MANY_COLUMNS else "wide"
    return f'{head}<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A cell that may be broken between words, but neither within an interval nor before a percent sign."""
    kept = INTERVAL.sub(lambda found: found.group().replace(" ", NO_BREAK).replace("–", JOINED_DASH), text)
    return escape(kept.replace(" %", f"{NO_BREAK}%"))


def folded(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def figure(plot: Plot, folder: Path) -> str:
    """Return a figure with the PNG inside the page, and links to the PNG and CSV beside it."""
    image = base64.b64encode(plot.png.read_bytes()).decode("ascii")
    png, csv = (escape(path.relative_to(folder).as_posix()) for path in (plot.png, plot.csv))
    return (
        f'<figure><div class="paper"><img alt="{escape(plot.title)}. {escape(plot.caption)}" '
        f'src="data:image/png;base64,{image}"></div><figcaption>{escape(plot.caption)} '
        f'<a href="{png}">PNG</a>, <a href="{csv}">CSV</a>.</figcaption></figure>'
    )
