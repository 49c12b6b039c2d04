"""GreenletFuture: pykka's future, and what waiting greenlets may rely on."""

from __future__ import annotations

import gc
import queue
import time
import traceback
import weakref

import gevent
import pykka
import pytest
from gevent.threadpool import ThreadPool

from actors.errors import HandlerFailed, WrongThread
from actors.greenlet import Deadlock, GreenletFuture

NOW = 0.001  # seconds until a timeout that is meant to happen
LONG = 5.0  # seconds until one that is not


@pytest.fixture(params=[pykka.ThreadingFuture, GreenletFuture])
def future(request):
    return request.param()


def settle() -> None:
    """Let every greenlet that can run do so."""
    for _ in range(5):
        gevent.sleep(0)


def in_native_thread(function, *args):
    """Its result, from a new thread that gevent has not patched and that is gone afterwards."""
    pool = ThreadPool(1)
    try:
        return pool.apply(function, args)
    finally:
        pool.kill()


class Waiting:
    """A greenlet that waits for a future, and then, raw, for nothing: any switch to it there is stale."""

    def __init__(self, future, timeout=None):
        self.outcome = None
        self.stale = False
        self.greenlet = gevent.spawn(self._run, future, timeout)
        settle()

    def _run(self, future, timeout):
        try:
            self.outcome = future.get(timeout=timeout)
        except BaseException as error:
            self.outcome = error
        try:
            gevent.get_hub().switch()
            self.stale = True
        except gevent.GreenletExit:
            pass

    def end(self):
        settle()
        self.greenlet.kill()
        assert not self.stale, "the old future switched to a greenlet that no longer waits for it"
        return self.outcome


# -- as pykka's -------------------------------------------------------------------------------------


def test_get_returns_what_was_set_any_number_of_times(future):
    future.set(1)
    assert [future.get(), future.get(timeout=0), future.get(timeout=LONG)] == [1, 1, 1]


def test_set_without_a_value_is_none(future):
    future.set()
    assert future.get() is None


def test_get_waits_for_a_later_set(future):
    gevent.spawn(future.set, "late")
    assert future.get() == "late"


@pytest.mark.parametrize("timeout", [0, -1, NOW])
def test_get_in_vain_is_a_pykka_timeout(future, timeout):
    with pytest.raises(pykka.Timeout, match=f"{timeout} seconds"):
        future.get(timeout=timeout)


def test_set_after_a_timeout_is_not_lost(future):
    with pytest.raises(pykka.Timeout):
        future.get(timeout=NOW)
    future.set(1)
    assert future.get() == 1


def test_exception_is_raised_by_every_get_with_its_own_traceback(future):
    try:
        int("from there")
    except ValueError:
        future.set_exception()
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="from there") as caught:
            future.get()
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[0] == depths[1] == depths[2]


def test_exception_without_a_value_is_made_from_its_class(future):
    future.set_exception((KeyError, None, None))
    with pytest.raises(KeyError):
        future.get()


def test_second_answer_is_refused_and_the_first_stays(future):
    future.set(1)
    with pytest.raises(queue.Full):
        future.set(2)
    with pytest.raises(queue.Full):
        future.set_exception((ValueError, ValueError(), None))
    with pytest.raises(queue.Full):
        future.set_get_hook(lambda _timeout: 3)
    assert future.get() == 1


def test_future_with_a_get_hook_takes_no_answer(future):
    future.set_get_hook(lambda _timeout: 3)
    with pytest.raises(queue.Full):
        future.set(2)
    with pytest.raises(queue.Full):
        future.set_exception((ValueError, ValueError(), None))
    assert future.get() == 3


def test_get_hook_gets_the_timeout_and_runs_once(future):
    timeouts = []
    future.set_get_hook(lambda timeout: timeouts.append(timeout) or "made")
    assert [future.get(timeout=LONG), future.get()] == ["made", "made"]
    assert timeouts == [LONG]


def test_get_hook_that_fails_is_tried_again(future):
    results = [ValueError("first"), 2]

    def hook(_timeout):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    future.set_get_hook(hook)
    with pytest.raises(ValueError, match="first"):
        future.get()
    assert future.get() == 2


def test_get_hook_runs_once_for_greenlets_that_get_at_once(future):
    gate, calls = gevent.event.Event(), []

    def hook(_timeout):
        calls.append(1)
        gate.wait()
        return "made"

    future.set_get_hook(hook)
    getters = [gevent.spawn(future.get) for _ in range(3)]
    settle()
    gate.set()
    gevent.joinall(getters)
    assert [g.value for g in getters] == ["made"] * 3
    assert calls == [1]


def test_map_filter_join_reduce(future):
    other = type(future)()
    numbers, even = future.map(list), future.filter(lambda n: n % 2 == 0)
    total, both = future.reduce(lambda a, b: a + b, 100), future.join(other)
    future.set(range(5))
    other.set("x")
    assert numbers.get() == [0, 1, 2, 3, 4]
    assert even.get() == [0, 2, 4]
    assert total.get() == 110
    assert both.get() == [range(5), "x"]
    assert {type(f) for f in (numbers, even, total, both)} == {type(future)}


def test_mapped_future_passes_timeout_and_error_on(future):
    mapped = future.map(str)
    with pytest.raises(pykka.Timeout):
        mapped.get(timeout=NOW)
    future.set_exception((ValueError, ValueError("no"), None))
    with pytest.raises(ValueError, match="no"):
        mapped.get()


def test_get_all_keeps_the_order(future):
    other = type(future)()
    other.set(2)
    gevent.spawn(future.set, 1)
    assert list(pykka.get_all([future, other], timeout=LONG)) == [1, 2]


def test_future_can_be_awaited(future):
    async def wait():
        return await future

    gevent.spawn(future.set, "awaited")
    waiting = wait()
    assert waiting.send(None) is None
    with pytest.raises(StopIteration) as done:
        waiting.send(None)
    assert done.value.value == "awaited"


# -- many waiters, and waits that end otherwise -----------------------------------------------------


def test_every_waiter_gets_the_answer_in_the_order_they_came():
    future, woken = GreenletFuture(), []
    waiters = [gevent.spawn(lambda n=n: woken.append((n, future.get()))) for n in range(5)]
    settle()
    future.set("x")
    gevent.joinall(waiters)
    assert woken == [(n, "x") for n in range(5)]


@pytest.mark.parametrize("leaver", [0, 1, 2])
@pytest.mark.parametrize("how", ["kill", "timeout", "gevent timeout"])
def test_waiter_that_leaves_takes_nothing_from_the_others(leaver, how):
    future = GreenletFuture()
    waiting = [Waiting(future, NOW if how == "timeout" and n == leaver else LONG) for n in range(3)]
    gone = waiting.pop(leaver)
    if how == "kill":
        gone.greenlet.kill(block=False, exception=gevent.GreenletExit)
    elif how == "gevent timeout":
        gone.greenlet.kill(block=False, exception=gevent.Timeout(1))
    while gone.outcome is None:
        gevent.idle()
    future.set("x")
    assert type(gone.end()).__name__ == {"kill": "GreenletExit"}.get(how, "Timeout")
    assert [w.end() for w in waiting] == ["x", "x"]


@pytest.mark.parametrize("others", [0, 2])
def test_kill_that_meets_the_answer_half_way_leaves_no_stale_switch(others):
    future = GreenletFuture()
    victim = Waiting(future)
    waiting = [Waiting(future) for _ in range(others)]
    gevent.kill(victim.greenlet)
    future.set("x")  # its switch is queued behind the kill
    assert isinstance(victim.end(), gevent.GreenletExit)
    assert [w.end() for w in waiting] == ["x"] * others
    assert future.get() == "x"


def test_answer_that_comes_before_the_kill_is_taken():
    future = GreenletFuture()
    waiting = Waiting(future)
    future.set("x")
    gevent.kill(waiting.greenlet)
    settle()
    assert waiting.outcome == "x"


def test_timeout_that_meets_the_answer_half_way_gives_the_answer():
    future = GreenletFuture()
    waiting = Waiting(future, LONG)
    gevent.get_hub().loop.run_callback(future.set, "x")
    assert [waiting.end(), future.get()] == ["x", "x"]


def test_timer_of_an_answered_wait_never_fires():
    future = GreenletFuture()
    waiting = Waiting(future, 0.01)
    future.set("x")
    end = gevent.get_hub().loop.timer(0.02)
    gevent.get_hub().wait(end)
    assert waiting.end() == "x"


def test_foreign_switch_to_a_waiting_greenlet_does_not_end_its_wait():
    future = GreenletFuture()
    waiting = Waiting(future)
    gevent.get_hub().loop.run_callback(waiting.greenlet.switch)
    settle()
    assert waiting.outcome is None
    future.set("x")
    assert waiting.end() == "x"


def test_callers_own_gevent_timeout_reaches_the_caller():
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(NOW) as mine:
        GreenletFuture().get()
    assert caught.value is mine


def test_timeout_counts_from_the_call_although_the_hub_was_busy():
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(NOW))  # a greenlet that a timer woke finds the loop's clock standing still
    begin = time.perf_counter()
    while time.perf_counter() < begin + 0.03:
        pass
    begin = time.perf_counter()
    with pytest.raises(pykka.Timeout):
        GreenletFuture().get(timeout=0.02)
    assert time.perf_counter() - begin > 0.015


def test_waits_that_ended_leave_nothing_in_the_future():
    future = GreenletFuture()
    waiting = [Waiting(future, NOW) for _ in range(3)]
    for each in waiting:
        while each.outcome is None:
            gevent.idle()
        each.end()
    assert (future._waiter, future._line) == (None, {})  # noqa: SLF001 - what would leak


def test_get_hook_set_while_a_greenlet_waits_answers_it():
    future = GreenletFuture()
    waiting = [Waiting(future), Waiting(future)]
    future.set_get_hook(lambda _timeout: "made")
    assert [w.end() for w in waiting] == ["made", "made"]


def test_get_hook_replaced_while_it_runs_switches_to_nobody():
    future, gate = GreenletFuture(), gevent.event.Event()
    future.set_get_hook(lambda _timeout: gate.wait() and "first")
    waiting = Waiting(future)
    future.set_get_hook(lambda _timeout: "second")
    settle()
    assert waiting.outcome is None
    gate.set()
    assert waiting.end() == "first"


def test_kill_of_the_greenlet_that_runs_the_hook_hands_it_to_the_next():
    future, gate, runs = GreenletFuture(), gevent.event.Event(), []

    def hook(_timeout):
        runs.append(gevent.getcurrent())
        gate.wait()
        return "made"

    future.set_get_hook(hook)
    first, second = Waiting(future), Waiting(future)
    gevent.kill(first.greenlet)
    settle()
    gate.set()
    assert isinstance(first.end(), gevent.GreenletExit)
    assert second.end() == "made"
    assert runs == [first.greenlet, second.greenlet]


# -- what must not cross, and where a future must not be used ---------------------------------------


@pytest.mark.parametrize("kind", [gevent.Timeout, gevent.GreenletExit, SystemExit, KeyboardInterrupt])
def test_trap_01_base_exception_is_kept_as_handler_failed(kind):
    future, cause = GreenletFuture(), kind()
    future.set_exception((kind, cause, None))
    with pytest.raises(HandlerFailed) as caught:
        future.get()
    assert caught.value.__cause__ is cause


def test_exception_whose_repr_fails_is_kept_too():
    class Unshowable(BaseException):
        def __repr__(self):
            raise ValueError

    future = GreenletFuture()
    future.set_exception((Unshowable, Unshowable(), None))
    with pytest.raises(HandlerFailed, match="Unshowable"):
        future.get()


def test_set_exception_outside_an_except_block_is_refused():
    with pytest.raises(ValueError, match="exc_info"):
        GreenletFuture().set_exception()


def test_get_in_the_hub_raises_instead_of_hanging():
    outcome = GreenletFuture()

    def in_hub():
        try:
            GreenletFuture().get(timeout=LONG)
        except Deadlock as error:
            outcome.set(error)

    gevent.get_hub().loop.run_callback(in_hub)
    assert "greenlet" in str(outcome.get(timeout=LONG))


def test_future_can_be_set_and_an_answer_got_in_the_hub():
    future, seen = GreenletFuture(), GreenletFuture()
    gevent.get_hub().loop.run_callback(lambda: (future.set(1), seen.set(future.get())))
    assert [future.get(), seen.get()] == [1, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.set(1),
        lambda f: f.set_exception((ValueError, ValueError(), None)),
        lambda f: f.set_get_hook(lambda _timeout: 1),
        lambda f: f.get(timeout=LONG),
        lambda f: f.map(str).get(),
    ],
)
def test_trap_10_another_thread_is_refused_by_name(call):
    future = GreenletFuture()
    with pytest.raises(WrongThread, match="from_thread"):
        in_native_thread(call, future)
    future.set("unharmed")
    assert future.get() == "unharmed"


def test_get_hook_does_not_run_in_another_thread():
    future = GreenletFuture()
    future.set_get_hook(lambda _timeout: 1)
    with pytest.raises(WrongThread):
        in_native_thread(future.get)
    assert future.get() == 1


def test_answer_that_is_there_can_be_read_in_any_thread():
    future = GreenletFuture()
    future.set("x")
    assert in_native_thread(future.get) == "x"


# -- nothing left behind ----------------------------------------------------------------------------


class Failure(Exception):
    pass


@pytest.mark.parametrize("timeout", [None, LONG])
def test_answered_future_is_freed_at_once(timeout):
    gc.disable()
    try:
        future = GreenletFuture()
        seen = weakref.ref(future)
        gevent.spawn(future.set, "x")
        future.get(timeout=timeout)
        del future
        settle()
        assert seen() is None
    finally:
        gc.enable()


def test_raised_error_does_not_hold_its_future():
    def failed():
        future = GreenletFuture()
        future.set_exception((Failure, Failure(), None))
        return future

    gc.disable()
    try:
        future = failed()
        seen = weakref.ref(future)
        error = None
        try:
            future.get()
        except Failure as caught:
            error = caught
        del future
        assert seen() is None
        assert error.__traceback__ is not None
    finally:
        gc.enable()
