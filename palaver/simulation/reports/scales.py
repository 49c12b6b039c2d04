"""Axes of a chart, and where values are along them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor, log10

from attrs import frozen

_NINES = (0, 50, 90, 99, 99.9, 99.99, 99.999)
_MOST_TICKS = 5
_ROOM = 0.04  # of the axis, beyond the first and the last value where ticks are given


@frozen
class Axis:
    """One direction of a chart.

    Args:
        label: what it shows, with its unit.
        scale: `linear` from 0, `log` of values above 0, or `nines`: percentiles, with 90, 99 and 99.9 as far
            apart as each other.
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
class Scale:
    """Where a value is along one direction of a drawing."""

    kind: str
    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """The place of a value."""
        share = (_put(self.kind, value) - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def scale_of(axis: Axis, values: Iterable[float], start: float, end: float) -> Scale:
    """The scale of an axis on which these values are, from `start` to `end` of the drawing."""
    found = [*values] or [1.0]
    low, high = (_put(axis.scale, choose(found)) for choose in (min, max))
    if axis.ticks is not None:
        names = axis.names or [*map(_round, axis.ticks)]
        room = (high - low) * _ROOM
        return Scale(axis.scale, low - room, high + room, start, end, [*zip(axis.ticks, names, strict=True)])
    if axis.scale == "nines":
        ticks = [each for each in _NINES if each <= max(99.0, *found)]
        named = [(each, f"p{each:g}" if each else "") for each in ticks]
        return Scale(axis.scale, 0.0, max(high, _put(axis.scale, ticks[-1])), start, end, named)
    if axis.scale == "log":
        chosen = _log_ticks(low, high)
        low, high = min(low, log10(chosen[0])), max(high, log10(chosen[-1]))
    else:
        low = min(0.0, low)
        chosen = _round_ticks(low, high)
        if axis.tight and high > low:
            chosen = [each for each in chosen if each <= high]
        else:
            high = max(high, chosen[-1])
    return Scale(axis.scale, low, high, start, end, [(each, _round(each)) for each in chosen])


def _put(kind: str, value: float) -> float:
    """A value, on the scale where distances are what the eye sees."""
    if kind == "nines":
        return -log10(max(1e-7, 1 - value / 100))
    return log10(value) if kind == "log" else value


def _round(tick: float) -> str:
    """ "0.02", "5", "1,000"."""
    return f"{tick:,.0f}" if float(tick).is_integer() else f"{tick:.6g}"


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a range, a few."""
    span = (high - low) or 1.0
    size = 10.0 ** floor(log10(span / _MOST_TICKS))
    step = next(each * size for each in (1, 2, 5, 10, 20) if span / (each * size) <= _MOST_TICKS)
    first, last = floor(low / step), ceil(high / step)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover powers of ten: 1, 2 and 5 of each, or only 1 where there are many."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10.0**power for power in range(floor(low), ceil(high) + 1) for step in steps]
    first = max((n for n, each in enumerate(ticks) if log10(each) <= low + 1e-9), default=0)
    last = min((n for n, each in enumerate(ticks) if log10(each) >= high - 1e-9), default=len(ticks) - 1)
    return ticks[first : last + 1]
