"""What can go wrong between a host and its clients, and how errors travel over the socket."""

from __future__ import annotations

from typing import Any

import actors.errors
import persistence.errors
from actors.errors import (
    AskTimeout,
    ConversationBusy,
    HandlerFailed,
    MailboxFull,
    ResultTimeout,
    RuntimeClosed,
)
from persistence.errors import BacklogFull, PalaverError, StorageError

STOPPING = "the host is stopping and takes no new work; ask again when it is back"


class HostUnreachable(PalaverError, ConnectionError):
    """No host listens on the socket, or the connection was lost before the answer came. What was asked may
    have happened or not: a message with a key can be sent again without a second effect."""


class ProtocolError(PalaverError):
    """A line on the socket that is not a request, or an answer, of this version of the protocol."""


class HostInUse(PalaverError):
    """Another process listens on the socket, or what is there is no socket."""


# The same request may succeed later although nothing about it is changed.
_LATER = (MailboxFull, ConversationBusy, ResultTimeout, AskTimeout, RuntimeClosed, BacklogFull)

_KNOWN: dict[str, type[PalaverError]] = {
    name: value
    for module in (persistence.errors, actors.errors)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, PalaverError)
} | {each.__name__: each for each in (HostUnreachable, ProtocolError, HostInUse)}


def to_wire(error: BaseException) -> dict[str, Any]:
    """An error as the socket carries it."""
    if isinstance(error, RuntimeClosed):
        return {"type": "RuntimeClosed", "message": STOPPING, "retryable": True}
    if not isinstance(error, PalaverError):
        words = f"the host failed at this request ({type(error).__name__}); its log says why"
        return {"type": "HandlerFailed", "message": words, "retryable": False}
    return {"type": _name(type(error)), "message": str(error), "retryable": is_retryable(error)}


def is_retryable(error: PalaverError) -> bool:
    """Whether the same request may succeed later, unchanged."""
    # A full disk is StorageError itself; what is derived from it wants somebody to act.
    return isinstance(error, _LATER) or type(error) is StorageError


def from_wire(fields: object) -> PalaverError:
    """The error that `to_wire` wrote, as the class that was raised in the host."""
    if not isinstance(fields, dict):
        return ProtocolError(f"the host answered with an error of an unknown shape: {fields!r}")
    kind, words = fields.get("type"), fields.get("message")
    return _KNOWN.get(str(kind), HandlerFailed)(str(words))


def _name(kind: type[BaseException]) -> str:
    """The nearest name that a client knows: a program's own subclasses stay in its process."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in _KNOWN), "PalaverError")
