"""More processes, each a shard with a file of its own: how turns/s grow with them."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  # gevent patches first
import subprocess  # noqa: E402
import sys  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from functools import partial  # noqa: E402

from benchmarks.report import Curve, Goal, Part, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import closed_loop, open_topics, running, settled, temporary_file  # noqa: E402

ABOUT = """Conversations are keyed by agent and sender, so they shard by that pair, and a shard is a runtime
with a file of its own: no call needs two of them. Each process here has 200 senders of its own who send
durable turns, all at once; the disk is one. A process uses about one core, its hub's thread most of it."""
SENDERS = 200
TURNS = 20


def shard() -> None:
    """One process: says when it is ready, waits for a line, and prints its turns/s."""
    with temporary_file() as path, running(path) as rt, settled():
        conversations = open_topics(rt, SENDERS)
        print("ready", flush=True)
        sys.stdin.readline()
        print(closed_loop(rt, conversations, TURNS).turns_per_s, flush=True)
        os._exit(0)


def together(processes: int) -> float:
    """Turns/s of so many processes at once, all of them added up."""
    with ExitStack() as stack:
        shards = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.shards"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(processes)
        ]
        for each in shards:
            assert each.stdout is not None
            each.stdout.readline()
        for each in shards:
            assert each.stdin is not None
            print("go", file=each.stdin, flush=True)
        return sum(float(each.stdout.readline()) for each in shards if each.stdout is not None)


def run(quick: bool, tell: Tell) -> Part:
    numbers = (1, 2) if quick or (os.cpu_count() or 1) < 4 else (1, 2, 4)
    found = in_turns({str(each): partial(together, each) for each in numbers}, 1 if quick else 5, tell)
    line = {float(each): found[str(each)] for each in numbers}
    curve = Curve("turns/s, all together", "processes", {"ours": line})
    goals = [Goal("two processes over one", ratio(line[2.0], line[1.0]), 1.5)]
    notes = [f"the machine has {os.cpu_count()} cores"]
    return Part("shards", ABOUT, (), [curve], goals, notes, setting("gevent", "sqlite-utils"))


if __name__ == "__main__":
    shard()
