"""The protocol on a host's socket: lines of JSON, version 1. What a request is, and what its fields may be.

A request is one object in one line, `{"id": ANY, "op": NAME, ...}`. Each of its answers carries its id. The
last one has `"ok"`: `{"id": .., "ok": true, "result": ..}`, or `{"id": .., "ok": false, "error": {"type": ..,
"message": .., "retryable": ..}}`. Before it there may be lines with `"accepted"`, `"event"` or `"items"`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from actors.errors import InvalidInput
from palaver.host.errors import ProtocolError
from palaver.toml.fields import Field, shown, suggest

VERSION = 1
ID_CHARS = 1_000  # of an id, as JSON: every answer repeats it


@frozen
class Request:
    """One line of a client."""

    id: Any
    op: str
    fields: dict[str, Any]


class Unreadable(ProtocolError):
    """A line that is no request.

    Attributes:
        id: of the request, as far as it could be read.
    """

    def __init__(self, message: str, id: Any = None) -> None:  # noqa: A002 - the word of the protocol
        super().__init__(message)
        self.id = id


def encode(facts: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        ProtocolError: it holds something else.
    """
    try:
        facts = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a line must be one JSON object, and this is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ProtocolError(f"a line must be one JSON object, not {type(facts).__name__}")
    return facts


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_request(line: bytes) -> Request:
    """The request in a line.

    Raises:
        Unreadable: with the id, where that could be read.
    """
    try:
        fields = decode(line)
    except ProtocolError as error:
        raise Unreadable(str(error)) from error
    name = fields.pop("id", None)
    if len(json.dumps(name)) > ID_CHARS:
        raise Unreadable(f"an id may have up to {ID_CHARS} characters, because every answer repeats it")
    op = fields.pop("op", None)
    if not isinstance(op, str):
        raise Unreadable('a request needs an "op", as in {"id": 1, "op": "stats"}', name)
    return Request(name, op, fields)


def check_fields(
    op: str, fields: Mapping[str, Any], needs: Mapping[str, Field], may: Mapping[str, Field]
) -> None:
    """See that a request has what it needs, and nothing that it cannot have; null stands for "not given".

    Raises:
        InvalidInput: naming the field.
    """
    known = {**needs, **may}
    for name, value in fields.items():
        if name not in known:
            raise InvalidInput(f"{op} has no field {name!r}; {suggest(name, known)}")
        if value is not None and not known[name].fits(value):
            raise InvalidInput(f"{op}: {name} must be {known[name].words}, not {shown(value)}")
    for name in needs:
        if fields.get(name) is None:
            raise InvalidInput(f"{op} needs the field {name!r}: {needs[name].words}")
