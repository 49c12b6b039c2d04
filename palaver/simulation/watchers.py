"""What a virtual loop runs: callbacks, timers, idle and async watchers, with the behaviour of libev's."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nextafter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from palaver.simulation.loop import VirtualLoop


class Callback:
    """Something to run in the hub soon. True until it has run or was stopped; `pending` until it starts."""

    __slots__ = ("args", "callback")

    callback: Callable[..., object] | None
    args: tuple[Any, ...] | None

    def stop(self) -> None:
        self.callback = self.args = None

    close = stop

    def __bool__(self) -> bool:
        return self.args is not None

    @property
    def pending(self) -> bool:
        return self.callback is not None


class Wake(Callback):
    """A call at an instant, and nothing else: what a timer is where only its function is needed.

    Attributes:
        due: when.
        ticket: its place among the loop's timers; 0 when it is stopped or has fired.
    """

    __slots__ = ("due", "loop", "ticket")

    priority = 0

    def __init__(
        self, loop: VirtualLoop, due: float, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.due = due
        self.callback = callback
        self.args = args
        self.ticket = loop.add_timer(self, True)

    def stop(self) -> None:
        """Call nothing."""
        if self.ticket:
            self.ticket = 0
            self.loop.drop_timer(True, popped=False)
        self.callback = self.args = None

    def fire(self) -> None:
        """Called by the loop when `due` is reached."""
        self.ticket = 0
        self.loop.fired(self)


class Watcher:
    """What timers, idle and async watchers share: a callback while started, and one queued run at most."""

    __slots__ = ("_queued", "active", "args", "callback", "loop", "priority", "ref")

    def __init__(self, loop: VirtualLoop, ref: bool = True, priority: int | None = None) -> None:
        self.loop = loop
        self.ref = ref
        self.priority = priority or 0
        self.active = False
        self.callback: Callable[..., object] | None = None
        self.args: tuple[Any, ...] | None = None
        self._queued: Callback | None = None

    def start(self, callback: Callable[..., object], *args: Any, update: bool | None = None) -> None:
        """Begin to watch; on a started watcher only the callback is replaced. `update` means nothing here."""
        if not callable(callback):
            raise TypeError(f"the callback must be callable, not {callback!r}")
        self.callback, self.args = callback, args
        if not self.active:
            self.active = True
            self._schedule()

    def stop(self) -> None:
        """Watch no more, and drop a run that is queued."""
        if self.active:
            self._unschedule()
        self.active = False
        self.callback = self.args = None
        if self._queued is not None:
            self._queued.stop()
            self._queued = None

    close = stop

    @property
    def pending(self) -> bool:
        return self._queued is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _queue(self) -> None:
        if self._queued is None:
            self._queued = self.loop.run_callback(self._run)

    def _run(self) -> None:
        self._queued = None
        callback, args = self.callback, self.args
        if callback is None or args is None:
            return
        try:
            callback(*args)
        finally:
            if not self.active:
                self.stop()

    def _schedule(self) -> None:
        """Make the loop know this watcher."""

    def _unschedule(self) -> None:
        """Make the loop forget it."""


class Timer(Watcher):
    """Runs its callback `after` virtual seconds, and then every `repeat`, if that is above 0."""

    __slots__ = ("_after", "_counted", "_repeat", "due", "ticket")

    def __init__(
        self,
        loop: VirtualLoop,
        after: float,
        repeat: float = 0.0,
        ref: bool = True,
        priority: int | None = None,
    ) -> None:
        if repeat < 0.0 or isnan(repeat) or isnan(after):
            raise ValueError(f"a timer cannot take {after!r} seconds and then {repeat!r}")
        super().__init__(loop, ref, priority)
        self._after = max(0.0, after)
        self._repeat = repeat
        self._counted = False
        self.due = 0.0
        self.ticket = 0

    def again(self, callback: Callable[..., object], *args: Any, update: bool | None = None) -> None:
        """Start the `repeat` interval anew from now; without one, stop."""
        if self.active or self._queued is not None or not self._repeat:
            self.stop()
        if self._repeat:
            self.callback, self.args, self.active = callback, args, True
            self._due_at(self.loop.instant + self._repeat)

    def fire(self) -> None:
        """Called by the loop when `due` is reached: queue the run, and the next one of a repeating timer."""
        self._unschedule(popped=True)
        self._queue()
        if self._repeat:
            self._due_at(max(self.due + self._repeat, nextafter(self.due, inf)))
        else:
            self.active = False

    def _schedule(self) -> None:
        self._due_at(self.loop.instant + self._after)

    def _due_at(self, due: float) -> None:
        self.due = due
        self._counted = self.ref
        self.ticket = self.loop.add_timer(self, self._counted)

    def _unschedule(self, popped: bool = False) -> None:
        self.ticket = 0
        self.loop.drop_timer(self._counted, popped)


class Idle(Watcher):
    """Runs its callback whenever nothing is runnable, before time moves on."""

    __slots__ = ()

    def _schedule(self) -> None:
        self.loop.idlers.append(self)

    def _unschedule(self) -> None:
        self.loop.idlers.remove(self)

    def fire(self) -> None:
        """Called by the loop when nothing is runnable."""
        self._queue()


class Async(Watcher):
    """Runs its callback after `send`, which only the simulation's own thread may call."""

    __slots__ = ()

    def send(self) -> None:
        """Queue the callback, once however often it is sent before it runs."""
        self.loop.check_thread("async watcher's send")
        if self.active:
            self._queue()

    def send_ignoring_arg(self, _ignored: object) -> None:
        """`send`, for callers that pass something."""
        self.send()
