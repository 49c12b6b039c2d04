"""What a host that runs for months must keep: neighbours of what crashes, and memory.

    python -m benchmarks.longrun [--quick] [--json]

Crashes: 1,000 senders, each with a topic of its own, each send turns one after the other, all at once. In
every other round one conversation in a hundred dies at the end of each of its turns, by a planted bug; the
latencies are those of all the others. Passivation: many conversations, one after the other, through a budget
of a few live ones; memory at the end over memory when a fifth of them had come.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402  # gevent patches first
import gc  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from actors.conversation import ConversationActor  # noqa: E402
from actors.messages import TurnEnded  # noqa: E402
from benchmarks.report import Goal, Series, as_json, ratio, setting, table  # noqa: E402
from benchmarks.turns import ANSWER, MESSAGE, temporary_file  # noqa: E402
from palaver import AgentConfig, Limits, Reply, Runtime, ScriptedModel  # noqa: E402
from palaver.process import rss_bytes  # noqa: E402

CRASHING = 100  # one conversation in so many
MOST_P99 = 1.5
MOST_GROWTH = 1.02


@contextmanager
def planted_bug(dies: Callable[[int], bool]) -> Iterator[None]:
    """Within, conversations of these ids die at the end of each turn."""
    handle = ConversationActor.on_receive

    def receive(actor: Any, message: Any) -> Any:
        if isinstance(message, TurnEnded) and dies(message.result.conversation_id):
            raise RuntimeError("a planted bug")
        return handle(actor, message)

    ConversationActor.on_receive = receive  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConversationActor.on_receive = handle  # type: ignore[method-assign]


def p99_ms(senders: int, turns: int, *, crashes: bool) -> float:
    """The 99th percentile of the latencies of conversations without the bug, in milliseconds."""
    reply = Reply(ANSWER, chunk_chars=len(ANSWER))
    latencies: list[float] = []
    with (
        temporary_file() as path,
        Runtime.open(path, ScriptedModel(lambda _request: reply, keep_requests=0)) as rt,
        planted_bug(lambda cid: crashes and cid % CRASHING == 0),
    ):
        rt.add_agent(AgentConfig(name="agent"))

        def opened(number: int) -> int:
            return rt.switch_topic("agent", f"sender {number}", "topic", "load").conversation_id

        def sender(cid: int) -> None:
            for _ in range(turns):
                began = time.perf_counter()
                try:
                    result = rt.send(cid, MESSAGE)
                except Exception:
                    assert cid % CRASHING == 0
                    continue
                if cid % CRASHING:
                    assert result.text == ANSWER
                    latencies.append(time.perf_counter() - began)

        cids = Pool(500).map(opened, range(senders))
        gevent.joinall([gevent.spawn(sender, cid) for cid in cids], raise_error=True)
        assert bool(rt.stats().restarts) == crashes
    assert len(latencies) == turns * sum(1 for cid in cids if cid % CRASHING)
    return statistics.quantiles(latencies, n=100)[98] * 1e3


def growth(conversations: int, live: int) -> tuple[float, float]:
    """Memory at the end over memory at a fifth, and conversations per second, through a budget of `live`."""
    model = ScriptedModel(lambda _request: "done", keep_requests=0)
    with (
        temporary_file() as path,
        Runtime.open(path, model, limits=Limits(live_conversations=live)) as rt,
    ):
        rt.add_agent(AgentConfig(name="agent", auto_title=False))
        at_a_fifth = 0

        def visit(number: int) -> None:
            cid = rt.switch_topic("agent", f"sender {number}", "topic", "load").conversation_id
            rt.send(cid, MESSAGE)

        pool, began = Pool(min(200, live // 2)), time.perf_counter()
        for number, _ in enumerate(pool.imap_unordered(visit, range(conversations)), start=1):
            if number == conversations // 5:
                gc.collect()
                at_a_fifth = rss_bytes()
        spent = time.perf_counter() - began
        gc.collect()
        at_the_end = rss_bytes()
        assert rt.conversation_count() <= live
        assert rt.stats().passive >= conversations - live
    return at_the_end / at_a_fifth, conversations / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, and a tenth of the conversations")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rounds, conversations = (3, 10_000) if arguments.quick else (7, 100_000)
    with_crashes: list[float] = []
    without: list[float] = []
    for _ in range(rounds):
        without.append(p99_ms(1_000, 5, crashes=False))
        with_crashes.append(p99_ms(1_000, 5, crashes=True))
    grown, per_s = growth(conversations, 1_000)
    rows = {
        "p99 ms, 1,000 senders": {"1 % crash": Series(tuple(with_crashes)), "none": Series(tuple(without))},
        "passivation": {"memory": Series((grown,)), "conversations/s": Series((per_s,))},
    }
    of_crashes = ratio(Series(tuple(with_crashes)), Series(tuple(without)))
    goals = [
        Goal("p99 of the others, 1 % crashing over none", of_crashes, MOST_P99, at_most=True),
        Goal(
            f"{conversations:,} through 1,000 live ones, memory over that at a fifth",
            grown,
            MOST_GROWTH,
            True,
        ),
    ]
    where = setting("gevent", "sqlite-utils")
    if arguments.json:
        print(as_json(where, rows, goals))
        return
    print(f"{where}, {os.cpu_count()} cores; medians of {rounds} rounds in turns, ± half the range\n")
    shown = [[what, name, str(series)] for what, systems in rows.items() for name, series in systems.items()]
    print(table(["", "", "figure"], shown))
    print()
    print(table(["to reach", "ours", "bound", ""], [goal.row() for goal in goals]))


if __name__ == "__main__":
    main()
