"""The face of Palaver: a blocking API over the actors, for greenlets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar

import gevent
import gevent.event
import pykka

from actors.bell import bell
from actors.children import ChildSpec, ChildStatus, ListChildren, RemoveChild, StartChild
from actors.config import AgentConfig, Limits
from actors.errors import InvalidInput, RuntimeClosed, RuntimeFailed
from actors.greenlet import GreenletFuture
from actors.logs import log
from actors.messages import (
    AgentArrived,
    PutAgent,
    RefuseNewWork,
    RemoveAgent,
    Settle,
    Suspend,
)
from actors.models.base import Model
from actors.own_turn import check_not_own_turn
from actors.storage import Worker
from actors.system import OnFailure, Recover, System
from actors.text import check_text
from actors.tools import Tool
from palaver.asking import NAME_CHARS
from palaver.keeping import Keeping
from palaver.moving import transfer
from palaver.threads import ThreadFuture
from palaver.waiting import check_wait, when_free
from persistence.errors import PalaverError
from persistence.sources import Sources
from persistence.worker import DatabaseWorker

logger = logging.getLogger("palaver.runtime")

P = ParamSpec("P")
T = TypeVar("T")

CLEAN_UP_S = 10.0
RECOVER = ("run", "hold", "fail")


class Runtime(Keeping):
    """A running Palaver. Open one with `Runtime.open`; it is a context manager that shuts down at the end.

    All calls are for greenlets of the thread that opened it, and block the calling greenlet only. From
    another thread there is `from_thread`; everything else raises `WrongThread` there. After `shutdown`
    every call that starts something raises `RuntimeClosed`.
    """

    def __init__(self, system: System, path: str) -> None:
        super().__init__(system.services, path)
        self._system = system
        self._down: gevent.Greenlet | None = None
        self._hurry = gevent.event.Event()

    # -- opening and shutting down -----------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Model | Mapping[str, Model],
        *,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        hooks: Iterable[object] = (),
        limits: Limits | None = None,
        sources: Sources | None = None,
        worker: Worker | None = None,
        recover: Recover = "run",
        on_failure: OnFailure | None = None,
        wait_s: float = 0.0,
    ) -> Runtime:
        """Open a database and start the actors.

        Args:
            path: the SQLite file, made if it is missing; ":memory:" stores nothing beyond the process.
            model: what answers; or a mapping from `AgentConfig.model` names to models.
            tools: what models may call: `Tool`s, or functions that become tools.
            hooks: objects with any of the four hook methods.
            limits: bounds; the defaults if None.
            sources: clock, random numbers and ids; the machine's if None. A simulation hands in its own.
            worker: runs the database jobs; a thread on `path` if None.
            recover: what becomes of the messages that an earlier process accepted and did not end. "run":
                as soon as an agent is registered, its topics that have such messages are opened and go on.
                "hold": they stay as they are, listed by `unfinished`, until `recover` is called or the
                topic is opened; and timers that are due already are held until `recover` is called. "fail":
                they end as `failed`, now, without being run; timers are no such messages, and fire.
            on_failure: called once, in a greenlet of its own, when the database has failed for good (an I/O
                error at a commit, damage): nothing is stored any more, and every call that needs the file
                raises that `DatabaseFailed`. Likewise with a `RuntimeFailed` when an actor that the runtime
                cannot do without kept dying. A host should end its process then, with a status of its own.
            wait_s: seconds to wait for a file that another process or Runtime holds. A new process takes over
                as soon as the old one lets go; only the calling greenlet waits between two attempts.

        Raises:
            DatabaseInUse: another process or Runtime holds the file, and still does after `wait_s`.
            StorageError: the file cannot be used; the message says why.
            InvalidConfig: a tool or hook that makes no sense.
        """
        _check_model(model)
        if limits is not None and not isinstance(limits, Limits):
            raise InvalidInput(f"limits must be Limits(...), not {limits!r}")
        if recover not in RECOVER:
            raise InvalidInput(f"recover must be one of {', '.join(RECOVER)}, not {recover!r}")
        sources = sources or Sources()
        start = partial(
            System.start,
            models=model,
            tools=[tool if isinstance(tool, Tool) else Tool(tool) for tool in tools],
            hooks=tuple(hooks),
            limits=limits or Limits(),
            sources=sources,
            recover=recover,
            on_failure=on_failure,
        )
        backlog = (limits or Limits()).database_backlog
        check_wait(wait_s, worker)
        attempt = partial(_start_on, path, start, backlog) if worker is None else partial(start, worker)
        return cls(when_free(attempt, wait_s, sources.clock), os.fspath(path))

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    def shutdown(self, drain: float = 30.0) -> None:
        """Refuse new work, let accepted turns run for up to `drain` seconds, cancel what is left, commit
        and close the file. Calling it again waits for the first call; with a `drain` of 0 it ends the time
        that the first one gave.

        A turn that runs when the time is over ends `cancelled`. Turns of topics that are still queued stay
        in the journal; those of tmp chats end `closed`.

        Args:
            drain: seconds; 0 cancels at once.
        """
        self._owner.check()
        check_not_own_turn(None, "shutdown")
        if isinstance(drain, bool) or not isinstance(drain, int | float) or not drain >= 0:
            raise InvalidInput(f"drain must be a number of seconds from 0 on, not {drain!r}")
        if self._down is None:
            self._refusal = RuntimeClosed("the runtime is shut down; open a new one")
            # In a greenlet of its own: whoever kills the caller, the file is closed in the end.
            self._down = gevent.spawn(self._shut_down, drain)
        if drain == 0:
            self._hurry.set()
        self._down.get()

    def _shut_down(self, drain: float) -> None:
        self._services.timers.stopping = True
        refs = list(self._refuse_new_work().values())
        settling = gevent.spawn(self._wait_all, [self._ask_quietly(ref, Settle()) for ref in refs], drain)
        gevent.wait([settling, self._hurry], count=1)
        settling.kill()
        self._wait_all([self._ask_quietly(ref, Suspend()) for ref in refs], CLEAN_UP_S)
        self._system.stop()

    def _refuse_new_work(self) -> dict[int, pykka.ActorRef[Any] | None]:
        try:
            refs: dict[int, pykka.ActorRef[Any] | None] = self._ask_registry(RefuseNewWork())
        except PalaverError:  # no registry any more: what lives still ends well
            return {state.id: state.ref for state in self._conversations.values()}
        return refs

    def _ask_quietly(self, ref: pykka.ActorRef[Any] | None, message: object) -> GreenletFuture[None] | None:
        """The future that a conversation answers with, or None if it is gone or does not answer."""
        if ref is None:
            return None
        try:
            reply: GreenletFuture[None] = ref.ask(
                message, block=True, timeout=self._services.limits.ask_timeout_s
            )
        except (pykka.ActorDeadError, pykka.Timeout):
            return None
        return reply

    def _wait_all(self, waiting: Iterable[GreenletFuture[None] | None], seconds: float) -> None:
        deadline = self._clock.monotonic() + seconds
        for future in waiting:
            if future is None:
                continue
            try:
                future.get(timeout=max(0.0, deadline - self._clock.monotonic()))
            except pykka.Timeout:
                return
            except Exception as error:
                words = "a conversation failed while the runtime shut down"
                log(logger, logging.ERROR, words, error=error)

    # -- agents ------------------------------------------------------------------------------------

    def add_agent(self, config: AgentConfig) -> None:
        """Register an agent.

        Raises:
            AgentExists: the name is taken.
            InvalidConfig: an unknown model or tool.
        """
        self._put_agent(config)

    def upsert_agent(self, config: AgentConfig) -> None:
        """Register an agent, in place of one of the same name; running turns end as they began."""
        self._put_agent(config, replace=True)

    def remove_agent(self, name: str) -> bool:
        """Forget an agent; whether it was registered. Its conversations stay, their turns fail."""
        return bool(self._ask_registry(RemoveAgent(name)))

    def agent(self, name: str) -> AgentConfig | None:
        """The config of an agent, registered or ephemeral, or None."""
        self._owner.check()
        found = self._services.agents.find(name)
        return None if found is None else found.config

    def agents(self) -> list[AgentConfig]:
        """The registered agents, in the order of registration; ephemeral ones are left out."""
        self._owner.check()
        return self._services.agents.registered()

    def add_ephemeral(self, config: AgentConfig) -> None:
        """Register an agent that listings leave out, for a job of its own. Errors as `add_agent`."""
        self._put_agent(config, ephemeral=True)

    def remove_ephemeral(self, name: str) -> bool:
        """Forget an ephemeral agent; whether it was there."""
        return bool(self._ask_registry(RemoveAgent(name, ephemeral=True)))

    def _put_agent(self, config: AgentConfig, *, replace: bool = False, ephemeral: bool = False) -> None:
        if not isinstance(config, AgentConfig):
            raise InvalidInput(f"an agent is registered by an AgentConfig, not by {config!r}")
        config = self._services.hooks.build_agent(config)
        self._ask_registry(PutAgent(config, replace, ephemeral))
        self._services.timers.tell(AgentArrived(config.name))

    # -- other runtimes, other threads -------------------------------------------------------------

    def transfer_to(self, other: Runtime) -> int:
        """Move all live conversations, topic routers, queued turns and the id counter to another runtime
        of this thread, which has a database of its own; stored sessions move with their memory.

        Returns:
            How many conversations moved.

        Raises:
            AgentNotRegistered, InvalidInput: the other cannot take them; nothing has moved.
        """
        self._check_open()
        if not isinstance(other, Runtime) or other is self:
            raise InvalidInput(f"conversations can be transferred to another Runtime, not to {other!r}")
        other._check_open()
        return transfer(self._services, other._services)

    def from_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ThreadFuture[T]:
        """Run `function(*args)` in a greenlet of the runtime's thread; for calls from any other thread.

        Returns:
            A `concurrent.futures.Future` of its value, to be waited for in the other thread.
        """
        return self._owner.run(function, *args, **kwargs)

    @property
    def failed(self) -> RuntimeFailed | None:
        """Why nothing new is taken any more, if an actor that the runtime cannot do without kept dying."""
        self._owner.check()
        return self._services.failed

    # -- actors of the user's own ------------------------------------------------------------------

    def supervise(self, spec: ChildSpec) -> pykka.ActorRef[Any]:
        """Start an actor of your own, and restart it when it dies, as `spec` says. When the runtime shuts
        down, these actors are stopped when the conversations have come to rest, the last started first.

        Returns:
            A ref that stays good: after a restart it is the new incarnation's, and meanwhile messages wait.

        Raises:
            InvalidInput: a supervised actor has this name already.
            Exception: whatever the first start raises; the actor is not supervised then.
        """
        if not isinstance(spec, ChildSpec):
            raise InvalidInput(f"an actor is supervised as a ChildSpec(...) says, not {spec!r}")
        ref: pykka.ActorRef[Any] = self._ask_users(StartChild(spec))
        return ref

    def supervised(self) -> list[ChildStatus]:
        """What became of the user's own actors that are supervised, in the order of their start."""
        children: list[ChildStatus] = self._ask_users(ListChildren())
        return children

    def _ask_users(self, message: object) -> Any:
        self._check_open()
        return self._ask_service(self._system.users, message, waits=True)

    def unsupervise(self, name: str) -> bool:
        """Stop a supervised actor, within its time limit, and forget it; whether it was there."""
        check_text(name, what="the actor's name", most=NAME_CHARS)
        there: bool = self._ask_users(RemoveChild(name))
        return there


def _start_on(
    path: str | os.PathLike[str], start: Callable[[DatabaseWorker], System], backlog: int
) -> System:
    return start(DatabaseWorker(path, notify=bell(), backlog=backlog))


def _check_model(model: object) -> None:
    """Refuse what is neither a model nor a mapping from names to models."""
    if isinstance(model, Mapping):
        for name, one in model.items():
            if not isinstance(name, str):
                raise InvalidInput(f"models are mapped from their names, and {name!r} is no text")
            if isinstance(one, Mapping):
                raise InvalidInput(f"the model {name!r} is a mapping; map each name to a model")
            _check_model(one)
    elif isinstance(model, type) or not callable(getattr(model, "stream", None)):
        raise InvalidInput(
            "a model is an object with a stream(request) method, or a mapping from names to such; "
            f"{model!r} is none. ScriptedModel() is one that needs no network"
        )
