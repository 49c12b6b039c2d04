"""Where the parts of one runtime are made and wired: the database, the actors, what they share."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pykka

from actors.agents import AgentTable
from actors.builtin_tools import builtin_tools
from actors.config import Limits
from actors.directory import Directory
from actors.hooks import Hooks
from actors.memory import MemoryActor
from actors.models.base import Model
from actors.registry import RegistryActor
from actors.services import Services
from actors.storage import Store, Worker
from actors.supervisor import StartChild, StopChildren, Supervisor
from actors.tools import Tool, ToolRegistry
from persistence import sessions
from persistence.sources import Sources

logger = logging.getLogger("palaver.system")


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
    ) -> System:
        """Open the database and start the actors, in order. Blocks the calling greenlet.

        Raises:
            InvalidConfig: a tool's name is taken twice, a hook has no known method.
            DatabaseInUse, StorageError: as opening the file raises; nothing is left running.
        """
        store = Store(worker)
        services = Services(
            sources=sources,
            limits=limits,
            store=store,
            agents=AgentTable(models, registry := ToolRegistry(tools)),
            tools=registry,
            hooks=Hooks(hooks),
            directory=Directory(limits, sources.clock),
        )
        for tool in builtin_tools(services):
            registry.add(tool)
        store.start()
        try:
            turn_id, steer_id = store.call(sessions.highest_ids)
            services.turn_ids = itertools.count(turn_id + 1)
            services.steer_ids = itertools.count(steer_id + 1)
            return cls(services, cls._start_actors(services))
        except BaseException:
            store.stop()
            raise

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
