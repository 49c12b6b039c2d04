"""What tests of a host share: a server in this process, and clients that speak the protocol by hand."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from palaver import HostClient, Runtime
from palaver.host.connection import Bounds
from palaver.host.server import Server
from palaver.host.service import Service


class Raw:
    """A client that sends lines, and reads lines."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self._received = b""

    def say(self, *requests: dict[str, Any] | bytes) -> None:
        """Send requests; bytes are a line as they are."""
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in requests]
        self.sock.sendall(b"".join(line + b"\n" for line in lines))

    def hear(self) -> dict[str, Any]:
        """The next line.

        Raises:
            EOFError: the host has closed the connection.
        """
        while b"\n" not in self._received:
            try:
                piece = self.sock.recv(65_536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send one request, and hear its answer."""
        self.say({"id": op, "op": op, **fields})
        return self.hear()

    def all_of(self, op: str, **fields: Any) -> list[dict[str, Any]]:
        """Send one request, and hear all lines of its answer."""
        heard = [self.ask(op, **fields)]
        while "ok" not in heard[-1]:
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self.sock.close()


class Hosts:
    """Servers of this process, on sockets of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[Server] = []
        self._clients: list[Raw | HostClient] = []

    def serve(self, rt: Runtime, **bounds: Any) -> Server:
        """A server that lets clients in."""
        server = Server(str(self.folder / f"{len(self._servers)}.sock"), Bounds(**bounds))
        server.start(Service(rt, "this one"))
        self._servers.append(server)
        return server

    def raw(self, server: Server) -> Raw:
        """A client by hand."""
        self._clients.append(client := Raw(server.path))
        return client

    def client(self, server: Server) -> HostClient:
        """A client as users have it."""
        self._clients.append(client := HostClient(server.path))
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close() if isinstance(client, Raw) else client.close_connections()
        for server in self._servers:
            server.stop(0)


@pytest.fixture(name="folder")
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a socket's address has room for 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="palaver"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(name="hosts")
def served_hosts(folder: Path) -> Iterator[Hosts]:
    """Hosts of this test. Use it after `runtimes`, so that it ends first."""
    opened = Hosts(folder)
    yield opened
    opened.close()
