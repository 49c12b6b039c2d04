"""What nothing had noticed, or only checks with many processes, when bugs were planted (`tests/planted`).

Each test says at once that something is wrong: none waits until its time is over.
"""

from __future__ import annotations

import gevent
from support import Runtimes, handle_of, opened_runtimes, topic
from turns_support import HeldModel, let_run, services

__all__ = ["opened_runtimes"]

SHORT_S = 5.0  # for what is there at once, or never


def test_steers_that_a_turn_did_not_come_to_are_queued_when_it_ends(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    running = rt.submit(cid, "one")
    held = model.next()
    steers = [rt.steer(cid, "left"), rt.steer(cid, "over")]
    held.say("done")
    assert running.result(SHORT_S).text == "done"
    assert rt.tickets(cid) == steers
    stored = [(row.content, row.state) for row in rt.turns(handle_of(rt, cid))]
    assert [content for content, _ in stored] == ["one", "left", "over"]
    assert stored[2] == ("over", "queued")


def test_a_steer_that_is_stored_while_its_turn_ends_is_not_forgotten(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    running = rt.submit(cid, "one")
    held = model.next()
    with runtimes.held_database(rt):
        steering = gevent.spawn(rt.steer, cid, "just too late")
        let_run()
        held.say("done")
        let_run()
    steer = steering.get(timeout=SHORT_S)
    assert running.result(SHORT_S).text == "done"
    assert rt.tickets(cid) == [steer]
    model.next().say("heard")
    assert steer.result(SHORT_S).text == "heard"


def test_a_steer_is_marked_as_applied_by_the_step_that_it_entered(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model, tools=[note])
    cid = topic(rt)
    running = rt.submit(cid, "one")
    held = model.next()
    rt.steer(cid, "by the way")
    held.say(tool_calls=[("note", {})])
    model.next().say(tool_calls=[("note", {})])
    held = model.next()  # the step with the steer is stored: after a crash, the steer is not to be run again
    assert runtimes.sql(rt, "SELECT content, applied_turn FROM steers") == [("by the way", running.turn_id)]
    held.say("done")
    assert running.result(SHORT_S).text == "done"


def test_no_tool_is_called_before_its_message_is_accepted(runtimes: Runtimes) -> None:
    model = HeldModel()
    called: list[str] = []

    def act() -> str:
        called.append("act")
        return "done"

    rt = runtimes.open(model, tools=[act])
    cid = topic(rt)
    with runtimes.held_database(rt):
        accepting = gevent.spawn(rt.submit, cid, "go")
        model.next().say(tool_calls=[("act", {})])
        let_run()
        assert called == []
        assert not accepting.ready()
    model.next().say("done")
    assert accepting.get(timeout=SHORT_S).result(SHORT_S).text == "done"
    assert called == ["act"]


def test_a_close_is_acknowledged_when_the_end_of_a_message_that_just_came_is_stored(
    runtimes: Runtimes,
) -> None:
    rt = runtimes.open(HeldModel())
    cid = topic(rt)
    handle = handle_of(rt, cid)
    with runtimes.held_database(rt):
        accepting = gevent.spawn(rt.submit, cid, "just in time", key="k")
        let_run()
        closing = gevent.spawn(rt.close, cid)
        let_run()
    assert closing.get(timeout=SHORT_S) is True
    assert [row.state for row in rt.turns(handle)] == ["closed"]
    assert accepting.get(timeout=SHORT_S).state == "closed"


def test_whoever_waits_for_the_database_is_answered_when_the_conversation_died(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    running = rt.submit(cid, "one")
    model.next()
    with runtimes.held_database(rt):
        steering = gevent.spawn(rt.steer, cid, "on its way")
        let_run()
        ref = services(rt).directory.conversations[cid].ref
        assert ref is not None
        ref.tell(object())
        let_run()
    model.next().say("done")  # for its next life
    assert running.result(SHORT_S).text == "done"
    assert steering.ready()  # no reader of its ticket has to wait for that
    model.next().say("heard")
    assert steering.get().result(SHORT_S).text == "heard"


def note() -> str:
    """A tool that does nothing."""
    return "noted"
