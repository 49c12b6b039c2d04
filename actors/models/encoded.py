"""Messages as JSON: those that stay the same from request to request are written once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from actors.models.unlisted import others_of, parts

if TYPE_CHECKING:
    from actors.models.base import Message, ModelRequest

BURST = 2_000  # messages written before other greenlets get their turn

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """JSON without spaces, in UTF-8; what no UTF-8 can say becomes a question mark."""
    return _encode(value).encode("utf-8", "replace")


class Encoded:
    """The messages of a list that only grows at its end, as JSON.

    Each is written once, when a request first asks for it, and nothing before that. All of them are in one
    buffer: to copy it takes less than half of what it takes to join as many pieces.
    """

    __slots__ = ("_count", "_json", "messages")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self._json: bytearray | None = None
        self._count = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self._json is None else len(self._json)

    def first(self, count: int) -> bytes | bytearray:
        """The first `count` messages, with commas between them. To be copied before anything else runs."""
        if count < self._count:
            return _items(self.messages[:count])  # for a request that is older than the last one
        if self._json is None:
            self._json = bytearray()
        if count > self._count:
            if self._count:
                self._json += b","
            self._json += _items(self.messages[self._count : count])
            self._count = count
        return self._json

    def write_ahead(self, count: int) -> bool:
        """Write some of the first `count`, if many of them are not written yet; whether there were many."""
        many = min(count, len(self.messages)) - self._count > BURST
        if many:
            self.first(self._count + BURST)
        return many


EncodedRun = tuple[int, int, Encoded]  # where in a request's messages the first so many of a list stand


def message_pieces(request: ModelRequest) -> Iterator[bytes | bytearray]:
    """The messages of a request as JSON, in pieces that belong together with commas between them.

    They are to be copied before anything else runs.
    """
    others = others_of(request)
    if others is None:
        yield from _list_pieces(request)
        return
    for part in parts(others, request.encoded):
        yield _items(part) if isinstance(part, list) else part[1].first(part[0])


def _list_pieces(request: ModelRequest) -> Iterator[bytes | bytearray]:
    """The same of a list, which may have been changed since it was made."""
    messages, at = request.messages, 0
    for start, count, encoded in request.encoded:
        if not count or start < at or not _stand_in(messages, start, count, encoded):
            continue
        if start > at:
            yield _items(messages[at:start])
        yield encoded.first(count)
        at = start + count
    if at < len(messages):
        yield _items(messages[at:])


def write_ahead(request: ModelRequest) -> Iterator[None]:
    """Write what is long of a request's messages, bit by bit: others may run at every yield."""
    for _, count, encoded in request.encoded:
        while encoded.write_ahead(count):
            yield


def _stand_in(messages: list[Message], start: int, count: int, encoded: Encoded) -> bool:
    """Whether they are the encoded ones: whoever passed the request on may have put others there."""
    said = encoded.messages
    if len(said) != count:
        said = said[:count]
    return messages[start : start + count] == said


def _items(messages: Sequence[Message]) -> bytes:
    return to_json(messages)[1:-1]
