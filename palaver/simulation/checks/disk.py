"""A disk that fails on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from attrs import define
from sqlite_utils import Database

from persistence.committer import Committer


@define(eq=False)
class Disk:
    """What the commits of one life meet: no room for a while, an I/O error, the end of the process.

    `dead`: nothing is committed any more. `failed`: some commit has failed. The commit number `last` is where
    the process ends, by `crash`: before it, or `after` it and before anybody hears of it; 0 is none.
    """

    last: int = 0
    after: bool = False
    crash: Callable[[], None] = lambda: None
    full: bool = False
    dead: bool = False
    failed: bool = False
    commits: int = 0

    def commit(self, db: Database, wrote: bool, go: Callable[[Database], None]) -> None:
        """Commit, or not."""
        self.failed = self.failed or self.dead or self.full
        if self.dead:
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        self.commits += wrote
        if wrote and self.commits == self.last:
            self.dead = True
            if self.after:
                go(db)
            self.crash()
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        if self.full and wrote:
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        go(db)


def _error(words: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


class FaultyCommitter(Committer):
    """The product's committer on such a disk. It does not sync: power loss is another check's."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path)
        self._disk = disk
        self._changes = 0

    def open(self) -> None:
        super().open()
        assert self._db is not None
        self._db.execute("PRAGMA synchronous=OFF")
        self._changes = self._db.conn.total_changes

    def _commit(self, db: Database) -> None:
        before, self._changes = self._changes, db.conn.total_changes
        self._disk.commit(db, before != self._changes, super()._commit)
