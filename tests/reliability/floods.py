"""More is offered than the bounds allow: what is over them is refused, not stored, and takes no memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event as Signal

from palaver import AgentConfig, Chunk, Limits, MailboxFull, ModelRequest, NoActiveTurn, Runtime, Ticket
from palaver.process import rss_bytes
from persistence.database import close_database, open_database
from persistence.verify import verify
from reliability.check import Check
from reliability.stage import quiet

AGENT = "crab"
TOPICS = 40
FLOODERS = 20
BURST = 20  # offers of one caller before others come
MOST_GROWTH = 64 * 2**20
LIMITS = Limits(
    queued_per_conversation=10, queued_per_sender=60, queued_total=300, event_buffer=50, live_conversations=60
)


class Stalled:
    """A model that answers when the flood is over."""

    def __init__(self) -> None:
        self.over = Signal()

    def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
        self.over.wait()
        yield Chunk("done", finish_reason="stop")


class Flood:
    """One runtime, and what was offered to it: of everything that has a bound."""

    def __init__(self, rt: Runtime, offers: int, seed: int) -> None:
        self.rt = rt
        self.left = offers
        self.accepted: list[Ticket] = []
        self.refused = 0
        self.growth = 0
        self._seed = seed
        self._before = 0
        self.cids = [
            rt.switch_topic(AGENT, f"sender {number % 10}", f"topic {number}", "x").conversation_id
            for number in range(TOPICS)
        ]

    def run(self) -> None:
        """Fill up, then offer the rest, with an eye on the memory."""
        self.slow = [self.rt.subscribe() for _ in range(3)]  # nobody reads them
        self._offer_all(2_000)
        gc.collect()
        self._before = rss_bytes()
        while self.left > 0:
            self._offer_all(min(self.left, 5_000))
            self.growth = max(self.growth, rss_bytes() - self._before)

    def _offer_all(self, count: int) -> None:
        share = -(-count // FLOODERS)
        callers = [
            gevent.spawn(self._offer, share, random.Random(f"{self._seed} {n}")) for n in range(FLOODERS)
        ]
        gevent.joinall(callers, raise_error=True)

    def _offer(self, count: int, rng: random.Random) -> None:
        for number in range(count):
            self.left -= 1
            try:
                self._one(rng, f"offer {rng.random()}" + "x" * rng.choice((0, 0, 200)))
            except MailboxFull:
                self.refused += 1
            except NoActiveTurn:
                continue
            if number % BURST == 0:
                gevent.sleep(0)

    def _one(self, rng: random.Random, text: str) -> None:
        cid, chance = rng.choice(self.cids), rng.random()
        if chance < 0.8:
            self.accepted.append(self.rt.submit(cid, text))
        elif chance < 0.9:
            self.accepted.append(self.rt.steer(cid, text))
        elif chance < 0.97:
            self.accepted.append(self.rt.submit(cid, text, on_busy="interrupt"))
        else:
            self.rt.get_or_create(AGENT, f"stranger {rng.random()}")


def run(count: int, seed: int, folder: Path) -> int:
    """Offer `count` messages, steers and conversations."""
    path = folder / "flood.db"
    model = Stalled()
    with quiet():
        rt = Runtime.open(path, model, limits=LIMITS)
        rt.add_agent(AgentConfig(AGENT, auto_title=False))
        flood = Flood(rt, count, seed)
        flood.run()
        model.over.set()
        ends = [ticket.result(timeout=300).stop_reason for ticket in flood.accepted]
        stats = rt.stats()
        for stream in flood.slow:
            stream.close()
        rt.shutdown()
    words = f"again: python tests/reliability --part floods {count} {seed}"
    assert flood.growth <= MOST_GROWTH, f"G14: {flood.growth} bytes more memory under the flood; {words}"
    assert flood.refused > count // 2, f"G14: only {flood.refused} of {count} were refused; {words}"
    assert stats.overflows == flood.refused, f"G14: {stats.overflows} of {flood.refused} overflows; {words}"
    assert {*ends} <= {"text_response", "cancelled"}, f"G14: some ended {sorted({*ends})}; {words}"
    stored = _in_file(path, lambda db: db.execute("SELECT content FROM turns").fetchall())
    offered = {ticket.content for ticket in flood.accepted}
    strangers = [text for (text,) in stored if text not in offered]
    assert not strangers, f"G14: {len(strangers)} refused messages are stored; {words}"
    assert _in_file(path, verify) == []
    return count


def _in_file(path: Path, job: Callable[..., Any]) -> Any:
    def work() -> Any:
        db = open_database(path, create=False)
        try:
            return job(db)
        finally:
            close_database(db)

    return gevent.get_hub().threadpool.apply(partial(work))


CHECKS = (
    Check(
        name="floods",
        guarantees=(14,),
        unit="offers",
        quick=100_000,
        long=1_000_000,
        run=run,
        chunk=1_000_000,
    ),
)
