"""How a simulated run comes to rest: the faults stop, everything ends in time, the file is as told."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Protocol

import gevent

from actors.errors import ConversationNotFound, MailboxFull
from actors.history import resumed
from palaver.runtime import Runtime
from palaver.simulation.checks.ledger import Ledger, Message
from palaver.simulation.checks.stored import Stored, compare, left_in_order
from palaver.simulation.checks.watch import Watch
from persistence import sessions
from persistence.inline import InlineWorker
from persistence.verify import verify

HEAL_S = 600.0
SPOKEN_TO = 200  # conversations that are used once more, at most


class Healed(Protocol):
    """What comes to rest. Its faults have stopped."""

    ledger: Ledger
    watch: Watch

    @property
    def now(self) -> float:
        """Virtual seconds since it began."""

    def require(self, fact: object, guarantee: int, what: str) -> None:
        """As `Ledger.require`."""

    def message(self, by: str, agent: str, sender: str) -> Message:
        """A new message, which nobody has sent before."""


def heal(run: Healed, rt: Runtime, worker: InlineWorker) -> None:
    """Wait until all has ended, use every conversation once more, compare, shut down.

    Raises:
        Broken: what does not hold.
    """
    began = run.now
    for session in rt.unfinished():
        _take_up(run, rt, session.handle, began)
    _wait_until_quiet(run, rt, began)
    _wait_until_stored(run, worker, began)
    for info in rt.list_active()[:SPOKEN_TO]:
        message = run.message("heal", info.agent, info.sender)
        run.ledger.sent(message, run.watch.handle_of(info.id))
        try:
            result = rt.send(info.id, message.content, timeout=HEAL_S)
        except ConversationNotFound as error:
            run.require(info.topic is None, 15, f"{info} is gone: only a tmp chat may expire")
            run.ledger.refused(message, error)
            continue
        run.ledger.told(message, result)
        run.require(result.stop_reason == "text_response", 19, f"after the faults: {result}")
    _wait_until_quiet(run, rt, began)
    run.ledger.settle()
    lost = unended(run.ledger)
    run.require(not lost, 19, f"messages without an end: {lost}")
    compare(run.ledger, worker.call(Stored.read))
    _check_nothing_counted(run, rt)
    _check_live(run, rt, worker)
    problems = worker.call(verify)
    run.require(not problems, 2, f"verify: {problems}")
    rt.shutdown()


def unended(ledger: Ledger) -> list[str]:
    """Messages of this life whose tickets have no end."""
    tickets = [message.ticket for message in ledger.of_this_life()]
    return [ticket.content for ticket in tickets if ticket is not None and not ticket.done]


def _take_up(run: Healed, rt: Runtime, handle: str, began: float) -> None:
    """As soon as there is room: others that an earlier life left may be at work in all there is."""
    while True:
        try:
            rt.load(handle)
        except MailboxFull as full:
            run.require(run.now - began <= HEAL_S, 19, f"{HEAL_S:.0f} s after the last fault: {full}")
            gevent.sleep(1.0)
        else:
            return


def _wait_until_quiet(run: Healed, rt: Runtime, began: float) -> None:
    while not _quiet(rt):
        run.require(run.now - began <= HEAL_S, 19, _not_quiet(run, rt))
        gevent.sleep(1.0)


def _not_quiet(run: Healed, rt: Runtime) -> str:
    """What still goes on, without what differs from one machine to the next, such as memory."""
    stats = rt.stats()
    live = {state: count for state, count in stats.conversations.items() if count}
    return (
        f"{HEAL_S:.0f} s after the last fault {stats.queued} messages wait, {stats.running} turns run, live "
        f"conversations are {live}, and messages without an end {unended(run.ledger)}"
    )


def _wait_until_stored(run: Healed, worker: InlineWorker, began: float) -> None:
    """Also the ends that could not be stored in their time, in conversations that nobody uses."""
    while left := worker.call(left_in_order):
        late = run.now - began > HEAL_S
        run.require(not late, 19, f"{HEAL_S} s after the last fault the file has no end of {left}")
        gevent.sleep(10.0)


def _quiet(rt: Runtime) -> bool:
    """Whether nothing runs, waits, opens or closes."""
    stats = rt.stats()
    counts = stats.conversations
    busy = stats.running + stats.queued + stats.database_waiting
    return not (busy or counts["opening"] or counts["running"] or counts["closing"])


def _check_nothing_counted(run: Healed, rt: Runtime) -> None:
    directory = rt._services.directory  # noqa: SLF001 - counters that no caller can see must be back at 0
    counted = [*directory.tickets.values(), *directory.queued_by_sender]
    run.require(not counted, 14, f"turns are counted that have ended: {counted}")
    stats = rt.stats()
    phases = Counter(state.phase for state in directory.conversations.values())
    same = {phase: number for phase, number in stats.conversations.items() if number} == phases
    run.require(same, 14, f"{phases} conversations are live, and {stats.conversations} are counted")


def _check_live(run: Healed, rt: Runtime, worker: InlineWorker) -> None:
    """Every live history is the one that opening the session anew would give."""
    for cid in rt.conversations():
        shown = rt.conversation(cid)
        if shown is not None and shown.handle is not None:
            stored = worker.call(partial(sessions.load_session, handle=shown.handle))
            again = resumed(stored.summary.archive, stored.archive_content, stored.live)
            same = list(shown.history) == again
            run.require(same, 3, f"the live history of {shown.handle} is not the stored one")
