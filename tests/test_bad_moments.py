"""Messages that come at a bad moment, commit by commit: at most one turn runs, in the file too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from turns_support import AGENT, Held, HeldModel, all_states, let_run

from palaver import AgentConfig, HistoryEntry, Runtime, Ticket
from persistence.inline import InlineWorker

SHORT_S = 5.0
MOST_COMMITS = 100


class Stepped:
    """A runtime whose database does its next bit of work when the test says so."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.model = HeldModel()
        self._steps: list[Callable[[], None]] = []
        self._worker = InlineWorker(path, schedule=lambda _seconds, function: self._steps.append(function))
        self.rt: Runtime = self.finish(
            self.begin(Runtime.open, path, self.model, worker=self._worker, **options)
        )
        self.rt.add_agent(AgentConfig(name=AGENT, auto_title=False))

    def commit(self) -> None:
        """Store what waits, and deliver the answers; what they bring about has happened when it returns."""
        for _ in range(2):
            if self._steps:
                self._steps.pop(0)()
        let_run()

    def step(self) -> None:
        """Store what waits."""
        self._steps.pop(0)()

    def begin(self, call: Callable[..., Any], *args: Any, **named: Any) -> gevent.Greenlet:
        """Make a call in a greenlet, as far as it gets."""
        greenlet = gevent.spawn(call, *args, **named)
        let_run()
        return greenlet

    def finish(self, call: gevent.Greenlet) -> Any:
        """Let the database work until a call returns; its value."""
        self._work_until(call.ready)
        return call.get()

    def asked(self) -> Held:
        """The model's next request; the database works until there is one."""
        let_run()
        self._work_until(lambda: not self.model.idle)
        return self.model.next()

    def _work_until(self, fact: Callable[[], bool]) -> None:
        for _ in range(MOST_COMMITS):
            if fact():
                return
            self.commit()
        pytest.fail("what is waited for never comes")

    def states(self) -> list[str]:
        """The states of all turns in the file, by id."""
        return list(self._worker.call(all_states).values())

    def history(self, cid: int) -> Sequence[HistoryEntry]:
        """The live history of a conversation."""
        shown = self.rt.conversation(cid)
        assert shown is not None
        return shown.history

    def kill(self) -> None:
        """As if the process were killed."""
        self._worker.abandon()

    def close(self) -> None:
        self.finish(self.begin(self.rt.shutdown, drain=0))


@pytest.fixture(name="stepped")
def one_stepped(tmp_path: Path) -> Iterator[Stepped]:
    stepped = Stepped(tmp_path / "agents.db")
    yield stepped
    stepped.close()


@pytest.mark.parametrize("key", [None, "k"])
def test_a_steer_that_is_stored_after_its_turn_has_ended_is_what_runs_next(
    stepped: Stepped, key: str | None
) -> None:
    rt, model = stepped.rt, stepped.model
    opening = stepped.begin(rt.switch_topic, AGENT, "alice", "work", description="d")
    cid = stepped.finish(opening).conversation_id

    first = stepped.begin(rt.submit, cid, "first")
    model.next().say("done")
    let_run()
    steering = stepped.begin(rt.steer, cid, "late")  # the turn has ended, and is not stored yet
    stepped.commit()  # the turn and its end; from now on the steer is on its way
    assert first.get(timeout=SHORT_S).state == "done"
    following = stepped.begin(rt.submit, cid, "next", key=key)  # nothing runs
    stepped.commit()
    tickets: list[Ticket] = [stepped.finish(steering), stepped.finish(following)]

    ran = []
    for ticket in tickets:
        held = stepped.asked()
        assert stepped.states().count("running") == 1
        ran.append(held.request.messages[-1]["content"])
        held.say("done")
        stepped.finish(stepped.begin(ticket.result))
    assert ran == ["late", "next"]


def test_a_queued_turn_does_not_begin_before_a_steer_that_is_on_its_way(stepped: Stepped) -> None:
    rt, model = stepped.rt, stepped.model
    opening = stepped.begin(rt.switch_topic, AGENT, "alice", "work", description="d")
    cid = stepped.finish(opening).conversation_id
    stepped.finish(stepped.begin(rt.submit, cid, "first"))
    stepped.finish(stepped.begin(rt.submit, cid, "queued"))
    held = model.next()
    held.say("done")
    let_run()
    stepped.step()  # the end is committed, and not told yet
    steering = stepped.begin(rt.steer, cid, "late")
    stepped.finish(steering)
    assert stepped.asked().request.messages[-1]["content"] == "late"


def test_an_interrupt_during_the_opening_cancels_the_turn_that_is_brought_back(
    tmp_path: Path,
) -> None:
    before = Stepped(tmp_path / "agents.db", tools=[note])
    opening = before.begin(before.rt.switch_topic, AGENT, "alice", "work", description="d")
    before.finish(before.begin(before.rt.submit, before.finish(opening).conversation_id, "begun"))
    before.asked().say(tool_calls=[("note", {})])
    before.asked()  # so the first step is stored
    before.kill()
    stepped = Stepped(tmp_path / "agents.db", tools=[note])
    (info,) = stepped.rt.list_active()
    assert info.state == "opening"
    interrupting = stepped.begin(stepped.rt.submit, info.id, "now", on_busy="interrupt")
    model = stepped.model
    while (held := stepped.asked()).request.messages[-1]["content"] != "now":
        let_run()  # the turn that is brought back asks again before it is cancelled
    assert model.idle
    assert stepped.states() == ["cancelled", "running"]
    held.say("done")
    ticket = stepped.finish(interrupting)
    assert stepped.finish(stepped.begin(ticket.result)).text == "done"
    assert [entry.content for entry in stepped.history(info.id)] == ["begun", "", "noted", "now", "done"]
    stepped.close()


def note() -> str:
    """A tool that does nothing."""
    return "noted"
