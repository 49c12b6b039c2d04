"""Where the time of a turn goes: the hub's thread by what it does, and the database thread."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402  # gevent patches first
import time  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402
from types import FrameType  # noqa: E402

from benchmarks.report import Part, Row, Series, Tell  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.turns import raw  # noqa: E402
from benchmarks.work import closed_loop, open_topics, running, settled, temporary_file  # noqa: E402

ABOUT = """100 senders at once send durable turns. The hub's thread is looked at every millisecond of
processor time, and the look counts for the innermost of our files that is running; each thread's processor
time is measured. Ours writes what ends together in a few statements; `sqlite3 alone` takes them one by
one."""
ROOT = Path(__file__).resolve().parents[1]
SENDERS = 100
BESIDE = "beside them: sqlite3 alone, the same rows, one after the other"
EVERY_S = 0.001

# The first that the path of a file begins with says what it is doing.
STAGES = (
    ("benchmarks/", "the benchmark's own senders"),
    ("actors/models/", "the scripted model"),
    ("actors/greenlet.py", "mailboxes, futures and greenlets"),
    ("actors/lasting.py", "mailboxes, futures and greenlets"),
    ("actors/turn.py", "the turn: history, request, round, result"),
    ("actors/round.py", "the turn: history, request, round, result"),
    ("actors/history.py", "the turn: history, request, round, result"),
    ("actors/model_call.py", "the turn: history, request, round, result"),
    ("actors/own_turn.py", "the turn: history, request, round, result"),
    ("actors/limiter.py", "the turn: bounds and time limits"),
    ("actors/permit.py", "the turn: bounds and time limits"),
    ("actors/timelimits.py", "the turn: bounds and time limits"),
    ("actors/journal.py", "the journal: rows and their JSON"),
    ("actors/storage.py", "the journal: rows and their JSON"),
    ("persistence/codec.py", "the journal: rows and their JSON"),
    ("persistence/writes.py", "the journal: rows and their JSON"),
    ("persistence/records.py", "the journal: rows and their JSON"),
    ("persistence/", "to the database thread and back"),
    ("palaver/", "the call: checks and ticket"),
    ("actors/ticket.py", "the call: checks and ticket"),
    ("actors/text.py", "the call: checks and ticket"),
    ("actors/", "the conversation: accepting, queue, state, counts"),
)
ELSEWHERE = "gevent's loop, with none of our code"


def stage(frame: FrameType | None) -> str:
    """What the innermost of our files that is running is there for."""
    prefix = f"{ROOT}/"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(prefix) and "/.venv/" not in name:
            inside = name.removeprefix(prefix)
            return next((words for begin, words in STAGES if inside.startswith(begin)), ELSEWHERE)
        frame = frame.f_back
    return ELSEWHERE


def looked_at(turns: int) -> tuple[dict[str, float], float, float]:
    """Microseconds a turn by stage, of the hub's thread and of the others."""
    looks: Counter[str] = Counter()

    def look(_signal: int, frame: FrameType | None) -> None:
        looks[stage(frame)] += 1

    with temporary_file() as path, running(path) as rt, settled():
        conversations = open_topics(rt, SENDERS)
        closed_loop(rt, conversations, 2)
        before = signal.signal(signal.SIGPROF, look)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        began, all_began = time.thread_time(), time.process_time()
        took = closed_loop(rt, conversations, turns)
        hub_s, all_s = time.thread_time() - began, time.process_time() - all_began
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    total = sum(looks.values()) or 1
    hub_us, others_us = hub_s / took.turns * 1e6, (all_s - hub_s) / took.turns * 1e6
    return {words: count / total * hub_us for words, count in looks.items()}, hub_us, others_us


def run(quick: bool, tell: Tell) -> Part:
    rounds, turns = (2, 20) if quick else (5, 100)
    found: list[dict[str, float]] = []
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        stages, hub_us, others_us = looked_at(turns)
        sqlite_us = 1e6 / raw(SENDERS, clock=time.process_time)
        found.append(
            {
                **dict.fromkeys((words for _, words in STAGES), 0.0),
                ELSEWHERE: 0.0,
                **stages,
                "all of the hub's thread": hub_us,
                "the database thread": others_us,
                BESIDE: sqlite_us,
            }
        )
    stages_found = sorted(
        {*dict.fromkeys(words for _, words in STAGES), ELSEWHERE}, key=lambda words: -found[0][words]
    )
    sums = ["all of the hub's thread", "the database thread", BESIDE]
    rows = [
        Row(f"µs a turn: {words}", {"ours": Series(tuple(each[words] for each in found))})
        for words in [*stages_found, *sums]
    ]
    return Part("breakdown", ABOUT, rows, setting=setting("gevent", "sqlite-utils"))
