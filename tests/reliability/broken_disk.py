"""A committer on a real file, with a disk that fails as it is told to: full, broken at a commit, in a job, at
a checkpoint."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from persistence.committer import Committer, Item

# How the disk fails. The first three end when there is room again, and the host lives on; after the others it
# must refuse everything.
ROOM = ("full file", "full at commit", "full at checkpoint")
FATAL = ("broken before commit", "broken after commit", "broken in a job", "broken at checkpoint")
KINDS = (*ROOM, *FATAL)

IO_ERRORS = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)

CHECKPOINT_EVERY = 5


class BrokenDisk(Committer):
    """Fails as `kind` says from the commit number `at` on: a full disk until `heal`; a broken one once, so
    that whatever should be refused from then on could be stored.

    Attributes:
        hit: whether anything failed; counted where it is not SQLite itself that fails.
    """

    def __init__(self, path: Path, kind: str, at: int, rng: random.Random) -> None:
        super().__init__(path)
        self.hit = 0
        self._kind = kind
        self._at = at
        self._slack_pages = rng.randrange(8)
        self._code = rng.choice(IO_ERRORS)
        self._healed = False
        self._changes = 0

    def heal(self) -> None:
        """There is room again, from the next batch on."""
        self._healed = True

    @property
    def _now(self) -> bool:
        over = self.hit if self._kind in FATAL else self._healed
        return self.commits >= self._at and not over

    def run(self, batch: Sequence[Item]) -> None:
        assert self._db is not None
        if self._kind == "full file" and self.failed is None:
            pages = 1_000_000
            if self._now:
                pages = self._db.execute("PRAGMA page_count").fetchall()[0][0]
                pages, self._slack_pages = pages + self._slack_pages, 0
            self._db.execute(f"PRAGMA max_page_count={pages}").fetchall()
        super().run(batch)
        self.hit += any(isinstance(item.error, Exception) and "is full" in str(item.error) for item in batch)

    def _bound_wal(self) -> None:
        if self.commits % CHECKPOINT_EVERY == 0:
            self.checkpoint()

    def _attempt(self, db: Database, item: Item, job: Any, guarded: bool) -> bool:
        def broken(_db: Database) -> None:
            job(db)  # half done, when the disk breaks
            raise self._break()

        return super()._attempt(
            db, item, broken if self._now and self._kind == "broken in a job" else job, guarded
        )

    def _begin(self, db: Database) -> None:
        super()._begin(db)
        self._changes = db.conn.total_changes

    def _commit(self, db: Database) -> None:
        writes = db.conn.total_changes > self._changes  # a full disk does not keep anybody from reading
        if self._now and self._kind == "full at commit" and writes:
            raise self._break(sqlite3.SQLITE_FULL)
        if self._now and self._kind == "broken before commit":
            raise self._break()
        super()._commit(db)
        if self._now and self._kind == "broken after commit":
            raise self._break()

    def _move_wal(self, db: Database, mode: str) -> bool:
        if self._now and self._kind == "full at checkpoint":
            raise self._break(sqlite3.SQLITE_FULL)
        if self._now and self._kind == "broken at checkpoint":
            raise self._break()
        return super()._move_wal(db, mode)

    def _break(self, code: int | None = None) -> sqlite3.Error:
        self.hit += 1
        error = sqlite3.OperationalError(
            "database or disk is full" if code == sqlite3.SQLITE_FULL else "injected disk error"
        )
        error.sqlite_errorcode = self._code if code is None else code
        return error
