"""What a service manager is told: systemd's datagrams of `Type=notify`, without a dependency."""

from __future__ import annotations

import logging
import os
import socket as names
from collections.abc import Callable, Mapping

import gevent
from gevent import socket

from actors.logs import log

logger = logging.getLogger("palaver.host")

MICRO = 1_000_000


class Notifier:
    """Speaks to the service manager that started this process; without one it does nothing.

    Args:
        environ: where the manager left its socket (`NOTIFY_SOCKET`) and how often it wants to hear that all
            is well (`WATCHDOG_USEC`, of the process `WATCHDOG_PID`).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._to = environ.get("NOTIFY_SOCKET", "")
        for_us = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environ.get("WATCHDOG_USEC", "") if for_us else ""
        self._every_s = int(usec) / MICRO / 2 if self._to and usec.isdigit() and int(usec) > 0 else None
        self._watch: gevent.Greenlet | None = None

    def starting(self, wait_s: float) -> None:
        """The start may take that long, besides what it takes anyway."""
        if wait_s:
            self._say(f"STATUS=waiting for the database\nEXTEND_TIMEOUT_USEC={_usec(wait_s)}")

    def ready(self, healthy: Callable[[], bool]) -> None:
        """Requests are taken from now on. While `healthy` says so, the watchdog hears of it."""
        self._say(f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}")
        if self._every_s is not None:
            self._watch = gevent.spawn(self._tell_watchdog, self._every_s, healthy)

    def stopping(self, drain_s: float) -> None:
        """The stop has begun, and may take that long, besides what it takes anyway."""
        self._say(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={_usec(drain_s)}")

    def close(self) -> None:
        """Say no more."""
        if self._watch is not None:
            self._watch.kill()

    def _tell_watchdog(self, every_s: float, healthy: Callable[[], bool]) -> None:
        while True:
            if healthy():
                self._say("WATCHDOG=1")
            else:
                log(
                    logger,
                    logging.ERROR,
                    "not healthy, so the watchdog is not told, and may end this process",
                )
            gevent.sleep(every_s)

    def _say(self, words: str) -> None:
        if not self._to:
            return
        # A name that begins with "@" is in the abstract namespace, where that is a NUL.
        address = "\0" + self._to[1:] if self._to.startswith("@") else self._to
        with socket.socket(names.AF_UNIX, names.SOCK_DGRAM | names.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(words.encode(), address)
            except OSError as error:
                log(
                    logger, logging.WARNING, "the service manager could not be told", what=words, reason=error
                )


# What a start or a stop takes besides: opening, cancelling, committing.
_BESIDES_S = 15.0


def _usec(seconds: float) -> int:
    return int((seconds + _BESIDES_S) * MICRO)
