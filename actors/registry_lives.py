"""What becomes of a conversation whose actor dies: it is started again, or parked."""

from __future__ import annotations

import logging
from typing import Any

import gevent

from actors.conversation import ConversationActor
from actors.errors import ConversationParked, RuntimeClosed
from actors.events import ActorParked, ActorRestarted
from actors.history import LiveHistory
from actors.logs import log
from actors.messages import (
    Close,
    ConversationOpened,
    ConversationPassive,
    ConversationStopped,
    OpeningFailed,
    OpenSession,
    Proceed,
    Restart,
    Unpark,
)
from actors.policy import Budget, restart_delay
from actors.registry_core import Opening
from actors.registry_routing import RegistryRouting
from actors.state import ConversationState
from actors.storage import notify
from actors.ticket import Ticket
from persistence.errors import DatabaseFailed

logger = logging.getLogger("palaver.registry")

BUDGET = Budget()
PARKED_S = 300.0  # until a parked conversation is started again by itself
REMAINS_S = 5.0  # for what a dead conversation left running


class RegistryLives(RegistryRouting):
    """The part of the registry that supervises conversations, its dynamic children, one for one."""

    def _stopped(self, notice: ConversationStopped) -> None:
        state = self._conversations.get(notice.conversation_id)
        if notice.error is None or state is None:
            self._gone(notice)
            return
        first = self._opening.get(state.id)
        if first is not None and not first.known:
            words = "a conversation died while it opened"
            log(logger, logging.ERROR, words, state, reason=str(notice.error))
            self._fail_orphans(state, notice.error)  # there is no next life to take them over
            self._gone(notice)
            return
        self._died(state, notice.error, notice.remains)

    def _died(self, state: ConversationState, error: BaseException, remains: tuple[Any, ...] = ()) -> None:
        """Start it again after a while, if its budget is not spent."""
        self._leaving.pop(state.id, None)
        if self._refusal is not None:
            self._bury(state, error)
            return
        now, times = self._services.clock.monotonic(), self._deaths.setdefault(state.id, [])
        times[:] = [time for time in times if now - time < BUDGET.period_s]
        delay = None if isinstance(error, DatabaseFailed) else restart_delay(times, now, BUDGET)
        if delay is None:
            self._park(state, error)
            return
        times.append(now)
        self._directory.set_phase(state, "opening")
        pair = (state.agent, state.sender)
        self._opening.setdefault(state.id, Opening(pair, state.topic or "", None, [], known=True))
        self._services.incidents.report(
            ActorRestarted(f"conversation {state.id}", str(error), len(times), delay), state
        )
        gevent.spawn(self._wait_to_restart, state.id, delay, remains)

    def _wait_to_restart(self, conversation_id: int, delay_s: float, remains: tuple[Any, ...]) -> None:
        gevent.sleep(delay_s)
        gevent.joinall(remains, timeout=REMAINS_S)
        notify(self.actor_ref, Restart(conversation_id))

    def _orphans(self, state: ConversationState) -> list[Ticket]:
        held = self._directory.tickets.values()
        return sorted((t for t in held if t.owner is state.ref), key=lambda ticket: ticket.turn_id)

    def _fail_orphans(self, state: ConversationState, error: BaseException) -> None:
        for ticket in self._orphans(state):
            self._directory.release(ticket.turn_id, state.sender)
            ticket.fail(error)

    def _restart(self, message: Restart) -> None:
        state = self._conversations.get(message.conversation_id)
        if state is None or not isinstance(state.fate, BaseException):
            return
        if self._refusal is not None:
            self._bury(state, state.fate)
            return
        orphans = self._orphans(state)
        if state.topic is not None:
            state.history, state.compaction_failures = LiveHistory(), 0
            self._directory.measure(state)
        ref = ConversationActor.start(self._services, state, None, orphans)
        if state.topic is not None:
            assert state.handle is not None
            asked_for = tuple(ticket.turn_id for ticket in orphans)
            ref.tell(OpenSession(state.handle, None, "", asked_for))
            return
        ref.tell(Proceed())
        self._back(state)

    def _back(self, state: ConversationState) -> None:
        opening = self._opening.pop(state.id, None)
        for waiter in opening.waiters if opening is not None else ():
            self._again(waiter)
        self._close_if_wanted(state)

    def _opened_again(self, notice: ConversationOpened) -> None:
        self._opened(notice)
        state = self._conversations.get(notice.conversation_id)
        if state is not None:
            self._close_if_wanted(state)

    def _close_if_wanted(self, state: ConversationState) -> None:
        closing = self._closing.get(state.id)
        if closing is not None and state.ref is not None:
            notify(state.ref, Close(closing.mode))

    def _opening_failed(self, notice: OpeningFailed) -> None:
        state = self._conversations.get(notice.conversation_id)
        if state is not None and state.id in self._deaths:
            state.fate = notice.error
            self._died(state, notice.error)
        elif notice.conversation_id in self._opening:
            self._give_up_opening(notice)
            self._end_closing(notice.conversation_id)

    def _settle_fate(self, state: ConversationState) -> None:
        """It ended while no registry heard of it."""
        if state.fate == "passive":
            self._passive(ConversationPassive(state.id))
        elif state.phase == "parked":
            self._parked[state.id] = gevent.spawn_later(PARKED_S, notify, self.actor_ref, Unpark(state.id))
        elif isinstance(state.fate, BaseException):
            self._died(state, state.fate)
        else:
            self._gone(ConversationStopped(state.id))

    # -- no more ----------------------------------------------------------------------------------

    def _park(self, state: ConversationState, error: BaseException) -> None:
        """It keeps dying: it takes no messages for a while. What its topic has accepted stays stored."""
        parked = ConversationParked(
            f"conversation {state.id} died {len(self._deaths[state.id]) + 1} times within "
            f"{BUDGET.period_s:g} s and is parked: {error}. What its topic has accepted waits; "
            f"Runtime.unpark({state.id}) starts it again, as do {PARKED_S:g} seconds"
        )
        del self._deaths[state.id]
        self._fail_orphans(state, parked)
        state.fate = parked
        self._directory.set_phase(state, "parked")
        self._services.incidents.report(ActorParked(f"conversation {state.id}", str(error)), state)
        if state.id in self._closing:
            self._gone(ConversationStopped(state.id, parked, unstored=True))
            return
        self._parked[state.id] = gevent.spawn_later(PARKED_S, notify, self.actor_ref, Unpark(state.id))
        opening = self._opening.pop(state.id, None)
        for waiter in opening.waiters if opening is not None else ():
            waiter.fail(parked)

    def _unpark(self, conversation_id: int) -> bool:
        timer = self._parked.pop(conversation_id, None)
        if timer is None:
            return False
        timer.kill(block=False)
        state = self._conversations[conversation_id]
        pair = (state.agent, state.sender)
        self._directory.set_phase(state, "opening")
        self._opening[state.id] = Opening(pair, state.topic or "", None, [], known=True)
        self._deaths[state.id] = []
        notify(self.actor_ref, Restart(conversation_id))
        return True

    def _bury(self, state: ConversationState, error: BaseException) -> None:
        """The runtime is shutting down: what is stored goes on at the next start, and nothing before."""
        gone = RuntimeClosed(f"the runtime is shut down; conversation {state.id} had failed: {error}")
        self._fail_orphans(state, gone)
        self._gone(ConversationStopped(state.id, gone))
