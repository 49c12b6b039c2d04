"""The database thread, as greenlets and actors use it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import gevent
import pykka
from sqlite_utils import Database

from actors.greenlet import GreenletFuture
from actors.logs import log
from persistence.batches import Item
from persistence.errors import DatabaseFailed, StorageError
from persistence.worker import DatabaseWorker, Then, WorkerStats
from persistence.writes import WriteSet

T = TypeVar("T")
Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]

logger = logging.getLogger("palaver.storage")


class Worker(Protocol):
    """What a store needs of a worker: the thread's in production, the inline one in simulation."""

    on_failure: Callable[[DatabaseFailed], None] | None

    def start(self) -> None: ...
    def submit(self, job: Callable[[Database], T], then: Then[T] | None = None) -> None: ...
    def write(self, writes: WriteSet, then: Then[None] | None = None) -> Item: ...
    def grow(self, item: Item, writes: WriteSet) -> bool: ...
    def backup(
        self, to: Path, then: Then[None] | None = None, progress: Progress | None = None
    ) -> Callable[[], None]: ...
    def stop(self) -> None: ...
    @property
    def stats(self) -> WorkerStats: ...


class Store:
    """One database, for the greenlets of the hub that opened it.

    `submit` and `write` return at once and answer through `then`, in the hub, where nothing may block:
    a `then` tells an actor or sets a future. `call` blocks the calling greenlet.

    Args:
        on_failure: called once, in a greenlet of its own, when the database has failed for good.
    """

    def __init__(self, worker: Worker, on_failure: Callable[[DatabaseFailed], object] | None = None) -> None:
        self._worker = worker
        self._on_failure = on_failure
        worker.on_failure = self._failed
        self._threaded = isinstance(worker, DatabaseWorker)
        self._waiting = 0
        self._keep_alive = None
        if isinstance(worker, DatabaseWorker):
            loop = gevent.get_hub().loop
            # While answers are under way, the hub must not take it that nothing can happen any more.
            self._keep_alive = loop.async_()
            worker.soon = loop.run_callback
            # gevent looks at timers and sockets after fifty callbacks, and before a timer of no time is up.
            worker.pause = loop.timer(0).start

    def start(self) -> None:
        """Open the file, off the hub; raises what opening it raises."""
        self.off_hub(self._worker.start)

    def stop(self) -> None:
        """Commit what waits, checkpoint and close, off the hub."""
        self.off_hub(self._worker.stop)
        if self._keep_alive is not None:
            self._keep_alive.close()

    def submit(self, job: Callable[[Database], T], then: Then[T] | None = None) -> None:
        """Queue a job; `then` gets its value or its error, that it was refused included."""
        answer = self._expect(then)
        try:
            self._worker.submit(job, answer)
        except StorageError as error:
            answer(None, error)

    def write(self, writes: WriteSet, then: Then[None] | None = None) -> Item | None:
        """`submit` for rows, which are stored together with those of other conversations.

        Returns:
            The write on its way, for `grow`; None if it was refused.
        """
        answer = self._expect(then)
        try:
            return self._worker.write(writes, answer)
        except StorageError as error:
            answer(None, error)
            return None

    def grow(self, item: Item, writes: WriteSet, then: Then[None]) -> bool:
        """Let a write that has not gone to the disk yet store `writes`, which hold what it stored so far, and
        tell `then` instead; whether that could be done."""
        if not self._worker.grow(item, writes):
            return False
        answer = item.then
        assert isinstance(answer, _Answer)
        answer.then = then
        return True

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

    def backup(self, to: Path, progress: Progress | None = None) -> None:
        """Copy the database into the new file `to`, while everything else goes on; blocks the calling
        greenlet, and gives the copy up when that is killed.

        Args:
            progress: called in the hub, now and then, with the pages copied and the pages in all.

        Raises:
            StorageError: there is no copy; the message says why.
        """
        future: GreenletFuture[None] = GreenletFuture()
        answer = self._expect(partial(settle, future))
        try:
            give_up = self._worker.backup(to, answer, progress)
        except StorageError as error:
            answer(None, error)
            give_up = _nothing
        try:
            future.get()
        except BaseException:
            give_up()
            raise

    def off_hub(self, function: Callable[[], T]) -> T:
        """Run `function`, which may block its thread, beside the hub (in place in a simulation), and wait
        for its value. It uses nothing of gevent's and no actor."""
        if not self._threaded:
            return function()
        value, error = gevent.get_hub().threadpool.apply(_outcome, (function,))
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]  # gevent's pool has no types

    @property
    def stats(self) -> WorkerStats:
        """Counts of the worker: commits, jobs, what waits."""
        return self._worker.stats

    def _expect(self, then: Then[T] | None) -> Then[T]:
        if self._waiting == 0 and self._keep_alive is not None:
            self._keep_alive.start(_nothing)
        self._waiting += 1
        return _Answer(self, then or _unheard)

    def answered(self) -> None:
        """One answer less is under way."""
        self._waiting -= 1
        if self._waiting == 0 and self._keep_alive is not None:
            self._keep_alive.stop()

    def _failed(self, error: DatabaseFailed) -> None:
        log(logger, logging.CRITICAL, "the database has failed", reason=str(error))
        if self._on_failure is not None:
            gevent.spawn(self._on_failure, error)


class _Answer:
    """What a worker calls: tells the store that an answer has come, and hands it on."""

    __slots__ = ("store", "then")

    def __init__(self, store: Store, then: Then[Any]) -> None:
        self.store = store
        self.then = then

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.store.answered()
        self.then(value, error)


def _outcome(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """The value of `function`, or what it raised, as a value: the thread pool would print that."""
    try:
        return function(), None
    except BaseException as error:
        return None, error


def _nothing() -> None:
    """What the keep-alive watcher does, if ever it is sent anything."""


def _unheard(_value: object, error: BaseException | None) -> None:
    if error is not None:
        log(logger, logging.ERROR, "a write that nobody waits for failed", reason=str(error))


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
