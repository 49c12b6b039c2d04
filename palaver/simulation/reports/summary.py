"""The figures of one run, or of several taken together."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from palaver.simulation.outcome import Outcome, percentile

STATES = ("done", "failed", "cancelled", "closed")


@frozen
class Spread:
    """How values are spread, in their unit; all 0.0 of none. Percentiles are by nearest rank."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@frozen
class Summary:
    """What one run was like, or several together: counts are sums, and percentiles those of all their turns.

    Args:
        runs: how many.
        ended: turns, in any state.
        done: turns that ended so.
        refused: messages, by the name of the error.
        throughput: turns that ended done, a virtual second.
        results: turns that ended done while their sender waited for that; steers that became turns, and turns
            whose sender died with its process, have none.
        latency, wait: seconds, of those.
        speed: turns that ended, a real second; 0.0 where nobody measured.
    """

    runs: int
    turns: Mapping[str, int]
    refused: Mapping[str, int]
    virtual_s: float
    real_s: float
    throughput: float
    results: int
    latency: Spread
    wait: Spread
    model_calls: int
    model_errors: Mapping[str, int]
    tool_calls: int
    commits: int
    crashes: int
    most_live: int
    speed: float

    @property
    def done(self) -> int:
        return self.turns.get("done", 0)

    @property
    def ended(self) -> int:
        return sum(self.turns.values())

    @property
    def all_refused(self) -> int:
        return sum(self.refused.values())


def summary(outcomes: Sequence[Outcome]) -> Summary:
    """Of these runs together."""
    turns = {**dict.fromkeys(STATES, 0), **_added(o.turns for o in outcomes)}
    virtual_s, real_s = sum(o.virtual_s for o in outcomes), sum(o.real_s for o in outcomes)
    return Summary(
        runs=len(outcomes),
        turns=turns,
        refused=_added(o.refused for o in outcomes),
        virtual_s=virtual_s,
        real_s=real_s,
        throughput=turns["done"] / virtual_s if virtual_s else 0.0,
        results=sum(len(o.latency_s) for o in outcomes),
        latency=spread(_merged(o.latency_s for o in outcomes)),
        wait=spread(_merged(o.wait_s for o in outcomes)),
        model_calls=sum(o.model_calls for o in outcomes),
        model_errors=_added(o.model_errors for o in outcomes),
        tool_calls=sum(o.tool_calls for o in outcomes),
        commits=sum(o.commits for o in outcomes),
        crashes=sum(o.crashes for o in outcomes),
        most_live=max((o.most_live for o in outcomes), default=0),
        speed=sum(turns.values()) / real_s if real_s else 0.0,
    )


def spread(ascending: Sequence[float]) -> Spread:
    """Of values that ascend."""
    count = len(ascending)
    return Spread(
        mean=sum(ascending) / count if count else 0.0,
        p50=percentile(ascending, 50),
        p90=percentile(ascending, 90),
        p95=percentile(ascending, 95),
        p99=percentile(ascending, 99),
        max=ascending[-1] if count else 0.0,
    )


def latencies(outcomes: Iterable[Outcome]) -> Sequence[float]:
    """Of all turns of these runs that ended done, ascending."""
    return _merged(o.latency_s for o in outcomes)


def waits(outcomes: Iterable[Outcome]) -> Sequence[float]:
    """Of the same turns, the seconds until the model began to answer, ascending."""
    return _merged(o.wait_s for o in outcomes)


def _merged(parts: Iterable[Sequence[float]]) -> Sequence[float]:
    first, *rest = parts
    if not rest:
        return first
    merged = array("d", first)
    for part in rest:
        merged.extend(part)
    return array("d", sorted(merged))


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))
