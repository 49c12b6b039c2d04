"""The timer actor: fires what is due, the messages of one conversation one after the other."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import Any

import gevent

from actors.firing import fire
from actors.greenlet import GreenletActor
from actors.logs import log
from actors.messages import (
    AgentArrived,
    PlaceGone,
    TimerEnded,
    TimersDue,
    TimersPut,
    TimersRead,
    TimersReleased,
    TimerTried,
)
from actors.services import Services
from actors.storage import notify
from actors.timetable import TRY_AGAIN_S, Lane, Timetable
from persistence import timers
from persistence.errors import DatabaseFailed
from persistence.timers import PendingTimer

logger = logging.getLogger("palaver.timers")

MOST_AT_ONCE = 100  # timers that fire, so that many that are due do not hold up everything else
LOOK_AGAIN_S = 60.0  # the wall clock may jump, and the machine sleep
READ_AT_ONCE = 10_000


class TimerActor(GreenletActor):
    """Knows when each timer is due, by one timer of the event loop, and lets its message come then.

    What a timer says is read when it fires. The file alone decides whether it fires: its next due time, or
    its end, is stored in the transaction of its message's row. So an actor that died is replaced by one that
    reads the file again.
    """

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self._table = Timetable()
        self._ready: deque[Lane] = deque()
        self._firing: dict[int, gevent.Greenlet] = {}
        self._absent: dict[str, list[Lane]] = {}  # due, but their agent is not registered
        self._held: list[PendingTimer] = []
        self._alarm: gevent.Greenlet | None = None
        self._alarm_at = 0.0

    def on_start(self) -> None:
        self._put(tuple(self._services.timers.pending_of_chats()))
        self._read(0)

    def on_death(self, reason: BaseException | None) -> None:
        if self._alarm is not None:
            self._alarm.kill(block=False)
        if reason is None:
            for greenlet in self._firing.values():
                greenlet.kill(block=False)

    def on_receive(self, message: Any) -> Any:
        match message:
            case TimersDue():
                self._alarm = None
                self._look()
            case TimersPut():
                self._put(message.timers)
            case TimerTried():
                self._tried(message)
            case TimerEnded():
                self._table.drop(message.timer_id)
                self._held = [timer for timer in self._held if timer.id != message.timer_id]
            case PlaceGone():
                self._table.drop_all_of(message.place)
                self._held = [timer for timer in self._held if timer.place != message.place]
            case AgentArrived():
                self._ready.extend(self._absent.pop(message.agent, ()))
            case TimersReleased():
                held, self._held = self._held, []
                self._put(tuple(held))
            case TimersRead():
                self._take(message)
            case _:
                raise TypeError(f"the timer actor does not understand {message!r}")
        self._go_on()
        return None

    # -- what there is -----------------------------------------------------------------------------

    def _read(self, after: int) -> None:
        ref = self.actor_ref
        self._services.store.submit(
            partial(timers.pending, after=after, at_most=READ_AT_ONCE),
            lambda found, error: notify(ref, TimersRead(tuple(found or ()), error)),
        )

    def _take(self, message: TimersRead) -> None:
        if message.error is None:
            self._put(message.timers)
            if message.timers:
                self._read(message.timers[-1].id)
        elif not isinstance(message.error, DatabaseFailed) and not self._services.timers.stopping:
            log(logger, logging.ERROR, "the timers could not be read", reason=message.error)
            gevent.spawn_later(TRY_AGAIN_S, self._read, 0)

    def _put(self, found: tuple[PendingTimer, ...]) -> None:
        for timer in found:
            if self._services.timers.holds(timer.due_at, timer.place):
                self._held.append(timer)
            else:
                self._table.put(timer)

    # -- firing ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See what has become due; and forget the timers of tmp chats that are gone."""
        self._ready.extend(self._table.due(self._services.clock.wall()))
        for agent in [each for each in self._absent if self._services.agents.find(each)]:
            self._ready.extend(self._absent.pop(agent))
        known = self._services.timers
        for chat in [each for each in known.chats if each not in self._services.directory.conversations]:
            del known.chats[chat]
            self._table.drop_all_of(chat)

    def _go_on(self) -> None:
        """Fire what is ready, as far as there is room; and have the alarm set for what comes next."""
        while self._ready and len(self._firing) < MOST_AT_ONCE and not self._services.timers.stopping:
            self._fire(self._ready.popleft())
        self._services.timers.pending = len(self._table) + len(self._held)
        self._set_alarm()

    def _fire(self, lane: Lane) -> None:
        timer_id = self._table.first(lane)
        if timer_id is None:
            return
        if self._services.agents.find(lane.agent) is None:
            self._absent.setdefault(lane.agent, []).append(lane)
            return
        report = partial(notify, self.actor_ref)
        self._firing[timer_id] = gevent.spawn(fire, self._services, lane, timer_id, report)

    def _tried(self, message: TimerTried) -> None:
        self._firing.pop(message.timer_id, None)
        lane = message.lane
        if message.error is None:
            self._table.settle(message.timer_id, lane, message.due_at)
            self._ready.append(lane)
            return
        after = self._table.put_off(lane, self._services.clock.wall())
        log(
            logger,
            logging.WARNING,
            "a timer could not fire and is tried again",
            agent=lane.agent,
            timer=message.timer_id,
            place=lane.place,
            again_in_s=after,
            reason=message.error,
        )

    def _set_alarm(self) -> None:
        now, at = self._services.clock.wall(), self._table.next_at()
        if at is None and not self._absent and not self._services.timers.chats:
            return
        at = min(now + LOOK_AGAIN_S, now + LOOK_AGAIN_S if at is None else at)
        if self._services.timers.stopping or (self._alarm is not None and self._alarm_at <= at):
            return
        if self._alarm is not None:
            self._alarm.kill(block=False)
        self._alarm_at = at
        self._alarm = gevent.spawn_later(max(0.0, at - now), notify, self.actor_ref, TimersDue())
