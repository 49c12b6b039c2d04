"""What all parts of a runtime know of its timers: the actor that fires them, those of tmp chats, which are
stored nowhere, and which are held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pykka
from attrs import define, evolve, field

from actors.messages import TimersPut, TimersReleased
from actors.storage import notify
from persistence.records import TimerInfo
from persistence.timers import NewTimer, PendingTimer, TimerSet


@define(eq=False)
class KnownTimers:
    """Shared by one runtime's parts.

    Attributes:
        actor: who fires them; None before it is started.
        pending: how many there are, stored ones and those of tmp chats.
        chats: the timers of each tmp chat, by its id and theirs. Theirs count down from -1, so that they are
            never those of stored timers.
        held_before: timers that were due before this time do not fire, because the runtime was opened with
            `recover="hold"` then; None if it was not.
        released: sessions whose timers are held no more.
        stopping: whether the runtime is shutting down, and no timer fires any more.
    """

    actor: pykka.ActorRef[Any] | None = None
    pending: int = 0
    chats: dict[int, dict[int, TimerInfo]] = field(factory=dict)
    held_before: float | None = None
    released: dict[str, None] = field(factory=dict)
    stopping: bool = False
    _ids: Iterator[int] = field(factory=lambda: itertools.count(-1, -1))

    def tell(self, message: object) -> None:
        """Tell the actor, if there is one. One that is started later reads the file, and this."""
        if self.actor is not None:
            notify(self.actor, message)

    def holds(self, due_at: float, place: str | int) -> bool:
        """Whether a timer is held."""
        return (
            self.held_before is not None
            and due_at < self.held_before
            and isinstance(place, str)
            and place not in self.released
        )

    def release(self, handle: str | None) -> None:
        """Let timers fire that are held: those of a session, or all."""
        if handle is None:
            self.held_before = None
        else:
            self.released[handle] = None
        self.tell(TimersReleased())

    # -- tmp chats ---------------------------------------------------------------------------------

    def add(self, chat: int, agent: str, sender: str, new: NewTimer, most: int) -> TimerSet:
        """Set a timer of a tmp chat, unless it has `most` already or the key is another one's."""
        timers = self.chats.setdefault(chat, {})
        if new.key is not None:
            for timer in timers.values():
                if timer.key == new.key:
                    same = timer.content == new.content
                    return TimerSet("known", timer) if same else TimerSet("key reused")
        if len(timers) >= most:
            return TimerSet("full")
        info = TimerInfo(
            next(self._ids),
            agent,
            sender,
            None,
            None,
            new.said_by,
            new.content,
            new.due_at,
            new.every_s,
            new.key,
            new.created_at,
            chat,
        )
        timers[info.id] = info
        return TimerSet("stored", info)

    def adopt(self, timer: TimerInfo) -> None:
        """Take over a timer of a tmp chat that has come from another runtime, under an id of this one."""
        assert timer.conversation_id is not None
        moved = evolve(timer, id=next(self._ids))
        self.chats.setdefault(timer.conversation_id, {})[moved.id] = moved

    def take(self, chat: int, timer_id: int) -> TimerInfo | None:
        """Take a timer out of a tmp chat; None if it is not there."""
        timers = self.chats.get(chat, {})
        timer = timers.pop(timer_id, None)
        if not timers:
            self.chats.pop(chat, None)
        return timer

    def put_back(self, chat: int, timer: TimerInfo, due_at: float) -> None:
        """Put a timer that was taken back, due at `due_at`."""
        self.chats.setdefault(chat, {})[timer.id] = evolve(timer, due_at=due_at)
        self.tell(TimersPut((PendingTimer(timer.id, due_at, chat, timer.agent),)))  # to one that restarted

    def chat_of(self, timer_id: int) -> int | None:
        """The tmp chat that has this timer."""
        return next((chat for chat, timers in self.chats.items() if timer_id in timers), None)

    def pending_of_chats(self) -> Iterator[PendingTimer]:
        """When each timer of a tmp chat is due."""
        for chat, timers in self.chats.items():
            for timer in timers.values():
                yield PendingTimer(timer.id, timer.due_at, chat, timer.agent)
