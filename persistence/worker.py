"""The database thread: one native thread, one connection, group commit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from gevent.monkey import get_original

from persistence import forks
from persistence.backup import Backup, Progress
from persistence.committer import (
    Committer,
    Item,
    Job,
    Then,
    WorkerStats,
    deliver,
    log,
    nothing,
    tell_quietly,
)
from persistence.errors import BacklogFull, DatabaseFailed, StorageError
from persistence.inline import InlineWorker
from persistence.newfiles import Path
from persistence.writes import WriteSet

__all__ = ["Committer", "DatabaseWorker", "InlineWorker", "Job", "Then", "WorkerStats"]

T = TypeVar("T")

LARGEST_BATCH = 5_000
ANSWERED_AT_ONCE = 1_000  # some 10 ms of an event loop's time
IDLE_S = 1.0
# From a message's acceptance its turn's end is three callbacks away, if nothing has to be waited for: the
# turn begins, it reports to its conversation, and that stores the end.
GATHER_ROUNDS = 3

# The real ones, also where gevent has patched: a patched lock would wait in a hub that this thread
# does not have, and a patched thread would be a greenlet of the caller's.
_allocate_lock = get_original("_thread", "allocate_lock")
_start_new_thread = get_original("_thread", "start_new_thread")


def _now(deliveries: Callable[[], None]) -> None:
    deliveries()


class DatabaseWorker:
    """Runs jobs on one database file, in the order of submission, many in one commit.

    The thread takes everything that waits into one transaction, each job in a savepoint of its own, and
    answers after the commit. Work that fails is undone alone. After a failed commit or an I/O error what
    the file holds is not known: everything from then on fails with `DatabaseFailed`.

    Args:
        path: the file, or ":memory:".
        notify: called in the worker's thread once after each commit with a function that calls every
            `then` of the batch, or sees to it (`pause`); hand that to the thread that they belong to. Without
            it they are called in the worker's thread.
        backlog: jobs that may wait.
        create: whether a missing file is made.
        committer: runs the batches; tests hand in one that fails on purpose.
        on_failure: called once, through `notify`, when the database has failed for good, whether or not
            anybody waits; with what everything is refused with from then on. May be set before `start`.

    Attributes:
        pause: may be set by whoever is notified in an event loop: calls a function as soon as what is due in
            that loop has had its turn, timers and sockets included. The answers of a large batch are given a
            thousand at a time then, with a pause in between. Without it they are given all at once.
        soon: may be set by whoever submits from an event loop, as with gevent's `hub.loop.run_callback`:
            calls a function with arguments as a later callback of the submitting thread. The thread is roused
            a few rounds of callbacks after the first `write` then, so that all that they write goes into one
            batch: the acceptance and the end of a quick turn, and those of its neighbours, make one row
            each and one commit. Without it, and by every other job, the thread is roused at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        notify: Callable[[Callable[[], None]], None] | None = None,
        backlog: int = 200_000,
        create: bool = True,
        committer: Committer | None = None,
        on_failure: Callable[[DatabaseFailed], None] | None = None,
    ) -> None:
        self._path = path
        self._notify = notify or _now
        self._backlog = backlog
        self._committer = committer or Committer(path, create=create)
        self.on_failure = on_failure
        self.soon: Callable[..., object] | None = None
        self.pause: Callable[[Callable[[], None]], object] | None = None
        self._answered: deque[Item] = deque()  # and not told yet to whoever waits
        self._queue: deque[Item] = deque()
        self._due: deque[tuple[Backup, Item]] = deque()
        self._mutex = _allocate_lock()
        self._wake = _allocate_lock()
        self._ended = _allocate_lock()
        self._asleep = False
        self._gathering = False
        self._stopping = False
        self._owner_pid: int | None = None
        self._process: object = None
        self._open_error: BaseException | None = None

    def start(self) -> None:
        """Start the thread and open the file in it. Blocks the calling native thread until it is open.

        Raises:
            DatabaseInUse, DatabaseTooNew, DatabaseUnusable: as `open_database`. The thread is gone then.
            StorageError: started or stopped before.
        """
        with self._mutex:
            if self._owner_pid is not None or self._stopping:
                what = "stopped" if self._stopping else "started"
                raise StorageError(
                    f"the worker of {os.fsdecode(self._path)!r} was {what} before; make another"
                )
            self._owner_pid, self._process = os.getpid(), forks.process
            opened = _allocate_lock()
            opened.acquire()
            self._wake.acquire()
            self._ended.acquire()
            _start_new_thread(self._main, (opened,))
        opened.acquire()
        if self._open_error is not None:
            raise self._open_error

    def submit(self, job: Job[T], then: Then[T] | None = None) -> None:
        """Queue `job`; `then` is told its value or error after the commit. Never blocks.

        Raises:
            BacklogFull: too much waits; nothing of this is stored.
            StorageError: stopped, or called in a forked child.
            DatabaseFailed: failed.
        """
        self._put(Item(job, then))

    def write(self, writes: WriteSet, then: Then[None] | None = None) -> Item:
        """`submit` for a set of writes, which is stored together with its neighbours in the queue."""
        item = Item(writes, then)
        self._put(item, gather=True)
        return item

    def grow(self, item: Item, writes: WriteSet) -> bool:
        """Let a write store `writes` instead; False if the thread has taken it already. It keeps its place:
        `writes` hold what it stored so far, and nothing that has to come behind what came since."""
        with self._mutex:
            if not item.taken:
                item.work = writes
            return not item.taken

    def backup(
        self, to: Path, then: Then[None] | None = None, progress: Progress | None = None
    ) -> Callable[[], None]:
        """Copy the database to the new file `to`, as `copy_database` does; `then` is told when it is there,
        or why not.

        The copy holds whatever was submitted before it, and perhaps some of what came after. It is made
        after what waits now, a step at a time, and what comes meanwhile is run and committed between two
        steps. A worker that is stopped makes no copies any more. Never blocks.

        Args:
            progress: called with the pages copied and the pages in all, at each per cent, where `then` is.

        Returns:
            A function, for any thread, that gives the copy up.

        Raises:
            BacklogFull, StorageError: as `submit`.
        """
        backup = Backup(to, None if progress is None else partial(self._show, progress))
        asked = Item(nothing, then)

        def begin(_value: object, error: BaseException | None) -> None:
            asked.error = error
            self._due.append((backup, asked))

        self._put(Item(nothing, begin, direct=True))
        return backup.give_up

    def call(self, job: Job[T], timeout: float | None = None) -> T:
        """The value of `job`, after the commit; raises its error.

        Blocks the calling *native* thread, with everything that runs in it: for threads and command
        lines, never for a gevent hub. What waits in the queue runs first.

        Raises:
            StorageError: as `submit`; or `timeout` seconds are over, and the job may still be done.
        """
        answered = _allocate_lock()
        answered.acquire()
        item = Item(job, lambda _value, _error: answered.release(), direct=True)
        self._put(item)
        if not answered.acquire(True, -1 if timeout is None else timeout):
            raise StorageError(f"the database did not answer in {timeout:g} s; the job may still be done")
        if item.error is not None:
            raise item.error
        value: T = item.value
        return value

    def stop(self) -> None:
        """Run what is queued, close the file and wait for the thread's end. Calling it again is fine, and so
        is calling it from another thread while `start` is still opening the file.

        Blocks the calling native thread. The last deliveries have been handed to `notify` then.
        """
        if self._process not in (None, forks.process):  # a forked child, where the mutex may be held for ever
            self._stopping = True
            return
        with self._mutex:
            self._stopping = True
            if self._process is None:
                return
            self._rouse()
        with self._ended:
            pass

    @property
    def stats(self) -> WorkerStats:
        """What was done so far; figures of a batch that runs may be in part."""
        c = self._committer
        return WorkerStats(
            c.commits, c.jobs, c.largest_batch, len(self._queue), c.failed, c.file_bytes, c.wal_bytes
        )

    def _put(self, item: Item, *, gather: bool = False) -> None:
        with self._mutex:
            self._check_accepting()
            self._queue.append(item)
            if self.soon is None or not gather:
                self._gathering = False
                self._rouse()
            elif not self._gathering:
                self._gathering = True
                self.soon(self._gather, GATHER_ROUNDS - 1)

    def _gather(self, rounds: int) -> None:
        """Let so many more rounds of the submitting thread's callbacks go by, then rouse the thread."""
        if rounds and self.soon is not None:
            self.soon(self._gather, rounds - 1)
            return
        with self._mutex:
            self._gathering = False
            self._rouse()

    def _check_accepting(self) -> None:
        if self._committer.failed is not None:
            raise self._committer.refusal()
        if self._stopping or self._owner_pid is None:
            state = "has stopped" if self._stopping else "is not started"
            raise StorageError(f"the worker of {os.fsdecode(self._path)!r} {state}; nothing was stored")
        if len(self._queue) >= self._backlog:
            raise BacklogFull(f"{self._backlog:,} database jobs wait already; try again when there are fewer")
        if self._process is not forks.process:
            raise StorageError(
                f"{os.fsdecode(self._path)!r} was opened by process {self._owner_pid}; "
                "a forked child must open a database of its own"
            )

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.release()

    # -- in the worker's thread -------------------------------------------------------------------

    def _main(self, opened: Any) -> None:
        try:
            try:
                self._committer.open()
            except BaseException as error:
                self._open_error = error
                self._stopping = True
                return
            finally:
                opened.release()
            while batch := self._take():
                self._run(batch)
                while self._due:
                    self._copy(*self._due.popleft())
            self._committer.close()
        except BaseException as error:  # no memory, say: whoever waits must be answered all the same
            log.exception("the thread of %r failed", os.fsdecode(self._path))
            self._committer.give_up(error)
            with self._mutex:
                left = []
                while self._queue:
                    left += self._waiting()
            self._run(left)
        finally:
            self._ended.release()

    def _take(self) -> list[Item]:
        """The next batch, as soon as there is one; empty when the worker is to stop."""
        idle = roused = False
        while True:
            with self._mutex:
                # What is still being gathered is left to grow; whoever gathers rouses this thread.
                if self._stopping or (self._queue and (roused or not self._gathering)):
                    return self._waiting()
                self._asleep = True
            roused = self._sleep(-1 if idle else IDLE_S)
            if not roused:
                self._committer.checkpoint()
                self._tell_failure()
                idle = True

    def _waiting(self) -> list[Item]:
        count = min(len(self._queue), LARGEST_BATCH)
        batch = [self._queue.popleft() for _ in range(count)]
        for item in batch:
            item.taken = True
        return batch

    def _run(self, batch: list[Item]) -> None:
        self._committer.run(batch)
        self._answer(batch)
        self._tell_failure()

    def _copy(self, backup: Backup, asked: Item) -> None:
        if asked.error is None:
            self._committer.back_up(backup, asked, self._run_waiting)
        self._answer([asked])

    def _run_waiting(self) -> None:
        """What is done between two steps of a copy."""
        if self._stopping:
            raise StorageError(f"{os.fsdecode(self._path)!r} was closed before its copy was complete")
        with self._mutex:
            batch = self._waiting()
        if batch:
            self._run(batch)

    def _show(self, progress: Progress, done: int, total: int) -> None:
        self._deliver(partial(tell_quietly, progress, done, total))

    def _sleep(self, timeout_s: float) -> bool:
        """Wait to be roused; False when the time is over first."""
        if self._wake.acquire(True, timeout_s):
            return True
        with self._mutex:
            if self._asleep:
                self._asleep = False
                return False
        return bool(self._wake.acquire())  # roused just after the time was over

    def _answer(self, batch: list[Item]) -> None:
        waiting: list[Item] = []
        for item in batch:
            if item.direct and item.then is not None:
                item.then(item.value, item.error)
            elif item.then is not None:
                waiting.append(item)
        if waiting:
            self._deliver(partial(self._give, waiting))

    def _tell_failure(self) -> None:
        if self._committer.failed is not None and self.on_failure is not None:
            tell, self.on_failure = self.on_failure, None
            refusal = self._committer.refusal()
            self._answer([Item(nothing, lambda _value, _error: tell(refusal))])  # behind all answers

    def _deliver(self, answers: Callable[[], None]) -> None:
        try:
            self._notify(answers)
        except Exception:  # whoever waits is gone, say with its hub; what is queued is still stored
            log.exception("the answers of the database could not be delivered")

    # -- where `notify` leads to ------------------------------------------------------------------

    def _give(self, answers: list[Item]) -> None:
        """Give these answers, behind those that have not been given yet."""
        under_way = bool(self._answered)
        self._answered.extend(answers)
        if not under_way:
            self._give_some()

    def _give_some(self) -> None:
        left = self._answered
        if self.pause is None or len(left) <= ANSWERED_AT_ONCE:
            some = [*left]
            left.clear()
        else:
            some = [left.popleft() for _ in range(ANSWERED_AT_ONCE)]
            self.pause(self._give_some)
        deliver(some)
