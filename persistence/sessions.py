"""Stored sessions: opening, listing, transcripts, compaction, deletion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from persistence.bundles import ImportedSession, export_session, import_session
from persistence.codec import decode_entries
from persistence.errors import RevisionMoved, SessionNotFound, StorageError
from persistence.memories import canonical_number
from persistence.records import HistoryEntry, SessionSummary, StoredSession

__all__ = [
    "ImportedSession",
    "delete_session",
    "export_session",
    "find_session",
    "get_session",
    "has_unfinished",
    "highest_ids",
    "import_session",
    "list_sessions",
    "load_session",
    "open_session",
    "set_title",
    "store_compaction",
    "transcript",
]

_SUMMARY = """s.handle, s.agent, s.sender, s.topic, s.title, s.created_at, s.updated_at, s.archive,
    s.uptime_ms / 1000.0, s.next_seq"""
_ENTRIES_AT_ONCE = 512


def open_session(
    db: Database,
    *,
    agent: str,
    sender: str,
    topic: str,
    handle: str,
    at: float,
    scope: str,
    description: str | None,
) -> tuple[StoredSession, bool] | None:
    """The latest session of `(agent, sender, topic)`, or a new one.

    Args:
        handle: the new session's, not in use.
        at: now, in seconds since the Unix epoch.
        scope: of the new session's memory: the sender, or "".
        description: of the new topic; None makes no session. It becomes the topic's memory entry,
            unless the topic has one in this scope.

    Returns:
        The session and whether it was there before; None when it was not and must not be made.
    """
    stored = _stored(
        db, "s.agent = ? AND s.sender = ? AND s.topic = ? ORDER BY s.id DESC LIMIT 1", [agent, sender, topic]
    )
    if stored is not None:
        return stored, True
    if description is None:
        return None
    made = db.execute(
        """INSERT INTO sessions (handle, agent, sender, topic, scope, created_at, updated_at)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
        [handle, agent, sender, topic, scope, at, at],
    )
    db.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES (?, ?, 'topic', ?, ?, ?) ON CONFLICT (agent, scope, kind, name) DO NOTHING""",
        [agent, scope, topic, description, at],
    )
    summary = SessionSummary(handle, agent, sender, topic, "", at, at)
    return StoredSession(int(made.lastrowid or 0), summary, 0, 0, (), None), False


def load_session(db: Database, handle: str) -> StoredSession:
    """The session with this handle, with its live history and newest archive.

    Raises:
        SessionNotFound: there is none.
        RecordError: one of its entries cannot be read.
    """
    stored = _stored(db, "s.handle = ?", [handle])
    if stored is None:
        raise _not_found(handle)
    return stored


def find_session(db: Database, handle: str) -> SessionSummary | None:
    """The session with this handle, without its history."""
    rows = db.execute(f"SELECT {_SUMMARY} FROM sessions s WHERE s.handle = ?", [handle]).fetchall()
    return SessionSummary(*rows[0]) if rows else None


def get_session(db: Database, handle: str) -> SessionSummary:
    """As `find_session`; raises SessionNotFound where there is none."""
    found = find_session(db, handle)
    if found is None:
        raise _not_found(handle)
    return found


def list_sessions(
    db: Database,
    agent: str | None = None,
    sender: str | None = None,
    topic: str | None = None,
    limit: int | None = None,
) -> list[SessionSummary]:
    """Sessions, all or those of an agent, a sender, a topic; the one that changed last comes first."""
    filters = [("agent", agent), ("sender", sender), ("topic", topic)]
    given = [(column, value) for column, value in filters if value is not None]
    where = " AND ".join(["TRUE", *(f"s.{column} = ?" for column, _ in given)])
    sql = f"""SELECT {_SUMMARY} FROM sessions s WHERE {where}
        ORDER BY s.updated_at DESC, s.id DESC LIMIT ?"""
    params = [*(value for _, value in given), -1 if limit is None else max(limit, 0)]
    return [SessionSummary(*row) for row in db.execute(sql, params).fetchall()]


def transcript(db: Database, handle: str) -> list[HistoryEntry]:
    """Everything that was said in the session, in order, whatever was compacted since.

    Raises:
        SessionNotFound: there is none with this handle.
        RecordError: one of its entries cannot be read.
    """
    rows = db.execute("SELECT id, next_seq FROM sessions WHERE handle = ?", [handle]).fetchall()
    if not rows:
        raise _not_found(handle)
    return _entries(db, rows[0][0], 0, rows[0][1])


def set_title(db: Database, session_id: int, title: str) -> bool:
    """Give the session a title if it has none; whether it took it."""
    found = db.execute("UPDATE sessions SET title = ? WHERE id = ? AND title = ''", [title, session_id])
    return found.rowcount > 0


def store_compaction(
    db: Database,
    *,
    session_id: int,
    expected_revision: int,
    covered_seq: int,
    archive_name: str,
    content: str,
    agent: str,
    scope: str,
    at: float,
) -> None:
    """Store an archive, the marker that points to it, and the session's row with its revision plus one.

    Args:
        covered_seq: entries with a smaller seq are in the archive from now on.
        archive_name: `{slug}-{n}`, new in its scope.

    Raises:
        RevisionMoved: the session's revision is not `expected_revision` any more.
        StorageError: no such session, a `covered_seq` outside its live entries, a name that is taken.
    """
    sql = "SELECT handle, revision, archive_seq, next_seq FROM sessions WHERE id = ?"
    rows = db.execute(sql, [session_id]).fetchall()
    if not rows:
        raise StorageError(f"session {session_id} is not stored, so it cannot be compacted")
    handle, revision, archive_seq, next_seq = rows[0]
    if revision != expected_revision:
        raise RevisionMoved(
            f"session {handle} is at revision {revision}, not {expected_revision}: "
            "it changed while its summary was made; compact it again"
        )
    if not archive_seq <= covered_seq <= next_seq:
        raise StorageError(
            f"an archive of session {handle} must end between entry {archive_seq} and {next_seq}, "
            f"not at {covered_seq}"
        )
    if not canonical_number(archive_name.rpartition("-")[2]):
        raise StorageError(f"{archive_name!r} is no name of an archive; use SLUG-N with N from 1 on")
    _store_archive(db, handle, archive_name, content, agent, scope, at)
    db.execute(
        "INSERT INTO compactions (session_id, seq, archive, scope, created_at) VALUES (?, ?, ?, ?, ?)",
        [session_id, covered_seq, archive_name, scope, at],
    )
    db.execute(
        """UPDATE sessions SET archive = ?, archive_seq = ?, revision = revision + 1,
            updated_at = max(updated_at, ?) WHERE id = ?""",
        [archive_name, covered_seq, at, session_id],
    )


def delete_session(
    db: Database, handle: str, *, at: float | None = None, unchanged_since: float | None = None
) -> bool:
    """Delete a session with its turns, keys, steers, entries, markers, events and timers; whether it was
    there.

    Its archives stay in memory. The highest ids of its rows are kept, so that none is given again.

    Args:
        at: now, in seconds since the Unix epoch; kept with what is left of it.
        unchanged_since: if given, a session that was changed at or after this time, or has unfinished
            messages or timers, is left alone.
    """
    rows = db.execute("SELECT id, updated_at FROM sessions WHERE handle = ?", [handle]).fetchall()
    if not rows:
        return False
    if unchanged_since is not None and (rows[0][1] >= unchanged_since or _has_work(db, rows[0][0])):
        return False
    db.execute(
        """INSERT INTO deleted_sessions (handle, deleted_at, last_turn, last_steer)
            SELECT ?, ?, (SELECT coalesce(max(id), 0) FROM turns WHERE session_id = ?),
                (SELECT coalesce(max(id), 0) FROM steers WHERE session_id = ?)
            WHERE TRUE
            ON CONFLICT (handle) DO UPDATE SET deleted_at = excluded.deleted_at,
                last_turn = max(last_turn, excluded.last_turn),
                last_steer = max(last_steer, excluded.last_steer)""",
        [handle, at, rows[0][0], rows[0][0]],
    )
    db.execute("DELETE FROM sessions WHERE id = ?", [rows[0][0]])
    return True


def has_unfinished(db: Database, session_id: int) -> bool:
    """Whether the session has accepted messages that have not ended."""
    ((found,),) = db.execute(
        """SELECT EXISTS (SELECT 1 FROM turns WHERE session_id = :id AND state IN ('queued', 'running'))
            OR EXISTS (SELECT 1 FROM steers WHERE session_id = :id AND applied_turn IS NULL)""",
        {"id": session_id},
    ).fetchall()
    return bool(found)


def _has_work(db: Database, session_id: int) -> bool:
    """Whether something is still to be done in the session: messages that have not ended, or timers."""
    timers = db.execute("SELECT 1 FROM timers WHERE session_id = ? LIMIT 1", [session_id]).fetchall()
    return bool(timers) or has_unfinished(db, session_id)


def highest_ids(db: Database) -> tuple[int, int]:
    """The highest ids that a turn and a steer ever had, deleted ones included; 0 if there is none."""
    turn, steer = db.execute(
        """SELECT max(coalesce((SELECT max(id) FROM turns), 0),
                coalesce((SELECT max(last_turn) FROM deleted_sessions), 0)),
            max(coalesce((SELECT max(id) FROM steers), 0),
                coalesce((SELECT max(last_steer) FROM deleted_sessions), 0))"""
    ).fetchall()[0]
    return turn, steer


def _stored(db: Database, where: str, params: Sequence[Any]) -> StoredSession | None:
    rows = db.execute(
        f"""SELECT {_SUMMARY}, s.id, s.revision, s.next_seq, s.archive_seq,
            (SELECT m.content FROM compactions c JOIN memory_entries m
                ON m.agent = s.agent AND m.scope = c.scope AND m.kind = 'archive' AND m.name = c.archive
                WHERE c.session_id = s.id AND c.archive = s.archive)
            FROM sessions s WHERE {where}""",
        params,
    ).fetchall()
    if not rows:
        return None
    *summary, id_, revision, next_seq, archive_seq, archive_content = rows[0]
    return StoredSession(
        id=id_,
        summary=SessionSummary(*summary),
        revision=revision,
        next_seq=next_seq,
        live=tuple(_entries(db, id_, archive_seq, next_seq)),
        archive_content=archive_content,
    )


def _entries(db: Database, session_id: int, start: int, end: int) -> list[HistoryEntry]:
    """The entries from `start` up to `end`. Many to a row of the answer: each row of an answer hands the
    interpreter lock away, and it takes long to come back from a busy hub."""
    found: list[HistoryEntry] = []
    for first in range(start, end, _ENTRIES_AT_ONCE):
        bounds = [session_id, first, min(first + _ENTRIES_AT_ONCE, end)]
        selected = "SELECT body FROM entries WHERE session_id = ? AND seq >= ? AND seq < ? ORDER BY seq"
        ((count, joined),) = db.execute(
            f"SELECT count(*), group_concat(body, char(10)) FROM ({selected})", bounds
        ).fetchall()
        bodies = (joined or "").split("\n") if count else []
        if len(bodies) != count:  # a damaged body has a line break: let it be the one that is reported
            bodies = [body for (body,) in db.execute(selected, bounds).fetchall()]
        found += decode_entries(bodies)
    return found


def _store_archive(
    db: Database, handle: str, name: str, content: str, agent: str, scope: str, at: float
) -> None:
    stored = db.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at, handle)
            VALUES (?, ?, 'archive', ?, ?, ?, ?) ON CONFLICT (agent, scope, kind, name) DO NOTHING""",
        [agent, scope, name, content, at, handle],
    )
    if stored.rowcount != 1:
        raise StorageError(
            f"the archive name {name!r} is taken in this scope of {agent!r}; take the next one"
        )


def _not_found(handle: str) -> SessionNotFound:
    return SessionNotFound(f"no stored session has the handle {handle!r}; list the sessions to see them")
