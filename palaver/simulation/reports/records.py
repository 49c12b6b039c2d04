"""The report for programs: JSON with keys that stay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from palaver import __version__
from palaver.simulation.outcome import Outcome, Sample, Violation
from palaver.simulation.reports.guarantees import GUARANTEES
from palaver.simulation.reports.summary import Spread, Summary, summary
from palaver.simulation.reports.sweeping import in_figures
from palaver.simulation.runs import Sweep

FORMAT = 1
_DIGITS = 6


def report_json(
    results: Sequence[Outcome] | Sweep, *, checked: bool = True, planned: int | None = None
) -> str:
    """One JSON object about runs; docs/simulation.md has its keys.

    Args:
        results: outcomes of one workload, one for each seed; or a sweep.
        checked: whether the guarantees were checked.
        planned: runs that were wanted, if some have not ended.
    """
    outcomes = results.outcomes if isinstance(results, Sweep) else [*results]
    found = {
        "format": FORMAT,
        "palaver": __version__,
        "workload": outcomes[0].workload.name if outcomes else "",
        "planned": len(outcomes) if planned is None else planned,
        "checked": checked,
        "violations": sum(each.violation is not None for each in outcomes),
        "together": _figures(summary(outcomes)) if outcomes else None,
        "sweep": _sweep(results) if isinstance(results, Sweep) else None,
        "runs": [] if isinstance(results, Sweep) else [*map(_run, outcomes)],
    }
    return json.dumps(found, ensure_ascii=False, indent=2, default=str) + "\n"


def _sweep(results: Sweep) -> dict[str, Any]:
    swept = in_figures(results)
    knee = None if swept.knee is None else {"of": swept.knee.of, "value": swept.knee.value}
    runs = {repr(point.value): point.outcomes for point in results.points}
    points = [
        {"value": value, "together": _figures(one), "runs": [*map(_run, runs[repr(value)])]}
        for value, one in zip(swept.values, swept.summaries, strict=True)
    ]
    return {"key": swept.key, "knee": knee, "points": points, "words": [*swept.words]}


def _run(outcome: Outcome) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        **_figures(summary([outcome])),
        "violation": None if outcome.violation is None else _violation(outcome.violation),
        "samples": _samples(outcome.samples),
    }


def _figures(one: Summary) -> dict[str, Any]:
    return {
        "turns": one.turns,
        "refused": one.refused,
        "throughput": _rounded(one.throughput),
        "results": one.results,
        "latency_s": _spread(one.latency),
        "wait_s": _spread(one.wait),
        "model_calls": one.model_calls,
        "model_errors": one.model_errors,
        "tool_calls": one.tool_calls,
        "commits": one.commits,
        "crashes": one.crashes,
        "most_live": one.most_live,
        "virtual_s": _rounded(one.virtual_s),
        "real_s": _rounded(one.real_s),
        "turns_per_real_s": _rounded(one.speed),
    }


def _spread(spread: Spread) -> Mapping[str, float]:
    return {name: _rounded(value) for name, value in attrs.asdict(spread).items()}


def _samples(samples: Iterable[Sample]) -> Mapping[str, list[float]]:
    names = [each.name for each in attrs.fields(Sample)]
    rows = [*samples]
    return {name: [getattr(each, name) for each in rows] for name in names}


def _violation(violation: Violation) -> dict[str, Any]:
    return {
        "guarantee": violation.guarantee,
        "promised": GUARANTEES.get(violation.guarantee, ""),
        "words": violation.words,
        "at_s": violation.at_s,
        "acts": [attrs.asdict(act) for act in violation.acts],
        "last": [*violation.last],
        "again": violation.again,
    }


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
