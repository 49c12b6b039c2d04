"""How a conversation takes timers: in its own order, stored before they are acknowledged."""

from __future__ import annotations

from actors.accepting import Accepting
from actors.errors import KeyReused, MailboxFull
from actors.events import Overflowed
from actors.messages import SetTimer, TimerJournalled, TimersPut
from actors.storage import notify
from persistence.timers import PendingTimer, TimerSet


class Timing(Accepting):
    """The part of a conversation actor that takes timers. It fires none: that is the timer actor's."""

    def _set_timer(self, request: SetTimer) -> None:
        most = self._services.limits.timers_per_conversation
        if self._refusal is not None:
            request.reply.fail(self._refusal)
            return
        if self._journal is None:
            state = self._state
            outcome = self._services.timers.add(state.id, state.agent, state.sender, request.timer, most)
            self._timer_set(request, outcome)
            return
        ref = self.actor_ref

        def stored(outcome: TimerSet | None, error: BaseException | None) -> None:
            # Here, not by a message: if the conversation dies, who asked hears all the same.
            if outcome is None:
                request.reply.fail(error or AssertionError("neither a timer nor an error"))
            else:
                self._timer_set(request, outcome)
            notify(ref, TimerJournalled())

        self._writes += 1
        self._journal.set_timer(request.timer, most, stored)

    def _timer_set(self, request: SetTimer, outcome: TimerSet) -> None:
        """Answer who asked, and let the timer actor know."""
        state, timer = self._state, outcome.timer
        if outcome.outcome == "full":
            most = self._services.limits.timers_per_conversation
            self._services.incidents.report(Overflowed("timers_per_conversation", most), state)
            request.reply.fail(
                MailboxFull(
                    f"conversation {state.id} has {most} timers, the most that "
                    "limits.timers_per_conversation allows; cancel some, or set this one when some have fired"
                )
            )
        elif timer is None:
            request.reply.fail(
                KeyReused(
                    f"the key {request.timer.key!r} was used for another message; give each message, and "
                    "each timer, a key of its own"
                )
            )
        else:
            place = state.id if timer.handle is None else timer.handle
            if outcome.outcome == "stored":
                pending = PendingTimer(timer.id, timer.due_at, place, timer.agent)
                self._services.timers.tell(TimersPut((pending,)))
            request.reply.set(timer)
