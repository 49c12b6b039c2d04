"""What one simulated run gives: figures, curves over virtual time, and what was violated."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from palaver.simulation.workload import Workload


@frozen
class Sample:
    """What was seen at one virtual instant.

    Args:
        at_s: virtual seconds since the run began.
        done: turns that had ended by then, in all.
        queued: messages that were accepted and had not begun.
        running: turns that had begun and had not ended.
        model_calls: calls that the provider was answering.
        model_waiting: calls that waited, for a slot of the host's limit or of the provider's.
        live: conversations in memory.
        bytes: what their histories took, in bytes as the runtime counts them.
    """

    at_s: float
    done: int
    queued: int
    running: int
    model_calls: int
    model_waiting: int
    live: int
    bytes: int = 0


@frozen
class Act:
    """One thing that a workload has planned: a step of a sender, or a fault. What shrinking takes away.

    Args:
        number: its place in the plan of its seed; stays the same when others are taken away.
        who: the sender, or "world" for a fault.
        what: `send`, `steer`, `cancel`, `switch`, `compact`, `close`, `remember`, `crash`, `disk full`, ...
        at_s: for a fault or an arrival, virtual seconds since the run began; for any other step, the seconds
            that its sender thinks before it.
        facts: what else was drawn for it: characters, topic, how long a fault lasts.
    """

    number: int
    who: str
    what: str
    at_s: float
    facts: Mapping[str, object] = field(factory=dict)


@frozen
class Violation:
    """A guarantee that did not hold.

    Args:
        guarantee: its number in docs/reliability.md.
        words: what was seen.
        at_s: virtual seconds since the run began.
        last: the last lines of the trace before it.
        acts: those that were begun before it, each `at_s` the virtual seconds at which it was; `shrink` makes
            them fewer.
        again: the command that shows it again.
    """

    guarantee: int
    words: str
    at_s: float
    last: Sequence[str] = ()
    acts: Sequence[Act] = ()
    again: str = ""


@frozen
class Outcome:
    """One workload, lived through on one seed.

    Args:
        workload: what was asked for.
        seed: what everything was drawn from.
        virtual_s: virtual seconds from the first message to the last end of a turn.
        real_s: seconds that it took; 0.0 where nobody measured.
        turns: how many ended, by state: done, failed, cancelled, closed.
        refused: messages that were refused, by the name of the error.
        latency_s: of each turn that ended done, virtual seconds from being sent to its result, ascending.
        wait_s: of each such turn, virtual seconds from being sent until a provider began its first answer,
            ascending.
        samples: at even distances over virtual time.
        model_calls: answers that a provider began.
        model_errors: those that failed, by kind.
        tool_calls: calls of tools.
        commits: of the database.
        crashes: of the process.
        most_live: conversations in memory at once, at most.
        violation: the first guarantee that did not hold, or None.
    """

    workload: Workload
    seed: int
    virtual_s: float
    real_s: float = field(eq=False)
    turns: Mapping[str, int]
    refused: Mapping[str, int]
    latency_s: array[float]
    wait_s: array[float]
    samples: Sequence[Sample]
    model_calls: int = 0
    model_errors: Mapping[str, int] = field(factory=dict)
    tool_calls: int = 0
    commits: int = 0
    crashes: int = 0
    most_live: int = 0
    violation: Violation | None = None

    @property
    def done(self) -> int:
        """Turns that ended done."""
        return self.turns.get("done", 0)

    @property
    def throughput(self) -> float:
        """Turns that ended done, a virtual second."""
        return self.done / self.virtual_s if self.virtual_s else 0.0


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 of the values do not exceed (nearest rank); 0.0 of
    none."""
    if not ascending:
        return 0.0
    rank = max(1, -(-len(ascending) * percent // 100))
    return ascending[min(len(ascending), int(rank)) - 1]
