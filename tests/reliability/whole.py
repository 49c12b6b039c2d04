"""Is what a file holds whole: steps, ends, steers, archives, and what callers were told?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlite_utils import Database

from palaver import TurnResult
from persistence.codec import decode_entry
from persistence.verify import verify

ENDED = ("done", "failed", "cancelled", "closed")


def whole_problems(db: Database) -> list[str]:
    """Everything that is only half there, a line each."""
    problems = [f"G3: {line}" for line in verify(db)]
    for (session,) in db.execute("SELECT id FROM sessions").fetchall():
        problems += _of_session(db, session)
    return problems


def _of_session(db: Database, session: int) -> Iterator[str]:
    entries: dict[int, list[Any]] = {}
    for turn, body in db.execute(
        "SELECT turn_id, body FROM entries WHERE session_id = ? ORDER BY seq", [session]
    ).fetchall():
        entries.setdefault(turn, []).append(decode_entry(body))
    turns = db.execute(
        "SELECT id, content, state, json_extract(result, '$.stop_reason'), json_extract(result, '$.text') "
        "FROM turns WHERE session_id = ? ORDER BY id",
        [session],
    ).fetchall()
    for id_, content, state, stop, text in turns:
        yield from _of_turn(id_, content, state, (stop, text or ""), entries.get(id_, []))
    failed = [row[0] for row in turns if row[2] == "failed"]
    steers = db.execute("SELECT id, content, applied_turn FROM steers WHERE session_id = ?", [session])
    for id_, content, applied in steers.fetchall():
        said = Counter(turn for turn, told in entries.items() if content in _said(told))
        expected = {applied: 1} if applied not in (None, id_) else {}
        lost = not said and applied in failed  # with the last entries of a turn whose end could not be stored
        if applied != id_ and dict(said) != expected and not lost:
            yield f"G7: the steer {content!r} is applied to {applied}, but in the entries of {dict(said)}"


def _of_turn(
    id_: int, content: str, state: str, end: tuple[str, str], entries: Sequence[Any]
) -> Iterator[str]:
    where = f"turn {id_} ({content[:30]!r}, {state})"
    if state == "queued" and entries:
        yield f"G3: {where} has entries"
    if entries and _said(entries)[:1] != [content]:
        yield f"G3: {where} begins with {entries[0]}"
    if _said(entries).count(content) > 1:
        yield f"G3: {where} entered the history twice"
    answers = [e.content for e in entries if e.role == "assistant" and not e.tool_calls]
    if end[0] == "text_response" and answers != [end[1]]:
        yield f"G3: {where} answered {end[1]!r}, but its entries have {answers}"
    if state == "closed" and entries:
        yield f"G3: {where} has entries, and never ran"


def _said(entries: Iterable[Any]) -> list[str]:
    return [entry.content for entry in entries if entry.role == "user"]


def content_problems(
    db: Database,
    told: Mapping[str, TurnResult | Exception | None],
    unstored: Iterable[str],
    *,
    ended: bool,
) -> Iterator[str]:
    """Where the file and what callers were told differ.

    Args:
        told: for each accepted message, by its words, its result, or the error that its caller got.
        unstored: words of messages that were refused.
        ended: whether all accepted messages must have ended.
    """
    rows = db.execute("SELECT content, state, json_extract(result, '$.text') FROM turns").fetchall()
    applied = db.execute(
        """SELECT s.content, t.state, json_extract(t.result, '$.text') FROM steers s
            JOIN turns t ON t.id = s.applied_turn WHERE s.id <> s.applied_turn"""
    ).fetchall()
    waiting = db.execute("SELECT content, 'queued', NULL FROM steers WHERE applied_turn IS NULL").fetchall()
    stored: dict[str, list[tuple[str, str | None]]] = {}
    for content, state, text in (*rows, *applied, *waiting):
        stored.setdefault(content, []).append((state, text))
    for words, found in stored.items():
        if len(found) > 1:
            yield f"G4: {words[:30]!r} is stored {len(found)} times"
        if ended and found[0][0] not in ENDED:
            yield f"G2: {words[:30]!r} is {found[0][0]}"
    for words in unstored:
        if words in stored and words not in told:
            yield f"G3: {words[:30]!r} was refused, and is stored as {stored[words]}"
    for words, end in told.items():
        yield from _told(words, end, stored.get(words, []))


def _told(
    words: str, end: TurnResult | Exception | None, found: list[tuple[str, str | None]]
) -> Iterator[str]:
    deleted = "be deleted" in words  # by the workload itself
    if not found and not deleted:
        yield f"G1: {words[:30]!r} was accepted, and is not stored"
    if (
        isinstance(end, TurnResult)
        and found
        and (found[0][0] not in ENDED or (found[0][1] or "") != end.text)
    ):
        yield f"G1: {words[:30]!r} ended as {end}, and is stored as {found[0]}"
