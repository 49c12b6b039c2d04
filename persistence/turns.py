"""The journal of accepted messages, and their idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from persistence.codec import decode_entry, decode_result
from persistence.errors import SessionNotFound
from persistence.records import TurnRow, TurnState, UnfinishedWork
from persistence.recovery import fail_overtaken, take_up_steers
from persistence.sessions import has_unfinished
from persistence.writes import TimerUpdate, WriteSet, apply

DAY_S = 86_400.0
_OLD_KEYS_A_CALL = 2  # more than one new key a call, so that old ones cannot pile up

_SELECT = """SELECT id, session_id, sender, content, state, attempts, key, guest, tool_choice,
    accepted_at, finished_at, result, error FROM turns"""


def accept_keyed(
    db: Database,
    row: TurnRow,
    *,
    agent: str,
    sender: str,
    max_age_s: float = DAY_S,
    first: WriteSet | None = None,
    timers: tuple[TimerUpdate, ...] = (),
) -> TurnRow | None:
    """Store the turn `row` under its key, unless the key of this `(agent, sender)` is taken.

    Args:
        row: a new turn; its `key` is not None.
        agent, sender: whose conversation it is: a key is theirs alone.
        max_age_s: a key older than this, counted between acceptances, is free again once its turn has
            ended; a few such keys are forgotten in passing.
        first: what is to be stored before it, in any case.
        timers: the timer that it comes from, which has fired in any case.

    Returns:
        None when the turn was stored, else the turn that has the key; compare its content.
    """
    assert row.key is not None
    if first is not None:
        apply(db, [first])
    if timers:
        apply(db, [WriteSet(timer_updates=timers)])
    earlier = find_keyed(db, agent=agent, sender=sender, key=row.key, at=row.accepted_at, max_age_s=max_age_s)
    if earlier is not None:
        return earlier
    _forget_old_keys(db, row.accepted_at - max_age_s)
    apply(db, [WriteSet(new_turns=(row,))])
    db.execute(
        "INSERT OR REPLACE INTO keys (agent, sender, key, turn_id, created_at) VALUES (?, ?, ?, ?, ?)",
        [agent, sender, row.key, row.id, row.accepted_at],
    )
    return None


def find_keyed(
    db: Database, *, agent: str, sender: str, key: str, at: float, max_age_s: float = DAY_S
) -> TurnRow | None:
    """The turn that stands for this key of `(agent, sender)` at the time `at`, or None."""
    found = db.execute(
        "SELECT turn_id, created_at FROM keys WHERE agent = ? AND sender = ? AND key = ?",
        [agent, sender, key],
    ).fetchall()
    if not found:
        return None
    first = get_turn(db, found[0][0])
    kept = first is not None and (first.result is None or at - found[0][1] <= max_age_s)
    return first if kept else None


def _forget_old_keys(db: Database, before: float) -> None:
    db.execute(
        """DELETE FROM keys WHERE (agent, sender, key) IN (
            SELECT k.agent, k.sender, k.key FROM keys k JOIN turns t ON t.id = k.turn_id
            WHERE k.created_at < ? AND t.result IS NOT NULL ORDER BY k.created_at LIMIT ?)""",
        [before, _OLD_KEYS_A_CALL],
    )


def get_turn(db: Database, id: int) -> TurnRow | None:  # noqa: A002 - the record's own word
    """The turn with this id."""
    rows = db.execute(f"{_SELECT} WHERE id = ?", [id]).fetchall()
    return _turn(rows[0]) if rows else None


def outcomes(db: Database, ids: Sequence[int]) -> dict[int, TurnRow]:
    """For each id of a turn or steer, the turn that it was or became part of; without those never stored."""
    found: dict[int, TurnRow] = {}
    for id_ in ids:
        applied = db.execute(
            "SELECT applied_turn FROM steers WHERE id = ? AND applied_turn IS NOT NULL", [id_]
        ).fetchall()
        row = get_turn(db, applied[0][0] if applied else id_)
        if row is not None:
            found[id_] = row
    return found


def turns_of(db: Database, session_id: int, states: Sequence[TurnState] | None = None) -> list[TurnRow]:
    """The turns of a session in id order, only those in one of `states` where given."""
    sql, params = f"{_SELECT} WHERE session_id = ?", [session_id, *(states or ())]
    if states is not None:
        sql += f" AND state IN ({','.join('?' * len(states))})"
    return [_turn(row) for row in db.execute(f"{sql} ORDER BY id", params).fetchall()]


def turns_of_handle(db: Database, handle: str) -> list[TurnRow]:
    """The turns of the session with this handle, in id order.

    Raises:
        SessionNotFound: there is none.
    """
    rows = db.execute("SELECT id FROM sessions WHERE handle = ?", [handle]).fetchall()
    if not rows:
        raise SessionNotFound(f"no stored session has the handle {handle!r}; list the sessions to see them")
    return turns_of(db, rows[0][0])


def unfinished(db: Database) -> list[TurnRow]:
    """Every turn that has not ended, in id order."""
    # The same words as the partial index's, or SQLite would not use it.
    rows = db.execute(f"{_SELECT} WHERE state IN ('queued', 'running') ORDER BY session_id, id").fetchall()
    return sorted((_turn(row) for row in rows), key=lambda turn: turn.id)


def left_undone(db: Database, session_id: int, at: float) -> UnfinishedWork:
    """What the last life of a session left undone: the turn that ran first, then the steers that it did not
    come to, which become turns, then the turns that waited. `at` is now."""
    if not has_unfinished(db, session_id):
        return UnfinishedWork()
    take_up_steers(db, session_id)
    fail_overtaken(db, session_id, at)
    rows = db.execute(
        f"""{_SELECT} WHERE session_id = ? AND state IN ('queued', 'running')
            ORDER BY state = 'queued', NOT EXISTS (SELECT 1 FROM steers s WHERE s.id = turns.id), id""",
        [session_id],
    ).fetchall()
    steered = db.execute("SELECT id FROM steers WHERE session_id = ?", [session_id]).fetchall()
    last = db.execute(
        "SELECT turn_id, body FROM entries WHERE session_id = ? ORDER BY seq DESC LIMIT 1", [session_id]
    ).fetchall()
    turn_id, body = last[0] if last else (None, None)
    return UnfinishedWork(
        turns=tuple(_turn(row) for row in rows),
        steered=frozenset(id_ for (id_,) in steered),
        last_turn=turn_id,
        last_entry=None if body is None else decode_entry(body),
    )


def _turn(row: Sequence[Any]) -> TurnRow:
    fields = [*row]
    fields[-2] = None if row[-2] is None else decode_result(row[-2])
    return TurnRow(*fields)
