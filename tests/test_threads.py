"""A runtime belongs to one thread of one process: others are refused, and there is one way in."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from gevent.monkey import get_original
from support import PATIENCE_S, in_thread, run_script, until

from actors.errors import WrongThread
from palaver.threads import Owner, ThreadFuture

native_id = get_original("_thread", "get_ident")
allocate_lock = get_original("_thread", "allocate_lock")


@pytest.fixture(autouse=True)
def patience() -> Any:
    with gevent.Timeout(PATIENCE_S):
        yield


def refusal(owner: Owner) -> str:
    try:
        owner.check()
    except WrongThread as error:
        return str(error)
    return "taken"


def test_the_owner_takes_calls_of_any_greenlet_of_its_thread() -> None:
    owner = Owner()
    assert refusal(owner) == "taken"
    assert gevent.spawn(refusal, owner).get() == "taken"


def test_another_native_thread_is_told_about_from_thread() -> None:
    assert "from_thread" in in_thread(refusal, Owner())


_FORKED = """
from gevent import monkey
monkey.patch_all()
import os
from actors.errors import WrongThread
from palaver.threads import Owner

owner = Owner()
# gevent's own waitpid may miss a child that ends at once
fork, wait = monkey.get_original("os", ["fork", "waitpid"])
pid = fork()
if pid == 0:
    refused = 0
    for call in (owner.check, lambda: owner.run(print)):
        try:
            call()
        except WrongThread as error:
            refused += f"process {os.getppid()}; a forked child must open its own" in str(error)
    os._exit(refused)
print(os.waitstatus_to_exitcode(wait(pid, 0)[1]))
owner.check()
"""


def test_trap_12_a_forked_child_is_told_to_open_its_own() -> None:
    ran = run_script(_FORKED)
    assert (ran.returncode, ran.stdout.strip()) == (0, "2"), ran.stderr


def test_trap_10_a_function_runs_in_the_owners_thread_without_waiting_for_the_hub_to_wake() -> None:
    owner = Owner()
    here = native_id()

    def there() -> tuple[int, bool]:
        future = owner.run(native_id)
        return future.result(timeout=PATIENCE_S), native_id() != here

    assert in_thread(there) == (here, True)


def test_arguments_values_and_errors_are_carried_over() -> None:
    owner = Owner()

    def divide(a: int, *, by: int) -> float:
        return a / by

    assert in_thread(lambda: owner.run(divide, 6, by=3).result(timeout=PATIENCE_S)) == 2
    error = in_thread(lambda: owner.run(divide, 6, by=0).exception(timeout=PATIENCE_S))
    assert isinstance(error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: owner.run(divide, 6, by=0).result(timeout=PATIENCE_S))


@pytest.mark.parametrize("error", [gevent.Timeout(1), gevent.GreenletExit("gone"), BaseException("x")])
def test_errors_that_are_no_exceptions_reach_the_thread_that_waits(error: BaseException) -> None:
    owner = Owner()

    def fail() -> None:
        raise error

    assert in_thread(lambda: owner.run(fail).exception(timeout=PATIENCE_S)) is error


def test_a_function_may_block_in_its_greenlet_and_the_owners_thread_goes_on() -> None:
    owner, go = Owner(), Signal()

    def wait() -> str:
        go.wait()
        return "went"

    futures = in_thread(lambda: [owner.run(wait) for _ in range(10)])
    assert not any(future.done() for future in futures)
    go.set()
    assert in_thread(lambda: [future.result(timeout=PATIENCE_S) for future in futures]) == ["went"] * 10


def test_a_wait_that_times_out_does_not_end_the_call() -> None:
    owner, go = Owner(), Signal()
    future = owner.run(go.wait)

    def wait_a_moment() -> type[BaseException] | None:
        try:
            future.result(timeout=0.01)
        except TimeoutError as error:
            return type(error)
        return None

    assert in_thread(wait_a_moment) is not None
    go.set()
    assert in_thread(lambda: future.result(timeout=PATIENCE_S)) is True


def test_waiting_in_the_owners_own_thread_is_refused_until_the_value_is_there() -> None:
    owner = Owner()
    future = owner.run(lambda: "value")
    with pytest.raises(WrongThread, match="call it directly"):
        future.result()
    with pytest.raises(WrongThread):
        future.exception()
    until(future.done)
    assert future.result() == "value"
    assert future.exception() is None


def test_it_is_a_future_of_concurrent_futures_with_callbacks() -> None:
    owner = Owner()
    called: list[object] = []
    future: ThreadFuture[str] = in_thread(lambda: owner.run(lambda: "value"))
    assert isinstance(future, concurrent.futures.Future)
    future.add_done_callback(lambda done: called.append(done.result()))
    until(lambda: called)
    assert called == ["value"]


def test_a_future_that_is_cancelled_in_time_is_never_run() -> None:
    owner, ran = Owner(), []
    future = owner.run(ran.append, 1)  # it is scheduled, and this greenlet still has the thread
    assert future.cancel() is True
    gevent.idle()
    gevent.idle()
    assert ran == []
    with pytest.raises(concurrent.futures.CancelledError):
        in_thread(lambda: future.result(timeout=PATIENCE_S))


def test_cancelling_wakes_a_thread_that_waits() -> None:
    owner, began = Owner(), allocate_lock()
    began.acquire()
    future = owner.run(lambda: "too late")

    def wait() -> str:
        began.release()
        try:
            return future.result(timeout=PATIENCE_S)
        except concurrent.futures.CancelledError:
            return "cancelled"

    waiting = gevent.get_hub().threadpool.spawn(wait)
    began.acquire()  # without a switch, so that the function cannot run before it is cancelled
    assert future.cancel() is True
    assert waiting.get() == "cancelled"


def test_a_future_that_runs_cannot_be_cancelled() -> None:
    owner, began, go = Owner(), Signal(), Signal()

    def work() -> str:
        began.set()
        go.wait()
        return "done"

    future = owner.run(work)
    began.wait()
    assert future.cancel() is False
    go.set()
    until(future.done)
    assert future.result() == "done"


def test_many_threads_wait_at_once_and_each_gets_its_own_value() -> None:
    owner = Owner()
    pool = gevent.get_hub().threadpool

    def work(number: int) -> list[int]:
        return [owner.run(lambda value: value * 2, number * 100 + n).result(timeout=20) for n in range(100)]

    answers = [pool.spawn(work, number) for number in range(4)]
    gevent.joinall(answers)
    assert [answer.get() for answer in answers] == [
        [2 * (number * 100 + n) for n in range(100)] for number in range(4)
    ]
