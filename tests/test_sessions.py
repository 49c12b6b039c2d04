"""Stored sessions: opened, resumed, listed, compacted, deleted, moved to another file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from sqlite_utils import Database

from persistence import memories
from persistence.database import close_database, open_database
from persistence.errors import RecordError, RevisionMoved, SessionNotFound, StorageError
from persistence.records import HistoryEntry, StoredSession, ToolCall, TurnResult, TurnRow
from persistence.sessions import (
    delete_session,
    export_session,
    find_session,
    highest_ids,
    import_session,
    list_sessions,
    load_session,
    open_session,
    set_title,
    store_compaction,
    transcript,
)
from persistence.turns import accept_keyed, get_turn, turns_of
from persistence.verify import verify
from persistence.writes import (
    NewEntry,
    NewEvent,
    NewSteer,
    SessionUpdate,
    SteerUpdate,
    TurnUpdate,
    WriteSet,
    apply,
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path / "agents.db")
    yield db
    close_database(db)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path / "other.db")
    yield db
    close_database(db)


def make(db: Database, handle: str = "h", topic: str = "t", sender: str = "s", **more: Any) -> StoredSession:
    wanted = {"agent": "a", "at": 1.25, "scope": sender, "description": "about it", **more}
    opened = open_session(db, sender=sender, topic=topic, handle=handle, **wanted)
    assert opened is not None
    return opened[0]


def say(db: Database, session: StoredSession, turn_id: int, *texts: str, at: float = 2.0) -> None:
    """A whole turn, stored as its end is."""
    now = load_session(db, session.summary.handle)
    entries = tuple(
        NewEntry(now.id, seq, turn_id, HistoryEntry("assistant" if n % 2 else "user", text), at)
        for n, (seq, text) in enumerate(
            zip(range(now.next_seq, now.next_seq + len(texts)), texts, strict=True)
        )
    )
    result = TurnResult(texts[-1], "text_response", steps=1, turn_id=turn_id)
    apply(
        db,
        [
            WriteSet(
                new_turns=(TurnRow(turn_id, now.id, "s", texts[0], "running", 1, accepted_at=at),),
                turn_updates=(TurnUpdate(turn_id, "done", result=result, finished_at=at),),
                entries=entries,
                session_updates=(
                    SessionUpdate(now.id, at, 1500, now.revision + 1, now.next_seq + len(texts), ""),
                ),
                events=(NewEvent(now.id, turn_id, at, '{"v":1}'),),
            )
        ],
    )


def compact(db: Database, handle: str, name: str, content: str = "summary", **more: Any) -> None:
    now = load_session(db, handle)
    wanted = {"covered_seq": now.next_seq, "expected_revision": now.revision, "scope": "s", **more}
    store_compaction(db, session_id=now.id, archive_name=name, content=content, agent="a", at=3.0, **wanted)


def texts(entries: Any) -> list[str]:
    return [entry.content for entry in entries]


# -- opening ---------------------------------------------------------------------------------------


def test_a_new_topic_is_made_once_and_resumed_then(db: Database) -> None:
    first = open_session(
        db, agent="a", sender="s", topic="t", handle="h1", at=1.25, scope="s", description="about it"
    )
    again = open_session(
        db, agent="a", sender="s", topic="t", handle="h2", at=9.0, scope="s", description="other words"
    )
    assert first is not None
    assert again is not None
    assert first[1] is False
    assert again == (first[0], True)
    assert first[0].summary.handle == "h1"
    assert (first[0].live, first[0].next_seq, first[0].archive_content) == ((), 0, None)
    (topic,) = memories.entries(db, agent="a", scope="s")
    assert (topic.kind, topic.name, topic.content) == ("topic", "t", "about it")


def test_without_a_description_nothing_is_made(db: Database) -> None:
    assert (
        open_session(db, agent="a", sender="s", topic="t", handle="h", at=1.0, scope="s", description=None)
        is None
    )
    assert list_sessions(db) == []
    assert memories.list_entries(db) == []


def test_a_topic_is_one_senders_and_its_description_too(db: Database) -> None:
    make(db, "h1", sender="alice", description="alice's")
    make(db, "h2", sender="bob", description="bob's")
    assert [m.content for m in memories.entries(db, agent="a", scope="alice")] == ["alice's"]
    assert [m.content for m in memories.entries(db, agent="a", scope="bob")] == ["bob's"]
    memories.remember(db, agent="a", scope="bob", name="x", content="note", aliases=(), at=1.0)
    make(db, "h3", topic="x", sender="bob", description="topic x")
    assert [m.content for m in memories.entries(db, agent="a", scope="bob", kind="topic")] == [
        "bob's",
        "topic x",
    ]


def test_the_latest_session_of_a_topic_wins(db: Database) -> None:
    make(db, "h1")
    db.execute(
        """INSERT INTO sessions (handle, agent, sender, topic, scope, created_at, updated_at)
            VALUES ('h0', 'a', 's', 't', 's', 0.5, 0.5)"""
    )
    assert make(db, "h9").summary.handle == "h0"


def test_a_handle_is_used_once(db: Database) -> None:
    make(db, "h")
    with pytest.raises(sqlite3.IntegrityError, match=r"sessions\.handle"):
        make(db, "h", topic="another")


# -- reading ---------------------------------------------------------------------------------------


def test_a_session_is_loaded_with_its_history(db: Database) -> None:
    session = make(db)
    say(db, session, 1, "hi", "hello")
    say(db, session, 2, "more", "yes")
    loaded = load_session(db, "h")
    assert texts(loaded.live) == ["hi", "hello", "more", "yes"]
    assert (loaded.revision, loaded.next_seq) == (2, 4)
    summary = loaded.summary
    assert (summary.created_at, summary.updated_at, summary.uptime_s) == (1.25, 2.0, 1.5)
    assert summary.entry_count == 4
    assert find_session(db, "h") == summary
    assert list_sessions(db) == [summary]


def test_every_field_of_an_entry_survives(db: Database) -> None:
    session = make(db)
    entries = [
        HistoryEntry("user", "né\n\x00 🙂", sender="s"),
        HistoryEntry(
            "assistant",
            "",
            (ToolCall("1", "f", '{"a": 1}'), ToolCall("2", "g")),
            reasoning="hm",
            agent="guest",
        ),
        HistoryEntry("tool", "", tool_call_id="1", name="f"),
        HistoryEntry("tool", "x" * 100_000, tool_call_id="2", name="g"),
    ]
    apply(
        db,
        [WriteSet(entries=tuple(NewEntry(session.id, n, 1, entry, 2.0) for n, entry in enumerate(entries)))],
    )
    assert list(load_session(db, "h").live) == transcript(db, "h") == entries


def test_a_long_history_is_read_whole_and_in_order_in_few_rows(db: Database) -> None:
    session = make(db)
    apply(
        db,
        [
            WriteSet(
                entries=tuple(
                    NewEntry(session.id, seq, 1, HistoryEntry("user", f"{seq}"), 2.0) for seq in range(1500)
                )
            )
        ],
    )
    seen: list[str] = []
    with db.tracer(lambda sql, _parameters: seen.append(sql)):
        loaded = load_session(db, "h")
    assert texts(loaded.live) == [f"{seq}" for seq in range(1500)]
    assert len(seen) <= 5
    assert "entries_in_order (session_id=? AND seq>? AND seq<?)" in str(
        db.execute(f"EXPLAIN QUERY PLAN {seen[-1]}", [1, 0, 10]).fetchall()
    )


def test_what_is_not_there_is_said(db: Database) -> None:
    assert find_session(db, "none") is None
    for function in (load_session, transcript, export_session):
        with pytest.raises(SessionNotFound, match="'none'"):
            function(db, "none")
    assert delete_session(db, "none") is False


@pytest.mark.parametrize("body", ["no json", "two\nlines", '{"v":1,"role":"user"},{"v":1,"role":"user"}', ""])
def test_an_entry_that_cannot_be_read_is_an_error_not_a_guess(db: Database, body: str) -> None:
    say(db, make(db), 1, "hi", "hello")
    db.execute("UPDATE entries SET body = ? WHERE seq = 1", [body])
    with pytest.raises(RecordError):
        load_session(db, "h")
    with pytest.raises(RecordError):
        transcript(db, "h")


def test_sessions_are_listed_by_their_last_change(db: Database) -> None:
    for n, (topic, sender) in enumerate([("t1", "s"), ("t2", "s"), ("t1", "z")], start=1):
        make(db, f"h{n}", topic=topic, sender=sender, at=float(n))
    say(db, load_session(db, "h1"), 1, "hi", at=50.0)

    def handles(**filters: Any) -> list[str]:
        return [each.handle for each in list_sessions(db, **filters)]

    assert handles() == ["h1", "h3", "h2"]
    assert handles(sender="s") == ["h1", "h2"]
    assert handles(topic="t1") == ["h1", "h3"]
    assert handles(agent="a", sender="z", topic="t1") == ["h3"]
    assert handles(agent="b") == []
    assert handles(limit=2) == ["h1", "h3"]
    assert handles(limit=0) == []


def test_a_title_is_set_once(db: Database) -> None:
    session = make(db)
    assert set_title(db, session.id, "First") is True
    assert set_title(db, session.id, "Second") is False
    assert set_title(db, 99, "No session") is False
    assert load_session(db, "h").summary.title == "First"


# -- compaction ------------------------------------------------------------------------------------


def test_archived_and_live_entries_are_the_whole_transcript(db: Database) -> None:
    session = make(db)
    say(db, session, 1, "one", "two")
    compact(db, "h", "t-1", "first summary")
    say(db, session, 2, "three", "four")
    before = load_session(db, "h")
    assert texts(before.live) == ["three", "four"]
    assert before.archive_content == "first summary"
    assert before.summary.archive == "t-1"
    compact(db, "h", "t-2", "second summary", covered_seq=3)
    after = load_session(db, "h")
    assert texts(after.live) == ["four"]
    assert after.archive_content == "second summary"
    assert after.revision == before.revision + 1
    assert texts(transcript(db, "h")) == ["one", "two", "three", "four"]
    assert [m.name for m in memories.entries(db, agent="a", scope="s", kind="archive")] == ["t-1", "t-2"]
    assert verify(db) == []


def test_a_compaction_of_a_session_that_moved_on_is_refused(db: Database) -> None:
    say(db, make(db), 1, "one", "two")
    with pytest.raises(RevisionMoved, match="at revision 1, not 0"):
        compact(db, "h", "t-1", expected_revision=0)
    assert memories.entries(db, agent="a", scope="s", kind="archive") == []
    assert load_session(db, "h").summary.archive is None


def test_an_archive_name_is_given_once_in_a_scope(db: Database) -> None:
    for handle, topic in (("h1", "t1"), ("h2", "t2")):
        say(db, make(db, handle, topic=topic), int(handle[1]), "one", "two")
    compact(db, "h1", "t-1")
    with pytest.raises(StorageError, match="'t-1' is taken"):
        compact(db, "h2", "t-1")
    compact(db, "h2", "t-1", scope="")  # another scope, another name
    assert verify(db) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"covered_seq": 5}, "between entry 2 and 4"),
        ({"covered_seq": 1}, "between entry 2 and 4"),
        ({"name": "t-02"}, "is no name of an archive"),
        ({"name": "plain"}, "is no name of an archive"),
    ],
)
def test_a_compaction_that_makes_no_sense_is_refused(
    db: Database, wrong: dict[str, Any], message: str
) -> None:
    session = make(db)
    say(db, session, 1, "one", "two")
    compact(db, "h", "t-1")
    say(db, session, 2, "three", "four")
    with pytest.raises(StorageError, match=message):
        compact(db, "h", **{"name": "t-2", **wrong})


def test_a_compaction_of_an_unknown_session_is_refused(db: Database) -> None:
    with pytest.raises(StorageError, match="session 7 is not stored"):
        store_compaction(
            db,
            session_id=7,
            expected_revision=0,
            covered_seq=0,
            archive_name="t-1",
            content="",
            agent="a",
            scope="s",
            at=1.0,
        )


def test_an_archive_is_found_in_the_scope_that_it_was_stored_in(db: Database) -> None:
    say(db, make(db), 1, "one", "two")
    compact(db, "h", "t-1", "shared summary", scope="")
    db.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES ('a', 's', 'archive', 't-1', 'somebody else''s', 1.0)"""
    )
    assert load_session(db, "h").archive_content == "shared summary"


def test_a_missing_archive_is_told_by_none(db: Database) -> None:
    say(db, make(db), 1, "one", "two")
    compact(db, "h", "t-1")
    db.execute("DELETE FROM memory_entries WHERE kind = 'archive'")
    loaded = load_session(db, "h")
    assert (loaded.summary.archive, loaded.archive_content) == ("t-1", None)


# -- deletion --------------------------------------------------------------------------------------


def rich(db: Database, handle: str = "h", turn_id: int = 10, steer_id: int = 20) -> StoredSession:
    """A session with something in every table."""
    session = make(db, handle)
    say(db, session, turn_id, "one", "two")
    compact(db, handle, "t-1", "summary of it")
    say(db, session, turn_id + 1, "three", "four")
    keyed = TurnRow(turn_id + 2, session.id, "s", "five", "queued", key="k", accepted_at=4.0)
    assert accept_keyed(db, keyed, agent="a", sender="s") is None
    steer = NewSteer(steer_id, session.id, turn_id + 1, "s", "left", 2.0)
    apply(db, [WriteSet(new_steers=(steer, steer._replace(id=steer_id + 1)))])
    apply(db, [WriteSet(steer_updates=(SteerUpdate(steer_id, turn_id + 1),))])
    memories.remember(db, agent="a", scope="s", name="n", content="note", aliases=["x"], at=1.0)
    return load_session(db, handle)


def test_a_deleted_session_leaves_only_its_memory(db: Database) -> None:
    rich(db)
    make(db, "other", topic="other")
    assert delete_session(db, "h", at=9.0) is True
    assert delete_session(db, "h") is False
    for table in ("turns", "keys", "steers", "entries", "compactions", "events"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)], table
    assert [each.handle for each in list_sessions(db)] == ["other"]
    assert {m.name for m in memories.entries(db, agent="a", scope="s")} == {"t", "t-1", "n", "other"}
    with pytest.raises(SessionNotFound):
        load_session(db, "h")
    assert verify(db) == []


def test_ids_of_deleted_rows_are_not_given_again(db: Database) -> None:
    assert highest_ids(db) == (0, 0)
    session = rich(db)
    assert highest_ids(db) == (12, 21)
    delete_session(db, "h")
    assert highest_ids(db) == (12, 21)
    assert make(db, "h2").id > session.id


def test_a_deleted_topic_can_be_opened_anew(db: Database) -> None:
    rich(db)
    delete_session(db, "h")
    assert (
        open_session(db, agent="a", sender="s", topic="t", handle="h2", at=1.0, scope="s", description=None)
        is None
    )
    assert make(db, "h2", description="again").live == ()
    assert [m.content for m in memories.entries(db, agent="a", scope="s", kind="topic")] == ["about it"]


# -- moving ----------------------------------------------------------------------------------------


def test_an_exported_session_is_the_same_in_another_file(db: Database, other: Database) -> None:
    before = rich(db)
    bundle = json.loads(json.dumps(export_session(db, "h")))
    imported = import_session(other, bundle)
    after = load_session(other, "h")
    assert evolve(after, id=before.id) == before
    assert imported.session_id == after.id
    assert imported.turn_ids == {10: 10, 11: 11, 12: 12}
    assert imported.steer_ids == {20: 20, 21: 21}
    assert transcript(other, "h") == transcript(db, "h")
    for turn in turns_of(db, before.id):
        assert get_turn(other, turn.id) == evolve(turn, session_id=after.id)
    assert memories.list_entries(other) == memories.list_entries(db)
    assert verify(other) == []
    assert json.loads(json.dumps(export_session(other, "h"))) == bundle


def test_an_imported_key_still_means_the_same_turn(db: Database, other: Database) -> None:
    rich(db)
    import_session(other, export_session(db, "h"))
    again = TurnRow(99, 1, "s", "five", "queued", key="k", accepted_at=5.0)
    kept = accept_keyed(other, again, agent="a", sender="s")
    assert kept is not None
    assert kept.id == 12


def test_ids_that_are_taken_are_given_anew_everywhere(db: Database, other: Database) -> None:
    rich(db)
    busy = make(other, "busy", topic="busy", sender="z")
    say(other, busy, 11, "mine", "yours")
    apply(other, [WriteSet(new_steers=(NewSteer(20, busy.id, 11, "z", "x", 2.0),))])
    imported = import_session(other, export_session(db, "h"))
    assert imported.turn_ids == {10: 10, 11: 22, 12: 12}
    assert imported.steer_ids == {20: 23, 21: 21}
    moved = get_turn(other, 22)
    assert moved is not None
    assert moved.result is not None
    assert moved.result.turn_id == 22
    steers = other.execute("SELECT id, turn_id, applied_turn FROM steers WHERE id > 20 ORDER BY id")
    assert steers.fetchall() == [(21, 22, None), (23, 22, 22)]
    assert highest_ids(other) == (22, 23)
    assert texts(load_session(other, "busy").live) == ["mine", "yours"]
    db_of_turn = other.execute("SELECT DISTINCT turn_id FROM entries WHERE session_id <> ?", [busy.id])
    assert sorted(row[0] for row in db_of_turn.fetchall()) == [10, 22]
    assert verify(other) == []


def test_a_handle_that_is_there_is_not_overwritten(db: Database, other: Database) -> None:
    rich(db)
    bundle = export_session(db, "h")
    import_session(other, bundle)
    with pytest.raises(StorageError, match="stored here already"):
        import_session(other, bundle)


def test_memory_that_is_there_must_be_equal(db: Database, other: Database) -> None:
    rich(db)
    bundle = export_session(db, "h")
    other.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES ('a', 's', 'archive', 't-1', 'another summary', 1.0)"""
    )
    with pytest.raises(StorageError, match=r"archive 't-1'.*other content"), other.atomic():
        import_session(other, bundle)
    assert list_sessions(other) == []
    other.execute("UPDATE memory_entries SET content = 'summary of it'")
    import_session(other, bundle)
    assert load_session(other, "h").archive_content == "summary of it"
    assert verify(other) == []


def test_sessions_that_share_a_scope_can_all_be_moved(db: Database, other: Database) -> None:
    for n in (1, 2):
        session = make(db, f"h{n}", topic=f"t{n}")
        say(db, session, n, "one", "two")
        compact(db, f"h{n}", f"t-{n}", f"summary {n}")
    for n in (1, 2):
        import_session(other, export_session(db, f"h{n}"))
        assert verify(other) == []
    assert [load_session(other, f"h{n}").archive_content for n in (1, 2)] == ["summary 1", "summary 2"]
    assert len(memories.list_entries(other)) == 4


def test_a_shared_archive_moves_with_its_session(db: Database, other: Database) -> None:
    say(db, make(db, scope=""), 1, "one", "two")
    compact(db, "h", "t-1", "shared", scope="")
    import_session(other, export_session(db, "h"))
    assert load_session(other, "h").archive_content == "shared"
    assert verify(other) == []


@pytest.mark.parametrize(
    "bundle", [{}, {"v": 2}, {"v": 1}, {"v": 1, "session": {"handle": "h"}}, {"v": 1, "session": 5}]
)
def test_what_is_no_bundle_is_refused(db: Database, bundle: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="bundle"):
        import_session(db, bundle)
