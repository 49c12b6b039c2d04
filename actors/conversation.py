"""The conversation actor: turns, steering, cancel, compaction and close, in mailbox order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import gevent

from actors import compaction, titles
from actors.errors import (
    ConversationClosed,
    HandlerFailed,
    RuntimeClosed,
)
from actors.events import DeadLettered
from actors.greenlet import GreenletFuture
from actors.journal import Journal
from actors.logs import log
from actors.messages import (
    AutomaticCompactionFailed,
    CancelTurn,
    Close,
    ClosedTurnsStored,
    Compact,
    CompactionDone,
    ConversationOpened,
    Detach,
    HistoryCompacted,
    ListTickets,
    OpeningFailed,
    OpenSession,
    OwedStored,
    Passivate,
    PayOwed,
    Proceed,
    SessionReady,
    SetTimer,
    Settle,
    Steer,
    SteerJournalled,
    StepStored,
    Submit,
    Suspend,
    TimerJournalled,
    TitleProposed,
    TurnEnded,
    TurnJournalled,
    TurnStored,
)
from actors.opening import (
    needs_description,
    session_job,
    session_ready,
    take_session,
    unfinished_tickets,
)
from actors.state import CompactOutcome
from actors.storage import notify
from actors.ticket import Ticket
from actors.timing import Timing
from actors.workqueue import CompactionWork
from persistence.errors import StorageError
from persistence.records import HistoryEntry, TurnResult, TurnRow, UnfinishedWork

logger = logging.getLogger("palaver.conversation")


class ConversationActor(Timing):
    """One live conversation of an agent and a sender.

    Args:
        state: what the directory shows of it; written here alone. With a topic, the actor opens its
            session on `OpenSession` and lets everything else wait until then.
        moved: what another runtime handed over, if it comes from there.
    """

    def on_receive(self, message: Any) -> Any:
        if self._early is not None and isinstance(message, Submit | Steer | SetTimer | Compact | Close):
            return self._wait_for_opening(message)
        self._handled = message
        match message:
            case Submit():
                return self._submit(message.ticket)
            case TurnEnded():
                return self._turn_ended(message)
            case TurnStored():
                return self._turn_stored(message)
            case TurnJournalled():
                return self._turn_journalled(message)
            case StepStored():
                return self._state.history.extend(message.entries)
            case Steer():
                return self._steer(message.ticket)
            case SteerJournalled():
                return self._steer_journalled(message)
            case SetTimer():
                return self._set_timer(message)
            case HistoryCompacted():
                return self._history_compacted(message)
            case AutomaticCompactionFailed():
                return self._automatic_compaction_failed(message)
            case ListTickets():
                return self._tickets()
            case CancelTurn():
                return self._cancel(message.turn_id)
            case ClosedTurnsStored():
                return self._closed_turns_stored(message)
            case PayOwed():
                return self._pay_owed()
            case OwedStored() | TimerJournalled():
                self._writes -= 1
                return self._advance()
            case Compact():
                return self._compact()
            case CompactionDone():
                return self._compaction_done(message)
            case TitleProposed():
                return self._title_proposed(message.title)
            case OpenSession():
                return self._open_session(message)
            case SessionReady():
                return self._session_ready(message)
            case Close():
                return self._close(message)
            case Passivate():
                return self._passivate()
            case Proceed():
                return self._proceed()
            case Settle():
                return self._settle()
            case Suspend():
                return self._suspend()
            case Detach():
                return self._detach()
            case _:
                raise TypeError(f"a conversation does not understand {message!r}")

    # -- opening -----------------------------------------------------------------------------------

    def _open_session(self, message: OpenSession) -> None:
        ref = self.actor_ref
        self._services.store.submit(
            session_job(self._services, self._state, message),
            lambda found, error: notify(ref, session_ready(found, error)),
        )

    def _wait_for_opening(self, message: Any) -> Any:
        assert self._early is not None
        if isinstance(message, Compact):
            reply: GreenletFuture[CompactOutcome] = GreenletFuture()
            self._early.append(CompactionWork(reply))
            return reply
        self._early.append(message)
        return None

    def _session_ready(self, message: SessionReady) -> None:
        session = message.session
        if session is None:
            self._opening_failed(message.error or needs_description(self._state))
            return
        take_session(self._state, session)
        self._journal = Journal(self._services, session, self._state)
        early, self._early = self._early or [], None
        self._finished = len(self._state.history)
        early = [*self._bring_back(message.unfinished, message.outcomes), *early]
        self._tell_registry(ConversationOpened(self._state.id, session.summary.handle, message.resumed))
        self._go_on()
        for waiting in early:
            if isinstance(waiting, CompactionWork):
                self._take_compaction(waiting)
            else:
                self.on_receive(waiting)
        self._advance()

    def _bring_back(self, unfinished: UnfinishedWork, outcomes: Mapping[int, TurnRow]) -> list[Submit]:
        """Queue what an earlier life of the session left undone, before anything new; answer whoever waits
        for what had ended. Returns what was never accepted, to be submitted again."""
        state, most, directory = self._state, self._services.limits.attempts, self._services.directory
        orphans, self._orphans = self._orphans, {}
        exhausted: list[Ticket] = []
        for ticket in unfinished_tickets(state, unfinished, orphans):
            ticket.owner = self.actor_ref
            if orphans.pop(ticket.turn_id, None) is None:
                directory.hold(ticket, state.sender)
            if ticket.attempts >= most and ticket.last_answer is None:
                exhausted.append(ticket)
            else:
                self._queue.append(ticket)
        if exhausted:
            self._end_exhausted(exhausted)
        return self._settle_orphans(orphans, outcomes)

    def _settle_orphans(
        self, orphans: Mapping[int, Ticket], outcomes: Mapping[int, TurnRow] | None = None
    ) -> list[Submit]:
        """Answer whoever waits for a turn that is not to be run now, or let it be submitted again."""
        again = []
        for turn_id, ticket in sorted(orphans.items()):
            self._services.directory.release(turn_id, self._state.sender)
            row = None if outcomes is None else outcomes.get(turn_id)
            host = None if row is None else self._services.directory.tickets.get(row.id)
            if row is not None and row.result is not None:
                ticket.take_up(ticket.accepted_at, ticket.attempts, from_steer=ticket.from_steer)
                self._finish(ticket, row.result)
            elif host is not None:
                ticket.take_up(ticket.accepted_at, ticket.attempts, from_steer=True)
                ticket.follow(host)
            elif ticket.durable or ticket.from_steer or ticket.crashes >= self._services.limits.attempts:
                words = f"the conversation failed, and turn {turn_id} with it; send it again"
                ticket.fail(HandlerFailed(words))
            else:
                again.append(Submit(ticket))
        return again

    def _proceed(self) -> None:
        """Go on after a move; a tmp chat, which has nothing but its memory, also after a death."""
        orphans, self._orphans = self._orphans, {}
        accepted = sorted(
            (ticket for ticket in orphans.values() if ticket.durable),
            key=lambda ticket: (ticket.state != "running", not ticket.from_steer, ticket.turn_id),
        )
        for ticket in accepted:
            del orphans[ticket.turn_id]
            ticket.take_up(ticket.accepted_at, ticket.attempts, from_steer=ticket.from_steer)
            self._queue.append(ticket)
        exhausted = [t for t in accepted if t.attempts >= self._services.limits.attempts]
        for ticket in exhausted:
            self._queue.remove(ticket)
        if exhausted:
            self._end_exhausted(exhausted)
        self._go_on()
        for message in self._settle_orphans(orphans):
            self._submit(message.ticket)
        self._advance()

    def _go_on(self) -> None:
        """Start what was brought back before anything new is looked at: the turn that ran before runs now, so
        that an interrupt cancels it, and does not come between two of its steps."""
        if self._queue:
            self._advance()

    def _end_exhausted(self, tickets: Sequence[Ticket]) -> None:
        """Turns that took their process or conversation down each time end as failed, with the reason."""
        results = [
            TurnResult(
                "",
                "error",
                f"given up: the turn was begun {ticket.attempts} times, and each time its process or "
                "conversation ended before it did",
                conversation_id=self._state.id,
                turn_id=ticket.turn_id,
            )
            for ticket in tickets
        ]
        for ticket, result in zip(tickets, results, strict=True):
            self._services.incidents.report(DeadLettered(ticket.turn_id, result.error or ""), self._state)
        self._end_without_running(tickets, results, dead=True)

    def _opening_failed(self, error: BaseException) -> None:
        early, self._early = self._early or [], None
        for waiting in early:
            if isinstance(waiting, CompactionWork):
                waiting.reply.fail(error)
            elif isinstance(waiting, Submit | Steer | SetTimer):
                waiting.fail(error)
        self._refusal = ConversationClosed(f"conversation {self._state.id} could not be opened: {error}")
        self._tell_registry(OpeningFailed(self._state.id, error))
        self.stop()

    # -- looking -----------------------------------------------------------------------------------

    def _tickets(self) -> list[Ticket]:
        turn = self._steerable
        running = [] if turn is None else [turn.ticket, *(steer.ticket for steer in turn.steers)]
        waiting = [work for work in self._queue if isinstance(work, Ticket)]
        return [ticket for ticket in (*running, *waiting) if ticket.durable and not ticket.done]

    # -- running turns -----------------------------------------------------------------------------

    def _turn_ended(self, ended: TurnEnded) -> None:
        turn = ended.turn
        spent = self._services.clock.monotonic() - turn.started_at
        self._state.uptime_s += spent
        # Steers that the turn did not come to become turns, before all others, in order.
        leftovers = tuple(turn.steers)
        turn.steers.clear()
        tickets = tuple(steer.ticket for steer in leftovers)
        if self._journal is None:
            self._turn_stored(TurnStored(ended, tickets))
            return
        self._writes += 1
        if turn.ticket.refused:
            self._turn_stored(TurnStored(ended, tickets, StorageError("the turn was never accepted")))
            return
        self._journal.finish(turn.ticket, ended, self.actor_ref, steers=turn.applied, leftovers=leftovers)

    def _turn_stored(self, message: TurnStored) -> None:
        ended, error = message.ended, message.error
        if self._journal is not None:
            self._writes -= 1
        ticket = ended.turn.ticket
        if message.accepted:
            self._accepted_at_its_end(ticket)
        self._services.directory.release(ticket.turn_id, self._state.sender)
        if error is None:
            self._state.history.extend(ended.entries)
            took = self._services.clock.monotonic() - ended.turn.started_at
            self._services.directory.counts.took.add(took)
            self._finished = len(self._state.history)
            self._finish(ticket, ended.result)
            self._place_leftovers(message.leftovers)
        else:
            words = "the end of a turn was not stored"
            log(logger, logging.ERROR, words, self._state, turn=ticket.turn_id, reason=str(error))
            for lost in (ticket, *message.leftovers):
                self._services.directory.release(lost.turn_id, self._state.sender)
                lost.fail(error)
        cancelled = error is None and ended.result.stop_reason == "cancelled"
        if self._cancels:
            self._answer_cancels(ticket.turn_id, ended_it=cancelled)
        if self._early_steers:
            self._take_early_steers(ticket)
        self._activity = None
        self._propose_title()
        self._advance()

    def _accepted_at_its_end(self, ticket: Ticket) -> None:
        """The row of a message was committed together with the end of its turn."""
        self._writes -= 1
        ticket.accept()
        if self._early_steers:
            self._take_early_steers(ticket)

    def _place_leftovers(self, tickets: tuple[Ticket, ...]) -> None:
        for ticket in tickets:
            self._queue.put_steer(ticket)
        shut_down = self._journal is None and isinstance(self._refusal, RuntimeClosed)
        if self._closing or shut_down:
            self._end_unrun(lambda _queued: True)

    # -- compaction --------------------------------------------------------------------------------

    def _compact(self) -> GreenletFuture[CompactOutcome]:
        reply: GreenletFuture[CompactOutcome] = GreenletFuture()
        self._take_compaction(CompactionWork(reply))
        return reply

    def _take_compaction(self, work: CompactionWork) -> None:
        if self._refusal is not None:
            work.reply.fail(self._refusal)
            return
        self._queue.append(work)
        self._advance()

    def _compaction_done(self, message: CompactionDone) -> None:
        work = self._activity
        assert isinstance(work, CompactionWork)
        if message.error is not None:
            work.reply.fail(message.error)
        else:
            work.reply.set(message.outcome)
        self._activity = None
        self._advance()

    def _history_compacted(self, message: HistoryCompacted) -> None:
        self._state.history.replace(HistoryEntry("user", message.summary))
        self._finished = 1
        self._state.compaction_failures = 0

    def _automatic_compaction_failed(self, message: AutomaticCompactionFailed) -> None:
        self._state.compaction_failures += 1
        paused = self._state.compaction_failures >= compaction.FAILURES_BEFORE_PAUSE
        words = "automatic compaction failed"
        log(logger, logging.WARNING, words, self._state, paused=paused, reason=message.error)

    # -- titles ------------------------------------------------------------------------------------

    def _propose_title(self) -> None:
        if self._title_greenlet is None and not self._closing and titles.wanted(self._services, self._state):
            self._title_greenlet = gevent.spawn(titles.propose, self._services, self._state, self.actor_ref)

    def _title_proposed(self, title: str) -> None:
        self._title_greenlet = None
        if title and not self._state.title:
            self._state.title = title
            if self._journal is not None:
                self._journal.set_title(title)
