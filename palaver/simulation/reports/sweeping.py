"""What a sweep shows: figures for each value, and where the knee is."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from palaver.simulation.reports.knee import FLAT, knee
from palaver.simulation.reports.numbers import listed, number, percent, seconds
from palaver.simulation.reports.summary import Summary, summary
from palaver.simulation.reports.words import piles_up
from palaver.simulation.runs import Sweep

METHOD = (
    "Kneedle: Satopaa, Albrecht, Irwin and Raghavan, \"Finding a 'Kneedle' in a Haystack: Detecting Knee "
    'Points in System Behavior", ICDCS Workshops 2011; sensitivity 1, no smoothing'
)
NEARLY = 0.95


@frozen
class Knee:
    """Where a curve of a sweep turns.

    Args:
        of: `throughput` or `latency p95`: the curve.
        place: of the value, among those of the sweep.
        value: the value.
    """

    of: str
    place: int
    value: Any


@frozen
class Swept:
    """A sweep in figures.

    Args:
        key: the setting.
        values: of it, in ascending order if they are numbers.
        summaries: for each.
        knee: of the throughput; if that has none, of the latency; else None.
        words: the answer, in sentences.
    """

    key: str
    values: tuple[Any, ...]
    summaries: tuple[Summary, ...]
    knee: Knee | None
    words: tuple[str, ...]

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, so that they have a distance."""
        return numeric(self.values)


def numeric(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def in_figures(sweep: Sweep) -> Swept:
    """The figures of a sweep, in ascending order of its values."""
    points = [*sweep.points]
    if numeric(tuple(point.value for point in points)):
        points.sort(key=lambda point: point.value)
    values = tuple(point.value for point in points)
    summaries = tuple(summary(point.outcomes) for point in points)
    found = _knee(values, summaries)
    words = _words(sweep.key, values, summaries, found)
    piling = [str(point.value) for point in points if any(map(piles_up, point.outcomes))]
    if piling:
        words += (
            f"At {listed(piling)} work piled up for as long as messages came: more came than could be done, "
            "and latencies there grow with the length of the run.",
        )
    return Swept(sweep.key, values, summaries, found, words)


def _knee(values: tuple[Any, ...], summaries: tuple[Summary, ...]) -> Knee | None:
    if not numeric(values) or len(set(values)) < len(values):
        return None
    curves = {
        "throughput": [each.throughput for each in summaries],
        "latency p95": [each.latency.p95 for each in summaries],
    }
    for of, ys in curves.items():
        place = knee(values, ys)
        if place is not None:
            return Knee(of, place, values[place])
    return None


def _words(
    key: str, values: tuple[Any, ...], summaries: tuple[Summary, ...], found: Knee | None
) -> tuple[str, ...]:
    if not summaries:
        return ()
    rates = [each.throughput for each in summaries]
    best = max(range(len(rates)), key=rates.__getitem__)
    least, most = min(rates), rates[best]
    if most - least <= FLAT * most:
        words = [
            f"Throughput hardly depends on {key}: it is {number(least)} to {number(most)} turns/s at all "
            "values."
        ]
    else:
        words = [
            f"Throughput is {number(rates[0])} turns/s at {key} = {values[0]}, at most {number(most)} at "
            f"{values[best]}, and {number(rates[-1])} at {values[-1]}."
        ]
    return (*words, _about_latency(key, values, summaries), _about_knee(key, values, summaries, found))


def _about_latency(key: str, values: tuple[Any, ...], summaries: tuple[Summary, ...]) -> str:
    p95s = [each.latency.p95 for each in summaries]
    low, high = (choose(range(len(p95s)), key=p95s.__getitem__) for choose in (min, max))
    return (
        f"Latency p95 is least at {key} = {values[low]} with {seconds(p95s[low])} "
        f"(p50 {seconds(summaries[low].latency.p50)}), and most at {values[high]} with {seconds(p95s[high])} "
        f"(p50 {seconds(summaries[high].latency.p50)})."
    )


def _about_knee(key: str, values: tuple[Any, ...], summaries: tuple[Summary, ...], found: Knee | None) -> str:
    if found is None:
        return f"No knee: {_why_none(values, summaries)}."
    at = summaries[found.place]
    most = max(each.throughput for each in summaries)
    share = at.throughput / most if most else 1.0
    return (
        f"The knee of {found.of} is at {key} = {found.value}: there it is {number(at.throughput)} turns/s, "
        f"{percent(share)} of the most seen, with latency p50 {seconds(at.latency.p50)} and p95 "
        f"{seconds(at.latency.p95)}."
    )


def _why_none(values: tuple[Any, ...], summaries: tuple[Summary, ...]) -> str:
    if not numeric(values):
        return "the values are no numbers"
    if len(values) < 3:
        return "it takes three values or more to see one"
    rates = [each.throughput for each in summaries]
    p95s = [each.latency.p95 for each in summaries]
    if all(max(ys) - min(ys) <= FLAT * max(ys) for ys in (rates, p95s)):
        return "neither throughput nor latency p95 changes by more than a tenth"
    if rates[-1] == max(rates) and rates[-1] > (1 + FLAT) * rates[-2]:
        return f"throughput still grows at {values[-1]}; higher values may show it"
    return "neither throughput nor latency p95 bends clearly between these values; more values may show it"
