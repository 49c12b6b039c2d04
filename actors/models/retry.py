"""When to try again: pure values."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Protocol

FIRST_S = 0.5
LONGEST_S = 8.0


class Rng(Protocol):
    """A source of random numbers, such as `random.Random`."""

    def random(self) -> float:
        """A number from 0 up to, but without, 1."""


def back_off(attempt: int, retry_after_s: float | None, rng: Rng) -> float:
    """Seconds to wait after the failed attempt number `attempt` (from 0).

    Full jitter: evenly spread between nothing and a bound that doubles, so that those who failed
    together do not come back together. What the endpoint asked for comes on top.
    """
    return (retry_after_s or 0.0) + rng.random() * min(LONGEST_S, FIRST_S * 2.0 ** min(attempt, 10))


def retry_after(header: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` header asks for; None if there is none that makes sense.

    Args:
        header: a number of seconds, or an HTTP date.
        now: seconds since the Unix epoch.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
