"""What a runtime counts: everything that an operator looks at, in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen

from actors.counts import Durations
from actors.services import Services
from palaver.process import rss_bytes


@frozen
class Stats:
    """Counts of one runtime, now. Sums are since it was opened.

    Asking for them costs the same whatever the number of conversations: they are counted as things happen.

    Attributes:
        uptime_s: seconds since the runtime was opened.
        conversations: live ones by state: `opening idle running closing parked`.
        passive: topic conversations that left memory; their next message brings them back.
        history_bytes: the histories in memory, about.
        running: turns that run.
        queued: accepted turns and steers that wait.
        oldest_waiting_s: seconds since the one of them that has waited longest was accepted; None if none
            waits.
        queued_most: the bound of `running` and `queued` together, `Limits.queued_total`.
        turns_accepted: turns and steers accepted.
        turns_brought_back: those that an earlier process or another runtime had accepted.
        turns_ended: turns that reached a terminal state, by state: `done failed cancelled closed`.
        steers_applied: steers that were put into a running turn; they end with it.
        turn_seconds: how long turns ran, from their beginning to the commit of their end.
        model_calls, tool_calls: calls that are under way.
        model_calls_waiting, tool_calls_waiting: calls that wait for their turn, or until the endpoint of
            their model may be asked again.
        model_pauses_s: seconds for which endpoints asked to be left alone, so far.
        timers: timers that have not ended.
        commits: transactions of the database.
        database_jobs: jobs of the database.
        database_waiting: jobs that wait for the database thread.
        largest_batch: jobs in the largest transaction.
        database_failed: why nothing is stored any more, or None.
        file_bytes, wal_bytes: sizes of the database file and its write-ahead log after the last commit.
        rss_bytes: memory of the whole process.
        subscribers: readers of `Runtime.subscribe`.
        lagged_events: events that readers missed because they fell behind.
        actors_alive: whether the `registry`, the `memory` and the `timers` actor are there.
        restarts: actors that died and were started again.
        parked: actors that kept dying and are not started again.
        passivations: idle topics that left memory.
        expirations: idle tmp chats that ended.
        most_queued: the most that waited in one `conversation`, the one that comes included, and the most
            turns that one `sender` had accepted and not done, at any time: near
            `Limits.queued_per_conversation` and `queued_per_sender`, callers are refused.
        overflows: times that a bound was reached; `overflowed`: by the bound, a field of `Limits`.
        dead_letters: messages that were given up.
        closing_down: whether new work is refused.
    """

    uptime_s: float
    conversations: Mapping[str, int]
    passive: int
    history_bytes: int
    running: int
    queued: int
    oldest_waiting_s: float | None
    queued_most: int
    turns_accepted: int
    turns_brought_back: int
    turns_ended: Mapping[str, int]
    steers_applied: int
    turn_seconds: Durations
    model_calls: int
    model_calls_waiting: int
    model_pauses_s: float
    tool_calls: int
    tool_calls_waiting: int
    timers: int
    commits: int
    database_jobs: int
    database_waiting: int
    largest_batch: int
    database_failed: str | None
    file_bytes: int
    wal_bytes: int
    rss_bytes: int
    subscribers: int
    lagged_events: int
    actors_alive: Mapping[str, bool]
    restarts: int
    parked: int
    passivations: int
    expirations: int
    most_queued: Mapping[str, int]
    overflows: int
    overflowed: Mapping[str, int]
    dead_letters: int
    closing_down: bool


@frozen
class Rates:
    """What happened in each second between two `Stats`, on average."""

    seconds: float
    turns_accepted: float
    turns_ended: float
    turns_failed: float
    commits: float
    database_jobs: float


def gather(services: Services, *, closing_down: bool) -> Stats:
    """The counts of the runtime that these services are of. Asks no actor."""
    counts = services.directory.counts
    worker = services.store.stats
    oldest = counts.oldest_waiting()
    happened = services.incidents.counts
    return Stats(
        uptime_s=services.clock.monotonic() - counts.opened_at,
        conversations=dict(counts.phases),
        passive=services.directory.passive,
        history_bytes=services.directory.history_bytes,
        running=counts.running,
        queued=len(counts.waiting),
        oldest_waiting_s=None if oldest is None else services.clock.wall() - oldest,
        queued_most=services.limits.queued_total,
        turns_accepted=counts.accepted,
        turns_brought_back=counts.brought_back,
        turns_ended=dict(counts.ended),
        steers_applied=counts.steered,
        turn_seconds=counts.took.now(),
        model_calls=services.model_calls.running,
        model_calls_waiting=services.model_calls.waiting,
        model_pauses_s=services.model_calls.paused_s,
        tool_calls=services.tool_calls.running,
        tool_calls_waiting=services.tool_calls.waiting,
        timers=services.timers.pending,
        commits=worker.commits,
        database_jobs=worker.jobs,
        database_waiting=worker.waiting,
        largest_batch=worker.largest_batch,
        database_failed=worker.failed,
        file_bytes=worker.file_bytes,
        wal_bytes=worker.wal_bytes,
        rss_bytes=rss_bytes(),
        subscribers=len(services.directory.streams),
        lagged_events=counts.lagged,
        actors_alive={
            name: ref is not None and ref.is_alive()
            for name, ref in (
                ("registry", services.registry),
                ("memory", services.memory),
                ("timers", services.timers.actor),
            )
        },
        restarts=happened["ActorRestarted"],
        parked=happened["ActorParked"],
        passivations=happened["Passivated"],
        expirations=happened["Expired"],
        most_queued=dict(counts.most_queued),
        overflows=happened["Overflowed"],
        overflowed=dict(services.incidents.overflowed),
        dead_letters=happened["DeadLettered"],
        closing_down=closing_down,
    )


def rates(before: Stats | None, after: Stats) -> Rates:
    """What happened in each second between two records of one runtime.

    Where `before` is None, or of an earlier runtime (one that was open for longer), the rates are of all the
    time since `after`'s was opened. Between two records of one moment all rates are 0.
    """
    then = None if before is None or before.uptime_s > after.uptime_s else before
    seconds = after.uptime_s if then is None else after.uptime_s - then.uptime_s

    def rate(count: Callable[[Stats], int]) -> float:
        came = count(after) - (0 if then is None else count(then))
        return came / seconds if seconds > 0 else 0.0

    return Rates(
        seconds,
        rate(lambda stats: stats.turns_accepted),
        rate(lambda stats: sum(stats.turns_ended.values())),
        rate(lambda stats: stats.turns_ended["failed"]),
        rate(lambda stats: stats.commits),
        rate(lambda stats: stats.database_jobs),
    )
