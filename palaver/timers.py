"""Timers, as callers see them: setting, listing and cancelling messages that are to come later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import evolve, field, frozen
from sqlite_utils import Database

from actors.errors import InvalidInput
from actors.greenlet import GreenletFuture
from actors.messages import TimerEnded
from actors.services import Services
from persistence import dormant
from persistence import timers as stored
from persistence.records import TimerInfo
from persistence.timers import NewTimer

MOST_S = 1e10  # more than three centuries
SHORTEST_PERIOD_S = 0.001


@frozen
class Timer:
    """A timer that was set: a message that comes to `conversation_id` at `due_at`, in seconds since the Unix
    epoch, and every `every_s` seconds from then on where that is not None.

    Letting go of it changes nothing. `Runtime.timers` lists what is pending.
    """

    id: int
    conversation_id: int
    due_at: float
    every_s: float | None = None
    _cancel: Callable[[int], bool] = field(repr=False, eq=False, kw_only=True)

    def cancel(self) -> bool:
        """As `Runtime.cancel_timer`."""
        return self._cancel(self.id)


def new_timer(
    services: Services, seconds: float, content: str, said_by: str, key: str | None, every_s: float | None
) -> NewTimer:
    """The wish for a timer that is due in so many seconds."""
    now = services.clock.wall()
    return NewTimer(said_by, content, key, now + seconds, every_s, now)


def check_seconds(value: object, what: str, least: float = 0.0) -> float:
    """`value` as a number of seconds.

    Raises:
        InvalidInput: it is none, or too small or large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST_S:
        raise InvalidInput(f"{what} must be a number of seconds from {least:g} to {MOST_S:g}, not {value!r}")
    return float(value)


def check_id(value: object, what: str = "timer") -> int:
    """`value` as an id; InvalidInput if it is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"a {what} is named by its id, a whole number, not by {value!r}")
    return value


def listed(services: Services, conversation_id: int | None, handle: str | None) -> list[TimerInfo]:
    """The timers of a conversation, or all of them; the one that is due first comes first. Blocks the
    calling greenlet.

    Args:
        handle: of the conversation's session, None for a tmp chat.
    """
    known, live = services.timers, services.directory.conversations
    found: list[TimerInfo] = []
    for chat, timers in known.chats.items():
        if conversation_id in (None, chat) and chat in live:
            found += timers.values()
    if conversation_id is None or handle is not None:
        of_file, passive = services.store.call(partial(_of_file, handle=handle))
        ids = passive | {state.handle: state.id for state in live.values() if state.handle is not None}
        for timer in of_file:
            place = timer.handle or ""
            held = known.holds(timer.due_at, place)
            found.append(evolve(timer, conversation_id=ids.get(place), held=held))
    return sorted(found, key=lambda timer: (timer.due_at, timer.id))


def _of_file(db: Database, handle: str | None) -> tuple[list[TimerInfo], dict[str, int]]:
    """The stored timers, and the ids of those of their conversations that have left memory, by handle."""
    return stored.list_timers(db, handle), dormant.with_timers(db)


def cancelled(services: Services, timer_id: int) -> bool:
    """Whether a timer was there and does not fire any more. Blocks the calling greenlet."""
    known = services.timers
    if timer_id < 0:
        chat = known.chat_of(timer_id)
        was_there = chat is not None and known.take(chat, timer_id) is not None
        known.tell(TimerEnded(timer_id))
        return was_there and chat in services.directory.conversations
    future: GreenletFuture[bool] = GreenletFuture()

    def ended(found: bool | None, error: BaseException | None) -> None:
        if error is not None:
            future.fail(error)
            return
        if found:  # told here, so that it is told whoever kills the caller
            known.tell(TimerEnded(timer_id))
        future.set(bool(found))

    services.store.submit(partial(stored.cancel, id=timer_id), ended)
    return bool(future.get())
