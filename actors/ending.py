"""How turns and conversations end before their time: cancel, close, suspend, detach, death."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from actors.conversation_core import ConversationCore
from actors.errors import (
    ConversationClosed,
    HandlerFailed,
    RuntimeClosed,
)
from actors.greenlet import GreenletFuture
from actors.messages import (
    Close,
    ClosedTurnsStored,
    ConversationPassive,
    ConversationStopped,
    PassivationRefused,
    SetTimer,
    Steer,
    Submit,
    Wake,
)
from actors.storage import notify
from actors.ticket import Ticket
from actors.transfer import MovedConversation
from actors.turn import Turn
from actors.workqueue import CompactionWork
from persistence.records import StopReason, TurnResult


class Ending(ConversationCore):
    """The part of a conversation actor that ends things. Nobody who waits is left without an answer."""

    def _cancel(self, turn_id: int | None) -> GreenletFuture[bool]:
        reply: GreenletFuture[bool] = GreenletFuture()
        activity = self._activity
        if isinstance(activity, Turn) and turn_id in (None, activity.ticket.turn_id):
            self._cancels.setdefault(activity.ticket.turn_id, []).append((reply, turn_id is None))
            activity.cancel()
        elif turn_id is not None and (self._take_back_steer(turn_id) or self._end_queued(turn_id)):
            self._cancels.setdefault(turn_id, []).append((reply, False))
        elif turn_id in self._ending:
            self._ending[turn_id].append(reply)
        else:
            if turn_id is None:
                self._stop_activity()  # a compaction: no turn was running
            reply.set(False)
        return reply

    def _end_queued(self, turn_id: int) -> bool:
        return self._end_unrun(lambda queued: queued.turn_id == turn_id, "cancelled")

    def _take_back_steer(self, turn_id: int) -> bool:
        """Cancel an accepted steer that its turn has not come to; whether it was there."""
        turn = self._activity
        if not isinstance(turn, Turn):
            return False
        steer = next((s for s in turn.steers if s.ticket.turn_id == turn_id), None)
        if steer is None:
            return False
        turn.steers.remove(steer)
        self._ending[turn_id] = []
        result = TurnResult("", "cancelled", conversation_id=self._state.id, turn_id=turn_id)
        notice = partial(ClosedTurnsStored, (steer.ticket,), (result,))
        ref = self.actor_ref
        if self._journal is None:
            notify(ref, notice())
        else:
            self._writes += 1
            self._journal.end_steer(steer, result, lambda error: notify(ref, notice(error)))
        return True

    def _end_unrun(self, which: Callable[[Ticket], bool], stop_reason: StopReason = "closed") -> bool:
        """End accepted turns that have not run, as `closed` or `cancelled`; whether there were any."""
        tickets = self._queue.take_accepted(which)
        if not tickets:
            return False
        results = [
            TurnResult("", stop_reason, conversation_id=self._state.id, turn_id=ticket.turn_id)
            for ticket in tickets
        ]
        self._end_without_running(tickets, results)
        return True

    def _end_without_running(
        self, tickets: Sequence[Ticket], results: Sequence[TurnResult], *, dead: bool = False
    ) -> None:
        notice = partial(ClosedTurnsStored, tuple(tickets), tuple(results))
        ref = self.actor_ref
        self._ending.update({ticket.turn_id: [] for ticket in tickets})
        if self._journal is None:
            notify(ref, notice())  # by message, so that whoever asked is listed first
        else:
            self._writes += 1
            self._journal.end_unrun(tickets, results, lambda error: notify(ref, notice(error)), dead=dead)

    def _closed_turns_stored(self, message: ClosedTurnsStored) -> None:
        if self._journal is not None:
            self._writes -= 1
        for ticket, result in zip(message.tickets, message.results, strict=True):
            self._services.directory.release(ticket.turn_id, self._state.sender)
            if message.error is None:
                self._finish(ticket, result)
            else:
                ticket.fail(message.error)
            self._answer_cancels(ticket.turn_id, ended_it=message.error is None)
            for late in self._ending.pop(ticket.turn_id, ()):
                late.set(False)
        self._advance()

    # -- the conversation itself -------------------------------------------------------------------

    def _close(self, message: Close) -> None:
        if not self._closing:
            self._closing = True
            self._refusal = ConversationClosed(f"conversation {self._state.id} is closed")
            self._drop_compactions(self._refusal)
            self._end_unrun(lambda _queued: True)
        if message.mode == "now":
            self._stop_activity()
        self._advance()

    def _settle(self) -> GreenletFuture[None]:
        reply: GreenletFuture[None] = GreenletFuture()
        self._settled.append(reply)
        self._check_quiet()
        return reply

    def _suspend(self) -> GreenletFuture[None]:
        reply: GreenletFuture[None] = GreenletFuture()
        self._refusal = RuntimeClosed(
            "the runtime is shut down; what its topics have accepted goes on at the next start"
        )
        self._held = True
        self._on_quiet = reply
        self._drop_compactions(self._refusal)
        self._stop_activity()
        if self._journal is None:
            self._end_unrun(lambda _queued: True)
        self._check_quiet()
        return reply

    @property
    def _suspended(self) -> bool:
        """Whether the runtime is shutting down, so that nothing begins here any more."""
        return self._held and isinstance(self._refusal, RuntimeClosed)

    def _detach(self) -> GreenletFuture[MovedConversation]:
        reply: GreenletFuture[MovedConversation] = GreenletFuture()
        self._held = True
        self._on_quiet = reply
        self._check_quiet()
        return reply

    # -- leaving memory, and dying -------------------------------------------------------------------

    def _passivate(self) -> None:
        """Leave, to be brought back by the next message; a tmp chat, which is stored nowhere, ends."""
        if not self._at_rest:
            self._tell_registry(PassivationRefused(self._state.id))
        elif self._journal is None:
            self._refusal = ConversationClosed(
                f"conversation {self._state.id} was idle for long and has ended"
            )
            self._leave(ConversationStopped(self._state.id))
        else:
            self._leave(ConversationPassive(self._state.id), "passive")

    @property
    def _at_rest(self) -> bool:
        """Whether nothing runs, waits, is owed or looked at here."""
        busy = (
            self._activity is not None
            or self._early is not None
            or self._title_greenlet is not None
            or self._closing
            or self._held
            or self._refusal is not None
            or (self._journal is not None and self._journal.owes)
            or self._state.id in self._services.timers.chats
        )
        waiting = len(self._queue) + self._writes + len(self.actor_inbox)
        return not busy and not waiting and not self._services.directory.watched(self._state.id)

    def on_undelivered(self, message: Any) -> None:
        """A message that came too late."""
        if isinstance(message, Submit | Steer | SetTimer):
            self._undelivered.append(message)

    def on_death(self, reason: BaseException | None) -> None:
        """Whatever the actor ended of, nobody waits for it in vain."""
        if reason is not None:
            self._die(reason)
        elif self._undelivered and self._state.fate == "passive":
            self._tell_registry(Wake(self._state.id, tuple(self._undelivered)))
        else:
            error = self._refusal or ConversationClosed(f"conversation {self._state.id} is closed")
            for message in self._undelivered:
                message.fail(error)

    def _die(self, reason: BaseException) -> None:
        """Leave what was accepted to the next life, and answer everybody else. From now on nothing of this
        one is stored."""
        error = HandlerFailed(f"conversation {self._state.id} failed: {reason!r}")
        error.__cause__ = reason
        remains = self._remains()
        self._stop_activity()
        self._stop_beside()
        if self._journal is not None:
            self._journal.fence(error)
        if isinstance(self._activity, CompactionWork):
            self._activity.reply.fail(error)
        self._drop_compactions(error)
        self._bequeath(error)
        for replies in self._cancels.values():
            for reply, _ in replies:
                reply.set(False)
        for late in self._ending.values():
            for reply in late:
                reply.set(False)
        for settled in self._settled:
            settled.set(None)
        if self._on_quiet is not None:
            self._on_quiet.fail(error)
        self._state.fate = error
        self._tell_registry(ConversationStopped(self._state.id, error, remains=remains))

    def _remains(self) -> tuple[Any, ...]:
        """What may still run for a moment after it was told to stop, to be waited for."""
        running = self._activity
        if isinstance(running, Turn):
            return (running.run.over(),)
        greenlet = None if running is None else running.greenlet
        return () if greenlet is None else (greenlet,)

    def _bequeath(self, error: Exception) -> None:
        """Tickets that a next life answers are those in the directory that this actor owns: see that all
        are there, and that no other is."""
        directory, state = self._services.directory, self._state
        turn = self._activity
        if isinstance(turn, Turn):
            self._take_back_applied(turn)
            if self._journal is None:
                turn.ticket.attempts += 1
                state.history.cut(self._finished)
        early = self._early or ()
        self._fail((w for w in early if isinstance(w, CompactionWork)), error)
        self._fail([*self._early_steers, *self._looked_up.values()], error)
        handled = self._handled if isinstance(self._handled, Submit | Steer) else None
        if handled is not None:
            handled.ticket.crashes += 1
        for timer in (m for m in (self._handled, *early, *self._undelivered) if isinstance(m, SetTimer)):
            timer.fail(error)
        left = [m for m in (*early, *self._undelivered) if isinstance(m, Submit | Steer)]
        for message in (handled, *left):
            ticket = None if message is None else message.ticket
            if ticket is None or ticket.done or ticket.turn_id in directory.tickets:
                continue
            if isinstance(message, Steer):
                ticket.fail(error)  # the turn that it was meant for does not run now
            else:
                ticket.owner = self.actor_ref
                directory.hold(ticket, state.sender)

    def _take_back_applied(self, turn: Turn) -> None:
        """Steers of a step that was not stored were applied to nothing: in the journal they still wait."""
        applied = turn.ticket.followers[len(turn.ticket.followers) - len(turn.applied) :]
        for steer_id, ticket in zip(turn.applied, applied, strict=True):
            ticket.leave(turn.ticket, steer_id)
            self._services.directory.hold(ticket, self._state.sender)
