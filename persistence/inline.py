"""The database worker of a simulation: no thread, and commits that take virtual time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from persistence.backup import Backup, Progress
from persistence.committer import Committer, Item, Job, Then, WorkerStats, deliver, nothing, tell_quietly
from persistence.errors import BacklogFull, DatabaseFailed, StorageError
from persistence.newfiles import Path
from persistence.writes import WriteSet

T = TypeVar("T")


def _no_latency() -> float:
    return 0.0


class InlineWorker:
    """As `DatabaseWorker`, run by the callbacks of a scheduler in the caller's own thread.

    A batch runs in one callback and is delivered in another, `commit_latency()` seconds later; what is
    submitted meanwhile makes the next batch, as with the thread.

    Args:
        path: the file, or ":memory:".
        schedule: calls a function after so many seconds; never before it returns.
        commit_latency: seconds that the next commit takes.
        backlog: jobs that may wait.
        create: whether a missing file is made.
        committer: runs the batches; a simulation hands in one that fails on purpose.
        on_failure: as of `DatabaseWorker`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schedule: Callable[[float, Callable[[], None]], None],
        commit_latency: Callable[[], float] = _no_latency,
        backlog: int = 200_000,
        create: bool = True,
        committer: Committer | None = None,
        on_failure: Callable[[DatabaseFailed], None] | None = None,
    ) -> None:
        self._path = path
        self._schedule = schedule
        self._commit_latency = commit_latency
        self._backlog = backlog
        self._committer = committer or Committer(path, create=create)
        self.on_failure = on_failure
        self._queue: deque[Item] = deque()
        self._backups: list[tuple[Backup, Item]] = []
        self._undelivered: list[Item] = []
        self._scheduled = False
        self._running = False

    def start(self) -> None:
        """Open the file, here and now; raises what `open_database` raises."""
        self._committer.open()
        self._running = True

    def submit(self, job: Job[T], then: Then[T] | None = None) -> None:
        """As `DatabaseWorker.submit`."""
        self._put(Item(job, then))

    def write(self, writes: WriteSet, then: Then[None] | None = None) -> Item:
        """As `DatabaseWorker.write`."""
        item = Item(writes, then)
        self._put(item)
        return item

    def grow(self, item: Item, writes: WriteSet) -> bool:
        """As `DatabaseWorker.grow`."""
        if not item.taken:
            item.work = writes
        return not item.taken

    def backup(
        self, to: Path, then: Then[None] | None = None, progress: Progress | None = None
    ) -> Callable[[], None]:
        """As `DatabaseWorker.backup`, after what waits; nothing runs while the copy is made."""
        self._check_accepting()
        backup = Backup(to, None if progress is None else partial(tell_quietly, progress))
        self._backups.append((backup, Item(nothing, then)))
        self._rouse()
        return backup.give_up

    def call(self, job: Job[T], timeout: float | None = None) -> T:
        """The value of `job`, at once; what waits in the queue runs and is delivered first."""
        self._check_accepting()
        self._finish()
        item = Item(job)
        self._committer.run([item])
        if item.error is not None:
            raise item.error
        value: T = item.value
        return value

    def stop(self) -> None:
        """Run and deliver what is queued, here and now, and close the file. Again is fine."""
        if self._running:
            self._finish()
            self._running = False
            self._committer.close()

    def abandon(self) -> Callable[[], None]:
        """As if the process were killed: what waits is dropped unanswered, and the file is let go.

        Returns:
            What answers all of it with an error after all: for a simulation that drops the greenlets of the
            dead process, some of which take no kill before they are answered.
        """
        dropped = [*self._undelivered, *self._queue, *(item for _, item in self._backups)]
        self._queue.clear()
        self._backups.clear()
        self._undelivered.clear()
        self._running = False
        self._committer.close()
        for item in dropped:
            item.value, item.error = None, StorageError("the process is dead")
        return partial(deliver, dropped)

    @property
    def stats(self) -> WorkerStats:
        """What was done so far."""
        c = self._committer
        return WorkerStats(
            c.commits, c.jobs, c.largest_batch, len(self._queue), c.failed, c.file_bytes, c.wal_bytes
        )

    def _put(self, item: Item) -> None:
        self._check_accepting()
        if len(self._queue) >= self._backlog:
            raise BacklogFull(f"{self._backlog:,} database jobs wait already; try again when there are fewer")
        self._queue.append(item)
        self._rouse()

    def _rouse(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(0.0, self._commit)

    def _check_accepting(self) -> None:
        if self._committer.failed is not None:
            raise self._committer.refusal()
        if not self._running:
            raise StorageError(f"the worker of {os.fsdecode(self._path)!r} does not run; nothing was stored")

    def _commit(self) -> None:
        if self._take():
            self._schedule(self._commit_latency(), self._delivered)
        else:
            self._scheduled = False

    def _delivered(self) -> None:
        try:
            self._deliver()
        finally:  # a Ctrl-C that comes in a callback is none of what waits
            self._commit()

    def _finish(self) -> None:
        self._deliver()
        while self._take():
            self._deliver()

    def _take(self) -> bool:
        """Run what waits, if anything does."""
        batch = [*self._queue]
        if batch:
            self._queue.clear()
            for item in batch:
                item.taken = True
            self._committer.run(batch)
        if not self._backups:
            self._undelivered += batch
            return bool(batch)
        backups = [*self._backups]
        self._backups.clear()
        for backup, asked in backups:
            self._committer.back_up(backup, asked, lambda: None)
            batch.append(asked)
        self._undelivered.extend(batch)
        return bool(batch)

    def _deliver(self) -> None:
        batch, self._undelivered = self._undelivered, []
        deliver(batch)
        if self._committer.failed is not None and self.on_failure is not None:
            tell, self.on_failure = self.on_failure, None
            tell(self._committer.refusal())
