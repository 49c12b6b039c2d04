"""What the journal costs: the durable-turns load with it, and without it, in turns.

    python -m benchmarks.journal [--quick] [--json]

Without it, an accepted message is not stored before its turn begins, no turn has a row, and a crash loses
what was accepted; history is stored just the same, by one commit at the end of each turn.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402  # gevent patches first
import os  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

from actors import conversation  # noqa: E402
from actors.journal import Journal  # noqa: E402
from actors.ticket import Ticket  # noqa: E402
from benchmarks.report import Goal, Series, as_json, ratio, setting, table  # noqa: E402
from benchmarks.turns import Load, ours  # noqa: E402
from persistence.records import HistoryEntry, TurnResult, TurnState  # noqa: E402
from persistence.writes import NewEvent, WriteSet  # noqa: E402

MOST_LOST = 0.25
LOADS = (Load(1, 200), Load(100, 20), Load(1_000, 10))


class NoJournal(Journal):
    """Stores history, and nothing of the turns that it comes from."""

    __slots__ = ()

    def accept(self, ticket: Ticket, state: TurnState, then: Callable[[Any, Any], None]) -> None:
        del ticket, state
        then(None, None)

    def begin(self, ticket: Ticket) -> None:
        ticket.attempts += 1

    def finish(
        self,
        ticket: Ticket,
        result: TurnResult,
        *,
        entries: Sequence[HistoryEntry],
        trace: str,
        then: Callable[[BaseException | None], None],
        **_steers: Any,
    ) -> None:
        del result
        now = self._clock.wall()
        writes = WriteSet(
            entries=self._entries(ticket.turn_id, entries, now),
            session_updates=(self._session_update(len(entries), now),),
            events=(NewEvent(self.session_id, ticket.turn_id, now, trace),),
        )

        def committed(_value: None, error: BaseException | None) -> None:
            if error is None:
                self._advance(len(entries))
            then(error)

        self._store.write(writes, committed)


@contextmanager
def without_journal() -> Iterator[None]:
    """Conversations that are opened within have no journal."""
    conversation.Journal = NoJournal  # type: ignore[misc]
    try:
        yield
    finally:
        conversation.Journal = Journal  # type: ignore[misc]


def measure(rounds: int) -> dict[str, tuple[Series, Series]]:
    """For each load, turns/s with the journal and without it, in turns."""
    with_it: dict[str, list[float]] = {load.name: [] for load in LOADS}
    without: dict[str, list[float]] = {load.name: [] for load in LOADS}
    for _ in range(rounds):
        for load in LOADS:
            with_it[load.name].append(ours(load).turns_per_s)
            with without_journal():
                without[load.name].append(ours(load).turns_per_s)
    return {name: (Series(tuple(with_it[name])), Series(tuple(without[name]))) for name in with_it}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 7
    measured = measure(rounds)
    where = setting("gevent", "sqlite-utils")
    goals = [
        Goal(f"{name}, with the journal over without", ratio(*pair), 1 - MOST_LOST)
        for name, pair in measured.items()
    ]
    if arguments.json:
        rows = {name: {"with": pair[0], "without": pair[1]} for name, pair in measured.items()}
        print(as_json(where, rows, goals))
        return
    print(f"{where}, {os.cpu_count()} cores; medians of {rounds} rounds in turns, ± half the range\n")
    rows = [[name, str(pair[0]), str(pair[1])] for name, pair in measured.items()]
    print(table(["senders x turns", "turns/s with the journal", "without"], rows))
    print()
    print(table(["to reach", "ours", "bound", ""], [goal.row() for goal in goals]))


if __name__ == "__main__":
    main()
