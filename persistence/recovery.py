"""What processes that ended left undone: finding it, and ending it without running it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen
from sqlite_utils import Database

from persistence.records import TurnResult, TurnRow, UnfinishedSession
from persistence.writes import SteerUpdate, TurnUpdate, WriteSet, apply

OVERTAKEN = "what became of this turn could not be stored, and the process ended before it could be"

_LEFT = """
    SELECT session_id, id, 1 AS turns, 0 AS steers, accepted_at, guest FROM turns
        WHERE state IN ('queued', 'running')
    UNION ALL
    SELECT session_id, id, 0, 1, accepted_at, NULL FROM steers WHERE applied_turn IS NULL"""


def unfinished_sessions(db: Database) -> list[UnfinishedSession]:
    """Every session with accepted messages that have not ended, in the order of the oldest of these."""
    rows = db.execute(
        f"""SELECT s.handle, s.agent, s.sender, s.topic, sum(x.turns), sum(x.steers), min(x.accepted_at),
                json_group_array(DISTINCT x.guest) FILTER (WHERE x.guest IS NOT NULL)
            FROM ({_LEFT}) x JOIN sessions s ON s.id = x.session_id
            GROUP BY x.session_id ORDER BY min(x.id)"""
    ).fetchall()
    return [
        UnfinishedSession(handle, agent, sender, topic, turns, steers, since, tuple(json.loads(guests)))
        for handle, agent, sender, topic, turns, steers, since, guests in rows
    ]


def take_up_steers(db: Database, session_id: int) -> None:
    """Make queued turns of the accepted steers that entered no turn, each with the steer's own id."""
    steers = _unapplied(db, session_id)
    if steers:
        made = tuple(
            TurnRow(s.id, session_id, s.sender, s.content, "queued", accepted_at=s.at) for s in steers
        )
        apply(db, [WriteSet(new_turns=made, steer_updates=tuple(SteerUpdate(s.id, s.id) for s in steers))])


def fail_overtaken(db: Database, session_id: int, at: float) -> None:
    """End turns that had ended and could not be stored so: others have stored entries behind theirs."""
    rows = db.execute(
        """SELECT id FROM turns t WHERE session_id = :id AND state IN ('queued', 'running')
            AND (SELECT max(seq) FROM entries WHERE session_id = :id AND turn_id = t.id)
                < (SELECT max(seq) FROM entries WHERE session_id = :id)""",
        {"id": session_id},
    ).fetchall()
    apply(db, [WriteSet(turn_updates=tuple(_failed(turn_id, OVERTAKEN, at) for (turn_id,) in rows))])


def fail_unfinished(db: Database, handles: Sequence[str], *, reason: str, at: float) -> int:
    """End every unfinished message of these sessions as `failed`, without running it; their number.

    A steer that entered no turn becomes a turn that failed. Sessions that are not stored are passed over.

    Args:
        reason: the turns' error, for whoever asks for them.
        at: now, in seconds since the Unix epoch.
    """
    ended: list[TurnUpdate] = []
    for (session_id,) in _each(db, "SELECT id FROM sessions WHERE handle = ?", handles):
        take_up_steers(db, session_id)
        for (turn_id,) in db.execute(
            "SELECT id FROM turns WHERE session_id = ? AND state IN ('queued', 'running') ORDER BY id",
            [session_id],
        ).fetchall():
            ended.append(_failed(turn_id, reason, at))
    apply(db, [WriteSet(turn_updates=tuple(ended))])
    return len(ended)


def _failed(turn_id: int, reason: str, at: float) -> TurnUpdate:
    result = TurnResult("", "error", reason, turn_id=turn_id)
    return TurnUpdate(turn_id, "failed", result=result, error=reason, finished_at=at)


@frozen
class _Steer:
    id: int
    sender: str
    content: str
    at: float


def _unapplied(db: Database, session_id: int) -> list[_Steer]:
    rows = db.execute(
        """SELECT id, sender, content, accepted_at FROM steers
            WHERE session_id = ? AND applied_turn IS NULL ORDER BY id""",
        [session_id],
    ).fetchall()
    return [_Steer(*row) for row in rows]


def _each(db: Database, sql: str, params: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    for param in dict.fromkeys(params):
        yield from db.execute(sql, [param]).fetchall()
