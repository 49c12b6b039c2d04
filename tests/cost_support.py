"""What a call costs, counted instead of timed: lines of Python, statements and steps of SQLite, bytes.

A runtime on virtual time does the same work for the same calls, to the line; so the counts of two sizes can
be compared, whatever else the machine does.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import gevent
from attrs import asdict, frozen
from sqlite_utils import Database

from benchmarks.filled import add_sessions, filling
from palaver import AgentConfig, Reply, Runtime, ScriptedModel
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.committer import Committer
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources

MESSAGE = "m" * 100
ANSWER = Reply("a" * 200, chunk_chars=0)


@frozen
class Cost:
    """What one call took.

    Attributes:
        lines: lines of Python that were run, an iteration of a loop on one line counted as one more.
        statements: SQL statements that were run.
        steps: steps of SQLite's machine, which are as many as the rows that it reads.
        commits: transactions.
        kept: bytes that Python has allocated and not freed.
        most: the most that it had of these at once.
    """

    lines: int
    statements: int
    steps: int
    commits: int
    kept: int
    most: int


class Meter:
    """Counts what calls on a runtime cost."""

    def __init__(self, db: Database, committer: Committer) -> None:
        self.db = db
        self._committer = committer
        self._lines = 0

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Callable[..., Any]:
        self._lines += event in ("line", "call")
        return self._line

    def cost(self, call: Callable[[], object]) -> Cost:
        """What `call` costs; it is made several times, since to count lines takes memory."""
        tracing, commits = sys.gettrace(), self._committer.commits
        statements: list[str] = []
        steps: list[None] = []
        self._lines = 0
        self.db.conn.set_trace_callback(statements.append)
        self.db.conn.set_progress_handler(partial(steps.append, None), 1)  # in C: no line of Python
        sys.settrace(self._line)
        try:
            call()
        finally:
            sys.settrace(tracing)
            self.db.conn.set_progress_handler(None, 1)
            self.db.conn.set_trace_callback(None)
        commits = self._committer.commits - commits
        return Cost(self._lines, len(statements), len(steps), commits, *self._bytes(call))

    def _bytes(self, call: Callable[[], object]) -> tuple[int, int]:
        tracemalloc.start()
        try:
            call()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            call()
            after, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return after - before, most - before


Found = TypeVar("Found")
Measure = Callable[[Runtime, Meter], Found]


def measured(
    path: Path, measure: Measure[Found], *, live: int = 0, entries: int = 0, stored: int = 0, **model: Any
) -> Found:
    """What `measure` finds on a runtime of its own.

    Args:
        live: idle tmp chats in memory.
        entries: of the history of "sender 0"'s stored topic, which is session 0.
        stored: sessions in the file, besides.
    """
    with filling(path) as db:
        add_sessions(db, 0, 1, entries=entries)
        add_sessions(db, 1, stored)

    def run() -> Found:
        with _running(path, model) as (rt, meter):
            for number in range(live):
                rt.get_or_create("agent", f"idle {number}")
            return measure(rt, meter)

    return run_virtual(run)


@contextmanager
def _running(path: Path, model: dict[str, Any]) -> Iterator[tuple[Runtime, Meter]]:
    committer = Committer(path)
    worker = InlineWorker(path, schedule=gevent.spawn_later, committer=committer)
    scripted = ScriptedModel(lambda _request: ANSWER, **{"keep_requests": 0, **model})
    sources = seeded_sources(VirtualClock(), 1)
    with Runtime.open(path, scripted, worker=worker, sources=sources) as rt:
        rt.add_agent(AgentConfig("agent", auto_title=False, compact_threshold=None))
        yield rt, Meter(_database(committer), committer)


def _database(committer: Committer) -> Database:
    db = committer._db  # noqa: SLF001  # nobody else has the connection
    assert db is not None
    return db


def assert_flat(few: Cost, many: Cost, *, allowed_bytes: int = 0, factor: float = 1.1) -> None:
    """The same call costs the same on a small and on a large runtime.

    Args:
        allowed_bytes: that the large one may take at most, at once, beyond the small one.
        factor: by which the counts may grow.

    Raises:
        AssertionError: it grows; says what.
    """
    small, large = asdict(few), asdict(many)
    for name in ("lines", "statements", "steps", "commits"):
        assert large[name] <= factor * small[name], f"{name} grow from {small[name]} to {large[name]}"
    slack = 4_096  # a table that happened to be enlarged by this call
    assert many.kept <= few.kept + slack, f"bytes kept grow from {few.kept} to {many.kept}"
    assert many.most <= few.most + slack + allowed_bytes, f"bytes grow from {few.most} to {many.most}"
