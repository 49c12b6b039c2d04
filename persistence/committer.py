"""Group commit: many jobs in one transaction, each failing alone, none answered before the commit."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from attrs import define, field, frozen
from sqlite_utils import Database

from persistence.database import close_database, open_database
from persistence.errors import PalaverError, StorageError
from persistence.writes import WriteSet, apply

T = TypeVar("T")

# A function of the database that neither yields to another greenlet nor ends the transaction. Nothing but
# the database may be changed by it: on a full disk it may be run once more, after a rollback.
Job = Callable[[Database], T]
# What is called after the commit: with a value and None, or with None and the error.
Then = Callable[[T | None, BaseException | None], None]

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

_NO_CHECKPOINT_ON_CLOSE = 1006  # SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE; the sqlite3 module names it from 3.12 on


@frozen
class WorkerStats:
    """What a worker has done. `waiting` is what is queued now; `failed` says why it refuses, or None."""

    commits: int
    jobs: int
    largest_batch: int
    waiting: int
    failed: str | None


@define(eq=False)
class Item:
    """A job or a write set on its way; after the batch, exactly one of `value` and `error` is meant."""

    work: Job[Any] | WriteSet
    then: Then[Any] | None = None
    direct: bool = False
    value: Any = None
    error: BaseException | None = None


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
    _db: Database | None = field(default=None, init=False)
    _cause: BaseException | None = field(default=None, init=False)

    def open(self) -> None:
        """Open the file; raises what `open_database` raises."""
        self._db = open_database(self.path, create=self.create)

    def close(self) -> None:
        """Close the file. Does nothing when it is not open."""
        db, self._db = self._db, None
        if db is None:
            return
        if self.failed is not None:
            _leave_the_wal(db)
            with contextlib.suppress(sqlite3.Error):
                db.rollback()
            db.close()
        else:
            close_database(db)

    def run(self, batch: Sequence[Item]) -> None:
        """Run `batch` in one transaction and leave each item's value or error in it.

        When this returns, what succeeded is committed and synced. Never raises.
        """
        self.jobs += len(batch)
        self.largest_batch = max(self.largest_batch, len(batch))
        self._run(batch)

    def checkpoint(self) -> None:
        """Move what the WAL holds into the file, without waiting. For when nothing else is to be done."""
        if self._db is None or self.failed is not None:
            return
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            self._give_up(error)

    def refusal(self) -> StorageError:
        """The error of everything that is asked after a failure."""
        error = StorageError(
            f"the database {os.fsdecode(self.path)!r} is not used any more, because what it holds is not "
            f"certain after this failure: {self.failed}; check the disk and start again"
        )
        error.__cause__ = self._cause
        return error

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
            self._give_up(error)
        if self.failed is not None or code in _FATAL or (undone.at_commit and code not in _TRANSIENT):
            self._give_up(undone.cause)
            _answer_all(batch, self.refusal)
        elif code in _TRANSIENT and len(batch) > 1:
            # The disk is full: reads, and what still fits, must not fail with what does not.
            for item in batch:
                self._run([item])
        else:
            _answer_all(batch, lambda: self._unstored(undone.cause))

    def _transaction(self, db: Database, batch: Sequence[Item]) -> None:
        self._begin(db)
        for group in _groups(batch):
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

    def _give_up(self, cause: BaseException) -> None:
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
    if stop is not None:
        raise stop


def _groups(batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`batch` in order: neighbouring write sets together, every other job alone."""
    start = 0
    for at, item in enumerate(batch):
        if not isinstance(item.work, WriteSet):
            if start < at:
                yield batch[start:at]
            yield batch[at : at + 1]
            start = at + 1
    if start < len(batch):
        yield batch[start:]


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


def _leave_the_wal(db: Database) -> None:
    """Keep closing from moving an uncertain WAL into the file (Python 3.11 cannot say this to SQLite)."""
    setconfig = getattr(db.conn, "setconfig", None)
    if setconfig is not None:
        with contextlib.suppress(sqlite3.Error):
            setconfig(_NO_CHECKPOINT_ON_CLOSE, True)
