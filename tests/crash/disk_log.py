"""The record of a disk: what was done to files, in order, and what callers were told meanwhile.

A file is a number, the inode that its name stood for: a file that is deleted and made again is another.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    """All that was done to the file before is on the disk."""

    file: int


class Create(NamedTuple):
    name: str
    file: int


class Delete(NamedTuple):
    name: str


class SyncFolder(NamedTuple):
    """All files that were made and deleted before are on the disk as such."""


class Ask(NamedTuple):
    """A caller is about to ask for `what`, which may take effect from here on."""

    what: str
    about: Any


class Ack(NamedTuple):
    """A caller was told `what`, so that it must survive from here on."""

    what: str
    about: Any


Event = Write | Truncate | Sync | Create | Delete | SyncFolder | Ask | Ack
