"""Broken disks, damaged files, two hosts on one file: refused in words that help, and nothing made worse."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from sqlite_utils import Database
from support import ROOT, PuppetModel, Runtimes, opened_runtimes, run_script, topic

from actors.bell import bell
from persistence import holders, turns
from persistence.batches import MOST_CHARS, Item, portions, text_of
from persistence.database import abandon_database, close_database, open_database
from persistence.errors import DatabaseFailed, DatabaseInUse, DatabaseTooNew, DatabaseUnusable, StorageError
from persistence.inline import InlineWorker
from persistence.migrations import NAMES
from persistence.records import HistoryEntry, TurnRow
from persistence.sessions import open_session
from persistence.verify import verify
from persistence.worker import Committer, DatabaseWorker
from persistence.writes import NewEntry, NewEvent, WriteSet

__all__ = ["opened_runtimes"]

PAGE = 4096
MIB = 1 << 20

allocate_lock = get_original("_thread", "allocate_lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


def session(db: Database, handle: str = "h") -> int:
    opened = open_session(
        db, agent="a", sender="s", topic=handle, handle=handle, at=1.0, scope="s", description="d"
    )
    assert opened is not None
    return opened[0].id


def events(session_id: int, *bodies: str) -> WriteSet:
    return WriteSet(events=tuple(NewEvent(session_id, 1, 1.0, body) for body in bodies))


def count(db: Database) -> int:
    return int(db.execute("SELECT count(*) FROM events").fetchall()[0][0])


def crashed(path: Path, code: str = "") -> None:
    """Leave a file as a killed process leaves it: what was committed last is in the WAL alone."""
    died = run_script(_CRASH.replace("pass", code or "pass"), path)
    assert died.returncode == -9, died.stderr
    assert path.with_name(path.name + "-wal").stat().st_size > 0


_CRASH = """
import os, signal, sys
from persistence.database import open_database
from persistence.sessions import open_session
db = open_database(sys.argv[1])
open_session(db, agent="a", sender="s", topic="t", handle="in the WAL", at=1.0, scope="s", description="d")
pass
db.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(directory.iterdir())}


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


# -- two hosts on one file ---------------------------------------------------------------------------------


@pytest.fixture
def host(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the file open."""
    code = """
import sys
from persistence.database import open_database
db = open_database(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_which_one_holds_the_file(path: Path, host: subprocess.Popen[str]) -> None:
    with pytest.raises(
        DatabaseInUse, match=f"agents.db' is in use by process {host.pid}; stop that"
    ) as caught:
        open_database(path)
    assert caught.value.pid == host.pid
    worker = DatabaseWorker(path)
    with pytest.raises(DatabaseInUse) as caught:
        worker.start()
    assert caught.value.pid == host.pid


def test_the_next_process_opens_as_soon_as_the_holder_is_killed(
    path: Path, host: subprocess.Popen[str]
) -> None:
    os.kill(host.pid, signal.SIGKILL)
    host.wait()
    close_database(open_database(path))


def test_a_reader_of_another_program_is_named(path: Path) -> None:
    close_database(open_database(path))
    code = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute("BEGIN")
conn.execute("SELECT count(*) FROM sessions").fetchall()
print("reads", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        with pytest.raises(DatabaseInUse) as caught:
            open_database(path)
        assert caught.value.pid == reader.pid
        reader.communicate("")


def test_a_file_that_this_process_has_open_is_said_to_be(path: Path, tmp_path: Path) -> None:
    db = open_database(path)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(DatabaseInUse, match=rf"in use by this process \({os.getpid()}\)") as caught:
            open_database(name)
        assert caught.value.pid == os.getpid()
    close_database(db)
    assert holders.holder(str(path)) is None
    close_database(open_database(link))


def test_this_process_is_known_as_the_holder_where_there_is_no_proc(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "LOCKS", "/nowhere/locks")
    db = open_database(path)
    with pytest.raises(DatabaseInUse) as caught:
        open_database(path)
    assert caught.value.pid == os.getpid()
    close_database(db)


def test_a_holder_that_cannot_be_found_out_is_another_process(
    path: Path, host: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "LOCKS", "/nowhere/locks")
    with pytest.raises(DatabaseInUse, match="in use by another process; stop that one first") as caught:
        open_database(path)
    assert caught.value.pid is None


def test_a_database_that_was_dropped_unclosed_is_held_by_nobody(path: Path) -> None:
    db = open_database(path)
    db.conn.close()
    del db
    close_database(open_database(path))


def test_a_forked_child_is_not_taken_for_the_holder(path: Path) -> None:
    code = """
import os, sys
from persistence.database import open_database
from persistence.errors import DatabaseInUse
db = open_database(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        open_database(sys.argv[1])
    except DatabaseInUse as error:
        print(error.pid == os.getppid(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    said = run_script(code, path)
    assert said.stdout == "True\n", said.stderr


def test_looking_for_the_holder_lets_go_of_no_lock(path: Path) -> None:
    db = open_database(path)
    holders.holder(str(path))
    with pytest.raises(DatabaseInUse):
        open_database(path)
    said = run_script(
        "import sys; from persistence.database import open_database; open_database(sys.argv[1])", path
    )
    assert "DatabaseInUse" in said.stderr
    close_database(db)


# -- damaged files -----------------------------------------------------------------------------------------


def filled(path: Path) -> bytes:
    """A sound, closed file of some dozen pages."""
    worker = DatabaseWorker(path)
    worker.start()
    for number in range(8):
        id_ = worker.call(partial(session, handle=f"h{number}"))
        worker.write(events(id_, *("x" * 700 for _ in range(8))))
    worker.stop()
    return path.read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "the header overwritten": lambda whole: b"\0" * 100 + whole[100:],
    "the magic word overwritten": lambda whole: b"\xff" * 16 + whole[16:],
    "half of it cut off": lambda whole: whole[: len(whole) // 2],
    "cut within a page": lambda whole: whole[: 2 * PAGE + 100],
    "one page left": lambda whole: whole[:PAGE],
    "half a header left": lambda whole: whole[:50],
    "the schema overwritten": lambda whole: whole[:100] + b"\xee" * (PAGE - 100) + whole[PAGE:],
    "a text file": lambda _whole: b"Dear diary,\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_with_a_way_out_and_left_as_it_is(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(damage(filled(path)))
    before = contents(path.parent)
    for _ in range(2):
        with pytest.raises(DatabaseUnusable) as caught:
            open_database(path)
        said = str(caught.value)
        assert repr(str(path)) in said
        assert "restore a backup" in said
        assert f"sqlite3 {path} .recover | sqlite3 {path}.recovered" in said
        assert f"palaver verify {path}.recovered" in said
        assert contents(path.parent) == before


def test_the_way_out_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "it's my file.db"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DatabaseUnusable) as caught:
        open_database(path)
    command = str(caught.value).split("save what can still be read: ")[1].split(", then")[0]
    said = subprocess.run(
        ["sh", "-c", command.replace("sqlite3 ", "printf '%s\\n' ")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines()[0].endswith("it's my file.db.recovered")


def test_a_page_overwritten_anywhere_is_refused_or_found_by_verify(path: Path) -> None:
    whole = filled(path)
    rng = random.Random(7)
    found = refused = 0
    for number in range(len(whole) // PAGE):
        path.write_bytes(whole[: number * PAGE] + rng.randbytes(PAGE) + whole[(number + 1) * PAGE :])
        try:
            db = open_database(path)
        except DatabaseUnusable:
            refused += 1
            continue
        assert verify(db) != [], f"page {number + 1} was overwritten, and nothing noticed"
        abandon_database(db)
        found += 1
    assert refused > 0
    assert found > 10


def test_a_page_that_is_damaged_stops_the_worker_when_it_is_read(path: Path) -> None:
    path.write_bytes(damaged_events(path))
    worker = DatabaseWorker(path)
    worker.start()
    with pytest.raises(DatabaseFailed, match=r"not used any more.*malformed; restore a backup.*\.recover"):
        worker.call(lambda db: db.execute("SELECT body FROM events").fetchall())
    with pytest.raises(DatabaseFailed, match="restore a backup"):
        worker.call(lambda db: db.execute("SELECT 1").fetchall())
    worker.stop()


def damaged_events(path: Path) -> bytes:
    """A file that opens, and whose table of events cannot be read."""
    filled(path)
    db = open_database(path)
    ((root,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchall()
    close_database(db)
    whole = path.read_bytes()
    return whole[: (root - 1) * PAGE] + b"\xab" * PAGE + whole[root * PAGE :]


def test_a_refused_file_keeps_its_wal(path: Path, tmp_path: Path) -> None:
    newer = """db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
        "VALUES ('palaver', 'm999_x', 'now')"); db.execute("DELETE FROM _sqlite_migrations WHERE name = ?",
        ["{last}"])"""
    crashed(path, " ".join(newer.format(last=NAMES[-1]).split()))
    before = contents(tmp_path)
    with pytest.raises(DatabaseTooNew):
        open_database(path)
    assert contents(tmp_path) == before


def test_the_wal_of_another_database_is_refused_where_it_shows_and_never_moved_into_the_file(
    path: Path, tmp_path: Path
) -> None:
    whole = filled(path)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("CREATE TABLE cheeses (name TEXT)")
    other.commit()
    wal = path.with_name(path.name + "-wal")
    wal.write_bytes((tmp_path / "other.db-wal").read_bytes())
    other.close()
    before = contents(tmp_path)
    with pytest.raises(DatabaseUnusable):
        open_database(path)
    assert contents(tmp_path) == before
    wal.unlink()
    assert path.read_bytes() == whole
    close_database(open_database(path))


def test_a_damaged_file_keeps_its_wal_too(path: Path) -> None:
    filled(path)
    crashed(path)
    path.write_bytes(path.read_bytes()[:PAGE])
    before = contents(path.parent)
    with pytest.raises(DatabaseUnusable, match="is damaged"):
        open_database(path)
    assert contents(path.parent) == before


@pytest.mark.parametrize("left", [None, b""])
def test_a_wal_whose_file_is_missing_or_empty_is_kept(path: Path, left: bytes | None) -> None:
    crashed(path)
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    before = contents(path.parent)
    with pytest.raises(
        DatabaseUnusable, match=r"its last commits are there, in '.*agents\.db-wal': put the file back"
    ):
        open_database(path)
    assert contents(path.parent) == before
    path.write_bytes(whole)
    db = open_database(path)
    assert db.execute("SELECT handle FROM sessions").fetchall() == [("in the WAL",)]
    close_database(db)


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.touch()
    close_database(open_database(path))


# -- failures for good -------------------------------------------------------------------------------------


class Broken(Committer):
    """Commits or checkpoints that fail on demand."""

    at_commit: BaseException | None = None
    at_checkpoint: BaseException | None = None
    checkpoints: int = 0

    def _commit(self, db: Database) -> None:
        if self.at_commit is not None:
            raise self.at_commit
        super()._commit(db)

    def _move_wal(self, db: Database, mode: str) -> bool:
        self.checkpoints += 1
        if self.at_checkpoint is not None:
            raise self.at_checkpoint
        return super()._move_wal(db, mode)


class Told(list[Any]):
    """What a callback was called with; `first` is a lock that is free once it was."""

    def __init__(self) -> None:
        super().__init__()
        self.first = allocate_lock()
        self.first.acquire()

    def __call__(self, *what: Any) -> None:
        self.append(what)
        if len(self) == 1:
            self.first.release()


def test_a_failed_fsync_answers_everybody_and_acknowledges_nothing(path: Path) -> None:
    committer = Broken(path)
    hub = gevent.get_hub()
    failed: list[DatabaseFailed] = []
    worker = DatabaseWorker(path, notify=bell(), committer=committer, on_failure=failed.append)
    hub.threadpool.apply(worker.start)
    first = gevent.event.AsyncResult()
    worker.submit(session, lambda value, error: first.set((value, error)))
    assert first.get(timeout=10) == (1, None)
    committer.at_commit = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)
    answers: list[gevent.event.AsyncResult] = []
    for number in range(500):
        answer = gevent.event.AsyncResult()
        answers.append(answer)
        try:
            if number % 2:
                worker.write(events(1, "lost"), lambda _value, error, answer=answer: answer.set(error))
            else:
                worker.submit(count, lambda _value, error, answer=answer: answer.set(error))
        except DatabaseFailed as error:
            answer.set(error)
        if number % 50 == 0:
            gevent.sleep(0)
    errors = [answer.get(timeout=10) for answer in answers]
    assert {type(error) for error in errors} == {DatabaseFailed}
    assert all(repr(str(path)) in str(error) and "check the disk" in str(error) for error in errors)
    assert len(failed) == 1
    assert failed[0].__cause__ is committer.at_commit
    hub.threadpool.apply(worker.stop)
    db = open_database(path)
    assert count(db) == 0
    close_database(db)


def test_what_was_acknowledged_before_a_failure_is_still_in_the_wal(path: Path) -> None:
    committer = Broken(path)
    worker = DatabaseWorker(path, committer=committer)
    worker.start()
    worker.call(session)
    committer.at_commit = sqlite_error(sqlite3.SQLITE_IOERR_WRITE)
    with pytest.raises(DatabaseFailed):
        worker.call(partial(session, handle="lost"))
    wal = path.with_name(path.name + "-wal")
    before, main = wal.read_bytes(), path.read_bytes()
    worker.stop()
    assert (wal.read_bytes(), path.read_bytes()) == (before, main), "an uncertain WAL is not moved anywhere"
    db = open_database(path)
    assert db.execute("SELECT handle FROM sessions").fetchall() == [("h",)]
    close_database(db)


def test_a_checkpoint_that_fails_is_told_although_nobody_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.worker.IDLE_S", 0.01)
    committer, told = Broken(path), Told()
    committer.at_checkpoint = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)
    worker = DatabaseWorker(path, committer=committer, on_failure=told)
    worker.start()
    assert told.first.acquire(True, 10)
    ((error,),) = told
    assert isinstance(error, DatabaseFailed)
    assert "injected" in str(error)
    with pytest.raises(DatabaseFailed):
        worker.call(count)
    worker.stop()
    assert len(told) == 1


def test_a_checkpoint_that_the_disk_has_no_room_for_is_tried_again_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.worker.IDLE_S", 0.01)
    tried = allocate_lock()
    tried.acquire()

    class Watched(Broken):
        def checkpoint(self) -> None:
            super().checkpoint()
            tried.release()

    committer, told = Watched(path), Told()
    committer.at_checkpoint = sqlite_error(sqlite3.SQLITE_FULL)
    worker = DatabaseWorker(path, committer=committer, on_failure=told)
    worker.start()
    assert tried.acquire(True, 10)
    worker.call(session)
    committer.at_checkpoint = None
    worker.call(partial(session, handle="again"))
    worker.stop()
    assert told == []
    assert not path.with_name(path.name + "-wal").exists()


def test_a_wal_that_is_removed_while_it_is_in_use_stops_the_worker_and_loses_nothing(path: Path) -> None:
    worker = DatabaseWorker(path)
    worker.start()
    worker.call(session)
    path.with_name(path.name + "-wal").unlink()
    worker.call(partial(session, handle="last"))
    with pytest.raises(DatabaseFailed, match=r"agents\.db-wal' was removed while it was in use"):
        worker.call(count)
    worker.stop()
    db = open_database(path)
    assert db.execute("SELECT handle FROM sessions").fetchall() == [("h",), ("last",)]
    assert verify(db) == []
    close_database(db)


def test_whatever_breaks_in_the_thread_every_waiting_caller_is_answered(path: Path) -> None:
    class Exhausted(Committer):
        def _run(self, batch: Any) -> None:
            raise MemoryError("none left")

    told, answers = Told(), Told()
    worker = DatabaseWorker(path, committer=Exhausted(path), on_failure=told)
    worker.start()
    for _ in range(3):
        try:
            worker.submit(count, answers)
        except DatabaseFailed as error:
            answers(None, error)
    worker.stop()
    assert len(answers) == 3
    assert {type(error) for _, error in answers} == {DatabaseFailed}
    assert len(told) == 1


def test_an_inline_worker_tells_its_failure_once(path: Path) -> None:
    committer, told = Broken(path), Told()
    scheduled: list[Callable[[], None]] = []
    worker = InlineWorker(
        path,
        schedule=lambda _delay, call: scheduled.append(call),
        committer=committer,
        on_failure=told,
    )
    worker.start()
    committer.at_commit = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)
    answers = Told()
    worker.submit(count, answers)
    while scheduled:
        scheduled.pop(0)()
    assert [type(error) for _, error in answers] == [DatabaseFailed]
    worker.stop()
    assert len(told) == 1


# -- real disks --------------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
from persistence.errors import DatabaseFailed, StorageError
from persistence.sessions import open_session
from persistence.worker import DatabaseWorker
worker = DatabaseWorker(sys.argv[1])
worker.start()
worker.call(lambda db: open_session(db, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s",
                                    description="d"))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for number in range(10_000):
    body = str(number) + "x" * 20_000
    try:
        worker.call(lambda db: db.execute(
            "INSERT INTO events (session_id, turn_id, at, body) VALUES (1, 1, 1, ?)", [body]) and None)
    except StorageError as error:
        print(type(error).__name__, error, flush=True)
        break
    print(number, flush=True)
try:
    worker.call(lambda db: db.execute("SELECT count(*) FROM events").fetchall())
except StorageError as error:
    print("then", type(error).__name__, flush=True)
worker.stop()
"""


@pytest.mark.parametrize("limit", [700_000, 700_001, 1_234_567])
def test_a_write_that_the_system_refuses_stops_the_worker_and_keeps_what_was_acknowledged(
    path: Path, limit: int
) -> None:
    said = run_script(_LIMITED, path, limit)
    *acknowledged, failure, then = said.stdout.splitlines()
    assert failure.startswith(f"DatabaseFailed the database {str(path)!r} is not used any more"), said
    assert "disk I/O error" in failure
    assert then == "then DatabaseFailed"
    db = open_database(path)
    stored = [body.rstrip("x") for (body,) in db.execute("SELECT body FROM events ORDER BY id").fetchall()]
    assert stored == acknowledged
    assert len(stored) > 10
    assert verify(db) == []
    close_database(db)


_SMALL_DISK = """
import os, sys
from persistence.errors import DatabaseFailed, StorageError
from persistence.verify import verify
from persistence.worker import DatabaseWorker
folder = sys.argv[1]
path = os.path.join(folder, "agents.db")
ballast = os.path.join(folder, "ballast")
with open(ballast, "wb") as file:
    file.write(bytes(1 << 20))
worker = DatabaseWorker(path)
worker.start()

def put(number):
    worker.call(lambda db: db.execute(
        "INSERT INTO deleted_sessions (handle, last_turn, last_steer) VALUES (?, 0, 0)",
        [f"{number:09}" + "x" * 30_000]) and None)

def stored():
    return [int(handle[:9]) for (handle,) in worker.call(
        lambda db: db.execute("SELECT handle FROM deleted_sessions ORDER BY handle").fetchall())]

acknowledged, refused, said = [], 0, set()
for number in range(200):
    try:
        put(number)
    except StorageError as error:
        assert not isinstance(error, DatabaseFailed), error
        refused += 1
        said.add(str(error))
        assert stored() == acknowledged, "reads go on"
    else:
        acknowledged.append(number)
assert len(acknowledged) > 10 and refused > 10, (len(acknowledged), refused)
assert len(said) == 1 and path in min(said) and "is full; make room on the disk" in min(said), said
os.unlink(ballast)
put(200)
acknowledged.append(200)
assert stored() == acknowledged
assert worker.call(verify) == []
worker.stop()
worker = DatabaseWorker(path)
worker.start()
assert stored() == acknowledged
worker.stop()
print("good", len(acknowledged), refused)
"""


def test_a_disk_that_is_really_full_fails_the_writes_and_not_the_reads_until_there_is_room(
    tmp_path: Path,
) -> None:
    mount = f"mount -t tmpfs -o size=3m none {tmp_path} && exec {sys.executable} -c '{{}}' {tmp_path}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*inside, mount.format("pass")], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk can be mounted here")
    code = _SMALL_DISK.replace("'", '"')
    said = subprocess.run(
        [*inside, mount.format(code)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert said.stdout.startswith("good"), said.stderr


def test_a_full_disk_is_named_when_a_new_file_does_not_fit(path: Path) -> None:
    code = """
import resource, sys
from persistence.database import open_database
from persistence.errors import DatabaseUnusable
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    open_database(sys.argv[1])
except DatabaseUnusable as error:
    print(error)
"""
    said = run_script(code, path)
    assert f"{str(path)!r} cannot be opened: disk I/O error; check the disk" in said.stdout, said.stderr
    close_database(open_database(path))


# -- the WAL -----------------------------------------------------------------------------------------------


def test_trap_25_the_wal_stays_under_64_mb_with_large_rows_in_large_batches(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    sizes: list[int] = []

    class Measured(Committer):
        def _commit(self, db: Database) -> None:
            super()._commit(db)
            sizes.append(wal.stat().st_size)

    worker = DatabaseWorker(path, committer=Measured(path))
    worker.start()
    worker.call(session)
    body = "\N{CRAB}" * 100_000  # four bytes each
    for _ in range(6):
        for _ in range(60):  # 24 MB wait at once
            worker.write(events(1, body))
        worker.call(count)
    assert worker.call(count) == 360
    assert path.stat().st_size + wal.stat().st_size > 144 * 1000 * 1000
    assert max(sizes) < 64 * MIB
    worker.stop()
    assert not wal.exists()


def test_a_wal_that_sqlite_does_not_move_is_moved_by_us(path: Path) -> None:
    committer = Broken(path)
    worker = DatabaseWorker(path, committer=committer)
    worker.start()
    worker.call(session)
    worker.call(lambda db: db.execute("PRAGMA wal_autocheckpoint=0").fetchall())
    wal = path.with_name(path.name + "-wal")
    largest = 0
    for _ in range(90):
        worker.call(partial(put_events, bodies=["x" * 500_000] * 2))
        largest = max(largest, wal.stat().st_size)
    assert 30 * MIB < largest < 40 * MIB
    assert committer.checkpoints in (2, 3)
    committer.at_checkpoint = sqlite_error(sqlite3.SQLITE_IOERR_WRITE)
    with pytest.raises(DatabaseFailed, match="injected"):
        fill(worker)
    worker.stop()


def fill(worker: DatabaseWorker) -> None:
    for _ in range(60):
        worker.call(partial(put_events, bodies=["x" * 500_000] * 2))


def put_events(db: Database, bodies: list[str]) -> None:
    for body in bodies:
        db.execute("INSERT INTO events (session_id, turn_id, at, body) VALUES (1, 1, 1, ?)", [body])


def test_a_large_batch_is_cut_where_its_text_becomes_too_much() -> None:
    half = "x" * (MOST_CHARS // 2 - 2)
    row = TurnRow(1, 1, "s", half, "queued")
    entry = NewEntry(1, 0, 1, HistoryEntry("user", half), 1.0)
    works: list[Any] = [
        events(1, half),
        partial(turns.accept_keyed, row=row, agent="a", sender="s"),
        WriteSet(new_turns=(row,)),
        count,
        WriteSet(entries=(entry,)),
        WriteSet(entries=(entry, entry, entry)),
        count,
    ]
    batch = [Item(work) for work in works]
    cut = [list(part) for part in portions(batch)]
    assert [len(part) for part in cut] == [2, 3, 2]
    assert [item for part in cut for item in part] == batch
    assert [len(part) for part in portions([Item(count)] * 3)] == [3]
    assert text_of(events(1, "four", "five5")) == 9


def test_a_failure_in_one_part_of_a_batch_fails_that_part_and_what_follows(path: Path) -> None:
    committer = Broken(path)
    worker = DatabaseWorker(path, committer=committer)
    worker.start()
    worker.call(session)
    gate, begun = allocate_lock(), allocate_lock()
    gate.acquire()
    begun.acquire()

    def hold(_db: Database) -> None:
        begun.release()
        gate.acquire()

    worker.submit(hold)
    begun.acquire()
    answers = Told()
    half = "x" * (MOST_CHARS // 2 + 1)
    worker.write(events(1, half), answers)
    worker.write(events(1, half), answers)
    worker.submit(
        lambda _db: setattr(committer, "at_commit", sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)), answers
    )
    worker.write(events(1, half), answers)
    gate.release()
    worker.stop()
    assert [type(error) for _, error in answers] == [type(None), *[DatabaseFailed] * 3]
    db = open_database(path)
    assert count(db) == 1
    close_database(db)


def test_every_failure_is_a_storage_error() -> None:
    assert issubclass(DatabaseFailed, StorageError)
    assert DatabaseInUse("words").pid is None


# -- what a host sees --------------------------------------------------------------------------------------


def test_a_host_is_told_at_once_and_every_caller_gets_an_answer(runtimes: Runtimes) -> None:
    committers: list[Broken] = []

    def broken(path: Path | str) -> Broken:
        committers.append(Broken(path))
        return committers[0]

    failed = gevent.event.AsyncResult()
    model = PuppetModel()
    rt = runtimes.open(model, committer=broken, on_failure=failed.set)
    cid = topic(rt)
    running = rt.submit(cid, "running")
    asked = model.asked()
    queued = rt.submit(cid, "queued")
    committers[0].at_commit = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)
    with pytest.raises(DatabaseFailed):
        rt.submit(cid, "refused")
    assert isinstance(failed.get(), DatabaseFailed)
    asked.answer()
    for ticket in (running, queued):
        with pytest.raises(DatabaseFailed, match="check the disk and start again"):
            ticket.result()
    for call in (rt.sessions, partial(rt.switch_topic, "crab", "bob", "new", "d"), partial(rt.close, cid)):
        with pytest.raises(StorageError):
            call()
    rt.shutdown()
    again = runtimes.open(PuppetModel(), path=rt.path, recover="hold")
    assert [session.turns for session in again.unfinished()] == [2]


def test_the_command_line_ends_with_status_74_and_one_line(path: Path) -> None:
    lines = ["/topic work: about it", *(f"{number} " + "x" * 3_000 for number in range(100))]
    said = subprocess.run(
        ["sh", "-c", f"ulimit -f 400; exec {sys.executable} -m palaver chat --db {path}"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert said.returncode == 74, said.stderr
    (line,) = [line for line in said.stderr.splitlines() if "Error" in line]
    assert line.startswith(f"Error: the database {str(path)!r} is not used any more")
    assert "disk I/O error; check the disk and start again" in line
    db = open_database(path)
    assert verify(db) == []
    close_database(db)


def test_the_command_line_says_how_to_recover_a_damaged_file(path: Path) -> None:
    path.write_bytes(damaged_events(path))
    said = subprocess.run(
        [sys.executable, "-m", "palaver", "verify", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert said.returncode == 1
    assert f"sqlite3 {path} .recover" in said.stdout + said.stderr
