"""Group commit: many jobs in one transaction, each failing alone, none answered before the commit."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from attrs import define, field, frozen
from sqlite_utils import Database

from persistence.backup import Backup, Progress, copy_database
from persistence.batches import Item, Job, Then, groups, portions
from persistence.database import MEMORY, abandon_database, close_database, damaged, open_database
from persistence.errors import DatabaseFailed, PalaverError, StorageError
from persistence.writes import WriteSet, apply

__all__ = ["Committer", "Item", "Job", "Then", "WorkerStats", "deliver", "nothing", "tell_quietly"]

T = TypeVar("T")

log = logging.getLogger("palaver.persistence")

# SQLite undoes these completely, and the next commit may succeed.
_TRANSIENT = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM)
# After these nobody knows what is in the file.
_FATAL = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,
)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# SQLite checkpoints by itself, from 16 MiB on, and keeps it to itself when that fails. Here it is asked why.
_WAL_BYTES = 32 * 1024 * 1024


@frozen
class WorkerStats:
    """What a worker has done. `waiting` is what is queued now; `failed` says why it refuses, or None;
    `file_bytes` and `wal_bytes` are the sizes of the database file and its WAL after the last commit."""

    commits: int
    jobs: int
    largest_batch: int
    waiting: int
    failed: str | None
    file_bytes: int = 0
    wal_bytes: int = 0


class _BatchUndone(Exception):
    """The transaction is gone, with everything in it, because of `cause`."""

    def __init__(self, cause: BaseException, *, at_commit: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.at_commit = at_commit


@define(eq=False)
class Committer:
    """The one connection, and how batches of jobs go through it. Used by one thread at a time."""

    path: str | os.PathLike[str]
    create: bool = True
    failed: str | None = field(default=None, init=False)
    commits: int = field(default=0, init=False)
    jobs: int = field(default=0, init=False)
    largest_batch: int = field(default=0, init=False)
    file_bytes: int = field(default=0, init=False)
    wal_bytes: int = field(default=0, init=False)
    _db: Database | None = field(default=None, init=False)
    _cause: BaseException | None = field(default=None, init=False)
    _wal: str | None = field(default=None, init=False)
    _wal_bound: int = field(default=_WAL_BYTES, init=False)

    def open(self) -> None:
        """Open the file; raises what `open_database` raises."""
        self._db = open_database(self.path, create=self.create)
        name = os.fsdecode(self.path)
        self._wal = None if name == MEMORY else os.path.realpath(name) + "-wal"
        with suppress(OSError):  # there may be no WAL yet
            self._measure()

    def close(self) -> None:
        """Close the file, or leave it and its WAL as they are after a failure. Nothing if it is not open."""
        db, self._db = self._db, None
        if db is None:
            return
        if self.failed is not None:
            abandon_database(db)
        else:
            close_database(db)

    def run(self, batch: Sequence[Item]) -> None:
        """Run `batch` in one transaction, in several if it is large, and leave each item's value or error
        in it.

        When this returns, what succeeded is committed and synced. Never raises.
        """
        self.jobs += len(batch)
        self.largest_batch = max(self.largest_batch, len(batch))
        for portion in portions(batch):
            try:
                self._run(portion)
                self._bound_wal()
            except BaseException as error:  # no memory, say: whoever waits must be answered all the same
                self.give_up(error)
                _answer_all(portion, self.refusal)

    def checkpoint(self) -> None:
        """Move what the WAL holds into the file, without waiting. For when nothing else is to be done. A full
        disk is no failure; everything else that stops it is. Never raises."""
        self._checkpoint("PASSIVE")

    def back_up(self, backup: Backup, item: Item, between: Callable[[], None]) -> None:
        """Make the copy that `backup` asks for, and leave in `item` why there is none. Never raises.

        Args:
            between: runs other batches between two steps of the copy; what it raises ends the copy.
        """
        if self._db is None or self.failed is not None:
            item.error = self.refusal()
            return

        def advance(done: int, total: int) -> None:
            between()
            if self.failed is not None:
                raise self.refusal()
            backup.advance(done, total)

        try:
            # Whatever fails here is of the copy: the database is only read, and is as good as before.
            copy_database(self._db, backup.to, advance)
        except BaseException as error:
            item.error = error

    def refusal(self) -> DatabaseFailed:
        """The error of everything that is asked after a failure."""
        again = "check the disk and start again; what was acknowledged is in the file"
        if _code(self._cause) in _DAMAGE:
            again = damaged(self.path)
        error = DatabaseFailed(
            f"the database {os.fsdecode(self.path)!r} is not used any more, because what it holds is not "
            f"certain after this failure: {self.failed}; {again}"
        )
        error.__cause__ = self._cause
        return error

    def _bound_wal(self) -> None:
        """Move the WAL into the file where SQLite could not do so by itself."""
        if self._wal is None or self.failed is not None:
            return
        try:
            size = self._measure()
        except FileNotFoundError:
            if not self._checkpoint("TRUNCATE"):
                raise
            self.give_up(StorageError(f"{self._wal!r} was removed while it was in use"))
            return
        if size >= self._wal_bound:
            moved = self._checkpoint("TRUNCATE")
            # A full disk is not asked again after every commit.
            self._wal_bound = _WAL_BYTES if moved else size + _WAL_BYTES // 2

    def _measure(self) -> int:
        """The size of the WAL; both files' sizes are kept for whoever asks."""
        if self._wal is not None:
            with suppress(OSError):  # renamed, say; it is in use all the same
                self.file_bytes = os.stat(self.path).st_size
            self.wal_bytes = os.stat(self._wal).st_size
        return self.wal_bytes

    def _checkpoint(self, mode: str) -> bool:
        """Whether the WAL's content is in the file now."""
        if self._db is None or self.failed is not None:
            return False
        try:
            busy = self._move_wal(self._db, mode)
        except BaseException as error:
            if _code(error) not in _TRANSIENT:
                self.give_up(error)
            else:
                log.warning("%r keeps its WAL for now: %s", os.fsdecode(self.path), error)
            return False
        if not busy:
            with suppress(OSError):
                self._measure()
        return not busy

    def _run(self, batch: Sequence[Item]) -> None:
        if self._db is None or self.failed is not None:
            _answer_all(batch, self.refusal)
            return
        try:
            self._transaction(self._db, batch)
        except _BatchUndone as undone:
            self._after_undo(self._db, batch, undone)
        except BaseException as error:  # a savepoint could not be set or undone
            self._after_undo(self._db, batch, _BatchUndone(error, at_commit=True))

    def _after_undo(self, db: Database, batch: Sequence[Item], undone: _BatchUndone) -> None:
        code = _code(undone.cause)
        try:
            db.rollback()
        except sqlite3.Error as error:
            self.give_up(error)
        if self.failed is not None or code in _FATAL or (undone.at_commit and code not in _TRANSIENT):
            self.give_up(undone.cause)
            _answer_all(batch, self.refusal)
        elif code in _TRANSIENT and len(batch) > 1:
            # The disk is full: reads, and what still fits, must not fail with what does not.
            for item in batch:
                self._run([item])
        else:
            _answer_all(batch, lambda: self._unstored(undone.cause))

    def _transaction(self, db: Database, batch: Sequence[Item]) -> None:
        self._begin(db)
        for group in groups(batch):
            # A group that is the whole batch needs no savepoint: the transaction is one.
            guarded = len(group) < len(batch)
            if isinstance(group[0].work, WriteSet):
                self._write(db, group, guarded)
            else:
                self._attempt(db, group[0], group[0].work, guarded)
        try:
            self._commit(db)
        except BaseException as error:
            raise _BatchUndone(error, at_commit=True) from error
        self.commits += 1

    def _begin(self, db: Database) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _BatchUndone(error) from error

    def _commit(self, db: Database) -> None:
        """End the transaction of a batch. A fault-injecting subclass overrides this."""
        db.commit()

    def _move_wal(self, db: Database, mode: str) -> bool:
        """Checkpoint; whether something stood in the way. A fault-injecting subclass overrides this."""
        ((busy, _, _),) = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        return bool(busy)

    def _write(self, db: Database, group: Sequence[Item], guarded: bool) -> None:
        sets = [item.work for item in group if isinstance(item.work, WriteSet)]
        if self._attempt(db, group[0], lambda db: apply(db, sets), guarded):
            for item in group:
                item.value = item.error = None
        elif len(group) > 1:  # one of them is bad, and only that one may fail
            for item, writes in zip(group, sets, strict=True):
                self._attempt(db, item, lambda db, writes=writes: apply(db, [writes]), True)

    def _attempt(self, db: Database, item: Item, job: Any, guarded: bool) -> bool:
        """Run `job` for `item`; undo it, and only it, if it fails."""
        item.value = item.error = None
        if guarded:
            db.execute("SAVEPOINT job")
        try:
            item.value = _settled(job(db))
        except BaseException as error:
            if not db.conn.in_transaction or _code(error) in _FATAL:
                raise _BatchUndone(error) from error
            item.error = self._unstored(error) if _is_storage_trouble(error, item) else error
            self._undo(db, guarded)
            return False
        if not db.conn.in_transaction:
            raise _BatchUndone(StorageError("a job ended the transaction that it ran in"))
        if guarded:
            db.execute("RELEASE job")
        return True

    def _undo(self, db: Database, guarded: bool) -> None:
        if guarded:
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
        else:
            db.rollback()
            self._begin(db)

    def give_up(self, cause: BaseException) -> None:
        """Refuse everything from now on, because of `cause`."""
        if self.failed is None:
            self.failed = f"{type(cause).__name__}: {cause}"
            self._cause = cause

    def _unstored(self, cause: BaseException) -> StorageError:
        hint = "; make room on the disk" if _code(cause) == sqlite3.SQLITE_FULL else ""
        error = StorageError(f"{os.fsdecode(self.path)!r} could not do what was asked: {cause}{hint}")
        error.__cause__ = cause
        return error


def deliver(batch: Sequence[Item]) -> None:
    """Tell each item's `then` how it went, in order. What a `then` raises is logged and stops no other."""
    stop: BaseException | None = None
    for item in batch:
        if item.then is None:
            continue
        try:
            item.then(item.value, item.error)
        except (KeyboardInterrupt, SystemExit) as error:
            stop = error
        except BaseException:  # gevent's Timeout and GreenletExit are no Exceptions
            log.exception("what waited for a database job raised; the job itself is done")
        item.then, item.work = None, nothing  # what they hold ends now, and not with the batch
    if stop is not None:
        raise stop


def nothing(_db: Database) -> None:
    """The job that only takes its place in the order of jobs."""


def tell_quietly(progress: Progress, done: int, total: int) -> None:
    """Tell how far a copy is; what that raises is logged, and the copy goes on."""
    try:
        progress(done, total)
    except Exception:
        log.exception("what shows the progress of a copy raised; the copy goes on")


def _answer_all(batch: Sequence[Item], make: Callable[[], BaseException]) -> None:
    for item in batch:  # one error object each: a traceback grows on it wherever it is raised
        item.value, item.error = None, make()


def _settled(value: T) -> T:
    if isinstance(value, sqlite3.Cursor | Iterator):
        raise StorageError("a job returned rows that are not fetched yet; list() them in the job")
    return value


def _is_storage_trouble(error: BaseException, item: Item) -> bool:
    if isinstance(item.work, WriteSet):
        return isinstance(error, Exception) and not isinstance(error, PalaverError)
    return isinstance(error, sqlite3.Error)


def _code(error: BaseException | None) -> int | None:
    """SQLite's primary result code behind `error`, or None."""
    while error is not None:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(code, int):
            return code & 0xFF
        error = error.__cause__
    return None
