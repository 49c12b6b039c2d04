"""Opening and closing the one file: our own connection, exclusive, in WAL mode, with the schema in place."""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
from typing import Literal
from urllib.parse import quote

from sqlite_utils import Database

from persistence import holders
from persistence.errors import DatabaseInUse, DatabaseTooNew, DatabaseUnusable, StorageError
from persistence.migrations import MIGRATIONS_TABLE, NAMES, SET, TABLES, migrations
from persistence.newtables import make_tables
from persistence.transaction import transaction

MEMORY = ":memory:"
LOCK_WAIT_S = 0.25

# The WAL is checkpointed from 16 MiB on and cut back to that, so that it stays far under 64 MiB.
_WAL_PAGES = 4_000
_WAL_BYTES = 16 * 1024 * 1024
_CACHE_KIB = 32 * 1024

_IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def open_database(path: str | os.PathLike[str], *, create: bool = True) -> Database:
    """The database in `path`, locked for this connection alone and migrated to this version.

    The connection may be used from any thread, by one at a time. Waits up to `LOCK_WAIT_S` for the
    lock, so a gevent hub must not call it. A file that is refused is left as it was, and so is its WAL.

    Args:
        path: the file, or ":memory:".
        create: whether a missing file is made.

    Raises:
        DatabaseInUse: another process, or another connection of this one, has it open; says which.
        DatabaseTooNew: a newer Palaver has changed its tables.
        DatabaseUnusable: not a file that can be opened, damaged, or not one of Palaver's.
    """
    name = os.fsdecode(path)
    try:
        uri = "file::memory:" if name == MEMORY else _uri(name, create)
        conn = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=LOCK_WAIT_S)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise DatabaseUnusable(f"{name!r} cannot be opened: {error}; check the path") from error
    try:
        db = _prepare(conn, name, create)
    except BaseException as error:
        _close_untouched(conn)
        if isinstance(error, sqlite3.Error):
            raise _refusal(name, error) from error
        raise
    if name != MEMORY:
        holders.remember(name, db)
    return db


def close_database(db: Database) -> None:
    """Move the WAL into the file, and close it. What was committed is safe whatever happens here."""
    # A checkpoint that fails leaves the WAL, and the next opening reads it.
    with contextlib.suppress(sqlite3.Error):
        db.rollback()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    holders.forget(db)
    db.close()


def abandon_database(db: Database) -> None:
    """Close the file as it is, its WAL beside it: for one whose content is not certain any more."""
    with contextlib.suppress(sqlite3.Error):
        db.rollback()
    holders.forget(db)
    _close_untouched(db.conn)


def damaged(path: str | os.PathLike[str]) -> str:
    """What to do about a damaged file."""
    file = shlex.quote(os.fsdecode(path))
    new = shlex.quote(os.fsdecode(path) + ".recovered")
    return (
        f"restore a backup; or save what can still be read: sqlite3 {file} .recover | sqlite3 {new}, "
        f"then palaver verify {new}"
    )


def _close_untouched(conn: sqlite3.Connection) -> None:
    # Closing would move the WAL into the file and delete it. That checkpoint gives up when the connection is
    # interrupted, and no statement begins any more that would take the interrupt back.
    with contextlib.suppress(sqlite3.Error):
        conn.interrupt()
        conn.close()


def _uri(name: str, create: bool) -> str:
    if not name:
        raise ValueError("the path is empty")
    if "\0" in name:
        raise ValueError("the path has a NUL character")
    # Only looks, never opens: closing a file that this process has a lock on would drop the lock.
    if os.path.isdir(name):
        raise DatabaseUnusable(f"{name!r} is a directory; give the path of a file in it")
    parent = os.path.dirname(os.path.abspath(name))
    if not os.path.isdir(parent):
        raise DatabaseUnusable(f"{name!r} cannot be opened: there is no directory {parent!r}; create it")
    if os.path.exists(name):
        if not os.path.isfile(name):
            raise DatabaseUnusable(f"{name!r} is not a regular file; give the path of one")
        if not os.access(name, os.R_OK | os.W_OK):
            raise DatabaseUnusable(f"{name!r} is read-only or unreadable; give this user the right to write")
    elif not create:
        raise DatabaseUnusable(f"{name!r}: no such file; check the path")
    _keep_lone_wal(name)
    path = quote(os.fsencode(os.path.abspath(name)))
    return f"file:{path}?mode={'rwc' if create else 'rw'}"


def _keep_lone_wal(name: str) -> None:
    """Refuse a WAL whose file is missing or empty: SQLite would take it for a leftover and delete it."""
    wal = os.path.realpath(name) + "-wal"
    if _size(wal) and not _size(name):
        raise DatabaseUnusable(
            f"{name!r} is missing or empty, but its last commits are there, in {wal!r}: put the file back "
            "beside it; or move that one away, and the database begins anew"
        )


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError:
        return 0


def _prepare(conn: sqlite3.Connection, name: str, create: bool) -> Database:
    # Before the first read: in this mode that read takes the lock, and no shared-memory file is made.
    conn.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    db = Database(conn, execute_plugins=False)
    tables = _check_schema(db, name)
    if tables == "new" and not create:
        raise DatabaseUnusable(f"{name!r} is empty: Palaver has stored nothing in it; check the path")
    mode = db.execute("PRAGMA journal_mode=WAL").fetchall()[0][0]
    if mode != ("memory" if name == MEMORY else "wal"):
        raise DatabaseUnusable(f"{name!r} cannot be used: there is no WAL on its file system; move it")
    for setting in (
        "synchronous=FULL",
        "foreign_keys=ON",
        f"cache_size=-{_CACHE_KIB}",
        f"wal_autocheckpoint={_WAL_PAGES}",
        f"journal_size_limit={_WAL_BYTES}",
    ):
        db.execute(f"PRAGMA {setting}").fetchall()
    with transaction(db):  # also takes the lock, and keeps it, on a file that was created just now
        empty = tables == "new" and _is_empty(db)
        if tables != "current" and not empty:
            migrations.apply(db)
    if empty:
        make_tables(db)
    return db


def _is_empty(db: Database) -> bool:
    return not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()


def _check_schema(db: Database, name: str) -> Literal["new", "behind", "current"]:
    """How far the file's tables are. Changes nothing; refuses what is not Palaver's or is newer."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    if not tables:
        return "new"
    applied: list[str] = []
    if MIGRATIONS_TABLE in tables:
        names = f"SELECT name FROM {MIGRATIONS_TABLE} WHERE migration_set = ?"
        applied = [row[0] for row in db.execute(names, [SET]).fetchall()]
    if not applied:
        raise DatabaseUnusable(f"{name!r} holds tables of another program; give Palaver a file of its own")
    newer = [each for each in applied if each not in NAMES]
    if newer:
        raise DatabaseTooNew(
            f"{name!r} was changed by a newer Palaver ({SET} migration {newer[0]}); "
            "open it with that version, or give another path"
        )
    if len(applied) < len(NAMES):
        return "behind"
    missing = [table for table in TABLES if table not in tables]
    if missing:
        raise DatabaseUnusable(f"{name!r} is damaged: its table {missing[0]} is missing; {damaged(name)}")
    return "current"


def _refusal(name: str, error: sqlite3.Error) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _IN_USE:
        return _in_use(name)
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseUnusable(
            f"{name!r} is not an SQLite database; check the path. If it was one, its header is damaged: "
            f"{damaged(name)}"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return DatabaseUnusable(f"{name!r} is damaged: {error}; {damaged(name)}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DatabaseUnusable(
            f"{name!r} cannot be opened: {error}; this user must be able to write the file and its directory"
        )
    if code == sqlite3.SQLITE_FULL:
        return DatabaseUnusable(f"{name!r} cannot be opened: {error}; make room on the disk")
    if code == sqlite3.SQLITE_IOERR:
        return DatabaseUnusable(f"{name!r} cannot be opened: {error}; check the disk")
    return DatabaseUnusable(f"{name!r} cannot be opened: {error}")


def _in_use(name: str) -> DatabaseInUse:
    pid = holders.holder(name)
    if pid == os.getpid():
        who = f"this process ({pid}), by another Runtime or connection; shut that one down first"
    elif pid is not None:
        who = f"process {pid}; stop that one first"
    else:
        who = "another process; stop that one first"
    return DatabaseInUse(f"{name!r} is in use by {who}, or give this one a file of its own", pid)
