"""The way into a hub from other threads: in order, and without the loop's count of what keeps it going."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import gevent.event
from gevent.monkey import get_original

from actors.bell import Bell, bell

_start = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")


def in_native_thread(function: Callable[[], object]) -> None:
    """Call it in a thread of its own, while this one, with its hub, stands still."""
    over = _allocate_lock()
    over.acquire()

    def run() -> None:
        try:
            function()
        finally:
            over.release()

    _start(run, ())
    over.acquire()


def test_a_hub_has_one_bell() -> None:
    assert bell() is bell()


def test_what_a_thread_rings_for_is_done_in_the_hub_in_its_order() -> None:
    done: list[tuple[int, bool]] = []
    over = gevent.event.Event()

    def note(number: int) -> None:
        done.append((number, gevent.getcurrent() is gevent.get_hub()))
        if number == 4:
            over.set()

    ring = bell()
    in_native_thread(lambda: [ring(note, number) for number in range(5)])
    assert done == []
    assert over.wait(10)
    assert done == [(number, True) for number in range(5)]


def test_what_one_call_raises_stops_no_other() -> None:
    over = gevent.event.Event()
    hub = gevent.get_hub()
    told, hub.handle_error = [], lambda *error: told.append(error[1])
    try:
        ring = bell()
        in_native_thread(lambda: (ring(int, "no number"), ring(over.set)))
        assert over.wait(10)
    finally:
        del hub.handle_error
    assert told == [ValueError]


def test_a_thread_that_rings_leaves_the_loops_count_alone() -> None:
    """The loop changes it without a lock: see actors/bell.py."""
    loop = gevent.get_hub().loop
    ring, seen = Bell(loop), []

    def look() -> None:
        before = loop.activecnt
        ring(int)
        seen.append(loop.activecnt - before)

    in_native_thread(look)
    gevent.sleep(0)
    assert seen == [0]
