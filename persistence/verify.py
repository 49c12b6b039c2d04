"""Is what the file holds what Palaver promises? One line for everything that is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlite_utils import Database

from persistence.codec import decode_entries, decode_entry, decode_result
from persistence.errors import RecordError
from persistence.memories import canonical_number, decode_aliases
from persistence.migrations import migrations
from persistence.records import STATE_OF_STOP, TERMINAL_STATES, HistoryEntry, TurnResult


def verify(db: Database) -> list[str]:
    """Everything that is wrong in the file, each in one line that names table, session and id.

    Reads all of it, so it takes long on a large file. Changes nothing, and raises nothing for what is
    damaged: that is a line too.
    """
    checks: tuple[Callable[[Database], Iterator[str]], ...] = (
        _pages,
        _foreign_keys,
        _search_index,
        _schema,
        _sessions,
        _archives,
        _steers,
        _keys,
        _timers,
    )
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(db)
        except sqlite3.Error as error:
            problems.append(f"database: {(check.__doc__ or '').rstrip('.')} cannot be checked: {error}")
    return problems


def _pages(db: Database) -> Iterator[str]:
    """SQLite's own structures."""
    for (line,) in db.execute("PRAGMA integrity_check(100)").fetchall():
        if line != "ok":
            yield f"database: {line}"


def _foreign_keys(db: Database) -> Iterator[str]:
    """References between tables."""
    for table, rowid, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
        yield f"{table}: row {rowid} refers to a row of {parent} that is not there"


def _search_index(db: Database) -> Iterator[str]:
    """The full-text index of memory."""
    try:
        # Rank 1 also compares the index with the table that it is made from.
        db.execute("INSERT INTO memory_entries_fts (memory_entries_fts, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        yield f"memory_entries_fts: the full-text index does not fit its table: {error}"


def _schema(db: Database) -> Iterator[str]:
    """The applied migrations."""
    for migration in migrations.pending(db):
        yield f"database: the migration {migration.name} is not applied"


def _sessions(db: Database) -> Iterator[str]:
    """Sessions, one by one."""
    sql = "SELECT id, handle, agent, next_seq, archive, archive_seq FROM sessions ORDER BY id"
    for id_, handle, agent, next_seq, archive, archive_seq in db.execute(sql).fetchall():
        yield from _entries(db, id_, handle, next_seq)
        yield from _turns(db, id_, handle)
        yield from _markers(db, id_, handle, agent, next_seq, (archive, archive_seq))


# -- entries --------------------------------------------------------------------------------------


def _entries(db: Database, session_id: int, handle: str, next_seq: int) -> Iterator[str]:
    sql = "SELECT id, seq, body, turn_id FROM entries WHERE session_id = ? ORDER BY seq"
    rows = db.execute(sql, [session_id]).fetchall()
    turns = {
        id_ for (id_,) in db.execute("SELECT id FROM turns WHERE session_id = ?", [session_id]).fetchall()
    }
    entries: list[tuple[int, HistoryEntry]] = []
    decoded = _all_decoded([row[2] for row in rows])
    for expected, (id_, seq, body, turn_id) in enumerate(rows):
        if seq != expected:
            yield f"entries: session {handle}: entry {id_} has seq {seq} where {expected} should follow"
            return
        if turn_id not in turns:
            yield f"entries: session {handle}: entry {id_} is of turn {turn_id}, which is not there"
        try:
            entries.append((id_, decoded[expected] if decoded else decode_entry(body)))
        except RecordError as error:
            yield f"entries: session {handle}: entry {id_}: {error}"
            return
    if next_seq != len(rows):
        yield f"sessions: session {handle} has next_seq {next_seq}, but {len(rows)} entries"
    yield from _tool_results(handle, entries)


def _all_decoded(bodies: Sequence[str]) -> Sequence[HistoryEntry]:
    """The entries, read at once; none if one of them cannot be read, and is to be found."""
    try:
        return decode_entries(bodies)
    except (RecordError, TypeError):  # not even text
        return ()


def _tool_results(handle: str, entries: Sequence[tuple[int, HistoryEntry]]) -> Iterator[str]:
    """Each assistant entry with tool calls is followed by exactly their results, in call order."""
    at = 0
    while at < len(entries):
        id_, entry = entries[at]
        at += 1
        if entry.role == "tool":
            yield f"entries: session {handle}: entry {id_} is a tool result without a call before it"
        asked = [call.id for call in entry.tool_calls]
        following = entries[at : at + len(asked)]
        answered = [each.tool_call_id for _, each in following if each.role == "tool"]
        if answered != asked:
            yield (
                f"entries: session {handle}: entry {id_} calls tools as {asked}, "
                f"but the results that follow are of {answered}"
            )
        at += len(answered) if answered == asked else 0


# -- turns ----------------------------------------------------------------------------------------


def _turns(db: Database, session_id: int, handle: str) -> Iterator[str]:
    sql = "SELECT id, state, finished_at, result FROM turns WHERE session_id = ? ORDER BY id"
    told = {
        turn_id
        for (turn_id,) in db.execute(
            "SELECT DISTINCT turn_id FROM entries WHERE session_id = ?", [session_id]
        ).fetchall()
    }
    for id_, state, finished_at, body in db.execute(sql, [session_id]).fetchall():
        where = f"turns: session {handle}: turn {id_}"
        result, problem = _result(body)
        if problem:
            yield f"{where}: {problem}"
        ended = state in TERMINAL_STATES
        for name, value in (("finished_at", finished_at), ("result", body)):
            if ended != (value is not None):
                yield f"{where} is {state} and has {'no' if ended else 'a'} {name}"
        if result is not None:
            yield from _told_result(where, id_, state, result)
            if state == "done" and result.stop_reason != "no_action" and id_ not in told:
                yield f"{where} is done, but no entry is of it"


def _result(body: str | None) -> tuple[TurnResult | None, str]:
    try:
        return (None if body is None else decode_result(body)), ""
    except RecordError as error:
        return None, str(error)


def _told_result(where: str, id_: int, state: str, result: TurnResult) -> Iterator[str]:
    if STATE_OF_STOP[result.stop_reason] != state:
        yield f"{where} is {state}, but its result stopped by {result.stop_reason}"
    if result.turn_id not in (0, id_):
        yield f"{where} has the result of turn {result.turn_id}"


# -- compactions ----------------------------------------------------------------------------------


def _markers(
    db: Database, session_id: int, handle: str, agent: str, next_seq: int, newest: tuple[str | None, int]
) -> Iterator[str]:
    rows = db.execute(
        """SELECT c.id, c.seq, c.archive, m.id, m.handle FROM compactions c LEFT JOIN memory_entries m
            ON m.agent = ? AND m.scope = c.scope AND m.kind = 'archive' AND m.name = c.archive
            WHERE c.session_id = ? ORDER BY c.id""",
        [agent, session_id],
    ).fetchall()
    last: tuple[str | None, int] = (None, 0)
    for id_, seq, archive, memory_id, owner in rows:
        where = f"compactions: session {handle}: marker {id_}"
        if memory_id is None:
            yield f"{where} points to the archive {archive!r}, which is not in memory"
        elif owner not in (None, handle):
            yield f"{where} points to the archive {archive!r}, which is of session {owner}"
        if not last[1] <= seq <= next_seq:
            yield f"{where} is at entry {seq}, not between entry {last[1]} and {next_seq}"
        last = (archive, seq)
    if newest != last:
        yield f"sessions: session {handle} has the archive {newest}, but its newest marker is {last}"


def _archives(db: Database) -> Iterator[str]:
    """Memory entries and their archives."""
    rows = db.execute(
        """SELECT m.id, m.kind, m.name, m.aliases, m.handle, s.id,
                EXISTS (SELECT 1 FROM compactions c WHERE c.session_id = s.id
                    AND c.scope = m.scope AND c.archive = m.name),
                EXISTS (SELECT 1 FROM deleted_sessions d WHERE d.handle = m.handle)
            FROM memory_entries m LEFT JOIN sessions s ON s.handle = m.handle ORDER BY m.id"""
    ).fetchall()
    for id_, kind, name, aliases, handle, session_id, marked, deleted in rows:
        where = f"memory_entries: {kind} {id_} {name!r}"
        try:
            decode_aliases(aliases)
        except RecordError as error:
            yield f"{where}: {error}"
        if kind != "archive":
            continue
        slug, _, number = name.rpartition("-")
        if not slug or not canonical_number(number):
            yield f"{where} is not named SLUG-N with a canonical N"
        if session_id is not None and not marked:
            yield f"{where} of session {handle} has no marker that points to it"
        elif session_id is None and handle is not None and not deleted:
            yield f"{where} is of session {handle}, which never was in this file"


# -- steers, keys, timers ------------------------------------------------------------------------------


def _steers(db: Database) -> Iterator[str]:
    """Steers and the turns that took them."""
    yield from _orphans(db, "turn_id", "was accepted for")
    yield from _orphans(db, "applied_turn", "was applied to")


def _orphans(db: Database, column: str, verb: str) -> Iterator[str]:
    rows: list[tuple[Any, ...]] = db.execute(
        f"""SELECT x.id, s.handle, x.{column} FROM steers x JOIN sessions s ON s.id = x.session_id
            LEFT JOIN turns t ON t.id = x.{column} AND t.session_id = x.session_id
            WHERE x.{column} IS NOT NULL AND t.id IS NULL ORDER BY x.id"""
    ).fetchall()
    for id_, handle, turn_id in rows:
        yield f"steers: session {handle}: steer {id_} {verb} turn {turn_id}, which is not there"


def _keys(db: Database) -> Iterator[str]:
    """Idempotency keys and their turns."""
    rows = db.execute(
        """SELECT k.key, k.turn_id, s.handle FROM keys k JOIN turns t ON t.id = k.turn_id
            JOIN sessions s ON s.id = t.session_id
            WHERE t.key IS NOT k.key OR s.agent <> k.agent OR s.sender <> k.sender ORDER BY k.turn_id"""
    ).fetchall()
    for key, turn_id, handle in rows:
        yield f"keys: session {handle}: the key {key!r} points to turn {turn_id}, which has another"


def _timers(db: Database) -> Iterator[str]:
    """Timers."""
    rows = db.execute(
        """SELECT t.id, s.handle, t.content, t.due_at, t.every_s FROM timers t
            JOIN sessions s ON s.id = t.session_id
            WHERE t.content = '' OR abs(t.due_at) > 1e300 OR t.every_s > 1e300 OR t.every_s <= 0
            ORDER BY t.id"""
    ).fetchall()
    for id_, handle, content, due_at, every_s in rows:
        what = f"is due at {due_at}, every {every_s} s" if content else "says nothing"
        yield f"timers: session {handle}: timer {id_} {what}"
