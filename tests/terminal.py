"""A command at a terminal of its own, which a test types at and reads."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from gevent.monkey import get_original
from gevent.socket import wait_read

ROOT = Path(__file__).resolve().parents[1]

# gevent's puts it off until something else wakes the hub, and a reader may be waiting for this very end.
close = get_original("os", "close")

AT_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C typed there is a signal
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(name="without_monitor", autouse=True)
def children_without_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gevent's monitor prints on a child's stderr is none of the command's output."""
    for name in [name for name in os.environ if name.startswith("GEVENT_")]:
        monkeypatch.delenv(name)


class Child:
    """A command at a terminal of its own."""

    def __init__(self, *args: object) -> None:
        self._ours, theirs = pty.openpty()
        self.seen = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL, sys.executable, "-m", "palaver", *map(str, args)],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        close(theirs)

    def expect(self, words: str) -> None:
        """Read until these words have come, and forget what came up to then."""
        while words.encode() not in self.seen:
            piece = self._read()
            assert piece, f"no {words!r} in {self.seen!r}"
            self.seen += piece
        self.seen = self.seen.partition(words.encode())[2]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """Its exit status, and what it has printed since."""
        while piece := self._read():
            self.seen += piece
        close(self._ours)
        return self._process.wait(), self.seen.decode()

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> bytes:
        wait_read(self._ours)
        try:
            return os.read(self._ours, 4_096)
        except OSError:  # how a terminal says that the other side has closed it
            return b""
