"""A world on virtual time for tests of one's own: what follows it, what a crash leaves, what is raised."""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any
from weakref import ref

import gevent
import pytest
from gevent.event import Event as Signal
from gevent.hub import get_hub
from support import texts, topic

from palaver import AgentConfig, ModelRequest, Reply, Runtime, RuntimeClosed, StorageError
from palaver.simulation import (
    RealWorldInSimulation,
    SimulationError,
    SimulationStuck,
    TooManySteps,
    World,
    world,
)
from palaver.simulation.distributions import Fixed

CRAB = AgentConfig(name="crab", auto_title=False)


@pytest.fixture(autouse=True)
def real_hub_survives() -> Iterator[None]:
    before, enabled = get_hub(), gc.isenabled()
    yield
    assert get_hub() is before
    assert gc.isenabled() is enabled
    assert gevent.spawn(lambda: gevent.sleep(0) or 7).get(timeout=5) == 7


def opened(one: World, *args: Any, **options: Any) -> Runtime:
    rt = one.open(*args, **options)
    rt.add_agent(CRAB)
    return rt


def boom() -> None:
    gevent.sleep(1.0)
    raise ValueError("boom")


# -- time and order ------------------------------------------------------------------------------------


def test_the_block_itself_waits_on_virtual_time() -> None:
    with world() as one:
        signal = Signal()
        gevent.spawn_later(3_600.0, signal.set)
        assert signal.wait(7_200.0) is True
        one.sleep(60.0)
        with pytest.raises(gevent.Timeout), gevent.Timeout(5.0):
            gevent.sleep(100.0)
        assert one.now == one.clock.monotonic() == 3_665.0


def story(seed: int, **options: Any) -> list[object]:
    """What three senders of one conversation see, and what the random numbers are."""
    seen: list[object] = []
    with world(seed, **options) as one:
        rt = opened(one)
        cid = topic(rt)

        def send(name: str) -> None:
            one.sleep(1.0)
            seen.append((name, rt.send(cid, name).text, one.now))

        gevent.joinall([one.spawn(send, name) for name in "abcdef"], raise_error=True)
        seen += [random.random(), one.rng.random(), rt.sessions()[0].handle]
    return seen


def test_a_seed_is_one_story_and_another_seed_another() -> None:
    stories = [story(seed) for seed in (1, 1, 2)]
    assert stories[0] == stories[1]
    assert all(one != other for one, other in zip(stories[0], stories[2], strict=True))


def test_greenlets_are_taken_as_the_seed_says_or_first_come_first_served() -> None:
    def order(seed: int, **options: Any) -> list[int]:
        seen: list[int] = []
        with world(seed, **options) as one:
            for number in range(5):
                one.spawn(seen.append, number)
            one.sleep(1.0)
        return seen

    assert order(1, order="fifo") == order(2, order="fifo") == [0, 1, 2, 3, 4]
    assert len({str(order(seed)) for seed in range(4)}) > 1


def test_the_random_module_goes_on_afterwards_as_if_nothing_had_been() -> None:
    random.seed(5)
    wanted = [random.random(), random.random()]
    random.seed(5)
    seen = [random.random()]
    with world(1):
        random.random()
    seen.append(random.random())
    assert seen == wanted


def test_what_was_left_running_is_ended_and_cleans_up() -> None:
    seen: list[str] = []

    def leftover(name: str) -> None:
        try:
            gevent.sleep(1e9)
        finally:
            seen.append(name)

    with world() as one:
        rt = opened(one, tools=[])
        one.spawn(leftover, "spawned")
        gevent.spawn(leftover, "gevent's")
        ticket = rt.submit(topic(rt), "hello")
    assert sorted(seen) == ["gevent's", "spawned"]
    assert ticket.state == "cancelled"


def test_commits_and_answers_take_virtual_time() -> None:
    with world() as one:
        rt = opened(one, one.model(["first", "second"], seconds=30.0), commit_s=Fixed(0.5))
        chat, cid, began = rt.get_or_create("crab", "alice"), topic(rt), one.now
        assert rt.send(chat, "hello").text == "first"  # a tmp chat, which commits nothing
        assert one.now == began + 30.0
        ticket = rt.submit(cid, "hello")
        assert one.now == began + 30.5
        assert ticket.result().text == "second"
        assert one.now >= began + 60.5


def test_a_full_disk_refuses_until_it_has_room() -> None:
    with world() as one:
        rt = opened(one)
        cid = topic(rt)
        one.disk.full = True
        with pytest.raises(StorageError):
            rt.submit(cid, "hello")
        one.disk.full = False
        assert rt.send(cid, "hello").text == "hello"


# -- crashes -------------------------------------------------------------------------------------------


class Works:
    """A tool that takes a while, and notes how far it came."""

    def __init__(self, one: World) -> None:
        self.one = one
        self.seen: list[str] = []

    def work(self) -> str:
        """Work."""
        self.seen.append("begun")
        try:
            self.one.sleep(10.0)
        finally:
            self.seen.append("cleaned up")
        self.seen.append("done")
        return "worked"

    def open(self) -> Runtime:
        def answer(request: ModelRequest) -> Reply:
            asked = request.messages[-1]["role"] == "user"
            return Reply(tool_calls=[("work", {})]) if asked else Reply("well done")

        return opened(self.one, self.one.model(answer, seconds=1.0), tools=[self.work])


def test_an_accepted_turn_is_run_to_its_end_by_the_next_process() -> None:
    with world(3) as one:
        works = Works(one)
        rt = works.open()
        ticket = rt.submit(topic(rt), "go")
        one.sleep(5.0)
        one.crash()
        at = one.now
        again = works.open()
        one.sleep(60.0)
        assert works.seen == ["begun", "begun", "cleaned up", "done"]
        assert one.now >= at + 60.0
        assert ticket.state == "running"
        (session,) = again.sessions()
        assert texts(again.transcript(session.handle))[-1] == ("assistant", "well done")
        with pytest.raises(RuntimeClosed, match=r"world\.open"):
            rt.send(1, "hello")
    assert works.seen[4:] == ["cleaned up"]  # what was dropped ends with the world


def test_a_message_is_there_after_a_crash_if_its_commit_was_before_it_though_nobody_heard() -> None:
    for seconds, entries in ((0.0, 0), (0.5, 2)):
        with world() as one:
            rt = opened(one, commit_s=1.0)
            submitting = one.spawn(rt.submit, topic(rt), "hello")
            if seconds:
                one.sleep(seconds)
            one.crash()
            again = opened(one)
            one.sleep(60.0)
            (session,) = again.sessions()
            assert len(again.transcript(session.handle)) == entries
            assert not submitting.ready()


def test_a_crash_drops_timers_but_the_callers_own_timeout_goes_on() -> None:
    with world() as one:
        seen: list[str] = []
        gevent.spawn_later(1.0, seen.append, "never")
        one.spawn(lambda: one.sleep(1.0) or seen.append("never"))
        with gevent.Timeout(5.0, False):
            one.crash()
            one.sleep(10.0)
        assert one.now == 5.0
        one.sleep(10.0)
        assert seen == []


def test_nothing_of_a_crashed_process_stays_in_memory() -> None:
    with world() as one:
        works = Works(one)
        rt = works.open()
        for sender in "abc":
            rt.submit(topic(rt, sender=sender), "go")
        one.sleep(one.rng.random() * 10)
        one.crash()
        works.open()
    gone = ref(rt)
    del rt
    gc.collect()
    assert gone() is None


def test_two_processes_of_a_world_give_no_handle_twice() -> None:
    with world() as one:
        topic(opened(one), "first")
        one.crash()
        rt = opened(one)
        topic(rt, "second")
        assert len({session.handle for session in rt.sessions()}) == 2


def test_only_the_greenlet_of_the_block_can_crash() -> None:
    with world() as one, pytest.raises(SimulationError, match="with block"):
        one.spawn(one.crash).get()


# -- what is raised ------------------------------------------------------------------------------------


def raised_by(body: Callable[[World], object], seed: int = 0, **options: Any) -> BaseException | None:
    """What a world raises around a body."""
    try:
        with world(seed, **options) as one:
            body(one)
    except Exception as error:
        return error
    return None


def test_a_wait_for_nothing_is_named_and_says_when() -> None:
    error = raised_by(lambda one: (one.sleep(3.0), Signal().wait()), 8)
    assert isinstance(error, SimulationStuck)
    assert "at virtual time 3.000000 s" in str(error)
    assert error.__notes__ == ["in the world of seed 8, order shuffled, at 3.000000 virtual seconds"]


def test_a_loop_that_lets_no_time_pass_is_named() -> None:
    error = raised_by(lambda one: [one.sleep(0) for _ in count()], max_steps=1_000)
    assert isinstance(error, TooManySteps)


def test_an_error_that_nobody_got_from_its_greenlet_is_raised_at_the_end() -> None:
    error = raised_by(lambda one: (one.spawn(boom), one.spawn(boom), one.sleep(5.0)))
    assert str(error) == "boom"
    assert "ValueError: boom" in getattr(error, "__notes__", ())[0]  # the other one


def test_an_error_that_somebody_got_is_theirs() -> None:
    with world() as one:
        with pytest.raises(ValueError, match="boom"):
            one.spawn(boom).get()
        with pytest.raises(ValueError, match="boom"):
            gevent.joinall([gevent.spawn(boom)], raise_error=True)


def test_a_greenlet_that_refuses_to_end_is_named_at_the_end() -> None:
    def immortal() -> None:
        while True:
            with suppress(gevent.GreenletExit):
                Signal().wait()

    error = raised_by(lambda one: (one.spawn(immortal), one.sleep(1.0)))
    assert isinstance(error, SimulationStuck)


def test_what_a_left_greenlet_meets_when_its_runtime_is_shut_down_is_no_error_of_the_test() -> None:
    met: list[Exception] = []
    with world() as one:
        rt = opened(one)
        cid = topic(rt)

        def send() -> None:
            while True:
                try:
                    rt.send(cid, "hello")
                except RuntimeClosed as error:
                    met.append(error)
                    raise

        gevent.spawn(send)
        one.sleep(10.0)
    assert len(met) == 1


def test_a_ctrl_c_ends_the_block_and_leaves_the_real_hub() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), world() as one:
        one.spawn(interrupted).join()


def test_errors_that_were_taken_are_not_raised() -> None:
    with world() as one:
        one.spawn(boom)
        one.sleep(5.0)
        assert [str(error) for error in one.take_errors()] == ["boom"]


@pytest.mark.parametrize(
    ("goes_on", "raised"),
    [(lambda: Signal().wait(), SimulationStuck), (lambda: gevent.sleep(2.0) or {}["it"], KeyError)],
)
def test_the_error_of_the_block_tells_of_those_of_greenlets(goes_on: Any, raised: Any) -> None:
    error = raised_by(lambda one: (one.spawn(boom), goes_on()))
    assert isinstance(error, raised)
    assert "ValueError: boom" in error.__notes__[0]


def reach_out() -> str:
    """Look at something far away."""
    try:
        socket.create_connection(("127.0.0.1", 9))
    except Exception:
        return "nothing there"
    return "seen"


def test_what_reached_for_the_real_world_is_raised_though_it_was_swallowed() -> None:
    def use_tool(one: World) -> None:
        rt = opened(one, one.model([Reply(tool_calls=[("reach_out", {})]), "ok"]), tools=[reach_out])
        assert rt.send(rt.get_or_create("crab", "alice"), "hello").text == "ok"

    for body in (lambda _one: reach_out(), use_tool):
        error = raised_by(body)
        assert isinstance(error, RealWorldInSimulation)
        assert "a DNS lookup" in str(error)


def test_a_world_in_a_world_is_refused() -> None:
    error = raised_by(lambda _one: world().__enter__())
    assert isinstance(error, RealWorldInSimulation)
    assert "another simulation" in str(error)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(SimulationError, match="shuffled, fifo"), world(order="lifo"):  # type: ignore[arg-type]
        pass
