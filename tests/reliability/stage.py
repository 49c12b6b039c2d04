"""Where the state machine acts: a runtime on virtual time, with a model, tools and a disk held by hand."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.event import Event as Signal

from palaver import (
    AgentConfig,
    Chunk,
    Done,
    HistoryEntry,
    Limits,
    ModelRequest,
    Runtime,
    StorageError,
    ToolCallDelta,
    Usage,
)
from palaver.simulation.loop import VirtualClock
from persistence.committer import Item
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from reliability.plain_chat import COUNTED, IN_ALL, PER_CONVERSATION, PER_SENDER, TITLE, Answer

RAM_DISK = Path("/dev/shm")
INJECTED = "injected"
COMMIT_S = 0.001
SETTLED_S = 0.25  # far more commits than any one call needs

LONG_S = 1_000_000.0  # over all days that pass here: the plain model knows no limits of time
LIMITS = Limits(
    queued_per_conversation=PER_CONVERSATION,
    queued_per_sender=PER_SENDER,
    queued_total=IN_ALL,
    passivate_after_s=LONG_S,
    tmp_expires_s=LONG_S,
    turn_s=LONG_S,
    model_round_s=LONG_S,
    tool_call_s=LONG_S,
)


class Asked:
    """A request that waits for its answer."""

    def __init__(self, request: ModelRequest) -> None:
        self.request = request
        self.checked = False
        self.answer: AsyncResult = AsyncResult()


class HandModel:
    """Answers when it is told to; titles by itself. `waiting` holds what was asked, in that order."""

    def __init__(self) -> None:
        self.waiting: list[Asked] = []

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.purpose == "title":
            yield Chunk(TITLE, finish_reason="stop")
            return
        asked = Asked(request)
        self.waiting.append(asked)
        try:
            answer: Answer = asked.answer.get()
        finally:
            self.waiting.remove(asked)
        yield from chunks(answer)


def chunks(answer: Answer) -> Iterator[Chunk]:
    """An answer in pieces."""
    if answer.error:
        raise OSError(answer.error)
    half = len(answer.text) // 2
    for piece in (answer.text[:half], answer.text[half:]):
        if piece:
            yield Chunk(piece)
    for index, call in enumerate(answer.calls):
        yield Chunk(tool_calls=[ToolCallDelta(index, call.id, call.name, call.arguments)])
    yield Chunk(finish_reason="stop", usage=Usage(total_tokens=answer.tokens))


class Injecting:
    """A hook whose entry a model is shown, and that is stored nowhere."""

    def before_run(self, *_run: object) -> list[HistoryEntry]:
        return [HistoryEntry("system", INJECTED)]


class Life:
    """One process: a runtime on a file, until it is shut down or killed."""

    def __init__(self, path: Path, seed: int, recover: str) -> None:
        self.model = HandModel()
        self.tools: dict[str, AsyncResult] = {}  # by the call's id
        self.told: dict[int, list[Any]] = {}  # conversation -> results that all subscribers saw
        self._worker = InlineWorker(path, schedule=gevent.spawn_later, commit_latency=lambda: COMMIT_S)
        self.rt = Runtime.open(
            path,
            self.model,
            tools=[self.count, self.work],
            hooks=[Injecting()],
            limits=LIMITS,
            sources=seeded_sources(VirtualClock(), seed),
            worker=self._worker,
            recover=recover,  # type: ignore[arg-type]  # one of the three words
        )
        self._calls: list[gevent.Greenlet] = []
        self._listening = gevent.spawn(self._listen, self.rt.subscribe())

    def count(self) -> str:
        return COUNTED

    def work(self, call: Any) -> str:
        done = self.tools[call.call_id] = AsyncResult()
        try:
            return str(done.get())
        finally:
            del self.tools[call.call_id]

    def _listen(self, events: Iterable[Any]) -> None:
        for info, event in events:
            if isinstance(event, Done):
                self.told.setdefault(info.id, []).append(event.result)

    def call(self, function: Callable[[], Any]) -> gevent.Greenlet:
        """Begin a call in a greenlet of its own; its value is (value, error)."""
        begun = gevent.spawn(outcome, function)
        self._calls.append(begun)
        return begun

    def settle(self) -> None:
        """Let everything happen that does not wait for the machine."""
        wait(SETTLED_S)
        self._calls = [call for call in self._calls if not call.ready()]

    def shut_down(self, drain: float) -> float:
        """End as a host does; the virtual seconds that it took."""
        clock = VirtualClock()
        began = clock.monotonic()
        with gevent.Timeout(1_000.0):
            self.rt.shutdown(drain)
        self.settle()
        self._clear()
        return clock.monotonic() - began

    def kill(self) -> None:
        """The process is gone: nothing reaches the file any more. What is left of it here is cleared away."""
        worker = self._worker
        dropped = [*worker._undelivered, *worker._queue]  # noqa: SLF001 - whoever waits for them must end
        worker.abandon()
        deliver_error(dropped)
        with gevent.Timeout(1_000.0):
            self.rt.shutdown(0)
        self._clear()

    def _clear(self) -> None:
        gevent.killall([*self._calls, self._listening])


def deliver_error(items: Iterable[Item]) -> None:
    """Let nothing wait for what was dropped."""
    for item in items:
        if item.then is not None:
            item.then(None, StorageError("the process was killed"))


def outcome(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The value of a call, or its error."""
    try:
        return function(), None
    except Exception as error:
        return None, error


@contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A folder on a RAM disk, where there is one: nothing on virtual time depends on what a disk keeps."""
    if not os.access(RAM_DISK, os.W_OK):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="palaver-", dir=RAM_DISK) as inside:
        yield Path(inside)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log, which tells of every failure, and without looking through what was there before at
    every garbage collection."""
    logger = logging.getLogger("palaver")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        logger.setLevel(before)


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)


AGENTS = {
    "crab": AgentConfig(
        name="crab", model="m", system_prompt="You are a crab.", max_iterations=3, compact_threshold=1_000
    ),
    "owl": AgentConfig(
        name="owl", description="wise", memory_scope="agent", compact_threshold=None, max_iterations=2
    ),
}
