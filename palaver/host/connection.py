"""One client's connection: lines in, answers out as they come, and bounds on both."""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator
from functools import partial
from typing import Any

import gevent
from attrs import frozen
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original

from actors.errors import MailboxFull
from actors.logs import log
from palaver.host.errors import ProtocolError, to_wire
from palaver.host.protocol import Request, Unreadable, encode, read_request
from palaver.host.service import Service
from persistence.errors import PalaverError

logger = logging.getLogger("palaver.host")

PIECE = 65_536
HALF_CLOSED_POLL_S = 1.0

# gevent's poll tells reading and writing only, and this asks whether the other side is gone.
_poll = get_original("select", "poll")


@frozen
class Bounds:
    """What a host grants its clients.

    Args:
        connections: at once; a further one is told so and closed.
        requests: of one connection that have no answer yet; a further one is refused.
        line_bytes: of one request; a connection with a longer one is told so and closed.
        slow_s: seconds that a client may leave an answer unread before its connection is closed.
    """

    connections: int = 256
    requests: int = 256
    line_bytes: int = 6_065_536
    slow_s: float = 30.0


class ClientGone(Exception):
    """The client has closed its side, or does not read."""


class _TooLong(ProtocolError):
    """A line that is longer than the bound."""


class Connection:
    """A client. Nothing that it does, or leaves undone, changes a turn."""

    def __init__(self, sock: Any, service: Service, bounds: Bounds) -> None:
        self._sock = sock
        self._service = service
        self._bounds = bounds
        self._sending = BoundedSemaphore()
        self._handlers: dict[gevent.Greenlet, None] = {}
        self._reader: gevent.Greenlet | None = None

    @property
    def handlers(self) -> list[gevent.Greenlet]:
        """What works on the requests that have no answer yet."""
        return [*self._handlers]

    def serve(self) -> None:
        """Read requests until the client has no more, and answer them. Closes the socket."""
        self._reader = gevent.getcurrent()
        try:
            for line in self._lines():
                self._begin(line)
            self._finish()
        except _TooLong as error:
            self.refuse(error)
        except (OSError, ClientGone) as error:
            log(logger, logging.DEBUG, "a client's connection broke", reason=error)
        finally:
            # What was handed over is the runtime's: killing who waits for the answer changes nothing there.
            gevent.killall(self.handlers)
            self._sock.close()

    def refuse(self, error: PalaverError) -> None:
        """Tell the client why it is not served, and close."""
        try:
            self._send(None, ok=False, error=to_wire(error))
        except ClientGone as gone:
            log(logger, logging.DEBUG, "a client that was refused had gone", reason=gone)
        finally:
            self._sock.close()

    def _lines(self) -> Iterator[bytes]:
        received, searched = bytearray(), 0
        while piece := self._sock.recv(PIECE):
            received += piece
            while (end := received.find(b"\n", searched)) >= 0:
                self._check(end)
                if line := bytes(received[:end]).strip():
                    yield line
                del received[: end + 1]
                searched = 0
            searched = len(received)
            self._check(searched)
        if line := bytes(received).strip():
            yield line

    def _check(self, length: int) -> None:
        if length > self._bounds.line_bytes:
            raise _TooLong(
                f"a line may have up to {self._bounds.line_bytes:,} bytes; the connection is closed"
            )

    def _begin(self, line: bytes) -> None:
        try:
            request = read_request(line)
        except Unreadable as error:
            self._send(error.id, ok=False, error=to_wire(error))
            return
        if len(self._handlers) >= self._bounds.requests:
            full = MailboxFull(
                f"{self._bounds.requests} requests of this connection have no answer yet, the most that "
                "there may be; send again when some have"
            )
            self._send(request.id, ok=False, error=to_wire(full))
            return
        # Begun in the order of their lines, so that one client's messages are accepted in that order.
        handler = gevent.spawn(self._handle, request)
        self._handlers[handler] = None
        handler.rawlink(self._forget)

    def _forget(self, handler: gevent.Greenlet) -> None:
        self._handlers.pop(handler, None)

    def _handle(self, request: Request) -> None:
        try:
            last = {"ok": True, "result": self._service.answer(request, partial(self._send, request.id))}
        except ClientGone:
            self._break()
            return
        except PalaverError as error:
            last = {"ok": False, "error": to_wire(error)}
        except Exception as error:
            log(logger, logging.ERROR, "a request failed", op=request.op, error=error)
            last = {"ok": False, "error": to_wire(error)}
        try:
            self._send(request.id, **last)
        except ClientGone:
            self._break()

    def _send(self, name: Any, **facts: Any) -> None:
        """Write a line; waits for a slow client, for a bounded time."""
        line = encode({"id": name, **facts})
        slow = ClientGone(f"the client has left an answer unread for {self._bounds.slow_s} s")
        with self._sending, gevent.Timeout(self._bounds.slow_s, slow):
            try:
                self._sock.sendall(line)
            except OSError as error:
                raise ClientGone(str(error)) from error

    def _break(self) -> None:
        if self._reader is not None:
            self._reader.kill(block=False)

    def _finish(self) -> None:
        """The client sends nothing more, but may still read: let it have its answers."""
        while self._handlers and not self._gone():
            gevent.joinall(self.handlers, timeout=HALF_CLOSED_POLL_S)

    def _gone(self) -> bool:
        poll = _poll()
        poll.register(self._sock.fileno(), 0)
        return any(what & select.POLLHUP for _fd, what in poll.poll(0))
