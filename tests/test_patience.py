"""What the tests wait with: a test that hangs fails, one on a busy machine does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from gevent import _monitor
from gevent.event import Event
from gevent.monkey import get_original
from support import Hangs, deadline, until
from turns_support import blocking_monitor

SHORT_S = 0.05


def test_what_waits_for_ever_hangs() -> None:
    with pytest.raises(Hangs), deadline(SHORT_S):
        Event().wait()


def test_what_runs_in_circles_hangs() -> None:
    with pytest.raises(Hangs), deadline(SHORT_S):
        until(lambda: False)


def test_a_busy_machine_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def clock() -> float:  # a second for each look, of which this process had a fiftieth
        nonlocal looks
        looks += 1
        return float(looks)

    monkeypatch.setattr("support.time", SimpleNamespace(perf_counter=clock, process_time=lambda: looks / 50))
    with pytest.raises(Hangs), deadline(SHORT_S):
        Event().wait()
    assert looks == 1 + 3  # 0.06 s; by the clock the first look had been enough


def test_the_monitor_looks_however_early_its_thread_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, slept = get_original("_thread", "allocate_lock")(), []
    sleep, start_new_thread = _monitor.thread_sleep, _monitor.start_new_thread
    begun.acquire()

    def sleeps(seconds: float) -> None:
        slept.append(seconds)
        begun.release()
        monkeypatch.setattr(_monitor, "thread_sleep", sleep)

    def starts(*thread: object) -> object:
        started = start_new_thread(*thread)
        begun.acquire()
        return started

    monkeypatch.setattr(_monitor, "thread_sleep", sleeps)
    monkeypatch.setattr(_monitor, "start_new_thread", starts)
    with blocking_monitor(most_s=0.1):
        assert slept == [0.1]
