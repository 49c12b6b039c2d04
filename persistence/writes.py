"""The writes of the hot path: many of them, from many conversations, in a handful of statements.

Every statement hands the interpreter lock to the hub's thread and waits to get it back, so a commit of a
thousand turns is written by a few multi-row statements and not by thousands of small ones. The writes are
named tuples: each turn makes seven, and a frozen attrs class takes two to three times as long to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from sqlite_utils import Database

from persistence.codec import encode_entry, encode_result
from persistence.errors import StorageError, TimerGone
from persistence.records import TERMINAL_STATES, HistoryEntry, TurnResult, TurnRow, TurnState

Row = tuple[Any, ...]

# SQLite takes 32,766 parameters in a statement by default; some builds take more, none fewer.
_MOST_PARAMETERS = 32_000
_FEW = 16  # rows, up to which a statement is made for just so many; more go by powers of two


class NewEntry(NamedTuple):
    """One history entry. `seq` counts from 0 in its session, without gaps."""

    session_id: int
    seq: int
    turn_id: int
    entry: HistoryEntry
    created_at: float


class TurnUpdate(NamedTuple):
    """What changes in a turn's row; None keeps what is there. A turn that has ended takes no update."""

    id: int
    state: TurnState
    attempts: int | None = None
    result: TurnResult | None = None
    error: str | None = None
    finished_at: float | None = None


class SessionUpdate(NamedTuple):
    """A session's row after this write set. `next_seq` counts its entries; "" keeps the title."""

    id: int
    updated_at: float
    uptime_ms: int
    revision: int
    next_seq: int
    title: str


class NewSteer(NamedTuple):
    """An accepted steer; `turn_id` is the turn that ran when it was accepted."""

    id: int
    session_id: int
    turn_id: int
    sender: str
    content: str
    accepted_at: float


class SteerUpdate(NamedTuple):
    """The steer entered history in the turn `applied_turn`."""

    id: int
    applied_turn: int


class NewEvent(NamedTuple):
    """One line of the trace of a turn; `body` is JSON text, versioned by who writes it."""

    session_id: int
    turn_id: int
    at: float
    body: str


class NewDeadLetter(NamedTuple):
    """A turn that is given up, after it was begun so many times."""

    session_id: int
    turn_id: int
    reason: str
    attempts: int
    at: float


class Retried(NamedTuple):
    """The dead letter `turn_id` is tried again as the turn `new_id`."""

    turn_id: int
    new_id: int


class TimerUpdate(NamedTuple):
    """A timer that was due at `due_at` has fired: it is due again at `next_due`, or ends where that is None.

    It is refused when the timer is not due at `due_at` any more: so no firing is stored twice.
    """

    id: int
    due_at: float
    next_due: float | None


class WriteSet(NamedTuple):
    """Writes that are stored together or not at all."""

    new_turns: tuple[TurnRow, ...] = ()
    turn_updates: tuple[TurnUpdate, ...] = ()
    entries: tuple[NewEntry, ...] = ()
    session_updates: tuple[SessionUpdate, ...] = ()
    new_steers: tuple[NewSteer, ...] = ()
    steer_updates: tuple[SteerUpdate, ...] = ()
    events: tuple[NewEvent, ...] = ()
    dead: tuple[NewDeadLetter, ...] = ()
    retried: tuple[Retried, ...] = ()
    timer_updates: tuple[TimerUpdate, ...] = ()


def merged(sets: Sequence[WriteSet]) -> WriteSet:
    """One write set for all of `sets`, which name each row once."""
    return WriteSet(*(tuple(chain(*parts)) for parts in zip(*sets, strict=True)))


def apply(db: Database, sets: Sequence[WriteSet]) -> None:
    """Store all of `sets`, as if one after the other. Runs in the caller's transaction.

    Raises:
        StorageError: an update names a row that is not there, or a turn that has ended, or entries do
            not follow on the session's last one. Part of `sets` may be written then: roll back.
        TimerGone: likewise, a timer has fired before or is not there.
        sqlite3.Error: likewise.
    """
    # One pass, as each set is looked at for every turn of every conversation; and by places, since the
    # interpreter reads a field of a named tuple far slower than it takes a tuple apart.
    turns: list[TurnRow] = []
    updates: dict[int, TurnUpdate] = {}
    sessions: dict[int, Row] = {}
    entries: list[Any] = []
    events: list[Any] = []
    rare: list[WriteSet] = []
    for each in sets:
        new_turns, turn_updates, new_entries, session_updates, steers, applied, traced, dead, again, fired = (
            each
        )
        for row in new_turns:
            if row.id in updates:
                raise StorageError(f"turn {row.id} is not stored yet, so it cannot be updated")
            turns.append(row)
        for update in turn_updates:
            before = updates.get(update.id)
            updates[update.id] = update if before is None else _later_turn(before, update)
        if new_entries or session_updates:
            _move_on(sessions, new_entries, session_updates)
            for session_id, seq, turn_id, entry, created_at in new_entries:
                entries += (session_id, seq, turn_id, encode_entry(entry), created_at)
        for event in traced:
            events += event
        if steers or applied or dead or again or fired:
            rare.append(each)
    made: list[Any] = []
    for row in turns:
        made += _turn_row(row, updates.pop(row.id, None))
    _insert(db, "turns", _TURN_COLUMNS, made)
    _update_turns(db, updates)
    _advance(db, [*sessions.values()])
    _insert(db, "entries", _ENTRY_COLUMNS, entries)
    _insert(db, "events", _EVENT_COLUMNS, events)
    if rare:
        _apply_rare(db, rare)


def _apply_rare(db: Database, sets: Sequence[WriteSet]) -> None:
    """What few turns come with."""
    _refuse_early_steers(sets)
    insert(db, "steers", _STEER_COLUMNS, [row for s in sets for row in s.new_steers])
    _update_steers(db, [update for s in sets for update in s.steer_updates])
    insert(db, "dead_letters", _DEAD_COLUMNS, [row for s in sets for row in s.dead])
    _mark_retried(db, [row for s in sets for row in s.retried])
    _update_timers(db, [update for s in sets for update in s.timer_updates])


def insert(db: Database, table: str, columns: str, rows: Sequence[Row]) -> None:
    """Insert `rows`, each with one value for each of `columns`, by few statements."""
    _insert(db, table, columns, [*chain(*rows)])


def _insert(db: Database, table: str, columns: str, values: Sequence[Any]) -> None:
    """`insert` of rows that come as one list of all their values."""
    width = columns.count(",") + 1
    for start, end in _parts(len(values) // width, width):
        db.execute(_insert_sql(table, columns, end - start, width), values[start * width : end * width])


# -- rows -----------------------------------------------------------------------------------------

_TURN_COLUMNS = (
    "id, session_id, sender, content, state, attempts, key, guest, tool_choice, "
    "accepted_at, finished_at, result, error"
)
_STEER_COLUMNS = ", ".join(NewSteer._fields)
_ENTRY_COLUMNS = "session_id, seq, turn_id, body, created_at"
_EVENT_COLUMNS = ", ".join(NewEvent._fields)


def _turn_row(t: TurnRow, update: TurnUpdate | None) -> Row:
    """The row of a turn, as `update` leaves it where one follows at once."""
    state, attempts, result, error, finished_at = t.state, t.attempts, t.result, t.error, t.finished_at
    if update is not None:
        _check_not_ended(t.id, t.state, update)
        state, result, error = update.state, update.result or result, update.error or error
        attempts = attempts if update.attempts is None else update.attempts
        finished_at = finished_at if update.finished_at is None else update.finished_at
    encoded = None if result is None else encode_result(result)
    who = (t.id, t.session_id, t.sender, t.content, state, attempts, t.key, t.guest, t.tool_choice)
    return (*who, t.accepted_at, finished_at, encoded, error)


def _refuse_early_steers(sets: Sequence[WriteSet]) -> None:
    """Refuse an update that comes before its row: merged, all rows are made before all updates."""
    steers = {row.id: at for at, s in enumerate(sets) for row in s.new_steers}
    for at, each in enumerate(sets):
        for applied in each.steer_updates:
            if steers.get(applied.id, at) > at:
                raise StorageError(f"steer {applied.id} is not stored yet, so it cannot be applied")


# -- turns ----------------------------------------------------------------------------------------


def _later_turn(before: TurnUpdate, after: TurnUpdate) -> TurnUpdate:
    _check_not_ended(after.id, before.state, after)
    return TurnUpdate(
        id=after.id,
        state=after.state,
        attempts=before.attempts if after.attempts is None else after.attempts,
        result=before.result if after.result is None else after.result,
        error=before.error if after.error is None else after.error,
        finished_at=before.finished_at if after.finished_at is None else after.finished_at,
    )


def _check_not_ended(id_: int, state: TurnState, update: TurnUpdate) -> None:
    # The schema's trigger would not see what happens between two writes that are merged here.
    if state in TERMINAL_STATES:
        raise StorageError(f"turn {id_} has ended as {state}; it cannot become {update.state}")


def _update_turns(db: Database, updates: dict[int, TurnUpdate]) -> None:
    if not updates:
        return
    rows = [
        (
            u.id,
            u.state,
            u.attempts,
            None if u.result is None else encode_result(u.result),
            u.error,
            u.finished_at,
        )
        for u in updates.values()
    ]
    setting = """state = v.column2, attempts = coalesce(v.column3, attempts),
        result = coalesce(v.column4, result), error = coalesce(v.column5, error),
        finished_at = coalesce(v.column6, finished_at)"""
    if _update(db, "turns", setting, "turns.id = v.column1", rows) != len(rows):
        raise StorageError(f"turn {_listed(rows)} is not stored, so it cannot be updated")


# -- sessions -------------------------------------------------------------------------------------


# What a session goes through is a row: its id, the `next_seq` that it has and the one that it will have, and
# of its update the times, the revision and the title; None and "" where only entries were given.


def _move_on(sessions: dict[int, Row], entries: Sequence[NewEntry], updates: Sequence[SessionUpdate]) -> None:
    """Add what a write set does to the sessions to what the sets before it do."""
    for step in _steps(entries, updates):
        before = sessions.get(step[0])
        sessions[step[0]] = step if before is None else _later_session(before, step)


def _steps(entries: Sequence[NewEntry], updates: Sequence[SessionUpdate]) -> Iterable[Row]:
    """For each session that a write set touches, what it goes through."""
    if len(updates) == 1:  # as of every turn: what follows would find the same
        id_, updated_at, uptime_ms, revision, next_seq, title = updates[0]
        first = seq = next_seq - len(entries)
        for session_id, number, *_ in entries:
            if session_id != id_ or number != seq:
                break
            seq += 1
        else:
            return ((id_, first, next_seq, updated_at, uptime_ms, revision, title),)
    ends: dict[int, tuple[int, int]] = {}
    for entry in entries:
        first, following = ends.get(entry.session_id, (entry.seq, entry.seq))
        if entry.seq != following:
            raise StorageError(
                f"entry {entry.seq} of session {entry.session_id} does not follow on entry {following - 1}"
            )
        ends[entry.session_id] = (first, following + 1)
    steps: dict[int, Row] = {id_: (id_, *end, None, None, None, "") for id_, end in ends.items()}
    for u in updates:
        first, following = ends.get(u.id, (u.next_seq, u.next_seq))
        if following != u.next_seq:
            raise StorageError(
                f"session {u.id} is said to go on at entry {u.next_seq}, "
                f"but its entries end before {following}"
            )
        steps[u.id] = (u.id, first, following, u.updated_at, u.uptime_ms, u.revision, u.title)
    return steps.values()


def _later_session(before: Row, after: Row) -> Row:
    id_, first, reached, *earlier, title = before
    _, begin, following, *later, new_title = after
    if begin != reached:
        raise _out_of_step(id_, begin)
    told = earlier if later[0] is None else later
    return (id_, first, following, *told, new_title or title)


def _advance(db: Database, rows: Sequence[Row]) -> None:
    setting = """next_seq = v.column3, updated_at = coalesce(v.column4, updated_at),
        uptime_ms = coalesce(v.column5, uptime_ms), revision = coalesce(v.column6, revision),
        title = CASE WHEN v.column7 = '' THEN title ELSE v.column7 END"""
    # Entries that do not follow on the last stored one mean that an earlier write was lost: refuse.
    where = "sessions.id = v.column1 AND sessions.next_seq = v.column2"
    if _update(db, "sessions", setting, where, rows) != len(rows):
        raise (
            _out_of_step(*rows[0][:2])
            if len(rows) == 1
            else StorageError(f"one of the sessions {_listed(rows)} was deleted, or misses an earlier write")
        )


def _out_of_step(session_id: int, seq: int) -> StorageError:
    return StorageError(
        f"session {session_id} was deleted, or its next entry is not number {seq} because an earlier "
        "write of it is missing: nothing more of it is stored"
    )


# -- steers ---------------------------------------------------------------------------------------


def _update_steers(db: Database, updates: Sequence[SteerUpdate]) -> None:
    rows: dict[int, Row] = {}
    for update in updates:
        if update.id in rows:
            raise StorageError(f"steer {update.id} is applied to turn {rows[update.id][1]} already")
        rows[update.id] = (update.id, update.applied_turn)
    where = "steers.id = v.column1 AND steers.applied_turn IS NULL"
    if _update(db, "steers", "applied_turn = v.column2", where, [*rows.values()]) != len(rows):
        raise StorageError(f"steer {_listed([*rows.values()])} is not stored, or is applied already")


# -- dead letters ---------------------------------------------------------------------------------

_DEAD_COLUMNS = "session_id, turn_id, reason, attempts, at"


def _mark_retried(db: Database, retried: Sequence[Retried]) -> None:
    for each in retried:
        sql = "UPDATE dead_letters SET retried_as = ? WHERE turn_id = ? AND retried_as IS NULL"
        if db.execute(sql, [each.new_id, each.turn_id]).rowcount != 1:
            raise StorageError(f"turn {each.turn_id} is no dead letter, or was tried again before")


# -- timers ---------------------------------------------------------------------------------------


def _update_timers(db: Database, updates: Sequence[TimerUpdate]) -> None:
    ended = [(u.id, u.due_at) for u in updates if u.next_due is None]
    moved = [(u.id, u.due_at, u.next_due) for u in updates if u.next_due is not None]
    found = _update(db, "timers", "due_at = v.column3", _TIMER_IS_DUE, moved)
    for start, end in _parts(len(ended), 2):
        sql = f"DELETE FROM timers WHERE (id, due_at) IN ({_values(end - start, 2)})"
        found += db.execute(sql, [*chain(*ended[start:end])]).rowcount
    if found != len(updates):
        raise TimerGone(f"timer {_listed([*ended, *moved])} has fired, or was cancelled, meanwhile")


_TIMER_IS_DUE = "timers.id = v.column1 AND timers.due_at = v.column2"


# -- statements -----------------------------------------------------------------------------------


def _update(db: Database, table: str, setting: str, where: str, rows: Sequence[Row]) -> int:
    """Update each row that `where` finds for a row `v` of `rows`; the number that it found."""
    if not rows:
        return 0
    found, width = 0, len(rows[0])
    for start, end in _parts(len(rows), width):
        sql = _update_sql(table, setting, where, end - start, width)
        found += db.execute(sql, [*chain(*rows[start:end])]).rowcount
    return found


def _parts(count: int, width: int) -> Sequence[tuple[int, int]]:
    """From where to where the parts go in which `count` rows are written. They are of few sizes: a statement
    of one that came before is compiled already."""
    most = 1 << (_MOST_PARAMETERS // width).bit_length() - 1
    parts, at = [], 0
    while left := count - at:
        size = left if left < _FEW else min(1 << left.bit_length() - 1, most)
        parts.append((at, at + size))
        at += size
    return parts


@lru_cache(maxsize=512)
def _insert_sql(table: str, columns: str, count: int, width: int) -> str:
    return f"INSERT INTO {table} ({columns}) {_values(count, width)}"


@lru_cache(maxsize=512)
def _update_sql(table: str, setting: str, where: str, count: int, width: int) -> str:
    if count == 1:  # a table of one row takes SQLite several times as long as the row
        return re.sub(r"v\.column(\d+)", r"?\1", f"UPDATE {table} SET {setting} WHERE {where}")
    return f"UPDATE {table} SET {setting} FROM ({_values(count, width)}) AS v WHERE {where}"


@lru_cache(maxsize=256)
def _values(count: int, width: int) -> str:
    row = f"({','.join('?' * width)})"
    return f"VALUES {','.join([row] * count)}"


def _listed(rows: Sequence[Row]) -> str:
    ids = ", ".join(str(row[0]) for row in rows[:5])
    return f"{ids}, ..." if len(rows) > 5 else ids
