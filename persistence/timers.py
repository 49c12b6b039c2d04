"""Messages that are to come later: storing, listing, cancelling. Their firing is part of a write set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from attrs import frozen
from sqlite_utils import Database

from persistence.errors import SessionNotFound
from persistence.records import TimerInfo
from persistence.turns import find_keyed

_SELECT = """SELECT t.id, s.agent, s.sender, s.topic, s.handle, t.said_by, t.content, t.due_at, t.every_s,
    t.key, t.created_at FROM timers t JOIN sessions s ON s.id = t.session_id"""


@frozen
class NewTimer:
    """A timer as it is asked for: see `TimerInfo`. `created_at` is now."""

    said_by: str
    content: str
    key: str | None
    due_at: float
    every_s: float | None
    created_at: float


@frozen
class TimerSet:
    """What became of a wish for a timer: it is `stored`; one of the same key and content is `known`; its key
    is that of another message; or its session has `full` as many timers as it may have."""

    outcome: Literal["stored", "known", "key reused", "full"]
    timer: TimerInfo | None = None


@frozen
class PendingTimer:
    """When a timer is due, and where its message comes to: a session's handle, or the id of a tmp chat."""

    id: int
    due_at: float
    place: str | int
    agent: str


def add(db: Database, new: NewTimer, *, session_id: int, most: int, keys_kept_s: float) -> TimerSet:
    """Store a timer of a session, unless it has `most` already or the key is taken.

    Args:
        keys_kept_s: a key older than this is free again once its turn has ended.

    Raises:
        SessionNotFound: the session was deleted.
    """
    rows = db.execute("SELECT agent, sender FROM sessions WHERE id = ?", [session_id]).fetchall()
    if not rows:
        raise SessionNotFound("the conversation's session was deleted, so it can have no timer; open another")
    agent, sender = rows[0]
    taken = None if new.key is None else _of_key(db, agent, sender, new, keys_kept_s)
    if taken is not None:
        return taken
    ((count,),) = db.execute("SELECT count(*) FROM timers WHERE session_id = ?", [session_id]).fetchall()
    if count >= most:
        return TimerSet("full")
    stored = db.execute(
        """INSERT INTO timers (session_id, said_by, content, key, due_at, every_s, created_at)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
        [session_id, new.said_by, new.content, new.key, new.due_at, new.every_s, new.created_at],
    )
    return TimerSet("stored", get(db, int(stored.lastrowid or 0)))


def _of_key(db: Database, agent: str, sender: str, new: NewTimer, keys_kept_s: float) -> TimerSet | None:
    """What a key that another timer or turn of this agent and sender has makes of a new timer."""
    rows = db.execute(
        f"{_SELECT} WHERE t.key = ? AND s.agent = ? AND s.sender = ?", [new.key, agent, sender]
    ).fetchall()
    if rows:
        timer = _timer(rows[0])
        return TimerSet("known", timer) if timer.content == new.content else TimerSet("key reused")
    assert new.key is not None
    turn = find_keyed(db, agent=agent, sender=sender, key=new.key, at=new.created_at, max_age_s=keys_kept_s)
    return TimerSet("key reused") if turn is not None and turn.content != new.content else None


def get(db: Database, id: int) -> TimerInfo | None:  # noqa: A002 - the record's own word
    """The timer with this id, if it has not ended."""
    rows = db.execute(f"{_SELECT} WHERE t.id = ?", [id]).fetchall()
    return _timer(rows[0]) if rows else None


def list_timers(db: Database, handle: str | None = None) -> list[TimerInfo]:
    """All timers, or those of a session; the one that is due first comes first."""
    where, params = ("", []) if handle is None else ("WHERE s.handle = ?", [handle])
    rows = db.execute(f"{_SELECT} {where} ORDER BY t.due_at, t.id", params).fetchall()
    return [_timer(row) for row in rows]


def pending(
    db: Database, *, handle: str | None = None, after: int = 0, at_most: int = -1
) -> list[PendingTimer]:
    """Timers by id, without what they say.

    Args:
        handle: only those of this session.
        after: only greater ids: where the last call of several stopped.
        at_most: as many at most; -1 is all.
    """
    where, params = ("", []) if handle is None else ("AND s.handle = ?", [handle])
    rows = db.execute(
        f"""SELECT t.id, t.due_at, s.handle, s.agent FROM timers t JOIN sessions s ON s.id = t.session_id
            WHERE t.id > ? {where} ORDER BY t.id LIMIT ?""",
        [after, *params, at_most],
    ).fetchall()
    return [PendingTimer(*row) for row in rows]


def cancel(db: Database, id: int) -> bool:  # noqa: A002 - the record's own word
    """End a timer; whether it was there. Its message does not come any more then."""
    return bool(db.execute("DELETE FROM timers WHERE id = ?", [id]).rowcount)


def _timer(row: Sequence[Any]) -> TimerInfo:
    return TimerInfo(*row)
