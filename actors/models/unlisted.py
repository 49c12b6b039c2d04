"""Requests whose list of messages is made when it is first read: a body of JSON is made without it.

A list of ten thousand messages costs more than copying their JSON: each of them is touched, to count one
more reference to it and one less, and few of them are near the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

if TYPE_CHECKING:
    from actors.models.base import Message, ModelRequest
    from actors.models.encoded import Encoded, EncodedRun

    Run = tuple[int, Encoded]

Request = TypeVar("Request", bound="Unlisted")


class Unlisted:
    """What a request is that may have no list yet. Either `messages` is there, or all that makes it."""

    __slots__ = ("_others",)

    _others: list[Message] | None  # without those of `encoded`; unset, or None, if the list is there

    if not TYPE_CHECKING:  # every other name has to be an attribute

        def __getattr__(self, name: str) -> Any:
            if name != "messages":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            others = others_of(self)
            if others is not None:
                object.__setattr__(self, "messages", _whole(others, self.encoded))
                object.__setattr__(self, "_others", None)
            return object.__getattribute__(self, "messages")


def unlisted(request: Request) -> Request:
    """The request itself, whose `messages` are, so far, those that do not stand in `encoded`."""
    object.__setattr__(request, "_others", request.messages)  # type: ignore[attr-defined]  # a field of its own
    object.__delattr__(request, "messages")
    return request


def others_of(request: Unlisted) -> list[Message] | None:
    """The messages that do not stand in `encoded`, if nobody has read the list."""
    try:
        return object.__getattribute__(request, "_others")  # type: ignore[no-any-return]
    except AttributeError:
        return None


def for_model(request: ModelRequest, model: str) -> ModelRequest:
    """The same request, of another model. No list is made for it."""
    others = others_of(request)
    if others is None:
        return evolve(request, model=model)
    return unlisted(evolve(request, model=model, messages=others))


def parts(others: list[Message], runs: tuple[EncodedRun, ...]) -> Iterator[list[Message] | Run]:
    """The messages of a request in order: some of the others, or so many of a list that is kept as JSON."""
    at = taken = 0
    for start, count, encoded in runs:
        between = start - at
        if between:
            yield others[taken : taken + between]
            taken += between
        if count:
            yield count, encoded
        at = start + count
    if taken < len(others):
        yield others[taken:]


def _whole(others: list[Message], runs: tuple[EncodedRun, ...]) -> list[Message]:
    whole: list[Message] = []
    for part in parts(others, runs):
        whole += part if isinstance(part, list) else part[1].messages[: part[0]]
    return whole
