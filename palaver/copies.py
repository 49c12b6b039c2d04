"""Copies of a database: backups, exports as text, and imports of these."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from sqlite_utils import Database

from actors.storage import Store
from palaver.offline import offline
from persistence import backup, exports, imports
from persistence.database import close_database, open_database
from persistence.errors import StorageError
from persistence.exports import Contents
from persistence.imports import Imported
from persistence.newfiles import free_directory, new_file, scratch_directory
from persistence.transaction import transaction

__all__ = ["Contents", "Imported", "backup_database", "export_database", "import_database"]

Path = str | os.PathLike[str]
Progress = Callable[[int, int], object]


def _unseen(_done: int, _total: int) -> None:
    """Nobody watches."""


def backup_database(path: Path, to: Path, *, progress: Progress = _unseen) -> None:
    """Copy the database in `path`, which nobody has open, to the new file `to`. Blocks the calling thread.

    `to` is a database like any other. It appears when it is complete and synced; whatever fails before
    leaves nothing under that name. For a file that is in use there is `Runtime.backup`.

    Args:
        progress: called with the pages copied and the pages in all; what it raises ends the copy.

    Raises:
        DatabaseInUse: a runtime has `path` open.
        StorageError: `path` cannot be read, or `to` is taken or cannot be written.
    """
    with offline(path) as db:
        backup.copy_database(db, to, progress)


def export_database(path: Path, directory: Path, *, progress: Progress = _unseen) -> Contents:
    """Write all that the database in `path` holds as text into the new directory `directory`: sessions as
    JSON lines, memory as Markdown. Blocks the calling thread; changes nothing.

    The directory appears when it is complete and synced. The same content gives the same bytes.

    Args:
        directory: a path that does not exist, or an empty directory.
        progress: called with the sessions and memory entries written, and with all of them; what it
            raises ends the export.

    Raises:
        DatabaseInUse: a runtime has `path` open; there is `Runtime.export`.
        StorageError: `path` cannot be read, or `directory` is not empty or cannot be written.
    """
    with offline(path) as db:
        return exports.export_database(db, directory, progress)


def import_database(
    directory: Path, path: Path, *, edited: bool = False, progress: Progress = _unseen
) -> Imported:
    """Store what `export_database` wrote in the database `path`, all of it or nothing. Blocks the calling
    thread.

    `path` is made if it is missing, and appears when it is complete. In one that is there the sessions
    come beside those that it holds: each keeps its handle, its turns and steers keep their ids where those
    are free. Messages that had not ended go on when a runtime opens the file.

    Args:
        edited: whether memory files may have been changed by hand since the export: content and aliases,
            no names. Without it, any change of any file is an error.
        progress: called with the files read, and with all of them; what it raises ends the import.

    Raises:
        RecordError: `directory` is no export, or a damaged one; names the file and, where it can, the line.
        DatabaseInUse: a runtime has `path` open.
        StorageError: a session is stored in `path` already, or memory with other content; names the first.
    """
    export = imports.open_export(directory)

    def fill(db: Database) -> Imported:
        try:
            with transaction(db):
                return imports.import_export(db, export, edited=edited, progress=progress)
        except sqlite3.Error as error:
            raise StorageError(f"the import could not be stored: {error}; nothing was imported") from error

    if os.path.lexists(path):
        with offline(path) as db:
            return fill(db)
    with new_file(path) as (part, _):
        return _fill_new(part, fill)


def _fill_new(part: str, fill: Callable[[Database], Imported]) -> Imported:
    db = open_database(part)
    try:
        found = fill(db)
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
        if busy or os.path.getsize(f"{part}-wal"):
            raise StorageError("the new database could not be completed")
    finally:
        close_database(db)
    return found


def export_running(store: Store, directory: Path) -> Contents:
    """As `export_database`, of the database of a runtime, which goes on meanwhile. Blocks the calling
    greenlet; one that is killed leaves nothing."""
    given_up = False

    def check(_done: int, _total: int) -> None:
        if given_up:
            raise StorageError("the export was given up; nothing is left of it")

    # From a copy, so that all of it is of one moment, and no commit waits for it.
    with scratch_directory(free_directory(directory)) as scratch:
        copy = os.path.join(scratch, "copy.db")
        store.backup(copy)
        try:
            return store.off_hub(lambda: export_database(copy, directory, progress=check))
        except BaseException:
            given_up = True
            raise
