"""Finding the session of a topic conversation: the database job, and what the conversation makes of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlite_utils import Database

from actors.errors import DescriptionRequired
from actors.history import resumed
from actors.logs import log
from actors.messages import OpenSession, SessionReady
from actors.services import Services
from actors.state import ConversationState
from actors.ticket import Ticket
from persistence import sessions, turns
from persistence.records import StoredSession, TurnRow, UnfinishedWork

logger = logging.getLogger("palaver.conversation")


def session_job(services: Services, state: ConversationState, message: OpenSession) -> Any:
    """The job that loads a session by its handle, or finds or creates that of the topic.

    Its value is (session, whether it was there, what was left undone, what became of turns that were
    asked for), or None for an unknown topic without a description.
    """
    if message.handle is not None:
        asked_for = message.asked_for
        return partial(_load, handle=message.handle, at=services.clock.wall(), asked_for=asked_for)
    return partial(
        _find_or_make,
        agent=state.agent,
        sender=state.sender,
        topic=state.topic or "",
        handle=services.sources.handle(),
        at=services.clock.wall(),
        scope=message.scope,
        description=message.description,
    )


def session_ready(found: Any, error: BaseException | None) -> SessionReady:
    """The job's outcome as a notice."""
    if error is not None or found is None:
        return SessionReady(None, False, UnfinishedWork(), error=error)
    return SessionReady(*found)


def take_session(state: ConversationState, session: StoredSession) -> None:
    """Bring the live state to what is stored: history, title, uptime, handle."""
    summary = session.summary
    if summary.archive is not None and session.archive_content is None:
        log(logger, logging.WARNING, "an archive is missing", state, archive=summary.archive)
    state.handle = summary.handle
    state.title = summary.title
    state.uptime_s = summary.uptime_s
    state.history.extend(resumed(summary.archive, session.archive_content, session.live))
    if state.history.repairs:
        log_repairs(state)


def log_repairs(state: ConversationState) -> None:
    """Say that the history had tool calls without results, or results without calls."""
    words = "the history's tool calls and results did not pair, and were repaired for the model"
    log(logger, logging.WARNING, words, state, repairs=state.history.repairs)


def needs_description(state: ConversationState) -> DescriptionRequired:
    """The error for a topic that is new and was not described."""
    return DescriptionRequired(
        f"the topic {state.topic!r} is new for agent {state.agent!r} and sender {state.sender!r}: "
        "opening it needs a description"
    )


def unfinished_tickets(
    state: ConversationState, work: UnfinishedWork, known: Mapping[int, Ticket]
) -> list[Ticket]:
    """Tickets for the turns that an earlier life of the session accepted and did not end; those in `known`
    are the ones that callers hold."""
    tickets = []
    for row in work.turns:
        ticket = known.get(row.id) or Ticket(
            row.id,
            state.id,
            row.content,
            sender=row.sender,
            guest=row.guest,
            key=row.key,
            tool_choice=row.tool_choice,
        )
        ticket.take_up(row.accepted_at, row.attempts, from_steer=row.id in work.steered)
        if row.id == work.last_turn:
            ticket.last_entry = work.last_entry
        tickets.append(ticket)
    return tickets


def _load(
    db: Database, *, handle: str, at: float, asked_for: Sequence[int]
) -> tuple[StoredSession, bool, UnfinishedWork, Mapping[int, TurnRow]]:
    session = sessions.load_session(db, handle)
    undone = turns.left_undone(db, session.id, at)
    return session, True, undone, turns.outcomes(db, asked_for)


def _find_or_make(
    db: Database, **what: Any
) -> tuple[StoredSession, bool, UnfinishedWork, Mapping[int, TurnRow]] | None:
    found = sessions.open_session(db, **what)
    return None if found is None else (*found, turns.left_undone(db, found[0].id, what["at"]), {})
