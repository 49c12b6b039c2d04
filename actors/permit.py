"""A place among the calls of one kind, and the time that may be spent in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent import GreenletExit

from actors.limiter import Limiter, Line
from actors.logs import log
from actors.timelimits import TimeLimit

logger = logging.getLogger("palaver.permit")

CLEAN_UP_S = 5.0  # for what is stopped to end in; what refuses to is left behind


class Permit:
    """What a call of a model or a tool needs: `begin` before it, `end` after it, both in its own greenlet.

    A call whose time is over is stopped as by a cancel: `GreenletExit` is raised where it waits. One that
    does not end then is left behind after `CLEAN_UP_S` seconds, and its place given back.

    Args:
        line: whose call it is; see `Limiter`.
        on_stuck: called, in a greenlet of its own, when the call is left behind.

    Attributes:
        late: its time is over.
        left_behind: and it did not end then.
    """

    __slots__ = (
        "_greenlet",
        "_limit",
        "_limiter",
        "_line",
        "_number",
        "_on_stuck",
        "_over",
        "_under_way",
        "late",
        "left_behind",
    )

    def __init__(
        self, limiter: Limiter, limit: TimeLimit, line: Line, on_stuck: Callable[[], object] | None = None
    ) -> None:
        self.late = False
        self.left_behind = False
        self._limiter = limiter
        self._limit = limit
        self._line = line
        self._on_stuck = on_stuck
        self._greenlet: Any = None
        self._number = 0
        self._under_way = False
        self._over = False

    def begin(self) -> None:
        """Wait for a place; from then on the time counts."""
        self._greenlet = gevent.getcurrent()
        try:
            self._enter(first=False)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """The call is over: give its place back, if it has one."""
        self._over = True
        self._greenlet = None  # it serves others from now on
        self._on_stuck = None  # it refers to who holds this: no cycle that only the collector ends
        self._leave()

    def pause(self, seconds: float) -> None:
        """What `ModelRequest.pause` is: wait, with all further calls of this model, and give the place to
        others meanwhile; then wait for one, before what else this line has waiting. The time of the call
        begins anew."""
        if self.late or not self._under_way:
            raise GreenletExit  # it was stopped
        self._limiter.pause(self._line[0], seconds)
        self._leave()
        self._enter(first=True)

    def leave_behind(self) -> bool:
        """Wait no longer for a call that was stopped; whether it was still under way."""
        if not self._under_way:
            return False
        self.left_behind = True
        model, agent, sender = self._line
        words = "a call refuses to end and is left behind"
        log(logger, logging.WARNING, words, agent=agent, sender=sender, model=model)
        self.end()
        return True

    def _enter(self, *, first: bool) -> None:
        self._limiter.enter(self._line, first=first)
        if self._over:  # meanwhile, if it is another greenlet than the call's that waits here
            self._limiter.leave()
            raise GreenletExit
        self._under_way = True
        self._number = self._limit.begin(self._time_is_up)

    def _leave(self) -> None:
        if self._under_way:
            self._under_way = False
            self._limit.end(self._number)
            self._limiter.leave()

    def _time_is_up(self) -> None:
        """In the hub, while the call is under way."""
        self.late = True
        gevent.spawn_later(CLEAN_UP_S, self._give_up)
        self._greenlet.throw(GreenletExit)

    def _give_up(self) -> None:
        on_stuck = self._on_stuck
        if self.leave_behind() and on_stuck is not None:
            on_stuck()
