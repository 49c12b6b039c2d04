"""What tests of timers share: a runtime on virtual time that may be killed, and a clock that can jump."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.event import Event as Signal
from turns_support import AGENT, in_file, services

from palaver import AgentConfig, Runtime, ScriptedModel
from palaver.simulation.loop import EPOCH, VirtualClock, run_virtual
from persistence import turns
from persistence.committer import Committer
from persistence.inline import InlineWorker
from persistence.sources import Sources
from persistence.verify import verify

T = TypeVar("T")
HOUR = 3_600.0
DAY = 86_400.0
CRAB = AgentConfig(name=AGENT, auto_title=False)


class JumpingClock:
    """Virtual time, with a wall clock that can be set."""

    def __init__(self, later: float = 0.0) -> None:
        self._virtual = VirtualClock(epoch=EPOCH + later)
        self.ahead = 0.0
        self.monotonic = self._virtual.monotonic

    def wall(self) -> float:
        return self._virtual.wall() + self.ahead


def on_virtual_time(
    body: Callable[..., T],
    path: Path | str = ":memory:",
    model: Any = None,
    *,
    agents: tuple[AgentConfig, ...] = (CRAB,),
    later: float = 0.0,
    committer: Committer | None = None,
    latency: float = 0.0,
    killed: bool = False,
    **options: Any,
) -> T:
    """The value of `body(rt)` in a simulation.

    Args:
        later: seconds after the usual beginning, for a second life of a file.
        latency: seconds that a commit takes.
        killed: whether the process is killed at its end, instead of being shut down.
    """

    def run() -> T:
        rt, worker = opened(path, model, later=later, committer=committer, latency=latency, **options)
        for agent in agents:
            rt.add_agent(agent)
        value = body(rt)
        if killed:
            worker.abandon()
            return value
        assert services(rt).store.call(verify) == []
        rt.shutdown()
        return value

    return run_virtual(run)


def opened(
    path: Path | str = ":memory:",
    model: Any = None,
    *,
    later: float = 0.0,
    committer: Committer | None = None,
    latency: float = 0.0,
    **options: Any,
) -> tuple[Runtime, InlineWorker]:
    """A runtime in the simulation that runs, and the worker of its database."""
    worker = InlineWorker(
        path, schedule=gevent.spawn_later, committer=committer, commit_latency=lambda: latency
    )
    sources = Sources(JumpingClock(later))
    return Runtime.open(path, model or ScriptedModel(), worker=worker, sources=sources, **options), worker


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)


def at(rt: Runtime) -> float:
    """Seconds of wall time since the usual beginning."""
    return services(rt).clock.wall() - EPOCH


def topic(rt: Runtime, title: str = "work", sender: str = "alice", agent: str = AGENT) -> int:
    """The id of a topic conversation, opened if need be."""
    return rt.switch_topic(agent, sender, title, "about it").conversation_id


def handle_of(rt: Runtime, cid: int) -> str:
    shown = rt.conversation(cid)
    assert shown is not None
    assert shown.handle is not None
    return shown.handle


def said(rt: Runtime, cid: int) -> list[str]:
    """What users have said in a live conversation."""
    shown = rt.conversation(cid)
    assert shown is not None
    return [entry.content for entry in shown.history if entry.role == "user"]


def came(rt: Runtime, handle: str) -> list[tuple[str, float]]:
    """Each message of a session, and when it was accepted, in seconds since the usual beginning."""
    return [(row.content, row.accepted_at - EPOCH) for row in rt.turns(handle)]


def messages_in(path: Path, handle: str) -> list[str]:
    """Each message of a session of a closed file, and that it is sound."""
    assert in_file(path, verify) == []
    return [row.content for row in in_file(path, partial(turns.turns_of_handle, handle=handle))]
