"""`verify` finds each kind of damage, names it, and finds nothing in what is sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from persistence.database import close_database, open_database
from persistence.records import HistoryEntry, ToolCall, TurnResult, TurnRow
from persistence.sessions import delete_session, open_session, store_compaction
from persistence.turns import accept_keyed
from persistence.verify import verify
from persistence.writes import NewEntry, NewSteer, SteerUpdate, TurnUpdate, WriteSet, apply


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A sound file: a session with a tool step, two archives, a steer, a key."""
    db = open_database(tmp_path / "agents.db")
    open_session(db, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s", description="d")
    entries = [
        HistoryEntry("user", "hi"),
        HistoryEntry("assistant", "", (ToolCall("c1", "f"), ToolCall("c2", "g"))),
        HistoryEntry("tool", "1", tool_call_id="c1", name="f"),
        HistoryEntry("tool", "2", tool_call_id="c2", name="g"),
        HistoryEntry("assistant", "done"),
    ]
    key = TurnRow(1, 1, "s", "hi", "queued", key="k", accepted_at=1.0)
    assert accept_keyed(db, key, agent="a", sender="s") is None
    result = TurnResult("done", "text_response", turn_id=1)
    waiting = TurnRow(2, 1, "s", "next", "queued", accepted_at=1.0)
    apply(
        db,
        [
            WriteSet(
                new_turns=(waiting,),
                new_steers=(NewSteer(1, 1, 1, "s", "left", 1.0),),
                entries=tuple(NewEntry(1, seq, 1, entry, 2.0) for seq, entry in enumerate(entries)),
            ),
            WriteSet(
                turn_updates=(TurnUpdate(1, "done", 1, result, None, 2.0),),
                steer_updates=(SteerUpdate(1, 1),),
            ),
        ],
    )
    for n, covered in ((1, 4), (2, 5)):
        store_compaction(
            db,
            session_id=1,
            expected_revision=n - 1,
            covered_seq=covered,
            archive_name=f"t-{n}",
            content=f"summary {n}",
            agent="a",
            scope="s",
            at=3.0,
        )
    db.execute("DROP TRIGGER turns_stay_ended")  # the damage below has to get past it
    db.execute("PRAGMA foreign_keys=OFF")
    yield db
    close_database(db)


def test_a_sound_file_has_no_problems(db: Database) -> None:
    assert verify(db) == []


def test_a_new_file_has_no_problems() -> None:
    db = open_database(":memory:")
    assert verify(db) == []
    close_database(db)


DAMAGE = {
    "gap": ("DELETE FROM entries WHERE seq = 2", "entries: session h: entry 4 has seq 3 where 2 should"),
    "first entry": ("DELETE FROM entries WHERE seq = 0", "has seq 1 where 0 should follow"),
    "last entry": ("DELETE FROM entries WHERE seq = 4", "sessions: session h has next_seq 5, but 4 entries"),
    "next_seq": ("UPDATE sessions SET next_seq = 6", "session h has next_seq 6, but 5 entries"),
    "body": ("UPDATE entries SET body = '{}' WHERE seq = 1", "entries: session h: entry 2: "),
    "body version": ("""UPDATE entries SET body = '{"v":7}' WHERE seq = 1""", "version 7"),
    "result order": (
        "UPDATE entries SET body = replace(body, 'c1', 'c9') WHERE seq = 2",
        r"entry 2 calls tools as \['c1', 'c2'\], but the results that follow are of \['c9', 'c2'\]",
    ),
    "result without call": (
        """UPDATE entries SET body = '{"v":1,"role":"tool","tool_call_id":"x"}' WHERE seq = 4""",
        "entry 5 is a tool result without a call before it",
    ),
    "call without result": (
        """UPDATE entries SET body = '{"v":1,"role":"user"}' WHERE seq = 3""",
        r"the results that follow are of \['c1'\]",
    ),
    "turn of an entry": (
        "UPDATE entries SET turn_id = 9 WHERE seq = 1",
        "entry 2 is of turn 9, which is not",
    ),
    "told by nobody": ("UPDATE entries SET turn_id = 2", "turns: session h: turn 1 is done, but no entry"),
    "finished_at": (
        "UPDATE turns SET finished_at = NULL WHERE id = 1",
        "turn 1 is done and has no finished_at",
    ),
    "no result": ("UPDATE turns SET result = NULL WHERE id = 1", "turn 1 is done and has no result"),
    "early end": (
        "UPDATE turns SET finished_at = 1.0 WHERE id = 2",
        "turn 2 is queued and has a finished_at",
    ),
    "result": ("UPDATE turns SET result = 'x' WHERE id = 1", "turns: session h: turn 1: .* not JSON"),
    "other state": (
        "UPDATE turns SET state = 'failed' WHERE id = 1",
        "is failed, but its result stopped by text",
    ),
    "other result": (
        """UPDATE turns SET result = replace(result, '"turn_id":1', '"turn_id":5') WHERE id = 1""",
        "turn 1 has the result of turn 5",
    ),
    "archive": (
        "DELETE FROM memory_entries WHERE name = 't-1'",
        "points to the archive 't-1', which is not in",
    ),
    "owner": ("UPDATE memory_entries SET handle = 'x' WHERE name = 't-1'", "which is of session x"),
    "marker": ("DELETE FROM compactions WHERE id = 1", "archive 2 't-1' of session h has no marker"),
    "newest marker": ("DELETE FROM compactions WHERE id = 2", r"session h has the archive \('t-2', 5\), but"),
    "pointer": (
        "UPDATE sessions SET archive = 't-1'",
        r"session h has the archive \('t-1', 5\), but its newest",
    ),
    "live part": ("UPDATE sessions SET archive_seq = 4", r"session h has the archive \('t-2', 4\), but its"),
    "descending": (
        "UPDATE compactions SET seq = 5 - seq",
        "marker 2 is at entry 0, not between entry 1 and 5",
    ),
    "far marker": ("UPDATE compactions SET seq = 9 WHERE id = 2", "marker 2 is at entry 9"),
    "archive name": ("UPDATE memory_entries SET name = 't-02' WHERE name = 't-2'", "is not named SLUG-N"),
    "stranger": ("UPDATE sessions SET handle = 'new'", "is of session h, which never was in this file"),
    "aliases": (
        "UPDATE memory_entries SET aliases = '5' WHERE id = 1",
        "memory_entries: topic 1 't': aliases",
    ),
    "steer": ("UPDATE steers SET turn_id = 8", "steers: session h: steer 1 was accepted for turn 8"),
    "applied steer": (
        "UPDATE steers SET applied_turn = 8",
        "steer 1 was applied to turn 8, which is not there",
    ),
    "key": ("UPDATE turns SET key = 'z' WHERE id = 1", "keys: session h: the key 'k' points to turn 1"),
    "foreign key": ("UPDATE steers SET session_id = 77", "steers: row 1 refers to a row of sessions"),
    "migration": (
        "DELETE FROM _sqlite_migrations WHERE name = 'm003_history'",
        "m003_history is not applied",
    ),
    "search": ("DELETE FROM memory_entries_fts WHERE rowid = 1", "full-text index does not fit"),
    "lost table": ("DROP TABLE steers", "steers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(db: Database, name: str) -> None:
    sql, expected = DAMAGE[name]
    db.execute(sql)
    problems = verify(db)
    assert any(re.search(expected, line) for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_archives_of_a_deleted_session_are_no_problem(db: Database) -> None:
    db.execute("PRAGMA foreign_keys=ON")
    assert delete_session(db, "h")
    assert verify(db) == []
    db.execute("DELETE FROM deleted_sessions")
    assert len(verify(db)) == 2


def test_a_turn_that_said_nothing_needs_no_entry(db: Database) -> None:
    silent = TurnResult("", "no_action", turn_id=3)
    row = TurnRow(3, 1, "s", "hm", "done", accepted_at=1.0, finished_at=2.0, result=silent)
    apply(db, [WriteSet(new_turns=(row,))])
    assert verify(db) == []


def test_broken_pages_are_problems_not_exceptions(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    db = open_database(path)
    for n in range(50):
        open_session(
            db, agent="a", sender="s", topic=f"t{n}", handle=f"h{n}", at=1.0, scope="s", description="d" * 500
        )
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sessions'").fetchall()[0][0]
    close_database(db)
    content = bytearray(path.read_bytes())
    content[(root - 1) * 4096 : root * 4096] = b"\xab" * 4096
    path.write_bytes(content)
    db = open_database(path)
    problems = verify(db)
    close_database(db)
    assert any(line.startswith("database: ") for line in problems)


def test_verify_changes_nothing(db: Database) -> None:
    before = list(db.conn.iterdump())
    verify(db)
    assert list(db.conn.iterdump()) == before
