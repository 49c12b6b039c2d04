"""Database files with much in them, written by SQL alone: what a host has after months."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from benchmarks.work import ANSWER, MESSAGE
from persistence.codec import encode_entry
from persistence.database import close_database, open_database
from persistence.records import HistoryEntry

AGENT = "agent"
WORDS = [
    f"{first}{second}" for first in "bdfgklmnprst" for second in ("ake", "ill", "oon", "urn", "est", "an")
]


@contextmanager
def filling(path: Path) -> Iterator[Database]:
    """The database in `path`, in one transaction, not synced before its end."""
    db = open_database(path)
    db.execute("BEGIN IMMEDIATE")
    yield db
    db.commit()
    close_database(db)


def sender(number: int) -> str:
    """Who the session `number` is of."""
    return f"sender {number}"


def handle(number: int) -> str:
    """The handle of the session `number`."""
    return f"handle-{number}"


def add_sessions(db: Database, first: int, count: int, entries: int = 0, archived: int = 0) -> None:
    """So many topic sessions with so many live entries each, and `archived` ones before them."""
    numbers = range(first, first + count)
    total = archived + entries
    db.conn.executemany(
        """INSERT INTO sessions (id, handle, agent, sender, topic, scope, created_at, updated_at, next_seq,
            revision, archive, archive_seq) VALUES (?, ?, 'agent', ?, 'topic', ?, 1.0, 1.0, ?, 1, ?, ?)""",
        (
            (n + 1, handle(n), sender(n), sender(n), total, "topic-1" if archived else None, archived)
            for n in numbers
        ),
    )
    db.conn.executemany(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES ('agent', ?, 'topic', 'topic', 'load', 1.0)""",
        ((sender(n),) for n in numbers),
    )
    bodies = (encode_entry(HistoryEntry("user", MESSAGE)), encode_entry(HistoryEntry("assistant", ANSWER)))
    db.conn.executemany(
        "INSERT INTO entries (session_id, seq, turn_id, body, created_at) VALUES (?, ?, ?, ?, 1.0)",
        ((n + 1, seq, seq // 2, bodies[seq % 2]) for n in numbers for seq in range(total)),
    )
    if archived:
        _add_archives(db, numbers, archived)


def _add_archives(db: Database, numbers: range, archived: int) -> None:
    db.conn.executemany(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at, handle)
            VALUES ('agent', ?, 'archive', 'topic-1', ?, 1.0, ?)""",
        ((sender(n), "what was said " * 20, handle(n)) for n in numbers),
    )
    db.conn.executemany(
        """INSERT INTO compactions (session_id, seq, archive, scope, created_at)
            VALUES (?, ?, 'topic-1', ?, 1.0)""",
        ((n + 1, archived, sender(n)) for n in numbers),
    )


def add_notes(db: Database, count: int, scope: str) -> None:
    """So many notes of random words, in one scope."""
    rng = random.Random(1)
    db.conn.executemany(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)
            VALUES ('agent', ?, 'note', ?, ?, 1.0)""",
        ((scope, f"note {n}", " ".join(rng.choices(WORDS, k=12))) for n in range(count)),
    )
