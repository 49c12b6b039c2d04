"""A loopback HTTP server that plays a model's endpoint, well-behaved or not. For tests.

It speaks raw HTTP/1.1 from one greenlet for each connection, so that a test decides about every byte, and
about how a connection ends. What it sends in one HTTP chunk, a client reads as one piece.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from attrs import field, frozen
from gevent.event import Event
from gevent.server import StreamServer


@frozen
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    json: Any = field(default=None)


class Exchange:
    """One request, and what is sent in return."""

    def __init__(self, server: ModelServer, sock: Any, asked: Asked) -> None:
        self.server = server
        self.asked = asked
        self.keep_alive = True
        self._socket = sock

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._socket.sendall(data)

    def head(
        self,
        status: int = 200,
        content_type: str = "text/event-stream",
        length: int | None = None,
        chunked: bool = True,
        **headers: str,
    ) -> None:
        """Status line and headers; the body is chunked, or of `length` bytes, or ends with the connection."""
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        elif chunked:
            lines.append("Transfer-Encoding: chunked")
        else:
            self.keep_alive = False
            lines.append("Connection: close")
        self.send("\r\n".join([*lines, "", ""]).encode())

    def piece(self, data: bytes) -> None:
        """One HTTP chunk."""
        if data:
            self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end(self) -> None:
        """The end of a chunked body."""
        self.send(b"0\r\n\r\n")

    def close(self) -> None:
        """A clean end of the connection, wherever the response is."""
        self.keep_alive = False
        # The reader and the server hold the socket too: only a shutdown ends the connection at once.
        self._socket.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.keep_alive = False
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def wait_for_hang_up(self) -> None:
        """Say nothing until the client closes the connection; then set `server.hung_up`."""
        self.keep_alive = False
        try:
            while self._socket.recv(4096):
                pass
        except OSError:
            pass
        self.server.hung_up.set()


Respond = Callable[[Exchange], None]


class ModelServer:
    """Answers requests with `answers`, in order, and then with `default`. A context manager.

    Attributes:
        requests: what was asked, in order.
        connections: how many were made.
        at_once, most_at_once: requests under way, now and at most.
        hung_up: set when a client closed a connection that `wait_for_hang_up` watched.
    """

    def __init__(self, *answers: Respond, default: Respond | None = None) -> None:
        self.answers: deque[Respond] = deque(answers)
        self.default = default
        self.requests: list[Asked] = []
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        self.hung_up = Event()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)

    def __enter__(self) -> ModelServer:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop(timeout=0.1)

    @property
    def url(self) -> str:
        """For `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def _serve(self, sock: Any, _address: object) -> None:
        self.connections += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = sock.makefile("rb")
        try:
            while True:
                asked = _read(reader)
                if asked is None:
                    return
                exchange = Exchange(self, sock, asked)
                self._answer(exchange)
                if not exchange.keep_alive:
                    return
        except OSError:
            pass  # the client went away, or the exchange reset the connection
        finally:
            reader.close()

    def _answer(self, exchange: Exchange) -> None:
        self.requests.append(exchange.asked)
        respond = self.answers.popleft() if self.answers else self.default
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            (respond or status(500, "the test's server has no answer left"))(exchange)
        finally:
            self.at_once -= 1


def _read(reader: Any) -> Asked | None:
    line = reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    body = reader.read(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, body, json.loads(body) if body else None)


# -- what an endpoint sends --------------------------------------------------------------------------------


def part(text: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk object with one choice; `delta` holds further fields of its delta."""
    if text is not None:
        delta["content"] = text
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def sse(*objects: Any, done: bool = True, newline: str = "\n") -> bytes:
    """Events that hold `objects` (text as it is, else as JSON), and [DONE]."""
    datas = [o if isinstance(o, str) else json.dumps(o, ensure_ascii=False) for o in objects]
    datas += ["[DONE]"] if done else []
    return "".join(f"data: {data}{newline}{newline}" for data in datas).encode()


def says(text: str) -> bytes:
    """A whole good stream that says `text`."""
    return sse(part(text), part(finish="stop"))


# -- whole answers -----------------------------------------------------------------------------------------


def streams(*pieces: bytes) -> Respond:
    """A chunked event stream, each piece in a chunk of its own."""

    def respond(exchange: Exchange) -> None:
        exchange.head()
        for piece in pieces:
            exchange.piece(piece)
        exchange.end()

    return respond


def cut(*pieces: bytes, reset: bool = False, chunked: bool = True) -> Respond:
    """The same, but then the connection ends, by a reset or cleanly, in place of the body."""

    def respond(exchange: Exchange) -> None:
        exchange.head(chunked=chunked)
        for piece in pieces:
            (exchange.piece if chunked else exchange.send)(piece)
        gevent.idle()  # let the client read: a reset throws away what it has not
        exchange.reset() if reset else exchange.close()

    return respond


def stalls(*pieces: bytes, head: bool = True) -> Respond:
    """The same, but then nothing, until the client closes the connection."""

    def respond(exchange: Exchange) -> None:
        if head:
            exchange.head()
        for piece in pieces:
            exchange.piece(piece)
        exchange.wait_for_hang_up()

    return respond


def status(code: int, body: Any = "", **headers: str) -> Respond:
    """A plain response with a body of text, or of JSON."""

    def respond(exchange: Exchange) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/plain" if isinstance(body, str) else "application/json"
        exchange.head(code, kind, len(text.encode()), **headers)
        exchange.send(text.encode())

    return respond


def drops(exchange: Exchange) -> None:
    """Close the connection without a word."""
    exchange.close()
