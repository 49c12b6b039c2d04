"""What every actor of one runtime is handed at its start."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pykka
from attrs import define, field

from actors.agents import AgentTable
from actors.config import Limits
from actors.directory import Directory
from actors.errors import RuntimeFailed
from actors.greenlet import GreenletActorRef
from actors.hooks import Hooks
from actors.incidents import Incidents
from actors.limiter import Limiter
from actors.storage import Store
from actors.timelimits import TimeLimit
from actors.timers_known import KnownTimers
from actors.tools import ToolRegistry
from persistence.records import UnfinishedSession
from persistence.sources import Clock, Sources


@define
class Services:
    """The parts of one runtime, wired in one place (`actors.system`)."""

    sources: Sources
    limits: Limits
    store: Store
    agents: AgentTable
    tools: ToolRegistry
    hooks: Hooks
    directory: Directory
    incidents: Incidents
    turn_ids: Iterator[int] = field(factory=lambda: itertools.count(1))
    left_undone: dict[str, deque[UnfinishedSession]] = field(factory=dict)  # to be brought back, by agent
    put_off: list[UnfinishedSession] = field(factory=list)  # could not be brought back, for now
    timers: KnownTimers = field(factory=KnownTimers)
    archives_given: dict[tuple[str, str, str], int] = field(factory=dict)  # by agent, scope and slug
    failed: RuntimeFailed | None = None  # an actor that the runtime cannot do without kept dying
    registry: GreenletActorRef[Any] | None = None  # lasting refs: they follow restarts
    memory: pykka.ActorRef[Any] | None = None
    clock: Clock = field(init=False)  # that of `sources`
    model_calls: Limiter = field(init=False)
    tool_calls: Limiter = field(init=False)
    turn_time: TimeLimit = field(init=False)
    round_time: TimeLimit = field(init=False)
    tool_time: TimeLimit = field(init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.limits
        self.clock = clock = self.sources.clock
        self.model_calls = Limiter(limits.model_calls, clock)
        self.tool_calls = Limiter(limits.tool_calls, clock)
        self.turn_time = TimeLimit("turn_s", limits.turn_s, clock)
        self.round_time = TimeLimit("model_round_s", limits.model_round_s, clock)
        self.tool_time = TimeLimit("tool_call_s", limits.tool_call_s, clock)
