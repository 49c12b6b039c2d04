"""`palaver sessions timers`, and what other commands make of timers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from timers_support import DAY, handle_of, messages_in, on_virtual_time, topic, wait
from turns_support import in_file

from palaver import Runtime
from palaver.commands import palaver
from palaver.copies import export_database, import_database
from palaver.simulation.loop import EPOCH
from persistence import timers as stored


def run(*args: object) -> Result:
    return CliRunner().invoke(palaver, [str(arg) for arg in args])


@pytest.fixture(name="path")
def file_with_timers(tmp_path: Path) -> Path:
    """Alice has two timers, bob one and carol none."""
    path = tmp_path / "agents.db"

    def body(rt: Runtime) -> None:
        alice, bob, carol = (topic(rt, sender=sender) for sender in ("alice", "bob", "carol"))
        rt.after(DAY, alice, "to\nalice", key="k")
        rt.every(3_600, alice, "tick", first_after=60)
        rt.after(90, bob, "to bob", sender="the clock")
        rt.send(carol, "hello")

    on_virtual_time(body, path)
    return path


def handle(path: Path, sender: str) -> str:
    (session,) = json.loads(run("sessions", "list", "--sender", sender, "--json", "--db", path).output)
    return str(session["handle"])


def test_timers_are_listed_the_first_one_first(path: Path) -> None:
    result = run("sessions", "timers", "--db", path)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["ID", "HANDLE", "AGENT", "SENDER", "TOPIC", "DUE", "EVERY", "SAYS"]
    assert [line.split()[3] for line in lines[1:]] == ["alice", "bob", "alice"]
    assert [line.rsplit("  ", 1)[1].strip() for line in lines[1:]] == ["tick", "to bob", "to alice"]
    assert "3,600 s" in lines[1]
    assert run("sessions", "timers", handle(path, "carol"), "--db", path).output == "no timers\n"


def test_the_timers_of_a_session_are_printed_as_json(path: Path) -> None:
    result = run("sessions", "timers", handle(path, "bob"), "--json", "--db", path)
    (timer,) = json.loads(result.output)
    assert (timer["sender"], timer["said_by"], timer["content"]) == ("bob", "the clock", "to bob")
    assert (timer["due_at"], timer["every_s"]) == (EPOCH + 90, None)


def test_a_timer_is_cancelled_by_its_id(path: Path) -> None:
    (timer,) = json.loads(run("sessions", "timers", handle(path, "bob"), "--json", "--db", path).output)
    other = handle(path, "alice")
    result = run("sessions", "timers", other, "--cancel", timer["id"], "--db", path)
    assert (result.exit_code, f"of the session {other} has the id" in result.output) == (1, True)
    result = run("sessions", "timers", "--cancel", timer["id"], "--db", path)
    assert result.output.startswith(f"cancelled timer {timer['id']}, due ")
    assert result.output.endswith(": to bob\n")
    again = run("sessions", "timers", "--cancel", timer["id"], "--db", path)
    assert again.exit_code == 1
    assert "no timer has the id" in again.output
    assert len(in_file(path, stored.list_timers)) == 2


def test_an_unknown_session_has_no_timers(path: Path) -> None:
    result = run("sessions", "timers", "nobody", "--db", path)
    assert result.exit_code == 1
    assert "no stored session has the handle 'nobody'" in result.output


def test_a_purge_keeps_sessions_that_have_timers(path: Path) -> None:
    result = run("sessions", "purge", "--older-than", "1s", "-y", "--db", path)
    assert "deleted 1 session" in result.output
    assert "2 sessions as old had unfinished messages or timers and stayed" in result.output
    assert len(in_file(path, stored.list_timers)) == 3

    def body(rt: Runtime) -> None:
        wait(10)
        assert rt.purge_sessions(1) == 0
        assert len(rt.sessions()) == 2

    on_virtual_time(body, path, agents=())


def test_an_import_beside_others_gives_ids_anew_and_timers_fire(path: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside.db"

    def body(rt: Runtime) -> None:
        for number in range(2):
            rt.after(10 * DAY, topic(rt, f"topic {number}", sender="dora"), "mine")
        rt.cancel_timer(rt.after(10 * DAY, topic(rt, sender="dora"), "cancelled").id)

    on_virtual_time(body, beside)
    export_database(path, tmp_path / "export")
    imported = import_database(tmp_path / "export", beside)
    assert imported.contents.timers == 3
    assert imported.renumbered == 3  # dora has had as many
    timers = in_file(beside, stored.list_timers)
    assert sorted(timer.id for timer in timers) == [1, 2, 4, 5, 6]

    def later(rt: Runtime) -> str:
        wait(1)
        (live,) = [info.id for info in rt.list_active() if info.sender == "bob"]
        return handle_of(rt, live)

    assert messages_in(beside, on_virtual_time(later, beside, later=100)) == ["to bob"]


def test_an_import_into_a_new_file_gives_no_id_again(path: Path, tmp_path: Path) -> None:
    for timer in in_file(path, stored.list_timers):
        run("sessions", "timers", "--cancel", timer.id, "--db", path)
    export_database(path, tmp_path / "export")
    new = tmp_path / "new.db"
    import_database(tmp_path / "export", new)

    def body(rt: Runtime) -> int:
        return rt.after(1, topic(rt, sender="alice"), "x").id

    assert on_virtual_time(body, new) == 4


def test_a_backup_has_the_timers(path: Path, tmp_path: Path) -> None:
    assert run("backup", path, tmp_path / "copy.db").exit_code == 0
    assert in_file(tmp_path / "copy.db", stored.list_timers) == in_file(path, stored.list_timers)


def test_verify_names_a_timer_that_makes_no_sense(path: Path) -> None:
    in_file(path, lambda db: (db.execute("UPDATE timers SET due_at = 9e999 WHERE id = 1"), db.conn.commit()))
    result = run("verify", path)
    assert result.exit_code == 1
    assert f"timers: session {handle(path, 'alice')}: timer 1 is due at inf" in result.output
