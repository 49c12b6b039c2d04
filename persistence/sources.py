"""Where time, randomness and ids come from: the one file that reads the real ones.

Everything above is handed these, so that a simulation can hand in virtual ones.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from attrs import field, frozen


class Clock(Protocol):
    """Time, as the runtime sees it."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary zero."""

    def wall(self) -> float:
        """Seconds since the Unix epoch."""


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def _random_handle() -> str:
    return uuid.uuid4().hex


@frozen
class Sources:
    """What a runtime takes from outside: clock, random numbers, session handles.

    `handle` returns a new stable string for a stored session at every call.
    """

    clock: Clock = field(factory=SystemClock)
    rng: random.Random = field(factory=random.Random)
    handle: Callable[[], str] = _random_handle


def seeded_sources(clock: Clock, seed: int) -> Sources:
    """Sources that give the same numbers and handles for the same `seed`, on the given clock."""
    rng = random.Random(seed)
    handles = random.Random(f"handles {seed}")
    return Sources(clock=clock, rng=rng, handle=lambda: f"{handles.getrandbits(128):032x}")


def seeded_random(*of: object) -> random.Random:
    """A generator of its own for each use: the same numbers for the same words and numbers in `of`, in every
    process."""
    return random.Random(" ".join(map(str, of)))


@contextmanager
def seeded_global_random(*of: object) -> Iterator[None]:
    """Within, the functions of the `random` module give the same numbers for the same `of`; afterwards they
    go on as if nothing had been."""
    before = random.getstate()
    random.seed(" ".join(map(str, of)))
    try:
        yield
    finally:
        random.setstate(before)
