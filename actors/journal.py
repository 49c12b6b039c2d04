"""What one conversation writes to its session: accepted turns, steps, ends, compactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pykka
from attrs import evolve
from gevent import GreenletExit

from actors.answers import Acceptance, TurnEnd
from actors.greenlet import GreenletFuture
from actors.messages import TurnEnded, TurnStored
from actors.services import Services
from actors.state import ConversationState
from actors.storage import settle
from actors.ticket import SteerRequest, Ticket
from persistence import sessions, timers, turns
from persistence.batches import Item
from persistence.records import (
    STATE_OF_STOP,
    HistoryEntry,
    StoredSession,
    TurnResult,
    TurnRow,
    TurnState,
)
from persistence.timers import NewTimer, TimerSet
from persistence.writes import (
    NewDeadLetter,
    NewEntry,
    NewEvent,
    NewSteer,
    Retried,
    SessionUpdate,
    SteerUpdate,
    TurnUpdate,
    WriteSet,
    merged,
)

Then = Callable[[BaseException | None], None]


class Journal:
    """The writer of one stored session. One turn at a time uses it, so `next_seq` needs no lock.

    Positions move on only when a commit has succeeded: a failed one leaves no gap. An end that could not
    be stored is owed: it is tried again before whatever the session stores next.
    """

    __slots__ = (
        "_clock",
        "_fence",
        "_growing",
        "_keys_kept_s",
        "_owed",
        "_state",
        "_store",
        "next_seq",
        "revision",
        "session_id",
    )

    def __init__(self, services: Services, session: StoredSession, state: ConversationState) -> None:
        self._store = services.store
        self._clock = services.clock
        self._keys_kept_s = services.limits.keys_kept_s
        self._state = state
        self._owed: tuple[WriteSet, ...] = ()
        self._fence: Exception | None = None
        self._growing: Item | None = None  # what was written last, if that may still grow
        self.session_id = session.id
        self.next_seq = session.next_seq
        self.revision = session.revision

    def fence(self, error: Exception) -> None:
        """The conversation is dead and another life of its session may begin: whatever of it still runs gets
        `error`, and stores nothing that comes behind what is under way now."""
        self._fence = error

    # -- accepting ---------------------------------------------------------------------------------

    def accept(self, ticket: Ticket, state: TurnState, ref: pykka.ActorRef[Any]) -> None:
        """Store an accepted message. `ref` hears `TurnJournalled`: that it is stored, or was accepted under
        the same key of this agent and sender, or the error. Or only `TurnStored`: see `finish`."""
        row = self._row(ticket, state)
        stored = Acceptance(ref, ticket)
        fired = () if ticket.timer is None else (ticket.timer,)
        if ticket.key is None:
            writes = WriteSet((row,))
            if fired or ticket.retries is not None:
                retried = () if ticket.retries is None else (Retried(ticket.retries, ticket.turn_id),)
                writes = WriteSet((row,), retried=retried, timer_updates=fired)
            item = self._store_with_owed(writes, stored)
            if ticket.eager and len(writes.timer_updates) == len(writes.retried) == 0:
                self._growing = item
            return
        if self._fence is not None:
            stored(None, self._fence)
            return
        owed, self._owed = self._owed, ()
        job = partial(turns.accept_keyed, row=row, first=merged(owed), timers=fired, **self._keyed_by())
        self._store.submit(job, self._owing(owed, stored))

    def find_key(self, ticket: Ticket, then: Callable[[TurnRow | None, BaseException | None], None]) -> None:
        """Look for a message that was accepted under the ticket's key; stores nothing."""
        assert ticket.key is not None
        job = partial(turns.find_keyed, key=ticket.key, at=self._clock.wall(), **self._keyed_by())
        self._store.submit(job, then)

    def _keyed_by(self) -> dict[str, Any]:
        return {
            "agent": self._state.agent,
            "sender": self._state.sender,
            "max_age_s": self._keys_kept_s,
        }

    def set_timer(
        self, new: NewTimer, most: int, then: Callable[[TimerSet | None, BaseException | None], None]
    ) -> None:
        """Store a timer, unless the session has `most` already or its key is taken."""
        job = partial(
            timers.add, new=new, session_id=self.session_id, most=most, keys_kept_s=self._keys_kept_s
        )
        self._store.submit(job, then)

    def begin(self, ticket: Ticket) -> None:
        """Count one more attempt at a turn that waited, and wait for the commit, as `step` does: a turn that
        ends its process is known to have been begun.

        Raises:
            StorageError: it could not be stored.
        """
        update = TurnUpdate(ticket.turn_id, "running", ticket.attempts + 1)
        self._wait(WriteSet(turn_updates=(update,)))
        ticket.attempts += 1

    def put_back(self, ticket: Ticket) -> None:
        """A turn that was stored as running did not come to run: it waits, for the next process."""
        self._write(WriteSet(turn_updates=(TurnUpdate(ticket.turn_id, "queued", 0),)), lambda _error: None)

    def steer(self, steer: SteerRequest, turn_id: int, then: Then) -> None:
        """Store an accepted steer of a running turn."""
        ticket = steer.ticket
        new = NewSteer(steer.id, self.session_id, turn_id, ticket.sender, ticket.content, self._clock.wall())
        self._write(WriteSet(new_steers=(new,)), then)

    def steer_as_turn(self, steer: SteerRequest, then: Then) -> None:
        """A stored steer whose turn ended first becomes a turn of its own."""
        self._place_steer(steer, self._row(steer.ticket, "queued"), then)

    def end_steer(self, steer: SteerRequest, result: TurnResult, then: Then) -> None:
        """A stored steer ends without having been applied: as a turn that did not run."""
        row = evolve(
            self._row(steer.ticket, STATE_OF_STOP[result.stop_reason]),
            result=result,
            error=result.error,
            finished_at=self._clock.wall(),
        )
        self._place_steer(steer, row, then)

    def _place_steer(self, steer: SteerRequest, row: TurnRow, then: Then) -> None:
        applied = (SteerUpdate(steer.id, row.id),)

        def placed(error: BaseException | None) -> None:
            if error is not None:
                self._owe(WriteSet(new_turns=(self._failed_row(steer.ticket, error),), steer_updates=applied))
            then(error)

        self._write(WriteSet(new_turns=(row,), steer_updates=applied), placed)

    def end_unrun(
        self, tickets: Sequence[Ticket], results: Sequence[TurnResult], then: Then, *, dead: bool = False
    ) -> None:
        """Turns that end without having run; as `dead` letters where they are given up."""
        now = self._clock.wall()
        letters = tuple(
            NewDeadLetter(self.session_id, ticket.turn_id, result.error or "", ticket.attempts, now)
            for ticket, result in zip(tickets, results, strict=True)
            if dead
        )
        updates = tuple(self._ended(ticket, result) for ticket, result in zip(tickets, results, strict=True))

        def committed(error: BaseException | None) -> None:
            if error is not None:
                failures = tuple(self._ended(ticket, self._failure(ticket, error)) for ticket in tickets)
                self._owe(WriteSet(turn_updates=failures, dead=letters))
            then(error)

        self._write(WriteSet(turn_updates=updates, dead=letters), committed)

    # -- a turn's steps and its end ----------------------------------------------------------------

    def step(self, turn_id: int, entries: Sequence[HistoryEntry], steers: Sequence[int], trace: str) -> None:
        """Store a whole step in one transaction; waits for its commit in the turn's greenlet.

        A cancel that comes while the commit is under way is not lost and does not interrupt it: the
        caller asks its own flag afterwards. So what is stored and what is in memory never differ.

        Raises:
            StorageError: nothing of the step is stored.
        """
        now = self._clock.wall()
        writes = WriteSet(
            entries=self._entries(turn_id, entries, now),
            steer_updates=tuple(SteerUpdate(steer, turn_id) for steer in steers),
            session_updates=(self._session_update(len(entries), now),),
            events=(NewEvent(self.session_id, turn_id, now, trace),),
        )
        self._wait(writes)
        self._advance(len(entries))

    def finish(
        self,
        ticket: Ticket,
        ended: TurnEnded,
        ref: pykka.ActorRef[Any],
        *,
        steers: Sequence[int],
        leftovers: Sequence[SteerRequest],
    ) -> None:
        """Store the end of a turn in one transaction: its last entries, its terminal row, the session.

        The row of its message, where that has not gone to the disk yet, is stored by the same write. `ref`
        hears `TurnStored` when that is done.

        Args:
            steers: ids of steers whose entries are among the turn's last.
            leftovers: steers that become queued turns.
        """
        now, entries = self._clock.wall(), ended.entries
        growing = None if steers or leftovers else self._grows(ticket)
        writes = WriteSet(
            () if growing is None else growing.work.new_turns,  # type: ignore[union-attr]  # as `_grows` says
            (self._ended(ticket, ended.result),),
            self._entries(ticket.turn_id, entries, now),
            (self._session_update(len(entries), now),),
        )
        if growing is not None:
            notice = TurnStored(ended, (), None, True)
            if self._store.grow(growing, writes, TurnEnd(self, ref, notice, writes)):
                return
            writes = writes._replace(new_turns=())  # it went to the disk just now
        elif steers or leftovers:
            applied = [SteerUpdate(steer, ticket.turn_id) for steer in steers]
            placed = [SteerUpdate(steer.id, steer.ticket.turn_id) for steer in leftovers]
            writes = writes._replace(
                new_turns=tuple([self._row(steer.ticket, "queued") for steer in leftovers]),
                steer_updates=(*applied, *placed),
            )
        notice = TurnStored(ended, tuple([steer.ticket for steer in leftovers]))
        self._store_with_owed(writes, TurnEnd(self, ref, notice, writes))

    def _grows(self, ticket: Ticket) -> Item | None:
        """The write that stores the row of a ticket's message, if that is the last one and may still grow."""
        item, self._growing = self._growing, None
        if item is None or item.taken or self._fence is not None or not isinstance(item.work, WriteSet):
            return None
        return item if item.work.new_turns[0].id == ticket.turn_id else None

    def stored(self, writes: WriteSet) -> None:
        """The end of a turn is committed."""
        self._advance(len(writes.entries))

    def owe_end(self, writes: WriteSet, notice: TurnStored, error: BaseException) -> None:
        """The end of a turn could not be stored: that it failed, as its caller is told, is to be stored."""
        ticket = notice.ended.turn.ticket
        self._owe(
            WriteSet(
                new_turns=tuple(self._failed_row(left, error) for left in notice.leftovers),
                turn_updates=(self._ended(ticket, self._failure(ticket, error)),),
                steer_updates=writes.steer_updates,
            )
        )

    # -- the session itself ------------------------------------------------------------------------

    def compact(self, archive: str, summary: str, *, scope: str) -> None:
        """Store an archive, its marker and the session row in one transaction, and wait, as `step` does.

        Raises:
            StorageError: nothing is stored and history stays as it was.
        """
        if self._fence is not None:
            raise self._fence
        job = partial(
            sessions.store_compaction,
            session_id=self.session_id,
            expected_revision=self.revision,
            covered_seq=self.next_seq,
            archive_name=archive,
            content=summary,
            agent=self._state.agent,
            scope=scope,
            at=self._clock.wall(),
        )
        wait_through_kills(self._store.begin(job))
        self.revision += 1

    def set_title(self, title: str) -> None:
        """Store a title where there is none; not waited for."""
        self._store.submit(partial(sessions.set_title, session_id=self.session_id, title=title))

    # -- ends that could not be stored -------------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Whether an end is still to be stored that could not be stored in its time."""
        return bool(self._owed)

    def pay(self, then: Then) -> None:
        """Try once more to store what is owed."""
        self._write(WriteSet(), then)

    def _owe(self, writes: WriteSet) -> None:
        self._owed = (*self._owed, writes)

    def _store_with_owed(
        self, writes: WriteSet, then: Callable[[Any, BaseException | None], None]
    ) -> Item | None:
        """Store `writes` and what is owed, together or not at all: what came later is never stored alone.

        Returns:
            The write on its way, if it is that of `writes` alone.
        """
        self._growing = None
        if self._fence is not None:
            then(None, self._fence)
            return None
        if not self._owed:
            return self._store.write(writes, then)
        owed, self._owed = self._owed, ()
        self._store.write(merged((*owed, writes)), self._owing(owed, then))
        return None

    def _owing(
        self, owed: tuple[WriteSet, ...], then: Callable[[Any, BaseException | None], None]
    ) -> Callable[[Any, BaseException | None], None]:
        """`then`, after noting that `owed` is owed still, where it could not be stored."""
        if not owed:
            return then

        def noted(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._owed = (*owed, *self._owed)
            then(value, error)

        return noted

    # -- rows --------------------------------------------------------------------------------------

    def _write(self, writes: WriteSet, then: Then) -> None:
        self._store_with_owed(writes, lambda _value, error: then(error))

    def _wait(self, writes: WriteSet) -> None:
        future: GreenletFuture[None] = GreenletFuture()
        self._store_with_owed(writes, partial(settle, future))
        wait_through_kills(future)

    def _failure(self, ticket: Ticket, error: BaseException) -> TurnResult:
        words = f"what became of this turn could not be stored: {error}"
        return TurnResult("", "error", words, conversation_id=self._state.id, turn_id=ticket.turn_id)

    def _failed_row(self, ticket: Ticket, error: BaseException) -> TurnRow:
        result = self._failure(ticket, error)
        row = self._row(ticket, "failed")
        return evolve(row, result=result, error=result.error, finished_at=self._clock.wall())

    def _row(self, ticket: Ticket, state: TurnState) -> TurnRow:
        # By their places, as is what follows: every turn makes them, and names take longer.
        return TurnRow(
            ticket.turn_id,
            self.session_id,
            ticket.sender,
            ticket.content,
            state,
            1 if state == "running" else 0,
            ticket.key,
            ticket.guest,
            ticket.tool_choice,
            ticket.accepted_at or self._clock.wall(),
        )

    def _ended(self, ticket: Ticket, result: TurnResult) -> TurnUpdate:
        state = STATE_OF_STOP[result.stop_reason]
        return TurnUpdate(ticket.turn_id, state, None, result, result.error, self._clock.wall())

    def _entries(self, turn_id: int, entries: Sequence[HistoryEntry], now: float) -> tuple[NewEntry, ...]:
        session, seq = self.session_id, self.next_seq
        return tuple([NewEntry(session, seq + at, turn_id, entry, now) for at, entry in enumerate(entries)])

    def _session_update(self, new_entries: int, now: float) -> SessionUpdate:
        return SessionUpdate(
            self.session_id,
            now,
            round(self._state.uptime_s * 1000),
            self.revision + 1,
            self.next_seq + new_entries,
            self._state.title,
        )

    def _advance(self, new_entries: int) -> None:
        self.next_seq += new_entries
        self.revision += 1


def wait_through_kills(future: GreenletFuture[Any]) -> None:
    """Wait for a commit that has begun, whoever kills the waiting greenlet meanwhile."""
    while True:
        try:
            future.get()
        except GreenletExit:
            continue
        return
