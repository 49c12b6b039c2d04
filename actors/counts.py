"""What a runtime counts as it happens: looking costs the same, whatever the number of conversations."""

from __future__ import annotations

from bisect import bisect_left
from math import inf

from attrs import define, field, frozen

from persistence.records import TurnState

PHASES = ("opening", "idle", "running", "closing", "parked")
ENDS: tuple[TurnState, ...] = ("done", "failed", "cancelled", "closed")
TURN_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


@frozen
class Durations:
    """How long things took.

    `counts[i]` of them took more than `bounds[i - 1]` seconds and at most `bounds[i]`; the last of `counts`
    took more than all bounds. `sum_s` is the seconds of all together.
    """

    bounds: tuple[float, ...] = TURN_SECONDS
    counts: tuple[int, ...] = (0,) * (len(TURN_SECONDS) + 1)
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def since(self, before: Durations) -> Durations:
        """Those that came after `before`."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Durations(self.bounds, counts, self.sum_s - before.sum_s)

    def within(self, share: float) -> float | None:
        """The smallest bound that this share of them kept to, in seconds: infinity if it is more than all
        bounds; None if there were none."""
        wanted, so_far = share * self.count, 0
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            so_far += count
            if so_far and so_far >= wanted:
                return bound
        return None


@define(eq=False)
class TurnTimes:
    """Durations while they are being counted."""

    _bounds: tuple[float, ...] = TURN_SECONDS
    _counts: list[int] = field(factory=lambda: [0] * (len(TURN_SECONDS) + 1))
    _sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def now(self) -> Durations:
        """What was counted so far."""
        return Durations(self._bounds, tuple(self._counts), self._sum_s)


@define(eq=False)
class Counts:
    """The counts of one runtime. Conversations and tickets report each change of their state here; nobody
    passes over them to count.

    Args:
        opened_at: the runtime's monotonic clock at its start.

    Attributes:
        phases: conversations in the directory, by state.
        waiting: when each queued turn was accepted, by turn id; the seconds of its wall clock.
        running: turns that run.
        accepted: turns and steers accepted since the start.
        brought_back: those that an earlier process or another runtime had accepted.
        steered: steers that were put into a running turn, and end with it.
        ended: turns that reached a terminal state, by state.
        most_queued: the most that ever waited in one conversation, and the most turns that one sender ever
            had accepted and not done.
        lagged: events that readers missed.
        took: how long turns ran, from the beginning to the commit of the end.
    """

    opened_at: float = 0.0
    phases: dict[str, int] = field(factory=lambda: dict.fromkeys(PHASES, 0))
    waiting: dict[int, float] = field(factory=dict)
    running: int = 0
    accepted: int = 0
    brought_back: int = 0
    steered: int = 0
    ended: dict[str, int] = field(factory=lambda: dict.fromkeys(ENDS, 0))
    most_queued: dict[str, int] = field(factory=lambda: {"conversation": 0, "sender": 0})
    lagged: int = 0
    took: TurnTimes = field(factory=TurnTimes)
    _in_order: bool = field(default=True, init=False)  # whether `waiting` is in the order of its times
    _latest: float = field(default=0.0, init=False)

    # -- conversations -----------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """A conversation of this state came into the directory."""
        self.phases[phase] = self.phases.get(phase, 0) + 1

    def leave(self, phase: str) -> None:
        """A conversation of this state left the directory."""
        self.phases[phase] -= 1

    # -- turns that are accepted and have not ended ------------------------------------------------

    def hold(self, turn_id: int, state: TurnState, accepted_at: float) -> None:
        """A turn of this state is counted from now on."""
        if state == "queued":
            if not self.waiting:
                self._in_order, self._latest = True, accepted_at
            elif accepted_at < self._latest:
                self._in_order = False
            else:
                self._latest = accepted_at
            self.waiting[turn_id] = accepted_at
        elif state == "running":
            self.running += 1

    def release(self, turn_id: int, state: TurnState) -> None:
        """A turn of this state is not counted any more."""
        if state == "queued":
            del self.waiting[turn_id]
        elif state == "running":
            self.running -= 1

    def oldest_waiting(self) -> float | None:
        """When the turn that has waited longest was accepted. Looks at all that wait only after one came
        that was older than what waited already: brought back, or under a clock that was put back."""
        if self._in_order:
            return next(iter(self.waiting.values()), None)
        return min(self.waiting.values(), default=None)
