"""Which process holds a database file: found out without opening the file."""

from __future__ import annotations

import os
from weakref import WeakValueDictionary

from sqlite_utils import Database

LOCKS = "/proc/locks"

# What this process has open, by device and inode: where there is no /proc, nothing else knows.
_OPEN: WeakValueDictionary[tuple[int, int], Database] = WeakValueDictionary()

os.register_at_fork(after_in_child=_OPEN.clear)  # a child holds no lock of its parent's


def remember(name: str, db: Database) -> None:
    """Note that this process has the file `name` open, until `forget` or until `db` is gone."""
    key = _key(name)
    if key is not None:
        _OPEN[key] = db


def forget(db: Database) -> None:
    """Note that `db` is being closed. Fine for one that was never remembered."""
    for key, known in list(_OPEN.items()):
        if known is db:
            _OPEN.pop(key, None)


def holder(name: str) -> int | None:
    """The id of the process that has a lock on the file, its writer if there is one; None if that cannot be
    found out: there is no /proc, the holder is in another container, or has just gone.

    Never opens the file: closing any descriptor of it would drop the locks that this process has on it.
    """
    key = _key(name)
    if key is None:
        return None
    if key in _OPEN:
        return os.getpid()
    pids = dict(_locks(key))
    return pids.get("WRITE") or pids.get("READ")


def _key(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _locks(key: tuple[int, int]) -> list[tuple[str, int]]:
    """(READ or WRITE, pid) of each POSIX lock that is held on a file, as the kernel lists them."""
    device, inode = key
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        with open(LOCKS, encoding="ascii") as lines:
            rows = [line.split() for line in lines]
    except (OSError, ValueError):
        return []
    # "1: POSIX ADVISORY WRITE 4711 fe:00:12345 0 EOF"; with "->" in the second place, one that waits.
    return [
        (row[3], int(row[4]))
        for row in rows
        if len(row) > 5 and row[1] == "POSIX" and row[5] == file and row[4].isdigit()
    ]
