"""Which greenlets were started, and are alive when none should be."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gevent

from actors.permit import CLEAN_UP_S

OUTLIVES_S = CLEAN_UP_S + 1.0  # the longest that something of a runtime may be there after its end


class Births:
    """Notes every gevent greenlet that is started while `noted`."""

    def __init__(self) -> None:
        self._born: list[weakref.ref[gevent.Greenlet]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While this lasts."""
        gevent.Greenlet.add_spawn_callback(self._note)
        try:
            yield
        finally:
            gevent.Greenlet.remove_spawn_callback(self._note)

    def left(self, ours: Sequence[gevent.Greenlet]) -> list[str]:
        """Those that are alive, `ours` left out."""
        alive = [greenlet for born in self._born if (greenlet := born()) is not None and not greenlet.dead]
        return [repr(greenlet) for greenlet in alive if greenlet not in ours]

    def _note(self, greenlet: gevent.Greenlet) -> None:
        self._born.append(weakref.ref(greenlet))
