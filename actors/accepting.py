"""How a conversation takes turns and steers: bounds, busy policies, keys, and the journal first."""

from __future__ import annotations

from functools import partial

from actors.ending import Ending
from actors.errors import (
    ConversationBusy,
    KeyReused,
    MailboxFull,
    NoActiveTurn,
)
from actors.events import Overflowed
from actors.messages import (
    SteerJournalled,
    TurnJournalled,
)
from actors.storage import notify
from actors.ticket import SteerRequest, Ticket
from actors.turn import Turn
from persistence import turns
from persistence.errors import StorageError
from persistence.records import TurnRow, TurnState

KEYS_OF_A_TMP_CHAT = 1_000


class Accepting(Ending):
    """The part of a conversation actor that takes messages. Nothing is accepted before it is journalled."""

    def _submit(self, ticket: Ticket) -> None:
        ticket.owner = self.actor_ref
        ticket.sender = ticket.sender or self._state.sender
        ticket.accepted_at = self._services.clock.wall()
        if self._refusal is not None:
            ticket.fail(self._refusal)
            return
        if self._journal is None and self._same_key(ticket):
            return
        if ticket.on_busy == "steer" and self._steerable is not None:
            self._steer(ticket)
            return
        busy = self._activity is not None or bool(self._queue) or self._steering > 0
        if not busy and ticket.key is None:
            ticket.eager, ticket.state = True, "running"
        refusal = self._refusal_of(ticket, busy=busy)
        if refusal is not None:
            self._refuse(ticket, refusal)
            return
        if ticket.on_busy == "interrupt":
            ticket.interrupts = self._interruptible
            self._queue.put_first(ticket)
        else:
            self._queue.append(ticket)
        self._journal_turn(ticket, "queued" if busy else "running")
        if ticket.eager:
            self._advance()
        else:
            self._publish()

    def _refusal_of(self, ticket: Ticket, *, busy: bool) -> Exception | None:
        """Why a message cannot be taken; None if it is counted as taken now."""
        if busy and ticket.on_busy == "reject":
            return ConversationBusy(
                f"conversation {self._state.id} has a turn running or queued; wait for it, or use "
                'on_busy="enqueue", "interrupt" or "steer"'
            )
        waiting = len(self._queue)
        if self._steerable is not None:
            waiting += len(self._steerable.steers)
        try:
            self._services.directory.take(ticket, self._state, waiting)
        except MailboxFull as full:
            self._services.incidents.report(Overflowed(full.limit, full.most), self._state)
            return full
        return None

    def _refuse(self, ticket: Ticket, refusal: Exception) -> None:
        """Answer `refusal`, unless the message was accepted before, under the same key."""
        if ticket.key is None or self._journal is None:
            ticket.fail(refusal)
            return
        ref = self.actor_ref

        def found(row: TurnRow | None, error: BaseException | None) -> None:
            notify(ref, TurnJournalled(ticket, error or (refusal if row is None else None), row))

        self._writes += 1
        self._looked_up[ticket.turn_id] = ticket
        self._journal.find_key(ticket, found)

    def _same_key(self, ticket: Ticket) -> bool:
        """Whether a message of this key was accepted before, in a tmp chat; then `ticket` is answered."""
        first = self._keys.get(ticket.key or "")
        if first is None:
            return False
        if first.content != ticket.content:
            ticket.fail(_key_reused(ticket))
        else:
            ticket.accept(by=first)
        return True

    def _keep_key(self, ticket: Ticket) -> None:
        if ticket.key is not None:
            self._keys[ticket.key] = ticket
            if len(self._keys) > KEYS_OF_A_TMP_CHAT:
                del self._keys[next(iter(self._keys))]

    def _journal_turn(self, ticket: Ticket, state: TurnState) -> None:
        ticket.state = state
        if self._journal is None:
            self._keep_key(ticket)
            ticket.accept()
            self._interrupt(ticket)
            self._advance()
            return
        self._writes += 1
        self._journal.accept(ticket, state, self.actor_ref)

    def _turn_journalled(self, message: TurnJournalled) -> None:
        self._writes -= 1
        ticket = message.ticket
        self._looked_up.pop(ticket.turn_id, None)
        if message.error is not None or message.existing is not None:
            self._queue.remove(ticket)
            self._services.directory.release(ticket.turn_id, self._state.sender)
            if isinstance(self._activity, Turn) and self._activity.ticket is ticket:
                self._activity.cancel()  # it began while it was being stored
            if message.error is not None:
                ticket.fail(message.error)
            else:
                self._stand_in(ticket, message.existing)
        elif not ticket.done:  # its end, refused at once, may have failed it before
            ticket.accept()
            if ticket.interrupts is not None:
                self._interrupt(ticket)
            if self._closing:
                self._end_unrun(lambda queued: queued is ticket)
            elif self._journal is not None and self._suspended and ticket.state == "running":
                self._journal.put_back(ticket)  # stored as running, and it will not run in this process
        if self._early_steers and isinstance(self._activity, Turn) and self._activity.ticket is ticket:
            self._take_early_steers(ticket)
        self._advance()

    def _interrupt(self, ticket: Ticket) -> None:
        """Cancel what an accepted message is to interrupt, if that still runs."""
        turn = self._steerable
        if turn is not None and turn.ticket is ticket.interrupts:
            turn.cancel()
        ticket.interrupts = None

    @property
    def _interruptible(self) -> Ticket | None:
        """The turn that runs; or that is stored as running, and begins when that is done."""
        if self._steerable is not None:
            return self._steerable.ticket
        first = next(iter(self._queue), None)
        return first if isinstance(first, Ticket) and first.state == "running" else None

    def _take_early_steers(self, ticket: Ticket) -> None:
        """Steers that came while the turn that they steer was being stored."""
        early, self._early_steers = self._early_steers, []
        for steer in early:
            if ticket.durable and not ticket.done:
                self._steer(steer)
            else:
                steer.fail(_nothing_to_steer(self._state.id))

    def _stand_in(self, ticket: Ticket, existing: TurnRow) -> None:
        """The same key was accepted before: that turn answers for this message too."""
        if existing.content != ticket.content:
            ticket.fail(_key_reused(ticket))
            return
        first = self._services.directory.tickets.get(existing.id)
        if first is not None:
            ticket.accept(by=first)
        elif existing.result is not None:
            first = Ticket(existing.id, self._state.id, existing.content, sender=existing.sender)
            first.accept()
            first.finish(existing.result)
            ticket.accept(by=first)
        else:
            self._look_again(ticket, existing)

    def _look_again(self, ticket: Ticket, existing: TurnRow) -> None:
        """The turn of this key had not ended when its row was read, and is not live: either it has ended
        since, or it waits in a topic that is not open."""
        ref = self.actor_ref

        def found(row: TurnRow | None, error: BaseException | None) -> None:
            if error is None and (row is None or row.result is None):
                error = StorageError(
                    f"the message with the key {ticket.key!r} was accepted before, as turn {existing.id} of "
                    "another topic, which runs when that topic is opened: switch to it, then send this again"
                )
            notify(ref, TurnJournalled(ticket, error, row))

        self._writes += 1
        self._looked_up[ticket.turn_id] = ticket
        self._services.store.submit(partial(turns.get_turn, id=existing.id), found)

    # -- steering ----------------------------------------------------------------------------------

    @property
    def _steerable(self) -> Turn | None:
        """The running turn, as long as it may still take a steer."""
        turn = self._activity
        return turn if isinstance(turn, Turn) else None

    def _steer(self, ticket: Ticket) -> None:
        ticket.owner = self.actor_ref
        ticket.sender = ticket.sender or self._state.sender
        ticket.accepted_at = ticket.accepted_at or self._services.clock.wall()
        turn = self._steerable
        if self._refusal is not None:
            ticket.fail(self._refusal)
            return
        if turn is None:
            ticket.fail(_nothing_to_steer(self._state.id))
            return
        if turn.ticket.refused:
            ticket.fail(_nothing_to_steer(self._state.id))  # it is only ending
            return
        if not turn.ticket.durable:
            self._early_steers.append(ticket)
            return
        refusal = self._refusal_of(ticket, busy=False)
        if refusal is not None:
            ticket.fail(refusal)
            return
        steer = SteerRequest(ticket.turn_id, ticket)
        ticket.from_steer = True
        if self._journal is None:
            self._steer_journalled(SteerJournalled(steer, turn))
            return
        ref = self.actor_ref
        self._writes += 1
        self._steering += 1
        self._journal.steer(
            steer, turn.ticket.turn_id, lambda error: notify(ref, SteerJournalled(steer, turn, error))
        )

    def _steer_journalled(self, message: SteerJournalled) -> None:
        if self._journal is not None:
            self._writes -= 1
            self._steering -= 1
        ticket = message.steer.ticket
        if message.error is not None:
            self._services.directory.release(ticket.turn_id, self._state.sender)
            ticket.fail(message.error)
        elif self._activity is message.turn and not message.turn.ended:
            ticket.accept()
            message.turn.steers.append(message.steer)
        else:
            self._steer_becomes_turn(message.steer)
        self._advance()

    def _steer_becomes_turn(self, steer: SteerRequest) -> None:
        """The turn ended while the steer was on its way: it runs next, after steers that came before."""
        ticket = steer.ticket
        self._queue.put_steer(ticket)
        if self._journal is None:
            ticket.accept()
            return
        ref = self.actor_ref
        self._writes += 1
        self._journal.steer_as_turn(steer, lambda error: notify(ref, TurnJournalled(ticket, error)))


def _nothing_to_steer(conversation_id: int) -> NoActiveTurn:
    return NoActiveTurn(
        f"conversation {conversation_id} has no running turn to steer; send the message instead"
    )


def _key_reused(ticket: Ticket) -> KeyReused:
    return KeyReused(
        f"the key {ticket.key!r} was used for another message; give each message a key of its own"
    )
