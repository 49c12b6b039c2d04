"""Passive conversations of one process: in a temporary table, so that they take no memory.

The table is the connection's own. Nothing of it is synced, backed up or exported, and it ends with the
process, as the ids in it do.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import astuple, frozen
from sqlite_utils import Database

_COLUMNS = "id, agent, sender, topic, handle, active, routed"


@frozen
class Dormant:
    """A conversation that left memory: its id in this process, and the session to bring it back from.

    `active` says whether its topic was the sender's active one; `routed` whether the topic leads to it, and
    not to a newer session of the same title.
    """

    id: int
    agent: str
    sender: str
    topic: str
    handle: str
    active: bool
    routed: bool


def keep(db: Database, row: Dormant) -> int:
    """Remember a conversation that leaves memory; returns 1, or 0 if it was known already."""
    known = bool(beside(db, row.id))
    db.execute(
        f"INSERT OR REPLACE INTO temp.dormant ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", [*astuple(row)]
    )
    return 0 if known else 1


def of_pair(db: Database, agent: str, sender: str) -> list[Dormant]:
    """The passive conversations of a pair, in the order of their ids."""
    _make(db)
    return _rows(db, "agent = ? AND sender = ?", [agent, sender])


def beside(db: Database, id: int) -> list[Dormant]:  # noqa: A002 - the record's own word
    """All passive conversations of the pair that this one is of; none if it is not passive."""
    _make(db)
    pair = "(agent, sender) IN (SELECT agent, sender FROM temp.dormant WHERE id = ?)"
    return _rows(db, pair, [id])


def of_session(db: Database, handle: str) -> Dormant | None:
    """The passive conversation of a session."""
    _make(db)
    return next(iter(_rows(db, "handle = ?", [handle])), None)


def some(db: Database, most: int) -> list[int]:
    """Up to `most` ids of passive conversations, the oldest first."""
    _make(db)
    return [
        id_ for (id_,) in db.execute("SELECT id FROM temp.dormant ORDER BY id LIMIT ?", [most]).fetchall()
    ]


def with_timers(db: Database) -> dict[str, int]:
    """The ids of the passive conversations that have timers, by the handles of their sessions."""
    _make(db)
    return dict(
        db.execute(
            """SELECT handle, id FROM temp.dormant WHERE handle IN (
                SELECT s.handle FROM timers t JOIN sessions s ON s.id = t.session_id)"""
        ).fetchall()
    )


def activate(db: Database, agent: str, sender: str, topic: str | None) -> None:
    """Note which of a pair's topics is the active one."""
    _make(db)
    db.execute(
        "UPDATE temp.dormant SET active = (routed AND topic IS ?) WHERE agent = ? AND sender = ?",
        [topic, agent, sender],
    )


def forget(db: Database, id: int) -> int:  # noqa: A002 - the record's own word
    """It is passive no longer; returns 1 if it was, else 0."""
    _make(db)
    return int(db.execute("DELETE FROM temp.dormant WHERE id = ?", [id]).rowcount)


def _rows(db: Database, where: str, params: Sequence[object]) -> list[Dormant]:
    found = db.execute(f"SELECT {_COLUMNS} FROM temp.dormant WHERE {where} ORDER BY id", [*params]).fetchall()
    return [
        Dormant(id_, agent, sender, topic, handle, bool(active), bool(routed))
        for id_, agent, sender, topic, handle, active, routed in found
    ]


def _make(db: Database) -> None:
    if db.execute("SELECT 1 FROM temp.sqlite_master WHERE name = 'dormant'").fetchall():
        return
    db.execute("""
        CREATE TEMP TABLE dormant (
            id INTEGER PRIMARY KEY,
            agent TEXT NOT NULL,
            sender TEXT NOT NULL,
            topic TEXT NOT NULL,
            handle TEXT NOT NULL UNIQUE,
            active INTEGER NOT NULL,
            routed INTEGER NOT NULL,
            UNIQUE (agent, sender, topic, id)
        ) STRICT""")
