"""Online copies: consistent, complete or not there, and no burden to whom they are made of."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from gevent.monkey import get_original
from sqlite_utils import Database
from support import Runtimes, in_thread, opened_runtimes, run_script, texts, topic, until  # noqa: F401 - a fixture

from palaver import DatabaseInUse, InvalidInput, Runtime, RuntimeClosed, ScriptedModel, StorageError
from palaver.copies import backup_database
from palaver.offline import offline, verify_database
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence import backup
from persistence.committer import Committer
from persistence.database import close_database, open_database
from persistence.inline import InlineWorker
from persistence.sessions import list_sessions, open_session
from persistence.sources import seeded_sources
from persistence.worker import DatabaseWorker

allocate_lock = get_original("_thread", "allocate_lock")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of small files take many steps, too."""
    monkeypatch.setattr(backup, "PAGES_AT_ONCE", 4)
    monkeypatch.setattr(backup, "SYNC_EVERY", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def worker(path: Path) -> Iterator[DatabaseWorker]:
    worker = DatabaseWorker(path)
    worker.start()
    for number in range(100):
        worker.submit(session(f"before {number}"))
    yield worker
    worker.stop()


def session(handle: str) -> Callable[[Database], None]:
    def job(db: Database) -> None:
        opened = open_session(
            db,
            agent="a",
            sender="s",
            topic=handle,
            handle=handle,
            at=1.0,
            scope="s",
            description=handle * 200,
        )
        assert opened is not None

    return job


def handles(path: Path) -> set[str]:
    with offline(path) as db:
        return {each.handle for each in list_sessions(db)}


class Asked:
    """A copy that a worker was asked for: what it said, waited for in this native thread."""

    def __init__(self, worker: Any, to: Path, progress: Callable[[int, int], object] | None = None) -> None:
        self.answers: list[tuple[object, BaseException | None]] = []
        self._answered = allocate_lock()
        self._answered.acquire()
        self.give_up = worker.backup(to, self._answer, progress)

    def _answer(self, value: object, error: BaseException | None) -> None:
        self.answers.append((value, error))
        self._answered.release()

    def outcome(self) -> BaseException | None:
        self._answered.acquire()
        ((value, error),) = self.answers
        assert value is None
        return error


def left_beside(path: Path) -> list[str]:
    known = {path.name, path.name + "-wal"}
    return sorted(name for name in os.listdir(path.parent) if name not in known)


# -- the worker ----------------------------------------------------------------------------------------


def test_a_copy_holds_what_was_submitted_before_it_and_is_whole(
    worker: DatabaseWorker, path: Path, tmp_path: Path
) -> None:
    asked = Asked(worker, tmp_path / "copy.db")
    assert asked.outcome() is None
    assert handles(tmp_path / "copy.db") == {f"before {number}" for number in range(100)}
    assert verify_database(tmp_path / "copy.db") == []
    assert left_beside(path) == ["copy.db"]


def test_commits_go_on_while_a_copy_is_made_and_the_copy_is_of_one_moment(
    worker: DatabaseWorker, tmp_path: Path
) -> None:
    during: list[str] = []
    committed_at: list[int] = []

    def write(done: int, total: int) -> None:  # in the worker's thread, between two steps
        assert done < total
        for _ in range(3):
            during.append(f"during {len(during)}")
            worker.submit(session(during[-1]), lambda *_: committed_at.append(asked_steps[0]))
        asked_steps[0] += 1

    asked_steps = [0]
    asked = Asked(worker, tmp_path / "copy.db", write)
    assert asked.outcome() is None
    assert asked_steps[0] > 10
    # Written at one step, committed at the next, not after the whole copy.
    assert committed_at[:6] == [1, 1, 1, 2, 2, 2]
    found = handles(tmp_path / "copy.db")
    in_order = [f"before {number}" for number in range(100)] + during
    assert found == {*in_order[: len(found)]}, "a copy of one moment: no commit without those before it"
    assert len(found) > 100 + 3 * 5
    assert verify_database(tmp_path / "copy.db") == []


def test_what_is_rolled_back_while_a_copy_is_made_is_not_in_it(
    worker: DatabaseWorker, tmp_path: Path
) -> None:
    worker.call(lambda db: db.execute("PRAGMA cache_size = 10").fetchall())  # so that it reaches the WAL

    def spill(db: Database) -> None:
        db.execute("UPDATE memory_entries SET content = content || 'lost'")
        raise ValueError("no")

    steps: list[int] = []

    def change(done: int, _total: int) -> None:
        steps.append(done)
        if len(steps) in (3, 6):
            worker.submit(spill)

    assert Asked(worker, tmp_path / "copy.db", change).outcome() is None
    assert len(steps) > 6
    with offline(tmp_path / "copy.db") as db:
        assert db.execute("SELECT count(*) FROM memory_entries WHERE content LIKE '%lost'").fetchall() == [
            (0,)
        ]
    assert verify_database(tmp_path / "copy.db") == []


def test_two_copies_at_once_are_made_one_after_the_other(worker: DatabaseWorker, tmp_path: Path) -> None:
    both = [Asked(worker, tmp_path / name) for name in ("one.db", "two.db")]
    assert [asked.outcome() for asked in both] == [None, None]
    assert handles(tmp_path / "one.db") == handles(tmp_path / "two.db")


def test_a_copy_that_is_given_up_leaves_nothing(worker: DatabaseWorker, path: Path, tmp_path: Path) -> None:
    asked = Asked(worker, tmp_path / "copy.db", lambda _done, _total: asked.give_up())
    assert "given up" in str(asked.outcome())
    assert left_beside(path) == []


def test_a_worker_that_stops_ends_its_copy_and_commits_the_rest(path: Path, tmp_path: Path) -> None:
    worker = DatabaseWorker(path)
    worker.start()
    for number in range(100):
        worker.submit(session(f"before {number}"))

    def stop(_done: int, _total: int) -> None:
        if not stopping:
            stopping.append(True)
            worker.submit(session("last"))
            worker._stopping = True  # noqa: SLF001 - `stop` itself would wait for this very thread

    stopping: list[bool] = []
    asked = Asked(worker, tmp_path / "copy.db", stop)
    assert "closed before its copy" in str(asked.outcome())
    worker.stop()
    assert left_beside(path) == []
    assert "last" in handles(path)
    with pytest.raises(StorageError, match="stopped"):
        worker.backup(tmp_path / "copy.db")


def test_a_progress_that_raises_is_logged_and_harms_nothing(
    worker: DatabaseWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    def fail(_done: int, _total: int) -> None:
        raise ZeroDivisionError

    assert Asked(worker, tmp_path / "copy.db", fail).outcome() is None
    assert "progress" in caplog.text
    assert verify_database(tmp_path / "copy.db") == []


def test_progress_grows_to_the_end(worker: DatabaseWorker, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    assert Asked(worker, tmp_path / "copy.db", lambda *each: told.append(each)).outcome() is None
    assert len(told) > 10
    assert told == sorted(told)
    assert all(0 < done < total for done, total in told)


# -- targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_an_existing_target_is_refused_and_left_alone(
    worker: DatabaseWorker, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "copy.db"
    match kind:
        case "file":
            target.write_text("mine")
        case "directory":
            target.mkdir()
        case _:
            target.symlink_to("nowhere")
    asked = Asked(worker, target)
    assert "exists already" in str(asked.outcome())
    assert target.is_symlink() or target.is_dir() or target.read_text() == "mine"


def test_a_target_that_is_made_meanwhile_is_not_overwritten(
    worker: DatabaseWorker, path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    asked = Asked(worker, target, lambda *_: target.write_text("mine"))
    assert "made by someone else" in str(asked.outcome())
    assert target.read_text() == "mine"
    assert left_beside(path) == ["copy.db"]


@pytest.mark.parametrize("companion", ["-wal", "-journal", "-shm"])
def test_a_wal_without_its_file_beside_the_target_is_refused(
    worker: DatabaseWorker, tmp_path: Path, companion: str
) -> None:
    (tmp_path / f"copy.db{companion}").write_bytes(b"of another file")
    assert "which SQLite would take for a part" in str(Asked(worker, tmp_path / "copy.db").outcome())


def test_a_target_without_a_directory_says_so(worker: DatabaseWorker, tmp_path: Path) -> None:
    assert "no directory" in str(Asked(worker, tmp_path / "nowhere" / "copy.db").outcome())
    assert "is no path" in str(Asked(worker, Path("a\0b")).outcome())


def test_a_copy_may_be_read_by_those_who_may_read_the_file(
    worker: DatabaseWorker, path: Path, tmp_path: Path
) -> None:
    path.chmod(0o640)
    assert Asked(worker, tmp_path / "copy.db").outcome() is None
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o640


def test_where_there_are_no_links_a_copy_is_renamed(
    worker: DatabaseWorker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_source: object, _target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert Asked(worker, tmp_path / "copy.db").outcome() is None
    assert verify_database(tmp_path / "copy.db") == []
    assert left_beside(path) == ["copy.db"]


# -- faults --------------------------------------------------------------------------------------------


class Failing(Committer):
    """A commit fails for good once this is set."""

    broken = False

    def _commit(self, db: Database) -> None:
        if self.broken:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        super()._commit(db)


def test_a_full_disk_at_the_target_leaves_nothing_there_and_does_not_touch_the_source(
    worker: DatabaseWorker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect

    def small(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = real(*args, **options)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    monkeypatch.setattr(backup.sqlite3, "connect", small)
    error = Asked(worker, tmp_path / "copy.db").outcome()
    monkeypatch.undo()
    assert isinstance(error, StorageError)
    assert "disk is full" in str(error)
    assert left_beside(path) == []
    worker.call(session("after"))
    assert worker.stats.failed is None
    assert Asked(worker, tmp_path / "copy.db").outcome() is None
    assert "after" in handles(tmp_path / "copy.db")


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_a_disk_that_fails_to_sync_the_copy_leaves_nothing_and_stops_nothing(
    worker: DatabaseWorker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)

    def fail(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, call, fail)
    error = Asked(worker, tmp_path / "copy.db").outcome()
    monkeypatch.undo()
    assert "Input/output error" in str(error)
    assert left_beside(path) == []
    worker.call(session("after"))
    assert worker.stats.failed is None


def test_a_directory_that_cannot_be_synced_leaves_no_copy(
    worker: DatabaseWorker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    assert "Input/output error" in str(Asked(worker, tmp_path / "copy.db").outcome())
    assert left_beside(path) == []


def test_a_database_that_fails_while_it_is_copied_ends_the_copy(path: Path, tmp_path: Path) -> None:
    committer = Failing(path)
    worker = DatabaseWorker(path, committer=committer)
    worker.start()
    for number in range(50):
        worker.submit(session(f"before {number}"))

    def break_it(_done: int, _total: int) -> None:
        committer.broken = True
        with contextlib.suppress(StorageError):
            worker.submit(session("lost"))

    error = Asked(worker, tmp_path / "copy.db", break_it).outcome()
    assert isinstance(error, StorageError)
    assert worker.stats.failed is not None
    assert left_beside(path) == []
    with pytest.raises(StorageError):
        worker.backup(tmp_path / "copy.db")
    worker.stop()


_TOO_LARGE = """
import resource, signal, sys
from persistence.database import open_database, close_database
from persistence.errors import StorageError
from palaver.copies import backup_database
path, to = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 4096, 20 * 4096))
try:
    backup_database(path, to)
except StorageError as error:
    print(error)
"""


def test_a_real_write_that_fails_in_the_target_is_told_in_words(worker: DatabaseWorker, path: Path) -> None:
    worker.stop()
    done = run_script(_TOO_LARGE, path, path.parent / "copy.db")
    assert "could not be written" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    assert left_beside(path) == []
    assert verify_database(path) == []


_KILLED = """
import os, sys
from palaver.copies import backup_database
from persistence import backup
backup.PAGES_AT_ONCE = 4
steps = []
def die(done, total):
    steps.append(done)
    if len(steps) == 5:
        os.kill(os.getpid(), 9)
backup_database(sys.argv[1], sys.argv[2], progress=die)
"""


def test_a_process_that_is_killed_leaves_nothing_that_looks_like_a_copy(
    worker: DatabaseWorker, path: Path
) -> None:
    worker.stop()
    assert run_script(_KILLED, path, path.parent / "copy.db").returncode == -9
    (left,) = left_beside(path)
    assert left.startswith(".palaver-")
    assert left.endswith(".part")
    assert verify_database(path) == []
    backup_database(path, path.parent / "copy.db")
    assert verify_database(path.parent / "copy.db") == []


# -- offline, inline -----------------------------------------------------------------------------------


def test_a_file_that_nobody_has_open_is_copied_and_one_in_use_is_not(
    worker: DatabaseWorker, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatabaseInUse):
        in_thread(backup_database, path, tmp_path / "copy.db")
    assert left_beside(path) == []
    worker.stop()
    told: list[tuple[int, int]] = []
    backup_database(path, tmp_path / "copy.db", progress=lambda *each: told.append(each))
    assert handles(path) == handles(tmp_path / "copy.db")
    assert len(told) > 10


def test_a_progress_that_raises_ends_a_copy_made_offline(
    worker: DatabaseWorker, path: Path, tmp_path: Path
) -> None:
    worker.stop()

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup_database(path, tmp_path / "copy.db", progress=interrupt)
    assert left_beside(path) == []


def test_the_copy_of_a_copy_is_the_same_file(worker: DatabaseWorker, path: Path, tmp_path: Path) -> None:
    worker.stop()
    backup_database(path, tmp_path / "one.db")
    backup_database(tmp_path / "one.db", tmp_path / "two.db")
    assert (tmp_path / "one.db").read_bytes() == (tmp_path / "two.db").read_bytes()


def test_an_inline_worker_copies_after_what_waits(path: Path, tmp_path: Path) -> None:
    calls: list[Callable[[], None]] = []
    worker = InlineWorker(path, schedule=lambda _seconds, function: calls.append(function))
    worker.start()
    worker.submit(session("one"))
    asked = Asked(worker, tmp_path / "copy.db")
    worker.submit(session("two"))
    assert asked.answers == []
    while calls:
        calls.pop(0)()
    assert asked.outcome() is None
    assert handles(tmp_path / "copy.db") == {"one", "two"}
    asked = Asked(worker, tmp_path / "copy.db")
    worker.stop()
    assert "exists already" in str(asked.outcome())
    with pytest.raises(StorageError):
        worker.backup(tmp_path / "again.db")


# -- the runtime ---------------------------------------------------------------------------------------


def test_a_runtime_copies_its_file_while_it_works(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open(ScriptedModel(lambda request: request.messages[-1]["content"] * 50))
    cids = [topic(rt, f"topic {number}") for number in range(20)]
    for cid in cids:
        rt.send(cid, "said before " * 50)
    told: list[int] = []
    copying = gevent.spawn(rt.backup, tmp_path / "copy.db", lambda done, _total: told.append(done))
    sent = 0
    while not copying.ready():  # at least once: it has not begun
        rt.send(cids[sent % len(cids)], f"said meanwhile {sent}")
        sent += 1
    copying.get()
    assert told
    assert told == sorted(told)
    assert verify_database(tmp_path / "copy.db") == []
    copy = runtimes.open(path=tmp_path / "copy.db")
    assert len(copy.sessions()) == 20
    for stored in copy.sessions():
        said = texts(copy.transcript(stored.handle))
        assert said[0] == ("user", "said before " * 50)
        assert texts(rt.transcript(stored.handle))[: len(said)] == said


def test_a_database_in_memory_is_copied_to_a_file(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open(path=":memory:")
    rt.send(topic(rt), "hello")
    rt.backup(tmp_path / "copy.db")
    assert verify_database(tmp_path / "copy.db") == []
    copy = runtimes.open(path=tmp_path / "copy.db")
    assert texts(copy.transcript(copy.sessions()[0].handle)) == [("user", "hello"), ("assistant", "hello")]


def test_a_copy_that_cannot_be_made_harms_nothing(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    with pytest.raises(StorageError, match="exists already"):
        rt.backup(rt.path)
    with pytest.raises(InvalidInput):
        rt.backup(17)  # type: ignore[arg-type]
    assert rt.send(cid, "still here").text == "still here"
    rt.shutdown()
    with pytest.raises(RuntimeClosed):
        rt.backup(tmp_path / "copy.db")


def test_a_caller_that_is_killed_gives_its_copy_up(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open()
    for number in range(50):
        rt.send(topic(rt, f"topic {number}"), "x" * 2000)
    began = Signal()
    with runtimes.held_database(rt):
        copying = gevent.spawn(rt.backup, tmp_path / "copy.db", lambda *_: began.set())
        gevent.sleep(0)
        copying.kill()
    assert rt.sessions()  # the database has come by, though perhaps between two steps of the copy
    until(lambda: not [name for name in os.listdir(tmp_path) if name.endswith(".part")])
    assert not (tmp_path / "copy.db").exists()


def test_a_shutdown_does_not_wait_for_a_copy(runtimes: Runtimes, tmp_path: Path) -> None:
    rt = runtimes.open()
    for number in range(50):
        rt.send(topic(rt, f"topic {number}"), "x" * 2000)
    with runtimes.held_database(rt):
        copying = gevent.spawn(rt.backup, tmp_path / "copy.db")
        gevent.sleep(0)
        down = gevent.spawn(rt.shutdown)
        until(lambda: runtimes.worker(rt)._stopping)  # noqa: SLF001 - when it has reached the worker
    down.get()
    with pytest.raises(StorageError, match="closed before"):
        copying.get()
    assert not (tmp_path / "copy.db").exists()


def test_a_simulated_runtime_makes_copies_too(tmp_path: Path) -> None:
    def live() -> None:
        worker = InlineWorker(tmp_path / "a.db", schedule=gevent.spawn_later)
        clock = VirtualClock()
        sources = seeded_sources(clock, 1)
        with Runtime.open(tmp_path / "a.db", ScriptedModel(), worker=worker, sources=sources) as rt:
            from support import CRAB

            rt.add_agent(CRAB)
            rt.send(topic(rt), "hello")
            rt.backup(tmp_path / "copy.db")

    run_virtual(live)
    assert verify_database(tmp_path / "copy.db") == []
    db = open_database(tmp_path / "copy.db")
    assert len(list_sessions(db)) == 1
    close_database(db)
