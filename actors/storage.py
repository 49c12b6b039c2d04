"""The database thread, as greenlets and actors use it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import gevent
import pykka
from sqlite_utils import Database

from actors.greenlet import GreenletFuture
from persistence.errors import StorageError
from persistence.worker import DatabaseWorker, Then, WorkerStats
from persistence.writes import WriteSet

T = TypeVar("T")

logger = logging.getLogger("palaver.storage")


class Worker(Protocol):
    """What a store needs of a worker: the thread's in production, the inline one in simulation."""

    def start(self) -> None: ...
    def submit(self, job: Callable[[Database], T], then: Then[T] | None = None) -> None: ...
    def write(self, writes: WriteSet, then: Then[None] | None = None) -> None: ...
    def stop(self) -> None: ...
    @property
    def stats(self) -> WorkerStats: ...


class Store:
    """One database, for the greenlets of the hub that opened it.

    `submit` and `write` return at once and answer through `then`, in the hub, where nothing may block:
    a `then` tells an actor or sets a future. `call` blocks the calling greenlet.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._threaded = isinstance(worker, DatabaseWorker)
        self._waiting = 0
        # While answers are under way, the hub must not take it that nothing can happen any more.
        self._keep_alive = gevent.get_hub().loop.async_() if self._threaded else None

    def start(self) -> None:
        """Open the file, off the hub; raises what opening it raises."""
        self._off_hub(self._worker.start)

    def stop(self) -> None:
        """Commit what waits, checkpoint and close, off the hub."""
        self._off_hub(self._worker.stop)
        if self._keep_alive is not None:
            self._keep_alive.close()

    def submit(self, job: Callable[[Database], T], then: Then[T] | None = None) -> None:
        """Queue a job; `then` gets its value or its error, that it was refused included."""
        answer = self._expect(then)
        try:
            self._worker.submit(job, answer)
        except StorageError as error:
            answer(None, error)

    def write(self, writes: WriteSet, then: Then[None] | None = None) -> None:
        """`submit` for rows, which are stored together with those of other conversations."""
        answer = self._expect(then)
        try:
            self._worker.write(writes, answer)
        except StorageError as error:
            answer(None, error)

    def begin(self, job: Callable[[Database], T]) -> GreenletFuture[T]:
        """A future of the job's result."""
        future: GreenletFuture[T] = GreenletFuture()
        self.submit(job, partial(settle, future))
        return future

    def call(self, job: Callable[[Database], T]) -> T:
        """The job's result after its commit; blocks the calling greenlet.

        Raises:
            StorageError: the job or its commit failed, and nothing of it is stored.
            Exception: what the job itself raised.
        """
        value: T = self.begin(job).get()
        return value

    @property
    def stats(self) -> WorkerStats:
        """Counts of the worker: commits, jobs, what waits."""
        return self._worker.stats

    def _expect(self, then: Then[T] | None) -> Then[T]:
        if self._waiting == 0 and self._keep_alive is not None:
            self._keep_alive.start(_nothing)
        self._waiting += 1
        return partial(self._answered, then or _unheard)

    def _answered(self, then: Then[T], value: T | None, error: BaseException | None) -> None:
        self._waiting -= 1
        if self._waiting == 0 and self._keep_alive is not None:
            self._keep_alive.stop()
        then(value, error)

    def _off_hub(self, function: Callable[[], None]) -> None:
        if not self._threaded:
            function()
            return
        error = gevent.get_hub().threadpool.apply(_error_of, (function,))
        if error is not None:
            raise error


def _error_of(function: Callable[[], None]) -> BaseException | None:
    """What `function` raised, as a value: the thread pool would print it as well as raise it."""
    try:
        function()
    except BaseException as error:
        return error
    return None


def _nothing() -> None:
    """What the keep-alive watcher does, if ever it is sent anything."""


def _unheard(_value: object, error: BaseException | None) -> None:
    if error is not None:
        logger.error("a write that nobody waits for failed: %s", error)


def settle(future: GreenletFuture[Any], value: Any, error: BaseException | None) -> None:
    """Put a job's outcome into a future."""
    if error is not None:
        future.fail(error)
    else:
        future.set(value)


def notify(ref: pykka.ActorRef[Any], message: object) -> None:
    """Tell an actor; that it is gone is no error to a messenger."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return
