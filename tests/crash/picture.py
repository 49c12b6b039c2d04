"""What a file holds at one moment, read from a copy of it, so that the next life finds it as it was left."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

from attrs import define, field, frozen
from sqlite_utils import Database

from persistence.codec import decode_entry, decode_result
from persistence.database import close_database, open_database
from persistence.records import TERMINAL_STATES, HistoryEntry, TurnResult
from persistence.verify import verify


@frozen
class TurnSeen:
    """A row of `turns`."""

    id: int
    handle: str
    agent: str
    sender: str
    content: str
    state: str
    attempts: int
    key: str | None
    result: TurnResult | None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES


@frozen
class SteerSeen:
    """A row of `steers`."""

    id: int
    handle: str
    turn_id: int
    content: str
    applied_turn: int | None


@frozen
class EntrySeen:
    """A row of `entries`."""

    turn_id: int
    entry: HistoryEntry


@frozen
class MarkerSeen:
    """A row of `compactions`, with the content of the archive that it points to."""

    seq: int
    archive: str
    scope: str
    content: str


@frozen
class SessionSeen:
    """A row of `sessions`."""

    handle: str
    agent: str
    sender: str
    topic: str
    scope: str


@define
class Picture:
    """Everything that is in the file, by what it is asked for."""

    sessions: dict[str, SessionSeen] = field(factory=dict)
    turns: dict[int, TurnSeen] = field(factory=dict)
    steers: list[SteerSeen] = field(factory=list)
    transcripts: dict[str, list[EntrySeen]] = field(factory=lambda: defaultdict(list))
    markers: dict[str, list[MarkerSeen]] = field(factory=lambda: defaultdict(list))
    memory: dict[tuple[str, str, str, str], str] = field(factory=dict)  # agent, scope, kind, name
    deleted: list[str] = field(factory=list)


def take_picture(path: Path, scratch: Path) -> Picture:
    """What is in the file and its WAL. It is opened as a copy in the folder `scratch`, and verified.

    Raises:
        AssertionError: it is not as Palaver promises.
    """
    copied = scratch / f"copy of {path.name}"
    for suffix in ("", "-wal"):
        from_, to = path.with_name(path.name + suffix), copied.with_name(copied.name + suffix)
        to.unlink(missing_ok=True)
        if from_.exists():
            shutil.copyfile(from_, to)
    if not copied.exists() or copied.stat().st_size == 0:
        return Picture()  # killed before the file was made
    db = open_database(copied)
    try:
        problems = verify(db)
        assert problems == [], f"the file does not verify: {problems[:5]}"
        return _read(db)
    finally:
        close_database(db)


def _read(db: Database) -> Picture:
    seen = Picture()
    handles: dict[int, str] = {}
    for id_, *session in db.execute(
        "SELECT id, handle, agent, sender, topic, scope FROM sessions"
    ).fetchall():
        handles[id_] = session[0]
        seen.sessions[session[0]] = SessionSeen(*session)
    for id_, session_id, content, state, attempts, key, result in db.execute(
        "SELECT id, session_id, content, state, attempts, key, result FROM turns ORDER BY id"
    ).fetchall():
        of = seen.sessions[handles[session_id]]
        told = None if result is None else decode_result(result)
        seen.turns[id_] = TurnSeen(id_, of.handle, of.agent, of.sender, content, state, attempts, key, told)
    for id_, session_id, *steer in db.execute(
        "SELECT id, session_id, turn_id, content, applied_turn FROM steers ORDER BY id"
    ).fetchall():
        seen.steers.append(SteerSeen(id_, handles[session_id], *steer))
    for session_id, turn_id, body in db.execute(
        "SELECT session_id, turn_id, body FROM entries ORDER BY session_id, seq"
    ).fetchall():
        seen.transcripts[handles[session_id]].append(EntrySeen(turn_id, decode_entry(body)))
    for session_id, seq, archive, scope, content in db.execute(
        """SELECT c.session_id, c.seq, c.archive, c.scope, m.content FROM compactions c
            JOIN sessions s ON s.id = c.session_id JOIN memory_entries m
            ON m.agent = s.agent AND m.scope = c.scope AND m.kind = 'archive' AND m.name = c.archive
            ORDER BY c.id"""
    ).fetchall():
        seen.markers[handles[session_id]].append(MarkerSeen(seq, archive, scope, content))
    for *name, content in db.execute(
        "SELECT agent, scope, kind, name, content FROM memory_entries"
    ).fetchall():
        seen.memory[tuple(name)] = content
    seen.deleted = [handle for (handle,) in db.execute("SELECT handle FROM deleted_sessions").fetchall()]
    return seen
