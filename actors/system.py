"""Where the parts of one runtime are made and wired: the database, the actors, what they share."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pykka

from actors.agents import AgentTable
from actors.builtin_tools import builtin_tools
from actors.config import Limits
from actors.directory import Directory
from actors.hooks import Hooks
from actors.incidents import Incidents
from actors.memory import MemoryActor
from actors.models.base import Model
from actors.registry import RegistryActor
from actors.services import Services
from actors.storage import Store, Worker
from actors.supervisor import StartChild, StopChildren, Supervisor
from actors.tools import Tool, ToolRegistry
from persistence import recovery, sessions
from persistence.errors import DatabaseFailed
from persistence.sources import Sources

logger = logging.getLogger("palaver.system")

Recover = Literal["run", "hold", "fail"]
GIVEN_UP = "not run: the process that accepted it ended first, and its unfinished messages were given up"


def give_up(services: Services, handles: Sequence[str]) -> int:
    """End the unfinished messages of these sessions as `failed`; their number. Blocks the greenlet."""
    job = partial(
        recovery.fail_unfinished,
        handles=handles,
        reason=GIVEN_UP,
        at=services.clock.wall(),
    )
    return services.store.call(job)


class System:
    """One database, one tree of actors: supervisor, memory, registry, and the registry's conversations."""

    def __init__(self, services: Services, supervisor: pykka.ActorRef[Supervisor]) -> None:
        self.services = services
        self.supervisor = supervisor

    @classmethod
    def start(
        cls,
        worker: Worker,
        models: Model | Mapping[str, Model],
        *,
        tools: Iterable[Tool],
        hooks: Iterable[object],
        limits: Limits,
        sources: Sources,
        recover: Recover = "run",
        on_failure: Callable[[DatabaseFailed], object] | None = None,
    ) -> System:
        """Open the database and start the actors, in order. Blocks the calling greenlet.

        Args:
            recover: what becomes of messages that an earlier process accepted and did not end.

        Raises:
            InvalidConfig: a tool's name is taken twice, a hook has no known method.
            DatabaseInUse, StorageError: as opening the file raises; nothing is left running.
        """
        store = Store(worker, on_failure)
        services = Services(
            sources=sources,
            limits=limits,
            store=store,
            agents=AgentTable(models, registry := ToolRegistry(tools)),
            tools=registry,
            hooks=(joined := Hooks(hooks)),
            directory=(directory := Directory(limits, sources.clock)),
            incidents=Incidents(directory, joined),
        )
        for tool in builtin_tools(services):
            registry.add(tool)
        store.start()
        try:
            services.turn_ids = itertools.count(max(store.call(sessions.highest_ids)) + 1)
            cls._recover(services, recover)
            return cls(services, cls._start_actors(services))
        except BaseException:
            store.stop()
            raise

    @staticmethod
    def _recover(services: Services, recover: Recover) -> None:
        """End what was left undone, or keep it for when its agent is registered."""
        if recover == "hold":
            return
        left = services.store.call(recovery.unfinished_sessions)
        if recover == "fail":
            give_up(services, [session.handle for session in left])
            return
        for session in left:
            services.left_undone.setdefault(session.agent, deque()).append(session)

    @staticmethod
    def _start_actors(services: Services) -> pykka.ActorRef[Any]:
        supervisor = Supervisor.start()

        def start(name: str, child: type[MemoryActor | RegistryActor]) -> pykka.ActorRef[Any]:
            request = StartChild(name, partial(child.start, services, supervisor))
            timeout = services.limits.ask_timeout_s
            ref: pykka.ActorRef[Any] = supervisor.ask(request, block=True, timeout=timeout)
            return ref

        services.memory = start("memory", MemoryActor)
        services.registry = start("registry", RegistryActor)
        return supervisor

    def stop(self) -> None:
        """Stop the actors in reverse order, then commit what waits and close the database."""
        timeout = self.services.limits.ask_timeout_s
        self.supervisor.ask(StopChildren(), timeout=timeout).get(timeout=timeout)
        self.supervisor.stop(timeout=timeout)
        self.services.directory.end_streams()
        self.services.store.stop()
