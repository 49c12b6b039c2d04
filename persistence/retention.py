"""Which sessions are old enough to be deleted."""

from __future__ import annotations

from attrs import frozen
from sqlite_utils import Database

_FINISHED = """NOT EXISTS (SELECT 1 FROM turns t
        WHERE t.session_id = s.id AND t.state IN ('queued', 'running'))
    AND NOT EXISTS (SELECT 1 FROM steers x WHERE x.session_id = s.id AND x.applied_turn IS NULL)
    AND NOT EXISTS (SELECT 1 FROM timers i WHERE i.session_id = s.id)"""


@frozen
class OldSession:
    """A session that has not changed for some time; `id` is its row's."""

    id: int
    handle: str
    agent: str
    sender: str
    topic: str
    updated_at: float
    entry_count: int


def sessions_older_than(
    db: Database,
    before: float,
    agent: str | None = None,
    sender: str | None = None,
    *,
    after: int = 0,
    at_most: int = -1,
) -> list[OldSession]:
    """Sessions that have not changed since `before`, by row id; none with messages that have not ended, or
    that are still to come.

    Args:
        before: seconds since the Unix epoch; a session that changed then is not older.
        agent, sender: only those of these.
        after: only sessions with greater row ids: where the last call of several stopped.
        at_most: as many at most; -1 is all.
    """
    where, params = _old(before, agent, sender)
    rows = db.execute(
        f"""SELECT s.id, s.handle, s.agent, s.sender, s.topic, s.updated_at, s.next_seq FROM sessions s
            WHERE s.id > ? AND {where} AND {_FINISHED} ORDER BY s.id LIMIT ?""",
        [after, *params, at_most],
    ).fetchall()
    return [OldSession(*row) for row in rows]


def unfinished_older_than(
    db: Database, before: float, agent: str | None = None, sender: str | None = None
) -> int:
    """How many sessions are as old, but have messages that have not ended or timers."""
    where, params = _old(before, agent, sender)
    sql = f"SELECT count(*) FROM sessions s WHERE {where} AND NOT ({_FINISHED})"
    return int(db.execute(sql, params).fetchall()[0][0])


def _old(before: float, agent: str | None, sender: str | None) -> tuple[str, list[float | str]]:
    filters: list[tuple[str, float | str | None]] = [
        ("s.updated_at < ?", before),
        ("s.agent = ?", agent),
        ("s.sender = ?", sender),
    ]
    given = [(condition, value) for condition, value in filters if value is not None]
    return " AND ".join(condition for condition, _ in given), [value for _, value in given]
