"""What waits in one conversation, in the order in which it will run: pure rules, no actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import gevent
from attrs import define

from actors.greenlet import GreenletFuture
from actors.state import CompactOutcome
from actors.ticket import Ticket


@define(eq=False)
class CompactionWork:
    """A requested compaction: waiting, or running in `greenlet`."""

    reply: GreenletFuture[CompactOutcome]
    greenlet: gevent.Greenlet | None = None


Work = Ticket | CompactionWork


class WorkQueue:
    """Turns and compactions in the order of acceptance, with two exceptions: interrupting turns are first;
    steers whose turn ended first come next, in the order of their calls. A turn whose acceptance is not
    committed yet keeps its place and holds up what follows, unless it is an eager one.
    """

    def __init__(self) -> None:
        self._items: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Work]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def append(self, item: Work) -> None:
        """Behind everything."""
        self._items.append(item)

    def put_first(self, item: Work) -> None:
        """Before everything but interrupting turns that came before, and what is stored as running: an
        interrupting turn."""
        self._items.insert(self._behind(_leads), item)

    def put_steer(self, ticket: Ticket) -> None:
        """A steer whose turn ended before it was applied: behind these too, and steers that came before."""
        place = self._behind(
            lambda waiting: _leads(waiting) or (waiting.from_steer and waiting.turn_id < ticket.turn_id)
        )
        self._items.insert(place, ticket)

    def next(self) -> Work | None:
        """Take out what runs next, or None if nothing waits or the first turn is not accepted yet."""
        if not self._items:
            return None
        head = self._items[0]
        if isinstance(head, Ticket) and not (head.durable or head.eager):
            return None
        return self._items.popleft()

    def remove(self, item: Work) -> None:
        """Take out one item, if it is there."""
        if item in self._items:
            self._items.remove(item)

    def take_accepted(self, which: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out the accepted turns that `which` is true of."""
        taken = [item for item in self._items if isinstance(item, Ticket) and item.durable and which(item)]
        for ticket in taken:
            self._items.remove(ticket)
        return taken

    def take_compactions(self) -> list[CompactionWork]:
        """Take out all compactions."""
        taken = [item for item in self._items if isinstance(item, CompactionWork)]
        for work in taken:
            self._items.remove(work)
        return taken

    def take_all(self) -> list[Work]:
        """Take out everything."""
        taken = list(self._items)
        self._items.clear()
        return taken

    def _behind(self, leads: Callable[[Ticket], bool]) -> int:
        """The place behind all the turns at the head that `leads` is true of."""
        place = 0
        for item in self._items:
            if not isinstance(item, Ticket) or not leads(item):
                break
            place += 1
        return place


def _leads(waiting: Ticket) -> bool:
    """Whether a waiting turn stays in front of whatever is put first. One that is stored as running does:
    what ran before it would be stored as running, too."""
    return waiting.on_busy == "interrupt" or waiting.state == "running"
