"""Dead letters: messages that were given up because their process or conversation went down each time."""

from __future__ import annotations

from attrs import frozen
from sqlite_utils import Database

from persistence.errors import DeadLetterNotFound, StorageError
from persistence.records import TurnRow
from persistence.writes import Retried, WriteSet, apply

_SELECT = """
    SELECT d.turn_id, s.handle, s.agent, s.sender, s.topic, t.sender, t.content, d.reason, d.attempts, d.at,
        t.guest, t.tool_choice, d.retried_as
    FROM dead_letters d JOIN turns t ON t.id = d.turn_id JOIN sessions s ON s.id = d.session_id"""


@frozen
class DeadLetter:
    """A message that was given up.

    Attributes:
        turn_id: its turn's, which ended `failed`.
        handle, agent, sender, topic: of its session.
        said_by: who said it, in the history.
        reason: why it was given up.
        attempts: how often it was begun.
        at: when it was given up, in seconds since the Unix epoch.
        retried_as: the turn that it was tried again as, or None.
    """

    turn_id: int
    handle: str
    agent: str
    sender: str
    topic: str
    said_by: str
    content: str
    reason: str
    attempts: int
    at: float
    guest: str | None = None
    tool_choice: str | None = None
    retried_as: int | None = None


def dead_letters(db: Database, agent: str | None = None, sender: str | None = None) -> list[DeadLetter]:
    """The dead letters of an agent and a sender, or of all, in the order in which they were given up."""
    where = "(:agent IS NULL OR s.agent = :agent) AND (:sender IS NULL OR s.sender = :sender)"
    rows = db.execute(f"{_SELECT} WHERE {where} ORDER BY d.id", {"agent": agent, "sender": sender}).fetchall()
    return [DeadLetter(*row) for row in rows]


def dead_letter(db: Database, turn_id: int) -> DeadLetter:
    """One of them.

    Raises:
        DeadLetterNotFound: the turn was not given up, or there is none.
    """
    rows = db.execute(f"{_SELECT} WHERE d.turn_id = ?", [turn_id]).fetchall()
    if not rows:
        raise DeadLetterNotFound(f"turn {turn_id} is no dead letter; list them to see which there are")
    return DeadLetter(*rows[0])


def to_retry(db: Database, turn_id: int) -> DeadLetter:
    """One that may be tried again.

    Raises:
        DeadLetterNotFound: as `dead_letter`.
        StorageError: it was tried again before.
    """
    letter = dead_letter(db, turn_id)
    if letter.retried_as is not None:
        raise StorageError(f"dead letter {turn_id} was tried again before, as turn {letter.retried_as}")
    return letter


def retry(db: Database, turn_id: int, *, new_id: int, at: float) -> None:
    """Accept a dead letter's message once more, as the turn `new_id`; it runs when its topic is opened.

    Raises:
        DeadLetterNotFound, StorageError: as `to_retry`.
    """
    letter = to_retry(db, turn_id)
    ((session_id,),) = db.execute("SELECT session_id FROM turns WHERE id = ?", [turn_id]).fetchall()
    row = TurnRow(
        new_id,
        session_id,
        letter.said_by,
        letter.content,
        "queued",
        guest=letter.guest,
        tool_choice=letter.tool_choice,
        accepted_at=at,
    )
    apply(db, [WriteSet(new_turns=(row,), retried=(Retried(turn_id, new_id),))])
