"""A turn's end that could not be stored: what its caller was told becomes what the file says."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import Runtimes, handle_of, opened_runtimes, topic, until
from turns_support import HeldModel, let_run

from actors import conversation_core
from palaver import Runtime, StorageError
from palaver.simulation.checks.births import Births
from persistence.committer import Committer, Item
from persistence.verify import verify
from persistence.writes import WriteSet

__all__ = ["opened_runtimes"]


class FullForEnds(Committer):
    """A disk that has no room for the ends of turns, as often as it is told."""

    times = 0

    def _run(self, batch: Sequence[Item]) -> None:
        self._batch = batch
        super()._run(batch)

    def _commit(self, db: Any) -> None:
        if self.times and any(ends(item.work) for item in self._batch):
            self.times -= len(self._batch) == 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super()._commit(db)


def ends(work: Any) -> bool:
    return isinstance(work, WriteSet) and any(update.result is not None for update in work.turn_updates)


def opened(runtimes: Runtimes, model: HeldModel) -> tuple[Runtime, FullForEnds]:
    made: list[FullForEnds] = []

    def committer(path: Path | str) -> FullForEnds:
        made.append(FullForEnds(path))
        return made[0]

    return runtimes.open(model, committer=committer), made[0]


def states(rt: Runtime, handle: str) -> list[tuple[str, str]]:
    return [(row.content, row.state) for row in rt.turns(handle)]


def test_the_next_write_says_that_the_turn_failed(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt, committer = opened(runtimes, model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    ticket = rt.submit(cid, "one")
    held = model.next()
    committer.times = 1
    held.say("lost")
    with pytest.raises(StorageError):
        ticket.result()
    assert states(rt, handle) == [("one", "running")]
    later = rt.submit(cid, "two")
    assert states(rt, handle) == [("one", "failed"), ("two", "running")]
    model.next().say("fine")
    assert later.result().text == "fine"
    (row, _) = rt.turns(handle)
    assert row.result is not None
    assert "could not be stored" in (row.result.error or "")
    assert [entry.content for entry in rt.transcript(handle)] == ["two", "fine"]
    assert runtimes.worker(rt).call(verify) == []
    again = runtimes.reopen(rt)
    assert again.unfinished() == []


def test_steers_of_an_end_that_could_not_be_stored_fail_with_it_in_the_file_too(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt, committer = opened(runtimes, model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    rt.submit(cid, "one")
    held = model.next()
    steer = rt.steer(cid, "left over")
    committer.times = 1
    held.say("lost")
    with pytest.raises(StorageError):
        steer.result()
    rt.submit(cid, "two")
    assert states(rt, handle) == [("one", "failed"), ("left over", "failed"), ("two", "running")]
    model.next().say("fine")
    rt.close(cid)
    assert rt.unfinished() == []


@pytest.mark.parametrize("failures", [1, 2])
def test_a_close_tries_once_more_to_store_what_is_missing(runtimes: Runtimes, failures: int) -> None:
    model = HeldModel()
    rt, committer = opened(runtimes, model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    ticket = rt.submit(cid, "one")
    held = model.next()
    committer.times = failures
    held.say("lost")
    with pytest.raises(StorageError):
        ticket.result()
    let_run()
    if failures == 1:
        assert rt.close(cid) is True
        assert states(rt, handle) == [("one", "failed")]
        return
    with pytest.raises(StorageError, match="go on when the topic is opened again"):
        rt.close(cid)
    assert [session.handle for session in rt.unfinished()] == [handle]
    assert rt.recover() == 1
    model.next().say("now")
    assert rt.close(topic(rt)) is True
    assert states(rt, handle) == [("one", "done")]


def test_an_idle_conversation_tries_again_after_a_while(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation_core, "PAY_AGAIN_S", 0.01)
    model = HeldModel()
    rt, committer = opened(runtimes, model)
    cid = topic(rt)
    rt.submit(cid, "one")
    held = model.next()
    committer.times = 3
    held.say("lost")
    until(lambda: states(rt, handle_of(rt, cid)) == [("one", "failed")])
    assert committer.times == 0


def test_a_shutdown_stores_what_is_owed(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt, committer = opened(runtimes, model)
    ticket = rt.submit(topic(rt), "one")
    held, births = model.next(), Births()
    committer.times = 1
    with births.noted():
        held.say("lost")
        with pytest.raises(StorageError):
            ticket.result()
        let_run()
        assert [left for left in births.left([]) if "PayOwed" in left]  # would try again after a while
        rt.shutdown()
    let_run()
    assert births.left([]) == []
    assert runtimes.open(HeldModel(), path=rt.path).unfinished() == []
