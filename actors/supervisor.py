"""The supervisor: starts its children in order, hears of their deaths, stops them in reverse order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pykka
from attrs import frozen

from actors.greenlet import GreenletActor, GreenletFuture

logger = logging.getLogger("palaver.supervisor")

STOP_TIMEOUT_S = 10.0


@frozen
class StartChild:
    """Start a child after those that were started before. Reply: its ref. Fails with what `start` raises."""

    name: str
    start: Callable[[], pykka.ActorRef[Any]]


@frozen
class StopChildren:
    """Stop all children, the last started first. Reply: a future of None."""


@frozen
class ChildDied:
    """A child ended by itself, of `error`."""

    name: str
    error: BaseException


class Supervisor(GreenletActor):
    """Keeps the order of start and stop, and says which child has died.

    It restarts nothing: a dead registry or memory actor makes calls fail with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self._children: dict[str, pykka.ActorRef[Any]] = {}

    def on_receive(self, message: Any) -> Any:
        match message:
            case StartChild():
                self._children[message.name] = ref = message.start()
                return ref
            case StopChildren():
                return self._stop_children()
            case ChildDied():
                logger.error("the %s actor died: %r", message.name, message.error)
                return None
            case _:
                raise TypeError(f"the supervisor does not understand {message!r}")

    def _stop_children(self) -> GreenletFuture[None]:
        reply: GreenletFuture[None] = GreenletFuture()
        children = [*self._children.items()]
        self._children.clear()
        gevent.spawn(_stop_in_reverse, children, reply)
        return reply


def _stop_in_reverse(children: list[tuple[str, pykka.ActorRef[Any]]], reply: GreenletFuture[None]) -> None:
    for name, ref in reversed(children):
        try:
            ref.stop(timeout=STOP_TIMEOUT_S)
        except pykka.Timeout:
            logger.exception("the %s actor did not stop within %s s", name, STOP_TIMEOUT_S)
    reply.set(None)
