"""Whether a runtime is alive, and whether it takes work: for probes and watchdogs.

Both functions change nothing and ask no actor. Call them in the runtime's thread: that they answer shows that
its hub does. A probe in another thread calls `rt.from_thread(live, rt).result(timeout=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from palaver.runtime import Runtime
from palaver.stats import Stats


@frozen
class Health:
    """Whether all is well, and if not, every reason why."""

    ok: bool
    reasons: tuple[str, ...] = ()


def live(rt: Runtime) -> Health:
    """Whether the process should go on; if not, end it and start another: no waiting will help.

    True as long as the database can be written and the runtime has not failed. One that shuts down is alive.

    Raises:
        WrongThread: called in another thread; see above.
    """
    return _health(_broken(rt, rt.stats()))


def ready(rt: Runtime) -> Health:
    """Whether new work should be sent here. If not, that may pass by itself.

    True when it is alive, open and not shutting down, its registry, memory and timers actors are there, and
    fewer turns are accepted than `Limits.queued_total` allows.

    Raises:
        WrongThread: called in another thread; see above.
    """
    stats = rt.stats()
    reasons = _broken(rt, stats)
    if stats.closing_down:
        reasons.append("the runtime is shutting down or closed")
    else:
        dead = [name for name, alive in stats.actors_alive.items() if not alive]
        reasons += [f"the {name} actor is not there" for name in dead]
    held = stats.running + stats.queued
    if held >= stats.queued_most:
        reasons.append(f"{held} turns are accepted and not done, the most that limits.queued_total allows")
    return _health(reasons)


def _broken(rt: Runtime, stats: Stats) -> list[str]:
    reasons = []
    if stats.database_failed is not None:
        reasons.append(f"the database has failed, and nothing is stored any more: {stats.database_failed}")
    if rt.failed is not None:
        reasons.append(str(rt.failed))
    return reasons


def _health(reasons: Sequence[str]) -> Health:
    return Health(not reasons, tuple(reasons))
