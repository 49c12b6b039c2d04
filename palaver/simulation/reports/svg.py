"""Line charts as inline SVG: axes, lines that differ in colour and in dashes, bands, a marked value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from attrs import frozen

from palaver.simulation.reports.scales import Axis, Scale, scale_of

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 46
KINDS = 6  # of lines, each with a colour and dashes of its own
_CHARACTER = 9  # columns of a drawing that one takes in a label, about
_FIGURES = 8  # of them that fit to the left of the vertical axis

Points = Sequence[tuple[float, float]]


@frozen
class Line:
    """One line of a chart.

    Args:
        name: for the legend.
        points: x and y, x ascending.
        low, high: edges of a band around it, in the same xs; none if empty.
        dots: whether each point is marked.
        kind: which colour and dashes.
    """

    name: str
    points: Points
    low: Points = ()
    high: Points = ()
    dots: bool = False
    kind: int = 0


@frozen
class Chart:
    """What a drawing shows.

    Args:
        title: its accessible name.
        marked: an x that is pointed at, and its words.
        above: the vertical axis goes at least so far.
    """

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marked: tuple[float, str] | None = None
    above: float | None = None


def draw(chart: Chart) -> str:
    """The chart as an `svg` element; its colours come from the classes in `style`."""
    across = scale_of(chart.x, [x for line in chart.lines for x, _ in line.points], LEFT, WIDTH - RIGHT)
    heights = [y for line in chart.lines for _, y in (*line.points, *line.low, *line.high)]
    above = () if chart.above is None else (chart.above,)
    up = scale_of(chart.y, [*heights, *above], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_vertical(up),
        *_horizontal(across),
        *_titles(chart),
        *_mark(chart, across),
    ]
    for line in chart.lines:
        parts += _line(line, across, up)
    return "\n".join([*parts, "</svg>"])


def _vertical(up: Scale) -> Iterable[str]:
    for value, name in up.ticks:
        y = up.at(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(name[:_FIGURES])}</text>'


def _horizontal(across: Scale) -> Iterable[str]:
    bottom = HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    free_from = 0.0
    for value, name in across.ticks:
        x, half = across.at(value), len(name) * _CHARACTER / 2
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        anchor, left = ("end", x - 2 * half) if x + half > WIDTH else ("middle", x - half)
        if left >= free_from:  # else it would cover the one before
            yield f'<text x="{x}" y="{bottom + 18}" text-anchor="{anchor}">{escape(name)}</text>'
            free_from = left + 2 * half + _CHARACTER


def _titles(chart: Chart) -> Iterable[str]:
    place = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle"'
    yield f'<text class="label" {place}>{escape(chart.x.label)}</text>'
    yield f'<text class="label" x="2" y="12">{escape(chart.y.label)}</text>'


def _mark(chart: Chart, across: Scale) -> Iterable[str]:
    if chart.marked is None:
        return
    value, words = chart.marked
    x = across.at(value)
    near_end = x + len(words) * _CHARACTER > WIDTH - RIGHT
    anchor, left = ("end", x - 5) if near_end else ("start", x + 5)
    place = f'x="{left}" y="{TOP - 6}" text-anchor="{anchor}"'
    yield f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP - 14}" y2="{HEIGHT - BOTTOM}"/>'
    yield f'<text class="marked" {place}>{escape(words)}</text>'


def _line(line: Line, across: Scale, up: Scale) -> Iterable[str]:
    kind = line.kind % KINDS
    if line.low and line.high:
        edge = _path([*line.high, *reversed(line.low)], across, up)
        yield f'<path class="b{kind}" d="{edge} Z"/>'
    if len(line.points) > 1:
        yield f'<path class="l{kind}" d="{_path(line.points, across, up)}"/>'
    if line.dots or len(line.points) == 1:
        for x, y in line.points:
            yield f'<circle class="d{kind}" cx="{across.at(x)}" cy="{up.at(y)}" r="3.5"/>'


def _path(points: Points, across: Scale, up: Scale) -> str:
    return "M" + " L".join(f"{across.at(x):g} {up.at(y):g}" for x, y in points)


def swatch(kind: int) -> str:
    """The line of a legend."""
    return (
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path class="l{kind % KINDS}" d="M1 4 L27 4"/></svg>'
    )
