"""How a timer fires: its message goes to its conversation, and that it fired is stored with the message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.errors import KeyReused
from actors.logs import log
from actors.messages import LoadSession, Submit, TimerTried, Wake
from actors.services import Services
from actors.ticket import Ticket
from actors.timetable import Lane, next_due
from persistence import timers
from persistence.errors import SessionNotFound, TimerGone
from persistence.records import TimerInfo
from persistence.writes import TimerUpdate

logger = logging.getLogger("palaver.timers")


def fire(services: Services, lane: Lane, timer_id: int, report: Callable[[TimerTried], None]) -> None:
    """Fire a timer, and report what came of it. Runs in a greenlet of its own; whatever goes wrong, the timer
    is as it was, or has fired."""
    try:
        if isinstance(lane.place, str):
            due_at = _fire_stored(services, lane.place, timer_id)
        else:
            due_at = _fire_of_chat(services, lane.place, timer_id)
    except SessionNotFound:
        report(TimerTried(lane, timer_id))  # its timers went with it
    except Exception as error:
        report(TimerTried(lane, timer_id, error=error))
    except BaseException as error:  # killed
        report(TimerTried(lane, timer_id, error=error))
        raise
    else:
        report(TimerTried(lane, timer_id, due_at))


def _fire_stored(services: Services, handle: str, timer_id: int) -> float | None:
    """When the timer is due next. The file decides: a timer that is not due there does not fire."""
    timer = _read(services, timer_id)
    now = services.clock.wall()
    if timer is None:
        return None
    if timer.due_at > now:  # an earlier try was stored, but its answer was lost
        return timer.due_at
    following = next_due(timer.due_at, timer.every_s, now)
    try:
        _submit(services, _awake(services, handle), timer, TimerUpdate(timer_id, timer.due_at, following))
    except TimerGone:
        timer = _read(services, timer_id)
        return None if timer is None else timer.due_at
    return following


def _fire_of_chat(services: Services, chat: int, timer_id: int) -> float | None:
    if chat not in services.directory.conversations:
        services.timers.chats.pop(chat, None)
        return None
    timer = services.timers.take(chat, timer_id)  # a cancel from now on comes too late
    if timer is None:
        return None
    now = services.clock.wall()
    following = next_due(timer.due_at, timer.every_s, now)
    kept: float | None = timer.due_at
    try:
        _submit(services, chat, timer, None)
        kept = following
    finally:
        if kept is not None:
            services.timers.put_back(chat, timer, kept)
    return following


def _read(services: Services, timer_id: int) -> TimerInfo | None:
    return services.store.call(partial(timers.get, id=timer_id))


def _awake(services: Services, handle: str) -> int:
    """The id of a session's conversation, opened if need be; not waited for longer than for any answer."""
    registry, timeout = services.registry, services.limits.ask_timeout_s
    assert registry is not None
    opened: Any = registry.ask(LoadSession(handle), timeout=timeout)  # a future
    return int(opened.get(timeout=timeout))


def _submit(services: Services, conversation_id: int, timer: TimerInfo, update: TimerUpdate | None) -> None:
    """Hand the message over, and wait until it is accepted, and that the timer fired stored with it."""
    ticket = Ticket(
        next(services.turn_ids), conversation_id, timer.content, sender=timer.said_by, key=timer.key
    )
    ticket.timer = update
    assert services.registry is not None
    services.registry.tell(Wake(conversation_id, (Submit(ticket),)))
    try:
        ticket.wait_accepted(services.limits.ask_timeout_s)
    except KeyReused as error:
        # What the key stands for came instead; that the timer ended is stored with finding so.
        state = services.directory.conversations.get(conversation_id)
        log(logger, logging.ERROR, "a timer's message did not come", state, timer=timer.id, reason=error)
