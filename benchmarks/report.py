"""Series of measurements taken in turns, their medians, spreads and ratios, and tables of them."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from attrs import frozen


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
        return f"{number(self.median)} ±{self.spread:.0%}"

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": min(self.values), "high": max(self.values)}


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

    def row(self) -> list[str]:
        sign = "<=" if self.at_most else ">="
        return [
            self.what,
            number(self.value),
            f"{sign} {number(self.bound)}",
            "reached" if self.reached else "MISSED",
        ]

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "bound": self.bound, "reached": self.reached}


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Series]:
    """Call every measure `rounds` times, one after the other in each round.

    What the machine does besides then falls on all of them alike: compare medians, and prefer
    `ratio` to comparing absolute figures of two runs.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: Series(tuple(series)) for name, series in values.items()}


def ratio(ours: Series, theirs: Series) -> float:
    """The median of the ratios of each round: what the machine did in one round divides out."""
    return statistics.median(a / b for a, b in zip(ours.values, theirs.values, strict=True))


def number(value: float) -> str:
    """A figure with three digits that matter, and commas."""
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(line: list[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), "  ".join("-" * width for width in widths), *map(text, lines[1:])])


def setting(*distributions: str) -> str:
    """What was measured on: Python and the versions of the given distributions."""
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    return f"Python {platform.python_version()}, {versions}"


def as_json(setting_text: str, rows: Mapping[str, Mapping[str, Series]], goals: Sequence[Goal]) -> str:
    """The same figures for a program: `measures` -> measure -> system -> median, low, high, and `goals`."""
    measures = {
        measure: {name: series.as_json() for name, series in systems.items()}
        for measure, systems in rows.items()
    }
    body = {"setting": setting_text, "measures": measures, "goals": [goal.as_json() for goal in goals]}
    return json.dumps(body, indent=2)
