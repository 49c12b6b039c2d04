"""Whether a runtime is alive and ready, as probes are told."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent.event import Event as Signal
from support import PuppetModel, Runtimes, in_thread, opened_runtimes, topic, until
from turns_support import services

from actors.config import Limits
from palaver import DatabaseFailed, Health, StorageError, WrongThread
from palaver.health import live, ready
from persistence.worker import Committer

__all__ = ["opened_runtimes"]


def test_a_runtime_that_is_open_is_alive_and_ready(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    assert live(rt) == ready(rt) == Health(True)


def test_a_runtime_that_drains_is_alive_and_not_ready(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    rt.submit(topic(rt), "hello")
    asked = model.asked()
    down = gevent.spawn(rt.shutdown)
    until(lambda: rt.stats().closing_down)
    assert live(rt).ok
    assert ready(rt) == Health(False, ("the runtime is shutting down or closed",))
    asked.answer()
    down.get()
    assert live(rt).ok
    assert not ready(rt).ok


def test_a_runtime_whose_bound_is_reached_is_not_ready_until_a_turn_ends(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, limits=Limits(queued_total=2))
    cid = topic(rt)
    rt.submit(cid, "one")
    asked = model.asked()
    assert ready(rt).ok
    rt.submit(cid, "two")
    assert live(rt).ok
    (reason,) = ready(rt).reasons
    assert "limits.queued_total" in reason
    asked.answer()
    model.asked()
    assert ready(rt).ok


class FailingCommitter(Committer):
    fails = False

    def _commit(self, db: object) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        super()._commit(db)  # type: ignore[arg-type]  # a Database


def test_a_runtime_whose_database_failed_is_neither_alive_nor_ready(runtimes: Runtimes) -> None:
    made: list[FailingCommitter] = []

    def committer(path: Path | str) -> Committer:
        made.append(FailingCommitter(path))
        return made[-1]

    failed = Signal()
    rt = runtimes.open(committer=committer, on_failure=lambda _error: failed.set())
    cid = topic(rt)
    made[0].fails = True
    with pytest.raises((DatabaseFailed, StorageError)):
        rt.send(cid, "hello")
    failed.wait()
    for health in (live(rt), ready(rt)):
        assert not health.ok
        assert "Input/output error" in health.reasons[0]


@pytest.mark.parametrize("name", ["registry", "memory"])
def test_a_runtime_without_one_of_its_actors_is_alive_and_not_ready(name: str, runtimes: Runtimes) -> None:
    rt = runtimes.open()
    parts = services(rt)
    ref = getattr(parts, name)
    setattr(parts, name, None)  # as while it is being started again
    assert live(rt).ok
    assert ready(rt) == Health(False, (f"the {name} actor is not there",))
    setattr(parts, name, ref)
    assert ready(rt).ok


def test_health_is_asked_in_the_runtimes_thread_or_through_it(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(WrongThread):
        in_thread(live, rt)
    assert in_thread(lambda: rt.from_thread(live, rt).result(timeout=10)) == Health(True)


def test_looking_changes_nothing(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    topic(rt)
    rt.sessions()  # behind what opening left to the database's thread, the reading of timers
    before = (rt.stats().commits, rt.stats().database_jobs, rt.list_active())
    for _ in range(10):
        assert live(rt).ok
        assert ready(rt).ok
    after = (rt.stats().commits, rt.stats().database_jobs, rt.list_active())
    assert [info.state for info in after[2]] == [info.state for info in before[2]]
    assert after[:2] == before[:2]
