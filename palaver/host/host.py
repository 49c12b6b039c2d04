"""The life of a host: open, serve until told to stop, drain, close."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import gevent
import gevent.event

from actors.errors import RuntimeFailed
from actors.logs import log
from palaver.health import live
from palaver.host.config import HostConfig
from palaver.host.errors import HostInUse
from palaver.host.notify import Notifier
from palaver.host.server import Server
from palaver.host.service import Service
from palaver.runtime import Runtime
from palaver.waiting import when_free
from persistence.errors import DatabaseFailed
from persistence.sources import Sources

logger = logging.getLogger("palaver.host")

T = TypeVar("T")

SOCKET_WAIT_S = 5.0  # for the process before, which takes its socket away once its file is closed


class Host:
    """One database, one runtime, one socket.

    Args:
        config: what it runs on.
        drain_s: seconds that accepted turns get at a stop; the config's if None.
        wait_s: seconds to wait at the start for a database that another process holds.
        notifier: who is told of readiness.
        sources: clock, random numbers, ids; the machine's if None.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        drain_s: float | None = None,
        wait_s: float = 0.0,
        notifier: Notifier | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.config = config
        self._drain_s = config.drain_s if drain_s is None else drain_s
        self._wait_s = wait_s
        self._notifier = notifier or Notifier({})
        self._sources = sources or Sources()
        self._told = gevent.event.Event()
        self._at_once = gevent.event.Event()
        self._failure: DatabaseFailed | RuntimeFailed | None = None
        self.serving = gevent.event.Event()

    def stop(self) -> None:
        """Begin to stop: refuse new work and drain. Called again: cancel what runs, now. Never blocks."""
        if self._told.is_set():
            self._at_once.set()
        self._told.set()

    def run(self) -> None:
        """Serve until `stop`; blocks the calling greenlet. Everything that was acknowledged is stored when it
        returns.

        Raises:
            DatabaseInUse, HostInUse: the file or the socket is another's, and still is after `wait_s`.
            DatabaseFailed: the disk failed while it was in use; the host has stopped.
            RuntimeFailed: an actor that the runtime cannot do without kept dying; the host has stopped.
            StorageError, InvalidConfig: it could not be opened.
        """
        self._notifier.starting(self._wait_s)
        try:
            rt = self._unless_told(self._open)
            if rt is not None:
                self._run(rt)
        finally:
            self._notifier.close()
            for model in self.config.models.values():
                getattr(model, "close", lambda: None)()
        if self._failure is not None:
            raise self._failure

    def _run(self, rt: Runtime) -> None:
        server: Server | None = None
        try:
            server = self._unless_told(self._listen)
            if server is not None:
                self._serve(rt, server)
        finally:
            # Whatever happened, accepted turns get their time, and answers leave before the socket goes.
            self._shut_down(rt)
            if server is not None:
                server.stop()
            log(logger, logging.INFO, "stopped")

    def _open(self) -> Runtime:
        config = self.config
        return Runtime.open(
            config.database,
            config.models,
            tools=config.tools,
            hooks=config.hooks,
            limits=config.limits,
            sources=self._sources,
            recover=config.recover,
            on_failure=self._fail,
            wait_s=self._wait_s,
        )

    def _listen(self) -> Server:
        wait_s = max(self._wait_s, SOCKET_WAIT_S) if self._wait_s else 0.0
        listen = partial(Server, self.config.socket, self.config.bounds)
        return when_free(listen, wait_s, self._sources.clock, HostInUse)

    def _serve(self, rt: Runtime, server: Server) -> None:
        for agent in self.config.agents:
            rt.add_agent(agent)
        server.start(Service(rt, self._sources.handle()))
        self._notifier.ready(lambda: live(rt).ok)
        log(logger, logging.INFO, "serving", database=self.config.database, socket=self.config.socket)
        self.serving.set()
        self._told.wait()

    def _shut_down(self, rt: Runtime) -> None:
        self._notifier.stopping(self._drain_s)
        log(logger, logging.INFO, "stopping", drain_s=self._drain_s)
        hurrying = gevent.spawn(self._hurry, rt)
        rt.shutdown(self._drain_s)
        hurrying.kill()

    def _hurry(self, rt: Runtime) -> None:
        self._at_once.wait()
        log(logger, logging.INFO, "stopping at once")
        rt.shutdown(0)

    def _unless_told(self, begin: Callable[[], T]) -> T | None:
        """What `begin` returns, or None if the host is told to stop before; what was begun is undone then."""
        beginning = gevent.spawn(_caught, begin)
        gevent.wait([beginning, self._told], count=1)
        beginning.kill()
        if isinstance(beginning.value, gevent.GreenletExit):
            return None
        begun, error = beginning.value
        if error is not None:
            raise error
        return begun  # type: ignore[no-any-return]  # gevent's greenlets are untyped; `begin` returned it

    def _fail(self, failure: DatabaseFailed | RuntimeFailed) -> None:
        what = "database" if isinstance(failure, DatabaseFailed) else "runtime"
        log(logger, logging.CRITICAL, f"the {what} failed, the host stops", reason=failure)
        self._failure = failure
        self._told.set()
        if isinstance(failure, DatabaseFailed):  # else what runs may still end, and be stored
            self._at_once.set()


def _caught(begin: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """A value or an error: raised in a greenlet, gevent would print it."""
    try:
        return begin(), None
    except Exception as error:
        return None, error
