"""The recorded disk itself: what it sees, what it leaves, and that it finds a promise that is not kept."""

from __future__ import annotations

import _sqlite3
import os
import pickle
import random
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from crash.disk import NoRecorder, reachable_sqlite
from crash.disk_examiner import Desk
from crash.disk_images import SECTOR, Disk, Image
from crash.disk_log import Ack, Ask, Create, Delete, Event, Sync, SyncFolder, Truncate, Write
from crash.disk_workload import IDLE, NAME, Plan, record
from reliability import images

TESTS = Path(__file__).parent

COMMITS = """
import pickle, sys
from crash.disk import Recorder
recorder = Recorder(sys.argv[1])
recorder.install()
from persistence.database import close_database, open_database
db = open_database(sys.argv[1])
for number in range(5):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO deleted_sessions VALUES (?, 0, 0, 0)", [f"{number}"])
    db.commit()
    recorder.ack("commit", number)
close_database(db)
recorder.ack("closed", None)
assert recorder.failure is None, recorder.failure
with open(sys.argv[2], "wb") as out:
    pickle.dump(recorder.log, out)
"""


@pytest.fixture(scope="module", name="commits")
def log_of_five_commits(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The log of a process that opens a database, commits five times, and closes it."""
    can_record()
    folder = tmp_path_factory.mktemp("commits")
    done = subprocess.run(
        [sys.executable, "-c", COMMITS, str(folder / NAME), str(folder / "log")],
        check=False,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    log: list[Event] = pickle.loads((folder / "log").read_bytes())
    return log


@pytest.fixture(name="desk")
def empty_desk(tmp_path: Path) -> Desk:
    """A folder for images."""
    folder = tmp_path / "image"
    folder.mkdir()
    return Desk(folder)


def can_record() -> None:
    try:
        reachable_sqlite()
    except NoRecorder as error:
        pytest.skip(f"power loss: {error}")


def day(folder: Path, *settings: str) -> list[Event]:
    """The log of a short day."""
    can_record()
    recorded = record(Plan(3, 60, settings), folder)
    assert recorded.failure is None
    return recorded.log


def acks(log: Sequence[Event], what: str) -> list[int]:
    return [at for at, event in enumerate(log) if isinstance(event, Ack) and event.what == what]


def rows(desk: Desk, image: Image) -> list[str]:
    """What the five commits stored, as an image has it."""
    desk.lay_out(image)
    db = desk.open()
    try:
        return [row[0] for row in db.execute("SELECT handle FROM deleted_sessions ORDER BY 1").fetchall()]
    finally:
        desk.close(db)


def test_every_commit_is_written_to_the_log_and_synced_once(commits: list[Event]) -> None:
    (wal,) = [event.file for event in commits if isinstance(event, Create) and event.name == f"{NAME}-wal"]
    ends = acks(commits, "commit")
    for before, after in pairwise(ends):
        between = commits[before + 1 : after]
        assert [event for event in between if isinstance(event, Sync)] == [Sync(wal)]
        assert between[-1] == Sync(wal)
        assert {event.file for event in between if isinstance(event, Write)} == {wal}


def test_the_checkpoint_at_the_end_syncs_the_log_before_it_writes_the_file(commits: list[Event]) -> None:
    (file,) = [event.file for event in commits if isinstance(event, Create) and event.name == NAME]
    end = commits[acks(commits, "commit")[-1] + 1 : acks(commits, "closed")[0]]
    kinds = [type(event) for event in end]
    assert isinstance(end[0], Sync)
    assert end[0].file != file
    assert Write in kinds
    assert end.index(Sync(file)) < kinds.index(Delete)
    assert end.index(Sync(file)) > max(at for at, event in enumerate(end) if isinstance(event, Write))


def test_without_all_that_is_not_safe_the_database_is_as_at_its_last_sync(
    commits: list[Event], desk: Desk
) -> None:
    disk = Disk(commits)
    for number, at in enumerate(acks(commits, "commit")):
        disk.advance(at - 1)  # before the sync
        assert rows(desk, disk.image("lost", random.Random(0))) == [f"{n}" for n in range(number)]
        disk.advance(at)
        assert rows(desk, disk.image("lost", random.Random(0))) == [f"{n}" for n in range(number + 1)]


def test_a_cut_or_spoiled_log_gives_back_every_synced_commit(commits: list[Event], desk: Desk) -> None:
    disk = Disk(commits)
    fourth = acks(commits, "commit")[3]
    disk.advance(fourth - 1)
    cuts = disk.cuts()
    assert len(cuts) > 10
    found = [len(rows(desk, disk.cut(at, random.Random(at)))) for at in cuts]
    assert {*found} == {3, 4}
    assert found == sorted(found)
    for seed in range(20):
        for how in ("garbage", "stale", "mixed", "missing", "newest"):
            assert len(rows(desk, disk.image(how, random.Random(seed)))) in (3, 4)


def test_a_torn_write_is_torn_at_sectors_and_touches_nothing_else() -> None:
    log: list[Event] = [Create("f", 1), Write(1, 0, b"a" * 3000), Sync(1), SyncFolder()]
    log.append(Write(1, 1000, b"b" * 1000))
    disk = Disk(log)
    disk.advance(len(log))
    seen: set[str] = set()
    for seed in range(300):
        data = disk.image("mixed", random.Random(seed)).files["f"]
        assert (data[:1000], data[2000:]) == (b"a" * 1000, b"a" * 1000)
        pieces = [{*data[1000 : 2 * SECTOR]}, {*data[2 * SECTOR : 3 * SECTOR]}, {*data[3 * SECTOR : 2000]}]
        assert [len(piece) for piece in pieces] == [1, 1, 1]
        seen.add("".join(chr(piece.pop()) for piece in pieces))
    assert len(seen) == 8, seen


def test_files_that_were_made_or_deleted_without_a_sync_may_be_there_or_not() -> None:
    log: list[Event] = [Create("old", 1), Write(1, 0, b"x"), Sync(1), SyncFolder()]
    log += [Truncate(1, 0), Delete("old"), Create("new", 2)]
    disk = Disk(log)
    disk.advance(len(log))
    assert disk.image("lost", random.Random(0)).files == {"old": b"x"}
    assert disk.image("kept", random.Random(0)).files == {"new": b""}
    mixed = [disk.image("mixed", random.Random(seed)).files for seed in range(50)]
    assert {tuple(files) for files in mixed} == {(), ("old",), ("new",), ("old", "new")}
    assert {files["old"] for files in mixed if "old" in files} == {b"x", b""}


def test_a_whole_day_has_checkpoints_when_idle_and_logs_that_begin_anew(tmp_path: Path) -> None:
    log = day(tmp_path)
    (file,) = {event.file for event in log if isinstance(event, Create) and event.name == NAME}
    synced = [at for at, event in enumerate(log) if event == Sync(file)]
    begun = [at for at, event in enumerate(log) if event == Ask(IDLE, "begin")]
    ended = [at for at, event in enumerate(log) if event == Ask(IDLE, "end")]
    # Where the last commit has filled the log, nothing is left for the idle time.
    assert any(begin < at < end for begin, end in zip(begun, ended, strict=True) for at in synced)
    assert any(at > ended[-1] for at in synced)  # the one at the end
    headers = [
        event for event in log if isinstance(event, Write) and event.offset == 0 and len(event.data) == 32
    ]
    assert len(headers) > 4


def test_commits_that_are_not_synced_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a violation leaves its record there
    log = day(tmp_path, "synchronous=NORMAL")
    with pytest.raises(AssertionError, match=r"(?s)G1: .*power loss before event .* To see it again"):
        images.examine(log, 400, 3, tmp_path)
    (kept,) = tmp_path.glob("palaver-power-loss-3.log")
    log, count, seed = pickle.loads(kept.read_bytes())
    assert (count, seed) == (400, 3)
    assert any(isinstance(event, Ack) for event in log)


def test_a_sqlite_out_of_reach_is_named_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _ctypes

    monkeypatch.setattr(_sqlite3, "__file__", _ctypes.__file__, raising=False)
    with pytest.raises(NoRecorder, match=r"shows no sqlite3_\w+: its SQLite is linked statically"):
        reachable_sqlite()

    def refuse(*_args: Any) -> None:
        raise NoRecorder("no symbols")

    monkeypatch.setattr(images, "record", refuse)
    with pytest.raises(unittest.SkipTest, match="power-loss: no symbols"):
        images.power_loss(10, 1, tmp_path)
