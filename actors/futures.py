"""pykka's future on gevent, for greenlets of one thread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from queue import Full
from types import TracebackType
from typing import Any, TypeVar

import gevent.monkey
import pykka

from actors.errors import HandlerFailed, WrongThread
from persistence.errors import PalaverError

T = TypeVar("T")
ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

# In a patched process threading.get_ident() tells greenlets apart, not threads.
thread_ident: Any = gevent.monkey.get_original("_thread", "get_ident")
current = gevent.getcurrent
_UNSET: Any = object()
_FAILED: Any = object()
_EXPIRED = object()


class Deadlock(PalaverError, RuntimeError):
    """This wait could never end: an actor waits for its own answer, or the hub for something it must run."""


class GreenletFuture(pykka.Future[T]):
    """An answer that is there, or will be: pykka's future for greenlets.

    Any number of greenlets may wait. A wait that times out or is killed takes nothing from the others,
    and is never switched to afterwards. An exception that is no `Exception` is kept as `HandlerFailed`.
    """

    __slots__ = ("_answer", "_error", "_get_hook", "_line", "_loop", "_thread", "_waiter", "_wakeup")

    def __init__(self) -> None:
        # pykka's own __init__ would make two objects more, of no use here. What is only read after it was
        # written is not set: futures are made for every ask.
        self._answer: Any = _UNSET
        self._get_hook: Callable[[float | None], T] | None = None
        self._thread: int = thread_ident()
        self._waiter: Any = None  # the greenlet that waits first, or runs the get hook
        self._line: dict[GreenletFuture[None], None] | None = None  # the others, each on a future of its own

    def get(self, *, timeout: float | None = None) -> Any:
        """The answer, or the exception that was set; blocks the calling greenlet only.

        Args:
            timeout: seconds to wait; None is for ever, 0 or less does not wait.

        Raises:
            pykka.Timeout: no answer in time. Whatever was asked for still happens.
            WrongThread: no answer yet, and the future belongs to another thread.
            Deadlock: no answer yet, and called in the hub, by a loop callback.
        """
        while self._answer is _UNSET:
            if self._get_hook is None:
                self._wait(timeout)
            else:
                self._run_get_hook(self._get_hook, timeout)
        if self._answer is not _FAILED:
            return self._answer
        error, traceback = self._error
        try:
            raise error.with_traceback(traceback)
        finally:
            del self, error, traceback  # the error's traceback holds this frame: no cycle through it

    def set(self, value: Any = None) -> None:
        """Set the answer and wake who waits, in the future's own thread only.

        Raises:
            queue.Full: it has an answer or a get hook already.
            WrongThread: called from another thread.
        """
        if self._answer is not _UNSET or self._get_hook is not None:
            raise Full
        if thread_ident() != self._thread:
            raise wrong_thread("this future")
        self._answer = value
        if self._waiter is not None or self._line is not None:
            self._wake()

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Set an exception as the answer: `exc_info`, or the one being handled. Errors as for `set`."""
        kind, error, traceback = sys.exc_info() if exc_info is None else exc_info
        if error is None:
            if kind is None:
                raise ValueError("set_exception() outside an except block needs an exc_info")
            error = kind()
        if not isinstance(error, Exception):
            error, traceback = contained(error, "who was to answer raised"), None
        if self._answer is _UNSET:
            self._error = (error, traceback)
        self.set(_FAILED)

    def fail(self, error: BaseException) -> None:
        """Set `error` as the answer, without a traceback of where it comes from. Errors as for `set`."""
        self.set_exception((type(error), error, None))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Let `func(timeout)` make the answer at the first `get`, once. Errors as for `set`."""
        if self._answer is not _UNSET:
            raise Full
        if thread_ident() != self._thread:
            raise wrong_thread("this future")
        first, self._get_hook = self._get_hook is None, func
        if first:
            self._wake()

    def _run_get_hook(self, get_hook: Callable[[float | None], T], timeout: float | None) -> None:
        if thread_ident() != self._thread:
            raise wrong_thread("this future")
        me = current()
        if self._waiter is not None and self._waiter is not me:
            self._wait_in_line(timeout)  # for the greenlet that runs the hook now
            return
        self._waiter = me
        try:
            self._answer = get_hook(timeout)
        finally:
            self._waiter = None
            self._wake()

    def _wait(self, timeout: float | None) -> None:
        """Block until something was set."""
        if thread_ident() != self._thread:
            raise wrong_thread("this future")
        if timeout is not None and timeout <= 0:
            raise pykka.Timeout(f"{timeout} seconds")
        me, hub = current(), gevent.get_hub()
        if me is hub:
            raise Deadlock("get() in the hub of a future without an answer: call it in a greenlet")
        if self._waiter is not None:
            self._wait_in_line(timeout)
            return
        self.wait_by(hub, hub.loop, me, timeout)

    def wait_by(self, onward: Any, waker: Any, me: Any, timeout: float | None) -> None:
        """Block the greenlet `me`, which is the first to wait, until something was set.

        Args:
            onward: the greenlet that runs next; the hub does, whenever `me` is woken by mistake.
            waker: its `run_callback` is called to have `me` woken, and returns what can be stopped.
        """
        hub = gevent.get_hub()
        self._waiter, self._loop = me, waker
        timer = None
        try:
            if timeout is not None:
                timer = hub.loop.timer(timeout)
                timer.start(me.switch, _EXPIRED, update=True)
            while True:
                woken_by = onward.switch()
                if self._waiter is not me:
                    return
                onward = hub
                if woken_by is _EXPIRED:
                    raise pykka.Timeout(f"{timeout} seconds")
        finally:
            # Whatever ended the wait, nothing may switch to this greenlet later: it waits for other things.
            if self._waiter is me:
                self._waiter = None
            else:
                self._wakeup.stop()
            if timer is not None:
                timer.close()

    def _wait_in_line(self, timeout: float | None) -> None:
        if self._line is None:
            self._line = {}
        line = self._line
        turn: GreenletFuture[None] = GreenletFuture()
        line[turn] = None
        try:
            turn.get(timeout=timeout)
        finally:
            line.pop(turn, None)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._wakeup = self._loop.run_callback(waiter.switch)
        if self._line is not None:
            line, self._line = self._line, None
            for turn in line:
                turn.set()


def contained(error: BaseException, what: str) -> HandlerFailed:
    """What other actors get for an exception that must not cross to them."""
    failed = HandlerFailed(f"{what} {shown(error)}, which must not cross from one actor to another")
    failed.__cause__ = error
    return failed


def shown(error: BaseException) -> str:
    """An error in words, whatever it is."""
    try:
        return repr(error)
    except BaseException:  # whatever the error's own code raises
        return type(error).__name__


def wrong_thread(what: str) -> WrongThread:
    """The error of whoever uses `what` in another thread than it belongs to."""
    return WrongThread(
        f"{what} belongs to another thread: call it from there, or hand the call over with "
        "Runtime.from_thread(), or by an async watcher of that thread's loop"
    )
