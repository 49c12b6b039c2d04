"""Where the parts of one runtime are made and wired: the database, the actors, what they share."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gevent
import pykka

from actors.agents import AgentTable
from actors.builtin_tools import builtin_tools
from actors.children import Book, ChildSpec, StartChild
from actors.config import Limits
from actors.directory import Directory
from actors.errors import RuntimeFailed
from actors.hooks import Hooks
from actors.incidents import Incidents
from actors.lasting import LastingRef, ask_until_answered
from actors.logs import log
from actors.memory import MemoryActor
from actors.models.base import Model
from actors.registry import RegistryActor
from actors.services import Services
from actors.steps import Surroundings
from actors.storage import Store, Worker
from actors.supervisor import Supervisor
from actors.text import describe_error
from actors.timers import TimerActor
from actors.tools import Tool, ToolRegistry
from persistence import recovery, sessions
from persistence.errors import DatabaseFailed
from persistence.sources import Sources

logger = logging.getLogger("palaver.system")

Recover = Literal["run", "hold", "fail"]
Failure = DatabaseFailed | RuntimeFailed
OnFailure = Callable[[Any], object]  # is given a Failure; a host may care for one kind alone
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


class Root(Supervisor):
    """The supervisor that has none above it: when it dies, `failing(reason)` is called, before it stops its
    children, which may take a while."""

    def __init__(self, around: Surroundings, failing: Callable[[BaseException], None]) -> None:
        super().__init__(around=around)
        self._failing: Callable[[BaseException], None] | None = failing

    def on_failure(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._fail(error)
        super().on_failure(kind, error, traceback)

    def on_death(self, reason: BaseException | None) -> None:
        self._fail(reason)
        super().on_death(reason)

    def _fail(self, error: BaseException | None) -> None:
        failing, self._failing = self._failing, None
        if failing is not None and error is not None:
            failing(error)


class System:
    """One database and one tree of actors.

    The root supervises the memory actor, the registry (whose children the conversations are), the timer
    actor and a supervisor of users' own actors, each restarted alone. What keeps dying below it ends the
    root, and with it the runtime: `Services.failed` is set then. The database worker is no actor: it is
    started before the root and stopped after it, and what fails there is final.
    """

    def __init__(self, services: Services, on_failure: OnFailure | None = None) -> None:
        self.services = services
        self._on_failure = on_failure
        self._book = Book()  # of the users' actors
        around = Surroundings(services.clock, services.incidents.report)
        self._root = Root.start(around, self._root_ended)
        try:
            services.memory = self._supervise("memory", partial(MemoryActor.start, services))
            services.registry = self._supervise("registry", partial(RegistryActor.start, services))
            services.timers.actor = self._supervise("timers", partial(TimerActor.start, services))
            users = partial(Supervisor.start, around=around, book=self._book)
            self.users = self._supervise("users", users, stop_timeout_s=None)
        except BaseException:
            self._root.stop(timeout=services.limits.ask_timeout_s)
            raise

    def _supervise(
        self, name: str, start: Callable[[], pykka.ActorRef[Any]], **options: Any
    ) -> LastingRef[Any]:
        request = StartChild(ChildSpec(name, start, when_spent="escalate", **options))
        timeout = self.services.limits.ask_timeout_s
        ref: LastingRef[Any] = ask_until_answered(self._root, request, timeout=timeout, waits=False)
        return ref

    def _root_ended(self, reason: BaseException) -> None:
        failed = RuntimeFailed(
            f"this runtime does nothing any more: {describe_error(reason, named=False)}. End the process, or "
            "shut this runtime down and open another; what was accepted is in the file"
        )
        failed.__cause__ = reason
        self.services.failed = failed
        self._book.close(str(failed))
        log(logger, logging.CRITICAL, "the runtime has failed", reason=str(failed))
        if self._on_failure is not None:
            gevent.spawn(self._on_failure, failed)

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
        on_failure: OnFailure | None = None,
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
        try:
            store.start()
            services.turn_ids = itertools.count(max(store.call(sessions.highest_ids)) + 1)
            cls._recover(services, recover)
            return cls(services, on_failure)
        except BaseException:  # also a kill or a time limit while the thread opens the file
            store.stop()
            raise

    @staticmethod
    def _recover(services: Services, recover: Recover) -> None:
        """End what was left undone, or keep it for when its agent is registered."""
        if recover == "hold":
            services.timers.held_before = services.clock.wall()
            return
        left = services.store.call(recovery.unfinished_sessions)
        if recover == "fail":
            give_up(services, [session.handle for session in left])
            return
        for session in left:
            services.left_undone.setdefault(session.agent, deque()).append(session)

    def stop(self) -> None:
        """Stop the actors in reverse order, then commit what waits and close the database."""
        self._root.stop()  # each child has its time limit
        self._book.close("the runtime was shut down")
        self.services.directory.end_streams()
        self.services.store.stop()
