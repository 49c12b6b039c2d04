"""A disk that fails on purpose."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from attrs import define
from sqlite_utils import Database

from persistence.committer import Committer

_SECTOR = 512


@define(eq=False)
class Disk:
    """What the commits of one life meet: no room for a while, an I/O error, the end of the process.

    `dead`: nothing is committed any more. `failed`: some commit has failed. The commit number `last` is where
    the process ends, by `crash`: before it, or `after` it and before anybody hears of it; 0 is none. Where
    it is `torn`, only so large a part of that commit's bytes has reached the disk: see `tear`.
    """

    last: int = 0
    after: bool = False
    crash: Callable[[], None] = lambda: None
    full: bool = False
    dead: bool = False
    failed: bool = False
    commits: int = 0
    torn: float = 0.0
    _left: tuple[Path, bytes] | None = None

    def commit(self, db: Database, wrote: bool, go: Callable[[Database], None]) -> None:
        """Commit, or not."""
        self.failed = self.failed or self.dead or self.full
        if self.dead:
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        self.commits += wrote
        if wrote and self.commits == self.last:
            self.dead = True
            if self.after:
                self._last(db, go)
            self.crash()
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        if self.full and wrote:
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        go(db)

    def _last(self, db: Database, go: Callable[[Database], None]) -> None:
        name = db.execute("PRAGMA database_list").fetchall()[0][2]
        if not (self.torn and name):
            go(db)
            return
        file, wal = Path(name), Path(name + "-wal")
        kept, before = file.stat().st_mtime_ns, _bytes_of(wal)
        go(db)
        after = _bytes_of(wal)
        if file.stat().st_mtime_ns == kept:  # else it was moved into the file, after its sync
            self._left = wal, _torn(before, after, self.torn)

    def tear(self) -> None:
        """Leave the WAL as the torn commit has left it. For when the dead process has let go of the file."""
        if self._left is not None:
            wal, left = self._left
            wal.write_bytes(left)


def _bytes_of(wal: Path) -> bytes:
    return wal.read_bytes() if wal.exists() else b""


def _torn(before: bytes, after: bytes, part: float) -> bytes:
    """What is on the disk when only the first `part` of the bytes that changed has reached it."""
    before = before.ljust(len(after), b"\0")
    if before == after:
        return after
    changed = [
        place
        for place in range(0, len(after), _SECTOR)
        if before[place : place + _SECTOR] != after[place : place + _SECTOR]
    ]
    first, end = changed[0], min(len(after), changed[-1] + _SECTOR)
    cut = first + int((end - first) * part)
    return after[:cut] + before[cut:]


def _error(words: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


class FaultyCommitter(Committer):
    """The product's committer on such a disk. It does not sync: power loss is another check's."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk) -> None:
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
