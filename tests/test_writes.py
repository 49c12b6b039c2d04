"""The mergeable writes: one statement for many, and still each write set by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from persistence.committer import Committer, Item
from persistence.database import close_database, open_database
from persistence.errors import StorageError
from persistence.records import HistoryEntry, TurnResult, TurnRow, TurnState, Usage
from persistence.sessions import open_session, transcript
from persistence.turns import accept_keyed, get_turn, turns_of, unfinished
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

RESULT = TurnResult("hello", "text_response", steps=2, usage=Usage(1, 2, 3), model="m", turn_id=1)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path / "agents.db")
    for n in (1, 2, 3):
        made = open_session(
            db, agent="a", sender="s", topic=f"t{n}", handle=f"h{n}", at=1.0, scope="s", description="d"
        )
        assert made is not None
        assert made[0].id == n
    yield db
    close_database(db)


def row(id_: int, session_id: int = 1, state: TurnState = "queued", **more: Any) -> TurnRow:
    return TurnRow(id_, session_id, "s", f"message {id_}", state, accepted_at=2.0, **more)


def entry(session_id: int, seq: int, turn_id: int = 1) -> NewEntry:
    return NewEntry(session_id, seq, turn_id, HistoryEntry("user", f"entry {seq}"), 3.0)


def session(id_: int, next_seq: int, *, title: str = "", revision: int = 1) -> SessionUpdate:
    return SessionUpdate(id_, 5.0 + next_seq, 1000 * next_seq, revision, next_seq, title)


def rows(db: Database, sql: str) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


# -- turns -----------------------------------------------------------------------------------------


def test_a_turn_is_read_back_equal(db: Database) -> None:
    full = TurnRow(7, 1, "s", "c", "queued", 2, "k", "g", "auto", 4.5, None, None, "e")
    apply(db, [WriteSet(new_turns=(full,))])
    assert get_turn(db, 7) == full
    assert get_turn(db, 8) is None


def test_an_update_changes_what_it_names_and_keeps_the_rest(db: Database) -> None:
    apply(db, [WriteSet(new_turns=(row(1, key="k"),))])
    apply(db, [WriteSet(turn_updates=(TurnUpdate(1, "running", attempts=2),))])
    assert get_turn(db, 1) == row(1, key="k", state="running", attempts=2)
    apply(db, [WriteSet(turn_updates=(TurnUpdate(1, "done", result=RESULT, finished_at=9.0),))])
    assert get_turn(db, 1) == row(1, key="k", state="done", attempts=2, result=RESULT, finished_at=9.0)


def test_updates_of_one_turn_are_merged_column_by_column(db: Database) -> None:
    failed = TurnUpdate(1, "failed", result=RESULT, error="it broke", finished_at=9.0)
    apply(
        db,
        [
            WriteSet(new_turns=(row(1),)),
            WriteSet(turn_updates=(TurnUpdate(1, "running", attempts=1),)),
            WriteSet(turn_updates=(TurnUpdate(1, "running", attempts=2),)),
            WriteSet(turn_updates=(failed,)),
        ],
    )
    assert get_turn(db, 1) == row(
        1, state="failed", attempts=2, error="it broke", result=RESULT, finished_at=9.0
    )


@pytest.mark.parametrize("ended", ["done", "failed", "cancelled", "closed"])
@pytest.mark.parametrize("merged", [True, False])
def test_a_turn_that_has_ended_stays_as_it_ended(db: Database, ended: TurnState, merged: bool) -> None:
    end = WriteSet(new_turns=(row(1),), turn_updates=(TurnUpdate(1, ended, finished_at=9.0),))
    back = WriteSet(turn_updates=(TurnUpdate(1, "running"),))
    committer_sets = [[end, back]] if merged else [[end], [back]]
    errors = [error for sets in committer_sets for error in commit(db, sets)]
    assert errors[0] is None
    assert isinstance(errors[1], StorageError)
    assert "ended" in str(errors[1])
    turn = get_turn(db, 1)
    assert turn is not None
    assert turn.state == ended


def test_an_update_of_an_unknown_row_is_refused_and_names_it(db: Database) -> None:
    apply(db, [WriteSet(new_turns=(row(1),))])
    with pytest.raises(StorageError, match="turn 77 is not stored"):
        apply(db, [WriteSet(turn_updates=(TurnUpdate(77, "done"),))])
    with pytest.raises(StorageError, match="session 99 was deleted"):
        apply(db, [WriteSet(session_updates=(session(99, 0),))])
    with pytest.raises(StorageError, match="steer 55 is not stored"):
        apply(db, [WriteSet(steer_updates=(SteerUpdate(55, 1),))])


def test_turns_are_listed_by_session_and_state(db: Database) -> None:
    apply(
        db,
        [
            WriteSet(new_turns=(row(5), row(3), row(4, session_id=2))),
            WriteSet(turn_updates=(TurnUpdate(3, "running"),)),
            WriteSet(new_turns=(row(9, state="closed"),)),
        ],
    )
    assert [t.id for t in turns_of(db, 1)] == [3, 5, 9]
    assert [t.id for t in turns_of(db, 1, ["queued", "closed"])] == [5, 9]
    assert turns_of(db, 1, []) == []
    assert [t.id for t in unfinished(db)] == [3, 4, 5]


# -- keys ------------------------------------------------------------------------------------------


def accept(db: Database, turn: TurnRow, agent: str = "a", sender: str = "s") -> TurnRow | None:
    return accept_keyed(db, turn, agent=agent, sender=sender)


def test_a_fresh_key_stores_the_turn_and_a_used_one_gives_the_old_turn(db: Database) -> None:
    first = row(1, key="k")
    assert accept(db, first) is None
    assert accept(db, evolve(first, id=2, content="other")) == first
    assert [t.id for t in turns_of(db, 1)] == [1]


def test_a_key_is_one_senders_of_one_agent(db: Database) -> None:
    for n, (agent, sender) in enumerate([("a", "s"), ("a", "z"), ("b", "s")], start=1):
        assert accept(db, row(n, key="k"), agent, sender) is None


def test_an_old_key_is_free_again(db: Database) -> None:
    first = row(1, key="k")
    assert accept(db, first) is None
    day = first.accepted_at + 86_400
    assert accept(db, evolve(first, id=2, accepted_at=day)) == first
    assert accept(db, evolve(first, id=2, accepted_at=day + 1)) == first  # its turn has not ended
    ended = TurnUpdate(1, "done", result=TurnResult("done", "text_response"), finished_at=3.0)
    apply(db, [WriteSet(turn_updates=(ended,))])
    assert accept(db, evolve(first, id=3, accepted_at=day + 1)) is None
    assert accept(db, evolve(first, id=4, accepted_at=day + 2)) == evolve(first, id=3, accepted_at=day + 1)


# -- sessions and entries --------------------------------------------------------------------------


def test_entries_move_their_session_on(db: Database) -> None:
    apply(
        db,
        [
            WriteSet(new_turns=(row(1),)),
            WriteSet(entries=(entry(1, 0), entry(1, 1)), session_updates=(session(1, 2, title="t"),)),
            WriteSet(entries=(entry(2, 0),)),
            WriteSet(entries=(entry(1, 2),), session_updates=(session(1, 3, revision=2),)),
        ],
    )
    assert rows(db, "SELECT id, next_seq, updated_at, uptime_ms, revision, title FROM sessions") == [
        (1, 3, 8.0, 3000, 2, "t"),
        (2, 1, 1.0, 0, 0, ""),
        (3, 0, 1.0, 0, 0, ""),
    ]
    assert [e.content for e in transcript(db, "h1")] == ["entry 0", "entry 1", "entry 2"]


@pytest.mark.parametrize(
    "bad",
    [
        WriteSet(entries=(entry(1, 3),)),
        WriteSet(entries=(entry(1, 1),)),
        WriteSet(entries=(entry(1, 2), entry(1, 4))),
        WriteSet(entries=(entry(1, 2), entry(1, 2))),
        WriteSet(entries=(entry(1, 2),), session_updates=(session(1, 4),)),
        WriteSet(entries=(entry(1, 2),), session_updates=(session(1, 2),)),
        WriteSet(session_updates=(session(1, 3),)),
        WriteSet(session_updates=(session(1, 0),)),
        WriteSet(entries=(entry(99, 0),)),
    ],
)
@pytest.mark.parametrize("merged", [True, False])
def test_a_gap_in_a_history_is_never_stored(db: Database, bad: WriteSet, merged: bool) -> None:
    good = WriteSet(entries=(entry(1, 0), entry(1, 1)), session_updates=(session(1, 2),))
    batches = [[good, bad]] if merged else [[good], [bad]]
    errors = [error for sets in batches for error in commit(db, sets)]
    assert errors[0] is None
    assert isinstance(errors[1], StorageError)
    assert rows(db, "SELECT seq FROM entries") == [(0,), (1,)]


def test_after_a_lost_write_nothing_is_stored_behind_the_gap(db: Database) -> None:
    lost = WriteSet(
        entries=(entry(1, 0),), session_updates=(session(1, 1),), turn_updates=(TurnUpdate(77, "done"),)
    )
    behind = WriteSet(entries=(entry(1, 1),), session_updates=(session(1, 2),))
    first, second = commit(db, [lost, behind])
    assert "turn 77" in str(first)
    assert "its next entry is not number 1" in str(second)
    assert rows(db, "SELECT count(*) FROM entries") == [(0,)]


def test_an_empty_title_never_overwrites_one(db: Database) -> None:
    apply(db, [WriteSet(session_updates=(session(1, 0, title="kept"),))])
    apply(db, [WriteSet(session_updates=(session(1, 0),))])
    assert rows(db, "SELECT title FROM sessions WHERE id = 1") == [("kept",)]


# -- steers and events -----------------------------------------------------------------------------


def test_a_steer_is_applied_once(db: Database) -> None:
    apply(db, [WriteSet(new_steers=(NewSteer(1, 1, 4, "s", "left", 2.0), NewSteer(2, 1, 4, "s", "x", 2.0)))])
    apply(db, [WriteSet(steer_updates=(SteerUpdate(1, 4),))])
    assert rows(db, "SELECT id, turn_id, content, applied_turn FROM steers") == [
        (1, 4, "left", 4),
        (2, 4, "x", None),
    ]
    for again in (
        [WriteSet(steer_updates=(SteerUpdate(1, 5),))],
        [WriteSet(steer_updates=(SteerUpdate(2, 5),)), WriteSet(steer_updates=(SteerUpdate(2, 6),))],
    ):
        with pytest.raises(StorageError, match="applied"):
            apply(db, again)


def test_events_keep_their_order(db: Database) -> None:
    apply(db, [WriteSet(events=(NewEvent(1, 2, 3.5, f"{n}"),)) for n in range(5)])
    assert [body for (body,) in rows(db, "SELECT body FROM events ORDER BY id")] == list("01234")


# -- many ------------------------------------------------------------------------------------------


def commit(db: Database, sets: list[WriteSet]) -> list[BaseException | None]:
    """The errors of `sets` as one batch, by the worker's own batch code."""
    committer = Committer("test")
    committer._db = db  # noqa: SLF001 - the fixture's database instead of a file of its own
    batch = [Item(writes) for writes in sets]
    committer.run(batch)
    return [item.error for item in batch]


def finish(turn_id: int, session_id: int, first: int) -> WriteSet:
    return WriteSet(
        turn_updates=(TurnUpdate(turn_id, "done", 1, evolve(RESULT, turn_id=turn_id), None, 9.0),),
        entries=(
            NewEntry(session_id, first, turn_id, HistoryEntry("user", "hi"), 3.0),
            NewEntry(session_id, first + 1, turn_id, HistoryEntry("assistant", "hello"), 3.0),
        ),
        session_updates=(session(session_id, first + 2),),
        events=(NewEvent(session_id, turn_id, 3.0, json.dumps({"v": 1})),),
    )


def statements(db: Database, job: Callable[[Database], Any]) -> int:
    seen: list[str] = []
    with db.tracer(lambda sql, _parameters: seen.append(sql)):
        job(db)
    return len(seen)


def test_trap_26_a_thousand_write_sets_are_a_handful_of_statements(db: Database) -> None:
    accepted = [WriteSet(new_turns=(row(n, session_id=n % 3 + 1),)) for n in range(1, 1001)]
    ends = [finish(n, n % 3 + 1, 2 * ((n - 1) // 3)) for n in range(1, 1001)]
    db.execute("BEGIN IMMEDIATE")
    assert statements(db, lambda db: apply(db, accepted)) <= 6
    assert statements(db, lambda db: apply(db, ends)) <= 24
    db.commit()
    assert verify(db) == []
    assert rows(db, "SELECT count(*) FROM turns WHERE state = 'done'") == [(1000,)]
    assert rows(db, "SELECT count(*) FROM entries") == [(2000,)]


def test_more_rows_than_one_statement_takes(db: Database) -> None:
    entries = tuple(entry(1, seq) for seq in range(20_000))
    assert commit(db, [WriteSet(entries=entries)]) == [None]
    assert rows(db, "SELECT next_seq, (SELECT count(*) FROM entries) FROM sessions WHERE id = 1") == [
        (20_000, 20_000)
    ]


def test_a_set_without_writes_is_fine(db: Database) -> None:
    assert commit(db, [WriteSet(), WriteSet()]) == [None, None]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(1, 6), st.integers(1, 4)),
        st.tuples(st.just("run"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("end"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("steer"), st.integers(1, 2), st.just(1)),
        st.tuples(st.just("apply"), st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.just("say"), st.integers(1, 3), st.integers(0, 4)),
    ),
    max_size=12,
)


def write_set(operation: tuple[str, int, int]) -> WriteSet:
    what, one, two = operation
    if what == "accept":
        return WriteSet(new_turns=(row(one, session_id=two),))
    if what == "run":
        return WriteSet(turn_updates=(TurnUpdate(one, "running", 1),))
    if what == "end":
        return WriteSet(turn_updates=(TurnUpdate(one, "done", None, RESULT, None, 9.0),))
    if what == "steer":
        return WriteSet(new_steers=(NewSteer(one, two, 1, "s", "left", 2.0),))
    if what == "apply":
        return WriteSet(steer_updates=(SteerUpdate(one, two),))
    return WriteSet(entries=(entry(one, two),), session_updates=(session(one, two + 1),))


@settings(max_examples=60, deadline=None)
@example(operations=[("run", 1, 0), ("accept", 1, 1)])
@example(operations=[("apply", 1, 1), ("steer", 1, 1)])
@given(operations=operations)
def test_a_merged_batch_does_what_one_commit_each_would_do(operations: list[tuple[str, int, int]]) -> None:
    sets = [write_set(operation) for operation in operations]
    outcomes = []
    for batches in ([sets], [[each] for each in sets]):
        db = open_database(":memory:")
        for n in (1, 2, 3):
            open_session(
                db, agent="a", sender="s", topic=f"t{n}", handle=f"h{n}", at=1.0, scope="s", description="d"
            )
        errors = [type(error) for batch in batches for error in commit(db, batch)]
        tables = [
            rows(db, f"SELECT * FROM {name} ORDER BY id")
            for name in ("turns", "entries", "sessions", "steers")
        ]
        outcomes.append((errors, tables))
        close_database(db)
    assert outcomes[0] == outcomes[1]
