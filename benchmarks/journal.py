"""What the journal costs: the durable-turns load with it, and without it."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from collections.abc import Iterator, Sequence  # noqa: E402  # gevent patches first
from contextlib import contextmanager  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import pykka  # noqa: E402

from actors import conversation  # noqa: E402
from actors.answers import Acceptance, TurnEnd  # noqa: E402
from actors.journal import Journal  # noqa: E402
from actors.messages import TurnEnded, TurnStored  # noqa: E402
from actors.ticket import Ticket  # noqa: E402
from benchmarks.report import Goal, Part, Row, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.turns import HUNDRED, ONE, THOUSAND, Load, ours  # noqa: E402
from persistence.records import TurnState  # noqa: E402
from persistence.writes import WriteSet  # noqa: E402

ABOUT = """Durable turns with the journal and without it. Without it, an accepted message is not stored
before its turn begins, no turn has a row, and a crash loses what was accepted; history is stored just the
same, by one commit at the end of each turn."""
MOST_LOST = 0.25
LOADS = (ONE, HUNDRED, THOUSAND)


class NoJournal(Journal):
    """Stores history, and nothing of the turns that it comes from."""

    __slots__ = ()

    def accept(self, ticket: Ticket, state: TurnState, ref: pykka.ActorRef[Any]) -> None:
        del state
        Acceptance(ref, ticket)(None, None)

    def begin(self, ticket: Ticket) -> None:
        ticket.attempts += 1

    def finish(
        self, ticket: Ticket, ended: TurnEnded, ref: pykka.ActorRef[Any], **_steers: Sequence[Any]
    ) -> None:
        now, entries = self._clock.wall(), ended.entries
        writes = WriteSet(
            entries=self._entries(ticket.turn_id, entries, now),
            session_updates=(self._session_update(len(entries), now),),
        )
        self._store.write(writes, TurnEnd(self, ref, TurnStored(ended, ()), writes))


@contextmanager
def without_journal() -> Iterator[None]:
    """Conversations that are opened within have no journal."""
    vars(conversation)["Journal"] = NoJournal
    try:
        yield
    finally:
        vars(conversation)["Journal"] = Journal


def _with(load: Load) -> float:
    return ours(load).turns_per_s


def run(quick: bool, tell: Tell) -> Part:
    def without(load: Load) -> float:
        with without_journal():
            return ours(load).turns_per_s

    rows = []
    for load in [HUNDRED] if quick else LOADS:
        measures = {"ours": partial(_with, load), "no journal": partial(without, load)}
        rows.append(Row(f"turns/s, {load.name}", in_turns(measures, 2 if quick else 5, tell)))
    goals = [
        Goal(f"{row.what}, over the same without the journal", ratio(*row.systems.values()), 1 - MOST_LOST)
        for row in rows
    ]
    return Part("journal", ABOUT, rows, goals=goals, setting=setting("gevent", "sqlite-utils"))
