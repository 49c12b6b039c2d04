"""Group commit on the database thread: order, isolation, failures, the end."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from sqlite_utils import Database
from support import in_thread

from actors.bell import bell
from actors.storage import Store
from palaver import Runtime, ScriptedModel
from persistence.database import close_database, open_database
from persistence.errors import BacklogFull, DatabaseInUse, DatabaseUnusable, SessionNotFound, StorageError
from persistence.records import TurnRow
from persistence.sessions import list_sessions, load_session, open_session
from persistence.worker import GATHER_ROUNDS, Committer, DatabaseWorker, InlineWorker
from persistence.writes import NewEvent, TurnUpdate, WriteSet

ROOT = Path(__file__).resolve().parents[1]
allocate_lock = get_original("_thread", "allocate_lock")
native_id = get_original("threading", "get_ident")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def worker(path: Path) -> Iterator[DatabaseWorker]:
    worker = DatabaseWorker(path)
    worker.start()
    yield worker
    worker.stop()


class Answers(list[tuple[Any, BaseException | None]]):
    """What `then` was told, in order."""

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.append((value, error))

    @property
    def errors(self) -> list[BaseException | None]:
        return [error for _, error in self]


class Gate:
    """A job that holds the database thread until it is opened."""

    def __init__(self, worker: DatabaseWorker) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()
        reached = allocate_lock()
        reached.acquire()

        def wait(_db: Database) -> None:
            reached.release()
            self._lock.acquire()

        worker.submit(wait)
        reached.acquire()

    def open(self) -> None:
        self._lock.release()


def make_session(handle: str) -> Callable[[Database], int]:
    def job(db: Database) -> int:
        opened = open_session(
            db, agent="a", sender="s", topic=handle, handle=handle, at=1.0, scope="s", description="d"
        )
        assert opened is not None
        return opened[0].id

    return job


def turn(id_: int, session_id: int = 1) -> WriteSet:
    return WriteSet(new_turns=(TurnRow(id_, session_id, "s", "hello", "queued", accepted_at=1.0),))


def handles(db: Database) -> list[str]:
    return sorted(each.handle for each in list_sessions(db))


def turn_ids(db: Database) -> list[int]:
    return [row[0] for row in db.execute("SELECT id FROM turns ORDER BY id").fetchall()]


def fill(db: Database) -> None:
    """Write until SQLite says that the disk is full."""
    for n in range(100_000):
        db.execute(
            "INSERT INTO deleted_sessions (handle, last_turn, last_steer) VALUES (?, 0, 0)",
            [f"{n}{'x' * 2000}"],
        )


# -- group commit ----------------------------------------------------------------------------------


def test_everything_that_waits_goes_into_one_commit(worker: DatabaseWorker) -> None:
    answers = Answers()
    gate = Gate(worker)
    for n in range(100):
        worker.submit(make_session(f"h{n}"), answers)
    before = worker.stats
    assert before.waiting == 100
    gate.open()
    assert len(worker.call(handles)) == 100
    assert worker.stats.commits <= before.commits + 3
    assert worker.stats.largest_batch >= 100
    assert answers.errors == [None] * 100


def test_no_then_is_called_before_the_commit(path: Path) -> None:
    seen: list[list[str]] = []

    class Watching(Committer):
        def _commit(self, db: Database) -> None:
            seen.append(["commit", *map(str, answers)])
            super()._commit(db)

    answers = Answers()
    worker = DatabaseWorker(path, committer=Watching(path))
    worker.start()
    gate = Gate(worker)
    worker.submit(make_session("h"), answers)
    gate.open()
    worker.stop()
    assert seen[1] == ["commit"], "nothing was answered when the commit began"
    assert len(answers) == 1


def test_notify_is_called_once_for_a_batch_and_delivers_in_order(path: Path) -> None:
    calls: list[int] = []
    order: list[int] = []

    def notify(deliver: Callable[[], None]) -> None:
        calls.append(len(order))
        deliver()

    worker = DatabaseWorker(path, notify=notify)
    worker.start()
    gate = Gate(worker)
    for n in range(50):
        worker.submit(lambda _db: None, lambda _v, _e, n=n: order.append(n))
    gate.open()
    worker.stop()
    assert order == list(range(50))
    assert len(calls) == 1


def test_the_answers_of_a_large_batch_are_given_in_order_with_pauses_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.worker.ANSWERED_AT_ONCE", 10)
    pauses: list[Callable[[], None]] = []
    order: list[int] = []
    worker = DatabaseWorker(path)
    worker.pause = pauses.append
    worker.start()

    def submit(numbers: range) -> None:
        gate = Gate(worker)
        for n in numbers:
            worker.submit(lambda _db: None, lambda _v, _e, n=n: order.append(n))
        gate.open()
        worker.call(lambda _db: None)

    submit(range(25))
    submit(range(25, 30))
    worker.stop()
    for given in (10, 20, 30):
        assert order == list(range(given)), "what came later waits behind what has not been given yet"
        if given < 30:
            pauses.pop()()
    assert pauses == []


def test_a_hub_serves_its_timers_between_the_answers_of_a_large_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.worker.ANSWERED_AT_ONCE", 1)
    worker = DatabaseWorker(path, notify=bell())
    store = Store(worker)
    store.start()
    runs: list[None] = []
    answered_after: list[int] = []
    timer = gevent.get_hub().loop.timer(0, 1e-6)
    timer.start(runs.append, None)
    try:
        gate = Gate(worker)
        for _ in range(99):
            store.submit(lambda _db: None, lambda _v, _e: answered_after.append(len(runs)))
        last = store.begin(lambda _db: None)
        gate.open()
        last.get()
    finally:
        timer.close()
    store.stop()
    assert answered_after[-1] - answered_after[0] >= 90


def test_answers_reach_greenlets_through_the_hub(path: Path) -> None:
    hub = gevent.get_hub()
    worker = DatabaseWorker(path, notify=bell())
    hub.threadpool.apply(worker.start)
    answered = gevent.event.AsyncResult()
    threads: list[int] = []

    def then(value: int | None, error: BaseException | None) -> None:
        threads.append(native_id())
        answered.set(value)

    worker.submit(make_session("h"), then)
    assert answered.get(timeout=10) == 1
    hub.threadpool.apply(worker.stop)
    assert threads == [native_id()]


def test_what_an_event_loop_writes_within_a_few_rounds_of_callbacks_is_one_commit(
    worker: DatabaseWorker,
) -> None:
    session = worker.call(make_session("h"))
    callbacks: list[tuple[Any, ...]] = []
    worker.soon = lambda *callback: callbacks.append(callback)
    before, answers = worker.stats.commits, Answers()
    worker.write(WriteSet(new_turns=(TurnRow(1, session, "alice", "hello", "running", 1),)), answers)
    for round_ in range(GATHER_ROUNDS):
        assert worker.stats.waiting == 1, "the thread was roused before its time"
        ((function, *arguments),) = callbacks
        callbacks.clear()
        if round_ == GATHER_ROUNDS - 1:
            worker.write(WriteSet(turn_updates=(TurnUpdate(1, "done", finished_at=2.0),)), answers)
        function(*arguments)
    assert callbacks == []
    worker.stop()
    assert (worker.stats.commits, answers.errors) == (before + 1, [None, None])


def test_a_job_that_is_waited_for_takes_what_was_gathered_along(worker: DatabaseWorker) -> None:
    session = worker.call(make_session("h"))
    worker.soon = lambda *_callback: None
    before, answers = worker.stats.commits, Answers()
    gate = Gate(worker)
    worker.write(WriteSet(new_turns=(TurnRow(1, session, "alice", "hello", "queued"),)), answers)
    gate.open()  # the thread comes by, and leaves what is being gathered to grow
    found = worker.call(lambda db: db.execute("SELECT state FROM turns").fetchall())
    worker.stop()
    assert found == [("queued",)]
    assert (worker.stats.commits, answers.errors) == (before + 2, [None])


def test_the_thread_is_a_native_one_in_a_patched_process(worker: DatabaseWorker) -> None:
    assert threading.get_ident() != native_id(), "gevent has patched this process"
    assert worker.call(lambda _db: native_id()) not in (native_id(), threading.get_ident())
    # The hub's own thread is blocked in `call` all the while: a greenlet could not have answered.
    assert worker.call(lambda db: db.execute("SELECT 41 + 1").fetchall()) == [(42,)]


def test_a_plain_process_needs_no_gevent_patching(path: Path) -> None:
    code = """
import sys
from persistence.worker import DatabaseWorker
worker = DatabaseWorker(sys.argv[1])
worker.start()
print(worker.call(lambda db: db.execute("SELECT count(*) FROM sessions").fetchall()))
worker.stop()
"""
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert said.stdout.strip() == "[(0,)]", said.stderr


def test_a_job_sees_what_the_jobs_before_it_wrote(worker: DatabaseWorker) -> None:
    gate = Gate(worker)
    seen = Answers()
    worker.submit(make_session("h1"))
    worker.submit(handles, seen)
    worker.submit(make_session("h2"))
    worker.submit(handles, seen)
    gate.open()
    worker.call(handles)
    assert seen == [(["h1"], None), (["h1", "h2"], None)]


def test_write_sets_and_jobs_keep_their_order(worker: DatabaseWorker) -> None:
    worker.call(make_session("h"))
    gate = Gate(worker)
    seen = Answers()
    worker.write(turn(1))
    worker.write(turn(2))
    worker.submit(turn_ids, seen)
    worker.write(turn(3))
    worker.submit(turn_ids, seen)
    gate.open()
    worker.call(turn_ids)
    assert seen == [([1, 2], None), ([1, 2, 3], None)]


def test_a_batch_has_a_largest_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.worker.LARGEST_BATCH", 10)
    worker = DatabaseWorker(path)
    worker.start()
    gate = Gate(worker)
    for _ in range(35):
        worker.submit(lambda _db: None)
    gate.open()
    worker.stop()
    assert worker.stats.largest_batch == 10
    assert worker.stats.jobs == 36


def test_a_batch_of_reads_writes_nothing(worker: DatabaseWorker, path: Path) -> None:
    worker.call(make_session("h"))
    wal = path.with_name(path.name + "-wal")
    before = wal.stat()
    commits = worker.stats.commits
    for _ in range(5):
        worker.call(handles)
    after = wal.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert worker.stats.commits == commits + 5


# -- a job that fails ------------------------------------------------------------------------------


class Odd(BaseException):
    """Like gevent.Timeout: no Exception."""


@pytest.mark.parametrize("error", [ValueError("no"), SessionNotFound("no"), Odd("no"), gevent.Timeout(1)])
def test_a_job_that_fails_fails_alone_and_leaves_nothing(
    worker: DatabaseWorker, error: BaseException
) -> None:
    def bad(db: Database) -> None:
        make_session("bad")(db)
        raise error

    answers = Answers()
    gate = Gate(worker)
    for job in (make_session("h1"), bad, make_session("h2")):
        worker.submit(job, answers)
    gate.open()
    assert worker.call(handles) == ["h1", "h2"]
    assert answers.errors == [None, error, None]
    with pytest.raises(type(error)):
        worker.call(bad)  # alone in its batch
    assert worker.call(handles) == ["h1", "h2"]


def test_an_sqlite_error_of_a_job_becomes_a_storage_error(worker: DatabaseWorker, path: Path) -> None:
    worker.call(make_session("h"))
    with pytest.raises(StorageError, match=r"agents\.db.*UNIQUE") as caught:
        worker.call(lambda db: db.execute("INSERT INTO sessions SELECT * FROM sessions"))
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert worker.call(handles) == ["h"]


def test_a_bad_write_set_fails_alone_among_its_neighbours(worker: DatabaseWorker) -> None:
    worker.call(make_session("h"))
    answers = Answers()
    gate = Gate(worker)
    half_bad = WriteSet(new_turns=turn(3).new_turns, turn_updates=(TurnUpdate(77, "done"),))
    for writes in (turn(1), half_bad, turn(2, session_id=99), turn(1), turn(4)):
        worker.write(writes, answers)
    gate.open()
    assert worker.call(turn_ids) == [1, 4]
    assert [type(error) for error in answers.errors] == [
        type(None),
        StorageError,
        StorageError,
        StorageError,
        type(None),
    ]


@pytest.mark.parametrize("alone", [True, False])
def test_text_that_sqlite_cannot_store_fails_only_its_write_set(worker: DatabaseWorker, alone: bool) -> None:
    worker.call(make_session("h"))
    answers = Answers()
    gate = Gate(worker)
    bad = WriteSet(events=(NewEvent(1, 1, 1.0, "\ud800"),))
    for writes in [bad] if alone else [turn(1), bad, turn(2)]:
        worker.write(writes, answers)
    gate.open()
    assert worker.call(turn_ids) == ([] if alone else [1, 2])
    assert sum(isinstance(error, StorageError) for error in answers.errors) == 1


def test_a_then_that_raises_stops_no_other(worker: DatabaseWorker, caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers()

    def fall(_value: object, _error: object) -> None:
        raise Odd

    gate = Gate(worker)
    with caplog.at_level(logging.ERROR):
        worker.submit(lambda _db: 1, fall)
        worker.submit(lambda _db: 2, answers)
        gate.open()
        worker.stop()
    assert answers == [(2, None)]
    assert "raised" in caplog.text


def test_trap_21_rows_that_are_not_fetched_are_refused(worker: DatabaseWorker) -> None:
    for lazy in (
        lambda db: db.query("SELECT 1 AS one"),
        lambda db: db.execute("SELECT 1"),
        lambda db: (row for row in ()),
    ):
        with pytest.raises(StorageError, match=r"list\(\) them in the job"):
            worker.call(lazy)
    assert worker.call(lambda db: list(db.query("SELECT 1 AS one"))) == [{"one": 1}]


def test_a_job_that_ends_the_transaction_is_told_and_acknowledges_nothing(worker: DatabaseWorker) -> None:
    answers = Answers()
    gate = Gate(worker)
    worker.submit(make_session("h1"), answers)
    worker.submit(lambda db: db.rollback(), answers)
    answered = allocate_lock()
    answered.acquire()
    worker.submit(make_session("h2"), lambda *told: (answers(*told), answered.release()))
    gate.open()
    answered.acquire()  # what comes now is in a later batch
    assert worker.call(handles) == []
    assert [type(error) for error in answers.errors] == [StorageError] * 3


# -- the disk --------------------------------------------------------------------------------------


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(worker: DatabaseWorker) -> None:
    worker.call(make_session("h"))
    pages = worker.call(lambda db: db.execute("PRAGMA page_count").fetchall()[0][0])
    worker.call(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
    answers, reads = Answers(), Answers()
    gate = Gate(worker)
    worker.submit(handles, reads)
    worker.submit(make_session("small"), answers)
    worker.submit(fill, answers)
    worker.submit(handles, reads)
    gate.open()
    assert worker.call(handles) == ["h", "small"], "reads go on, and what fits is stored"
    assert [type(error) for error in answers.errors] == [type(None), StorageError]
    assert "make room" in str(answers.errors[1])
    assert reads == [(["h"], None), (["h", "small"], None)]
    assert worker.stats.failed is None
    worker.call(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchall())
    worker.call(make_session("later"))
    assert "later" in worker.call(handles)


def test_a_full_disk_acknowledges_no_write_set_that_it_did_not_store(worker: DatabaseWorker) -> None:
    worker.call(make_session("h"))
    pages = worker.call(lambda db: db.execute("PRAGMA page_count").fetchall()[0][0])
    worker.call(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
    acknowledged: list[int] = []
    gate = Gate(worker)
    for n in range(1, 30):
        row = TurnRow(n, 1, "s", "x" * 1000, "queued", accepted_at=1.0)
        worker.write(
            WriteSet(new_turns=(row,)), lambda _v, error, n=n: error is None and acknowledged.append(n)
        )
    gate.open()
    stored = worker.call(turn_ids)
    assert stored == acknowledged
    assert 0 < len(stored) < 29


class Failing(Committer):
    """A commit that fails once with a planned error, after some good ones."""

    def plan(self, error: BaseException, *, good: int) -> Failing:
        self.planned, self.good = error, good
        return self

    def _commit(self, db: Database) -> None:
        if self.good == 0:
            self.good = -1
            raise self.planned
        self.good -= 1
        super()._commit(db)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "error", [sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), OSError("injected"), MemoryError("injected")]
)
def test_trap_23_after_a_failed_commit_all_work_is_refused(path: Path, error: BaseException) -> None:
    worker = DatabaseWorker(path, committer=Failing(path).plan(error, good=1))
    worker.start()
    worker.call(make_session("h1"))
    with pytest.raises(StorageError, match="what it holds is not certain"):
        worker.call(make_session("h2"))
    with pytest.raises(StorageError, match="what it holds is not certain"):
        worker.call(handles)
    with pytest.raises(StorageError, match="what it holds is not certain"):
        worker.write(turn(1))
    assert "injected" in str(worker.stats.failed)
    worker.stop()


def test_a_failed_commit_answers_every_job_in_it_with_its_own_error(path: Path) -> None:
    committer = Failing(path).plan(sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), good=0)
    worker = DatabaseWorker(path, committer=committer)
    worker.start()
    answers = Answers()
    gate_open = allocate_lock()
    gate_open.acquire()
    worker.submit(lambda _db: gate_open.acquire(), answers)
    worker.submit(make_session("h1"), answers)
    worker.write(turn(1), answers)
    gate_open.release()
    with pytest.raises(StorageError, match=r"agents\.db.*is not used any more.*injected"):
        worker.call(handles)
    with pytest.raises(StorageError, match="injected") as caught:
        worker.submit(handles)
    assert caught.value.__cause__ is committer.planned
    with pytest.raises(StorageError):
        worker.write(turn(2))
    worker.stop()
    assert len(answers) == 3
    assert all(isinstance(error, StorageError) for error in answers.errors)
    assert len({id(error) for error in answers.errors}) == 3
    db = open_database(path)
    assert handles(db) == [], "what was not acknowledged was rolled back here"
    close_database(db)


def test_a_commit_that_the_disk_has_no_room_for_is_undone_and_work_goes_on(path: Path) -> None:
    worker = DatabaseWorker(path, committer=Failing(path).plan(sqlite_error(sqlite3.SQLITE_FULL), good=0))
    worker.start()
    with pytest.raises(StorageError, match="make room"):
        worker.call(make_session("h1"))
    assert worker.stats.failed is None
    assert worker.call(handles) == []
    worker.call(make_session("h2"))
    assert worker.call(handles) == ["h2"]
    worker.stop()


def test_an_io_error_in_a_job_stops_the_worker(path: Path) -> None:
    def broken(_db: Database) -> None:
        raise sqlite_error(sqlite3.SQLITE_IOERR_READ)

    worker = DatabaseWorker(path)
    worker.start()
    with pytest.raises(StorageError, match="not used any more"):
        worker.call(broken)
    with pytest.raises(StorageError, match="not used any more"):
        worker.call(handles)
    worker.stop()


def test_trap_25_the_wal_stays_bounded(worker: DatabaseWorker, path: Path) -> None:
    worker.call(make_session("h"))
    wal = path.with_name(path.name + "-wal")
    largest = 0
    for _ in range(30):
        events = tuple(NewEvent(1, 1, 1.0, "x" * 40_000) for _ in range(50))
        worker.write(WriteSet(events=events))
        worker.call(lambda _db: None)
        largest = max(largest, wal.stat().st_size)
    assert path.stat().st_size > 20 << 20, "far more was written than the WAL may hold"
    assert largest < 32 << 20


def test_what_is_idle_is_checkpointed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.worker.IDLE_S", 0.01)
    done = allocate_lock()
    done.acquire()

    class Watching(Committer):
        def checkpoint(self) -> None:
            super().checkpoint()
            done.release()

    worker = DatabaseWorker(path, committer=Watching(path))
    worker.start()
    worker.call(make_session("h"))
    assert done.acquire(True, 10)
    assert b"sessions_by_topic" in path.read_bytes(), "the file has what was in the WAL"
    worker.stop()


# -- beginning and end -----------------------------------------------------------------------------


def test_start_raises_what_opening_raised(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable):
        DatabaseWorker(tmp_path).start()
    db = open_database(path)
    worker = DatabaseWorker(path)
    with pytest.raises(DatabaseInUse):
        worker.start()
    worker.stop()
    close_database(db)
    with pytest.raises(DatabaseUnusable, match="no such file"):
        DatabaseWorker(tmp_path / "none.db", create=False).start()


def test_a_backlog_over_its_bound_is_refused(path: Path) -> None:
    worker = DatabaseWorker(path, backlog=3)
    worker.start()
    gate = Gate(worker)
    for n in range(3):
        worker.submit(make_session(f"h{n}"))
    with pytest.raises(BacklogFull, match="3 database jobs wait"):
        worker.submit(make_session("one too many"))
    with pytest.raises(BacklogFull):
        worker.write(turn(1))
    gate.open()
    worker.stop()
    db = open_database(path)
    assert handles(db) == ["h0", "h1", "h2"]
    close_database(db)


def test_stop_stores_what_is_queued_and_a_second_stop_is_fine(path: Path) -> None:
    worker = DatabaseWorker(path)
    worker.start()
    answers = Answers()
    gate = Gate(worker)
    for n in range(20):
        worker.submit(make_session(f"h{n}"), answers)
    gate.open()
    worker.stop()
    worker.stop()
    assert answers.errors == [None] * 20
    assert not path.with_name(path.name + "-wal").exists()
    with pytest.raises(StorageError, match="has stopped; nothing was stored"):
        worker.submit(handles)
    db = open_database(path)
    assert len(handles(db)) == 20
    close_database(db)


def test_a_worker_that_was_not_started_takes_nothing(path: Path) -> None:
    worker = DatabaseWorker(path)
    with pytest.raises(StorageError, match="is not started"):
        worker.submit(handles)
    worker.stop()
    assert not path.exists()
    with pytest.raises(StorageError, match="was stopped before"):
        worker.start()
    assert not path.exists()


def test_a_worker_starts_once(worker: DatabaseWorker) -> None:
    with pytest.raises(StorageError, match="was started before"):
        worker.start()


class SlowToOpen(Committer):
    """Opens its file when the test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached, self.go = allocate_lock(), allocate_lock()
        self.reached.acquire()
        self.go.acquire()

    def open(self) -> None:
        self.reached.release()
        with self.go:
            super().open()


def test_who_is_killed_while_a_file_is_opened_leaves_it_closed(path: Path) -> None:
    committer = SlowToOpen(path)
    worker = DatabaseWorker(path, notify=bell(), committer=committer)
    opening = gevent.spawn(Runtime.open, path, ScriptedModel(), worker=worker)
    gevent.sleep(0)
    in_thread(committer.reached.acquire)
    killing = gevent.spawn(opening.kill)
    gevent.idle()
    assert not killing.ready(), "the thread may still make the file"
    committer.go.release()
    killing.join()
    assert path.exists()
    close_database(open_database(path))


def test_call_gives_up_after_its_timeout(worker: DatabaseWorker) -> None:
    gate = Gate(worker)
    with pytest.raises(StorageError, match="may still be done"):
        worker.call(make_session("h"), timeout=0.01)
    gate.open()
    assert worker.call(handles) == ["h"]


def test_a_notify_that_fails_does_not_end_the_thread(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def gone(_deliver: Callable[[], None]) -> None:
        raise ValueError("operation on destroyed loop")

    worker = DatabaseWorker(path, notify=gone)
    worker.start()
    worker.submit(make_session("h"), Answers())
    assert worker.call(handles) == ["h"]
    worker.stop()
    assert "could not be delivered" in caplog.text


def test_native_threads_may_call_at_the_same_time(worker: DatabaseWorker) -> None:
    pool = gevent.get_hub().threadpool
    calls = [pool.spawn(worker.call, make_session(f"h{n}")) for n in range(20)]
    assert len({each.get(timeout=10) for each in calls}) == 20


def test_trap_12_a_forked_child_is_refused(path: Path) -> None:
    code = """
import os, sys
from persistence.errors import StorageError
from persistence.worker import DatabaseWorker
worker = DatabaseWorker(sys.argv[1])
worker.start()
pid = os.fork()
if pid == 0:
    try:
        worker.call(lambda db: None, timeout=5)
    except StorageError as error:
        print(error, flush=True)
    worker.stop()
    sys.exit(0)
os.waitpid(pid, 0)
worker.call(lambda db: db.execute(
    "INSERT INTO deleted_sessions (handle, last_turn, last_steer) VALUES ('after', 0, 0)") and None)
print(os.path.exists(sys.argv[1] + "-wal"), flush=True)
os._exit(0)  # as a crash: what was committed is in the WAL alone
"""
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "a forked child must open a database of its own" in said.stdout, said
    assert said.stdout.endswith("True\n"), "the child's end has not taken the parent's WAL away"
    db = open_database(path)
    assert db.execute("SELECT handle FROM deleted_sessions").fetchall() == [("after",)]
    close_database(db)


def test_a_killed_process_keeps_what_it_acknowledged(path: Path) -> None:
    code = """
import os, signal, sys
from persistence.sessions import open_session
from persistence.worker import DatabaseWorker
worker = DatabaseWorker(sys.argv[1])
worker.start()
for n in range(10):
    worker.call(lambda db: open_session(db, agent="a", sender="s", topic=f"t{n}", handle=f"h{n}", at=1.0,
                                        scope="s", description="d"))
    print(n, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert said.returncode == -9
    db = open_database(path)
    assert len(handles(db)) == len(said.stdout.split()) == 10
    close_database(db)


# -- inline ----------------------------------------------------------------------------------------


class Schedule:
    """Callbacks in order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def __call__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._count += 1
        self.waiting.append((self.now + delay_s, self._count, callback))

    def run(self) -> None:
        while self.waiting:
            self.waiting.sort(key=lambda each: each[:2])
            self.now, _, callback = self.waiting.pop(0)
            callback()


def test_inline_jobs_run_on_virtual_time_and_share_commits(path: Path) -> None:
    schedule = Schedule()
    worker = InlineWorker(path, schedule=schedule, commit_latency=lambda: 0.5)
    worker.start()
    told: list[tuple[str, float]] = []

    def again(_value: object, _error: object) -> None:
        told.append(("h1", schedule.now))
        worker.submit(make_session("h3"), lambda _v, _e: told.append(("h3", schedule.now)))

    worker.submit(make_session("h1"), again)
    worker.submit(make_session("h2"), lambda _v, _e: told.append(("h2", schedule.now)))
    assert told == []
    assert worker.stats.waiting == 2
    schedule.run()
    assert told == [("h1", 0.5), ("h2", 0.5), ("h3", 1.0)]
    assert worker.stats.commits == 2
    assert worker.call(handles) == ["h1", "h2", "h3"]
    worker.stop()


def test_inline_work_fails_as_on_the_thread(path: Path) -> None:
    schedule = Schedule()
    worker = InlineWorker(path, schedule=schedule, backlog=3)
    with pytest.raises(StorageError):
        worker.submit(handles)
    worker.start()
    answers = Answers()
    worker.submit(make_session("h"), answers)
    worker.write(turn(1, session_id=99), answers)
    worker.submit(lambda db: load_session(db, "none"), answers)
    with pytest.raises(BacklogFull):
        worker.submit(handles)
    schedule.run()
    assert [type(error) for error in answers.errors] == [type(None), StorageError, SessionNotFound]
    with pytest.raises(SessionNotFound):
        worker.call(lambda db: load_session(db, "none"))
    worker.stop()
    worker.stop()
    with pytest.raises(StorageError):
        worker.submit(handles)


def test_inline_stop_stores_and_answers_what_is_queued(path: Path) -> None:
    schedule = Schedule()
    worker = InlineWorker(path, schedule=schedule, commit_latency=lambda: 1.0)
    worker.start()
    answers = Answers()
    worker.submit(make_session("h1"), answers)
    schedule.waiting.pop(0)[2]()  # committed, and its answer is on the way
    worker.submit(make_session("h2"), answers)
    worker.stop()
    schedule.run()
    assert answers.errors == [None, None]
    db = open_database(path)
    assert handles(db) == ["h1", "h2"]
    close_database(db)


def test_an_abandoned_inline_worker_answers_nothing_more(path: Path) -> None:
    schedule = Schedule()
    worker = InlineWorker(path, schedule=schedule)
    worker.start()
    answers = Answers()
    worker.submit(make_session("h1"), answers)
    worker.abandon()
    schedule.run()
    assert answers == []
    db = open_database(path)
    assert handles(db) == []
    close_database(db)


def test_two_workers_on_two_files_do_not_meet(tmp_path: Path) -> None:
    workers = [DatabaseWorker(tmp_path / f"{n}.db") for n in range(2)]
    for n, worker in enumerate(workers):
        worker.start()
        worker.call(make_session(f"h{n}"))
    assert [worker.call(handles) for worker in workers] == [["h0"], ["h1"]]
    for worker in workers:
        worker.stop()
