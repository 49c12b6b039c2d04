"""Durable turns beside raw sqlite3, with the same rows and commits, and against the number of senders."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import resource  # noqa: E402  # gevent patches first
import sqlite3  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402

import attrs  # noqa: E402
from attrs import frozen  # noqa: E402

from benchmarks.report import Curve, Goal, Part, Row, Series, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import (  # noqa: E402
    ANSWER,
    MESSAGE,
    HubWatch,
    answering,
    closed_loop,
    open_topics,
    running,
    settled,
    temporary_file,
)
from persistence.codec import encode_entry, encode_result  # noqa: E402
from persistence.database import close_database, open_database  # noqa: E402
from persistence.records import HistoryEntry, TurnResult  # noqa: E402

ABOUT = """S senders, each in a topic of its own, each send T turns one after the other, all senders at
once: a message of 100 characters, a model without latency that answers 200 in one piece, everything
committed with synchronous=FULL before the reply. `raw` writes the rows of the same turns by sqlite3 alone,
as many turns to a commit: no conversations, no model, no waiting for anybody."""


@frozen
class Load:
    """`senders` at once, each with `turns` turns, `chunks` pieces to an answer."""

    senders: int
    turns: int
    chunks: int = 1

    @property
    def name(self) -> str:
        streamed = f", streamed in {self.chunks} pieces" if self.chunks > 1 else ""
        return f"{self.senders:,} x {self.turns}{streamed}"


@frozen
class Figures:
    """One run of one load."""

    turns_per_s: float
    p50_ms: float
    p99_ms: float
    commits_per_turn: float
    bytes_per_turn: float
    blocked_ms: float
    busy_ms: float

    @property
    def turns_per_commit(self) -> int:
        return max(1, round(1 / self.commits_per_turn))


ONE, HUNDRED, STREAMED, THOUSAND = LOADS = (
    Load(1, 200),
    Load(100, 20),
    Load(100, 20, chunks=20),
    Load(1_000, 10),
)
FEWER = tuple(attrs.evolve(load, turns=load.turns // 3) for load in LOADS)
SENDERS = (1, 10, 100, 1_000, 10_000)
RAW_COMMITS = (1, 10, 100, 1_000)
RAW_THERE = 74_000.0  # turns/s by `raw`, 1,000 to a commit, on the machine of which rates were asked
FIGURES = {
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "commits_per_turn": "commits per turn",
    "bytes_per_turn": "bytes on disk per turn",
    "blocked_ms": "hub blocked, ms",
    "busy_ms": "of which at work itself, ms",
}


def ours(load: Load) -> Figures:
    """The load through a whole runtime on a file."""
    with temporary_file() as path:
        with running(path, answering(load.chunks)) as rt, settled():
            conversations = open_topics(rt, load.senders)

            def stream(conversation: int) -> None:
                for _event in rt.stream(conversation, MESSAGE):
                    pass

            before = rt.stats().commits
            with HubWatch() as hub:
                took = closed_loop(rt, conversations, load.turns, stream if load.chunks > 1 else None)
            commits = rt.stats().commits - before
        return Figures(
            turns_per_s=took.turns_per_s,
            p50_ms=took.percentile_ms(50),
            p99_ms=took.percentile_ms(99),
            commits_per_turn=commits / took.turns,
            bytes_per_turn=path.stat().st_size / took.turns,
            blocked_ms=hub.blocked_ms,
            busy_ms=hub.busy_ms,
        )


def raw(turns_per_commit: int, turns: int = 2_000, clock: Callable[[], float] = time.perf_counter) -> float:
    """Turns a second of `clock` by sqlite3 alone: the rows that ours writes, so many turns to a commit."""
    with temporary_file() as path:
        db = open_database(path)
        began = clock()
        write_raw(db.conn, turns_per_commit, turns)
        spent = clock() - began
        close_database(db)
    return turns / spent


def rate_goal(what: str, rate: Series, raws: Series, asked: float) -> Goal:
    """A rate that was asked of another machine, as the part of `raw` that it was there."""
    words = f"{what}, over raw sqlite3 ({asked:,.0f} of {RAW_THERE:,.0f} asked)"
    return Goal(words, ratio(rate, raws), asked / RAW_THERE)


def write_raw(connection: sqlite3.Connection, turns_per_commit: int, turns: int) -> None:
    """The rows of so many turns of one session."""
    user = encode_entry(HistoryEntry("user", MESSAGE, sender="sender"))
    assistant = encode_entry(HistoryEntry("assistant", ANSWER))
    result = encode_result(TurnResult(ANSWER, "text_response", steps=1, conversation_id=1, turn_id=1))
    connection.execute(
        "INSERT INTO sessions (handle, agent, sender, topic, scope, created_at, updated_at) "
        "VALUES ('h', 'agent', 'sender', 'topic', 'sender', 1.0, 1.0)"
    )
    connection.commit()
    for first in range(0, turns, turns_per_commit):
        connection.execute("BEGIN IMMEDIATE")
        for turn in range(first, min(first + turns_per_commit, turns)):
            _raw_turn(connection.execute, turn, user, assistant, result)
        connection.execute("COMMIT")


def _raw_turn(execute: Callable[..., object], turn: int, user: str, assistant: str, result: str) -> None:
    execute(
        "INSERT INTO turns "
        "(id, session_id, sender, content, state, attempts, accepted_at, finished_at, result) "
        "VALUES (?, 1, 'sender', ?, 'done', 1, 1.0, 1.0, ?)",
        (turn, MESSAGE, result),
    )
    execute(
        "INSERT INTO entries (session_id, seq, turn_id, body, created_at) "
        "VALUES (1, ?, ?, ?, 1.0), (1, ?, ?, ?, 1.0)",
        (2 * turn, turn, user, 2 * turn + 1, turn, assistant),
    )
    execute(
        "UPDATE sessions SET next_seq = ?, revision = ?, uptime_ms = ?, updated_at = 1.0 WHERE id = 1",
        (2 * turn + 2, turn, turn),
    )


def series(figures: list[Figures], field: str) -> Series:
    """One field of several runs."""
    return Series(tuple(getattr(one, field) for one in figures))


def measure(loads: Sequence[Load], rounds: int, tell: Tell) -> dict[Load, tuple[list[Figures], Series]]:
    """For each load what ours did, and turns/s of raw sqlite3 with as many turns to a commit, in turns."""
    found: dict[Load, tuple[list[Figures], list[float]]] = {load: ([], []) for load in loads}
    for turn in range(rounds):
        for load, (figures, raws) in found.items():
            tell(f"round {turn + 1} of {rounds}, {load.name}")
            figures.append(ours(load))
            raws.append(raw(figures[-1].turns_per_commit))
    return {load: (figures, Series(tuple(raws))) for load, (figures, raws) in found.items()}


def by_senders(rounds: int, most: int, tell: Tell) -> Curve:
    """Turns/s against the number of senders."""
    loads = [Load(senders, max(2, min(200, 2_000 // senders))) for senders in SENDERS if senders <= most]
    found = in_turns(
        {load.name: partial(lambda each: ours(each).turns_per_s, load) for load in loads}, rounds, tell
    )
    line = {float(load.senders): found[load.name] for load in loads}
    return Curve("turns/s", "senders at once", {"ours": line})


def run(quick: bool, tell: Tell) -> Part:
    loads, rounds = (FEWER, 2) if quick else (LOADS, 5)
    measured = measure(loads, rounds, tell)
    rows = [Row(f"turns/s, {load.name}", _beside(*measured[load])) for load in loads]
    rows += [
        Row(f"{words}, {load.name}", {"ours": series(measured[load][0], name)})
        for load in loads
        for name, words in FIGURES.items()
    ]
    few = 500 if quick else 2_000
    alone = in_turns({f"raw, {n:,} turns a commit": partial(raw, n, few) for n in RAW_COMMITS}, rounds, tell)
    rows += [Row(f"turns/s, {name}", {"raw": each}) for name, each in alone.items()]
    curve = by_senders(1 if quick else 5, 100 if quick else 10_000, tell)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    notes = [f"peak memory of the process: {peak:.0f} MiB"]
    return Part("turns", ABOUT, rows, [curve], _goals(measured), notes, setting("gevent", "sqlite-utils"))


def _beside(figures: list[Figures], raws: Series) -> dict[str, Series]:
    return {"ours": series(figures, "turns_per_s"), "raw": raws}


def _goals(measured: dict[Load, tuple[list[Figures], Series]]) -> list[Goal]:
    figures = {load: found for load, (found, _) in measured.items()}
    rate = {load: series(each, "turns_per_s") for load, each in figures.items()}
    one, hundred, streamed, many = figures  # as in LOADS
    p99, p50 = (series(figures[hundred], name) for name in ("p99_ms", "p50_ms"))
    thousand = {name: series(figures[many], name).median for name in attrs.fields_dict(Figures)}
    worst = max(series(each, "blocked_ms").median for each in figures.values())
    return [
        Goal("1 sender, over raw sqlite3 with a commit a turn", ratio(rate[one], measured[one][1]), 0.35),
        rate_goal("1,000 senders", rate[many], measured[many][1], 6_000),
        Goal("100 senders, p99 over p50", ratio(p99, p50), 3, at_most=True),
        Goal("1,000 senders, commits per turn", thousand["commits_per_turn"], 0.1, at_most=True),
        Goal("1,000 senders, bytes on disk per turn", thousand["bytes_per_turn"], 1_536, at_most=True),
        Goal("streamed in 20 pieces, over unstreamed", ratio(rate[streamed], rate[hundred]), 0.6),
        Goal("hub blocked in any load, ms", worst, 50, at_most=True),
    ]
