"""What becomes of the database's answers on a turn: one small object each, told by message.

Not closures, which are a dozen objects with their cells: with a thousand turns on their way to the disk,
that is most of what Python's collector has to look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pykka
from attrs import evolve

from actors.messages import TurnJournalled, TurnStored
from actors.storage import notify
from actors.ticket import Ticket
from persistence.writes import WriteSet

if TYPE_CHECKING:
    from actors.journal import Journal


class Acceptance:
    """Waits for the commit of an accepted message's row."""

    __slots__ = ("ref", "ticket")

    def __init__(self, ref: pykka.ActorRef[Any], ticket: Ticket) -> None:
        self.ref = ref
        self.ticket = ticket

    def __call__(self, existing: Any, error: BaseException | None) -> None:
        self.ticket.refused = error is not None or existing is not None
        notify(self.ref, TurnJournalled(self.ticket, error, existing))


class TurnEnd:
    """Waits for the commit of a turn's end.

    Args:
        ref: the conversation actor, which hears `notice`.
        writes: what is stored.
    """

    __slots__ = ("journal", "notice", "ref", "writes")

    def __init__(
        self, journal: Journal, ref: pykka.ActorRef[Any], notice: TurnStored, writes: WriteSet
    ) -> None:
        self.journal = journal
        self.ref = ref
        self.notice = notice
        self.writes = writes

    def __call__(self, _value: object, error: BaseException | None) -> None:
        notice = self.notice
        if error is None:
            self.journal.stored(self.writes)
        else:
            ticket = notice.ended.turn.ticket
            if notice.accepted:  # the row of the message is not stored either
                Acceptance(self.ref, ticket)(None, error)
            if not ticket.refused:
                self.journal.owe_end(self.writes, notice, error)
            notice = evolve(notice, error=error, accepted=False)
        notify(self.ref, notice)
