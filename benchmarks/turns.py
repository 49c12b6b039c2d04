"""Durable turns beside raw sqlite3, with the same rows in the same file format.

    python -m benchmarks.turns [--quick] [--json]

S senders, each in a topic of its own, each send T turns one after the other, all senders at once: a message
of 100 characters, a model without latency that answers 200 in one piece, everything committed with
synchronous=FULL before the reply. `raw` writes the rows of the same turns by sqlite3 alone, so many turns to
a commit: no conversations, no model, no waiting for anybody. Measured in turns; compare the ratios.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402  # gevent patches first
import os  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from attrs import frozen  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from benchmarks.report import Goal, Series, as_json, number, ratio, setting, table  # noqa: E402
from palaver import AgentConfig, Reply, Runtime, ScriptedModel  # noqa: E402
from persistence.codec import encode_entry, encode_result  # noqa: E402
from persistence.database import close_database, open_database  # noqa: E402
from persistence.records import HistoryEntry, TurnResult  # noqa: E402

MESSAGE = "m" * 100
ANSWER = "a" * 200
RAW_COMMITS = (1, 10, 100, 1_000)


@frozen
class Load:
    """`senders` at once, each with `turns` turns, `chunks` pieces to an answer."""

    senders: int
    turns: int
    chunks: int = 1
    streamed: bool = False

    @property
    def name(self) -> str:
        streamed = f", streamed in {self.chunks} pieces" if self.streamed else ""
        return f"{self.senders:,} x {self.turns}{streamed}"


@frozen
class Figures:
    """One run of one load."""

    turns_per_s: float
    p50_ms: float
    p99_ms: float
    commits_per_turn: float
    bytes_per_turn: float


LOADS = (
    Load(1, 200),
    Load(100, 20),
    Load(100, 20, chunks=20, streamed=True),
    Load(1_000, 10),
)


@contextmanager
def temporary_file() -> Iterator[Path]:
    """A path for a database that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "benchmark.db"


def ours(load: Load) -> Figures:
    """The load through a whole runtime on a file."""
    reply = Reply(ANSWER, chunk_chars=len(ANSWER) // load.chunks)
    model = ScriptedModel(lambda _request: reply, keep_requests=0)
    with temporary_file() as path:
        with Runtime.open(path, model) as runtime:
            runtime.add_agent(AgentConfig(name="agent"))
            pool = Pool(500)
            conversations = pool.map(
                lambda n: runtime.switch_topic("agent", f"sender {n}", "topic", "load").conversation_id,
                range(load.senders),
            )
            before = runtime.stats().commits
            latencies: list[float] = []

            def sender(conversation: int) -> None:
                for _ in range(load.turns):
                    began = time.perf_counter()
                    if load.streamed:
                        for _event in runtime.stream(conversation, MESSAGE):
                            pass
                    else:
                        runtime.send(conversation, MESSAGE)
                    latencies.append(time.perf_counter() - began)

            began = time.perf_counter()
            gevent.joinall([gevent.spawn(sender, c) for c in conversations], raise_error=True)
            spent = time.perf_counter() - began
            commits = runtime.stats().commits - before
        turns = load.senders * load.turns
        assert len(latencies) == turns
        latencies.sort()
        return Figures(
            turns_per_s=turns / spent,
            p50_ms=latencies[turns // 2] * 1e3,
            p99_ms=latencies[min(turns - 1, turns * 99 // 100)] * 1e3,
            commits_per_turn=commits / turns,
            bytes_per_turn=path.stat().st_size / turns,
        )


def raw(turns_per_commit: int, turns: int = 2_000) -> float:
    """Turns a second by sqlite3 alone: the rows that ours writes, `turns_per_commit` turns to a commit."""
    user = encode_entry(HistoryEntry("user", MESSAGE, sender="sender"))
    assistant = encode_entry(HistoryEntry("assistant", ANSWER))
    result = encode_result(TurnResult(ANSWER, "text_response", steps=1, conversation_id=1, turn_id=1))
    with temporary_file() as path:
        db = open_database(path)
        connection = db.conn
        connection.execute(
            "INSERT INTO sessions (handle, agent, sender, topic, scope, created_at, updated_at) "
            "VALUES ('h', 'agent', 'sender', 'topic', 'sender', 1.0, 1.0)"
        )
        connection.commit()
        began = time.perf_counter()
        for first in range(0, turns, turns_per_commit):
            connection.execute("BEGIN IMMEDIATE")
            for turn in range(first, min(first + turns_per_commit, turns)):
                _raw_turn(connection.execute, turn, user, assistant, result)
            connection.execute("COMMIT")
        spent = time.perf_counter() - began
        close_database(db)
    return turns / spent


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
    execute(
        "INSERT INTO events (session_id, turn_id, at, body) VALUES (1, ?, 1.0, ?)",
        (turn, '{"v":1,"stop_reason":"text_response","steps":1}'),
    )


def measure(rounds: int, loads: tuple[Load, ...]) -> tuple[dict[str, list[Figures]], dict[int, Series]]:
    """All loads and all raw commit sizes, `rounds` times in turns."""
    figures: dict[str, list[Figures]] = {load.name: [] for load in loads}
    raws: dict[int, list[float]] = {size: [] for size in RAW_COMMITS}
    for _ in range(rounds):
        for load in loads:
            figures[load.name].append(ours(load))
        for size in RAW_COMMITS:
            raws[size].append(raw(size))
    return figures, {size: Series(tuple(values)) for size, values in raws.items()}


def series(figures: list[Figures], field: str) -> Series:
    """One field of several runs."""
    return Series(tuple(getattr(one, field) for one in figures))


def goals(figures: dict[str, list[Figures]], raws: dict[int, Series]) -> list[Goal]:
    """What is to be reached."""
    one, hundred, streamed, thousand = (figures[load.name] for load in LOADS)
    rate = "turns_per_s"
    return [
        Goal("1 sender, over raw with a commit a turn", ratio(series(one, rate), raws[1]), 0.35),
        Goal("1,000 senders, turns/s", series(thousand, rate).median, 6_000),
        Goal(
            "100 senders, p99 over p50",
            ratio(series(hundred, "p99_ms"), series(hundred, "p50_ms")),
            3,
            at_most=True,
        ),
        Goal(
            "1,000 senders, commits per turn", series(thousand, "commits_per_turn").median, 0.1, at_most=True
        ),
        Goal("1,000 senders, bytes per turn", series(thousand, "bytes_per_turn").median, 1_536, at_most=True),
        Goal("streamed over unstreamed", ratio(series(streamed, rate), series(hundred, rate)), 0.6),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 7
    figures, raws = measure(rounds, LOADS)
    where = setting("gevent", "sqlite-utils")
    reached = goals(figures, raws)
    fields = ("turns_per_s", "p50_ms", "p99_ms", "commits_per_turn", "bytes_per_turn")
    if arguments.json:
        rows = {name: {field: series(runs, field) for field in fields} for name, runs in figures.items()}
        rows["raw sqlite3"] = {f"{size} turns a commit": values for size, values in raws.items()}
        print(as_json(where, rows, reached))
        return
    print(f"{where}, {os.cpu_count()} cores; medians of {rounds} rounds in turns, ± half the range\n")
    print(
        table(
            ["senders x turns", "turns/s", "p50 ms", "p99 ms", "commits/turn", "bytes/turn"],
            [[name, *(str(series(runs, field)) for field in fields)] for name, runs in figures.items()],
        )
    )
    print()
    print(
        table(["raw sqlite3, turns a commit", "turns/s"], [[f"{size:,}", str(v)] for size, v in raws.items()])
    )
    print()
    print(table(["to reach", "ours", "bound", ""], [goal.row() for goal in reached]))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {number(peak_mb)} MB")


if __name__ == "__main__":
    main()
