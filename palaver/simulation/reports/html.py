"""Pieces of the page: sections, tables, tiles and plots with their legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from palaver import __version__
from palaver.simulation.reports.plots import Plot
from palaver.simulation.reports.style import STYLE
from palaver.simulation.reports.svg import draw, swatch

Rows = Sequence[Sequence[str]]

# What the page must not do, though nothing in it tries: load anything, or run a script.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    head = (
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta name="generator" content="palaver {escape(__version__)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    )
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        *parts,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def section(title: str, parts: Iterable[str]) -> str:
    """A part of the page under a heading."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraphs(sentences: Iterable[str]) -> str:
    """Each sentence in a paragraph."""
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """A few figures, large."""
    tiles = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def cards(found: Sequence[Plot]) -> str:
    """Plots, side by side where there is room."""
    return '<div class="cards">' + "\n".join(map(_card, found)) + "</div>"


def _card(plot: Plot) -> str:
    legend = "".join(f"<li>{swatch(line.kind)} {escape(line.name)}</li>" for line in plot.chart.lines)
    return "\n".join(
        [
            f"<figure><figcaption><h3>{escape(plot.title)}</h3>{paragraphs(plot.words)}</figcaption>",
            f'<ul class="legend" aria-hidden="true">{legend}</ul>',
            draw(plot.chart),
            details("Its figures", table(plot.headers, plot.rows, plot.title)),
            "</figure>",
        ]
    )


def details(words: str, inner: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{escape(words)}</summary>{inner}</details>"


def table(headers: Sequence[str], rows: Rows, caption: str) -> str:
    """A table, which scrolls by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "\n".join(map(_row, rows))
    thead = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    name = escape(caption)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"{thead}<tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
    )
