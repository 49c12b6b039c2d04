"""A ref that stays good when its actor is restarted."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeVar

import gevent.monkey
import pykka

from actors.errors import WrongThread
from actors.greenlet import GreenletActorRef, GreenletFuture, NotHandled
from persistence.errors import PalaverError

A = TypeVar("A", bound=pykka.Actor)

_A_PLACE: Any = object()  # kept where somebody waits who will then ask
_thread_ident: Any = gevent.monkey.get_original("_thread", "get_ident")


class IncarnationDied(PalaverError, pykka.ActorDeadError):
    """The actor died before it had the answer that it owed, and nothing is done: ask the next incarnation."""


class LastingRef(GreenletActorRef[A]):
    """The ref of a supervised actor, whichever incarnation of it is alive.

    While the actor is being restarted, messages are kept for the next incarnation and askers wait, within
    their timeout. When it is parked or has ended for good, they get `ActorDeadError` with the reason. What an
    incarnation has begun to handle is not given to another; what was told to one that died first is lost.
    """

    __slots__ = ("_held", "_over", "_thread", "name")

    def __init__(self, name: str, first: GreenletActorRef[A]) -> None:
        self.name = name
        self.actor_class = first.actor_class
        self.actor_inbox = first.actor_inbox
        self._held: deque[tuple[Any, GreenletFuture[Any] | None]] = deque()
        self._over: str | None = None  # why no other incarnation is to come
        self._thread: int = _thread_ident()

    def follow(self, ref: GreenletActorRef[A]) -> None:
        """The actor was started again, as `ref`: it gets what was kept. For its supervisor."""
        self.actor_class, self.actor_inbox, self._over = ref.actor_class, ref.actor_inbox, None
        while self._held:
            message, reply_to = self._held.popleft()
            if message is _A_PLACE:
                reply_to.set(None)  # type: ignore[union-attr]  # somebody waits for it
            else:
                self.actor_inbox.post((message, reply_to))

    def end(self, words: str) -> None:
        """The actor is not started again, as `words` say: whoever waits hears so. For its supervisor."""
        self._over = words
        while self._held:
            _, reply_to = self._held.popleft()
            if reply_to is not None:
                reply_to.fail(pykka.ActorDeadError(f"{self}: {words}"))

    def tell(self, message: Any) -> None:
        """Send a message, and do not wait. Errors as those of any ref, and only once the actor is not to be
        started again."""
        if not self.actor_inbox.stopped:
            super().tell(message)
        else:
            self._hold(message, None)

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and wait for the reply, as with any ref.

        Args:
            timeout: seconds to wait for this incarnation, and as long again for each next one if it died
                before it came to the message.
        """
        while not self.actor_inbox.stopped or block:
            inbox = self.actor_inbox
            if inbox.stopped:
                another: GreenletFuture[None] = GreenletFuture()
                self._hold(_A_PLACE, another)
                another.get(timeout=timeout)
                continue
            try:
                return super().ask(message, block=block, timeout=timeout)
            except NotHandled as error:
                if error.inbox is not inbox:  # what its handler has raised
                    raise
        future: GreenletFuture[Any] = GreenletFuture()
        try:
            self._hold(message, future)
        except pykka.ActorDeadError as error:
            future.fail(error)
        return future

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Stop this incarnation; its supervisor decides whether another one follows."""
        if not self.actor_inbox.stopped:
            return super().stop(block=block, timeout=timeout)
        if block:
            return False
        future: GreenletFuture[bool] = GreenletFuture()
        future.set(False)
        return future

    def _hold(self, message: Any, reply_to: GreenletFuture[Any] | None) -> None:
        if self._over is not None:
            raise pykka.ActorDeadError(f"{self}: {self._over}")
        if _thread_ident() != self._thread:
            raise WrongThread(f"{self} belongs to another thread")
        self._held.append((message, reply_to))

    def __str__(self) -> str:
        return f"the actor {self.name!r}"


def ask_until_answered(ref: pykka.ActorRef[Any], message: object, *, timeout: float, waits: bool) -> Any:
    """A supervised actor's reply, also where that is a future.

    An incarnation that dies fails the futures that it owed with `IncarnationDied`: then the next is asked.

    Args:
        timeout: seconds to wait for each step.
        waits: whether a future may take as long as it takes.

    Raises:
        pykka.Timeout: no answer in time.
        pykka.ActorDeadError: the actor has ended for good.
        Exception: whatever the actor answered.
    """
    while True:
        reply = ref.ask(message, timeout=timeout)
        if not isinstance(reply, GreenletFuture):
            return reply
        try:
            return reply.get(timeout=None if waits else timeout)
        except IncarnationDied:
            continue
