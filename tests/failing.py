"""A committer that fails at one statement of a workload: every statement of every transaction is a point."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen
from sqlite_utils import Database

from persistence.committer import Committer

# How a point fails. The first two are a full disk; the second time SQLite has undone the whole transaction by
# itself. The others are a broken one, which must not be used any more although it would work again: after the
# last of them what was committed is in the file although an error was told.
Kind = Literal["full", "full and undone", "broken", "broken after the commit"]
ONCE: tuple[Kind, ...] = ("full", "full and undone")
FOR_GOOD: tuple[Kind, ...] = ("broken", "broken after the commit")


@frozen
class Point:
    """The statement number `at`, counted from 0, and how it fails."""

    at: int
    kind: Kind


def sqlite_error(code: int, words: str) -> sqlite3.OperationalError:
    """An error as SQLite raises it."""
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


def disk_full() -> sqlite3.OperationalError:
    return sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full")


def io_error() -> sqlite3.OperationalError:
    return sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")


class FailingStatements(Committer):
    """Counts statements while it is armed, and fails at one of them; without a point it only counts.

    Attributes:
        armed: whether it counts; `arm_when_open`: from the opening of the file on.
        statements: what was counted, each as its first words; "COMMIT" is one.
        hit: the statement that failed, or None.
        committed_after_all: whether the failure came after a commit that was made.
    """

    def __init__(self, path: Path | str, point: Point | None = None) -> None:
        super().__init__(path)
        self.armed = False
        self.arm_when_open = False
        self.statements: list[str] = []
        self.hit: str | None = None
        self.committed_after_all = False
        self._point = point
        self._execute: Callable[..., Any] | None = None

    def open(self) -> None:
        """As `Committer.open`; from then on every statement of the connection comes by here."""
        super().open()
        assert self._db is not None
        self._execute = self._db.execute
        self._db.execute = self._counted  # type: ignore[method-assign]  # this one object's
        self.armed = self.arm_when_open

    def _counted(self, sql: str, parameters: Sequence[Any] | None = None) -> Any:
        assert self._execute is not None
        if self._is_next(sql.split(None, 3)[:3]):
            self._fail()
        return self._execute(sql, parameters)

    def _commit(self, db: Database) -> None:
        if self._is_next(["COMMIT"]):
            assert self._point is not None
            if self._point.kind == "broken after the commit":
                super()._commit(db)
                self.committed_after_all = True
            self._fail()
        super()._commit(db)

    def _is_next(self, words: Sequence[str]) -> bool:
        """Whether this statement is to fail."""
        if not self.armed:
            return False
        self.statements.append(" ".join(words))
        return self._point is not None and len(self.statements) == self._point.at + 1

    def _fail(self) -> None:
        assert self._point is not None
        self.hit = self.statements[-1]
        if self._point.kind in ONCE:
            if self._point.kind == "full and undone":
                assert self._db is not None
                self._db.conn.rollback()
            raise disk_full()
        raise io_error()
