"""The workload that turns are measured with: senders, each in a conversation of its own, in a closed loop."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import ctypes  # noqa: E402  # gevent patches first
import gc  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager, suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from attrs import frozen  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from palaver import AgentConfig, Limits, ModelRequest, Reply, Runtime, ScriptedModel  # noqa: E402

MESSAGE = "m" * 100
ANSWER = "a" * 200
HOARD = 24  # turns of as many characters as a message may have: more than SQLite keeps of the file in memory
OPENED_AT_ONCE = 500  # so that opening many costs few commits
WATCH_S = 0.005
SELDOM = (2_500, 1, 15_000)  # the collector's thresholds of a host with many conversations


@contextmanager
def temporary_file() -> Iterator[Path]:
    """A path for a database that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "benchmark.db"


def answering(chunks: int = 1) -> ScriptedModel:
    """A model without latency that answers 200 characters, in so many pieces."""
    reply = Reply(ANSWER, chunk_chars=len(ANSWER) // chunks)

    def answer(_request: ModelRequest) -> Reply:
        return reply

    return ScriptedModel(answer, keep_requests=0)


@contextmanager
def running(
    path: str | Path,
    model: Any = None,
    *,
    limits: Limits | None = None,
    tools: Iterable[Any] = (),
    **config: Any,
) -> Iterator[Runtime]:
    """A runtime with one agent, named "agent"."""
    with Runtime.open(path, model or answering(), limits=limits, tools=tools) as rt:
        rt.add_agent(AgentConfig(name="agent", **config))
        yield rt


def open_topics(rt: Runtime, count: int, first: int = 0) -> list[int]:
    """The ids of the topic conversations of so many senders, opened many at once."""

    def opened(number: int) -> int:
        return rt.switch_topic("agent", f"sender {number}", "topic", "load").conversation_id

    return list(Pool(OPENED_AT_ONCE).map(opened, range(first, first + count)))


@frozen
class Took:
    """What the turns of a closed loop took."""

    turns: int
    seconds: float
    busy_s: float  # of processor time, of all threads
    latencies: Sequence[float]  # of each turn, in seconds, in order

    @property
    def turns_per_s(self) -> float:
        return self.turns / self.seconds

    @property
    def busy_us(self) -> float:
        """Processor time of a turn, in microseconds: what others do on the machine adds little to it."""
        return self.busy_s / self.turns * 1e6

    def percentile_ms(self, percent: int) -> float:
        return self.latencies[min(self.turns - 1, self.turns * percent // 100)] * 1e3


def closed_loop(
    rt: Runtime, conversations: Sequence[int], turns: int, send: Callable[[int], object] | None = None
) -> Took:
    """Each conversation's sender sends so many turns, one after the other; all senders at once."""
    latencies: list[float] = []

    def plain(conversation: int) -> None:
        assert rt.send(conversation, MESSAGE).text == ANSWER

    each = send or plain

    def sender(conversation: int) -> None:
        for _ in range(turns):
            began = time.perf_counter()
            each(conversation)
            latencies.append(time.perf_counter() - began)

    began, worked = time.perf_counter(), time.process_time()
    gevent.joinall([gevent.spawn(sender, one) for one in conversations], raise_error=True)
    seconds, busy_s = time.perf_counter() - began, time.process_time() - worked
    latencies.sort()
    return Took(len(latencies), seconds, busy_s, latencies)


class HubWatch:
    """The longest that the hub did not come to a timer that was due, while this is entered.

    That is never less than the longest callback took; a machine that had no core to spare shows here too,
    and so does waiting for the lock of the interpreter.

    Attributes:
        blocked_ms: of wall time.
        busy_ms: the longest of the processor time that the hub's own thread spent meanwhile.
    """

    def __init__(self) -> None:
        self.blocked_ms = 0.0
        self.busy_ms = 0.0

    def __enter__(self) -> HubWatch:
        self._greenlet = gevent.spawn(self._watch)
        gevent.sleep(0)
        return self

    def __exit__(self, *_exc: object) -> None:
        gevent.sleep(2 * WATCH_S)
        self._greenlet.kill()

    def _watch(self) -> None:
        while True:
            began, worked = time.perf_counter(), time.thread_time()
            gevent.sleep(WATCH_S)
            late = (time.perf_counter() - began - WATCH_S) * 1e3
            if late > self.blocked_ms:
                self.blocked_ms = late
                self.busy_ms = min(late, (time.thread_time() - worked) * 1e3)


@contextmanager
def settled() -> Iterator[None]:
    """As a host should that has many conversations: what is there for good is out of the collector's sight,
    and what has come and stayed is seldom looked at. A turn leaves no cycles, so little would be found."""
    before = gc.get_threshold()
    freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def freeze() -> None:
    """Take what is there now out of the collector's sight."""
    gc.collect()
    gc.freeze()


def hoard(rt: Runtime) -> None:
    """Let SQLite's page cache grow to its bound: how much of the file it holds is no leak."""
    rt.add_agent(AgentConfig("hoarder", compact_threshold=None))
    cid = rt.switch_topic("hoarder", "hoarder", "much", "to fill the cache").conversation_id
    for _ in range(HOARD):
        rt.send(cid, "x" * 1_000_000)
    rt.close(cid)
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what grows
