"""A model's endpoint that fails in every way an endpoint has been seen to fail, as the message asks it to."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from attrs import frozen
from gevent.event import Event as Signal
from model_server import Exchange, ModelServer, Respond, cut, part, says, sse, stalls, status, streams

MARK = "BROKEN"  # in everything that no history may hold
PACE_S = 0.01  # between two pieces of a slow answer
MIB = 1024 * 1024
MANY = 10 * MIB

Fault = Callable[[random.Random], Respond]


@frozen
class Kind:
    """A way to fail, and how a turn that meets it must end: with an error that says this, or with this text.

    Args:
        limit: the one that ends it, where nothing else does: "idle", "total" or "connect".
    """

    name: str
    fault: Fault
    error: str = ""
    text: str = ""
    limit: str = ""


def text(rng: random.Random) -> bytes:
    """Some good pieces of an answer that will not be finished."""
    words = [f"{MARK} " * rng.randrange(1, 30) for _ in range(rng.randrange(1, 6))]
    return sse(*(part(each) for each in words), done=False)


def whole(*finish: dict[str, Any]) -> bytes:
    """A whole answer of one piece and these."""
    return sse(part(f"{MARK} indeed"), *finish)


def calls(name: str, arguments: str, call_id: str = "call-1") -> bytes:
    """An answer that calls a tool."""
    delta = [{"index": 0, "id": call_id, "function": {"name": name, "arguments": arguments}}]
    return sse(part(tool_calls=delta), part(finish="tool_calls"))


def slow(piece: Callable[[int], bytes], *, head: bool = True) -> Respond:
    """Pieces one after the other, until the client has enough."""

    def respond(exchange: Exchange) -> None:
        exchange.keep_alive = False
        if head:
            exchange.head()
        number = 0
        while True:  # ends with the OSError of a client that hung up
            (exchange.piece if head else exchange.send)(piece(number))
            number += 1
            Signal().wait(PACE_S)

    return respond


def raw(*pieces: bytes) -> Respond:
    """Bytes in place of a response, and the end of the connection."""

    def respond(exchange: Exchange) -> None:
        for piece in pieces:
            exchange.send(piece)
            gevent.idle()
        exchange.close()

    return respond


def head(extra: bytes = b"") -> bytes:
    """The headers of an event stream."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + extra + b"\r\n"


def split_character(rng: random.Random) -> Respond:
    """The connection ends within the bytes of one character."""
    body = json.dumps(part(f"{MARK} \N{CRAB}"), ensure_ascii=False).encode()
    end = body.index("\N{CRAB}".encode()) + rng.randrange(1, 4)
    return cut(text(rng), b"data: " + body[:end], reset=rng.random() < 0.5)


def cut_anywhere(rng: random.Random) -> Respond:
    """The connection ends after any byte before the finish reason."""
    body = text(rng)
    return cut(body[: rng.randrange(1, len(body))], reset=rng.random() < 0.5, chunked=rng.random() < 0.5)


def once(first: Respond) -> Fault:
    """Fails at the first attempt, and answers at the next."""

    def fault(_rng: random.Random) -> Respond:
        def respond(exchange: Exchange) -> None:
            server = exchange.server
            assert isinstance(server, BadEndpoint)
            asked = server.wanted(exchange)
            server.attempts[asked] += 1
            (first if server.attempts[asked] == 1 else streams(GOOD))(exchange)

        return respond

    return fault


def then(first: bytes) -> Fault:
    """Says `first`, and when it is shown the tools' results, something good."""

    def fault(_rng: random.Random) -> Respond:
        def respond(exchange: Exchange) -> None:
            asked = exchange.asked.json["messages"][-1]["role"] == "tool"
            streams(says("I see") if asked else first)(exchange)

        return respond

    return fault


def _large(rng: random.Random) -> Respond:
    pieces = rng.choice((1, 64, 1_024))
    return streams(*[sse(part("x" * (MANY // pieces)), done=False)] * pieces, sse(part(finish="stop")))


def _slow_error(code: int) -> Respond:
    def respond(exchange: Exchange) -> None:
        exchange.head(code, "application/json")
        exchange.piece(b'{"error": "' + MARK.encode())
        exchange.wait_for_hang_up()

    return respond


def _half_gzip(rng: random.Random) -> Respond:
    packed = gzip.compress(whole(part(finish="stop")))
    return raw(head(b"Content-Encoding: gzip\r\n"), packed[: rng.randrange(len(packed) // 2)])


def _header(number: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" if number == 0 else b"x: y\r\n"


NO_CHUNKS = ([1], 7, {"choices": 3}, {"choices": [3]})
TWICE = sse(part("once "), part("once "), part(finish="stop"))

GOOD = says("after all")
FINISH = sse(part(finish="stop"))
CUT = "cut off"

KINDS: tuple[Kind, ...] = (
    Kind("refused", lambda _rng: status(500), "refused"),  # asked elsewhere: nobody listens there
    Kind("no room to connect", lambda _rng: status(500), "connect_timeout_s", limit="connect"),  # likewise
    Kind("silent", lambda _rng: stalls(head=False), "idle_timeout_s", limit="idle"),
    Kind("headers, then silent", lambda _rng: stalls(), "idle_timeout_s", limit="idle"),
    Kind("idle stream", lambda rng: stalls(text(rng)), "idle_timeout_s", limit="idle"),
    Kind("idle within a line", lambda rng: stalls(text(rng)[: -rng.randrange(3, 9)]), "idle_", limit="idle"),
    Kind("slow error body", lambda rng: _slow_error(rng.choice((400, 403, 503))), "answered", limit="idle"),
    Kind(
        "slow drip", lambda _rng: slow(lambda _n: sse(part(f"{MARK} "), done=False)), "total_", limit="total"
    ),
    Kind("slow pings", lambda _rng: slow(lambda _n: b": ping\n\n"), "total_timeout_s", limit="total"),
    Kind("slow headers", lambda _rng: slow(_header, head=False), "total_timeout_s", limit="total"),
    Kind("429", lambda _rng: status(429, {"error": {"message": f"{MARK}: slow down"}}), "answered 429"),
    Kind("429, wait an hour", lambda _rng: status(429, "later", Retry_After="3600"), "answered 429"),
    Kind(
        "429, wait for nonsense", lambda _rng: status(429, "later", Retry_After="soon, \xb2"), "answered 429"
    ),
    Kind("429, then good", once(status(429, "later", Retry_After="0")), text="after all"),
    Kind("5xx", lambda rng: status(rng.choice((500, 502, 503, 504, 529)), f"<h1>{MARK}</h1>"), "answered 5"),
    Kind("5xx, then good", once(status(503, "not yet")), text="after all"),
    Kind("4xx", lambda rng: status(rng.choice((400, 401, 404, 413, 422)), {"error": MARK}), "answered 4"),
    Kind(
        "redirect",
        lambda rng: status(rng.choice((301, 302, 307, 308)), MARK, Location="/v1/x"),
        "answered 30",
    ),
    Kind("dropped", lambda _rng: raw(), "cannot be reached"),
    Kind("no HTTP", lambda rng: raw(rng.randbytes(200)), "cannot be reached"),
    Kind("cut anywhere", cut_anywhere),
    Kind("cut within a character", split_character),
    Kind("cut, then good", once(cut(sse(part(MARK), done=False))), "broke within the answer"),
    Kind("cut before the finish", lambda rng: streams(text(rng)), CUT),
    Kind("done without a finish", lambda rng: streams(text(rng) + b"data: [DONE]\n\n"), CUT),
    Kind("cut tool call", lambda _rng: streams(calls("look", '{"where": "he')[:-180])),
    Kind("bad JSON", lambda rng: streams(text(rng), b"data: {oops\n\n", FINISH), "not JSON"),
    Kind("deep JSON", lambda _rng: streams(b"data: " + b"[" * 100_000 + b"\n\n", FINISH), "not JSON"),
    Kind(
        "JSON of another kind", lambda rng: streams(sse(rng.choice(NO_CHUNKS)), FINISH), "no chat completion"
    ),
    Kind(
        "error in the stream", lambda rng: streams(text(rng), sse({"error": {"message": MARK}}), FINISH), MARK
    ),
    Kind("wrong content type", lambda _rng: status(200, f"<html>{MARK}</html>"), "text/plain"),
    Kind("empty", lambda _rng: status(200, ""), CUT),
    Kind("half a gzip", _half_gzip),
    Kind("bad chunk length", lambda _rng: raw(head(b"Transfer-Encoding: chunked\r\n"), b"zz\r\nhello\r\n")),
    Kind("body cut short", lambda rng: raw(head(b"Content-Length: 100000\r\n"), text(rng))),
    Kind("huge header", lambda _rng: raw(head(b"X-Large: " + b"x" * 200_000 + b"\r\n")), "cannot be reached"),
    Kind("many headers", lambda _rng: raw(head(b"".join(b"X-%d: y\r\n" % n for n in range(500)))), "headers"),
    Kind("unknown tool", then(calls("launch_rockets", "{}")), text="I see"),
    Kind("bad arguments", then(calls("look", '{"where": ')), text="I see"),
    Kind("duplicate chunk", lambda _rng: streams(TWICE), text="once once "),
    Kind("line without end", lambda _rng: streams(b"data: " + b"x" * (17 * MIB)), "nothing can use that"),
    Kind("10 MB", _large, text="x"),
)


class BadEndpoint(ModelServer):
    """Fails as the last user message says: "fault KIND SEED". Whatever else it is told, it repeats.

    Attributes:
        attempts: how often a message was asked, for faults that pass.
        wrong: what it was sent that no request may hold.
        open: connections that are open now.
    """

    def __init__(self) -> None:
        super().__init__(default=self.respond)
        self.attempts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.open = 0
        self._kinds = {kind.name: kind for kind in KINDS}
        self._gathered = 0
        self._all_there = Signal()

    def wanted(self, exchange: Exchange) -> str:
        """The last user message."""
        messages = exchange.asked.json["messages"]
        return next(each["content"] for each in reversed(messages) if each["role"] == "user")

    def respond(self, exchange: Exchange) -> None:
        """Answer a request, or fail."""
        if MARK.encode() in exchange.asked.body:
            self.wrong.append(f"a later request holds what was broken: {exchange.asked.body[:300]!r}")
        asked = self.wanted(exchange)
        if asked.startswith("fault "):
            name, seed = asked.removeprefix("fault ").rsplit(" ", 1)
            self._kinds[name].fault(random.Random(seed))(exchange)
            return
        if asked.startswith("gather "):
            self._gathered += 1
            if self._gathered == int(asked.split()[1]):
                self._all_there.set()
            self._all_there.wait()
        streams(says(f"re: {asked}"))(exchange)

    def _serve(self, sock: Any, address: object) -> None:
        self.open += 1
        try:
            super()._serve(sock, address)
        finally:
            self.open -= 1
