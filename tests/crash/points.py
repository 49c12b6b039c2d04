"""Committers that end their own process at a chosen point of their work with the file, or that cheat."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import frozen
from gevent.monkey import get_original
from sqlite_utils import Database

from persistence.committer import Committer

# Where a process may end. "statement" is every statement, those that open the file and migrate it included.
PLACES = ("statement", "begin", "commit", "committed", "checkpoint", "close")

_sleep = get_original("time", "sleep")
_start_new_thread = get_original("_thread", "start_new_thread")


@frozen
class Point:
    """The `number`th time (from 1 on) at `place`; `later_us` microseconds after, while the work goes on."""

    place: str
    number: int
    later_us: int = 0


class PointCommitter(Committer):
    """Counts how often it comes to each place, and ends the process with SIGKILL at `point`.

    Args:
        point: None ends nothing.
        wal_pages: pages in the WAL from which on a commit also checkpoints; None leaves that as it is.
        every: commits after which it checkpoints as if it were idle; 0 is never.
    """

    def __init__(self, path: str, point: Point | None, *, wal_pages: int | None, every: int) -> None:
        super().__init__(path)
        self.reached: Counter[str] = Counter()
        self._point = point
        self._wal_pages = wal_pages
        self._every = every

    def open(self) -> None:
        with _connections_traced(lambda _sql: self._at("statement")):
            super().open()
        if self._wal_pages is not None and self._db is not None:
            self._db.execute(f"PRAGMA wal_autocheckpoint={self._wal_pages}").fetchall()

    def close(self) -> None:
        self._at("close")
        super().close()

    def checkpoint(self) -> None:
        self._at("checkpoint")
        super().checkpoint()

    def _begin(self, db: Database) -> None:
        self._at("begin")
        super()._begin(db)

    def _commit(self, db: Database) -> None:
        self._at("commit")
        super()._commit(db)
        self._at("committed")
        if self._every and self.reached["commit"] % self._every == 0:
            self.checkpoint()

    def _at(self, place: str) -> None:
        self.reached[place] += 1
        point = self._point
        if point is None or point.place != place or point.number != self.reached[place]:
            return
        if point.later_us == 0:
            _end()
        _start_new_thread(_end_later, (point.later_us,))


class HastyCommitter(PointCommitter):
    """The worst bug there is: everything is answered one batch before it is committed."""

    _open = False

    def _begin(self, db: Database) -> None:
        if self._open:
            super()._commit(db)
        super()._begin(db)

    def _commit(self, db: Database) -> None:
        self._open = True


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _end_later(us: int) -> None:
    _sleep(us / 1_000_000)
    _end()


@contextlib.contextmanager
def _connections_traced(trace: Any) -> Iterator[None]:
    """Within, every new connection tells `trace` each statement before it runs, from then on."""
    connect = sqlite3.connect

    def connect_traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(trace)
        return connection

    sqlite3.connect = connect_traced  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = connect
