"""What becomes of messages that a process accepted and did not end: run, held, or failed; and given up."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_utils import Database
from support import CRAB, Runtimes, handle_of, opened_runtimes, topic, until
from turns_support import HeldModel

from actors import registry
from palaver import (
    AgentConfig,
    AgentNotRegistered,
    InvalidInput,
    Limits,
    Runtime,
    ScriptedModel,
    SessionNotFound,
    TurnRow,
)
from persistence.committer import Committer
from persistence.database import close_database, open_database
from persistence.records import HistoryEntry, ToolCall
from persistence.verify import verify
from persistence.writes import NewEntry, SessionUpdate, TurnUpdate, WriteSet, apply

__all__ = ["opened_runtimes"]

OTHER = AgentConfig(name="gull", model="m", auto_title=False)


def left_behind(runtimes: Runtimes, path: Path, *contents: str, steers: tuple[str, ...] = ()) -> str:
    """A file whose process has gone in the middle of the first of these turns; its session's handle."""
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    for content in contents:
        rt.submit(cid, content)
    model.next()
    for content in steers:
        rt.steer(cid, content)
    as_killed(runtimes, rt, path)
    return handle


def as_killed(runtimes: Runtimes, rt: Runtime, path: Path) -> None:
    """Let `path` be what a kill would leave of the running runtime's file, and end the runtime."""

    with runtimes.held_database(rt):  # nobody writes while the two files are copied
        for suffix in ("", "-wal"):
            shutil.copy(f"{rt.path}{suffix}", f"{path}{suffix}")
    rt.shutdown(drain=0)


def done(rt: Runtime, handle: str) -> list[TurnRow]:
    """The turns of a session, once all of them have ended."""
    until(lambda: all(row.result is not None for row in rt.turns(handle)))
    return rt.turns(handle)


def said(rt: Runtime, handle: str) -> list[str]:
    return [entry.content for entry in rt.transcript(handle)]


# -- run -----------------------------------------------------------------------------------------------


def test_registering_the_agent_is_all_it_takes_for_unfinished_turns_to_go_on(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two", steers=("steer",))
    rt = runtimes.open(path=tmp_path / "a.db", agents=())
    assert [session.handle for session in rt.unfinished()] == [handle]
    rt.add_agent(CRAB)
    rows = done(rt, handle)
    assert [row.state for row in rows] == ["done"] * 3
    assert said(rt, handle) == ["one", "one", "steer", "steer", "two", "two"]
    assert rt.unfinished() == []


def test_a_topic_that_is_brought_back_does_not_become_the_active_one(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one")
    rt = runtimes.open(path=tmp_path / "a.db")
    done(rt, handle)
    assert rt.conversation_id("crab", "alice") is None
    live = rt.conversation(rt.load(handle))
    assert live is not None
    assert rt.switch_topic("crab", "alice", "work").conversation_id == live.id


def test_what_is_unfinished_waits_for_its_own_agent(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one")
    rt = runtimes.open(path=tmp_path / "a.db", agents=(OTHER,))
    (left,) = rt.unfinished()
    assert (left.handle, left.agent, left.sender, left.topic) == (handle, "crab", "alice", "work")
    assert (left.turns, left.steers) == (1, 0)
    assert left.since == rt.turns(handle)[0].accepted_at
    rt.upsert_agent(CRAB)
    assert done(rt, handle)[0].state == "done"


def test_an_unfinished_guest_turn_waits_for_its_guest(runtimes: Runtimes, tmp_path: Path) -> None:
    model = HeldModel()
    rt = runtimes.open(model, agents=(CRAB, OTHER))
    cid = topic(rt)
    handle = handle_of(rt, cid)
    rt.submit(cid, "and you?", guest="gull")
    model.next()
    as_killed(runtimes, rt, tmp_path / "a.db")
    again = runtimes.open(path=tmp_path / "a.db")
    assert [session.guests for session in again.unfinished()] == [("gull",)]
    again.add_agent(OTHER)
    (row,) = done(again, handle)
    assert row.state == "done"


def test_many_sessions_are_brought_back_each_in_its_order(runtimes: Runtimes, tmp_path: Path) -> None:
    model, path = HeldModel(), tmp_path / "a.db"
    rt = runtimes.open(model)
    cids = [topic(rt, sender=f"s{n}") for n in range(50)]
    handles = [handle_of(rt, cid) for cid in cids]
    for cid in cids:
        for n in range(3):
            rt.submit(cid, f"m{n}")
    as_killed(runtimes, rt, path)
    again = runtimes.open(path=path)
    for handle in handles:
        assert [row.state for row in done(again, handle)] == ["done"] * 3
        assert said(again, handle) == ["m0", "m0", "m1", "m1", "m2", "m2"]


def test_the_tickets_of_a_topic_that_was_brought_back_can_be_had(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two")
    model = HeldModel()
    rt = runtimes.open(model, path=tmp_path / "a.db")
    first = model.next()
    cid = rt.load(handle)
    running, waiting = rt.tickets(cid)
    assert (running.content, running.state) == ("one", "running")
    assert (waiting.content, waiting.state) == ("two", "queued")
    assert waiting.cancel()
    assert rt.tickets(cid) == [running]
    first.say("fine")
    assert running.result().text == "fine"
    assert rt.tickets(cid) == []


def test_a_topic_that_cannot_be_opened_while_the_disk_is_full_is_brought_back_when_there_is_room(
    runtimes: Runtimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BRING_BACK_AGAIN_S", 0.01)
    handle = left_behind(runtimes, tmp_path / "a.db", "one", steers=("steer",))
    refused: list[object] = []

    class Full(Committer):
        seen = 0

        def _commit(self, db: Database) -> None:
            ((changes,),) = db.execute("SELECT total_changes()").fetchall()
            writes, self.seen = changes > self.seen, changes
            if writes and len(refused) < 3:
                refused.append(changes)
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            super()._commit(db)

    rt = runtimes.open(path=tmp_path / "a.db", committer=Full)
    assert [row.state for row in done(rt, handle)] == ["done", "done"]
    assert len(refused) == 3
    assert said(rt, handle) == ["one", "one", "steer", "steer"]


# -- hold and fail -------------------------------------------------------------------------------------


def test_what_is_held_runs_when_it_is_recovered(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two")
    rt = runtimes.open(path=tmp_path / "a.db", recover="hold")
    assert rt.unfinished()[0].turns == 2
    assert rt.conversation_count() == 0
    assert rt.recover() == 1
    assert [row.state for row in done(rt, handle)] == ["done", "done"]
    assert rt.recover() == 0


def test_what_is_held_runs_before_anything_new_when_the_topic_is_opened(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two")
    rt = runtimes.open(path=tmp_path / "a.db", recover="hold")
    assert rt.send(topic(rt), "three").text == "three"
    assert said(rt, handle) == ["one", "one", "two", "two", "three", "three"]


def test_what_is_held_can_be_given_up(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two", steers=("steer",))
    rt = runtimes.open(path=tmp_path / "a.db", recover="hold")
    assert rt.recover(handle, mode="fail") == 1
    assert rt.unfinished() == []
    rows = rt.turns(handle)
    assert [(row.content, row.state) for row in rows] == [
        ("one", "failed"),
        ("two", "failed"),
        ("steer", "failed"),
    ]
    assert all(row.result is not None and "given up" in (row.result.error or "") for row in rows)
    assert rt.send(topic(rt), "new").text == "new"
    assert rt.transcript(handle)[0].content == "new"


def test_opening_with_fail_ends_everything_at_once(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one", "two")
    rt = runtimes.open(path=tmp_path / "a.db", recover="fail", agents=())
    assert rt.unfinished() == []
    assert [row.state for row in rt.turns(handle)] == ["failed", "failed"]
    assert runtimes.worker(rt).call(verify) == []


def test_a_key_gets_the_stored_failure_after_its_turn_was_given_up(
    runtimes: Runtimes, tmp_path: Path
) -> None:
    model, path = HeldModel(), tmp_path / "a.db"
    rt = runtimes.open(model)
    rt.submit(topic(rt), "one", key="k")
    model.next()
    as_killed(runtimes, rt, path)
    again = runtimes.open(path=path, recover="fail")
    result = again.send(topic(again), "one", key="k")
    assert (result.stop_reason, result.turn_id) == ("error", 1)


def test_recovering_one_session_says_what_is_wrong_with_it(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "one")
    rt = runtimes.open(path=tmp_path / "a.db", recover="hold", agents=())
    with pytest.raises(SessionNotFound):
        rt.recover("nothing")
    with pytest.raises(AgentNotRegistered):
        rt.recover(handle)
    assert rt.recover() == 0
    with pytest.raises(InvalidInput, match="mode"):
        rt.recover(mode="later")  # type: ignore[arg-type]


def test_an_unknown_way_to_recover_is_refused_and_no_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="run, hold, fail"):
        Runtime.open(tmp_path / "a.db", ScriptedModel(), recover="no")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# -- messages that take their process down -------------------------------------------------------------


def test_a_turn_that_was_begun_three_times_is_given_up_and_the_next_one_runs(
    runtimes: Runtimes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    handle = left_behind(runtimes, path, "poison", "fine")
    for attempt in (2, 3):
        model = HeldModel()
        rt = runtimes.open(model, path=path)
        model.next()
        assert [row.attempts for row in rt.turns(handle)] == [attempt, 0]  # stored before the model is asked
        after = tmp_path / f"{attempt}.db"
        as_killed(runtimes, rt, after)
        path = after
    with caplog.at_level(logging.ERROR, "palaver.conversation"):
        last = runtimes.open(path=path)
        poison, fine = done(last, handle)
    assert poison.state == "failed"
    assert poison.result is not None
    assert "begun 3 times" in (poison.result.error or "")
    assert fine.state == "done"
    assert any("begun 3 times" in record.message for record in caplog.records)
    assert runtimes.worker(last).call(verify) == []


def test_how_often_a_turn_is_begun_is_a_limit(runtimes: Runtimes, tmp_path: Path) -> None:
    handle = left_behind(runtimes, tmp_path / "a.db", "once")
    rt = runtimes.open(path=tmp_path / "a.db", limits=Limits(attempts=1))
    assert done(rt, handle)[0].state == "failed"


def test_an_answer_that_was_stored_is_not_given_up(runtimes: Runtimes, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    handle = left_behind(runtimes, path, "one")
    change(path, lambda db: db.execute("UPDATE turns SET attempts = 9"))
    store(path, HistoryEntry("user", "one", sender="alice"), HistoryEntry("assistant", "answered"))
    rt = runtimes.open(path=path)
    (row,) = done(rt, handle)
    assert row.state == "done"
    assert row.result is not None
    assert row.result.text == "answered"


def test_a_turn_that_others_have_overtaken_is_not_run_again(runtimes: Runtimes, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    handle = left_behind(runtimes, path, "one", "two")  # the end of the first could not be stored
    store(path, HistoryEntry("user", "one"))
    later = NewEntry(1, 1, 2, HistoryEntry("user", "two"), 0.0)
    update = SessionUpdate(1, 0.0, 0, 1, 2, "")
    change(path, lambda db: apply(db, [WriteSet(entries=(later,), session_updates=(update,))]))
    rt = runtimes.open(path=path)
    first, second = done(rt, handle)
    assert (first.state, second.state) == ("failed", "done")
    assert said(rt, handle) == ["one", "two", "two"]


# -- histories whose calls and results do not pair -----------------------------------------------------


def change(path: Path, what: Callable[[Database], object]) -> None:
    """Change a file that nobody has open."""
    db = open_database(path, create=False)
    what(db)
    db.commit()
    close_database(db)


def store(path: Path, *entries: HistoryEntry) -> None:
    """Store entries of turn 1 in session 1, as a program with a fault of its own might."""
    update = SessionUpdate(1, 0.0, 0, 1, len(entries), "")
    new = tuple(NewEntry(1, seq, 1, entry, 0.0) for seq, entry in enumerate(entries))
    change(path, lambda db: apply(db, [WriteSet(entries=new, session_updates=(update,))]))


@pytest.fixture(name="ended")
def _ended(runtimes: Runtimes, tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    left_behind(runtimes, path, "one")
    ended = TurnUpdate(1, "cancelled", finished_at=1.0)
    change(path, lambda db: apply(db, [WriteSet(turn_updates=(ended,))]))
    return path


def test_a_call_without_a_result_is_answered_before_a_model_is_asked(
    runtimes: Runtimes, ended: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = (ToolCall("a", "add"), ToolCall("b", "add"))
    store(
        ended,
        HistoryEntry("user", "one"),
        HistoryEntry("assistant", "", tool_calls=calls),
        HistoryEntry("tool", "1", tool_call_id="a", name="add"),
    )
    model = ScriptedModel()
    rt = runtimes.open(model, path=ended)
    with caplog.at_level(logging.WARNING, "palaver.conversation"):
        rt.send(topic(rt), "two")
    sent = model.requests[-1].messages[1:]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert sent[3]["tool_call_id"] == "b"
    assert "interrupted" in sent[3]["content"]
    assert "did not pair" in caplog.text
    # What is stored is what happened.
    assert [e.role for e in rt.transcript(rt.sessions()[0].handle)] == [
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
    ]


def test_a_result_without_its_call_is_shown_as_a_note(
    runtimes: Runtimes, ended: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(
        ended,
        HistoryEntry("user", "one"),
        HistoryEntry("tool", "42", tool_call_id="gone", name="add"),
        HistoryEntry("assistant", "well"),
    )
    model = ScriptedModel()
    rt = runtimes.open(model, path=ended)
    with caplog.at_level(logging.WARNING, "palaver.conversation"):
        rt.send(topic(rt), "two")
    sent = model.requests[-1].messages[1:]
    assert [message["role"] for message in sent] == ["user", "user", "assistant", "user"]
    assert "42" in sent[1]["content"]
    assert "did not pair" in caplog.text


def test_injected_entries_that_do_not_pair_are_repaired_too(runtimes: Runtimes) -> None:
    class Inject:
        def before_run(self, agent: str, conversation_id: int, history: object) -> list[HistoryEntry]:
            return [
                HistoryEntry("assistant", "", tool_calls=(ToolCall("x", "add"),)),
                HistoryEntry("tool", "?", tool_call_id="y", name="add"),
            ]

    model = ScriptedModel()
    rt = runtimes.open(model, hooks=[Inject()])
    rt.send(topic(rt), "hello")
    sent = model.requests[-1].messages[1:]
    assert [message["role"] for message in sent] == ["assistant", "tool", "user", "user"]
    assert sent[1]["tool_call_id"] == "x"
