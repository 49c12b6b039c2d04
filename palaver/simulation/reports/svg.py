"""Line charts as inline SVG: axes, lines that differ in colour and in dashes, bands, a marked value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10

from attrs import field, frozen

from palaver.simulation.reports.numbers import number

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 46
KINDS = 6  # of lines, each with a colour and dashes of its own
_NINES = (0, 50, 90, 99, 99.9, 99.99, 99.999)
_CHARACTER = 7.5  # columns of a drawing that one takes in a label, about
_FIGURES = 8  # of them that fit to the left of the vertical axis

Points = Sequence[tuple[float, float]]


@frozen
class Axis:
    """One direction of a chart.

    Args:
        label: what it shows, with its unit.
        scale: `linear` from 0, `log`, or `nines`: percentiles, so that 90, 99 and 99.9 are as far apart.
        ticks: where to put labels; None chooses.
        names: labels for `ticks`; None is their numbers.
        tight: whether it ends with the greatest value, not with the next tick.
    """

    label: str
    scale: str = "linear"
    ticks: Sequence[float] | None = None
    names: Sequence[str] | None = None
    tight: bool = False


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
    """

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marked: tuple[float, str] | None = None
    above: float = field(default=0.0)


def draw(chart: Chart) -> str:
    """The chart as an `svg` element; its colours come from the classes in `style`."""
    across = _Scale.of(chart.x, [x for line in chart.lines for x, _ in line.points], LEFT, WIDTH - RIGHT)
    heights = [y for line in chart.lines for _, y in (*line.points, *line.low, *line.high)]
    up = _Scale.of(chart.y, [*heights, chart.above], HEIGHT - BOTTOM, TOP)
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


@frozen
class _Scale:
    """Where a value is along one direction of the drawing."""

    kind: str
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, axis: Axis, values: Iterable[float], start: float, end: float) -> _Scale:
        found = [*values] or [0.0]
        if axis.scale == "nines":
            top = max(99.0, *found)
            inside = [each for each in _NINES if each <= top]
            ticks = tuple((each, f"p{each:g}" if each else "") for each in inside)
            return cls("nines", 0.0, max(nine(p) for p in (*found, inside[-1])), start, end, ticks)
        if axis.scale == "log":
            low, high = log10(min(found)), log10(max(found))
        elif axis.ticks is not None:
            low, high = min(found), max(found)
        else:
            low, high = min(0.0, *found), max(found)
        chosen = axis.ticks if axis.ticks is not None else _round_ticks(low, high)
        if axis.ticks is None and not axis.tight:
            high = max(high, chosen[-1])
        chosen = [each for each in chosen if low <= each <= high] if axis.tight else chosen
        names = axis.names or [number(each) for each in chosen]
        room = (high - low) * 0.04 if axis.ticks is not None else 0.0
        ticks = tuple(zip(chosen, names, strict=True))
        return cls(axis.scale, low - room, high + room, start, end, ticks)

    def at(self, value: float) -> float:
        """The place of a value."""
        if self.kind == "nines":
            value = nine(value)
        elif self.kind == "log":
            value = log10(value)
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def nine(percent: float) -> float:
    """How many nines: 0 of p0, 1 of p90, 2 of p99."""
    return -log10(max(1e-7, 1 - percent / 100))


def _round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover a range, at most so many and one more."""
    span = (high - low) or 1.0
    size = 10 ** floor(log10(span / most))
    step = next(each * size for each in (1, 2, 5, 10, 20) if span / (each * size) <= most)
    first, last = floor(low / step), ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _vertical(up: _Scale) -> Iterable[str]:
    for value, name in up.ticks:
        y = up.at(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(name[:_FIGURES])}</text>'


def _horizontal(across: _Scale) -> Iterable[str]:
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


def _mark(chart: Chart, across: _Scale) -> Iterable[str]:
    if chart.marked is None:
        return
    value, words = chart.marked
    x = across.at(value)
    near_end = x + len(words) * _CHARACTER > WIDTH - RIGHT
    anchor, left = ("end", x - 5) if near_end else ("start", x + 5)
    place = f'x="{left}" y="{TOP - 6}" text-anchor="{anchor}"'
    yield f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP - 14}" y2="{HEIGHT - BOTTOM}"/>'
    yield f'<text class="marked" {place}>{escape(words)}</text>'


def _line(line: Line, across: _Scale, up: _Scale) -> Iterable[str]:
    kind = line.kind % KINDS
    if line.low and line.high:
        edge = _path([*line.high, *reversed(line.low)], across, up)
        yield f'<path class="b{kind}" d="{edge} Z"/>'
    if len(line.points) > 1:
        yield f'<path class="l{kind}" d="{_path(line.points, across, up)}"/>'
    if line.dots or len(line.points) == 1:
        for x, y in line.points:
            yield f'<circle class="d{kind}" cx="{across.at(x)}" cy="{up.at(y)}" r="3.5"/>'


def _path(points: Points, across: _Scale, up: _Scale) -> str:
    return "M" + " L".join(f"{across.at(x):g} {up.at(y):g}" for x, y in points)


def swatch(kind: int) -> str:
    """The line of a legend."""
    return (
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path class="l{kind % KINDS}" d="M1 4 L27 4"/></svg>'
    )
