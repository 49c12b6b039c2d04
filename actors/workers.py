"""The greenlets that actors run in: one while it has messages, and then back to its hub's pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import RawGreenlet

from actors.futures import current, thread_ident

if TYPE_CHECKING:
    import pykka

    from actors.greenlet import Inbox

Letter = tuple[Any, "pykka.Future[Any] | None"]  # message, reply_to: quicker to make than an Envelope

IDLE_WORKERS = 1_000  # per hub; one more than this ends instead of waiting for work


class Workers:
    """The idle workers of one hub."""

    __slots__ = ("apart", "at_once", "busy", "hub", "idle", "picks", "thread")

    def __init__(self, hub: Any, thread: int) -> None:
        self.hub = hub
        self.thread = thread
        self.at_once = 0  # asks without a hop through the loop since one gave way
        # A loop that picks the order of what is due, as that of a simulation, gets to pick who is asked.
        self.picks = hub is not None and getattr(hub.loop, "picks", False)
        self.idle: list[Worker] = []
        self.apart: list[Any] = []  # those that serve no actors
        self.busy: dict[Any, None] = {}  # greenlets of that other pool while they run something

    def take(self) -> Worker:
        if self.idle:
            return self.idle.pop()
        worker = Worker(self.idle)
        worker.switch()  # to its first wait: even a kill before its first message finds it running
        worker.parent = self.hub
        return worker


# An inbox that is not open has one of these for its workers, so that an open one pays for no test of it.
NOT_STARTED = Workers(None, -1)
DEAD = Workers(None, -1)


def workers_here() -> Workers:
    """Those of the current thread's hub."""
    hub = gevent.get_hub()
    workers: Workers | None = getattr(hub, "palaver_workers", None)
    if workers is None:
        workers = hub.palaver_workers = Workers(hub, thread_ident())
    return workers


def idle_apart(hub: Any) -> list[Any]:
    """The hub's idle greenlets of another pool than the actors', which end with theirs."""
    apart: list[Any] = (getattr(hub, "palaver_workers", None) or workers_here()).apart
    return apart


def busy_apart(hub: Any) -> dict[Any, None]:
    """The hub's greenlets of that other pool that run something, the one that began first first."""
    busy: dict[Any, None] = (getattr(hub, "palaver_workers", None) or workers_here()).busy
    return busy


def release_idle_workers() -> int:
    """End the idle workers of the current thread's hub; returns how many there were.

    Idle greenlets keep their hub in memory, so call it before a hub is destroyed. At any other time it is
    harmless: new workers come with the next messages.
    """
    workers = workers_here()
    released = [*workers.idle, *workers.apart]
    workers.idle.clear()
    workers.apart.clear()
    for worker in released:
        end_idle(worker)
    return len(released)


def end_idle(worker: Any) -> None:
    """End a greenlet that waits in its hub for something to do."""
    hub = worker.parent
    worker.parent = current()  # a greenlet that ends goes on in its parent: here
    worker.throw()
    worker.parent = hub  # where a switch to it goes from now on, if somebody has one left


class Worker(RawGreenlet):  # type: ignore[misc]  # gevent ships no types
    """A greenlet that drains one inbox after the other, and waits among the idle ones in between."""

    __slots__ = ("asked", "back", "idle", "inbox", "queue")

    switch_out = None  # hub.switch() looks for it every time, and is slow to find nothing

    def __init__(self, idle: list[Worker]) -> None:
        super().__init__()
        self.idle = idle
        self.inbox: Inbox | None = None
        self.queue: deque[Letter] = deque()
        self.asked: Inbox | None = None  # whose asker runs this worker at once
        self.back: Callable[[], object] | None = None  # to that asker

    def run_callback(self, switch: Callable[[], object]) -> Any:
        """Wake the asker that runs this worker: as soon as it is through, if nothing can come in between."""
        asked = self.asked
        if asked is None or asked.stopped or self.queue or self is not current():
            return self.parent.loop.run_callback(switch)
        self.back = switch
        return self

    def stop(self) -> None:
        """The asker is awake."""
        self.back = None

    def run(self) -> None:
        idle, kept = self.idle, True
        while kept:
            back, self.back = self.back, None
            try:
                if back is None:
                    self.parent.switch()
                else:
                    back()
            except BaseException:
                self._leave()
                return
            inbox, self.inbox = self.inbox, None
            if inbox is None:  # a foreign switch
                continue
            unfinished = inbox.drain()
            self.asked = None
            kept = len(idle) < IDLE_WORKERS
            if kept:
                idle.append(self)
            elif self.back is not None:
                self.parent.loop.run_callback(self.back)
            if unfinished:
                inbox.dispatch()
            del inbox  # an idle worker keeps no actor alive

    def _leave(self) -> None:
        """Killed while it ran nothing: that is no failure of the actor that it was about to serve."""
        if self in self.idle:
            self.idle.remove(self)
        if self.inbox is not None:
            self.inbox.dispatch()
