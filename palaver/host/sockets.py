"""A Unix socket made in such a way that nobody else gets at it, and that no living process loses its own."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket as names
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import socket

from actors.logs import log
from palaver.host.errors import HostInUse

logger = logging.getLogger("palaver.host")

LONGEST_PATH = 107  # bytes that a socket's address has room for
BACKLOG = 128
PROBE_S = 1.0
_ATTEMPTS = 100  # to be the only one that makes a socket in this directory, 50 ms apart


def listen_at(path: str) -> Any:
    """A socket that listens at `path`, for this user alone. One that a dead process left is replaced.

    Raises:
        HostInUse: a living process listens there, or there is something else under that name.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise HostInUse(
            f"{path!r} is too long for a socket: {LONGEST_PATH} bytes at most; give one nearer to the root"
        )
    try:
        with _alone_in(os.path.dirname(os.path.abspath(path))):
            _clear(path)
            return _bound(path)
    except OSError as error:
        if isinstance(error, HostInUse):
            raise
        raise HostInUse(f"no socket can be made at {path!r}: {error.strerror or error}") from error


def identity(path: str) -> tuple[int, int] | None:
    """What tells the socket at `path` from one that another process put there; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Keep others who find the same dead socket from taking ours away in its place."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                gevent.sleep(0.05)
        else:
            raise HostInUse(f"another process holds a lock on the directory {directory!r}")
        yield
    finally:
        os.close(fd)


def _clear(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise HostInUse(f"{path!r} is there and is no socket; give another path, or move it away")
    if _answers(path):
        raise HostInUse(f"another process listens on {path!r}; stop that one first, or give another path")
    log(logger, logging.INFO, "replacing the socket that a dead process left", socket=path)
    os.unlink(path)


def _answers(path: str) -> bool:
    """Whether somebody listens there; who is too busy to answer does."""
    with socket.socket(names.AF_UNIX, names.SOCK_STREAM) as probe, gevent.Timeout(PROBE_S, False):
        return bool(probe.connect_ex(path) != errno.ECONNREFUSED)
    return True


def _bound(path: str) -> Any:
    sock = socket.socket(names.AF_UNIX, names.SOCK_STREAM)
    # No other greenlet runs between these two, so nothing else is made with this mode, and nobody can
    # connect before it is set.
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    return sock
