"""Copying the database while it is in use, through SQLite's backup API."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from attrs import define
from sqlite_utils import Database

from persistence.errors import StorageError
from persistence.newfiles import Path, new_file

PAGES_AT_ONCE = 256  # 1 MiB, a few milliseconds: so long may a commit have to wait
SYNC_EVERY = 8  # steps: what the disk still owes at the end stays small

# Called with the pages that are copied, and with the pages in all, which may change on the way.
Progress = Callable[[int, int], object]


@define(eq=False)
class Backup:
    """A copy that was asked for. `give_up` ends it after the step that runs; any thread may call that."""

    to: Path
    progress: Progress | None = None
    given_up: bool = False
    _shown: int = -1

    def give_up(self) -> None:
        """End the copy, if it is not complete yet: it fails, and nothing is left of it."""
        self.given_up = True

    def advance(self, done: int, total: int) -> None:
        """Tell the progress where it is a per cent further; raise if the copy was given up."""
        if self.given_up:
            raise StorageError("the copy was given up; nothing is left of it")
        percent = 100 * done // max(1, total)
        if self.progress is not None and percent != self._shown:
            self._shown = percent
            self.progress(done, total)


def copy_database(db: Database, to: Path, between: Progress = lambda _done, _total: None) -> None:
    """Write what `db` holds to the new file `to`: synced, complete, and under that name only then.

    Runs in the thread that uses `db`, outside any transaction. The copy holds everything that was committed
    before, and what `between` commits.

    Args:
        between: called between two steps. It may use `db`, and end what it begins: what it commits goes
            into the copy as well. What it raises ends the copy.

    Raises:
        StorageError: there is no copy, because `to` is taken, cannot be written, or `db` not be read. `db`
            is as it was.
    """
    with new_file(to) as (part, fd):
        _match_mode(db, fd)
        steps = 0

        def after_step(status: int, remaining: int, total: int) -> None:
            nonlocal steps
            steps += 1
            if steps % SYNC_EVERY == 0:
                os.fdatasync(fd)
            if status == sqlite3.SQLITE_OK:  # not at the end: what is committed now came too late
                between(total - remaining, total)

        copy = sqlite3.connect(part, isolation_level=None)
        try:
            # The part is thrown away when anything fails, and synced when all went well.
            copy.execute("PRAGMA journal_mode=OFF").fetchall()
            copy.execute("PRAGMA synchronous=OFF").fetchall()
            db.conn.backup(copy, pages=PAGES_AT_ONCE, progress=after_step)
        except sqlite3.Error as error:
            raise StorageError(
                f"{os.fsdecode(to)!r} could not be written: {error}; nothing is left of it"
            ) from error
        finally:
            copy.close()


def _match_mode(db: Database, fd: int) -> None:
    """Let those read the copy who may read the file."""
    path = db.execute("PRAGMA database_list").fetchall()[0][2]
    if path:
        os.fchmod(fd, os.stat(path).st_mode & 0o777)
