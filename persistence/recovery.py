"""What processes that ended left undone: finding it, and ending it without running it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlite_utils import Database

from persistence.records import TurnResult, TurnRow, UnfinishedSession
from persistence.writes import SteerUpdate, TurnUpdate, WriteSet, apply

_LEFT = """
    SELECT session_id, id, 1 AS turns, 0 AS steers, accepted_at FROM turns
        WHERE state IN ('queued', 'running')
    UNION ALL
    SELECT session_id, turn_id, 0, 1, accepted_at FROM steers WHERE applied_turn IS NULL"""


def unfinished_sessions(db: Database) -> list[UnfinishedSession]:
    """Every session with accepted messages that have not ended, in the order of the oldest of these."""
    rows = db.execute(
        f"""SELECT s.handle, s.agent, s.sender, s.topic, sum(x.turns), sum(x.steers), min(x.accepted_at)
            FROM ({_LEFT}) x JOIN sessions s ON s.id = x.session_id
            GROUP BY x.session_id ORDER BY min(x.id)"""
    ).fetchall()
    return [UnfinishedSession(*row) for row in rows]


def fail_unfinished(
    db: Database, handles: Sequence[str], *, reason: str, at: float, new_ids: Iterable[int]
) -> int:
    """End every unfinished message of these sessions as `failed`, without running it; their number.

    A steer that entered no turn becomes a turn that failed. Sessions that are not stored are passed over.

    Args:
        reason: the turns' error, for whoever asks for them.
        at: now, in seconds since the Unix epoch.
        new_ids: ids for the turns that steers become, above all that were ever used.
    """
    ids = iter(new_ids)
    ended: list[TurnUpdate] = []
    made: list[TurnRow] = []
    applied: list[SteerUpdate] = []
    for (session_id,) in _each(db, "SELECT id FROM sessions WHERE handle = ?", handles):
        for (turn_id,) in db.execute(
            "SELECT id FROM turns WHERE session_id = ? AND state IN ('queued', 'running') ORDER BY id",
            [session_id],
        ).fetchall():
            result = TurnResult("", "error", reason, turn_id=turn_id)
            ended.append(TurnUpdate(turn_id, "failed", result=result, error=reason, finished_at=at))
        for steer_id, sender, content, accepted_at in db.execute(
            """SELECT id, sender, content, accepted_at FROM steers
                WHERE session_id = ? AND applied_turn IS NULL ORDER BY id""",
            [session_id],
        ).fetchall():
            turn_id = next(ids)
            made.append(
                TurnRow(
                    turn_id,
                    session_id,
                    sender,
                    content,
                    "failed",
                    accepted_at=accepted_at,
                    finished_at=at,
                    result=TurnResult("", "error", reason, turn_id=turn_id),
                    error=reason,
                )
            )
            applied.append(SteerUpdate(steer_id, turn_id))
    apply(db, [WriteSet(new_turns=tuple(made), turn_updates=tuple(ended), steer_updates=tuple(applied))])
    return len(ended) + len(made)


def _each(db: Database, sql: str, params: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    for param in dict.fromkeys(params):
        yield from db.execute(sql, [param]).fetchall()
