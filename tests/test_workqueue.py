"""The order in which things run in one conversation: pure rules."""

from __future__ import annotations

import itertools

from actors.greenlet import GreenletFuture
from actors.ticket import OnBusy, Ticket
from actors.workqueue import CompactionWork, WorkQueue

_numbers = itertools.count(1)


def ticket(name: str, on_busy: OnBusy = "enqueue", *, steer: bool = False, accepted: bool = True) -> Ticket:
    made = Ticket(next(_numbers), 1, name, on_busy=on_busy)
    made.from_steer = steer
    if accepted:
        made.accept()
    return made


def compaction() -> CompactionWork:
    return CompactionWork(GreenletFuture())


def names(queue: WorkQueue) -> list[str]:
    return [item.content if isinstance(item, Ticket) else "compaction" for item in queue]


def filled(*items: Ticket | CompactionWork) -> WorkQueue:
    queue = WorkQueue()
    for item in items:
        queue.append(item)
    return queue


def test_turns_and_compactions_come_out_in_the_order_of_acceptance() -> None:
    items = [ticket("a"), compaction(), ticket("b")]
    queue = filled(*items)
    assert len(queue) == 3
    assert [queue.next() for _ in items] == items
    assert queue.next() is None
    assert not queue


def test_a_turn_that_is_not_accepted_yet_keeps_its_place_and_holds_up_the_rest() -> None:
    first = ticket("a", accepted=False)
    queue = filled(first, ticket("b"))
    assert queue.next() is None
    assert names(queue) == ["a", "b"]
    first.accept()
    assert queue.next() is first


def test_an_interrupting_turn_is_first() -> None:
    queue = filled(ticket("a"), ticket("b"))
    queue.put_first(ticket("now", "interrupt"))
    assert names(queue) == ["now", "a", "b"]


def test_steers_whose_turn_ended_come_next_behind_an_interrupting_turn() -> None:
    queue = filled(ticket("now", "interrupt"), ticket("a"))
    for name in ("left", "right"):
        queue.put_steer(ticket(name, steer=True))
    assert names(queue) == ["now", "left", "right", "a"]


def test_what_is_stored_as_running_stays_first() -> None:
    begun = ticket("begun")
    begun.state = "running"
    queue = filled(begun, ticket("a"))
    queue.put_steer(ticket("left", steer=True))
    queue.put_first(ticket("now", "interrupt"))
    assert names(queue) == ["begun", "now", "left", "a"]


def test_steers_are_in_the_order_of_their_calls_whenever_they_come_back() -> None:
    first, second, third = (ticket(name, steer=True) for name in ("first", "second", "third"))
    queue = filled(ticket("a"))
    for steer in (second, first, third):
        queue.put_steer(steer)
    assert names(queue) == ["first", "second", "third", "a"]


def test_steers_whose_turn_ended_come_before_a_compaction() -> None:
    queue = filled(compaction(), ticket("a"))
    queue.put_steer(ticket("left", steer=True))
    assert names(queue) == ["left", "compaction", "a"]


def test_a_steer_goes_into_an_empty_queue() -> None:
    queue = WorkQueue()
    queue.put_steer(ticket("left", steer=True))
    assert names(queue) == ["left"]


def test_take_accepted_takes_what_is_accepted_and_asked_for_and_nothing_else() -> None:
    queue = filled(ticket("a"), compaction(), ticket("b", accepted=False), ticket("c"), ticket("d"))
    taken = queue.take_accepted(lambda t: t.content != "c")
    assert [t.content for t in taken] == ["a", "d"]
    assert names(queue) == ["compaction", "b", "c"]


def test_take_compactions_leaves_the_turns() -> None:
    works = [compaction(), compaction()]
    queue = filled(works[0], ticket("a"), works[1])
    assert queue.take_compactions() == works
    assert names(queue) == ["a"]


def test_take_all_leaves_nothing() -> None:
    items = [ticket("a", accepted=False), compaction()]
    queue = filled(*items)
    assert queue.take_all() == items
    assert len(queue) == 0


def test_remove_takes_one_item_out_if_it_is_there() -> None:
    first, second = ticket("same"), ticket("same")
    queue = filled(first, second)
    queue.remove(second)
    queue.remove(second)
    assert list(queue) == [first]
    assert first in queue
    assert second not in queue
