"""The command line: what it prints, its exit status, and that no error of a user's is a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import gevent
import pytest
from click.testing import CliRunner, Result
from gevent.monkey import get_original
from gevent.socket import wait_read
from support import folder_for_all  # noqa: F401 - a fixture

from palaver import AgentConfig, Runtime, ScriptedModel, __version__
from palaver.commands import palaver
from palaver.commands.output import counted, facts, one_line, printable, table
from palaver.offline import inspect_database, verify_database
from persistence.database import close_database, open_database
from persistence.errors import DatabaseUnusable

ROOT = Path(__file__).resolve().parents[1]

close = get_original("os", "close")  # gevent's puts it off until something else wakes the hub


@pytest.fixture(autouse=True)
def children_without_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gevent's monitor prints on a child's stderr is none of the command's output."""
    for name in [name for name in os.environ if name.startswith("GEVENT_")]:
        monkeypatch.delenv(name)


def run(*args: object) -> Result:
    monitor = gevent.get_hub().periodic_monitoring_thread
    if monitor is not None:  # commands that only look at a file block their thread: it is theirs alone
        monitor.ignore_current_greenlet_blocking()
    return CliRunner().invoke(palaver, [str(arg) for arg in args])


def launch(*args: object, code: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, or `code` with these arguments."""
    what = ["-m", "palaver"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *what, *map(str, args)],
        cwd=ROOT,
        text=True,
        check=False,
        **{"capture_output": True, "timeout": 60, **options},  # type: ignore[call-overload]
    )


def assert_one_line_error(result: Result, words: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    *before, line = result.output.splitlines()
    assert before == []
    assert line.startswith("Error: ")
    assert words in line


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with three sessions of two senders, a note, an archive."""
    path = tmp_path_factory.mktemp("stored") / "agents.db"
    with Runtime.open(path, ScriptedModel(keep_requests=0)) as rt:
        rt.add_agent(AgentConfig("crab", auto_title=False))
        for sender, topic in (("alice", "boats"), ("alice", "ropes"), ("bob", "boats")):
            cid = rt.switch_topic("crab", sender, topic, f"{topic} of {sender}").conversation_id
            rt.send(cid, f"tell me about {topic}")
        rt.compact(cid)
        rt.memory.remember("crab", "bob", "size", "it doesn't fit: 4 m")
    return path


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    """A copy of `stored` to change."""
    path = tmp_path / "copy.db"
    path.write_bytes(stored.read_bytes())
    return path


def handle_of(path: Path, sender: str, topic: str) -> str:
    result = run("sessions", "list", "--db", path, "--sender", sender, "--topic", topic, "--json")
    (session,) = json.loads(result.output)
    return str(session["handle"])


# -- the launcher ---------------------------------------------------------------------------------------


def test_python_m_palaver_says_its_version():
    done = launch("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"palaver {__version__}\n", "")


def test_importing_anything_patches_nothing():
    code = """
from gevent import monkey
import palaver, palaver.cli, palaver.__main__, palaver.commands, palaver.replay, palaver.demo
assert not monkey.is_anything_patched()
print(palaver.Runtime)
"""
    done = launch(code=code)
    assert done.returncode == 0, done.stderr


def test_trap_13_the_launcher_patches_before_pykka_is_imported():
    code = """
import sys
from palaver.cli import main
assert "pykka" not in sys.modules
try:
    main()
except SystemExit as done:
    assert done.code == 0
print(type(sys.modules["pykka"].ActorRegistry._actor_refs_lock._block).__module__)
"""
    done = launch("chat", "--help", code=code)
    assert done.stdout.splitlines()[-1] == "gevent.thread", done


def test_a_process_imports_the_command_that_it_runs_and_no_other():
    code = """
import sys
from palaver.commands import palaver
try:
    palaver()
except SystemExit:
    print(sorted(name for name in sys.modules if name.startswith(("palaver.commands.", "actors."))))
"""
    done = launch("--version", code=code)
    assert done.stdout.splitlines()[-1] == "['palaver.commands.base', 'palaver.commands.output']", done


def test_help_lists_every_command_and_each_has_its_own():
    listed = palaver.list_commands(click.Context(palaver))
    assert listed == sorted(listed)
    text = run("--help").output
    for name in listed:
        assert f"  {name} " in text
        assert run(name, "--help").exit_code == 0


def test_an_unknown_command_is_a_usage_error():
    result = run("frobnicate")
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.output


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("chat",),
        ("demo",),
        ("replay",),
        ("simulate",),
        ("sessions",),
        ("sessions", "list"),
        ("memory", "search"),
        ("verify",),
    ],
)
def test_every_command_has_help(command: tuple[str, ...]):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert "Traceback" not in result.output


def test_a_reader_that_goes_away_is_no_error(stored: Path):
    read, write = os.pipe()
    close(read)
    try:
        done = launch(
            "sessions", "list", "--db", stored, capture_output=False, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_ends_a_replay_with_130_and_a_whole_file(tmp_path: Path):
    turns = [{"user": f"question {n}", "calls": [], "assistant": f"answer {n}"} for n in range(2_000)]
    file, db = tmp_path / "long.jsonl", tmp_path / "long.db"
    lines = (json.dumps({"id": f"sender {n}", "services": [], "turns": turns}) for n in range(3))
    file.write_text("\n".join(lines))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "palaver", "replay", str(file), "--db", str(db)]
    with (tmp_path / "output").open("wb") as output:
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=theirs)
    close(theirs)
    seen = b""
    while not re.search(rb" [1-9]\d*/6000", seen):  # the progress bar says that turns are running
        seen += _read_tty(ours)
    child.send_signal(signal.SIGINT)
    while piece := _read_tty(ours):
        seen += piece
    close(ours)
    assert child.wait(timeout=60) == 130
    assert (tmp_path / "output").read_bytes() == b""
    assert seen.endswith(b"interrupted\r\n")
    assert b"Traceback" not in seen
    report = inspect_database(db)
    assert report.problems == ()
    assert 0 < report.turns < 6_000


def _read_tty(fd: int) -> bytes:
    wait_read(fd, timeout=60)
    try:
        return os.read(fd, 4_096)
    except OSError:  # how a terminal says that the other side has closed it
        return b""


# -- paths that cannot be used ------------------------------------------------------------------------------

READERS = [("verify",), ("sessions", "list", "--db"), ("memory", "list", "--db")]
WRITERS = [("chat", "--db"), ("demo", "--db")]


@pytest.mark.parametrize("command", READERS + WRITERS, ids=" ".join)
def test_a_directory_is_refused(command: tuple[str, ...], tmp_path: Path):
    assert_one_line_error(run(*command, tmp_path), "is a directory")


@pytest.mark.parametrize("command", READERS + WRITERS, ids=" ".join)
def test_a_file_that_is_no_database_is_refused(command: tuple[str, ...], tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("this is not a database, whatever its name says. " * 100)
    assert_one_line_error(run(*command, path), "is not an SQLite database")


@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_a_missing_directory_is_refused(command: tuple[str, ...], tmp_path: Path):
    assert_one_line_error(run(*command, tmp_path / "no" / "agents.db"), "there is no directory")


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_looking_at_a_missing_file_does_not_make_it(command: tuple[str, ...], tmp_path: Path):
    path = tmp_path / "missing.db"
    assert_one_line_error(run(*command, path), "no such file")
    assert not path.exists()


def test_a_file_that_a_host_has_open_is_refused_by_name(copy: Path):
    code = """
import sys
from persistence.database import open_database
db = open_database(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(copy)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        try:
            for command in READERS + WRITERS:
                assert_one_line_error(run(*command, copy), f"is in use by process {host.pid}")
        finally:
            assert host.stdin is not None
            host.stdin.close()
    assert run("verify", copy).exit_code == 0


def test_a_read_only_file_is_refused(stored: Path, shown_folder: Path):
    copy = shown_folder / "copy.db"
    copy.write_bytes(stored.read_bytes())
    copy.chmod(0o444)
    # The superuser may write anything, so somebody else has to try.
    code = """
from gevent import monkey
monkey.patch_all()
import palaver.commands.verify, pprint  # a hub wants the latter; before the rights to read them are gone
from palaver.commands import palaver
import os
if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
palaver()
"""
    done = launch("verify", copy, code=code)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is read-only" in done.stderr
    assert done.stderr.count("\n") == 1


# -- verify -------------------------------------------------------------------------------------------------


def test_verify_counts_what_a_good_file_holds(stored: Path):
    result = run("verify", stored)
    assert result.exit_code == 0
    assert result.output == "ok: 3 sessions, 3 turns, 6 entries, 1 compaction, 1 archive, 1 note\n"
    assert json.loads(run("verify", "--json", stored).output)["problems"] == []


def test_verify_lists_what_is_broken_and_exits_1(copy: Path):
    db = open_database(copy)
    db.execute("DELETE FROM entries WHERE seq = 0 AND session_id = 1")
    close_database(db)
    result = run("verify", copy)
    assert result.exit_code == 1
    first, *rest = result.output.splitlines()
    assert re.match(r"broken: \d+ problems? in ", first)
    assert any(line.startswith("  entries: session ") for line in rest)
    assert len(verify_database(copy)) == len(rest)


def test_verify_database_raises_for_what_is_no_database(tmp_path: Path):
    with pytest.raises(DatabaseUnusable):
        verify_database(tmp_path)


# -- sessions -----------------------------------------------------------------------------------------------


def test_sessions_list_shows_the_latest_first_in_aligned_columns(stored: Path):
    header, *rows = run("sessions", "list", "--db", stored).output.splitlines()
    assert [row.split()[1:4] for row in rows] == [
        ["crab", "bob", "boats"],
        ["crab", "alice", "ropes"],
        ["crab", "alice", "boats"],
    ]
    for column in ("AGENT", "SENDER", "TOPIC", "CHANGED"):
        at = header.index(column)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows), column


def test_sessions_list_filters_and_prints_json(stored: Path):
    found = json.loads(run("sessions", "list", "--db", stored, "--json", "--topic", "boats").output)
    assert [each["sender"] for each in found] == ["bob", "alice"]
    assert json.loads(run("sessions", "list", "--db", stored, "--json", "--agent", "nobody").output) == []
    assert run("sessions", "list", "--db", stored, "--sender", "eve").output == "no sessions\n"


def test_sessions_show_prints_the_whole_transcript(stored: Path):
    handle = handle_of(stored, "bob", "boats")  # compacted, and whole all the same
    text = run("sessions", "show", handle, "--db", stored).output
    assert "archive  boats-1" in text
    assert "\nuser (bob):\ntell me about boats\n\nassistant:\ntell me about boats\n" in text
    shown = json.loads(run("sessions", "show", handle, "--db", stored, "--json").output)
    assert shown["session"]["handle"] == handle
    assert [entry["role"] for entry in shown["transcript"]] == ["user", "assistant"]


def test_an_unknown_handle_is_an_error_that_says_where_to_look(stored: Path):
    for command in ("show", "delete"):
        result = run("sessions", command, "nope", "--db", stored)
        assert_one_line_error(result, "no stored session has the handle 'nope'; see `palaver sessions list`")


def test_sessions_delete_asks_first_and_then_deletes(copy: Path):
    handle = handle_of(copy, "alice", "ropes")
    arguments = ["sessions", "delete", handle, "--db", str(copy)]
    refused = CliRunner().invoke(palaver, arguments, input="n\n")
    assert refused.exit_code == 0
    assert "Delete the session of 'alice' with 'crab' on 'ropes', 2 messages?" in refused.output
    assert handle_of(copy, "alice", "ropes") == handle
    assert CliRunner().invoke(palaver, arguments, input="y\n").exit_code == 0
    assert len(json.loads(run("sessions", "list", "--db", copy, "--json").output)) == 2
    assert run("verify", copy).exit_code == 0


def test_sessions_delete_without_an_answer_deletes_nothing(copy: Path):
    handle = handle_of(copy, "alice", "ropes")
    assert run("sessions", "delete", handle, "--db", copy).exit_code == 1
    assert handle_of(copy, "alice", "ropes") == handle
    assert run("sessions", "delete", handle, "--yes", "--db", copy).exit_code == 0


def test_the_database_may_come_from_the_environment(stored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PALAVER_DB", str(stored))
    assert len(json.loads(run("sessions", "list", "--json").output)) == 3


# -- memory -------------------------------------------------------------------------------------------------


def test_memory_list_shows_every_scope_oldest_first(stored: Path):
    found = json.loads(run("memory", "list", "--db", stored, "--json").output)
    assert [(each["sender"], each["kind"], each["name"]) for each in found] == [
        ("alice", "topic", "boats"),
        ("alice", "topic", "ropes"),
        ("bob", "topic", "boats"),
        ("bob", "archive", "boats-1"),
        ("bob", "note", "size"),
    ]


def test_memory_search_takes_any_text(stored: Path):
    found = json.loads(run("memory", "search", "doesn't", "--db", stored, "--json").output)
    assert [each["name"] for each in found] == ["size"]
    assert "size" in run("memory", "search", "fit?", "--db", stored, "--sender", "bob").output
    for query in ("", "xylophone", '"*'):
        assert run("memory", "search", query, "--db", stored).output == "nothing matches\n"
    assert run("memory", "search", "fit", "--db", stored, "--sender", "alice").output == "nothing matches\n"


# -- what is printed -----------------------------------------------------------------------------------------


def test_control_characters_of_stored_text_do_not_reach_the_terminal():
    assert printable("a\x1b[31mb\x07\tc\nd\x9b") == "a\ufffd[31mb\ufffd\tc\nd\ufffd"
    assert one_line("  two\n lines\x1b ") == "two lines\ufffd"


@pytest.mark.parametrize(("length", "kept"), [(99, 99), (100, 100), (101, 100), (5_000, 100)])
def test_one_line_is_cut_visibly(length: int, kept: int):
    line = one_line("x" * length)
    assert len(line) == kept
    assert line.endswith("...") == (length > 100)


def test_a_table_aligns_wide_characters_and_numbers():
    text = table(("A", "B", "N"), [("\u4f60\u597d", "x", 5), ("hello", "yy", 12_345)])
    assert text == "A      B        N\n\u4f60\u597d   x        5\nhello  yy  12,345"


def test_facts_align():
    assert facts([("turns", 12_621), ("p50", "1.5")]) == "turns  12,621\np50       1.5"
    assert facts([("a", "x"), ("long", "yy")], right=False) == "a     x\nlong  yy"


def test_one_is_singular():
    assert [counted(n, "turn") for n in (0, 1, 2_000)] == ["0 turns", "1 turn", "2,000 turns"]


@pytest.fixture
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")


@pytest.mark.usefixtures("narrow_terminal")
def test_a_table_is_cut_to_the_terminal_in_the_columns_that_may_be():
    lines = table(("ID", "TEXT", "MORE"), [("0123456789", "t" * 40, "m" * 9)], cut=(1, 2)).splitlines()
    assert max(map(len, lines)) == 30
    assert lines[1] == "0123456789  ttttttt\u2026  mmmmmmm\u2026"
