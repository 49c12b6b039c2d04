"""A terminal that is drawn on in place, and is as it was afterwards."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Any

import click
import gevent
from gevent.socket import wait_read

_ENTER = "\x1b[?1049h\x1b[?25l"  # another page, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"

STDIN = 0
DEFAULT_SIZE = (80, 24)


class Screen:
    """The terminal of this process, as a context: within, it shows what `draw` is given.

    Args:
        redraw: called when its size has changed, or it was given back after a stop by Ctrl-Z.
        key: called with each key that is typed.
    """

    def __init__(self, redraw: Callable[[], object], key: Callable[[str], object]) -> None:
        self._redraw = redraw
        self._key = key
        self._mode: list[Any] | None = None
        self._signals: list[Any] = []
        self._reader: gevent.Greenlet | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now; 80 by 24 where the terminal does not say."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return DEFAULT_SIZE
        return (size.columns, size.lines) if size.columns and size.lines else DEFAULT_SIZE

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, from the top on, and nothing else."""
        shown = f"{_REST_OF_LINE}\n".join(lines)
        click.echo(f"{_HOME}{shown}{_REST_OF_LINE}{_REST}", nl=False)

    def __enter__(self) -> Screen:
        self._take()
        for number, what in ((signal.SIGWINCH, self._redraw), (signal.SIGTSTP, self._stop)):
            self._signals.append((number, signal.getsignal(number), gevent.signal_handler(number, what)))
        if self._mode is not None:
            self._reader = gevent.spawn(self._read)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._reader is not None:
            self._reader.kill()
        for number, before, handler in self._signals:
            handler.cancel()
            signal.signal(number, before)
        self._give_back()

    def _take(self) -> None:
        if os.isatty(STDIN):
            self._mode = termios.tcgetattr(STDIN)
            quiet = [*self._mode]
            quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON)  # keys at once, and not on the screen
            termios.tcsetattr(STDIN, termios.TCSADRAIN, quiet)
        click.echo(_ENTER, nl=False)

    def _give_back(self) -> None:
        click.echo(_LEAVE, nl=False)
        sys.stdout.flush()
        if self._mode is not None:
            termios.tcsetattr(STDIN, termios.TCSADRAIN, self._mode)

    def _stop(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._redraw()

    def _read(self) -> None:
        while True:
            wait_read(STDIN)
            typed = os.read(STDIN, 100)
            if not typed:
                return
            for key in typed.decode("utf-8", "replace"):
                self._key(key)
