"""Turns run in greenlets that other turns ran in before, and notice nothing of it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from gevent.local import local

from actors.greenlet import release_idle_workers
from actors.own_turn import TurnRun
from palaver import Chunk, ModelRequest, Reply, ScriptedModel
from tests.turns_support import AGENT, runtime

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="")
LOCAL = local()


class Leaving(ScriptedModel):
    """Leaves something behind in the greenlet of its turn, and notes which that was."""

    def __init__(self, leave: Callable[[], object]) -> None:
        super().__init__()
        self.ran_in: list[Any] = []
        self.seen: list[str] = []
        self.left: list[object] = []
        self._leave = leave

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.purpose == "turn":
            self.ran_in.append(id(gevent.getcurrent()))
            self.seen.append(VARIABLE.get())
            self.left.append(self._leave())
        yield from super().stream(request)


@pytest.fixture(autouse=True)
def _fresh_pool() -> None:
    release_idle_workers()


def _three_turns(model: Leaving) -> None:
    with runtime(":memory:", model) as rt:
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        for n in range(3):
            assert rt.send(cid, f"{n}").text == f"{n}"


def test_turns_one_after_the_other_run_in_one_greenlet() -> None:
    model = Leaving(lambda: None)
    _three_turns(model)
    assert len(set(model.ran_in)) == 1


def _start_timeout() -> gevent.Timeout:
    return gevent.Timeout.start_new(1_000)


def _set_local() -> object:
    found, LOCAL.value = getattr(LOCAL, "value", None), "left"
    return found


def test_tool_calls_one_after_the_other_run_in_one_greenlet() -> None:
    ran_in: list[int] = []

    def look() -> str:
        ran_in.append(id(gevent.getcurrent()))
        return "seen"

    model = ScriptedModel([reply for _ in range(5) for reply in (Reply(tool_calls=[("look", {})]), "done")])
    with runtime(":memory:", model, tools=[look]) as rt:
        cid = rt.get_or_create(AGENT, "alice")
        for _ in range(5):
            assert rt.send(cid, "look").text == "done"
    assert len(ran_in) == 5
    assert len(set(ran_in)) == 1


@pytest.mark.parametrize("leave", [_start_timeout, gevent.getcurrent, _set_local])
def test_a_greenlet_in_which_a_model_left_something_is_not_used_again(leave: Callable[[], object]) -> None:
    model = Leaving(leave)
    _three_turns(model)
    assert leave is _set_local or len(set(model.ran_in)) == 3  # all are still there: ids of their own
    for left in model.left:
        if isinstance(left, gevent.Timeout):
            left.cancel()
        assert left is None or model.left.count(left) == 1


def test_a_context_variable_of_one_turn_is_not_seen_by_the_next() -> None:
    model = Leaving(lambda: VARIABLE.set("left").var)
    _three_turns(model)
    assert model.seen == [""] * 3


def test_what_is_killed_before_it_begins_never_does() -> None:
    ran: list[str] = []
    runs = [TurnRun(1, lambda: ran.append("killed")), TurnRun(1, lambda: ran.append("not killed"))]
    runs[0].kill()
    assert not runs[0].over().is_set()
    gevent.wait([run.over() for run in runs])
    assert ran == ["not killed"]


def test_a_kill_that_comes_after_the_end_reaches_nobody() -> None:
    ended, ran = gevent.event.Event(), []
    first = TurnRun(1, ended.set)
    ended.wait()
    first.kill()
    second = TurnRun(2, lambda: ran.append(gevent.sleep(0)))
    second.over().wait()
    assert first.over().is_set()
    assert ran == [None]


def test_a_switch_that_comes_after_the_end_of_a_turns_greenlet_reaches_nobody() -> None:
    late = gevent.get_hub().loop.async_()
    first = TurnRun(1, lambda: late.start(gevent.getcurrent().switch))
    first.over().wait()
    TurnRun(2, lambda: None).over().wait()  # what is left in the first one's greenlet has ended it
    waited = gevent.event.Event()
    gevent.spawn_later(0, late.send)
    assert not waited.wait(0.02)
    late.close()
