"""When timers are due: pure rules, by table."""

from __future__ import annotations

import pytest

from actors.timetable import Lane, Place, Timetable, next_due, try_again_after
from persistence.timers import PendingTimer


def table(*timers: tuple[int, float, Place]) -> Timetable:
    made = Timetable()
    for id_, at, place in timers:
        made.put(PendingTimer(id_, at, place, "crab"))
    return made


def fired(made: Timetable, now: float) -> list[int]:
    """The ids of what fires if everything that is due does, once."""
    ids, ready = [], made.due(now)
    while ready:
        lane = ready.pop(0)
        timer_id = made.first(lane)
        if timer_id is not None:
            ids.append(timer_id)
            made.settle(timer_id, lane, None)
            ready.append(lane)
    return ids


@pytest.mark.parametrize(
    ("due_at", "every_s", "now", "expected"),
    [
        (100.0, None, 100.0, None),
        (100.0, None, 5_000.0, None),
        (100.0, 10.0, 100.0, 110.0),
        (100.0, 10.0, 109.9, 110.0),
        (100.0, 10.0, 110.0, 120.0),  # the next one is later than now
        (100.0, 10.0, 135.0, 140.0),  # three were missed, the phase is kept
        (100.0, 10.0, 99.0, 110.0),  # a clock that was set back
        (0.1, 0.1, 0.35, 0.4),
        (1.75e9, 0.001, 1.75e9 + 1e6, 1.75e9 + 1e6 + 0.001),
    ],
)
def test_the_next_time(due_at: float, every_s: float | None, now: float, expected: float | None) -> None:
    found = next_due(due_at, every_s, now)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found is None or found > now


def test_it_is_tried_again_later_and_later_but_within_a_minute() -> None:
    assert [try_again_after(n) for n in (1, 2, 3, 4, 5, 6, 1_000)] == [5, 10, 20, 40, 60, 60, 60]


def test_timers_are_due_by_time_and_one_of_a_place_waits_for_the_other() -> None:
    made = table((1, 30.0, "a"), (2, 10.0, "b"), (3, 20.0, "a"), (4, 20.0, -1), (5, 99.0, "c"))
    assert made.next_at() == 10.0
    assert made.due(9.9) == []
    ready = made.due(50.0)
    assert [(lane.place, list(lane.due)) for lane in ready] == [("b", [2]), ("a", [3, 1]), (-1, [4])]
    assert made.due(50.0) == []
    assert made.next_at() == 99.0
    assert len(made) == 5


def test_what_is_settled_is_due_at_its_new_time_or_gone() -> None:
    made = table((1, 10.0, "a"), (2, 10.0, "a"))
    (lane,) = made.due(10.0)
    assert made.first(lane) == 1
    made.settle(1, lane, 20.0)
    assert made.first(lane) == 2
    made.settle(2, lane, None)
    assert made.first(lane) is None
    assert (len(made), made.next_at()) == (1, 20.0)
    assert fired(made, 20.0) == [1]
    assert (len(made), made.next_at()) == (0, None)


def test_what_could_not_fire_holds_up_the_later_ones_of_its_place_alone() -> None:
    made = table((1, 10.0, "a"), (2, 11.0, "a"), (3, 12.0, "b"))
    (lane,) = made.due(10.0)
    assert made.put_off(lane, 10.0) == 5.0
    assert fired(made, 14.9) == [3]
    assert made.next_at() == 15.0
    (again,) = made.due(15.0)
    assert again is lane
    assert made.put_off(lane, 15.0) == 10.0
    assert made.next_at() == 25.0
    assert fired(made, 25.0) == [1, 2]
    assert lane.failures == 0


def test_what_is_dropped_does_not_fire_whatever_it_waits_for() -> None:
    made = table((1, 10.0, "a"), (2, 10.0, "a"), (3, 10.0, "a"), (4, 20.0, "a"), (5, 10.0, "b"))
    made.drop(2)
    ready = made.due(10.0)
    made.drop(1)
    lane: Lane = ready[0]
    assert made.first(lane) == 3
    made.drop(3)
    made.settle(3, lane, 40.0)  # its firing had begun
    assert made.first(lane) is None
    made.drop_all_of("a")
    made.drop_all_of("a")
    assert (len(made), made.next_at()) == (1, None)
    assert made.first(ready[1]) == 5


def test_a_timer_that_is_there_is_put_once() -> None:
    made = table((1, 10.0, "a"), (1, 5.0, "a"))
    assert (len(made), fired(made, 100.0)) == (1, [1])


def test_cancelled_timers_take_no_room() -> None:
    made = table(*((number, float(number), "a") for number in range(1, 10_001)))
    for number in range(1, 10_000):
        made.drop(number)
    assert len(made._heap) < 2_000  # noqa: SLF001 - that is what it is about
    assert fired(made, 1e9) == [10_000]
