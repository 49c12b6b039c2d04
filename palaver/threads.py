"""A runtime belongs to one thread of one process: refusing others, and the one way in from another thread."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gevent
from gevent.monkey import get_original

from actors.bell import bell
from actors.errors import WrongThread
from persistence import forks

P = ParamSpec("P")
T = TypeVar("T")

# In a patched process threading.get_ident() tells greenlets apart, and a patched lock is of no use between
# threads: these are the real ones.
_thread_ident: Callable[[], int] = get_original("_thread", "get_ident")
_allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")


class Owner:
    """The thread and process that a runtime was opened in."""

    __slots__ = ("_bell", "_pid", "_process", "_thread")

    def __init__(self) -> None:
        self._bell = bell()
        self._thread = _thread_ident()
        self._pid, self._process = os.getpid(), forks.process

    def check(self) -> None:
        """Refuse a call from elsewhere.

        Raises:
            WrongThread: saying what to do.
        """
        if _thread_ident() != self._thread:
            raise WrongThread(
                "this Runtime belongs to the thread that opened it; from another thread use "
                "runtime.from_thread(function, *args).result()"
            )
        if self._process is not forks.process:
            raise WrongThread(
                f"this Runtime was opened by process {self._pid}; a forked child must open its own, "
                "after the fork and on another file"
            )

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ThreadFuture[T]:
        """Run `function` in a greenlet of the owner's thread; callable from any thread of the process."""
        if self._process is not forks.process:
            self.check()
        future: ThreadFuture[T] = ThreadFuture(self._thread)

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = function(*args, **kwargs)
            except BaseException as error:  # whatever it was, the other thread waits for it
                future.set_exception(error)
            else:
                future.set_result(value)

        self._bell(gevent.spawn, call)
        return future


class ThreadFuture(concurrent.futures.Future[T]):
    """A future that native threads can wait for, also in a process that gevent has patched.

    Waiting in the runtime's own thread would stop every conversation: there `WrongThread` is raised.
    """

    def __init__(self, runtime_thread: int) -> None:
        super().__init__()
        self._runtime_thread = runtime_thread
        self._pending = _allocate_lock()
        self._pending.acquire()

    def set_result(self, result: T) -> None:
        super().set_result(result)
        self._release()

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception)
        self._release()

    def cancel(self) -> bool:
        """Take the call back, if it has not begun; whether that was in time."""
        cancelled = super().cancel()
        if cancelled:
            self._release()
        return cancelled

    def _release(self) -> None:
        if self._pending.locked():
            self._pending.release()

    def result(self, timeout: float | None = None) -> T:
        """The function's value; raises its error, or TimeoutError after `timeout` seconds."""
        self._wait(timeout)
        return super().result(timeout=0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The function's error or None; raises TimeoutError after `timeout` seconds."""
        self._wait(timeout)
        return super().exception(timeout=0)

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        if _thread_ident() == self._runtime_thread:
            raise WrongThread("from_thread is for other threads; in the runtime's own, call it directly")
        if not self._pending.acquire(True, -1 if timeout is None else timeout):
            raise concurrent.futures.TimeoutError(f"no result after {timeout} s; the call goes on")
        self._pending.release()
