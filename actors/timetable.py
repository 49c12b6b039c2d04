"""When timers are due, and in which order their messages come: plain values, no clock and no actor."""

from __future__ import annotations

import heapq
import math
import sys
from collections import deque

from attrs import define, field

from persistence.timers import PendingTimer

Place = str | int  # the handle of a stored session, or the id of a tmp chat

TRY_AGAIN_S = 5.0
MOST_S = 60.0


def next_due(due_at: float, every_s: float | None, now: float) -> float | None:
    """When a timer that fires `now` is due next, None if never again.

    The periods are counted from when it was due: one that fires late keeps its phase, and periods that it
    missed are not made up for.
    """
    if every_s is None:
        return None
    following = due_at + every_s * max(1, math.floor((now - due_at) / every_s) + 1)
    return following if following > now else following + every_s


def try_again_after(failures: int) -> float:
    """Seconds until a message that was refused so many times in a row is offered again."""
    return min(MOST_S, TRY_AGAIN_S * 2.0 ** min(failures - 1, 10))


@define(eq=False)
class Lane:
    """The timers of one conversation that are due. Their messages come one after the other, in that order."""

    place: Place
    agent: str
    due: deque[int] = field(factory=deque)
    failures: int = 0  # in a row, of the first one


@define(eq=False)
class _Entry:
    at: float
    place: Place
    agent: str
    due: bool = False


class Timetable:
    """All pending timers by time. A timer that is due waits in the lane of its conversation until it is
    settled: ended, or due another time."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._heap: list[tuple[float, int]] = []  # entries that moved or went leave what is passed over
        self._lanes: dict[Place, Lane] = {}
        self._again: list[tuple[float, int, Lane]] = []
        self._put_off = 0
        self._counts: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, timer_id: int) -> bool:
        return timer_id in self._entries

    def put(self, timer: PendingTimer) -> None:
        """Add a timer; one that is there stays as it is."""
        if timer.id not in self._entries:
            place = timer.place if isinstance(timer.place, int) else sys.intern(timer.place)
            self._entries[timer.id] = _Entry(timer.due_at, place, sys.intern(timer.agent))
            self._counts[place] = self._counts.get(place, 0) + 1
            self._push(timer.due_at, timer.id)

    def drop(self, timer_id: int) -> None:
        """Forget a timer."""
        entry = self._entries.pop(timer_id, None)
        if entry is None:
            return
        self._counts[entry.place] -= 1
        if not self._counts[entry.place]:
            del self._counts[entry.place]
        self._clean()

    def drop_all_of(self, place: Place) -> None:
        """Forget the timers of a conversation that is gone for good."""
        if place in self._counts:
            for timer_id in [each for each, entry in self._entries.items() if entry.place == place]:
                self.drop(timer_id)

    def next_at(self) -> float | None:
        """When something is to be done next, None if nothing is."""
        while self._heap and not self._is_next(*self._heap[0]):
            heapq.heappop(self._heap)
        times = [heap[0][0] for heap in (self._heap, self._again) if heap]
        return min(times, default=None)

    def due(self, now: float) -> list[Lane]:
        """The lanes that have become ready to fire their first timer, the oldest first."""
        ready: list[Lane] = []
        while self._heap and self._heap[0][0] <= now:
            at, timer_id = heapq.heappop(self._heap)
            if self._is_next(at, timer_id):
                self._join(timer_id, ready)
        while self._again and self._again[0][0] <= now:
            ready.append(heapq.heappop(self._again)[2])
        return ready

    def first(self, lane: Lane) -> int | None:
        """The timer of a lane that is to fire now; None if none is left, and the lane is gone."""
        while lane.due:
            if lane.due[0] in self._entries:
                return lane.due[0]
            lane.due.popleft()
            lane.failures = 0
        self._lanes.pop(lane.place, None)
        return None

    def settle(self, timer_id: int, lane: Lane, due_at: float | None) -> None:
        """The first timer of a lane has fired, or need not: it is due at another time, or ends."""
        if lane.due and lane.due[0] == timer_id:
            lane.due.popleft()
        lane.failures = 0
        entry = self._entries.get(timer_id)
        if due_at is None:
            self.drop(timer_id)
        elif entry is not None:
            entry.at, entry.due = due_at, False
            self._push(due_at, timer_id)

    def put_off(self, lane: Lane, now: float) -> float:
        """The first timer of a lane could not fire: it is tried again after a while. Its seconds."""
        lane.failures += 1
        after = try_again_after(lane.failures)
        self._put_off += 1
        heapq.heappush(self._again, (now + after, self._put_off, lane))
        return after

    def _join(self, timer_id: int, ready: list[Lane]) -> None:
        entry = self._entries[timer_id]
        entry.due = True
        lane = self._lanes.get(entry.place)
        if lane is None:
            lane = self._lanes[entry.place] = Lane(entry.place, entry.agent)
            ready.append(lane)
        lane.due.append(timer_id)

    def _push(self, at: float, timer_id: int) -> None:
        heapq.heappush(self._heap, (at, timer_id))
        self._clean()

    def _clean(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + 1_000:  # mostly of timers that are gone
            self._heap = [(e.at, id_) for id_, e in self._entries.items() if not e.due]
            heapq.heapify(self._heap)

    def _is_next(self, at: float, timer_id: int) -> bool:
        entry = self._entries.get(timer_id)
        return entry is not None and entry.at == at and not entry.due
