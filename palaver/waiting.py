"""Waiting, for a bounded time, until another process lets go of what only one can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

from actors.errors import InvalidInput
from persistence.errors import DatabaseInUse, PalaverError
from persistence.sources import Clock

T = TypeVar("T")

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25


def check_wait(wait_s: object, worker: object) -> None:
    """Refuse what is no time to wait.

    Raises:
        InvalidInput: no number of seconds, or more than none for a worker that can be started once only.
    """
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not wait_s >= 0:
        raise InvalidInput(f"wait_s must be a number of seconds from 0 on, not {wait_s!r}")
    if wait_s and worker is not None:
        raise InvalidInput(
            "a worker of your own is started once, and cannot wait: leave out wait_s or worker"
        )


def when_free(
    attempt: Callable[[], T], wait_s: float, clock: Clock, in_use: type[PalaverError] = DatabaseInUse
) -> T:
    """What `attempt` returns, made again for up to `wait_s` seconds while it raises `in_use`.

    Raises:
        PalaverError: what the last attempt raised.
    """
    deadline, pause = clock.monotonic() + wait_s, FIRST_PAUSE_S
    while True:
        try:
            return attempt()
        except in_use:
            left = deadline - clock.monotonic()
            if left <= 0:
                raise
            gevent.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)
