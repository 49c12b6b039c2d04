"""The way into a hub from other threads.

gevent's own, `loop.run_callback_threadsafe`, adds to the count of what keeps the loop going from the calling
thread. The loop changes that count in its own, without a lock, so one of two changes is lost now and then.
Below zero, the loop takes it that nothing can happen any more: it raises `LoopExit` in whoever waits, with
answers under way. A bell only sends an async watcher, which libev allows from any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent


class Bell:
    """Calls functions in the thread of a loop, in the order in which they came. It keeps no loop going."""

    __slots__ = ("_loop", "_rung", "_watcher")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._rung: deque[Callable[[], object]] = deque()
        self._watcher = loop.async_(ref=False)
        self._watcher.start(self._answer)

    def __call__(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function(*args)` soon, in the loop's thread and in its hub. From any thread; never waits."""
        self._rung.append(partial(function, *args))
        self._watcher.send()

    def _answer(self) -> None:
        while self._rung:
            self._loop.run_callback(self._rung.popleft())


def bell() -> Bell:
    """The bell of the calling thread's hub, made at the first call; it lives as long as the hub."""
    hub = gevent.get_hub()
    found: Bell | None = getattr(hub, "palaver_bell", None)
    if found is None:
        found = hub.palaver_bell = Bell(hub.loop)
    return found
