"""Bounded event streams: a slow reader is told that it lagged, and never slows a turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from actors.counts import Counts
from actors.events import (
    Done,
    Event,
    Lagged,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
)
from actors.greenlet import GreenletFuture

T = TypeVar("T")

_STARTS = (TextStart, ThinkingStart)
_DELTAS = (TextDelta, ThinkingDelta)
_ENDS = (TextEnd, ThinkingEnd)
_END = object()


class EventStream(Iterator[T], Generic[T]):
    """An iterator over events that were pushed, at most `limit` behind.

    Reading blocks the reading greenlet only. When the reader falls `limit` behind, events are dropped
    until half of the buffer is read; then it gets one `Lagged` with their number. A segment that lost a
    piece gives no further piece, so that deltas stay between a start and an end.

    Args:
        limit: events that may wait to be read.
        wrap: makes the item that the reader gets from a source and an event.
        on_close: called once with this stream when the reader closes it.
        counts: where missed events are counted.
        keeps_done: `Done` is always handed over: for a stream of one turn, which has one of them.
    """

    __slots__ = (
        "_broken",
        "_counts",
        "_keeps_done",
        "_limit",
        "_missed",
        "_on_close",
        "_queue",
        "_reading",
        "_wrap",
        "closed",
        "only",
    )

    def __init__(
        self,
        limit: int,
        wrap: Callable[[Any, Event], T],
        on_close: Callable[[EventStream[T]], None] = lambda _stream: None,
        counts: Counts | None = None,
        *,
        keeps_done: bool = True,
    ) -> None:
        self._queue: deque[Any] = deque()
        self._reading: GreenletFuture[None] | None = None  # set when there is something for who waits
        self._limit = limit
        self._wrap = wrap
        self._on_close = on_close
        self._counts = counts
        self._keeps_done = keeps_done
        self._missed = 0
        # Sources whose open segment lost a piece; a reader that comes in the middle of one has lost some. By
        # their ids: a reader that is far behind must not keep conversations in memory.
        self._broken: dict[Hashable, bool] = {}
        self.closed = False
        self.only: int | None = None  # the one conversation that is read, for whoever hands events over

    def push(self, source: Hashable, event: Event) -> None:
        """Hand over an event; never blocks, never fails."""
        if self.closed:
            return
        if not self._missed and not self._broken and len(self._queue) < self._limit:
            self._queue.append(self._wrap(source, event))
            if self._reading is not None:
                self._wake()
            return
        done = self._keeps_done and isinstance(event, Done)
        waiting = len(self._queue)
        room = done or waiting < (max(1, self._limit // 2) if self._missed else self._limit)
        if not room or (self._broken and self._is_rest_of_broken(source, event)):
            self._miss(source, event)
            return
        # A turn that ran has closed its segments; one that ends without a step says nothing of who runs.
        if self._broken and (isinstance(event, _STARTS) or (isinstance(event, Done) and event.result.steps)):
            self._broken.pop(_key(source), None)
        if self._missed:
            self._put(self._wrap(source, Lagged(self._missed)))
            self._missed = 0
        self._put(self._wrap(source, event))

    def join_midway(self, source: Hashable) -> None:
        """Say that `source` may be in the middle of a segment whose start this reader did not get."""
        self._broken[_key(source)] = True

    def end(self, error: BaseException | None = None) -> None:
        """No event follows: the reader's iteration stops, or raises `error`, after what is buffered."""
        if not self.closed:
            self._put(error if error is not None else _END)

    def close(self) -> None:
        """Stop reading. The turn goes on; other readers do not notice."""
        if not self.closed:
            self.closed = True
            self._put(_END)
            self._on_close(self)

    def _put(self, item: object) -> None:
        self._queue.append(item)
        self._wake()

    def _wake(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.set()

    def _is_rest_of_broken(self, source: Hashable, event: Event) -> bool:
        return _key(source) in self._broken and isinstance(event, _DELTAS + _ENDS)

    def _miss(self, source: Hashable, event: Event) -> None:
        if isinstance(event, _ENDS) or (isinstance(event, Done) and event.result.steps):
            self._broken.pop(_key(source), None)
        elif isinstance(event, _STARTS + _DELTAS):
            self._broken[_key(source)] = True
        self._missed += 1
        if self._counts is not None:
            self._counts.lagged += 1

    def __iter__(self) -> EventStream[T]:
        return self

    def __next__(self) -> T:
        queue = self._queue
        while not queue:
            if self.closed:
                raise StopIteration
            if self._reading is None:
                self._reading = GreenletFuture()
            self._reading.get()
        item = queue.popleft()
        if item is _END:
            self.closed = True
            raise StopIteration
        if isinstance(item, BaseException):
            self.closed = True
            raise item
        return item  # type: ignore[no-any-return]  # push wrapped it as T

    def __enter__(self) -> EventStream[T]:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _key(source: Hashable) -> Hashable:
    return getattr(source, "id", source)
