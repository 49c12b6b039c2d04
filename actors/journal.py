"""What one conversation writes to its session: accepted turns, steps, ends, compactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import evolve
from gevent import GreenletExit

from actors.greenlet import GreenletFuture
from actors.state import ConversationState
from actors.storage import Store, settle
from actors.ticket import SteerRequest, Ticket
from persistence import sessions, turns
from persistence.records import (
    STATE_OF_STOP,
    HistoryEntry,
    StoredSession,
    TurnResult,
    TurnRow,
    TurnState,
)
from persistence.sources import Clock
from persistence.writes import (
    NewEntry,
    NewEvent,
    NewSteer,
    SessionUpdate,
    SteerUpdate,
    TurnUpdate,
    WriteSet,
)

Then = Callable[[BaseException | None], None]


class Journal:
    """The writer of one stored session. One turn at a time uses it, so `next_seq` needs no lock.

    Positions move on only when a commit has succeeded: a failed one leaves no gap.
    """

    __slots__ = ("_clock", "_state", "_store", "next_seq", "revision", "session_id")

    def __init__(self, store: Store, clock: Clock, session: StoredSession, state: ConversationState) -> None:
        self._store = store
        self._clock = clock
        self._state = state
        self.session_id = session.id
        self.next_seq = session.next_seq
        self.revision = session.revision

    # -- accepting ---------------------------------------------------------------------------------

    def accept(
        self,
        ticket: Ticket,
        state: TurnState,
        then: Callable[[TurnRow | None, BaseException | None], None],
    ) -> None:
        """Store an accepted message. `then` gets (None, None), or the row accepted under the same key
        by this agent and sender, or the error."""
        row = self._row(ticket, state)
        if ticket.key is None:
            self._store.write(WriteSet(new_turns=(row,)), then)
        else:
            job = partial(turns.accept_keyed, row=row, agent=self._state.agent, sender=self._state.sender)
            self._store.submit(job, then)

    def started(self, ticket: Ticket, attempts: int) -> None:
        """A queued turn runs now. Not waited for: it is committed before whatever the turn stores."""
        self._store.write(WriteSet(turn_updates=(TurnUpdate(ticket.turn_id, "running", attempts),)))

    def steer(self, steer: SteerRequest, turn_id: int, then: Then) -> None:
        """Store an accepted steer of a running turn."""
        ticket = steer.ticket
        new = NewSteer(steer.id, self.session_id, turn_id, ticket.sender, ticket.content, self._clock.wall())
        self._write(WriteSet(new_steers=(new,)), then)

    def steer_as_turn(self, steer: SteerRequest, then: Then) -> None:
        """A stored steer whose turn ended first becomes a turn of its own."""
        writes = WriteSet(
            new_turns=(self._row(steer.ticket, "queued"),),
            steer_updates=(SteerUpdate(steer.id, steer.ticket.turn_id),),
        )
        self._write(writes, then)

    def end_steer(self, steer: SteerRequest, result: TurnResult, then: Then) -> None:
        """A stored steer ends without having been applied: as a turn that did not run."""
        row = evolve(
            self._row(steer.ticket, STATE_OF_STOP[result.stop_reason]),
            result=result,
            finished_at=self._clock.wall(),
        )
        writes = WriteSet(new_turns=(row,), steer_updates=(SteerUpdate(steer.id, steer.ticket.turn_id),))
        self._write(writes, then)

    def end_unrun(self, tickets: Sequence[Ticket], results: Sequence[TurnResult], then: Then) -> None:
        """Turns that end without having run."""
        updates = tuple(self._ended(ticket, result) for ticket, result in zip(tickets, results, strict=True))
        self._write(WriteSet(turn_updates=updates), then)

    # -- a turn's steps and its end ----------------------------------------------------------------

    def step(self, turn_id: int, entries: Sequence[HistoryEntry], steers: Sequence[int], trace: str) -> None:
        """Store a whole step in one transaction; waits for its commit in the turn's greenlet.

        A cancel that comes while the commit is under way is not lost and does not interrupt it: the
        caller asks its own flag afterwards. So what is stored and what is in memory never differ.

        Raises:
            StorageError: nothing of the step is stored.
        """
        writes = WriteSet(
            entries=self._entries(turn_id, entries),
            steer_updates=tuple(SteerUpdate(steer, turn_id) for steer in steers),
            session_updates=(self._session_update(len(entries)),),
            events=(NewEvent(self.session_id, turn_id, self._clock.wall(), trace),),
        )
        future: GreenletFuture[None] = GreenletFuture()
        self._store.write(writes, partial(settle, future))
        wait_through_kills(future)
        self._advance(len(entries))

    def finish(
        self,
        ticket: Ticket,
        result: TurnResult,
        *,
        entries: Sequence[HistoryEntry],
        steers: Sequence[int],
        trace: str,
        leftovers: Sequence[SteerRequest],
        then: Then,
    ) -> None:
        """Store the end of a turn in one transaction: its last entries, its terminal row, the session.

        Args:
            steers: ids of steers whose entries are among `entries`.
            leftovers: steers that become queued turns.
        """
        writes = WriteSet(
            new_turns=tuple(self._row(steer.ticket, "queued") for steer in leftovers),
            turn_updates=(self._ended(ticket, result),),
            entries=self._entries(ticket.turn_id, entries),
            steer_updates=(
                *(SteerUpdate(steer, ticket.turn_id) for steer in steers),
                *(SteerUpdate(steer.id, steer.ticket.turn_id) for steer in leftovers),
            ),
            session_updates=(self._session_update(len(entries)),),
            events=(NewEvent(self.session_id, ticket.turn_id, self._clock.wall(), trace),),
        )

        def committed(_value: None, error: BaseException | None) -> None:
            if error is None:
                self._advance(len(entries))
            then(error)

        self._store.write(writes, committed)

    # -- the session itself ------------------------------------------------------------------------

    def compact(self, archive: str, summary: str, *, scope: str) -> None:
        """Store an archive, its marker and the session row in one transaction, and wait, as `step` does.

        Raises:
            StorageError: nothing is stored and history stays as it was.
        """
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

    # -- rows --------------------------------------------------------------------------------------

    def _write(self, writes: WriteSet, then: Then) -> None:
        self._store.write(writes, lambda _value, error: then(error))

    def _row(self, ticket: Ticket, state: TurnState) -> TurnRow:
        return TurnRow(
            id=ticket.turn_id,
            session_id=self.session_id,
            sender=ticket.sender,
            content=ticket.content,
            state=state,
            attempts=1 if state == "running" else 0,
            key=ticket.key,
            guest=ticket.guest,
            tool_choice=ticket.tool_choice,
            accepted_at=ticket.accepted_at or self._clock.wall(),
        )

    def _ended(self, ticket: Ticket, result: TurnResult) -> TurnUpdate:
        return TurnUpdate(
            ticket.turn_id,
            STATE_OF_STOP[result.stop_reason],
            result=result,
            error=result.error,
            finished_at=self._clock.wall(),
        )

    def _entries(self, turn_id: int, entries: Sequence[HistoryEntry]) -> tuple[NewEntry, ...]:
        now = self._clock.wall()
        return tuple(
            NewEntry(self.session_id, seq, turn_id, entry, now)
            for seq, entry in enumerate(entries, start=self.next_seq)
        )

    def _session_update(self, new_entries: int) -> SessionUpdate:
        return SessionUpdate(
            self.session_id,
            self._clock.wall(),
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
