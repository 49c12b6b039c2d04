"""Moving live conversations from one runtime to another, each with its own database file."""

from __future__ import annotations

from attrs import frozen

from actors.state import ConversationState
from actors.ticket import Ticket
from persistence.records import StoredSession


@frozen
class MovedConversation:
    """All that there is of a live conversation: its state, its queued turns, and, once it is stored in
    the new file, its session there (None for a tmp chat)."""

    state: ConversationState
    tickets: tuple[Ticket, ...]
    session: StoredSession | None = None
