"""The one base of all Palaver's errors, and what can go wrong with a database."""

from __future__ import annotations


class PalaverError(Exception):
    """Base of every error that Palaver raises on purpose."""


class StorageError(PalaverError):
    """The database could not do what was asked. Nothing of that request was acknowledged."""


class DatabaseInUse(StorageError):
    """Another process, or another Runtime of this one, holds the file."""


class DatabaseUnusable(StorageError):
    """The path is not something that Palaver can open: a directory, read-only, not SQLite, damaged."""


class DatabaseTooNew(StorageError):
    """The file was written by a newer version of Palaver."""


class BacklogFull(StorageError):
    """The database thread has more waiting jobs than its bound allows; nothing was stored."""


class RecordError(StorageError):
    """A stored body cannot be read: an unknown version or shape. It is never guessed at."""


class SessionNotFound(PalaverError):
    """No stored session has this handle."""


class RevisionMoved(StorageError):
    """The session was changed by someone else since the caller read its revision."""
