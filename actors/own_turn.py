"""The greenlets of turns, and turns that would wait for themselves: in a tool or hook of the very turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import getweakrefcount

import gevent
from gevent.event import Event
from gevent.hub import RawGreenlet

from actors.futures import Deadlock
from actors.workers import IDLE_WORKERS, busy_apart, end_idle, idle_apart

_current = gevent.getcurrent


class TurnRun:
    """A turn, or one of its tool calls, in a raw greenlet from its hub's pool. Started at once.

    A new greenlet for each turn would cost as much as a third of all the rest of a quick turn. A greenlet
    that served one turn serves another only if nothing is left in it of the user's code that ran there: no
    timeout that was never cancelled, no greenlet-local value, no context variable.
    """

    __slots__ = ("_over", "_worker", "begun", "conversation_id", "function")

    def __init__(self, conversation_id: int, function: Callable[[], object]) -> None:
        self.conversation_id = conversation_id
        self.function = function
        self.begun = False
        self._over: Event | None = None  # for who waits for the end
        self._worker: _TurnWorker | None = _take()
        self._worker.start(self)

    def kill(self) -> None:
        """Raise `GreenletExit` where it waits, when the hub comes to it, if it has not ended by then.

        What has not begun never does.
        """
        if not self.begun:
            self.function = _nothing
        gevent.get_hub().loop.run_callback(self._kill)

    def over(self) -> Event:
        """Set once the function has ended."""
        if self._over is None:
            self._over = Event()
            if self._worker is None:
                self._over.set()
        return self._over

    def end(self) -> None:
        """The function has ended: its greenlet is another turn's from now on."""
        self._worker = None
        self.function = _nothing  # it refers to who holds this
        if self._over is not None:
            self._over.set()

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.throw(gevent.GreenletExit)


class _TurnWorker(RawGreenlet):  # type: ignore[misc]  # gevent ships no types
    """A greenlet that runs one turn after the other, and waits among the idle ones in between."""

    __slots__ = ("busy", "idle", "task")

    switch_out = None  # hub.switch() looks for it every time, and is slow to find nothing

    def __init__(self, idle: list[_TurnWorker], busy: dict[_TurnWorker, None]) -> None:
        super().__init__()
        self.idle = idle
        self.busy = busy
        self.task: TurnRun | None = None

    def start(self, task: TurnRun) -> None:
        """Run a task as soon as the hub gets to it."""
        self.task = task
        self.busy[self] = None
        self.parent.loop.run_callback(self.switch)

    def run(self) -> None:
        while True:
            try:
                self.parent.switch()
            except BaseException:
                self._leave()
                return
            if self.task is None:  # a foreign switch
                continue
            self.task.begun = True
            try:
                self.task.function()
            except gevent.GreenletExit:
                pass
            except BaseException:
                self.parent.handle_error(self, *sys.exc_info())
            self._finish()
            if len(self.idle) >= IDLE_WORKERS:
                return
            self.idle.append(self)

    def _finish(self) -> None:
        task, self.task = self.task, None  # an idle worker keeps no turn alive
        self.busy.pop(self, None)
        if task is not None:
            task.end()

    def _leave(self) -> None:
        """Killed while it ran nothing."""
        if self in self.idle:
            self.idle.remove(self)
        self._finish()


def _take() -> _TurnWorker:
    """A worker in which nothing is left of what it ran before."""
    hub = gevent.get_hub()
    idle: list[_TurnWorker] = idle_apart(hub)
    while idle:
        worker = idle.pop()
        if sys.getrefcount(worker) == _UNSHARED and not getweakrefcount(worker) and not worker.__dict__:
            worker.gr_context = None
            return worker
        end_idle(worker)
    return _new(idle, busy_apart(hub), hub)


def _new(idle: list[_TurnWorker], busy: dict[_TurnWorker, None], hub: Any) -> _TurnWorker:
    worker = _TurnWorker(idle, busy)
    worker.switch()  # to its first wait: even a kill before its first turn finds it running
    worker.parent = hub
    return worker


def _count_unshared() -> int:
    """References to a worker that waits, when nothing but `_take` refers to it."""
    worker = _new([], {}, _current())
    count = sys.getrefcount(worker)
    worker.throw()
    return count


_UNSHARED = _count_unshared()


def kill_turns() -> int:
    """Kill every turn that runs in the current thread's hub; returns how many there were.

    For when that hub is to be destroyed: nothing else ends the greenlet of a turn whose runtime was dropped.
    """
    running = [worker.task for worker in busy_apart(gevent.get_hub()) if worker.task is not None]
    for run in running:
        run.kill()
    return len(running)


def _nothing() -> None:
    """What is left of a turn's function when it has ended."""


def in_own_turn(conversation_id: int | None) -> bool:
    """Whether this is a greenlet of the turn that runs in a conversation; None is any."""
    current = _current()
    task = current.task if isinstance(current, _TurnWorker) else None
    return task is not None and conversation_id in (None, task.conversation_id)


def check_not_own_turn(conversation_id: int | None, what: str) -> None:
    """Refuse to wait, in a turn's own greenlets, for something that this turn has to end for.

    Args:
        conversation_id: the conversation waited for; None is any.
        what: what would be waited for, for the error.

    Raises:
        Deadlock: it would never come.
    """
    if in_own_turn(conversation_id):
        raise Deadlock(
            f"{what} would wait for the very turn that asks for it, for ever: do not wait for it in a tool "
            "or hook of that conversation (submit() does not wait), or ask from a greenlet of its own"
        )
