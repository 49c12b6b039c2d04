"""What the tests of turns share: a runtime that is checked when it ends, races, and a model held by hand."""

from __future__ import annotations

import functools
import gc
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent._monitor import PeriodicMonitoringThread
from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.queue import Queue
from support import deadline

from actors.history import resumed
from actors.services import Services
from palaver import AgentConfig, HistoryEntry, ModelRequest, Reply, Runtime, ScriptedModel, Ticket, TurnResult
from persistence import sessions
from persistence.database import close_database, open_database
from persistence.verify import verify

AGENT = "crab"
OURS = ("/actors/", "/palaver/", "/persistence/")


# -- a runtime, and what must be true of it ------------------------------------------------------------


@contextmanager
def runtime(
    path: Path | str, model: Any = None, *agents: AgentConfig, checked: bool = True, **options: Any
) -> Iterator[Runtime]:
    """A runtime with the agent "crab" (or those given); it must end at rest, and its file sound."""
    rt = Runtime.open(path, ScriptedModel() if model is None else model, **options)
    try:
        for agent in agents or (AgentConfig(name=AGENT),):
            rt.add_agent(agent)
        yield rt
        if checked:
            assert_at_rest(rt)
    except BaseException:
        rt.shutdown(drain=0)
        raise
    rt.shutdown()
    if checked and str(path) != ":memory:":
        assert_sound(path)


def services(rt: Runtime) -> Services:
    """The parts of a runtime, for assertions about what must not be left in them."""
    return rt._services  # noqa: SLF001 - counters that no caller can see must be back at 0 too


def assert_at_rest(rt: Runtime) -> None:
    """Nothing is counted as waiting or running, and the file is sound."""
    directory = services(rt).directory
    assert directory.tickets == {}
    assert directory.queued_by_sender == {}
    assert [state.queued for state in directory.conversations.values() if state.queued] == []
    assert counted(rt) == passed_over(rt)
    assert services(rt).store.call(verify) == []


def counted(rt: Runtime) -> tuple[Any, ...]:
    """What the runtime's counts say of its conversations and turns."""
    stats, counts = rt.stats(), services(rt).directory.counts
    phases = {phase: number for phase, number in stats.conversations.items() if number}
    return phases, stats.running, stats.queued, counts.oldest_waiting()


def passed_over(rt: Runtime) -> tuple[Any, ...]:
    """The same by a pass over all of them."""
    directory = services(rt).directory
    phases = Counter(state.phase for state in directory.conversations.values())
    states = Counter(ticket.state for ticket in directory.tickets.values())
    waiting = [ticket.accepted_at for ticket in directory.tickets.values() if ticket.state == "queued"]
    return dict(phases), states["running"], states["queued"], min(waiting, default=None)


def assert_sound(path: Path | str) -> None:
    """The closed file holds what it promises."""
    assert in_file(path, verify) == []


def in_file(path: Path | str, job: Callable[..., Any]) -> Any:
    """The value of a database job on a closed file; off the hub, as reading it may take long."""

    def work() -> Any:
        db = open_database(path, create=False)
        try:
            return job(db)
        finally:
            close_database(db)

    return gevent.get_hub().threadpool.apply(work)


def stored_states(rt: Runtime) -> dict[int, str]:
    """The state of every turn, as the file has it."""
    return services(rt).store.call(all_states)


def all_states(db: Any) -> dict[int, str]:
    """The database job of `stored_states`."""
    return dict(db.execute("SELECT id, state FROM turns ORDER BY id").fetchall())


def assert_memory_is_disk(rt: Runtime) -> None:
    """Every live topic's history is the one that opening its session anew would give."""
    for cid in rt.conversations():
        shown = rt.conversation(cid)
        assert shown is not None
        if shown.handle is None:
            continue
        stored = services(rt).store.call(functools.partial(sessions.load_session, handle=shown.handle))
        again = resumed(stored.summary.archive, stored.archive_content, stored.live)
        assert list(shown.history) == again
        whole = rt.transcript(shown.handle)
        assert whole[len(whole) - len(stored.live) :] == list(stored.live)


def said(entries: Iterable[HistoryEntry], role: str = "user") -> list[str]:
    """The contents of the entries of one role, in order."""
    return [entry.content for entry in entries if entry.role == role]


def exchanges(results: Iterable[TurnResult]) -> list[str]:
    """What an echoing model's transcript must hold for these results: in order, each text twice."""
    done = sorted((r for r in results if r.stop_reason == "text_response"), key=lambda r: r.turn_id)
    return [text for result in done for text in (result.text, result.text)]


# -- races ---------------------------------------------------------------------------------------------


def race(calls: Iterable[Callable[[], Any]], *, seed: int | None = None) -> list[Any]:
    """Run all calls at once, each in a greenlet; their values or exceptions, in the order given.

    With a seed, they begin in a shuffled order, and some of them a few turns of the hub later.
    """
    rng = None if seed is None else random.Random(seed)
    listed = list(calls)
    order = list(range(len(listed)))
    if rng is not None:
        rng.shuffle(order)
    begun: dict[int, gevent.Greenlet] = {}
    for place in order:
        yields = 0 if rng is None else rng.choice((0, 0, 0, 1, 2, 5, 10))
        begun[place] = gevent.spawn(_outcome, listed[place], yields)
    gevent.joinall(list(begun.values()))
    return [begun[place].value for place in range(len(listed))]


def _outcome(call: Callable[[], Any], yields: int) -> Any:
    for _ in range(yields):
        gevent.sleep(0)
    try:
        return call()
    except Exception as error:
        return error


def kinds(outcomes: Iterable[Any]) -> Counter[str]:
    """How many outcomes of each kind there were: an error's class, a result's stop reason, a type."""
    return Counter(kind(outcome) for outcome in outcomes)


def kind(outcome: Any) -> str:
    """The word for one outcome."""
    if isinstance(outcome, TurnResult):
        return outcome.stop_reason
    return type(outcome).__name__


def settled(tickets: Iterable[Ticket]) -> list[Any]:
    """The result of each ticket, or the exception it ended with."""
    return [_outcome(ticket.result, 0) for ticket in tickets]


# -- gevent's blocking monitor -------------------------------------------------------------------------


@contextmanager
def blocking_monitor(most_s: float = 0.1) -> Iterator[list[str]]:
    """gevent's monitor watches this thread's hub; the stacks of our own code that held it too long."""
    blocks: list[str] = []
    thread = get_original("_thread", "get_ident")()

    class Watching(PeriodicMonitoringThread):
        looked = (time.perf_counter(), time.process_time())

        def monitor_blocking(self, hub: Any) -> None:  # in the monitor's thread
            now = (time.perf_counter(), time.process_time())
            clock, processor = now[0] - self.looked[0], now[1] - self.looked[1]
            self.looked = now
            # Who comes late to look, and not because this process computed, was on a machine that had others
            # to serve, and the hub waited with it.
            served = clock < 1.5 * most_s or processor > 0.8 * clock
            # Its own report walks every greenlet of the process, on a busy machine for longer than it allows
            # the hub to be blocked: the hub's stack is all that is taken.
            if self._greenlet_tracer.did_block_hub(hub) and served:
                stack = "".join(traceback.format_stack(sys._current_frames()[thread]))  # noqa: SLF001
                if any(package in stack for package in OURS):
                    blocks.append(stack)

    # Before the monitor's thread begins: it asks once how long to sleep before it looks.
    before, gevent.config.max_blocking_time = gevent.config.max_blocking_time, most_s
    monitor = Watching(gevent.get_hub())
    # What other tests have left in memory is not for this one's hub to collect.
    gc.collect()
    gc.freeze()
    try:
        yield blocks
    finally:
        gc.unfreeze()
        monitor.kill()
        gevent.config.max_blocking_time = before


ATTEMPTS = 4


def never_blocks_the_hub(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test of `tmp_path` under the blocking monitor (0.1 s).

    A busy machine may hold any code up now and then: up to three more runs are allowed. Code that blocks does
    so every time.
    """

    @functools.wraps(test)
    def watched(tmp_path: Path) -> None:
        for attempt in range(ATTEMPTS):
            blocks = blocked_by(tmp_path / str(attempt))
            if not blocks:
                return
        pytest.fail("the hub was blocked:\n" + "\n\n".join(blocks))

    def blocked_by(folder: Path) -> list[str]:
        folder.mkdir()
        with blocking_monitor() as blocks, deadline():
            test(folder)
        return blocks

    return watched


# -- a model that the test answers by hand -------------------------------------------------------------


class Held:
    """One request that waits for its answer."""

    def __init__(self, request: ModelRequest) -> None:
        self.request = request
        self.killed = False
        self._answer: AsyncResult = AsyncResult()

    def say(self, text: str = "", **reply: Any) -> None:
        """Answer with a `Reply` of these fields."""
        self._answer.set(Reply(text, **reply))

    def fail(self, error: BaseException) -> None:
        """Answer with an exception."""
        self._answer.set(Reply(error=error))

    def wait(self) -> Reply:
        """For the model: the answer, once it is there."""
        try:
            reply: Reply = self._answer.get()
        except gevent.GreenletExit:
            self.killed = True
            raise
        return reply


class HeldModel(ScriptedModel):
    """A model whose turns wait until the test answers them; summaries and titles come by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(self._hold, **options)
        self._waiting: Queue = Queue()

    def _hold(self, request: ModelRequest) -> Reply:
        held = Held(request)
        self._waiting.put(held)
        return held.wait()

    def next(self) -> Held:
        """The next request; waits for it."""
        held: Held = self._waiting.get()
        return held

    @property
    def idle(self) -> bool:
        """Whether no request waits to be seen by `next`."""
        return self._waiting.empty()


def let_run(turns: int = 20) -> None:
    """Let everything runnable run, without letting time pass."""
    for _ in range(turns):
        gevent.sleep(0)
