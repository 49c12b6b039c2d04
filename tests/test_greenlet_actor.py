"""GreenletActor: pykka's actor on gevent, and what it adds to it."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import gevent
import pykka
import pykka.messages
import pytest
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.hub import Hub, set_hub
from gevent.threadpool import ThreadPool

import actors.workers
from actors.errors import HandlerFailed, WrongThread
from actors.greenlet import AT_ONCE, Deadlock, GreenletActor, GreenletFuture, release_idle_workers
from actors.workers import workers_here
from palaver.simulation.loop import run_virtual

ROOT = Path(__file__).resolve().parents[1]
NOW = 0.001  # seconds until a timeout that is meant to happen
LONG = 5.0  # seconds until one that is not


def settle() -> None:
    """Let every greenlet that can run do so."""
    for _ in range(8):
        gevent.sleep(0)


def in_native_thread(function, *args):
    """Its result, from a new thread that gevent has not patched and that is gone afterwards."""
    pool = ThreadPool(1)
    try:
        return pool.apply(function, args)
    finally:
        pool.kill()


class Recorder:
    """What the tests' actors do: write down what happens, do what the message says."""

    def __init__(self, **faults):
        super().__init__()
        self.log = faults.pop("log", [])
        self.faults = faults  # hook name -> exception to raise there

    def note(self, what, *details):
        self.log.append((what, *details) if details else what)
        if what in self.faults:
            raise self.faults[what]

    def on_start(self):
        self.note("start")

    def on_stop(self):
        self.note("stop")

    def on_failure(self, exception_type, exception_value, traceback):
        assert (exception_type, traceback) == (type(exception_value), exception_value.__traceback__)
        self.note("failure", exception_value)

    def on_receive(self, message):
        self.log.append(message)
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return message(self)
        return f"re: {message}"


def deaths(log):
    return [entry for entry in log if isinstance(entry, tuple) and entry[0] == "death"]


class Threaded(Recorder, pykka.ThreadingActor):
    pass


class Green(Recorder, GreenletActor):
    def on_death(self, reason):
        self.note("death", reason)

    def on_undelivered(self, message):
        self.note("undelivered", message)


class Echo(GreenletActor):
    """No hooks, no greenlet."""

    def on_receive(self, message):
        if isinstance(message, BaseException):
            raise message
        return message(self) if callable(message) else message


@pytest.fixture
def spawn():
    """Start actors that are stopped at the end of the test."""
    refs = []

    def start(actor_class, **options):
        refs.append(actor_class.start(**options))
        return refs[-1]

    yield start
    for ref in refs:
        ref.stop(timeout=LONG)


@pytest.fixture(params=[Threaded, Green])
def cls(request):
    return request.param


@pytest.fixture
def log():
    return []


@pytest.fixture
def actor(cls, spawn, log):
    return spawn(cls, log=log)


# -- as pykka's: messages and life ------------------------------------------------------------------


def test_ask_gets_the_reply_and_tell_gets_none(actor):
    assert actor.ask("a") == "re: a"
    assert actor.ask("b", timeout=LONG) == "re: b"
    assert actor.ask("c", block=False).get(timeout=LONG) == "re: c"
    assert actor.tell("d") is None


def test_on_start_comes_first_and_messages_keep_their_order(actor, log):
    for n in range(300):
        actor.tell(n)
    actor.ask("last")
    assert log == ["start", *range(300), "last"]


def test_handlers_run_one_at_a_time_even_when_they_block(actor, log):
    gate = Event()
    first = actor.ask(lambda _self: gate.wait() and log.append("first done"), block=False)
    actor.tell("second")
    settle()
    assert "second" not in log
    gate.set()
    first.get(timeout=LONG)
    actor.ask("third")
    assert log.index("first done") < log.index("second")


def test_blocked_actor_does_not_hold_up_the_others(cls, spawn):
    blocked, gate = spawn(cls), Event()
    waiting = blocked.ask(lambda _self: gate.wait(), block=False)
    assert [spawn(cls).ask(n, timeout=LONG) for n in range(3)] == ["re: 0", "re: 1", "re: 2"]
    gate.set()
    assert waiting.get(timeout=LONG) is True


def test_messages_sent_by_the_constructor_wait_for_on_start(cls, spawn, log):
    class Eager(cls):
        def __init__(self, log):
            super().__init__(log=log)
            self.actor_ref.tell("early")
            gevent.sleep(0)
            self.log.append("constructed")

    spawn(Eager, log=log).ask("late")
    assert log == ["constructed", "start", "early", "late"]


def test_trap_03_stop_comes_after_what_was_queued_before_it(actor, log):
    gate = Event()
    actor.tell(lambda _self: gate.wait())
    before = actor.ask("before", block=False)
    stopped = actor.stop(block=False)
    after = actor.ask("after", block=False)
    settle()
    assert actor.is_alive()
    gate.set()
    assert before.get(timeout=LONG) == "re: before"
    assert stopped.get(timeout=LONG) is True
    with pytest.raises(pykka.ActorDeadError):
        after.get(timeout=LONG)
    assert not actor.is_alive()
    assert "after" not in log
    assert log.count("stop") == 1


def test_stop_blocks_until_on_stop_is_done_and_a_second_one_says_false(actor, log):
    assert actor.stop(timeout=LONG) is True
    assert log[:2] == ["start", "stop"]
    assert actor.stop(timeout=LONG) is False
    assert actor.stop(block=False).get(timeout=LONG) is False


def test_two_stops_queued_at_once_both_succeed(actor):
    stops = [actor.stop(block=False) for _ in range(2)]
    assert [s.get(timeout=LONG) for s in stops] == [True, True]


def test_actor_stops_itself(actor, log):
    actor.tell(lambda self: self.stop())
    actor.actor_stopped.wait(LONG)
    assert not actor.is_alive()


def test_dead_actor_refuses_tell_ask_and_proxy(actor):
    actor.stop(timeout=LONG)
    with pytest.raises(pykka.ActorDeadError, match="not found"):
        actor.tell("x")
    with pytest.raises(pykka.ActorDeadError, match="not found"):
        actor.ask("x")
    with pytest.raises(pykka.ActorDeadError):
        actor.ask("x", block=False).get()
    with pytest.raises(pykka.ActorDeadError):
        actor.proxy()


def test_trap_03_timeout_of_an_ask_does_not_cancel_the_work(actor, log):
    gate = Event()
    actor.tell(lambda _self: gate.wait())
    with pytest.raises(pykka.Timeout):
        actor.ask("slow", timeout=NOW)
    gate.set()
    actor.ask("next")
    assert log[-2:] == ["slow", "next"]


def test_trap_02_error_under_ask_goes_to_the_asker_and_the_actor_lives(actor, log, caplog):
    caplog.set_level(logging.INFO, "pykka")
    with pytest.raises(ValueError, match="bad"):
        actor.ask(ValueError("bad"))
    assert actor.ask("next") == "re: next"
    assert ("INFO", f"Exception returned from {actor} to caller:") in _records(caplog)


def test_trap_02_error_under_tell_kills_and_answers_the_queue(cls, spawn, log, caplog):
    actor, error = spawn(cls, log=log), ValueError("bad")
    actor.tell(error)
    queued = actor.ask("queued", block=False)
    with pytest.raises(pykka.ActorDeadError, match="stopped before handling"):
        queued.get(timeout=LONG)
    assert not actor.is_alive()
    assert ("failure", error) in log
    assert "stop" not in log
    assert ("ERROR", f"Unhandled exception in {actor}:") in _records(caplog)


def test_trap_05_failing_on_start_gives_a_dead_ref_and_answers_the_queue(cls, spawn, log, caplog):
    actor = spawn(cls, log=log, start=ValueError("no start"))
    with pytest.raises(pykka.ActorDeadError):
        actor.ask("x", timeout=LONG)
    assert not actor.is_alive()
    assert "x" not in log
    assert log == ["start"] or log == ["start", ("death", log[-1][1])]
    assert ("ERROR", f"Unhandled exception in {actor}:") in _records(caplog)


def test_failing_on_stop_is_logged_and_the_actor_is_dead(cls, spawn, caplog):
    actor = spawn(cls, stop=ValueError("no stop"))
    assert actor.stop(timeout=LONG) is True
    assert not actor.is_alive()
    assert ("ERROR", f"Unhandled exception in {actor}:") in _records(caplog)


def test_failing_on_failure_is_logged_and_the_actor_is_dead(cls, spawn, caplog):
    actor = spawn(cls, failure=ValueError("again"))
    actor.tell(KeyError("first"))
    assert actor.actor_stopped.wait(LONG)
    settle()
    assert _records(caplog).count(("ERROR", f"Unhandled exception in {actor}:")) == 2


def test_message_that_nobody_handles_is_a_warning(cls, spawn, caplog):
    class Plain(cls.__mro__[2]):
        pass

    actor = spawn(Plain)
    assert actor.ask("what?") is None
    assert ("WARNING", f"Unexpected message received by {actor}: what?") in _records(caplog)


def test_start_and_stop_are_logged_for_debugging(cls, spawn, caplog):
    caplog.set_level(logging.DEBUG, "pykka")
    actor = spawn(cls)
    actor.stop(timeout=LONG)
    assert {("DEBUG", f"Starting {actor}"), ("DEBUG", f"Stopped {actor}")} <= set(_records(caplog))


def test_actor_that_sets_its_flag_handles_nothing_more(actor, log):
    actor.tell(lambda self: self.actor_stopped.set())
    with pytest.raises(pykka.ActorDeadError):
        actor.ask("x", timeout=LONG)
    assert "x" not in log


def test_actor_stopped_can_be_waited_for(actor):
    assert actor.actor_stopped.wait(NOW) is False
    waiting = [gevent.spawn(actor.actor_stopped.wait, LONG) for _ in range(2)]
    settle()
    actor.stop(timeout=LONG)
    gevent.joinall(waiting)
    assert [w.value for w in waiting] == [True, True]
    assert actor.actor_stopped.wait() is True


def test_ref_names_class_and_urn_and_urns_differ(cls, spawn):
    one, two = spawn(cls), spawn(cls)
    assert str(one) == f"{cls.__name__} ({one.actor_urn})"
    assert one.actor_urn.startswith("urn:")
    assert one.actor_urn != two.actor_urn
    assert one.actor_class is cls
    assert isinstance(one, pykka.ActorRef)


def _records(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "pykka"]


# -- as pykka's: proxies ----------------------------------------------------------------------------


class Stereo:
    pykka_traversable = True

    def play(self):
        return "playing"


class Shop:
    def __init__(self):
        super().__init__()
        self.price = 10
        self.stereo = Stereo()
        self._myself = self.actor_ref.proxy()

    def double(self, times=1):
        self.price *= 2**times
        return self.price

    def later(self):
        return self._myself.double()

    def fail(self):
        raise ValueError(self.price)


@pytest.fixture(params=[pykka.ThreadingActor, GreenletActor])
def shop(request, spawn):
    return spawn(type("Corner", (Shop, request.param), {})).proxy()


def test_proxy_calls_methods_and_reads_and_sets_attributes(shop):
    assert shop.double(times=2).get(timeout=LONG) == 40
    shop.price = 7
    assert shop.price.get(timeout=LONG) == 7
    shop.double.defer()
    assert shop.price.get(timeout=LONG) == 14
    assert shop.stereo.play().get(timeout=LONG) == "playing"


def test_proxy_passes_errors_on(shop):
    with pytest.raises(ValueError, match="10"):
        shop.fail().get(timeout=LONG)


def test_proxy_to_itself_made_in_the_constructor_works(shop):
    assert shop.later().get(timeout=LONG).get(timeout=LONG) == 20


def test_futures_of_a_proxy_can_be_joined(shop):
    assert shop.double().join(shop.double()).get(timeout=LONG) == [20, 40]


# -- trap 1: no exception crosses from one actor to another -----------------------------------------


class OwnBase(BaseException):
    pass


EXCEPTIONS = {
    "ValueError": lambda: ValueError("v"),
    "gevent.Timeout": lambda: gevent.Timeout(1),
    "GreenletExit": gevent.GreenletExit,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration("s"),
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "own BaseException": OwnBase,
    "ActorDeadError": lambda: pykka.ActorDeadError("another"),
    "pykka.Timeout": lambda: pykka.Timeout("another"),
}


@pytest.fixture(params=EXCEPTIONS)
def error(request):
    return EXCEPTIONS[request.param]()


def test_trap_01_any_exception_under_ask_is_answered_and_harms_nobody(spawn, error):
    actor, sibling, other = spawn(Green), spawn(Green), spawn(Threaded)
    future = actor.ask(error, block=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is checked below
        future.get(timeout=LONG)
    if isinstance(error, Exception):
        assert caught.value is error
    else:
        assert isinstance(caught.value, HandlerFailed)
        assert caught.value.__cause__ is error
        assert actor.actor_urn in str(caught.value)
    assert [a.ask("x", timeout=LONG) for a in (actor, sibling, other)] == ["re: x"] * 3


def test_trap_01_any_exception_under_tell_kills_that_actor_alone(spawn, log, error):
    actor, sibling, other = spawn(Green, log=log), spawn(Green), spawn(Threaded)
    actor.tell(error)
    queued = actor.ask("queued", block=False)
    with pytest.raises(pykka.ActorDeadError):
        queued.get(timeout=LONG)
    assert log == ["start", error, ("failure", error), ("death", error)]
    assert [a.ask("x", timeout=LONG) for a in (sibling, other)] == ["re: x"] * 2


@pytest.mark.parametrize("hook", ["start", "stop", "failure", "death"])
def test_trap_01_any_exception_of_a_hook_kills_that_actor_alone(spawn, log, hook, error):
    sibling, actor, first = spawn(Green), spawn(Green, log=log, **{hook: error}), KeyError()
    if hook == "failure":
        actor.tell(first)
    else:
        actor.stop(block=False)
    settle()
    assert not actor.is_alive()
    reason = {"start": error, "stop": error, "failure": first, "death": None}[hook]
    assert deaths(log) == [("death", reason)]
    assert sibling.ask("x", timeout=LONG) == "re: x"


def test_gevent_timeout_of_a_handler_is_not_the_askers(spawn):
    def too_slow(_self):
        with gevent.Timeout(NOW):
            Event().wait()

    with pytest.raises(HandlerFailed) as caught, gevent.Timeout(LONG):
        spawn(Green).ask(too_slow)
    assert isinstance(caught.value.__cause__, gevent.Timeout)


def test_exception_that_cannot_be_shown_is_answered(spawn):
    class Unshowable(BaseException):
        def __repr__(self):
            raise ValueError

        __str__ = __repr__

    class Nameless(Green):
        def __str__(self):
            raise ValueError

    actor = spawn(Nameless)
    with pytest.raises(HandlerFailed, match="Unshowable"):
        actor.ask(Unshowable(), timeout=LONG)
    assert actor.ask("x", timeout=LONG) == "re: x"


# -- deaths -----------------------------------------------------------------------------------------

BOOM = ValueError("boom")
WAYS_TO_DIE = {
    "stop": ({}, lambda a: a.stop(block=False), None),
    "stop itself": ({}, lambda a: a.tell(lambda self: self.stop()), None),
    "own flag": ({}, lambda a: a.tell(lambda self: self.actor_stopped.set()), None),
    "failed tell": ({}, lambda a: a.tell(BOOM), BOOM),
    "failed on_start": ({"start": BOOM}, lambda a: None, BOOM),
    "failed on_stop": ({"stop": BOOM}, lambda a: a.stop(block=False), BOOM),
    "failed on_failure": ({"failure": KeyError()}, lambda a: a.tell(BOOM), BOOM),
    "failed on_stop of itself": ({"stop": BOOM}, lambda a: a.tell(lambda self: self.stop()), BOOM),
}


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_on_death_is_called_once_with_the_reason(spawn, log, way):
    faults, kill, reason = WAYS_TO_DIE[way]
    actor = spawn(Green, log=log, **faults)
    kill(actor)
    gevent.idle()
    settle()
    assert deaths(log) == [("death", reason)]
    assert log[-1] == ("death", reason)


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_trap_06_every_way_to_die_answers_everything_queued(spawn, log, way):
    faults, kill, _reason = WAYS_TO_DIE[way]
    actor, gate = spawn(Green, log=log, **faults), Event()
    actor.tell(lambda _self: gate.wait())
    kill(actor)
    asks = [actor.ask(n, block=False) for n in range(250)]
    stop = actor.stop(block=False)
    actor.tell("told")
    settle()
    gate.set()
    answers = []
    for ask in asks:
        try:
            answers.append(ask.get(timeout=LONG))
        except pykka.ActorDeadError:
            answers.append("dead")
    # An actor that tells itself to stop does so behind what was queued meanwhile.
    assert answers == ([f"re: {n}" for n in range(250)] if way.endswith("itself") else ["dead"] * 250)
    assert stop.get(timeout=LONG) is True
    settle()
    assert "told" in log or ("undelivered", "told") in log


def test_supervisor_knows_of_a_death_before_any_asker_runs(spawn):
    order = []

    class Child(Echo):
        def on_death(self, reason):
            order.append("death")

    child = spawn(Child)
    asker = gevent.spawn(lambda: child.stop() and order.append("stopped"))
    asker.join()
    assert order == ["death", "stopped"]


@pytest.mark.parametrize("way", WAYS_TO_DIE)
def test_whoever_watches_hears_of_every_end_once_after_on_death(spawn, log, way):
    faults, kill, reason = WAYS_TO_DIE[way]
    actor = spawn(Green, log=log, **faults)
    actor.watch(lambda error: log.append(("watched", error)))
    actor.watch(lambda error: log.append(("watched too", error)))
    kill(actor)
    gevent.idle()
    settle()
    assert log[-3:] == [("death", reason), ("watched", reason), ("watched too", reason)]


def test_watching_a_dead_actor_tells_at_once_how_it_ended(spawn, log):
    stopped, failed = spawn(Green, log=log), spawn(Green, log=log)
    stopped.stop(timeout=LONG)
    failed.tell(BOOM)
    settle()
    ends = []
    stopped.watch(ends.append)
    failed.watch(ends.append)
    assert ends[0] is None
    assert type(ends[1]) is HandlerFailed
    assert repr(BOOM) in str(ends[1])


def test_a_watcher_that_raises_harms_nobody(spawn, log, caplog):
    def fail(_error):
        raise OwnBase

    actor = spawn(Green, log=log)
    actor.watch(fail)
    actor.watch(log.append)
    actor.stop(timeout=LONG)
    assert log[-1] is None
    assert "a watcher of" in caplog.text or "fail of" in caplog.text


def test_on_undelivered_gets_what_was_told_in_order_and_survives_its_errors(spawn, log, caplog):
    class Careless(Green):
        def on_undelivered(self, message):
            super().on_undelivered(message)
            raise OwnBase

    actor = spawn(Careless, log=log)
    actor.tell(BOOM)
    actor.tell(1)
    asked = actor.ask(2, block=False)
    actor.tell(("a", "tuple"))
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=LONG)
    assert log[-3:] == [("undelivered", 1), ("undelivered", ("a", "tuple")), ("death", BOOM)]


def test_actor_is_dead_while_on_failure_still_blocks(spawn):
    gate = Event()

    class Slow(Echo):
        def on_failure(self, *_exc_info):
            gate.wait()

    actor = spawn(Slow)
    actor.tell(BOOM)
    queued = actor.ask("queued", block=False)
    settle()
    assert not actor.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        actor.ask("late", timeout=LONG)
    gate.set()
    with pytest.raises(pykka.ActorDeadError):
        queued.get(timeout=LONG)


def test_envelope_put_into_a_dead_inbox_is_answered(spawn):
    actor, future = spawn(Echo), GreenletFuture()
    actor.stop(timeout=LONG)
    actor.actor_inbox.put(pykka._envelope.Envelope("x", reply_to=future))  # noqa: SLF001 - put takes these
    with pytest.raises(pykka.ActorDeadError):
        future.get(timeout=LONG)


def test_reply_that_cannot_be_set_kills_the_actor_and_says_so(spawn, log):
    actor, future = spawn(Green, log=log), GreenletFuture()
    future.set("taken")
    actor.actor_inbox.put(pykka._envelope.Envelope("x", reply_to=future))  # noqa: SLF001 - put takes these
    with pytest.raises(pykka.ActorDeadError):
        actor.ask("queued", timeout=LONG)
    assert not actor.is_alive()
    assert type(log[-1][1]).__name__ == "Full"


# -- waits that could never end ---------------------------------------------------------------------


def test_trap_04_ask_of_itself_raises_instead_of_deadlocking(spawn):
    actor = spawn(Echo)
    with pytest.raises(Deadlock, match="itself"):
        actor.ask(lambda self: self.actor_ref.ask("me"), timeout=LONG)
    assert actor.ask("x", timeout=LONG) == "x"


def test_ask_of_itself_with_a_timeout_times_out_as_in_pykka(cls, spawn, log):
    actor = spawn(cls, log=log)
    with pytest.raises(pykka.Timeout):
        actor.ask(lambda self: self.actor_ref.ask("me", timeout=NOW), timeout=LONG)
    actor.ask("x", timeout=LONG)
    assert log[-2:] == ["me", "x"]


def test_actor_may_get_the_future_of_its_own_ask_later(spawn):
    actor = spawn(Echo)
    asked = actor.ask(lambda self: self.actor_ref.ask("me", block=False), timeout=LONG)
    assert asked.get(timeout=LONG) == "me"


# -- greenlets: only while there are messages -------------------------------------------------------


def idle_workers():
    return workers_here().idle


@pytest.fixture
def fresh_pool():
    release_idle_workers()


def test_trap_09_idle_actors_cost_no_greenlet(spawn, fresh_pool):
    refs = [Echo.start() for _ in range(50)]
    assert not idle_workers()
    for ref in refs:
        assert ref.ask("x") == "x"
    assert len(idle_workers()) == 1
    assert [ref.actor_inbox.worker for ref in refs] == [None] * 50


def test_trap_09_idle_actor_costs_at_most_1500_bytes():
    Echo.start().ask("warm up")
    gc.collect()
    tracemalloc.start()
    refs = [Echo.start() for _ in range(1_000)]
    for ref in refs:
        ref.ask("x")
    gc.collect()
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(refs) <= 1_500


def test_pool_keeps_no_more_idle_workers_than_its_bound(spawn, fresh_pool, monkeypatch):
    monkeypatch.setattr(actors.workers, "IDLE_WORKERS", 3)
    gate, refs = Event(), [spawn(Echo) for _ in range(10)]
    waiting = [ref.ask(lambda _self: gate.wait(), block=False) for ref in refs]
    settle()
    gate.set()
    assert pykka.get_all(waiting, timeout=LONG) == [True] * 10
    settle()
    assert len(idle_workers()) == 3
    many = spawn(Echo)
    for n in range(1_000):
        many.tell(n)
    assert many.ask("x") == "x"


def test_long_mailbox_lets_other_greenlets_run(spawn):
    seen = []

    class Counting(GreenletActor):
        def on_receive(self, message):
            seen.append(message)

    actor = spawn(Counting)
    for n in range(10_000):
        actor.tell(n)
    turns = []
    other = gevent.spawn(lambda: [turns.append(len(seen)) or gevent.sleep(0) for _ in range(5)])
    other.join()
    assert len(set(turns)) == 5
    assert turns[-1] < 10_000
    actor.ask(None)
    assert seen == [*range(10_000), None]


def asks_until_a_callback_runs(actor):
    """How many asks are answered before the loop comes to a callback that was due when they began."""
    ran, asks = [], 0
    gevent.get_hub().loop.run_callback(ran.append, "due")
    while not ran:
        assert actor.ask(asks, timeout=LONG) == asks
        asks += 1
    return asks


def test_an_idle_actor_answers_at_once_but_the_loop_gets_its_turn_every_few_asks(spawn):
    actor = spawn(Echo)
    asks_until_a_callback_runs(actor)
    assert asks_until_a_callback_runs(actor) == AT_ONCE + 1


def test_actors_that_ask_each_other_answer_at_once(spawn):
    front, back = spawn(Echo), spawn(Echo)
    asks_until_a_callback_runs(front)
    ran = []
    gevent.get_hub().loop.run_callback(ran.append, "due")
    assert front.ask(lambda _self: back.ask("deep")) == "deep"
    with pytest.raises(OSError, match="deep"):
        front.ask(lambda _self: back.ask(OSError("deep")))
    assert not ran
    settle()
    assert ran


def test_a_loop_that_picks_what_is_next_gets_to_pick_who_is_asked():
    def in_simulation():
        actor = Echo.start()
        return {asks_until_a_callback_runs(actor) for _ in range(20)}

    assert run_virtual(in_simulation) == {1}


def test_an_asker_waits_for_nothing_that_its_actor_does_after_the_answer(spawn):
    gate, actor, done = Event(), spawn(Echo), []

    def blocking(_self):
        gate.wait()
        done.append("blocking")

    def answers_and_goes_on(self):
        self.actor_ref.tell(blocking)
        return "answered"

    for _ in range(AT_ONCE + 1):
        assert actor.ask(answers_and_goes_on, timeout=LONG) == "answered"
        assert not done
        gate.set()
        settle()
        assert done == ["blocking"]
        done.clear()
        gate.clear()


def test_an_asker_does_not_wait_for_the_end_of_an_actor_that_its_handler_stopped(spawn):
    gate, ended = Event(), []

    class Ending(GreenletActor):
        def on_receive(self, message):
            self.actor_stopped.set()
            return "answered"

        def on_death(self, reason):
            gate.wait()
            ended.append(reason)

    for _ in range(AT_ONCE + 1):
        assert Ending.start().ask("x", timeout=LONG) == "answered"
    assert not ended
    gate.set()
    settle()
    assert len(ended) == AT_ONCE + 1


def test_an_asker_is_woken_once_and_by_its_actor_alone_while_a_handler_blocks(spawn):
    gate, actor = Event(), spawn(Echo)
    asks_until_a_callback_runs(actor)
    asker = gevent.spawn(lambda: actor.ask(lambda _self: gate.wait() and "late", timeout=LONG))
    settle()
    gevent.get_hub().loop.run_callback(asker.switch, "by mistake")
    settle()
    assert not asker.ready()
    gate.set()
    assert asker.get(timeout=LONG) == "late"
    asks_until_a_callback_runs(actor)
    for end in (pykka.Timeout, gevent.GreenletExit):
        gate.clear()
        asker = gevent.spawn(lambda: actor.ask(lambda _self: gate.wait(), timeout=NOW))
        if end is pykka.Timeout:
            with pytest.raises(pykka.Timeout):
                asker.get(timeout=LONG)
        else:
            settle()
            asker.kill()
            assert isinstance(asker.value, gevent.GreenletExit)
        gate.set()
        assert actor.ask("next", timeout=LONG) == "next"


def test_a_message_is_handled_though_its_asker_cannot_wait(spawn, monkeypatch):
    actor, log = spawn(Echo), []
    asks_until_a_callback_runs(actor)
    with monkeypatch.context() as patched:
        patched.setattr(GreenletFuture, "wait_by", raise_memory_error)
        with pytest.raises(MemoryError):
            actor.ask(lambda _self: log.append("handled"))
    actor.tell(lambda _self: log.append("next"))
    settle()
    assert log == ["handled", "next"]


def raise_memory_error(*_args):
    raise MemoryError("none left")


def test_askers_are_answered_where_no_worker_is_kept(spawn, fresh_pool, monkeypatch):
    monkeypatch.setattr(actors.workers, "IDLE_WORKERS", 0)
    actor = spawn(Echo)
    assert [actor.ask(n, timeout=LONG) for n in range(30)] == [*range(30)]
    settle()
    assert idle_workers() == []


def test_release_idle_workers_ends_them_and_actors_go_on(spawn, fresh_pool):
    actor = spawn(Echo)
    actor.ask("x")
    (worker,) = idle_workers()
    assert release_idle_workers() == 1
    assert worker.dead
    assert actor.ask("y", timeout=LONG) == "y"


def test_actor_lives_on_a_hub_that_replaced_another(spawn):
    actor = spawn(Echo)
    actor.ask("on the first hub")
    first, second = gevent.get_hub(), Hub(default=False)
    set_hub(second)
    try:
        late = Green.start()
        assert actor.ask("x", timeout=LONG) == "x"
        assert late.ask("y", timeout=LONG) == "re: y"
        assert {w.parent for w in idle_workers()} == {second}
        late.stop()
        release_idle_workers()
    finally:
        set_hub(first)
    assert actor.ask("back", timeout=LONG) == "back"
    second.destroy(destroy_loop=True)


# -- kills ------------------------------------------------------------------------------------------


def test_trap_15_kill_inside_a_handler_under_ask_is_answered(spawn, fresh_pool):
    actor = spawn(Echo)
    asked = actor.ask(lambda _self: Event().wait(), block=False)
    settle()
    gevent.kill(actor.actor_inbox.worker)
    with pytest.raises(HandlerFailed) as caught:
        asked.get(timeout=LONG)
    assert isinstance(caught.value.__cause__, gevent.GreenletExit)
    assert actor.ask("x", timeout=LONG) == "x"


def test_trap_15_kill_inside_a_handler_under_tell_leaves_an_actor_that_says_it_is_dead(spawn, log):
    actor = spawn(Green, log=log)
    actor.tell(lambda _self: Event().wait())
    queued = actor.ask("x", block=False)
    settle()
    gevent.kill(actor.actor_inbox.worker)
    with pytest.raises(pykka.ActorDeadError):
        queued.get(timeout=LONG)
    assert not actor.is_alive()
    assert isinstance(log[-1][1], gevent.GreenletExit)


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure"])
def test_trap_15_kill_inside_a_hook_leaves_an_actor_that_says_it_is_dead(spawn, hook):
    reasons = []

    class Blocked(Echo):
        def on_death(self, reason):
            reasons.append(reason)

    setattr(Blocked, hook, lambda *_args: Event().wait())
    actor = spawn(Blocked)
    if hook == "on_failure":
        actor.tell(BOOM)
    elif hook == "on_stop":
        actor.stop(block=False)
    queued = actor.ask("x", block=False)
    settle()
    gevent.kill(actor.actor_inbox.worker)
    with pytest.raises(pykka.ActorDeadError):
        queued.get(timeout=LONG)
    assert not actor.is_alive()
    assert [type(r) for r in reasons] == [ValueError if hook == "on_failure" else gevent.GreenletExit]


@pytest.mark.parametrize("pooled", [False, True], ids=["new worker", "pooled worker"])
def test_trap_15_kill_before_the_first_message_harms_no_actor(spawn, fresh_pool, pooled):
    actor = spawn(Echo)
    if pooled:
        actor.ask("x")
    asks = [actor.ask(n, block=False) for n in range(3)]
    worker = actor.actor_inbox.worker
    worker.parent = gevent.getcurrent()  # where a greenlet goes on when it ends
    worker.throw(gevent.GreenletExit)
    assert worker.dead
    assert pykka.get_all(asks, timeout=LONG) == [0, 1, 2]


def test_killed_idle_worker_is_not_used_again(spawn, fresh_pool):
    actor = spawn(Echo)
    actor.ask("x")
    (worker,) = idle_workers()
    gevent.kill(worker)
    settle()
    assert worker.dead
    assert worker not in idle_workers()
    assert actor.ask("y", timeout=LONG) == "y"


def test_foreign_switch_to_an_idle_worker_does_no_harm(spawn, fresh_pool):
    actor = spawn(Echo)
    actor.ask("x")
    (worker,) = idle_workers()
    gevent.get_hub().loop.run_callback(worker.switch)
    settle()
    assert not worker.dead
    assert actor.ask("y", timeout=LONG) == "y"


def test_asker_that_is_killed_leaves_actor_and_others_unharmed(spawn):
    actor, gate = spawn(Echo), Event()
    actor.tell(lambda _self: gate.wait())
    doomed = gevent.spawn(actor.ask, "doomed")
    other = gevent.spawn(actor.ask, "other")
    settle()
    doomed.kill()
    gate.set()
    assert other.get(timeout=LONG) == "other"
    assert actor.ask("x", timeout=LONG) == "x"


# -- threads and the registry -----------------------------------------------------------------------


def test_trap_10_another_thread_is_refused_by_name_and_nothing_is_queued(spawn):
    actor = spawn(Echo)
    for call in (actor.tell, actor.ask, lambda m: actor.ask(m, block=False)):
        with pytest.raises(WrongThread, match=r"Runtime\.from_thread\(\), or by an async watcher"):
            in_native_thread(call, "x")
    assert actor.actor_inbox.empty()
    assert actor.ask("y", timeout=LONG) == "y"


def test_refusal_leaves_no_hub_in_the_other_thread(spawn):
    actor = spawn(Echo)

    def intrude():
        with pytest.raises(WrongThread):
            actor.tell("x")
        return get_hub_if_exists()

    assert in_native_thread(intrude) is None


def test_actor_of_a_native_thread_lives_on_that_threads_hub():
    def life():
        ref = Green.start()
        replies = [ref.ask(n, timeout=LONG) for n in range(3)]
        ref.stop(timeout=LONG)
        release_idle_workers()
        return replies

    assert in_native_thread(life) == ["re: 0", "re: 1", "re: 2"]


def test_trap_07_pykkas_registry_neither_knows_nor_stops_our_actors(spawn):
    actor = spawn(Green)
    assert pykka.ActorRegistry.get_by_urn(actor.actor_urn) is None
    assert actor not in pykka.ActorRegistry.get_all()
    pykka.ActorRegistry.stop_all()
    assert actor.ask("x", timeout=LONG) == "re: x"


def test_trap_07_our_life_and_death_never_touch_pykkas_registry(monkeypatch):
    def refuse(*_args):
        raise AssertionError

    for name in ("register", "unregister", "stop_all"):
        monkeypatch.setattr(pykka.ActorRegistry, name, refuse)
    dying, stopping = Green.start(), Green.start()
    dying.tell(OwnBase())
    assert stopping.stop(timeout=LONG) is True
    settle()
    assert not dying.is_alive()


# -- nothing left behind ----------------------------------------------------------------------------


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Failure(Exception):
    pass


def raise_failure(_actor):
    raise Failure


def test_actor_that_nobody_refers_to_is_collected():
    ref = Green.start()
    ref.ask("x")
    actor = weakref.ref(ref.actor_inbox.actor)
    del ref
    gc.collect()
    assert actor() is None


@pytest.mark.parametrize("way", ["stop", "failure"])
def test_dead_actor_is_freed_at_once_though_its_ref_is_kept(no_collector, way, monkeypatch):
    monkeypatch.setattr(logging.getLogger("pykka"), "disabled", True)  # pytest keeps what is logged
    ref = Echo.start()
    ref.ask("x")
    actor = weakref.ref(ref.actor_inbox.actor)
    if way == "stop":
        ref.stop()
    else:
        ref.tell(raise_failure)
    settle()
    assert actor() is None
    assert not ref.is_alive()


@pytest.mark.parametrize("timeout", [None, LONG])
def test_messages_replies_and_errors_are_freed_at_once(spawn, no_collector, timeout):
    class Thing:
        pass

    actor, message = spawn(Echo), Thing()
    seen = [weakref.ref(message)]
    assert actor.ask(message, timeout=timeout) is message
    try:
        actor.ask(raise_failure, timeout=timeout)
    except Failure as error:
        seen.append(weakref.ref(error))
    del message
    settle()
    assert [ref() for ref in seen] == [None, None]


# -- other processes, and pykka's private names -----------------------------------------------------

SCRIPT = """
import {first}
{patch}
import pykka
from actors.greenlet import GreenletActor, GreenletFuture
import gevent

class Doubler(GreenletActor):
    def on_start(self): self.started = True
    def on_receive(self, n): return 2 * n if self.started else None

ref = Doubler.start()
assert ref.ask(21) == 42 and ref.ask(4, timeout=5) == 8
assert pykka.get_all([ref.ask(n, block=False) for n in range(3)]) == [0, 2, 4]
assert gevent.joinall([gevent.spawn(ref.ask, 1)])[0].value == 2
blocked = Doubler.start()
blocked.tell(1)
assert ref.stop() is True
print("done")
"""


@pytest.mark.parametrize(
    ("first", "patch"),
    [
        ("pykka", ""),
        ("gevent.monkey", "gevent.monkey.patch_all()"),
        ("pykka", "import gevent.monkey; gevent.monkey.patch_all()"),
    ],
    ids=["unpatched", "patched first", "trap_13 pykka first"],
)
def test_trap_08_and_13_a_process_works_and_ends_quietly(first, patch):
    script = SCRIPT.format(first=first, patch=patch)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GEVENT_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_pykkas_private_names_are_what_the_overrides_rely_on():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    actor, ref, future = pykka.Actor, pykka.ActorRef, pykka.Future
    assert pykka.ActorProxy.__init__.__code__.co_names.count("_actor_weakref") == 1
    assert parameters(actor._handle_receive) == ["self", "message"]  # noqa: SLF001 - pinned here
    assert parameters(actor._handle_failure) == [  # noqa: SLF001 - pinned here
        "self",
        "exception_type",
        "exception_value",
        "traceback",
    ]
    hooks = ["_stop", "_start_actor_loop", "_actor_loop", "_actor_loop_setup", "_actor_loop_teardown"]
    assert [parameters(getattr(actor, hook)) for hook in hooks] == [["self"]] * len(hooks)
    assert "_actor_ref" in actor.actor_ref.fget.__code__.co_names
    assert [parameters(getattr(actor, h)) for h in ("_create_actor_inbox", "_create_future")] == [[], []]
    assert parameters(ref.ask) == ["self", "message", "block", "timeout"]
    assert parameters(ref.tell) == ["self", "message"]
    assert parameters(pykka._envelope.Envelope) == ["message", "reply_to"]  # noqa: SLF001 - pinned here
    assert "set_get_hook" in future.map.__code__.co_names
    own = [pykka.messages._ActorStop, pykka.messages.ProxyCall]  # noqa: SLF001 - pinned here
    own += [pykka.messages.ProxyGetAttr, pykka.messages.ProxySetAttr]
    assert all(issubclass(message, tuple) for message in own)
    assert {n for n in pykka._actor.__dict__ if n.startswith("_")} >= {"__all__"}  # noqa: SLF001 - pinned here
    handled = pykka.Actor._handle_receive.__code__.co_names  # noqa: SLF001 - pinned here
    assert {"_ActorStop", "ProxyCall", "ProxyGetAttr", "ProxySetAttr", "on_receive"} <= set(handled)
