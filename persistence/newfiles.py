"""Files and directories that appear under their name when they are whole, or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gevent.monkey import get_original

from persistence.errors import StorageError

Path = str | os.PathLike[str]
T = TypeVar("T")

# Where gevent has patched, its own would make a hub for the database's thread.
_close = get_original("os", "close")

# SQLite takes these, where they lie beside a file, for a part of it.
_COMPANIONS = ("-wal", "-journal", "-shm")


@contextmanager
def new_file(to: Path) -> Iterator[tuple[str, int]]:
    """The path and descriptor of a file to be written, which is synced and named `to` when the block ends.

    Until then it lies beside `to`, as `.palaver-….part`. A block that raises leaves nothing; a process
    that is killed leaves the part.

    Raises:
        StorageError: `to` is taken or cannot be made; or another OSError of the block or of the end.
    """
    target = free_target(to)
    with _in_words(target):
        part, fd = _beside(target, lambda path: os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        try:
            try:
                yield part, fd
                os.fsync(fd)
            finally:
                # Before others can find it: this would drop the lock of whoever in this process opens it.
                _close(fd)
            _name_it(part, target)
        finally:
            for left in (part, *(part + companion for companion in _COMPANIONS)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)


@contextmanager
def new_directory(to: Path) -> Iterator[str]:
    """As `new_file`, for a directory; `to` may be an empty one. What is in it is the block's to sync."""
    target = free_directory(to)
    with _in_words(target), scratch_directory(target) as part:
        yield part
        os.rename(part, target)  # refuses a directory that is not empty
        try:
            _sync(os.path.dirname(target))
        except OSError:
            _remove(target)
            raise


@contextmanager
def scratch_directory(target: str) -> Iterator[str]:
    """A directory beside `target`, for the time of the block."""
    part, _ = _beside(target, os.mkdir)
    try:
        yield part
    finally:
        _remove(part)


def free_target(to: Path) -> str:
    """`to` as an absolute path, if a database file can be made there.

    Raises:
        StorageError: it cannot, or something of this name is there.
    """
    target = _absolute(to)
    if os.path.lexists(target):
        raise StorageError(f"{_shown(to)} exists already, and nothing is overwritten; give another name")
    for companion in _COMPANIONS:
        if os.path.lexists(target + companion):
            raise StorageError(
                f"{_shown(target + companion)} is there, which SQLite would take for a part of {_shown(to)}; "
                "remove it, or give another name"
            )
    return target


def free_directory(to: Path) -> str:
    """`to` as an absolute path, if a directory can be made there, or there is an empty one.

    Raises:
        StorageError: it cannot.
    """
    target = os.path.realpath(_absolute(to))
    if os.path.isdir(target):
        if os.listdir(target):
            raise StorageError(f"the directory {_shown(to)} is not empty; give a new one")
        if os.path.ismount(target) or os.path.samefile(target, os.curdir):
            raise StorageError(f"the directory {_shown(to)} cannot be replaced; give one in it")
    elif os.path.lexists(target):
        raise StorageError(f"{_shown(to)} is no directory; give a new one")
    return target


def _absolute(to: Path) -> str:
    name = os.fsdecode(to)
    if not name or "\0" in name:
        raise StorageError(f"{name!r} is no path that can be written; give another")
    target = os.path.abspath(name)
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise StorageError(f"{name!r} cannot be made: there is no directory {parent!r}; create it")
    return target


def _shown(path: Path) -> str:
    return repr(os.fsdecode(path))


@contextmanager
def _in_words(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"{target!r} could not be written: {why}; nothing is left of it") from error


def _beside(target: str, make: Callable[[str], T]) -> tuple[str, T]:
    """A new path beside `target` that nobody takes for a whole one, and what `make` made there."""
    directory = os.path.dirname(target)
    for number in itertools.count():
        part = os.path.join(directory, f".palaver-{os.getpid()}-{number}.part")
        try:
            return part, make(part)
        except FileExistsError:
            continue
    raise AssertionError("there are numbers without end")


def _name_it(part: str, target: str) -> None:
    """Give a finished file its name, which must be free."""
    try:
        os.link(part, target)  # unlike a rename, it never replaces anything
    except FileExistsError as error:
        raise StorageError(f"{target!r} was made by someone else meanwhile; give another name") from error
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise
        os.rename(part, target)
    try:
        _sync(os.path.dirname(target))
    except OSError:
        os.unlink(target)
        raise


def _sync(path: str | bytes) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        _close(fd)


def _remove(directory: str) -> None:
    # Not `shutil.rmtree`: where gevent has patched, it closes descriptors by way of a hub.
    with contextlib.suppress(OSError):
        for parent, folders, files in os.walk(os.fsencode(directory), topdown=False):
            for file in files:
                os.unlink(os.path.join(parent, file))
            for folder in folders:
                os.rmdir(os.path.join(parent, folder))
        os.rmdir(directory)


def inside(directory: str, path: str) -> bytes:
    """Where the file `path` of a directory is, also in a locale whose encoding lacks its characters."""
    return os.path.join(os.fsencode(directory), path.encode())


def sync_files(directory: str, paths: Iterable[str]) -> None:
    """Make files of a directory durable, and the directories on the way to them. There may be thousands:
    all are written together first, so that each costs little."""
    os.sync()
    top, synced = os.fsencode(directory), dict.fromkeys(inside(directory, path) for path in paths)
    for path in list(synced):
        while (path := os.path.dirname(path)) not in synced and path.startswith(top):
            synced[path] = None
    for path in synced:
        _sync(path)
