"""A steer that is stored after its turn has ended, commit by commit: the file says that one turn runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from turns_support import AGENT, Held, HeldModel, all_states, let_run

from palaver import AgentConfig, Runtime, Ticket
from persistence.inline import InlineWorker

SHORT_S = 5.0


class Stepped:
    """A runtime whose database does its next bit of work when the test says so."""

    def __init__(self, path: Path) -> None:
        self.model = HeldModel()
        self._steps: list[Callable[[], None]] = []
        self._worker = InlineWorker(path, schedule=lambda _seconds, function: self._steps.append(function))
        self.rt: Runtime = self.finish(self.begin(Runtime.open, path, self.model, worker=self._worker))
        self.rt.add_agent(AgentConfig(name=AGENT, auto_title=False))

    def commit(self) -> None:
        """Store what waits, and deliver the answers; what they bring about has happened when it returns."""
        for _ in range(2):
            self._steps.pop(0)()
        let_run()

    def begin(self, call: Callable[..., Any], *args: Any, **named: Any) -> gevent.Greenlet:
        """Make a call in a greenlet, as far as it gets."""
        greenlet = gevent.spawn(call, *args, **named)
        let_run()
        return greenlet

    def finish(self, call: gevent.Greenlet) -> Any:
        """Let the database work until a call returns; its value."""
        while not call.ready():
            self.commit()
        return call.get()

    def asked(self) -> Held:
        """The model's next request; the database works until there is one."""
        while self.model.idle:
            self.commit()
        return self.model.next()

    def states(self) -> list[str]:
        """The states of all turns in the file, by id."""
        return list(self._worker.call(all_states).values())

    def close(self) -> None:
        self.finish(self.begin(self.rt.shutdown, drain=0))


@pytest.fixture(name="stepped")
def one_stepped(tmp_path: Path) -> Iterator[Stepped]:
    stepped = Stepped(tmp_path / "agents.db")
    yield stepped
    stepped.close()


def test_a_steer_that_comes_back_runs_after_a_keyed_message_that_is_stored_as_running(
    stepped: Stepped,
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
    keyed = stepped.begin(rt.submit, cid, "keyed", key="k")  # nothing runs, so it is stored as running
    stepped.commit()
    tickets: list[Ticket] = [stepped.finish(keyed), stepped.finish(steering)]

    ran = []
    for ticket in tickets:
        held = stepped.asked()
        assert stepped.states().count("running") == 1
        ran.append(held.request.messages[-1]["content"])
        held.say("done")
        stepped.finish(stepped.begin(ticket.result))
    assert ran == ["keyed", "late"]
