"""Looking at a database file that no runtime has open: what it holds, and whether that is whole."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from attrs import frozen
from sqlite_utils import Database

from actors.errors import InvalidInput
from actors.models.dialogues import compare
from persistence import sessions
from persistence.database import close_database, damaged, open_database
from persistence.errors import DatabaseUnusable, StorageError
from persistence.records import HistoryEntry, SessionSummary
from persistence.verify import verify

Path = str | os.PathLike[str]

SHOWN_OF_ONE = 3


@frozen
class FileReport:
    """What a file holds, and everything in it that is broken (nothing, in a good one)."""

    sessions: int
    turns: int
    entries: int
    compactions: int
    archives: int
    notes: int
    topics: int
    problems: tuple[str, ...]


@contextmanager
def offline(path: Path) -> Iterator[Database]:
    """The database in `path`, for this process alone while the block runs. Blocks the calling thread.

    Raises:
        DatabaseInUse: a runtime has it open.
        DatabaseUnusable, DatabaseTooNew: there is no such file, or it is not one of this Palaver's.
    """
    db = open_database(path, create=False)
    try:
        yield db
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            full = f"{os.fsdecode(path)!r} could not be changed: {error}; make room on its disk"
            raise StorageError(full) from error
        raise DatabaseUnusable(f"{os.fsdecode(path)!r} cannot be read: {error}; {damaged(path)}") from error
    finally:
        close_database(db)


def verify_database(path: Path) -> list[str]:
    """Everything that is broken in a file, one line each; errors as `offline` raises."""
    with offline(path) as db:
        return verify(db)


def inspect_database(path: Path) -> FileReport:
    """As `verify_database`, with counts of what the file holds."""
    with offline(path) as db:
        return inspect(db)


def inspect(db: Database) -> FileReport:
    """As `inspect_database`, of an open file."""

    def count(table: str, where: str = "TRUE") -> int:
        try:
            return int(db.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchall()[0][0])
        except sqlite3.DatabaseError:
            return 0  # damaged: that is among the problems

    return FileReport(
        problems=tuple(verify(db)),
        sessions=count("sessions"),
        turns=count("turns"),
        entries=count("entries"),
        compactions=count("compactions"),
        archives=count("memory_entries", "kind = 'archive'"),
        notes=count("memory_entries", "kind = 'note'"),
        topics=count("memory_entries", "kind = 'topic'"),
    )


# -- stored transcripts against what they should be -------------------------------------------------

Transcripts = Mapping[tuple[str, str], Sequence[HistoryEntry]]


@frozen
class Comparison:
    """What was compared, of the senders in question alone; and the differences, a line each, up to a few
    of one transcript."""

    sessions: int
    entries: int
    tool_calls: int
    compactions: int
    archives: int
    differences: tuple[str, ...]


def compare_transcripts(db: Database, agent: str, expected: Transcripts) -> Comparison:
    """Compare the stored transcripts of an agent with what they should be, entry by entry.

    Args:
        expected: (sender, topic) -> the whole transcript. A topic of these senders that is not among
            them is a difference; sessions of other senders are passed over.
    """
    senders = dict.fromkeys(sender for sender, _topic in expected)
    stored: dict[tuple[str, str], list[SessionSummary]] = {}
    for summary in sessions.list_sessions(db, agent=agent):
        if summary.sender in senders:
            stored.setdefault((summary.sender, summary.topic), []).append(summary)
    differences = [
        f"{_where(*key)}: stored, but not in the input" for key in sorted(stored) if key not in expected
    ]
    entries = tool_calls = 0
    for key, wanted in expected.items():
        found = stored.get(key, [])
        if len(found) != 1:
            differences.append(f"{_where(*key)}: {len(found)} sessions are stored, not 1")
            continue
        transcript = sessions.transcript(db, found[0].handle)
        entries += len(transcript)
        tool_calls += sum(entry.role == "tool" for entry in transcript)
        lines = compare(wanted, transcript)
        if len(lines) > SHOWN_OF_ONE:  # one lost entry shifts all that follow
            lines[SHOWN_OF_ONE:] = [f"{len(lines) - SHOWN_OF_ONE:,} more differences"]
        differences += [f"{_where(*key)}: {line}" for line in lines]
    compactions, archives = _compactions(db, agent, [*senders])
    return Comparison(len(stored), entries, tool_calls, compactions, archives, tuple(differences))


def refuse_known_senders(path: Path, agent: str, senders: Sequence[str]) -> None:
    """Make sure that a file, if it is there, holds no session of these senders. Blocks as `offline`.

    Raises:
        InvalidInput: it does; the message says what to do.
        StorageError: the file cannot be opened.
    """
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return
    wanted = dict.fromkeys(senders)
    with offline(path) as db:
        known = [each.sender for each in sessions.list_sessions(db, agent=agent) if each.sender in wanted]
    if known:
        raise InvalidInput(
            f"{os.fsdecode(path)!r} holds {len(known):,} sessions of these senders already "
            f"({known[-1]!r} is one), so nothing could be compared; give a new file"
        )


def _compactions(db: Database, agent: str, senders: Sequence[str]) -> tuple[int, int]:
    of_senders = "s.agent = ? AND s.sender IN (SELECT value FROM json_each(?))"
    ((markers, archives),) = db.execute(
        f"""SELECT (SELECT count(*) FROM compactions c JOIN sessions s ON s.id = c.session_id
                WHERE {of_senders}),
            (SELECT count(*) FROM memory_entries m JOIN sessions s ON s.handle = m.handle
                WHERE m.kind = 'archive' AND {of_senders})""",
        [agent, json.dumps(senders)] * 2,
    ).fetchall()
    return markers, archives


def _where(sender: str, topic: str) -> str:
    return f"sender {sender!r}, topic {topic!r}"
