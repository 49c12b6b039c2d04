"""The calls of a runtime that look at what is live and what is stored."""

from __future__ import annotations

from functools import partial

import gevent
import gevent.event

from actors.events import Event
from actors.feed import EventStream
from actors.messages import (
    DeleteSession,
    FindActive,
    FindConversation,
    PlaceGone,
)
from actors.opening import take_session
from actors.state import (
    ConversationInfo,
    ConversationSnapshot,
    ConversationState,
)
from actors.text import check_text
from palaver.asking import NAME_CHARS
from palaver.later import Later
from palaver.stats import Stats, gather
from persistence import sessions, turns
from persistence.records import (
    HistoryEntry,
    SessionSummary,
    TurnRow,
)

LISTING_BURST = 2_000  # conversations listed before others get their turn: some 5 ms


class Looking(Later):
    """The part of `Runtime` that shows conversations, events, counts and sessions."""

    # -- looking -----------------------------------------------------------------------------------

    def list_active(self) -> list[ConversationInfo]:
        """All live conversations, in the order in which they became live. Asks no conversation.

        Up to 2,000 are listed at one moment, and nothing else runs meanwhile. What is more is listed 2,000 at
        a time, and greenlets, timers and sockets get their turn in between: each line is of a conversation
        that is live when its part is listed; none is there twice, none is missing that is live throughout,
        and none is there that became live after the listing had begun.
        """
        self._owner.check()
        infos: list[ConversationInfo] = []
        find = self._conversations.get
        ids = list(self._conversations)
        for first in range(0, len(ids), LISTING_BURST):
            if first:
                _give_way()
            now = self._clock.monotonic()
            part = map(find, ids[first : first + LISTING_BURST])
            infos += [state.line(now) for state in part if state is not None]
        return infos

    def conversation(self, cid: int) -> ConversationSnapshot | None:
        """A conversation as it is now, or None if there is none of this id. Does not wait for a turn. One
        that has left memory is read from the database, and stays there."""
        self._owner.check()
        state = self._conversations.get(cid)
        if state is None and self._services.directory.passive and isinstance(cid, int):
            return self._passive_snapshot(cid)
        return None if state is None else state.snapshot(self._clock)

    def _passive_snapshot(self, cid: int) -> ConversationSnapshot | None:
        """A conversation that has left memory, as it is stored; it stays where it is."""
        handle = self._ask_registry(FindConversation(cid))
        if handle is None:  # it has come back meanwhile, or there never was one
            state = self._conversations.get(cid)
            return None if state is None else state.snapshot(self._clock)
        session = self._job(partial(sessions.load_session, handle=handle))
        summary = session.summary
        state = ConversationState(cid, summary.agent, summary.sender, summary.topic, self._clock.monotonic())
        take_session(state, session)
        state.pass_to("idle")
        return state.snapshot(self._clock)

    def conversations(self) -> list[int]:
        """The ids of all live conversations, in the order in which they became live."""
        self._owner.check()
        return list(self._conversations)

    def conversation_count(self) -> int:
        """How many conversations are live."""
        self._owner.check()
        return len(self._conversations)

    def conversation_id(self, agent: str, sender: str, *, topic: str | None = None) -> int | None:
        """The pair's active conversation, or None; in constant time, and makes nothing.

        Args:
            topic: the conversation of the topic with this title instead, if it is live.
        """
        self._owner.check()
        if topic is not None:
            return self._services.directory.topic(agent, sender, topic)
        active = self._services.directory.active(agent, sender)
        if active is None and self._services.directory.passive and self._refusal is None:
            active = self._ask_registry(FindActive(agent, sender))
        return active

    def subscribe(self, cid: int | None = None) -> EventStream[tuple[ConversationInfo, Event]]:
        """All conversations' events from now on, as (info, event); close it when done.

        A reader that falls `limits.event_buffer` behind gets `Lagged`. It ends with the runtime. An incident
        that is no conversation's comes with an info whose id is 0.

        Args:
            cid: only this conversation's events. It does not leave memory as long as somebody reads them.
        """
        self._check_open()
        if cid is not None:
            self._ref(cid)
        return self._services.directory.subscribe(cid)

    def stats(self) -> Stats:
        """Counts of this runtime, now."""
        self._owner.check()
        return gather(self._services, closing_down=self._refusal is not None)

    # -- stored sessions ---------------------------------------------------------------------------

    def sessions(
        self, agent: str | None = None, sender: str | None = None, topic: str | None = None
    ) -> list[SessionSummary]:
        """Stored sessions, newest first, filtered by what is given."""
        for what, value in (("the agent", agent), ("the sender", sender), ("the topic", topic)):
            if value is not None:
                check_text(value, what=what, empty=True)
        return self._job(partial(sessions.list_sessions, agent=agent, sender=sender, topic=topic))

    def transcript(self, handle: str) -> list[HistoryEntry]:
        """Every entry of a stored session, in order, compacted ones included.

        Raises:
            SessionNotFound.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        return self._job(partial(sessions.transcript, handle=handle))

    def delete_session(self, handle: str) -> bool:
        """Delete a stored session; whether it was there. If it is live, its turns are cancelled and it is
        closed first. Its timers go with it. Nothing brings it back: who opens its topic meanwhile or later
        gets a new session.

        Its archives and its topic's entry stay in memory.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        deleted = bool(self._ask_registry(DeleteSession(handle), waits=True))
        if deleted:
            self._services.timers.tell(PlaceGone(handle))
        return deleted

    def turns(self, handle: str) -> list[TurnRow]:
        """The journal of a stored session: every accepted message with its state and result, by id.

        Raises:
            SessionNotFound.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        return self._job(partial(turns.turns_of_handle, handle=handle))


def _give_way() -> None:
    """Let whatever is due run. gevent looks at its clock and at sockets after fifty callbacks, and what goes
    on after a `sleep(0)` is one: fifty parts of work with it in between hold timers up as one would."""
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)
