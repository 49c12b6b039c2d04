"""`palaver backup`, `export`, `import`, `sessions purge` and `sessions unfinished`, as a user meets them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from click.testing import CliRunner, Result
from exports_support import files_of, lived_in_file  # noqa: F401 - a fixture
from gevent.monkey import get_original
from gevent.socket import wait_read
from support import ROOT, Runtimes, opened_runtimes, topic  # noqa: F401 - a fixture

from palaver import AgentConfig, Runtime, ScriptedModel
from palaver.commands import palaver
from palaver.offline import offline, verify_database
from persistence.sources import Sources

close = get_original("os", "close")


class Then:
    """A clock that stands still long ago."""

    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 1_000_000.0


@pytest.fixture(autouse=True)
def children_without_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GEVENT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three old sessions and a new one."""
    path = tmp_path / "agents.db"
    for sources, titles in ((Sources(clock=Then()), ("old 1", "old 2", "old 3")), (Sources(), ("new",))):
        with Runtime.open(path, ScriptedModel(), sources=sources) as rt:
            rt.add_agent(AgentConfig("crab", auto_title=False))
            for title in titles:
                rt.send(topic(rt, title, sender="bob" if title == "old 3" else "alice"), "hello")
    return path


def run(*args: object, say: str | None = None) -> Result:
    monitor = gevent.get_hub().periodic_monitoring_thread
    if monitor is not None:  # commands that only look at a file block their thread: it is theirs alone
        monitor.ignore_current_greenlet_blocking()
    return CliRunner().invoke(palaver, [str(arg) for arg in args], input=say)


def error_of(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    assert line.startswith("Error: ")
    return line


def titles_in(path: Path) -> list[str]:
    result = run("sessions", "list", "--db", path, "--json")
    return sorted(session["topic"] for session in json.loads(result.output))


# -- backup --------------------------------------------------------------------------------------------


def test_backup_copies_a_file_and_says_so(path: Path, tmp_path: Path) -> None:
    result = run("backup", path, tmp_path / "copy.db")
    assert (result.exit_code, result.output) == (
        0,
        f"copied {path} to {tmp_path / 'copy.db'}: {(tmp_path / 'copy.db').stat().st_size:,} bytes\n",
    )
    assert titles_in(tmp_path / "copy.db") == ["new", "old 1", "old 2", "old 3"]
    result = run("backup", path, tmp_path / "again.db", "--json")
    assert json.loads(result.output)["bytes"] == (tmp_path / "again.db").stat().st_size


@pytest.mark.parametrize(
    ("db", "to", "words"),
    [
        ("agents.db", "agents.db", "exists already"),
        ("nowhere.db", "copy.db", "no such file"),
        ("agents.db", "nowhere/copy.db", "no directory"),
        ("text.db", "copy.db", "not an SQLite database"),
        ("agents.db", "", "is no path"),
    ],
)
def test_backup_says_what_is_wrong(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: str, to: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("text " * 1000)
    assert words in error_of(run("backup", db, to))
    assert not (tmp_path / "copy.db").exists()


def test_a_file_in_use_is_not_copied_and_the_way_to_copy_it_is_told(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    rt = runtimes.open()
    line = error_of(run("backup", rt.path, tmp_path / "copy.db"))
    assert "in use" in line
    assert "rt.backup('" in line
    assert "rt.export('" in error_of(run("export", rt.path, tmp_path / "out"))
    assert "in use" in error_of(run("sessions", "purge", "--older-than", "1d", "--db", rt.path))
    assert "in use" in error_of(run("sessions", "unfinished", "--db", rt.path))
    assert [name for name in os.listdir(tmp_path) if not name.startswith("agents0")] == []


_INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from gevent import monkey
monkey.patch_all()
from persistence import backup
backup.PAGES_AT_ONCE = 2
from palaver import commands
from palaver.commands import copies
real = copies.watched
from contextlib import contextmanager
@contextmanager
def watched(label):
    def show(done, total):
        if done > 3:
            os.kill(os.getpid(), signal.SIGINT)
    yield show
copies.watched = watched
commands.palaver(prog_name="palaver")
"""


@pytest.mark.parametrize("command", ["backup", "export", "import"])
def test_ctrl_c_ends_a_copy_with_130_and_leaves_nothing(path: Path, tmp_path: Path, command: str) -> None:
    run("export", path, tmp_path / "export")
    source = tmp_path / "export" if command == "import" else path
    before = sorted(os.listdir(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, command, str(source), str(tmp_path / "target")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert sorted(os.listdir(tmp_path)) == before
    assert verify_database(path) == []


@pytest.mark.parametrize(("command", "label"), [("backup", b"copying"), ("export", b"exporting")])
def test_at_a_terminal_there_is_a_progress_bar(
    path: Path, tmp_path: Path, command: str, label: bytes
) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "palaver", command, str(path), str(tmp_path / "target")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    close(theirs)
    seen = b""
    while piece := _read(ours):
        seen += piece
    close(ours)
    assert child.wait(timeout=60) == 0
    assert label in seen
    assert b"Traceback" not in seen


def _read(fd: int) -> bytes:
    wait_read(fd, timeout=60)
    try:
        return os.read(fd, 4_096)
    except OSError:  # how a terminal says that the other side has closed it
        return b""


# -- export and import ---------------------------------------------------------------------------------


def test_export_and_import_say_what_they_moved(lived_in: Path, tmp_path: Path) -> None:
    words = "10 sessions, 37 turns, 90 entries, 5 compactions, 21 of memory"
    result = run("export", lived_in, tmp_path / "out")
    assert (result.exit_code, result.output) == (0, f"exported {lived_in} to {tmp_path / 'out'}: {words}\n")
    result = run("import", tmp_path / "out", tmp_path / "new.db")
    assert (result.exit_code, result.output) == (
        0,
        f"imported {tmp_path / 'out'} into {tmp_path / 'new.db'}: {words}\n",
    )
    result = run("export", tmp_path / "new.db", tmp_path / "again", "--json")
    assert json.loads(result.output)["entries"] == 90
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")
    result = run("import", tmp_path / "out", tmp_path / "json.db", "--json")
    found = json.loads(result.output)
    assert (found["sessions"], found["edited"], found["renumbered"]) == (10, [], 0)


def test_export_and_import_say_what_is_wrong(lived_in: Path, path: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "is not empty" in error_of(run("export", lived_in, tmp_path / "full"))
    assert "no such file" in error_of(run("export", tmp_path / "nowhere.db", tmp_path / "out"))
    assert "no manifest.json" in error_of(run("import", tmp_path / "full", tmp_path / "new.db"))
    assert "is no directory" in error_of(run("import", tmp_path / "nowhere", tmp_path / "new.db"))
    run("export", path, tmp_path / "out")
    assert "is stored here already" in error_of(run("import", tmp_path / "out", path))
    assert run("import", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "new.db").exists()


def test_an_edited_note_is_imported_when_it_is_said(lived_in: Path, tmp_path: Path) -> None:
    run("export", lived_in, tmp_path / "out")
    note = tmp_path / "out/memory/crab/alice/note/soil.md"
    note.write_text(note.read_text().replace("Heavy clay", "Light sand"))
    line = error_of(run("import", tmp_path / "out", tmp_path / "new.db"))
    assert "memory/crab/alice/note/soil.md: it was changed" in line
    assert "--edited" in line
    result = run("import", tmp_path / "out", tmp_path / "new.db", "--edited")
    assert result.exit_code == 0
    assert "  as edited: memory/crab/alice/note/soil.md\n" in result.output
    assert "Light sand" in run("memory", "search", "soil", "--db", tmp_path / "new.db").output


def test_new_ids_are_told(lived_in: Path, path: Path, tmp_path: Path) -> None:
    run("export", lived_in, tmp_path / "out")
    result = run("import", tmp_path / "out", path)
    assert "  4 turns, steers and timers have new ids: the old ones were taken\n" in result.output
    assert verify_database(path) == []


# -- purge ---------------------------------------------------------------------------------------------


def test_purge_asks_and_deletes(path: Path) -> None:
    result = run("sessions", "purge", "--older-than", "30d", "--db", path, say="n\n")
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "kept")
    assert len(titles_in(path)) == 4
    result = run("sessions", "purge", "--older-than", "30d", "--db", path, say="y\n")
    assert result.exit_code == 0
    assert "Delete 3 sessions unchanged since " in result.output
    assert result.output.splitlines()[-1].startswith("deleted 3 sessions unchanged since ")
    assert titles_in(path) == ["new"]
    result = run("sessions", "purge", "--older-than", "30d", "--db", path, "-y")
    assert result.output.startswith("no session is unchanged since ")
    assert verify_database(path) == []


def test_purge_shows_first_what_it_would_delete(path: Path) -> None:
    result = run("sessions", "purge", "--older-than", "8w", "--sender", "alice", "--dry-run", "--db", path)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("HANDLE")
    assert [" old 1 " in lines[1], " old 2 " in lines[2], lines[3]] == [
        True,
        True,
        "2 sessions would be deleted",
    ]
    result = run("sessions", "purge", "--older-than", "8w", "--dry-run", "--db", path, "--json")
    assert [old["topic"] for old in json.loads(result.output)] == ["old 1", "old 2", "old 3"]
    assert len(titles_in(path)) == 4


def test_purge_takes_an_agent_a_sender_and_prints_json(path: Path) -> None:
    result = run("sessions", "purge", "--older-than", "12h", "--agent", "fish", "-y", "--json", "--db", path)
    assert json.loads(result.output)["deleted"] == 0
    result = run("sessions", "purge", "--older-than", "12h", "--sender", "bob", "-y", "--json", "--db", path)
    assert json.loads(result.output)["deleted"] == 1
    assert titles_in(path) == ["new", "old 1", "old 2"]


def test_a_purge_keeps_unfinished_sessions_and_says_so(path: Path) -> None:
    leave_undone(path, "old 2")
    result = run("sessions", "purge", "--older-than", "30d", "-y", "--db", path)
    assert "deleted 2 sessions" in result.output
    assert "1 session as old had unfinished messages or timers and stayed" in result.output
    assert titles_in(path) == ["new", "old 2"]
    result = run("sessions", "purge", "--older-than", "30d", "-y", "--db", path, "--json")
    assert json.loads(result.output)["unfinished"] == 1


def test_vacuum_gives_the_space_back(path: Path) -> None:
    with offline(path) as db:
        db.execute("UPDATE memory_entries SET content = hex(zeroblob(500000))")
        db.conn.commit()
        db.execute("UPDATE memory_entries SET content = 'small'")
        db.conn.commit()
    size = path.stat().st_size
    result = run("sessions", "purge", "--older-than", "30d", "-y", "--db", path)
    assert "bytes of the file are free for new data; --vacuum" in result.output
    assert path.stat().st_size == size
    result = run("sessions", "purge", "--older-than", "30d", "-y", "--vacuum", "--db", path)
    assert result.exit_code == 0
    assert path.stat().st_size < size / 10
    assert verify_database(path) == []


@pytest.mark.parametrize("age", ["30", "d", "-3d", "1.5h", "30 days", "3y", "", "99999999999d"])
def test_an_age_that_makes_no_sense_is_a_usage_error(path: Path, age: str) -> None:
    result = run("sessions", "purge", "--older-than", age, "-y", "--db", path)
    assert result.exit_code == 2
    assert "is no age" in result.output
    assert len(titles_in(path)) == 4


def test_purge_wants_an_age(path: Path) -> None:
    assert run("sessions", "purge", "--db", path).exit_code == 2


@pytest.mark.parametrize(
    ("age", "left"), [("90s", 1), ("15m", 1), ("12h", 1), ("30d", 1), ("8w", 1), ("900000w", 4)]
)
def test_ages_have_units(path: Path, age: str, left: int) -> None:
    assert run("sessions", "purge", "--older-than", age, "-y", "--db", path).exit_code == 0
    assert len(titles_in(path)) == left


# -- unfinished ----------------------------------------------------------------------------------------


def leave_undone(path: Path, title: str) -> None:
    with offline(path) as db:
        db.execute(
            """INSERT INTO turns (id, session_id, sender, content, state, accepted_at)
                SELECT 900 + id, id, sender, 'never answered', 'queued', 5.0 FROM sessions WHERE topic = ?""",
            [title],
        )
        db.conn.commit()


def test_unfinished_sessions_are_listed_and_ended(path: Path) -> None:
    assert run("sessions", "unfinished", "--db", path).output == "every accepted message has ended\n"
    leave_undone(path, "old 2")
    leave_undone(path, "old 3")
    result = run("sessions", "unfinished", "--db", path)
    assert [line.split()[-5:-3] for line in result.output.splitlines()[1:]] == [["2", "1"], ["3", "1"]]
    found = json.loads(run("sessions", "unfinished", "--db", path, "--json").output)
    assert [(each["sender"], each["turns"], each["steers"]) for each in found] == [
        ("alice", 1, 0),
        ("bob", 1, 0),
    ]
    result = run("sessions", "unfinished", "--fail", "--db", path, say="n\n")
    assert result.output.splitlines()[-1] == "kept"
    result = run("sessions", "unfinished", "--fail", "-y", "--db", path, "--agent", "fish")
    assert result.output == "ended 0 messages of 0 sessions as failed\n"
    result = run("sessions", "unfinished", "--fail", "-y", "--db", path)
    assert result.output == "ended 2 messages of 2 sessions as failed\n"
    result = run("sessions", "unfinished", "--fail", "-y", "--db", path, "--json")
    assert json.loads(result.output) == {"sessions": 0, "failed": 0}
    with offline(path) as db:
        ((state, error),) = db.execute("SELECT DISTINCT state, error FROM turns WHERE id > 900").fetchall()
    assert state == "failed"
    assert "given up" in error
    assert verify_database(path) == []


def test_what_needs_a_file_wants_one_that_is_there(tmp_path: Path) -> None:
    for command in (["purge", "--older-than", "1d"], ["unfinished"]):
        assert "no such file" in error_of(run("sessions", *command, "--db", tmp_path / "nowhere.db"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "command", [("backup",), ("export",), ("import",), ("sessions", "purge"), ("sessions", "unfinished")]
)
def test_every_command_of_these_has_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
