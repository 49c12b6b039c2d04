"""Memory entries: notes, topics and archives, each in a scope of an agent, found by full-text search.

A scope is a sender, or "" for what all senders of an agent share.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from persistence.errors import RecordError
from persistence.records import Kind, MemoryEntry

_COLUMNS = "m.name, m.kind, m.content, m.aliases, m.created_at"
_WORD = re.compile(r"\w+")
_MOST_WORDS = 64


def remember(
    db: Database, *, agent: str, scope: str, name: str, content: str, aliases: Sequence[str], at: float
) -> MemoryEntry:
    """Store a note. One of the same name gets the new content and aliases, and keeps its age."""
    db.execute(
        """INSERT INTO memory_entries (agent, scope, kind, name, content, aliases, created_at)
            VALUES (?, ?, 'note', ?, ?, ?, ?)
            ON CONFLICT (agent, scope, kind, name)
            DO UPDATE SET content = excluded.content, aliases = excluded.aliases""",
        [agent, scope, name, content, encode_aliases(aliases), at],
    )
    return _one(db, agent, scope, "note", name)


def forget(db: Database, *, agent: str, scope: str, name: str) -> bool:
    """Delete a note; whether there was one. Topics and archives stay."""
    found = db.execute(
        "DELETE FROM memory_entries WHERE agent = ? AND scope = ? AND kind = 'note' AND name = ?",
        [agent, scope, name],
    )
    return found.rowcount > 0


def recall(
    db: Database, *, agent: str, scope: str, query: str, limit: int = 5, kind: Kind | None = None
) -> list[MemoryEntry]:
    """The entries that match `query` best, best first: those with all its words, or else with any.

    `query` is plain text: nothing in it is an operator, and text without a word matches nothing.
    """
    where, params = "m.agent = ? AND m.scope = ?", [agent, scope]
    if kind is not None:
        where, params = f"{where} AND m.kind = ?", [*params, kind]
    return [_entry(row) for row in _matches(db, _COLUMNS, query, where, params, limit)]


def entries(db: Database, *, agent: str, scope: str, kind: Kind | None = None) -> list[MemoryEntry]:
    """The entries of a scope, oldest first."""
    where, params = "m.agent = ? AND m.scope = ?", [agent, scope]
    if kind is not None:
        where, params = f"{where} AND m.kind = ?", [*params, kind]
    rows = db.execute(f"SELECT {_COLUMNS} FROM memory_entries m WHERE {where} ORDER BY m.id", params)
    return [_entry(row) for row in rows.fetchall()]


def highest_archive(db: Database, *, agent: str, scope: str, slug: str) -> int:
    """The highest n of the archives named `{slug}-{n}`; 0 if there is none. "02" and "+1" are no n."""
    prefix = f"{slug}-"
    # A range of the unique index, which knows no wildcards: "." is the character after "-".
    rows = db.execute(
        """SELECT name FROM memory_entries
            WHERE agent = ? AND scope = ? AND kind = 'archive' AND name > ? AND name < ?""",
        [agent, scope, prefix, f"{slug}."],
    ).fetchall()
    return max((canonical_number(name[len(prefix) :]) for (name,) in rows), default=0)


def canonical_number(text: str) -> int:
    """The number that `text` writes in the one canonical way, from 1 on; 0 for anything else."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,17}", text) else 0


def search(
    db: Database, query: str, agent: str | None = None, sender: str | None = None, limit: int = 20
) -> list[tuple[str, str, MemoryEntry]]:
    """`(agent, scope, entry)` of the best matches in all scopes, or those of an agent, or a sender."""
    where, params = _filter(agent, sender)
    rows = _matches(db, f"m.agent, m.scope, {_COLUMNS}", query, where, params, limit)
    return [(row[0], row[1], _entry(row[2:])) for row in rows]


def list_entries(
    db: Database, agent: str | None = None, sender: str | None = None
) -> list[tuple[str, str, MemoryEntry]]:
    """`(agent, scope, entry)` of all entries, or those of an agent, or a sender; oldest first."""
    where, params = _filter(agent, sender)
    sql = f"SELECT m.agent, m.scope, {_COLUMNS} FROM memory_entries m WHERE {where} ORDER BY m.id"
    return [(row[0], row[1], _entry(row[2:])) for row in db.execute(sql, params).fetchall()]


def encode_aliases(aliases: Sequence[str]) -> str:
    """Aliases as they are stored: a JSON list of text."""
    return json.dumps([*aliases], ensure_ascii=False)


def decode_aliases(body: str) -> tuple[str, ...]:
    """What `encode_aliases` wrote; `RecordError` for anything else."""
    try:
        aliases = json.loads(body)
    except ValueError as error:
        raise RecordError(f"aliases are stored as something that is not JSON: {error}") from error
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise RecordError("aliases are stored in an unknown shape")
    return tuple(aliases)


def _filter(agent: str | None, sender: str | None) -> tuple[str, list[Any]]:
    given = [(column, value) for column, value in (("agent", agent), ("scope", sender)) if value is not None]
    return " AND ".join(["TRUE", *(f"m.{column} = ?" for column, _ in given)]), [value for _, value in given]


def _matches(
    db: Database, columns: str, query: str, where: str, params: Sequence[Any], limit: int
) -> list[Sequence[Any]]:
    words = _WORD.findall(unicodedata.normalize("NFC", query))[:_MOST_WORDS]
    if not words or limit <= 0:
        return []
    # FTS5 hands out hits by rank as they are asked for: of the others no row is read.
    sql = f"""SELECT {columns} FROM memory_entries_fts f CROSS JOIN memory_entries m ON m.id = f.rowid
        WHERE memory_entries_fts MATCH ? AND {where} ORDER BY f.rank LIMIT ?"""
    quoted = [f'"{word}"' for word in words]  # quoted, a word is never an operator
    rows = db.execute(sql, [" ".join(quoted), *params, limit]).fetchall()
    if not rows and len(words) > 1:
        rows = db.execute(sql, [" OR ".join(quoted), *params, limit]).fetchall()
    return rows


def _one(db: Database, agent: str, scope: str, kind: Kind, name: str) -> MemoryEntry:
    sql = f"""SELECT {_COLUMNS} FROM memory_entries m
        WHERE m.agent = ? AND m.scope = ? AND m.kind = ? AND m.name = ?"""
    return _entry(db.execute(sql, [agent, scope, kind, name]).fetchall()[0])


def _entry(row: Sequence[Any]) -> MemoryEntry:
    name, kind, content, aliases, created_at = row
    return MemoryEntry(name, kind, content, decode_aliases(aliases), created_at)
