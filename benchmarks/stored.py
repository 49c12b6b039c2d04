"""What a turn, a cold switch and a listing cost against the sessions in the file; recall beside bare FTS5."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import random  # noqa: E402  # gevent patches first
import shutil  # noqa: E402
import sqlite3  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.filled import WORDS, add_notes, add_sessions, filling, sender  # noqa: E402
from benchmarks.report import Curve, Goal, Part, Row, Series, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import HubWatch, closed_loop, open_topics, running, settled  # noqa: E402
from palaver import Runtime  # noqa: E402

ABOUT = """One file with more and more stored sessions, of 2 entries each; only the few that are asked for
are in memory. A cold switch makes a stored topic the active one of its sender (`switch_topic`), one after
the other, chosen at random. Recall: notes of 12 words in one scope, searched by two of 72 words; `fts5` is
the bare query for the five best rows, by sqlite3."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SWITCHED = 100  # cold switches of one round
QUERIED = 30


def file_of(path: Path, stored: int, missing: int) -> None:
    """Put so many more sessions behind those that are stored."""
    with filling(path) as db:
        add_sessions(db, stored, missing, entries=2)


def switch(rt: Runtime, rng: random.Random, size: int) -> float:
    """Milliseconds of one cold switch."""
    took, done = 0.0, 0
    while done < SWITCHED:
        who = sender(rng.randrange(size))
        if rt.conversation_id("agent", who) is not None:
            continue
        began = time.perf_counter()
        cid = rt.switch_topic("agent", who, "topic").conversation_id
        took += time.perf_counter() - began
        rt.close(cid)
        done += 1
    return took / SWITCHED * 1e3


def find(rt: Runtime, rng: random.Random, size: int) -> float:
    """Milliseconds to list the sessions of one sender."""
    began = time.perf_counter()
    for _ in range(SWITCHED):
        assert len(rt.sessions(agent="agent", sender=sender(rng.randrange(size)))) == 1
    return (time.perf_counter() - began) / SWITCHED * 1e3


def measure(path: Path, size: int, rounds: int) -> tuple[dict[str, Series], float]:
    """What things cost with so many stored sessions, and how long the hub was blocked."""
    rng = random.Random(size)
    began = time.perf_counter()
    with running(path, auto_title=False) as rt, settled():
        opened = (time.perf_counter() - began) * 1e3
        busy = open_topics(rt, 50, first=size)
        with HubWatch() as hub:
            found = in_turns(
                {
                    "switch": partial(switch, rt, rng, size),
                    "turn": lambda: closed_loop(rt, busy, 10).busy_us,
                    "find": partial(find, rt, rng, size),
                },
                rounds,
            )
    return {**found, "open": Series((opened,))}, hub.blocked_ms


def against_stored(sizes: tuple[int, ...], rounds: int, tell: Tell) -> list[Curve]:
    """The curves against the number of stored sessions."""
    lines: dict[str, dict[float, Series]] = {
        name: {} for name in ("turn", "switch", "find", "open", "blocked")
    }
    with tempfile.TemporaryDirectory() as folder:
        path, stored = Path(folder) / "benchmark.db", 0
        for size in sizes:
            tell(f"{size:,} stored sessions: filling the file")
            file_of(path, stored, size - stored)
            tell(f"{size:,} stored sessions")
            found, blocked_ms = measure(path, size, rounds)
            stored = size + 50  # those that `measure` added, under the numbers that come next
            for name, series in {**found, "blocked": Series((blocked_ms,))}.items():
                lines[name][size] = series
    words = {
        "turn": "µs of processor time per turn",
        "switch": "ms of a cold switch",
        "find": "ms to list the sessions of one sender",
        "open": "ms to open the file",
        "blocked": "hub blocked, ms",
    }
    return [Curve(words[name], "stored sessions", {"ours": line}) for name, line in lines.items()]


def recall(notes: int, rounds: int) -> dict[str, Series]:
    """Milliseconds to find the five best of so many notes, and those of the bare query."""
    rng = random.Random(1)
    queries = [" ".join(rng.sample(WORDS, 2)) for _ in range(QUERIED)]
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "benchmark.db", Path(folder) / "raw.db"
        with filling(path) as db:
            add_notes(db, notes, "alice")
        shutil.copy(path, copy)
        raw = sqlite3.connect(copy)
        raw.execute("PRAGMA cache_size=-32768")
        with running(path) as rt:

            def ours() -> float:
                began = time.perf_counter()
                for query in queries:
                    rt.memory.recall("agent", "alice", query)
                return (time.perf_counter() - began) / QUERIED * 1e3

            def bare() -> float:
                began = time.perf_counter()
                for query in queries:
                    sql = """SELECT rowid, name, content FROM memory_entries_fts
                        WHERE memory_entries_fts MATCH ? ORDER BY rank LIMIT 5"""
                    raw.execute(sql, [query]).fetchall()
                return (time.perf_counter() - began) / QUERIED * 1e3

            found = in_turns({"ours": ours, "fts5": bare}, rounds)
        raw.close()
    return found


def run(quick: bool, tell: Tell) -> Part:
    sizes, notes, rounds = (SIZES[:2], 5_000, 2) if quick else (SIZES, 100_000, 5)
    curves = against_stored(sizes, rounds, tell)
    tell(f"recall over {notes:,} notes")
    recalled = recall(notes, rounds)
    turn, cold, finding, _, blocked = curves
    few, many = f"{sizes[0]:,}", f"{sizes[-1]:,}"
    worst = max(each.median for each in blocked.lines["ours"].values())
    goals = [
        Goal(f"cold switch at {many} stored over one at {few}", cold.growth("ours"), 1.5, at_most=True),
        Goal(f"a turn at {many} stored over one at {few}", turn.growth("ours"), 1.5, at_most=True),
        Goal(
            f"a sender's sessions at {many} stored over at {few}", finding.growth("ours"), 1.5, at_most=True
        ),
        Goal(
            f"recall over {notes:,} notes, over bare FTS5", ratio(recalled["ours"], recalled["fts5"]), 2, True
        ),
        Goal("hub blocked, ms", worst, 50, at_most=True),
    ]
    rows = [Row(f"ms to recall among {notes:,} notes", recalled)]
    return Part("stored", ABOUT, rows, curves, goals, setting=setting("gevent", "sqlite-utils"))
