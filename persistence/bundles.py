"""One session as data: everything of it, to be stored in another file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve, frozen
from sqlite_utils import Database

from persistence.codec import decode_result, encode_result
from persistence.errors import RecordError, SessionNotFound, StorageError
from persistence.ids import highest_timer
from persistence.records import JsonObject
from persistence.writes import insert

VERSION = 1

SESSION = (
    "handle, agent, sender, topic, scope, title, created_at, updated_at, uptime_ms, revision, next_seq, "
    "archive, archive_seq"
)
KEYS = "agent, sender, key, turn_id, created_at"
MEMORY = "agent, scope, kind, name, content, aliases, created_at, handle"
# What belongs to a session, without the columns that are given anew where it is stored.
PARTS = {
    "turns": "id, sender, content, state, attempts, key, guest, tool_choice, accepted_at, finished_at, "
    "result, error",
    "steers": "id, turn_id, sender, content, accepted_at, applied_turn",
    "entries": "seq, turn_id, body, created_at",
    "compactions": "seq, archive, scope, created_at",
    "events": "turn_id, at, body",
    "dead_letters": "turn_id, reason, attempts, at, retried_as",
    "timers": "id, said_by, content, key, due_at, every_s, created_at",
}
OF_SESSION = "WHERE session_id = ? ORDER BY id"
KEYS_OF_SESSION = "keys WHERE turn_id IN (SELECT id FROM turns WHERE session_id = ?) ORDER BY turn_id, key"
_EVERY = 2**62  # above every row id


@frozen
class ImportedSession:
    """Where a session went: its row's id, and the ids of its turns, steers and timers, old to new."""

    session_id: int
    turn_ids: dict[int, int]
    steer_ids: dict[int, int]
    timer_ids: dict[int, int]


def export_session(db: Database, handle: str) -> JsonObject:
    """The session as JSON-able data: its rows, and the memory of its scope.

    Raises:
        SessionNotFound: there is none with this handle.
    """
    found = db.execute("SELECT id, agent, scope FROM sessions WHERE handle = ?", [handle]).fetchall()
    if not found:
        raise SessionNotFound(f"no stored session has the handle {handle!r}; list the sessions to see them")
    id_, agent, scope = found[0]
    bundle: JsonObject = {"v": VERSION}
    bundle["session"] = next(rows_of(db, SESSION, "sessions WHERE id = ?", id_))
    for table, columns in PARTS.items():
        bundle[table] = [*rows_of(db, columns, f"{table} {OF_SESSION}", id_)]
    bundle["keys"] = [*rows_of(db, KEYS, KEYS_OF_SESSION, id_)]
    memory = rows_of(
        db,
        MEMORY,
        """memory_entries m WHERE agent = ? AND (scope = ? OR kind = 'archive' AND EXISTS (
            SELECT 1 FROM compactions c
            WHERE c.session_id = ? AND c.scope = m.scope AND c.archive = m.name)) ORDER BY id""",
        agent,
        scope,
        id_,
    )
    bundle["memory"] = [*memory]
    return bundle


def rows_of(db: Database, columns: str, source: str, *params: Any) -> Iterator[JsonObject]:
    """The rows of a table as objects, read as they are taken: take all before anything else is done.

    Args:
        source: what follows on FROM, up to the order.
    """
    names = columns.split(", ")
    for row in db.execute(f"SELECT {columns} FROM {source}", params):
        yield dict(zip(names, row, strict=True))


def import_session(
    db: Database,
    bundle: Mapping[str, Any],
    *,
    above: int = 0,
    beside: int = _EVERY,
    timers_beside: int | None = None,
) -> ImportedSession:
    """Store what `export_session` gave, all of it or, when it raises, nothing (roll back then).

    The handle stays. Turns, steers and timers keep their ids where those are free. Memory that is there
    already must be equal: nothing is overwritten and nothing dropped.

    Args:
        above: new ids of turns and of steers, where such are needed, are greater than this.
        beside: ids are taken if a session up to this row id has them. Sessions that came from one file
            together get along with each other.
        timers_beside: ids of timers up to this one are taken; up to the highest ever given if None.

    Raises:
        StorageError: the handle is in use, or memory of this name has other content.
        RecordError: not a bundle, or one of another version.
    """
    try:
        if bundle["v"] != VERSION:
            raise RecordError(f"the bundle has version {bundle['v']!r}; this Palaver reads version {VERSION}")
        known = highest_timer(db) if timers_beside is None else timers_beside
        return _import(db, bundle, above, beside, known)
    except (KeyError, TypeError) as error:
        raise RecordError(f"the bundle is not one that was exported: {error!r}") from error


def _import(
    db: Database, bundle: Mapping[str, Any], above: int, beside: int, timers_beside: int
) -> ImportedSession:
    handle = bundle["session"]["handle"]
    if db.execute("SELECT 1 FROM sessions WHERE handle = ?", [handle]).fetchall():
        raise StorageError(f"the session {handle} is stored here already; delete it before importing it")
    turns = [turn["id"] for turn in bundle["turns"]]
    steers = [steer["id"] for steer in bundle["steers"]]
    ids = _free_ids(db, sorted({*turns, *steers}), above, beside)
    new = {
        "turns": {id_: ids[id_] for id_ in turns},
        "steers": {id_: ids[id_] for id_ in steers},
        "timers": _timer_ids(db, [timer["id"] for timer in bundle["timers"]], timers_beside),
    }
    _store(db, "sessions", SESSION, [bundle["session"]])
    session_id = int(db.execute("SELECT id FROM sessions WHERE handle = ?", [handle]).fetchall()[0][0])
    for table, columns in PARTS.items():
        rows = [_moved(table, row, session_id, new) for row in bundle[table]]
        _store(db, table, f"session_id, {columns}", rows)
    for row in bundle["keys"]:
        _store_key(db, {**row, "turn_id": new["turns"][row["turn_id"]]})
    for row in bundle["memory"]:
        known = row["handle"] in (None, handle) or _known_handle(db, row["handle"])
        # An archive of a session that is not in this file is nobody's here.
        store_memory(db, row if known else {**row, "handle": None})
    return ImportedSession(session_id, new["turns"], new["steers"], new["timers"])


def _free_ids(db: Database, ids: list[int], above: int, beside: int) -> dict[int, int]:
    """Each of `ids` to itself where it is free, or to a new one above all that were ever used.

    A steer that became a turn has one id as both, so the two tables share their ids.
    """
    used = "SELECT max(id) AS id FROM turns UNION ALL SELECT max(id) FROM steers"
    gone = (
        "SELECT max(last_turn) FROM deleted_sessions UNION ALL SELECT max(last_steer) FROM deleted_sessions"
    )
    ((highest,),) = db.execute(f"SELECT coalesce(max(id), 0) FROM ({used} UNION ALL {gone})").fetchall()
    following = max([highest, above, *ids]) + 1
    mapped = {}
    taken = """SELECT 1 FROM turns WHERE id = :id AND session_id <= :beside
        UNION ALL SELECT 1 FROM steers WHERE id = :id AND session_id <= :beside"""
    for id_ in ids:
        mapped[id_] = id_
        if db.execute(taken, {"id": id_, "beside": beside}).fetchall():
            mapped[id_] = following
            following += 1
    return mapped


def _timer_ids(db: Database, ids: list[int], beside: int) -> dict[int, int]:
    """Each of `ids` to itself where it is free, or to a new one above all that were ever used."""
    following = max([highest_timer(db), *ids]) + 1
    mapped = {}
    for id_ in sorted(ids):
        mapped[id_] = id_
        if id_ <= beside or db.execute("SELECT 1 FROM timers WHERE id = ?", [id_]).fetchall():
            mapped[id_] = following
            following += 1
    return mapped


def _moved(table: str, row: JsonObject, session_id: int, new: Mapping[str, dict[int, int]]) -> JsonObject:
    """A row of a bundle as it is stored; `new` has the ids of turns, steers and timers, old to new."""
    moved = {**row, "session_id": session_id}
    if table in new:
        moved["id"] = new[table][row["id"]]
    if table == "turns" and row["result"] is not None and moved["id"] != row["id"]:
        moved["result"] = encode_result(evolve(decode_result(row["result"]), turn_id=moved["id"]))
    for column in ("turn_id", "applied_turn", "retried_as"):
        if column in row:
            moved[column] = new["turns"].get(row[column], row[column])
    return moved


def _store_key(db: Database, row: JsonObject) -> None:
    # Of two uses of one key the later one is what a caller may still be retrying.
    db.execute(
        """INSERT INTO keys (agent, sender, key, turn_id, created_at)
            VALUES (:agent, :sender, :key, :turn_id, :created_at)
            ON CONFLICT (agent, sender, key) DO UPDATE
            SET turn_id = excluded.turn_id, created_at = excluded.created_at
            WHERE excluded.created_at > created_at""",
        row,
    )


def store_memory(db: Database, row: JsonObject) -> None:
    """Store a row of memory. One of its name must be equal; then there is nothing to do.

    Raises:
        StorageError: it has other content, or is the archive of another session.
    """
    names = [row["agent"], row["scope"], row["kind"], row["name"]]
    found = db.execute(
        """SELECT id, content, aliases, handle FROM memory_entries
            WHERE agent = ? AND scope = ? AND kind = ? AND name = ?""",
        names,
    ).fetchall()
    if not found:
        _store(db, "memory_entries", MEMORY, [row])
        return
    id_, content, aliases, owner = found[0]
    other_owner = None not in (owner, row["handle"]) and owner != row["handle"]
    if (content, aliases) != (row["content"], row["aliases"]) or other_owner:
        raise StorageError(
            f"the {row['kind']} {row['name']!r} of {row['agent']!r} is stored here with other content; "
            "nothing was imported: rename or delete one of the two"
        )
    if owner is None:
        db.execute("UPDATE memory_entries SET handle = ? WHERE id = ?", [row["handle"], id_])


def _known_handle(db: Database, handle: str) -> bool:
    sql = "SELECT 1 FROM sessions WHERE handle = ? UNION ALL SELECT 1 FROM deleted_sessions WHERE handle = ?"
    return bool(db.execute(sql, [handle, handle]).fetchall())


def _store(db: Database, table: str, columns: str, rows: Iterable[JsonObject]) -> None:
    names = columns.split(", ")
    insert(db, table, columns, [tuple(row[name] for name in names) for row in rows])
