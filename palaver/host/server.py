"""The clients of a host: its Unix socket, and a greenlet for each connection."""

from __future__ import annotations

import logging
import os

import gevent

from actors.errors import MailboxFull
from actors.logs import log
from palaver.host.connection import Bounds, Connection
from palaver.host.service import Service
from palaver.host.sockets import identity, listen_at

logger = logging.getLogger("palaver.host")

NO_ROOM_S = 0.1


class Server:
    """Listens, and serves each client in a greenlet of its own.

    Args:
        path: of the socket.
        bounds: what clients may ask for at once.

    Raises:
        HostInUse: as `listen_at`.
    """

    def __init__(self, path: str, bounds: Bounds | None = None) -> None:
        self.path = path
        self.bounds = bounds or Bounds()
        self._sock = listen_at(path)
        self._identity = identity(path)
        self._connections: dict[gevent.Greenlet, Connection] = {}
        self._accepting: gevent.Greenlet | None = None

    def __len__(self) -> int:
        return len(self._connections)

    def start(self, service: Service) -> None:
        """Let clients in."""
        self._accepting = gevent.spawn(self._accept, service)

    def _accept(self, service: Service) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError as error:  # no descriptor left, say: those that are there go on
                log(logger, logging.WARNING, "a client could not be let in", reason=error)
                gevent.sleep(NO_ROOM_S)
                continue
            connection = Connection(sock, service, self.bounds)
            if len(self._connections) >= self.bounds.connections:
                full = MailboxFull(
                    f"{self.bounds.connections} clients are connected, the most that there may be; "
                    "connect again later"
                )
                gevent.spawn(connection.refuse, full)
                continue
            serving = gevent.spawn(connection.serve)
            self._connections[serving] = connection
            serving.rawlink(self._forget)

    def _forget(self, serving: gevent.Greenlet) -> None:
        self._connections.pop(serving, None)

    def stop(self, grace_s: float = 5.0) -> None:
        """Take the socket away, let answers that are under way out for up to `grace_s` seconds, and close."""
        if self._accepting is not None:
            self._accepting.kill()
        # Before it is closed: until then no other process takes the path for a dead one's.
        if identity(self.path) == self._identity:
            os.unlink(self.path)
        self._sock.close()
        handlers = [each for connection in self._connections.values() for each in connection.handlers]
        gevent.joinall(handlers, timeout=grace_s)
        gevent.killall([*self._connections])
