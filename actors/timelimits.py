"""Time limits: what takes too long is told so, at the price of two dict operations for what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from persistence.sources import Clock

LEAST_S = 1e-6  # a timer's shortest time: clock and loop need not agree to the last digit


class TimeLimit:
    """One limit for any number of things that go on at once.

    All have the same number of seconds, so whoever began first is due first: a dict in that order and one
    timer do for all of them. The timer looks only when the oldest may be due.

    Args:
        name: its field of `Limits`.
        seconds: how long each may take.
    """

    __slots__ = ("_now", "_number", "_running", "_timer", "_whole", "name", "seconds")

    def __init__(self, name: str, seconds: float, clock: Clock) -> None:
        self.name = name
        self.seconds = seconds
        self._now = clock.monotonic
        self._number = 0
        self._running: dict[int, tuple[float, Callable[[], object]]] = {}
        self._timer: Any = None  # the one that is started
        self._whole: Any = None  # one of `seconds`, used again and again: most that begin alone end soon

    def __str__(self) -> str:
        return f"{self.seconds:,g} s (Limits.{self.name})"

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, on_due: Callable[[], object]) -> int:
        """Something begins; a number for `end`.

        Args:
            on_due: called once in the hub, where nothing may block, if it has not ended in time.
        """
        self._number = number = self._number + 1
        self._running[number] = (self._now() + self.seconds, on_due)
        if self._timer is None:
            self._start_whole()
        return number

    def end(self, number: int) -> None:
        """It has ended; once it was due, this does nothing."""
        self._running.pop(number, None)
        if not self._running and self._timer is not None:
            self._stop_timer()

    def _start_whole(self) -> None:
        timer = self._whole
        if timer is None:
            timer = self._whole = gevent.get_hub().loop.timer(self.seconds, self.seconds)
        self._timer = timer
        timer.again(self._look)

    def _start_timer(self, after_s: float) -> None:
        self._timer = gevent.get_hub().loop.timer(after_s)
        self._timer.start(self._look)

    def _stop_timer(self) -> None:
        self._timer.stop()
        if self._timer is not self._whole:
            self._timer.close()
        self._timer = None

    def _look(self) -> None:
        self._stop_timer()
        now = self._now()
        for number, (at, _) in self._running.items():
            if at > now:
                self._start_timer(max(at - now, LEAST_S))
                return
            # Each by itself: what one raises must not keep the others waiting.
            gevent.get_hub().loop.run_callback(self._fire, number)

    def _fire(self, number: int) -> None:
        found = self._running.pop(number, None)  # None if it has ended since
        if found is not None:
            found[1]()
