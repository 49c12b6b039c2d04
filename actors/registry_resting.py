"""How conversations leave memory, and how they come back under the id that callers know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gevent
from sqlite_utils import Database

from actors.conversation import ConversationActor
from actors.errors import ConversationClosed, ConversationParked, MailboxFull
from actors.events import Expired, Overflowed, Passivated
from actors.greenlet import GreenletFuture
from actors.logs import log
from actors.messages import (
    FindConversation,
    ListPassive,
    OpenSession,
    Passivate,
    PassivationRefused,
    PassiveForgotten,
    PassiveFound,
    PassiveStored,
    SessionLookedUp,
    Sweep,
    Wake,
)
from actors.registry_core import Opening, Pair, RegistryCore, Waiter
from actors.state import ConversationState
from actors.storage import notify
from actors.ticket import unknown_conversation
from actors.topics import TopicRouter
from persistence import dormant, sessions
from persistence.dormant import Dormant
from persistence.records import SessionSummary

logger = logging.getLogger("palaver.registry")

MOST_LEAVING = 1_000  # conversations that one sweep asks to leave
SOONEST_SWEEP_S = 1.0


class RegistryResting(RegistryCore):
    """The part of the registry that keeps memory bounded.

    A passive conversation is a row of a temporary table: its id, and its session's handle. Its router is in
    memory as long as another conversation of its pair lives. Whoever asks for the pair or the id waits for
    the database's answer; nobody else does.
    """

    # -- leaving -----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Let what has rested for long leave memory."""
        now, directory, limits = self._services.clock.monotonic(), self._directory, self._services.limits
        for resting, patience in (
            (directory.idle, limits.passivate_after_s),
            (directory.idle_chats, limits.tmp_expires_s),
        ):
            for state in list(islice(resting.values(), MOST_LEAVING)):
                if now - state.idle_since < patience:
                    break
                self._send_away(state)
        unstruck, self._unstruck = self._unstruck, {}
        for conversation_id in unstruck:
            self._forget_passive(conversation_id)
        self._sweep_later()

    def _sweep_later(self) -> None:
        """Wake up when the next conversation has rested for long enough."""
        if self._sweeper is not None:
            self._sweeper.close()
            self._sweeper = None
        if not self._conversations:
            return
        now, directory, limits = self._services.clock.monotonic(), self._directory, self._services.limits
        waits = [limits.passivate_after_s, limits.tmp_expires_s]
        shortest = min(SOONEST_SWEEP_S, *waits)
        for resting, patience in ((directory.idle, waits[0]), (directory.idle_chats, waits[1])):
            first = next(iter(resting.values()), None)
            if first is not None:
                waits.append(first.idle_since + patience - now)
        self._sweeper = gevent.get_hub().loop.timer(max(shortest, min(waits)), ref=False)
        self._sweeper.start(notify, self.actor_ref, Sweep())

    def _send_away(self, state: ConversationState) -> None:
        self._directory.stir(state)
        self._leaving[state.id] = state
        assert state.ref is not None
        notify(state.ref, Passivate())

    def _send_some_away(self, enough: Callable[[], bool]) -> bool:
        """Send away those that have rested longest until it is `enough`; whether it is."""
        while not enough():
            state = next(iter(self._directory.idle.values()), None)
            if state is None:
                return False
            self._send_away(state)
        return True

    def _make_room(self) -> None:
        """Before one more conversation: let others leave if a bound is reached.

        Raises:
            MailboxFull: all that is live is busy, or a tmp chat.
        """
        if self._sweeper is None:
            self._sweep_later_from_now()
        limits = self._services.limits
        if not self._send_some_away(lambda: self._staying < limits.live_conversations):
            self._refuse_room(
                "live_conversations", limits.live_conversations, f"{len(self._conversations)} conversations"
            )
        if self._directory.crowded and not self._send_some_away(self._histories_fit):
            size = self._directory.history_bytes
            self._refuse_room("history_bytes", limits.history_bytes, f"histories of about {size} bytes")

    @property
    def _has_room(self) -> bool:
        """Whether one more conversation has room though nobody leaves, and a sweep is to come."""
        limits = self._services.limits
        staying = len(self._conversations) - len(self._leaving) - len(self._parting)
        return (
            self._sweeper is not None
            and staying < limits.live_conversations
            and self._directory.history_bytes <= limits.history_bytes
        )

    def _sweep_later_from_now(self) -> None:
        limits = self._services.limits
        soonest = min(limits.passivate_after_s, limits.tmp_expires_s)
        self._sweeper = gevent.get_hub().loop.timer(soonest, ref=False)
        self._sweeper.start(notify, self.actor_ref, Sweep())

    def _refuse_room(self, limit: str, most: int, what: str) -> None:
        self._services.incidents.report(Overflowed(limit, most))
        raise MailboxFull(
            f"{what} are in memory, the most that limits.{limit} allows, and none is an idle topic that "
            "could leave; try again when some are done or closed",
            limit,
            most,
        )

    @property
    def _staying(self) -> int:
        return len(self._conversations) - len(self._leaving) - len(self._parting)

    def _histories_fit(self) -> bool:
        going = sum(state.counted_bytes for state in (*self._leaving.values(), *self._parting.values()))
        return self._directory.history_bytes - going <= self._services.limits.history_bytes

    def _relieve(self) -> None:
        self._room_wanted = False
        self._send_some_away(self._histories_fit)

    def _stays(self, notice: PassivationRefused) -> None:
        state = self._leaving.pop(notice.conversation_id, None)
        if state is not None:
            self._directory.stay(state)

    def _left(self, state: ConversationState) -> None:
        """A conversation has left: store where it is to be found before it is forgotten here."""
        self._leaving.pop(state.id, None)
        self._unstruck.pop(state.id, None)
        self._parting[state.id] = state
        row = self._row_of(state)
        ref = self.actor_ref
        self._services.store.submit(
            partial(dormant.keep, row=row),
            lambda count, error: notify(ref, PassiveStored(state.id, count or 0, error)),
        )

    def _row_of(self, state: ConversationState) -> Dormant:
        assert state.topic is not None
        assert state.handle is not None
        router = self._routers.get((state.agent, state.sender), TopicRouter())
        routed = router.by_title.get(state.topic) == state.id
        active = routed and router.active == state.topic
        return Dormant(state.id, state.agent, state.sender, state.topic, state.handle, active, routed)

    def _passive_stored(self, notice: PassiveStored) -> None:
        state = self._parting.pop(notice.conversation_id, None)
        self._directory.passive += notice.count
        if state is None:
            return  # it was called back, or closed
        if notice.error is not None:
            self._parting[state.id] = state  # it is found here, as if it were still being stored
            log(logger, logging.WARNING, "a conversation could not be put aside", state, reason=notice.error)
            return
        self._directory.leave(state.id)
        self._unlist(state)
        idle_s = self._services.clock.monotonic() - state.idle_since
        self._services.incidents.report(Passivated(idle_s), state)
        self._tidy((state.agent, state.sender))

    def _expired(self, state: ConversationState) -> None:
        idle_s = self._services.clock.monotonic() - state.idle_since
        self._services.incidents.report(Expired(idle_s), state)

    # -- finding -----------------------------------------------------------------------------------

    def _at_home(self, pair: Pair) -> bool:
        """Whether all that is known of a pair is in memory."""
        return pair in self._routers or not self._directory.passive

    def _ask_for(self, waiter: Waiter, job: Callable[[Database], list[Dormant]]) -> None:
        ref = self.actor_ref
        self._asking.append(waiter)
        self._services.store.submit(job, lambda found, error: notify(ref, PassiveFound(found, error, waiter)))

    def _ask_for_pair(self, waiter: Waiter, pair: Pair) -> None:
        self._ask_for(waiter, partial(dormant.of_pair, agent=pair[0], sender=pair[1]))

    def _found(self, notice: PassiveFound) -> None:
        waiter: Waiter = notice.request
        self._asking.remove(waiter)
        if notice.error is not None:
            waiter.fail(notice.error)
            return
        waiter.found = found = self._current(notice.found)
        self._house(found)
        self._again(waiter)
        for row in found[:1]:
            self._tidy((row.agent, row.sender))

    def _house(self, found: list[Dormant]) -> None:
        """Have the router of a pair in memory again."""
        for row in found:
            pair = (row.agent, row.sender)
            if pair not in self._routers:
                titles = {one.topic: one.id for one in found if one.routed}
                active = next((one.topic for one in found if one.active), None)
                self._routers[pair] = TopicRouter(None, active, titles)

    def _find(self, message: FindConversation) -> GreenletFuture[str | None] | None:
        state = self._conversations.get(message.conversation_id)
        if state is not None:
            return None
        reply: GreenletFuture[str | None] = GreenletFuture()
        if not self._directory.passive:
            reply.set(None)
            return reply

        def answer(found: list[Dormant] | None, error: BaseException | None) -> None:
            if error is not None:
                reply.fail(error)
            else:
                reply.set(next((r.handle for r in found or () if r.id == message.conversation_id), None))

        self._services.store.submit(partial(dormant.beside, id=message.conversation_id), answer)
        return reply

    def _find_active(self, pair: Pair) -> Any:
        if self._at_home(pair):
            return self._directory.active(*pair)
        reply: GreenletFuture[int | None] = GreenletFuture()

        def answer(found: list[Dormant] | None, error: BaseException | None) -> None:
            if error is not None:
                reply.fail(error)
            else:
                reply.set(next((row.id for row in found or () if row.active), None))

        self._services.store.submit(partial(dormant.of_pair, agent=pair[0], sender=pair[1]), answer)
        return reply

    def _list_passive(self, message: ListPassive) -> GreenletFuture[list[int]]:
        return self._services.store.begin(partial(dormant.some, most=message.most))

    def _look_up(self, waiter: Waiter, handle: str) -> None:
        ref = self.actor_ref
        self._asking.append(waiter)
        self._services.store.submit(
            partial(_find_session, handle=handle, passive=bool(self._directory.passive)),
            lambda found, error: notify(ref, SessionLookedUp(handle, *(found or (None, [])), error, waiter)),
        )

    # -- coming back -------------------------------------------------------------------------------

    def _wake(self, waiter: Waiter) -> GreenletFuture[Any]:
        assert isinstance(waiter.request, Wake)
        conversation_id = waiter.request.conversation_id
        if self._refusal is not None:
            waiter.fail(self._refusal)
            return waiter.reply
        state = self._conversations.get(conversation_id)
        if state is not None:
            self._wake_known(waiter, state)
            return waiter.reply
        row = next((row for row in waiter.found or () if row.id == conversation_id), None)
        if row is not None:
            self._revive_if_room(waiter, row)
        elif waiter.found is None and self._directory.passive:
            self._ask_for(waiter, partial(dormant.beside, id=conversation_id))
        else:
            waiter.fail(unknown_conversation(conversation_id))
        return waiter.reply

    def _wake_known(self, waiter: Waiter, state: ConversationState) -> None:
        if state.id in self._opening:
            self._opening[state.id].waiters.append(waiter)
        elif isinstance(state.fate, ConversationParked):
            waiter.fail(state.fate)
        elif state.fate == "passive":
            self._come_back(waiter, state)
        elif state.fate is None:
            self._answer_wake(waiter, state)
        else:
            waiter.fail(ConversationClosed(f"conversation {state.id} is closed"))

    def _come_back(self, waiter: Waiter, state: ConversationState) -> None:
        """It has just left, and is still known here."""
        row = self._row_of(state)
        self._leaving.pop(state.id, None)
        self._parting.pop(state.id, None)
        self._directory.leave(state.id)
        self._revive(waiter, row)

    def _revive_if_room(self, waiter: Waiter, row: Dormant) -> None:
        try:
            self._make_room()
        except MailboxFull as full:
            waiter.fail(full)
        else:
            self._revive(waiter, row)

    def _revive(self, waiter: Waiter, row: Dormant) -> None:
        """Start a passive conversation's actor again, under its old id."""
        state = ConversationState(row.id, row.agent, row.sender, row.topic, self._services.clock.monotonic())
        state.handle = row.handle
        self._handles[row.handle] = row.id
        ConversationActor.start(self._services, state)
        self._directory.enter(state)
        if row.routed:
            self._route(state)
        pair = (row.agent, row.sender)
        self._opening[row.id] = Opening(pair, row.topic, None, [waiter], known=True)
        assert state.ref is not None
        state.ref.tell(OpenSession(row.handle, None, ""))

    def _sleep_again(self, state: ConversationState) -> None:
        """It could not be woken: it stays passive, and its next message tries again."""
        state.fate = "passive"
        self._left(state)

    def _answer_wake(self, waiter: Waiter, state: ConversationState) -> None:
        assert isinstance(waiter.request, Wake)
        assert state.ref is not None
        for message in waiter.request.messages:
            state.ref.tell(message)
        waiter.reply.set(state.ref)

    def _forget_passive(self, conversation_id: int) -> None:
        """It is live again, or gone for good: what the database says before it has forgotten is outdated."""
        self._forgotten[conversation_id] += 1
        ref = self.actor_ref
        self._services.store.submit(
            partial(dormant.forget, id=conversation_id),
            lambda count, error: notify(ref, PassiveForgotten(conversation_id, count or 0, error)),
        )

    def _passive_forgotten(self, notice: PassiveForgotten) -> None:
        self._directory.passive -= notice.count
        self._forgotten[notice.conversation_id] -= 1
        if not self._forgotten[notice.conversation_id]:
            del self._forgotten[notice.conversation_id]
        if notice.error is not None and notice.conversation_id not in self._parting:
            self._unstruck[notice.conversation_id] = True

    def _current(self, found: list[Dormant]) -> list[Dormant]:
        return [row for row in found if row.id not in self._forgotten and row.id not in self._unstruck]


def _find_session(db: Database, *, handle: str, passive: bool) -> tuple[SessionSummary | None, list[Dormant]]:
    """A session, and where there may be one, the passive conversations beside its own."""
    row = dormant.of_session(db, handle) if passive else None
    found = [] if row is None else dormant.beside(db, row.id)
    return sessions.find_session(db, handle=handle), found
