"""The one base of all Palaver's errors, and what can go wrong with a database."""

from __future__ import annotations


class PalaverError(Exception):
    """Base of every error that Palaver raises on purpose."""


class StorageError(PalaverError):
    """The database could not do what was asked. Nothing of that request was acknowledged."""


class DatabaseInUse(StorageError):
    """Another process, or another Runtime of this one, holds the file.

    Attributes:
        pid: the process that holds it, if that could be found out; this process's own for a file that is
            open in it twice.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class DatabaseUnusable(StorageError):
    """The path is not something that Palaver can open: a directory, read-only, not SQLite, damaged."""


class DatabaseFailed(StorageError):
    """The disk or the file failed while it was in use, so what it holds is not certain. Nothing is read or
    written any more: end the process, look at the disk, start again. What was acknowledged before is safe."""


class DatabaseTooNew(StorageError):
    """The file was written by a newer version of Palaver."""


class BacklogFull(StorageError):
    """The database thread has more waiting jobs than its bound allows; nothing was stored."""


class RecordError(StorageError):
    """A stored body cannot be read: an unknown version or shape. It is never guessed at."""


class SessionNotFound(PalaverError):
    """No stored session has this handle."""


class DeadLetterNotFound(PalaverError):
    """No message with this turn id was given up."""


class TimerGone(StorageError):
    """The timer has fired or was cancelled: what was to be stored with its firing is not stored."""


class RevisionMoved(StorageError):
    """The session was changed by someone else since the caller read its revision."""
