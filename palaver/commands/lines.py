"""Lines from a terminal, a pipe or a file, read without blocking other greenlets."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gevent.socket import wait_read

PIECE = 65_536


def read_lines(fd: int) -> Iterator[str]:
    """The lines of a file descriptor, without their ends, until it ends.

    Only the reading greenlet waits, also on a terminal: the descriptor's flags, which a terminal
    shares with the shell, stay as they are. What is not UTF-8 is shown as U+FFFD.
    """
    rest = b""
    while True:
        wait_read(fd)
        piece = os.read(fd, PIECE)
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield _text(line)
        if not piece:
            if rest:
                yield _text(rest)
            return


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
