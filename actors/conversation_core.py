"""The core of a conversation actor: what waits, the one activity that runs, and coming to rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import gevent

from actors import compaction
from actors.errors import (
    ConversationClosed,
    RuntimeClosed,
)
from actors.events import Done
from actors.greenlet import GreenletActor, GreenletFuture
from actors.journal import Journal
from actors.messages import (
    CompactionDone,
    ConversationStopped,
    OwedStored,
    PayOwed,
)
from actors.opening import log_repairs
from actors.services import Services
from actors.state import CompactOutcome, ConversationPhase, ConversationState, Fate
from actors.storage import notify
from actors.ticket import Ticket
from actors.transfer import MovedConversation
from actors.turn import Turn, emit
from actors.workqueue import CompactionWork, Work, WorkQueue
from persistence.records import TurnResult

PAY_AGAIN_S = 5.0

T = TypeVar("T")


class _AtFirstUse(Generic[T]):
    """An attribute that is made when it is first read. Unlike a `__getattr__` it takes nothing from the other
    attributes of its class: with one of those, each of them is looked up the slow way."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[object] | None = None) -> T:
        made = self._make()
        setattr(instance, self._name, made)
        return made


class ConversationCore(GreenletActor):
    """What the parts of a conversation actor share. At most one activity (a turn or a compaction) runs at a
    time, in a child greenlet; everything else waits in the queue, in the order of acceptance.

    Most conversations sit idle: what one has not used yet stands in the class, or is made at its first use.
    """

    _journal: Journal | None = None
    _activity: Turn | CompactionWork | None = None
    _writes = 0  # commits under way that this conversation waits for
    _steering = 0  # steers on their way to the journal: if their turn ends, they are what runs next
    _refusal: Exception | None = None  # why nothing new is taken, once it is so
    _closing = False
    _paid_last = False  # what is owed was tried once more, at the end
    _held = False  # no new activity starts
    _handled: Any = None  # the message that is being handled, or was last
    _on_quiet: GreenletFuture[Any] | None = None
    _title_greenlet: gevent.Greenlet | None = None
    _pay_timer: gevent.Greenlet | None = None
    _queue = _AtFirstUse(WorkQueue)
    _cancels = _AtFirstUse[dict[int, list[tuple[GreenletFuture[bool], bool]]]](dict)
    _looked_up = _AtFirstUse[dict[int, Ticket]](dict)  # whose keys are asked for
    _early_steers = _AtFirstUse[list[Ticket]](list)  # of a turn that is being stored
    _ending = _AtFirstUse[dict[int, list[GreenletFuture[bool]]]](dict)  # under way, and who cancels too late
    _keys = _AtFirstUse[dict[str, Ticket]](dict)  # a tmp chat's idempotency keys
    _undelivered = _AtFirstUse[list[Any]](list)  # messages that came after the last one that was handled
    _settled = _AtFirstUse[list[GreenletFuture[None]]](list)
    _orphans = _AtFirstUse[dict[int, Ticket]](dict)  # of a predecessor that died

    def __init__(
        self,
        services: Services,
        state: ConversationState,
        moved: MovedConversation | None = None,
        orphans: Sequence[Ticket] = (),
    ) -> None:
        super().__init__()
        self._services = services
        self._state = state
        self._early: list[Any] | None = None if state.topic is None else []
        self._finished = len(state.history.entries)  # of turns that have ended
        state.ref = self._actor_ref
        state.fate = None
        if orphans:
            self._orphans = {ticket.turn_id: ticket for ticket in orphans}
            for ticket in orphans:
                ticket.owner = self.actor_ref
        if moved is not None:
            self._move_in(moved)

    def _move_in(self, moved: MovedConversation) -> None:
        if moved.session is not None:
            self._journal = Journal(self._services, moved.session, self._state)
        self._early = None
        for ticket in moved.tickets:
            ticket.owner = self.actor_ref
            self._services.directory.hold(ticket, self._state.sender)
            self._queue.append(ticket)

    # -- what runs ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start the next thing, if nothing runs and the next thing is accepted, or may run meanwhile."""
        if self._activity is None and not self._held and not self._steering:
            work = self._queue.next()
            if isinstance(work, CompactionWork):
                self._start_compaction(work)
            elif work is not None:
                self._start_turn(work)
        self._publish()
        self._check_quiet()

    def _start_turn(self, ticket: Ticket) -> None:
        waited, ticket.state = ticket.state == "queued", "running"
        self._mend_history()
        self._activity = Turn(self._services, self.actor_ref, self._state, self._journal, ticket, waited)

    def _start_compaction(self, work: CompactionWork) -> None:
        self._activity = work
        self._mend_history()
        if not self._state.history.entries:
            notify(self.actor_ref, CompactionDone(outcome=CompactOutcome(None, None)))
            return
        work.greenlet = gevent.spawn(
            compaction.run_requested, self._services, self._state, self._journal, self.actor_ref
        )
        # Killed before it began, a greenlet runs nothing: its death is what reports then.
        work.greenlet.link(partial(compaction.report_requested, self.actor_ref))

    def _mend_history(self) -> None:
        if self._state.history.mend():
            log_repairs(self._state)

    def _stop_activity(self) -> None:
        if isinstance(self._activity, Turn):
            self._activity.cancel()
        elif isinstance(self._activity, CompactionWork) and self._activity.greenlet is not None:
            self._activity.greenlet.kill(block=False)

    # -- answering ---------------------------------------------------------------------------------

    def _finish(self, ticket: Ticket, result: TurnResult) -> None:
        """Answer everybody who waits for a turn; for a topic, its end is committed."""
        services = self._services
        ticket.finish(result)
        if services.directory.streams or services.hooks.on_event_hooks:  # the ticket's own have ended
            emit(services, self._state, ticket, Done(result))

    def _answer_cancels(self, turn_id: int, *, ended_it: bool) -> None:
        """Tell who cancelled a turn how it went; who cancelled whatever ran hears that something did."""
        for reply, whatever_runs in self._cancels.pop(turn_id, ()):
            reply.set(ended_it or whatever_runs)

    def _fail(self, works: Iterable[Work], error: BaseException) -> None:
        for work in works:
            if isinstance(work, Ticket):
                self._services.directory.release(work.turn_id, self._state.sender)
                work.fail(error)
            else:
                work.reply.fail(error)

    def _drop_compactions(self, error: Exception) -> None:
        for work in self._queue.take_compactions():
            work.reply.fail(error)

    # -- coming to rest ----------------------------------------------------------------------------

    def _check_quiet(self) -> None:
        """Answer whoever waits for this conversation to be at rest."""
        if self._activity is not None or self._writes or self._early is not None:
            return
        if not self._queue:
            for reply in self._settled:
                reply.set(None)
            self._settled.clear()
            if self._closing:
                if not self._pays_last():
                    unstored = self._journal is not None and self._journal.owes
                    if self._on_quiet is not None:
                        self._on_quiet.set(None)
                    self._leave(ConversationStopped(self._state.id, unstored=unstored))
                return
        if self._on_quiet is not None:
            if self._pays_last():
                return
            reply, self._on_quiet = self._on_quiet, None
            if isinstance(self._refusal, RuntimeClosed):
                self._fail(self._queue.take_all(), self._refusal)
                reply.set(None)
                self._leave(None)
            else:
                reply.set(self._hand_over())
                self._leave(None)
        elif self._journal is not None and self._journal.owes:
            self._pay_later()

    def _pays_last(self) -> bool:
        """Whether, before it leaves, the conversation tries once more to store what it could not."""
        if self._journal is None or not self._journal.owes or self._paid_last:
            return False
        self._paid_last = True
        self._pay_owed()
        return True

    def _pay_later(self) -> None:
        """Nothing else is stored that what is owed could go with: try again after a while."""
        if self._pay_timer is None and self._services.store.stats.failed is None:
            self._pay_timer = gevent.spawn_later(PAY_AGAIN_S, notify, self.actor_ref, PayOwed())

    def _pay_owed(self) -> None:
        timer, self._pay_timer = self._pay_timer, None
        if timer is not None:
            timer.kill(block=False)  # unless it is what asks for this
        if self._journal is not None and self._journal.owes:
            self._writes += 1
            ref = self.actor_ref
            self._journal.pay(lambda _error: notify(ref, OwedStored()))

    def _hand_over(self) -> MovedConversation:
        self._drop_compactions(ConversationClosed(f"conversation {self._state.id} has moved"))
        moved = MovedConversation(self._state, tuple(self._queue.take_accepted(lambda _ticket: True)))
        for ticket in moved.tickets:
            self._services.directory.release(ticket.turn_id, self._state.sender)
        self._services.directory.uncount(self._state)
        return moved

    def _leave(self, notice: object | None, fate: Fate = "over") -> None:
        self._stop_beside()
        self._state.fate = fate
        if notice is not None:
            self._tell_registry(notice)
        self.stop()

    def _stop_beside(self) -> None:
        """End what goes on beside the turns."""
        for greenlet in (self._title_greenlet, self._pay_timer):
            if greenlet is not None:
                greenlet.kill(block=False)

    # -- telling others ----------------------------------------------------------------------------

    def _publish(self) -> None:
        state, directory = self._state, self._services.directory
        state.queued = len(self._queue)
        phase: ConversationPhase = "closing" if self._closing else "running"
        if phase == "running" and self._activity is None:
            phase = "idle"
        directory.set_phase(state, phase)
        directory.measure(state)

    def _tell_registry(self, notice: object) -> None:
        registry = self._services.registry
        assert registry is not None
        notify(registry, notice)
