"""Errors that nobody has got: what greenlets of a simulated test let out, and swallowed refusals."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

import gevent
from attrs import define, field
from gevent.exceptions import HubDestroyed
from gevent.hub import Hub

from palaver.simulation.errors import RealWorldInSimulation


@define(eq=False)
class Strays:
    """The errors of one world that are to be raised at its end.

    gevent prints what a greenlet lets out, and goes on; a test would pass. An error that somebody got from
    the greenlet, by `get()` or `joinall(raise_error=True)`, is theirs: they may have expected it. It shows by
    its traceback, which has grown since.
    """

    _let_out: list[tuple[BaseException, TracebackType | None]] = field(factory=list)
    _refused: list[BaseException] = field(factory=list)

    def handle_error(self, context: Any, kind: Any, error: Any, trace: Any) -> None:
        """For a hub, in place of its own method: what is not the hub's business is kept, not printed."""
        hub = gevent.get_hub()
        if kind is HubDestroyed or context is None or issubclass(kind, hub.SYSTEM_ERROR + hub.NOT_ERROR):
            Hub.handle_error(hub, context, kind, error, trace)
        else:
            self._let_out.append((error, error.__traceback__))

    def refused(self, error: RealWorldInSimulation) -> None:
        """Something was refused."""
        self._refused.append(error)

    def take(self) -> list[BaseException]:
        """All of them, oldest first; they are not to be raised any more."""
        own = [error for error, trace in self._let_out if error.__traceback__ is trace]
        found = [*self._refused, *(error for error in own if error not in self._refused)]
        self._refused.clear()
        self._let_out.clear()
        return found

    def check(self) -> None:
        """Raise the first, which tells of the others.

        Raises:
            BaseException: that one.
        """
        found = self.take()
        if found:
            _tell_of(found[1:], found[0])
            raise found[0]

    def tell(self, error: BaseException) -> None:
        """Let `error`, which is about to be raised, tell of all of them."""
        _tell_of([other for other in self.take() if other is not error], error)


def _tell_of(others: list[BaseException], error: BaseException) -> None:
    for other in others:
        shown = "".join(traceback.format_exception(other))
        error.add_note(f"before that, a greenlet raised, and nobody got it:\n{shown}")
