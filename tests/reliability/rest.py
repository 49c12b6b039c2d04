"""How a simulated world comes to rest: the faults stop, everything ends in time, the file is as told."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from actors.history import resumed
from palaver import ConversationNotFound, Runtime
from persistence import sessions
from persistence.inline import InlineWorker
from persistence.verify import verify
from reliability.cast import wait
from reliability.ledger import Ledger
from reliability.stored import Stored, compare, left_in_order

if TYPE_CHECKING:
    from reliability.world import World

HEAL_S = 600.0


def heal(world: World, rt: Runtime, worker: InlineWorker) -> None:
    """Stop the faults, wait until all has ended, use every conversation once more, compare, shut down."""
    world.disk.full, world.healing, began = False, True, world.now
    world.note("world", "heals")
    for session in rt.unfinished():
        rt.load(session.handle)
    _wait_until_quiet(world, rt, began)
    _wait_until_stored(world, worker, began)
    for info in rt.list_active():
        message = world.message("heal", info.agent, info.sender)
        world.ledger.sent(message, world.watch.handle_of(info.id))
        try:
            result = rt.send(info.id, message.content, timeout=HEAL_S)
        except ConversationNotFound as error:
            world.require(info.topic is None, 15, f"{info} is gone: only a tmp chat may expire")
            world.ledger.refused(message, error)
            continue
        world.ledger.told(message, result)
        world.require(result.stop_reason == "text_response", 19, f"after the faults: {result}")
    _wait_until_quiet(world, rt, began)
    world.ledger.settle()
    lost = unended(world.ledger)
    world.require(not lost, 19, f"messages without an end: {lost}")
    compare(world.ledger, worker.call(Stored.read))
    _check_nothing_counted(world, rt)
    _check_live(world, rt, worker)
    problems = worker.call(verify)
    world.require(not problems, 2, f"verify: {problems}")
    rt.shutdown()


def unended(ledger: Ledger) -> list[str]:
    """Messages of this life whose tickets have no end."""
    tickets = [message.ticket for message in ledger.of_this_life()]
    return [ticket.content for ticket in tickets if ticket is not None and not ticket.done]


def _wait_until_quiet(world: World, rt: Runtime, began: float) -> None:
    while not _quiet(rt):
        late = world.now - began > HEAL_S
        world.require(not late, 19, f"{HEAL_S} s after the last fault: {rt.stats()}, {unended(world.ledger)}")
        wait(1.0)


def _wait_until_stored(world: World, worker: InlineWorker, began: float) -> None:
    """Also the ends that could not be stored in their time, in conversations that nobody uses."""
    while left := worker.call(left_in_order):
        late = world.now - began > HEAL_S
        world.require(not late, 19, f"{HEAL_S} s after the last fault the file has no end of {left}")
        wait(10.0)


def _quiet(rt: Runtime) -> bool:
    """Whether nothing runs, waits, opens or closes."""
    stats = rt.stats()
    counts = stats.conversations
    busy = stats.running + stats.queued + stats.database_waiting
    return not (busy or counts["opening"] or counts["running"] or counts["closing"])


def _check_nothing_counted(world: World, rt: Runtime) -> None:
    directory = rt._services.directory  # noqa: SLF001 - counters that no caller can see must be back at 0
    counted = [*directory.tickets.values(), *directory.queued_by_sender]
    world.require(not counted, 14, f"turns are counted that have ended: {counted}")
    stats = rt.stats()
    phases = Counter(state.phase for state in directory.conversations.values())
    same = {phase: number for phase, number in stats.conversations.items() if number} == phases
    world.require(same, 14, f"{phases} conversations are live, and {stats.conversations} are counted")


def _check_live(world: World, rt: Runtime, worker: InlineWorker) -> None:
    """Every live history is the one that opening the session anew would give."""
    for cid in rt.conversations():
        shown = rt.conversation(cid)
        if shown is not None and shown.handle is not None:
            stored = worker.call(partial(sessions.load_session, handle=shown.handle))
            again = resumed(stored.summary.archive, stored.archive_content, stored.live)
            same = list(shown.history) == again
            world.require(same, 3, f"the live history of {shown.handle} is not the stored one")
