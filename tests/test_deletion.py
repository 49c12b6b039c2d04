"""Deleting sessions: nothing brings one back, whatever runs, opens or closes meanwhile."""

from __future__ import annotations

from functools import partial

import gevent
import pytest
from support import Runtimes, handle_of, opened_runtimes, topic, until
from turns_support import HeldModel, let_run, race

from palaver import (
    ConversationClosed,
    ConversationNotFound,
    Reply,
    Runtime,
    ScriptedModel,
    SessionNotFound,
    StorageError,
)
from persistence import sessions
from persistence.verify import verify

__all__ = ["opened_runtimes"]


def test_a_turn_that_runs_when_its_session_is_deleted_is_cancelled_and_nothing_comes_back(
    runtimes: Runtimes,
) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    running, waiting = rt.submit(cid, "one"), rt.submit(cid, "two")
    held = model.next()
    assert rt.delete_session(handle) is True
    assert held.killed
    assert (running.state, waiting.state) == ("cancelled", "closed")
    assert rt.sessions() == []
    assert rt.conversation(cid) is None
    with pytest.raises(SessionNotFound):
        rt.transcript(handle)
    assert rt.delete_session(handle) is False
    assert runtimes.worker(rt).call(verify) == []


def test_a_session_that_vanishes_under_its_turn_cannot_be_brought_back_by_it(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    ticket = rt.submit(cid, "one")
    held = model.next()
    # As by somebody who does not ask the registry.
    assert runtimes.worker(rt).call(partial(sessions.delete_session, handle=handle))
    held.say("done")
    with pytest.raises(StorageError):
        ticket.result()
    with pytest.raises(StorageError):
        rt.send(cid, "two")
    assert rt.sessions() == []
    assert runtimes.sql(rt, "SELECT count(*) FROM turns") == [(0,)]
    assert runtimes.sql(rt, "SELECT count(*) FROM entries") == [(0,)]
    assert runtimes.worker(rt).call(verify) == []


def test_who_opens_the_topic_while_its_session_is_deleted_gets_a_new_one(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    rt.submit(cid, "old")
    model.next()
    deleting = gevent.spawn(rt.delete_session, handle)
    gevent.sleep(0)
    outcome = rt.switch_topic("crab", "alice", "work", "again")
    assert deleting.get() is True
    assert outcome.resumed is False
    assert handle_of(rt, outcome.conversation_id) != handle
    ticket = rt.submit(outcome.conversation_id, "new")
    model.next().say("fine")
    assert ticket.result().text == "fine"
    assert [session.handle for session in rt.sessions()] == [handle_of(rt, outcome.conversation_id)]


def test_a_delete_that_finds_a_draining_conversation_does_not_wait_for_its_turn(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    handle = handle_of(rt, cid)
    ticket = rt.submit(cid, "one")
    held = model.next()
    closing = gevent.spawn(rt.close, cid)
    let_run()
    assert rt.delete_session(handle) is True
    assert held.killed
    assert closing.get() is True
    assert ticket.state == "cancelled"
    assert rt.sessions() == []


def test_a_session_of_an_agent_that_nobody_registered_can_be_deleted(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.send(topic(rt), "hello")
    handle = rt.sessions()[0].handle
    again = runtimes.reopen(rt, agents=())
    assert again.delete_session(handle) is True
    assert again.sessions() == []


def test_a_tool_can_delete_the_session_that_it_runs_in(runtimes: Runtimes) -> None:
    runtime: list[Runtime] = []

    def forget_all() -> str:
        (only,) = runtime[0].sessions()
        return str(runtime[0].delete_session(only.handle))

    rt = runtimes.open(ScriptedModel([Reply(tool_calls=[("forget_all", {})]), "never"]), tools=[forget_all])
    runtime.append(rt)
    result = rt.send(topic(rt), "forget all of this")
    assert result.stop_reason == "cancelled"
    until(lambda: not rt.sessions() and rt.conversation_count() == 0)


@pytest.mark.parametrize("seed", range(20))
def test_deletes_switches_sends_and_closes_at_once_leave_a_sound_file(runtimes: Runtimes, seed: int) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    handle = handle_of(rt, cid)
    outcomes = race(
        [
            partial(rt.delete_session, handle),
            partial(rt.send, cid, "one"),
            lambda: rt.switch_topic("crab", "alice", "work", "again"),
            partial(rt.delete_session, handle),
            partial(rt.load, handle),
            partial(rt.close, cid),
            lambda: rt.send(topic(rt), "two"),
        ],
        seed=seed,
    )
    assert [outcomes[0], outcomes[3]].count(True) == 1
    late = ConversationClosed | ConversationNotFound | SessionNotFound
    assert [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, late)] == []
    stored = {session.handle for session in rt.sessions()}
    assert handle not in stored
    for state in [rt.conversation(live) for live in rt.conversations()]:
        assert state is not None
        assert state.handle in stored
    assert rt.send(topic(rt), "three").text == "three"
    assert runtimes.worker(rt).call(verify) == []
