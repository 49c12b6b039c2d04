"""Curves over virtual time, of one run or of several together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from attrs import frozen

from palaver.simulation.outcome import Outcome, Sample

GRID = 100
BINS = 50
FEWEST = 8
IN_BIN = 8  # turns, about

Measure = Callable[[Sample], float]


@frozen
class Curve:
    """A value at virtual instants: of one run, or the median of several with the least and the most."""

    at_s: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    runs: int

    @property
    def points(self) -> list[tuple[float, float]]:
        return [*zip(self.at_s, self.middle, strict=True)]

    @property
    def band(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Its edges; empty of one run."""
        if self.runs == 1:
            return [], []
        return [*zip(self.at_s, self.low, strict=True)], [*zip(self.at_s, self.high, strict=True)]

    @property
    def peak(self) -> tuple[float, float]:
        """The instant of the highest value that any run had, and that value."""
        place = max(range(len(self.high)), key=self.high.__getitem__)
        return self.at_s[place], self.high[place]

    @property
    def mean(self) -> float:
        return sum(self.middle) / len(self.middle)


def over_time(outcomes: Sequence[Outcome], measure: Measure) -> Curve | None:
    """What `measure` gives of the samples; None if there are none."""
    series = [[(s.at_s, measure(s)) for s in each.samples] for each in outcomes if each.samples]
    return _together(series)


def turns_per_s(outcomes: Sequence[Outcome]) -> Curve | None:
    """Turns that ended done, a virtual second, between samples; None if there are too few."""
    return _together([found for each in outcomes if (found := _rates(each.samples))])


def _rates(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    bins = min(BINS, max(FEWEST, (samples[-1].done if samples else 0) // IN_BIN))  # else it shows but noise
    step = max(1, len(samples) // bins)
    chosen = samples[::step]
    return [
        ((a.at_s + b.at_s) / 2, max(0, b.done - a.done) / (b.at_s - a.at_s))
        for a, b in pairwise(chosen)
        if b.at_s > a.at_s
    ]


def _together(series: Sequence[Sequence[tuple[float, float]]]) -> Curve | None:
    if not series:
        return None
    if len(series) == 1:
        at_s, values = [at for at, _ in series[0]], [value for _, value in series[0]]
        return Curve(at_s, values, values, values, runs=1)
    last = max(each[-1][0] for each in series)
    first = min(each[0][0] for each in series)
    grid = [first + (last - first) * n / (GRID - 1) for n in range(GRID)]
    columns = [(at, found) for at in grid if 2 * len(found := _values_at(series, at)) >= len(series)]
    return Curve(
        [at for at, _ in columns],
        [median(found) for _, found in columns],
        [min(found) for _, found in columns],
        [max(found) for _, found in columns],
        runs=len(series),
    )


def _values_at(series: Sequence[Sequence[tuple[float, float]]], at: float) -> list[float]:
    """What each run had then, of those that had begun and had not ended."""
    found = []
    for each in series:
        place = bisect_right(each, (at, float("inf"))) - 1
        if place >= 0 and at <= each[-1][0]:
            found.append(each[place][1])
    return found
