"""The virtual loop: gevent on virtual time, in a process whose real hub goes on afterwards."""

from __future__ import annotations

import gc
import os
import random
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from weakref import ref

import gevent
import pytest
from gevent import monkey
from gevent._hub_local import get_hub_if_exists
from gevent.event import AsyncResult, Event
from gevent.hub import get_hub
from gevent.lock import Semaphore
from gevent.pool import Pool
from gevent.queue import Empty, Queue
from gevent.threadpool import ThreadPool

from palaver.simulation.errors import RealWorldInSimulation, SimulationError, SimulationStuck, TooManySteps
from palaver.simulation.loop import EPOCH, VirtualClock, VirtualLoop, current_loop, run_on, run_virtual


def now() -> float:
    return current_loop().now()


@pytest.fixture(autouse=True)
def real_hub_survives():
    """Whatever a test did, the real hub is back and works."""
    before = get_hub()
    yield
    assert get_hub() is before
    assert "switch" not in vars(before)
    assert gevent.spawn(lambda: gevent.sleep(0) or 7).get(timeout=5) == 7
    assert threading.get_ident() == threading.main_thread().ident


# -- everything of gevent follows the loop ----------------------------------------------------------------


def test_a_sleep_takes_virtual_seconds():
    def sleeper():
        gevent.sleep(3600.0)
        gevent.sleep(0)
        return now()

    assert run_virtual(sleeper) == 3600.0


def test_arguments_go_in_and_the_result_comes_out():
    assert run_virtual(divmod, 17, 5) == (3, 2)


def test_timeouts_fire_and_cancelled_ones_do_not():
    def body():
        with gevent.Timeout(5.0):
            gevent.sleep(1.0)
        with pytest.raises(gevent.Timeout), gevent.Timeout(2.0):
            gevent.sleep(100.0)
        at = now()
        with gevent.Timeout(1.0, False):
            Event().wait()
        return at, now()

    assert run_virtual(body) == (3.0, 4.0)


def test_a_timeout_without_seconds_never_fires():
    def body():
        with gevent.Timeout(None):
            gevent.sleep(1e6)
        return now()

    assert run_virtual(body) == 1e6


def test_events_queues_results_locks_and_pools_follow_it():
    def body():
        seen = []
        event, queue, result, lock = Event(), Queue(1), AsyncResult(), Semaphore(1)
        gevent.spawn_later(1.0, event.set)
        gevent.spawn_later(2.0, queue.put, "item")
        gevent.spawn_later(3.0, result.set, "result")
        seen.append((event.wait(10.0), now()))
        seen.append((queue.get(timeout=10.0), now()))
        seen.append((result.get(timeout=10.0), now()))
        with pytest.raises(Empty):
            queue.get(timeout=4.0)
        lock.acquire()
        seen.append((lock.acquire(timeout=1.0), event.wait(0.5), now()))
        gevent.spawn_later(1.0, lock.release)
        seen.append((lock.acquire(timeout=2.0), now()))
        pool = Pool(2)
        seen.append((pool.map(lambda n: gevent.sleep(n) or n, [1, 2, 3]), now()))
        return seen

    assert run_virtual(body) == [
        (True, 1.0),
        ("item", 2.0),
        ("result", 3.0),
        (False, True, 8.0),
        (True, 9.0),
        ([1, 2, 3], 13.0),
    ]


def test_patched_threads_and_conditions_follow_it():
    def body():
        seen = []
        done = threading.Event()
        thread = threading.Thread(target=lambda: gevent.sleep(5.0) or seen.append(now()) or done.set())
        thread.start()
        seen.append(done.wait(1.0))
        thread.join()
        return [*seen, done.wait(1.0), now()]

    assert run_virtual(body) == [False, 5.0, True, 5.0]


def test_joinall_and_iwait_take_their_timeouts_in_virtual_time():
    def body():
        greenlets = [gevent.spawn(gevent.sleep, seconds) for seconds in (3.0, 1.0, 2.0)]
        assert len(gevent.joinall(greenlets, timeout=1.5)) == 1
        rest = [greenlets.index(greenlet) for greenlet in gevent.iwait(greenlets)]
        return rest, now()

    assert run_virtual(body) == ([1, 2, 0], 3.0)


def test_killing_a_sleeper_runs_its_clean_up_and_drops_its_timer():
    def body():
        seen = []

        def sleeper():
            try:
                gevent.sleep(1000.0)
            finally:
                seen.append(now())

        greenlet = gevent.spawn(sleeper)
        unstarted = gevent.spawn(seen.append, "never")
        unstarted.kill()
        gevent.sleep(1.0)
        greenlet.kill()
        gevent.sleep(1.0)
        return seen, now(), isinstance(greenlet.value, gevent.GreenletExit)

    assert run_virtual(body) == ([1.0], 2.0, True)


def test_idle_waits_for_everything_runnable_but_not_for_time():
    def body():
        seen = []

        def worker():
            for _ in range(50):
                gevent.sleep(0)
            seen.append("worked")

        gevent.spawn(worker)
        gevent.spawn_later(1.0, seen.append, "later")
        gevent.idle()
        return seen, now()

    assert run_virtual(body) == (["worked"], 0.0)


def test_without_an_rng_callbacks_run_in_the_order_of_the_real_loop():
    def program():
        trace = []
        queue = Queue()

        def worker(number):
            for turn in range(3):
                trace.append((number, turn))
                queue.put(number)
                gevent.sleep(0)

        def reader():
            for _ in range(12):
                trace.append(("got", queue.get()))

        greenlets = [gevent.spawn(reader), *[gevent.spawn(worker, number) for number in range(5)]]
        greenlets[-1].kill(block=False)
        gevent.joinall(greenlets)
        return trace

    assert run_virtual(program) == program()


def test_twenty_thousand_sleeps_cost_few_steps():
    def sender(number):
        for turn in range(20):
            gevent.sleep(0.01 * (number % 7 + 1))
            with gevent.Timeout(0.5):
                gevent.sleep(0.001 * (turn % 3))

    def body():
        gevent.joinall([gevent.spawn(sender, number) for number in range(1_000)])
        return round(now(), 9)

    loop = VirtualLoop(random.Random(1))
    assert run_on(loop, body) == 1.419
    assert loop.steps < 2 * 40_000 + 10_000


# -- order ------------------------------------------------------------------------------------------------


def race(rng: random.Random | None) -> list[object]:
    """The trace of many greenlets that meet on a queue, a lock and timers of the same instant."""

    def body():
        trace: list[object] = []
        queue: Queue[int] = Queue(3)
        lock = Semaphore(1)

        def worker(number):
            for _ in range(4):
                gevent.sleep(0.25)
                with lock:
                    gevent.sleep(0)
                    queue.put(number)

        def reader():
            for _ in range(40):
                trace.append((queue.get(), now()))

        gevent.joinall([gevent.spawn(reader), *[gevent.spawn(worker, number) for number in range(10)]])
        return trace

    return run_virtual(body, rng=rng)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another():
    traces = [race(random.Random(seed)) for seed in (1, 1, 2, 2, 3)]
    assert traces[0] == traces[1]
    assert traces[2] == traces[3]
    assert len({str(trace) for trace in traces}) == 3
    assert race(None) == race(None)
    assert sorted(traces[0]) != traces[0] != race(None)


def test_the_trace_does_not_depend_on_the_hash_seed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "import random, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from test_virtual_loop import race\n"
        "print(race(random.Random(5)))\n"
    )
    outputs = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0].strip() for process in outputs)
    assert first == second == str(race(random.Random(5)))


def test_timers_of_one_instant_run_by_priority_and_then_in_the_order_of_their_start():
    def body():
        seen = []
        loop = current_loop()
        for name, priority in (("low", -1), ("a", None), ("b", 0), ("high", 1)):
            loop.timer(1.0, priority=priority).start(seen.append, name)
        gevent.sleep(2.0)
        return seen

    assert run_virtual(body) == ["high", "a", "b", "low"]


def test_a_sleep_beats_a_timeout_of_the_same_instant_in_order_and_either_wins_with_a_seed():
    def body():
        with gevent.Timeout(1.0, False):
            gevent.sleep(1.0)
            return "slept"
        return "timed out"

    assert run_virtual(body) == "slept"
    assert {run_virtual(body, rng=random.Random(seed)) for seed in range(20)} == {"slept", "timed out"}


def test_anything_with_randrange_can_choose():
    class Last:
        def randrange(self, stop: int, /) -> int:
            return stop - 1

    def body():
        seen = []
        gevent.joinall([gevent.spawn(seen.append, number) for number in range(4)])
        return seen

    assert run_virtual(body) == [0, 1, 2, 3]
    assert run_virtual(body, rng=Last()) == [3, 2, 1, 0]


# -- timers and watchers ----------------------------------------------------------------------------------


def in_loop(function):
    """Run `function(loop)` inside a simulation."""
    return run_virtual(lambda: function(current_loop()))


def test_a_repeating_timer_runs_until_it_is_stopped():
    def body(loop):
        times = []
        with loop.timer(1.0, repeat=0.5) as timer:
            timer.start(lambda: times.append(loop.now()))
            gevent.sleep(2.2)
            assert timer.active
        gevent.sleep(5.0)
        return times

    assert in_loop(body) == [1.0, 1.5, 2.0]


def test_a_repeating_timer_may_stop_itself():
    def body(loop):
        times = []
        timer = loop.timer(1.0, repeat=1.0)
        timer.start(lambda: times.append(loop.now()) or timer.stop())
        gevent.sleep(5.0)
        return times, timer.active, timer.callback

    assert in_loop(body) == ([1.0], False, None)


def test_again_starts_the_interval_anew_and_stops_a_timer_without_one():
    def body(loop):
        times = []
        note = lambda: times.append(loop.now())  # noqa: E731
        repeating, single = loop.timer(5.0, repeat=2.0), loop.timer(1.0)
        repeating.again(note)
        gevent.sleep(1.0)
        repeating.again(note)
        single.start(note)
        single.again(note)
        gevent.sleep(4.5)
        repeating.close()
        return times, single.active

    assert in_loop(body) == ([3.0, 5.0], False)


def test_starting_a_started_timer_replaces_its_callback_and_keeps_its_time():
    def body(loop):
        seen = []
        timer = loop.timer(2.0)
        timer.start(seen.append, "old")
        gevent.sleep(1.0)
        timer.start(seen.append, "new", update=True)
        gevent.sleep(1.0)
        gevent.sleep(0)
        assert not timer.active
        assert not timer.pending
        timer.start(seen.append, "once more")
        gevent.sleep(2.0)
        gevent.sleep(0)
        return seen

    assert in_loop(body) == ["new", "once more"]


def test_a_timer_that_is_due_can_still_be_stopped():
    def body(loop):
        seen = []
        first, second = loop.timer(1.0), loop.timer(1.0)
        first.start(lambda: (seen.append(second.pending), second.stop()))
        second.start(seen.append, "never")
        gevent.sleep(2.0)
        return seen

    assert in_loop(body) == [True]


def test_an_unreferenced_timer_does_not_keep_the_simulation_going():
    with pytest.raises(SimulationStuck):
        run_virtual(lambda: gevent.sleep(1.0, ref=False))

    def body(loop):
        loop.timer(1.0, ref=False).start(lambda: None)
        gevent.sleep(2.0)
        return loop.now()

    assert in_loop(body) == 2.0


def test_cancelled_timers_are_dropped_from_the_heap():
    def body(loop):
        most = 0
        keep = [loop.timer(50.0 + n) for n in range(100)]
        for timer in keep:
            timer.start(lambda: None)
        for _ in range(20_000):
            timer = loop.timer(60.0)
            timer.start(lambda: None)
            timer.stop()
            most = max(most, len(loop._timers))  # noqa: SLF001 - what is kept shows nowhere else
        gevent.sleep(49.5)
        ticks = []
        for timer in keep:
            timer.start(lambda: ticks.append(loop.now()))
        gevent.sleep(200.0)
        return most, ticks

    most, ticks = in_loop(body)
    assert most < 500
    assert ticks == [50.0 + n for n in range(100)]


@pytest.mark.parametrize(("after", "repeat"), [(1.0, -1.0), (float("nan"), 0.0), (1.0, float("nan"))])
def test_a_timer_without_a_meaning_is_refused(after, repeat):
    with pytest.raises(ValueError, match="timer"):
        VirtualLoop().timer(after, repeat)


def test_a_wait_for_an_infinite_time_is_stuck_and_a_past_one_is_now():
    with pytest.raises(SimulationStuck):
        run_virtual(lambda: Event().wait(float("inf")))

    def body():
        gevent.sleep(1.0)
        event = Event()
        gevent.spawn_later(-5.0, event.set)
        event.wait()
        return now()

    assert run_virtual(body) == 1.0


def test_a_tiny_repeat_spends_steps_and_does_not_hang():
    def body():
        current_loop().timer(1.0, repeat=1e-30).start(lambda: None)
        gevent.sleep(2.0)

    with pytest.raises(TooManySteps):
        run_virtual(body, max_steps=1_000)


def test_a_callback_that_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="None"):
        VirtualLoop().timer(1.0).start(None)


def test_a_stopped_callback_does_not_run():
    def body(loop):
        seen = []
        first = loop.run_callback(seen.append, 1)
        second = loop.run_callback(seen.append, 2)
        assert first
        assert first.pending
        first.stop()
        assert not first
        gevent.sleep(0)
        assert not second
        assert not second.pending
        return seen

    assert in_loop(body) == [2]


def test_async_watchers_coalesce_sends_and_do_not_keep_the_simulation_going():
    def body(loop):
        seen = []
        watcher = loop.async_()
        watcher.send()
        watcher.start(seen.append, "sent")
        watcher.send()
        watcher.send_ignoring_arg(None)
        gevent.sleep(0)
        watcher.stop()
        watcher.send()
        gevent.sleep(0)
        return seen

    assert in_loop(body) == ["sent"]
    with pytest.raises(SimulationStuck):
        in_loop(lambda loop: get_hub().wait(loop.async_()))


# -- errors and ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), gevent.GreenletExit()]
)
def test_what_the_function_raises_is_raised_by_the_run(error, capsys):
    def body():
        gevent.sleep(1.0)
        raise error

    with pytest.raises(type(error)) as caught:
        run_virtual(body)
    assert caught.value is error
    assert capsys.readouterr().err == ""


def test_a_failing_greenlet_is_reported_by_the_hub_and_the_rest_goes_on(capsys):
    def fails():
        raise ValueError("lost in a greenlet")

    def body():
        greenlet = gevent.spawn(fails)
        current_loop().run_callback(fails)
        gevent.sleep(1.0)
        return str(greenlet.exception), now()

    assert run_virtual(body) == ("lost in a greenlet", 1.0)
    assert capsys.readouterr().err.count("ValueError: lost in a greenlet") == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_system_error_in_any_greenlet_ends_the_run(error, capsys):
    def fails():
        raise error

    def body():
        gevent.spawn(fails)
        gevent.sleep(1.0)
        return "not reached"

    with pytest.raises(error):
        run_virtual(body)


def test_an_error_of_the_loop_itself_ends_the_run():
    class Broken:
        def randrange(self, stop: int, /) -> int:
            raise KeyboardInterrupt

    def body():
        gevent.joinall([gevent.spawn(gevent.sleep, 1.0) for _ in range(3)])

    with pytest.raises(KeyboardInterrupt):
        run_virtual(body, rng=Broken())


def test_a_function_that_waits_for_nothing_is_stuck_and_says_when():
    def body():
        gevent.sleep(12.5)
        Event().wait()

    with pytest.raises(SimulationStuck, match=r"12\.5"):
        run_virtual(body)


def test_a_function_that_spins_hits_the_step_limit():
    cleaned = []

    def body():
        try:
            while True:
                gevent.sleep(0)
        finally:
            cleaned.append(now())

    with pytest.raises(TooManySteps, match="1,000 steps"):
        run_virtual(body, max_steps=1_000)
    assert cleaned == [0.0]


def test_what_is_left_is_killed_in_virtual_time_in_the_order_of_spawning():
    ended = []

    def left(number):
        try:
            gevent.sleep(1e9)
        finally:
            gevent.sleep(1.0)
            ended.append((number, now()))

    def body():
        for number in range(3):
            gevent.spawn(left, number)
        gevent.spawn_later(100.0, ended.append, "never")
        gevent.sleep(1.0)
        return "done"

    assert run_virtual(body) == "done"
    assert ended == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_what_a_dying_greenlet_spawns_is_killed_too():
    ended = []

    def child():
        try:
            gevent.sleep(1e9)
        finally:
            ended.append("child")

    def parent():
        try:
            gevent.sleep(1e9)
        finally:
            gevent.spawn(child)
            gevent.sleep(0)

    def body():
        gevent.spawn(parent)
        gevent.sleep(0)

    run_virtual(body)
    assert ended == ["child"]


@pytest.mark.parametrize("naps", [0.0, 7.0, None])
def test_a_greenlet_that_refuses_to_die_does_not_keep_the_run(naps, capsys):
    def stubborn():
        while True:
            try:
                Event().wait() if naps is None else gevent.sleep(naps)
            except gevent.GreenletExit:
                if current_loop().destroyed:
                    return

    loop = VirtualLoop()

    def body():
        gevent.spawn(stubborn)
        gevent.sleep(0)
        return "done"

    assert run_on(loop, body) == "done"
    assert loop.destroyed
    capsys.readouterr()


def test_a_loop_runs_once_and_can_be_read_afterwards():
    loop = VirtualLoop()
    run_on(loop, gevent.sleep, 2.0)
    assert (loop.now(), loop.destroyed, loop.exhausted) == (2.0, True, False)
    assert loop.steps >= 2
    with pytest.raises(SimulationError, match="new one"):
        run_on(loop, gevent.sleep, 2.0)


def ends_well():
    gevent.spawn(gevent.sleep, 100.0)
    gevent.sleep(1.0)


def ends_badly():
    gevent.sleep(1.0)
    raise ValueError


def never_ends():
    Event().wait()


def spins():
    while True:
        gevent.sleep(0)


@pytest.mark.parametrize("function", [ends_well, ends_badly, never_ends, spins])
def test_nothing_of_a_simulation_is_kept(function):
    hubs = []
    for _ in range(3):
        with suppress(ValueError, SimulationError):
            run_virtual(lambda: hubs.append(ref(get_hub())) or function(), max_steps=100)
    gc.collect()
    assert [hub() for hub in hubs] == [None, None, None]


def test_a_lock_used_in_a_simulation_works_on_the_real_hub_afterwards():
    lock, event = Semaphore(1), Event()

    def contend():
        def holder():
            with lock:
                gevent.sleep(1.0)

        gevent.joinall([gevent.spawn(holder) for _ in range(3)])
        gevent.spawn(event.set)
        event.wait()
        event.clear()

    run_virtual(contend)
    lock.acquire()
    waiters = [gevent.spawn(lock.acquire), gevent.spawn(event.wait)]
    gevent.sleep(0)
    lock.release()
    event.set()
    assert [waiter.get(timeout=5) for waiter in waiters] == [True, True]


# -- the real world ---------------------------------------------------------------------------------------


def original(module, name):
    return monkey.get_original(module, name)


@pytest.mark.parametrize(
    ("reach", "named"),
    [
        (lambda: socket.create_connection(("127.0.0.1", 1)), "DNS"),
        (lambda: gevent.os.tp_read(0, 1), "thread pool"),
        (lambda: get_hub().threadpool.apply(len, ("x",)), "thread pool"),
        (lambda: ThreadPool(1).apply(len, ("x",)), "thread pool"),
        (lambda: get_hub().resolver, "DNS"),
        (lambda: gevent.signal_handler(10, print), "signal"),
        (lambda: gevent.socket.wait_read(0), "file descriptor"),
        (lambda: os.close(0), "closing a file descriptor"),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=False), "child process"),
        (lambda: get_hub().loop.stat("."), "file"),
        (lambda: current_loop().fork(ref=False), "fork"),
        (lambda: current_loop().prepare(ref=False), "polling"),
        (lambda: current_loop().check(ref=False), "polling"),
        (lambda: run_virtual(len, "x"), "another simulation"),
    ],
)
def test_the_real_world_is_refused_by_name(reach, named):
    with pytest.raises(RealWorldInSimulation, match=named):
        run_virtual(reach)


def test_select_is_refused_by_name():
    ends = os.pipe()
    try:
        with pytest.raises(RealWorldInSimulation, match="file descriptor"):
            run_virtual(gevent.select.select, ends[:1], [], [], 1.0)
    finally:
        for end in ends:
            os.close(end)


def test_a_socket_is_refused_by_name():
    native = original("socket", "socket")()
    try:
        with pytest.raises(RealWorldInSimulation, match="file descriptor"):
            run_virtual(partial(socket.socket, fileno=native.fileno()))
    finally:
        native.detach()


def test_a_callback_from_another_thread_is_refused():
    def body(loop):
        caught = []
        done = original("_thread", "allocate_lock")()
        done.acquire()
        watcher = loop.async_()
        watcher.start(print)

        def intrude():
            for call in (partial(loop.run_callback_threadsafe, print), watcher.send):
                try:
                    call()
                except RealWorldInSimulation as error:
                    caught.append(str(error))
            done.release()

        original("_thread", "start_new_thread")(intrude, ())
        done.acquire()
        loop.run_callback_threadsafe(caught.append, "own thread")
        gevent.sleep(0)
        return caught

    first, second, third = in_loop(body)
    assert "callback from another thread" in first
    assert "send from another thread" in second
    assert third == "own thread"


def test_waiting_for_an_object_of_the_real_hub_is_refused_and_setting_it_works():
    event, lock = Event(), Semaphore(1)
    waiting = gevent.spawn(event.wait)
    lock.acquire()
    gevent.sleep(0)
    for wait in (event.wait, lock.acquire):
        with pytest.raises(RealWorldInSimulation, match="real hub"):
            run_virtual(wait)
    run_virtual(event.set)
    assert waiting.get(timeout=5) is True


def test_a_simulation_runs_in_any_greenlet_and_the_others_stand_still():
    trace = []

    def other():
        for _ in range(3):
            trace.append("other")
            gevent.sleep(0)

    def simulator():
        trace.append(run_virtual(lambda: gevent.sleep(10.0) or "simulated"))

    gevent.joinall([gevent.spawn(other), gevent.spawn(simulator)], timeout=5)
    assert trace == ["other", "simulated", "other", "other"]


def clock_after_a_nap():
    gevent.sleep(5.0)
    return now()


def test_a_simulation_runs_in_a_thread_that_has_no_hub():
    def in_thread():
        assert get_hub_if_exists() is None
        result = run_virtual(clock_after_a_nap)
        assert get_hub_if_exists() is None
        return result

    assert get_hub().threadpool.apply(in_thread) == 5.0


def test_a_real_timer_that_became_due_meanwhile_fires_afterwards():
    fired = Event()
    with get_hub().loop.timer(0.0001) as timer:
        timer.start(fired.set)
        run_virtual(clock_after_a_nap)
        assert fired.wait(5)


# -- the clock --------------------------------------------------------------------------------------------


def test_the_clock_follows_the_loop():
    def body():
        clock = VirtualClock()
        gevent.sleep(2.5)
        return clock.monotonic(), clock.wall(), VirtualClock(current_loop(), epoch=100.0).wall()

    assert run_virtual(body) == (2.5, EPOCH + 2.5, 102.5)


def test_there_is_no_virtual_clock_outside():
    with pytest.raises(SimulationError, match="run_virtual"):
        VirtualClock()


def test_the_hub_and_its_loop_describe_themselves():
    assert "virtual time" in run_virtual(lambda: repr(get_hub()))
