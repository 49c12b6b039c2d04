"""The limiter: whose call is next, what a pause keeps waiting, and that no place is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import gevent
import pytest
from gevent.event import Event as Signal
from support import ManualClock
from turns_support import deadline, let_run

from actors.limiter import LONGEST_PAUSE_S, Limiter, Line
from actors.timelimits import TimeLimit
from palaver.simulation.loop import VirtualClock, current_loop, run_virtual

CRAB = "crab"


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline():
        yield


def line(sender: str, model: str = "") -> Line:
    return (model, CRAB, sender)


class Desk:
    """Calls that are under way until they are told to end; `order` is the order in which they began."""

    def __init__(self, most: int) -> None:
        self.limiter = Limiter(most, VirtualClock())
        self.order: list[str] = []
        self.calls: dict[str, gevent.Greenlet] = {}
        self._ends: dict[str, Signal] = {}

    def call(self, name: str, sender: str | None = None, model: str = "", *, first: bool = False) -> None:
        """A call begins, or waits: "ann 1" is one of ann."""
        self._ends[name] = Signal()
        mine = line(sender or name.split()[0], model)
        self.calls[name] = gevent.spawn(self._run, name, mine, first)
        let_run(2)

    def _run(self, name: str, mine: Line, first: bool) -> None:
        self.limiter.enter(mine, first=first)
        try:
            self.order.append(name)
            self._ends[name].wait()
        finally:
            self.limiter.leave()

    def end(self, name: str) -> None:
        self._ends[name].set()
        let_run(3)

    def end_all(self) -> None:
        """End whatever is under way, one call after the other, until none is left."""
        while self.limiter.running:
            self.end(next(name for name in self.order if not self.calls[name].dead))

    @property
    def figures(self) -> tuple[int, int]:
        return self.limiter.running, self.limiter.waiting


def test_below_the_bound_nobody_waits() -> None:
    limiter = Limiter(2, ManualClock())
    assert limiter.enter(line("ann"))
    assert limiter.enter(line("bob"))
    limiter.leave()
    assert limiter.enter(line("ann"))
    assert (limiter.running, limiter.waiting) == (2, 0)


def test_senders_take_turns_and_each_one_keeps_its_order() -> None:
    def body() -> None:
        desk = Desk(1)
        for name in ("ann 1", "ann 2", "ann 3", "ann 4", "bob 1", "bob 2", "cat 1"):
            desk.call(name)
        assert desk.figures == (1, 6)
        desk.end_all()
        assert desk.order == ["ann 1", "ann 2", "bob 1", "cat 1", "ann 3", "bob 2", "ann 4"]
        assert desk.figures == (0, 0)

    run_virtual(body)


def test_a_sender_of_two_agents_has_two_lines() -> None:
    limiter = Limiter(1, ManualClock())
    began: list[tuple[str, str]] = []

    def call(agent: str) -> None:
        limiter.enter(("", agent, "ann"))
        began.append(("ann", agent))
        gevent.sleep(0)
        limiter.leave()

    gevent.joinall([gevent.spawn(call, agent) for agent in ("crab", "crab", "crab", "owl")])
    assert [agent for _, agent in began] == ["crab", "crab", "owl", "crab"]


def test_a_thousand_waiting_calls_of_one_sender_delay_another_by_one_call() -> None:
    def body() -> None:
        limiter = Limiter(4, VirtualClock())

        def call(sender: str) -> float:
            came = current_loop().now()
            limiter.enter(line(sender))
            waited = current_loop().now() - came
            gevent.sleep(1.0)
            limiter.leave()
            return waited

        flood = [gevent.spawn(call, "flood") for _ in range(1_000)]
        gevent.sleep(10.5)
        assert limiter.waiting > 900
        quiet = [gevent.spawn(call, f"quiet {number}") for number in range(3)]
        gevent.joinall(quiet)
        assert [greenlet.value for greenlet in quiet] == [0.5, 0.5, 0.5]
        gevent.joinall(flood)
        assert current_loop().now() == pytest.approx(251.0)  # 1,003 calls of a second, four at a time

    run_virtual(body)


def test_a_call_that_comes_again_goes_before_what_its_sender_has_waiting_but_not_before_others() -> None:
    def body() -> None:
        desk = Desk(1)
        for name in ("ann 1", "bob 1", "ann 2"):
            desk.call(name)
        desk.call("ann 0", first=True)
        desk.end_all()
        assert desk.order == ["ann 1", "bob 1", "ann 0", "ann 2"]

    run_virtual(body)


# -- who waits no more -----------------------------------------------------------------------------


def test_a_cancelled_waiter_leaves_no_trace() -> None:
    def body() -> None:
        desk = Desk(1)
        for name in ("ann 1", "bob 1", "bob 2", "cat 1"):
            desk.call(name)
        desk.calls["bob 1"].kill()
        assert desk.figures == (1, 2)
        desk.calls["cat 1"].kill()
        desk.end_all()
        assert desk.order == ["ann 1", "bob 2"]
        assert desk.figures == (0, 0)

    run_virtual(body)


def test_a_waiter_that_is_cancelled_when_it_was_just_let_in_hands_its_place_on() -> None:
    def body() -> None:
        desk = Desk(1)
        desk.limiter.enter(line("ann"))
        for name in ("bob 1", "cat 1"):
            desk.call(name)
        desk.calls["bob 1"].kill(block=False)
        desk.limiter.leave()  # lets bob in, whom the kill reaches before he hears of it
        let_run()
        assert (desk.order, desk.figures) == (["cat 1"], (1, 0))
        desk.end_all()
        assert desk.figures == (0, 0)

    run_virtual(body)


def test_a_wait_with_a_timeout_ends_without_a_place() -> None:
    def body() -> None:
        limiter = Limiter(1, VirtualClock())
        assert limiter.enter(line("ann"), timeout=1.0)
        assert not limiter.enter(line("bob"), timeout=2.0)
        assert current_loop().now() == pytest.approx(2.0)
        assert (limiter.running, limiter.waiting) == (1, 0)
        limiter.leave()
        assert limiter.running == 0

    run_virtual(body)


@pytest.mark.parametrize("seed", range(30))
def test_no_place_is_lost_and_none_given_twice_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)

    def body() -> None:
        most = rng.choice((1, 2, 5))
        limiter = Limiter(most, VirtualClock())
        inside = [0, 0]  # now, at most

        def call(mine: Line) -> None:
            if not limiter.enter(mine, first=rng.random() < 0.2, timeout=rng.choice((None, None, 0.5, 3.0))):
                return
            inside[0] += 1
            inside[1] = max(inside)
            try:
                gevent.sleep(rng.choice((0.0, 0.5, 2.0)))
                if rng.random() < 0.1:
                    limiter.pause(mine[0], rng.choice((0.0, 1.0, 4.0)))
            finally:
                inside[0] -= 1
                limiter.leave()

        def kill_later(victim: gevent.Greenlet) -> None:
            gevent.sleep(rng.choice((0.0, 0.5, 1.0, 2.0)))  # when others leave, too
            victim.kill(block=False)

        started = []
        for _ in range(120):
            mine = line(rng.choice("abc"), rng.choice(("one", "two")))
            started.append(gevent.spawn(call, mine))
            if rng.random() < 0.3:
                gevent.spawn(kill_later, started[-1])
            gevent.sleep(rng.choice((0.0, 0.0, 0.5)))
        gevent.joinall(started)
        assert inside[1] == most
        assert (limiter.running, limiter.waiting) == (0, 0)
        gevent.sleep(LONGEST_PAUSE_S)
        assert [limiter.enter(line("last", "one"), timeout=0.0) for _ in range(most)] == [True] * most

    run_virtual(body, rng=random.Random(f"order {seed}"))


# -- pauses ----------------------------------------------------------------------------------------


def test_a_paused_model_waits_and_others_do_not() -> None:
    def body() -> None:
        desk = Desk(1)
        desk.call("ann 1", model="slow")
        desk.call("ann 2", model="slow")
        desk.call("bob 1", model="quick")
        desk.limiter.pause("slow", 10.0)
        desk.call("cat 1", model="slow")
        desk.end("ann 1")
        desk.end("bob 1")
        assert (desk.order, desk.figures) == (["ann 1", "bob 1"], (0, 2))
        gevent.sleep(9.9)
        assert desk.figures == (0, 2)
        gevent.sleep(0.2)
        assert (desk.order, desk.figures) == (["ann 1", "bob 1", "ann 2"], (1, 1))
        desk.end_all()
        assert desk.order == ["ann 1", "bob 1", "ann 2", "cat 1"]
        assert desk.limiter.paused_s == pytest.approx(10.0)

    run_virtual(body)


def test_the_longest_of_several_pauses_counts_and_is_counted_once() -> None:
    def body() -> None:
        limiter, loop = Limiter(9, VirtualClock()), current_loop()
        limiter.pause("m", 4.0)
        limiter.pause("m", 1.0)
        gevent.sleep(2.0)
        limiter.pause("m", 5.0)
        limiter.enter(line("ann", "m"))
        assert loop.now() == pytest.approx(7.0)
        assert limiter.paused_s == pytest.approx(7.0)
        limiter.pause("m", 0.0)
        assert limiter.enter(line("bob", "m"), timeout=0.0)

    run_virtual(body)


def test_an_endpoint_is_not_believed_for_ever() -> None:
    def body() -> None:
        limiter = Limiter(1, VirtualClock())
        limiter.pause("m", 1e300)
        limiter.enter(line("ann", "m"))
        assert current_loop().now() == pytest.approx(LONGEST_PAUSE_S)

    run_virtual(body)


# -- time limits -----------------------------------------------------------------------------------


def test_what_takes_too_long_is_told_once_on_time_and_what_ends_in_time_is_not() -> None:
    def body() -> None:
        limit, loop = TimeLimit("turn_s", 10.0, VirtualClock()), current_loop()
        told: list[tuple[str, float]] = []

        def teller(name: str) -> Callable[[], None]:
            return lambda: told.append((name, loop.now()))

        first = limit.begin(teller("first"))
        gevent.sleep(3.0)
        limit.begin(teller("second"))
        third = limit.begin(teller("third"))
        gevent.sleep(3.0)
        limit.end(first)
        limit.begin(teller("fourth"))
        limit.end(third)
        gevent.sleep(100.0)
        assert told == [("second", pytest.approx(13.0)), ("fourth", pytest.approx(16.0))]
        assert len(limit) == 0

    run_virtual(body)


def test_a_limit_that_nothing_runs_under_has_no_timer() -> None:
    def body() -> None:
        limit = TimeLimit("turn_s", 10.0, VirtualClock())
        numbers = [limit.begin(int) for _ in range(3)]
        for number in numbers:
            limit.end(number)
        assert limit._timer is None  # noqa: SLF001 - a timer would keep the hub, and its process, from ending

    run_virtual(body)


def test_one_that_raises_keeps_no_other_from_being_told() -> None:
    def body() -> list[str]:
        limit, told = TimeLimit("turn_s", 1.0, VirtualClock()), []

        def fails() -> None:
            told.append("fails")
            raise ValueError

        limit.begin(fails)
        limit.begin(lambda: told.append("next"))
        gevent.get_hub().handle_error = lambda *_error: None
        gevent.sleep(2.0)
        return told

    assert run_virtual(body) == ["fails", "next"]


def test_many_that_began_one_after_the_other_are_told_in_that_order() -> None:
    def body() -> list[float]:
        limit, told = TimeLimit("turn_s", 1.0, VirtualClock()), []
        for _ in range(50):
            limit.begin(lambda: told.append(current_loop().now()))
            gevent.sleep(0.1)
        gevent.sleep(2.0)
        return told

    times = run_virtual(body)
    assert len(times) == 50
    assert all(later - earlier == pytest.approx(0.1) for earlier, later in pairwise(times))
