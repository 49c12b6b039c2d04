"""The one shape of results: series of figures, rows and curves of them, and goals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

Tell = Callable[[str], None]


@frozen
class Series:
    """One figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the lowest and the highest value, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2 / self.median if self.median else 0.0

    def __str__(self) -> str:
        shown = number(self.median)
        return f"{shown} ±{self.spread:.0%}" if len(self.values) > 1 else shown

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "values": list(self.values)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Series:
        return cls(tuple(body["values"]))


@frozen
class Row:
    """One measure: what it is, its unit in the words, and its series by system, ours first."""

    what: str
    systems: Mapping[str, Series]

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "systems": {name: each.as_json() for name, each in self.systems.items()}}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Row:
        return cls(body["what"], {name: Series.from_json(each) for name, each in body["systems"].items()})


Line = Mapping[float, Series]


@frozen
class Curve:
    """How a measure grows: for each system a line of series by size."""

    what: str
    against: str
    lines: Mapping[str, Line]

    @property
    def sizes(self) -> list[float]:
        return sorted({size for line in self.lines.values() for size in line})

    def growth(self, system: str) -> float:
        """The figure at the largest size over that at the smallest."""
        line = self.lines[system]
        last, first = line[max(line)], line[min(line)]
        if len(last.values) != len(first.values):  # no rounds to divide by one another
            return last.median / first.median if first.median else math.inf
        return ratio(last, first)

    def as_json(self) -> dict[str, Any]:
        lines = {
            name: [[size, series.as_json()] for size, series in line.items()]
            for name, line in self.lines.items()
        }
        return {"what": self.what, "against": self.against, "lines": lines}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Curve:
        lines = {
            name: {size: Series.from_json(series) for size, series in line}
            for name, line in body["lines"].items()
        }
        return cls(body["what"], body["against"], lines)


@frozen
class Goal:
    """A bound on one figure: `value` must be at least, or at most, `bound`."""

    what: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    @property
    def words(self) -> str:
        return f"{'<=' if self.at_most else '>='} {number(self.bound)}"

    def as_json(self) -> dict[str, Any]:
        body = {"what": self.what, "value": self.value, "bound": self.bound, "at_most": self.at_most}
        return {**body, "reached": self.reached}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Goal:
        return cls(body["what"], body["value"], body["bound"], body["at_most"])


@frozen
class Part:
    """What one part of the benchmark has found; `about` says what was measured, and how."""

    name: str
    about: str
    rows: Sequence[Row] = ()
    curves: Sequence[Curve] = ()
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    setting: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "rows": [each.as_json() for each in self.rows],
            "curves": [each.as_json() for each in self.curves],
            "goals": [each.as_json() for each in self.goals],
            "notes": list(self.notes),
            "setting": self.setting,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Part:
        return cls(
            body["name"],
            body["about"],
            [Row.from_json(each) for each in body["rows"]],
            [Curve.from_json(each) for each in body["curves"]],
            [Goal.from_json(each) for each in body["goals"]],
            body["notes"],
            body["setting"],
            body["seconds"],
        )


@frozen
class Report:
    """All parts of one run."""

    machine: str
    quick: bool
    parts: Sequence[Part]
    failed: Mapping[str, str] = field(factory=dict)  # parts that came to no end, and why

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "quick": self.quick,
            "parts": [part.as_json() for part in self.parts],
            "failed": dict(self.failed),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Report:
        parts = [Part.from_json(each) for each in body["parts"]]
        return cls(body["machine"], body["quick"], parts, body["failed"])


def in_turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, tell: Tell = lambda _: None
) -> dict[str, Series]:
    """Call every measure `rounds` times, one after the other in each round.

    What the machine does besides then falls on all of them alike: compare medians, and prefer
    `ratio` to comparing absolute figures of two runs.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds):
        for name, measure in measures.items():
            tell(f"round {turn + 1} of {rounds}, {name}")
            values[name].append(measure())
    return {name: Series(tuple(series)) for name, series in values.items()}


def ratio(ours: Series, theirs: Series) -> float:
    """The median of the ratios of each round: what the machine did in one round divides out."""
    pairs = zip(ours.values, theirs.values, strict=True)
    return statistics.median(a / b if b else math.inf for a, b in pairs)


def number(value: float) -> str:
    """A figure with three digits that matter, and commas."""
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
