"""What a host that runs for months must keep: neighbours of what crashes, and memory."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402  # gevent patches first
import logging  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from actors.conversation import ConversationActor  # noqa: E402
from actors.messages import TurnEnded  # noqa: E402
from benchmarks.report import Goal, Part, Row, Series, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import ANSWER, MESSAGE, hoard, open_topics, running, temporary_file  # noqa: E402
from palaver import Limits, ScriptedModel  # noqa: E402
from palaver.process import rss_bytes  # noqa: E402

ABOUT = """Crashes: 1,000 senders, each with a topic of its own, each send turns one after the other, all at
once. In every other round one conversation in a hundred dies at the end of each of its turns, by a planted
bug; the latencies are those of all the others. Passivation: many conversations, one after the other,
through a budget of 1,000 live ones; memory at the end over memory when a fifth of them had come, with
SQLite's page cache filled before."""
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

    ConversationActor.on_receive = receive  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ConversationActor.on_receive = handle  # type: ignore[method-assign]


def p99_ms(senders: int, turns: int, *, crashes: bool) -> float:
    """The 99th percentile of the latencies of conversations without the bug, in milliseconds."""
    latencies: list[float] = []
    with (
        temporary_file() as path,
        running(path) as rt,
        planted_bug(lambda cid: crashes and cid % CRASHING == 0),
    ):

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

        cids = open_topics(rt, senders)
        gevent.joinall([gevent.spawn(sender, cid) for cid in cids], raise_error=True)
        assert bool(rt.stats().restarts) == crashes
    assert len(latencies) == turns * sum(1 for cid in cids if cid % CRASHING)
    return statistics.quantiles(latencies, n=100)[98] * 1e3


def growth(conversations: int, live: int) -> tuple[float, float]:
    """Memory at the end over memory at a fifth, and conversations per second, through a budget of `live`."""
    model = ScriptedModel(lambda _request: "done", keep_requests=0)
    limits = Limits(live_conversations=live)
    with temporary_file() as path, running(path, model, limits=limits, auto_title=False) as rt:
        at_a_fifth = 0
        hoard(rt)

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


def run(quick: bool, tell: Tell) -> Part:
    logging.disable(logging.CRITICAL)
    rounds, senders, conversations = (2, 200, 2_000) if quick else (5, 1_000, 100_000)
    measures = {
        "ours": partial(p99_ms, senders, 5, crashes=True),
        "nobody crashes": partial(p99_ms, senders, 5, crashes=False),
    }
    p99 = in_turns(measures, rounds, tell)
    tell(f"{conversations:,} conversations through 1,000 live ones")
    grown, per_s = growth(conversations, 1_000)
    rows = [
        Row(f"p99 of the others, ms, {senders:,} senders", p99),
        Row(
            f"memory, {conversations:,} through 1,000 live, over that at a fifth", {"ours": Series((grown,))}
        ),
        Row("conversations/s through 1,000 live", {"ours": Series((per_s,))}),
    ]
    of_crashes = ratio(*p99.values())
    goals = [
        Goal("p99 of the others, some crashing over none", of_crashes, MOST_P99, at_most=True),
    ]
    if not quick:  # few end before allocators have their size
        goals.append(Goal("memory at the end over that at a fifth", grown, MOST_GROWTH, at_most=True))
    return Part("longrun", ABOUT, rows, goals=goals, setting=setting("gevent", "sqlite-utils"))
