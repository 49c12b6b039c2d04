"""What a runtime counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import frozen

from actors.services import Services

PHASES = ("opening", "idle", "running", "closing")


@frozen
class Stats:
    """Counts of one runtime, now.

    `conversations` by state (`opening idle running closing`), `running` and `queued` turns,
    `oldest_waiting_s` the age of the oldest queued turn (None if none waits), `database_*` the
    worker's commits, jobs, waiting jobs and largest batch, `restarts` of actors, `closing_down` whether
    new work is refused.
    """

    conversations: Mapping[str, int]
    running: int
    queued: int
    oldest_waiting_s: float | None
    commits: int
    database_jobs: int
    database_waiting: int
    largest_batch: int
    database_failed: str | None
    subscribers: int
    restarts: int
    closing_down: bool


def gather(services: Services, *, closing_down: bool) -> Stats:
    """The counts of the runtime that these services are of. Asks no actor."""
    states: Counter[str] = Counter(state.phase for state in services.directory.conversations.values())
    tickets = [*services.directory.tickets.values()]
    waiting = [ticket.accepted_at for ticket in tickets if ticket.state == "queued" and ticket.accepted_at]
    worker = services.store.stats
    return Stats(
        conversations={phase: states[phase] for phase in PHASES},
        running=sum(ticket.state == "running" for ticket in tickets),
        queued=sum(ticket.state == "queued" for ticket in tickets),
        oldest_waiting_s=services.clock.wall() - min(waiting) if waiting else None,
        commits=worker.commits,
        database_jobs=worker.jobs,
        database_waiting=worker.waiting,
        largest_batch=worker.largest_batch,
        database_failed=worker.failed,
        subscribers=len(services.directory.streams),
        restarts=0,
        closing_down=closing_down,
    )
