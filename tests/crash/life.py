"""One life of a host: its runtime, and how it says what it is asked for and what it answered.

Everything is said before the call, and what a call returned right after it: what has left the process by then
is what the ledger counts as acknowledged.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from typing import Any, TypeVar

import gevent

from actors.bell import bell
from actors.tools import Tool
from crash.mind import Injecting, Mind, die, noting_tool
from crash.points import HastyCommitter, Point, PointCommitter
from palaver import AgentConfig, Limits, Runtime
from persistence.errors import PalaverError
from persistence.worker import DatabaseWorker

T = TypeVar("T")

PATIENCE_S = 30.0  # a life that takes longer waits for something that never comes
LONGEST_LINE = 4_000  # a write of up to PIPE_BUF bytes arrives whole or not at all
POLL_S = 0.002

AGENTS = (
    AgentConfig(name="solo", model="m", tools=["note", "die"]),
    AgentConfig(name="hive", model="m", tools=["note", "die"], memory_scope="agent", auto_title=False),
    AgentConfig(name="small", model="m", tools=["note", "die"], compact_threshold=60, auto_title=False),
)


def scope_of(agent: str, sender: str) -> str:
    """The scope of memory of a pair."""
    return next(config for config in AGENTS if config.name == agent).scope(sender)


class Voice:
    """Says lines of JSON into a pipe that several processes share."""

    def __init__(self, pipe: int, life: str) -> None:
        self._pipe = pipe
        self._life = life

    def say(self, **facts: object) -> None:
        line = json.dumps({"life": self._life, **facts}).encode() + b"\n"
        assert len(line) <= LONGEST_LINE, line
        os.write(self._pipe, line)


class Life:
    """What the greenlets of one life share: the runtime, the pipe, the seed."""

    def __init__(self, order: dict[str, Any], voice: Voice) -> None:
        self.order = order
        self.name: str = order["life"]
        self.rng = random.Random(f"{order['seed']} {self.name}")
        self.voice = voice
        self._numbers = itertools.count(1)
        self._tools = [noting_tool(self.name, order["notes"]), Tool(die)]
        self.committer = _committer(order)
        self.rt: Runtime

    def open(self) -> bool:
        """Open the file, recover what is in it, and register the agents. True."""
        self.rt = Runtime.open(
            self.order["path"],
            Mind(self.name),
            tools=self._tools,
            hooks=[Injecting()],
            limits=Limits(
                attempts=self.order.get("attempts", 1_000),
                ask_timeout_s=PATIENCE_S,
                passivate_after_s=self.order.get("rests", PATIENCE_S),
            ),
            worker=DatabaseWorker(self.order["path"], notify=bell(), committer=self.committer),
            recover=self.order.get("recover", "run"),
        )
        for agent in AGENTS:
            self.rt.add_agent(agent)
        self.voice.say(e="open", recover=self.order.get("recover", "run"))
        return True

    def next_op(self) -> str:
        """A name for the next call, unlike any other of any life."""
        return f"{self.name}.{next(self._numbers)}"

    def call(
        self,
        do: str,
        function: Callable[[], T],
        reply: Callable[[T], dict[str, Any]],
        *,
        op: str | None = None,
        **facts: Any,
    ) -> T | None:
        """Make a call of the public API, said before and after. None if it raised an error of Palaver's."""
        op = op or self.next_op()
        self.voice.say(e="begin", op=op, do=do, **facts)
        try:
            value = function()
        except PalaverError as error:
            self.voice.say(e="ack", op=op, error=type(error).__name__, words=str(error)[:300])
            return None
        self.voice.say(e="ack", op=op, **reply(value))
        return value

    def settle(self) -> None:
        """Wait until nothing is left to do in the whole file."""
        while self.rt.unfinished() or any(
            info.state != "idle" or info.queued for info in self.rt.list_active()
        ):
            gevent.sleep(POLL_S)  # nothing depends on how long it is

    def shut_down(self, drain: float) -> None:
        """Close the file in good order."""
        self.voice.say(e="shutdown")
        left = self.rt.stats().passivations
        self.rt.shutdown(drain)
        self.voice.say(e="down", reached=dict(self.committer.reached), left=left)


def _committer(order: dict[str, Any]) -> PointCommitter:
    kind = HastyCommitter if order.get("hasty") else PointCommitter
    point = Point(*order["point"]) if order.get("point") else None
    return kind(
        order["path"], point, wal_pages=order.get("wal_pages"), every=order.get("checkpoint_every", 0)
    )
