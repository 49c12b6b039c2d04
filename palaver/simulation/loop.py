"""Virtual time for gevent: a loop whose clock jumps to the next timer when nothing is runnable.

Sleeps, timeouts, events, queues, pools and greenlets of gevent follow whatever loop their hub has, so code
that takes its time and randomness from outside runs here unchanged, thousands of virtual seconds in one
real one. A run is a function of its input and of the order in which runnable callbacks are taken: first come
first served, or chosen by a random generator that is handed in. What would reach the real world (sockets,
signals, processes, threads) is refused by name.

    result = run_virtual(function, argument, rng=random.Random(7))
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import WeakValueDictionary

import gevent
from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists, set_hub
from gevent.exceptions import HubDestroyed, LoopExit
from gevent.hub import Hub
from gevent.monkey import get_original

from actors.greenlet import release_idle_workers
from actors.own_turn import kill_turns
from palaver.simulation.errors import SimulationError, SimulationStuck, TooManySteps, refuse, refused
from palaver.simulation.watchers import Async, Callback, Idle, Timer, Wake

Result = TypeVar("Result")

MAX_STEPS = 10_000_000
EPOCH = 1_750_000_000.0
_CLOSING_STEPS = 50_000
_CLOSING_STEPS_EACH = 50
_CLOSING_ROUNDS = 3
_CLOSING_TURNS = 200
_CLOSING_S = 20.0
_COMPACT_FROM = 64

Started = WeakValueDictionary[int, gevent.Greenlet]
"""The gevent greenlets of a simulation that are in memory, by the order of their start."""

_thread_ident: Callable[[], int] = get_original("_thread", "get_ident")


class Chooser(Protocol):
    """What picks among runnable callbacks: a `random.Random`, or anything with its `randrange`."""

    def randrange(self, stop: int, /) -> int:
        """A number from 0 to `stop - 1`."""


class VirtualLoop:
    """A gevent loop on virtual time. It is used by one hub, in one thread, for one run.

    Args:
        rng: chooses which runnable callback is next; None takes them in the order they came, and
            timers of one instant by priority, then in the order they were started.
        max_steps: callbacks to run at most; then the loop stops and sets `exhausted`.

    `instant`, the virtual seconds since it was made, and `steps` can be read after the run.
    """

    default = False
    MAXPRI = 2
    MINPRI = -2
    approx_timer_resolution = 0.00001
    error_handler: Any = None
    picks = True  # which callback is next: an actor that is asked does not run by itself

    io = refused("a socket, pipe or other file descriptor")
    closing_fd = refused("closing a file descriptor")
    signal = refused("a signal handler")
    child = install_sigchld = reset_sigchld = refused("a child process")
    stat = refused("watching a file")
    fork = reinit = refused("a thread pool or a fork")
    prepare = check = refused("a watcher around the polling of file descriptors")

    def __init__(self, rng: Chooser | None = None, *, max_steps: int = MAX_STEPS) -> None:
        self.max_steps = max_steps
        self.steps = 0
        self.exhausted = False
        self.destroyed = False
        self.idlers: list[Idle] = []
        self.instant = 0.0
        self._tickets = count(1)
        self._timers: list[tuple[float, int, int, Timer | Wake]] = []
        self._stale = 0
        self._referenced = 0
        self._thread = _thread_ident()
        self._callbacks: deque[Callback] | list[Callback]
        if rng is None:
            self._callbacks = first_come = deque[Callback]()
            self._take = first_come.popleft
        else:
            self._callbacks = waiting = list[Callback]()
            self._take = _taking(waiting, rng)

    # -- what gevent asks for -------------------------------------------------------------------------

    def now(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.instant

    @property
    def runnable(self) -> int:
        """How many callbacks wait to be run now."""
        return len(self._callbacks)

    def update_now(self) -> None:
        """Nothing: time moves only when nothing is runnable."""

    update = update_now

    def timer(
        self, after: float, repeat: float = 0.0, ref: bool = True, priority: int | None = None
    ) -> Timer:
        """A timer, not started. One with `ref=False` does not keep the simulation going."""
        return Timer(self, after, repeat, ref, priority)

    def call_later(self, seconds: float, function: Callable[..., object], *args: Any) -> Wake:
        """Call `function(*args)` in the hub after so many virtual seconds; cheaper than a timer."""
        return Wake(self, self.instant + seconds, function, args)

    def idle(self, ref: bool = True, priority: int | None = None) -> Idle:
        """An idle watcher, not started."""
        return Idle(self, ref, priority)

    def async_(self, ref: bool = True, priority: int | None = None) -> Async:
        """An async watcher, not started. It never keeps the simulation going: nobody else can send."""
        return Async(self, ref, priority)

    def run_callback(self, callback: Callable[..., object], *args: Any) -> Callback:
        """Run `callback(*args)` in the hub, at the present virtual instant."""
        queued = Callback()  # without an `__init__`, which would cost more than all of this
        queued.callback, queued.args = callback, args
        self._callbacks.append(queued)
        return queued

    def run_callback_threadsafe(self, callback: Callable[..., object], *args: Any) -> Callback:
        """`run_callback`, refused from any thread but the simulation's own."""
        self.check_thread("a callback")
        return self.run_callback(callback, *args)

    def check_thread(self, what: str) -> None:
        """Refuse `what` from any thread but the simulation's own."""
        if _thread_ident() != self._thread:
            refuse(f"{what} from another thread")

    def handle_error(self, context: object, kind: Any, error: Any, traceback: Any) -> None:
        """Report what a callback raised to the hub, which prints it or raises it in its parent."""
        if kind is HubDestroyed:
            raise error  # the hub's greenlet must end: suspended, it would be kept for ever
        if self.error_handler is not None:
            self.error_handler.handle_error(context, kind, error, traceback)
        else:
            sys.excepthook(kind, error, traceback)

    def destroy(self) -> None:
        """Drop everything that is scheduled. The loop cannot run again."""
        self.destroyed = True
        self.max_steps = -1
        self._callbacks.clear()
        self._timers.clear()
        self.idlers.clear()

    close = destroy

    def forget(self, but: object) -> list[object]:
        """Drop everything that is scheduled, except timers with `but` as their callback's first argument, as
        the `gevent.Timeout`s of a greenlet have. Time goes on, and so may the loop.

        Returns:
            What was dropped. Greenlets that only the schedule knew of end when it is let go.
        """
        dropped: list[object] = [(queued.callback, queued.args) for queued in self._callbacks]
        self._callbacks.clear()
        for _, _, ticket, timer in sorted(self._timers, key=lambda entry: entry[:3]):
            args = timer.args if isinstance(timer, Timer) else None
            if timer.ticket == ticket and not (args and args[0] is but):
                dropped.append((timer.callback, args) if isinstance(timer, Timer) else timer)
                timer.stop()
        for watcher in [*self.idlers]:
            dropped.append((watcher.callback, watcher.args))
            watcher.stop()
        return dropped

    def _format(self) -> str:
        return f"virtual time {self.instant:.6f} s, {self.steps} steps"

    def run(self) -> None:
        """Run callbacks until nothing is scheduled, the step limit is reached, or the loop is destroyed."""
        waiting, take = self._callbacks, self._take
        while waiting or (self.idlers and self._wake_idlers()) or self._advance():
            if self.steps >= self.max_steps:
                self.exhausted = not self.destroyed
                return
            queued = take()
            callback, args = queued.callback, queued.args
            if callback is None or args is None:
                continue
            self.steps += 1
            queued.callback = None
            try:
                callback(*args)
            except BaseException:
                self.handle_error(queued, *sys.exc_info())
            finally:
                queued.args = None

    def _wake_idlers(self) -> bool:
        for watcher in self.idlers:
            watcher.fire()
        return bool(self.idlers)

    # -- timers: a heap, from which stopped ones are dropped lazily ------------------------------------

    def add_timer(self, timer: Timer | Wake, referenced: bool) -> int:
        """Put a timer on the heap at its `due`; the ticket is valid until it is stopped or fires."""
        ticket = next(self._tickets)
        self._referenced += referenced
        heappush(self._timers, (timer.due, -timer.priority, ticket, timer))
        return ticket

    def drop_timer(self, referenced: bool, popped: bool) -> None:
        """Count a timer out. Its place on the heap goes when half of the heap is such places."""
        self._referenced -= referenced
        if popped:
            return
        self._stale += 1
        if self._stale > _COMPACT_FROM and self._stale * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[3].ticket == entry[2]]
            heapify(self._timers)
            self._stale = 0

    def fired(self, wake: Wake) -> None:
        """Its instant is reached: it runs soon."""
        self._referenced -= 1
        self._callbacks.append(wake)

    def _advance(self) -> bool:
        """Move time to the next timer and queue all that are due then; False if none keeps the loop alive."""
        if not self._referenced:
            return False
        fired, now = False, self.instant
        while self._timers:
            due, _, ticket, timer = self._timers[0]
            if due == inf or (fired and due > now):
                break
            heappop(self._timers)
            if timer.ticket != ticket:
                self._stale -= 1
                continue
            if due > now:
                self.instant = now = due
            timer.fire()
            fired = True
        return fired


def _taking(waiting: list[Callback], rng: Chooser) -> Callable[[], Callback]:
    """What takes one of `waiting` out, chosen by `rng`."""
    randrange = rng.randrange

    def take() -> Callback:
        count = len(waiting)
        if count == 1:
            return waiting.pop()
        chosen = randrange(count)
        taken, waiting[chosen] = waiting[chosen], waiting[-1]
        waiting.pop()
        return taken

    return take


class VirtualClock:
    """The `Clock` of a simulation: `monotonic` is the loop's time, `wall` a fixed epoch later.

    Args:
        loop: the loop; None is the one this code runs on.
        epoch: seconds since the Unix epoch at virtual time 0.

    Raises:
        SimulationError: no loop is given, and the current one is not virtual.
    """

    __slots__ = ("_epoch", "_loop")

    def __init__(self, loop: VirtualLoop | None = None, epoch: float = EPOCH) -> None:
        self._loop = current_loop() if loop is None else loop
        self._epoch = epoch

    def monotonic(self) -> float:
        return self._loop.instant

    def wall(self) -> float:
        return self._epoch + self._loop.instant


def current_loop() -> VirtualLoop:
    """The virtual loop that the calling greenlet runs on.

    Raises:
        SimulationError: it runs on the real one.
    """
    loop = getattr(get_hub_if_exists(), "loop", None)
    if not isinstance(loop, VirtualLoop):
        raise SimulationError("this is not inside a simulation; start it with run_virtual")
    return loop


def pause(seconds: float) -> None:
    """Let so many virtual seconds pass for the calling greenlet: `gevent.sleep` at a third of its cost.

    Raises:
        SimulationError: the calling greenlet runs on the real loop.
    """
    hub = get_hub_if_exists()
    loop = getattr(hub, "loop", None)
    if not isinstance(loop, VirtualLoop):
        current_loop()
        return
    wake = Wake(loop, loop.instant + seconds, getcurrent().switch, ())
    try:
        hub.switch()
    finally:
        if wake.ticket:
            wake.stop()


def check_outside() -> None:
    """Refuse a simulation inside of a simulation."""
    if isinstance(getattr(get_hub_if_exists(), "loop", None), VirtualLoop):
        refuse("another simulation")


class _VirtualHub(Hub):  # type: ignore[misc]  # gevent ships no types: its Hub is Any
    """A hub without threads."""

    def start_periodic_monitoring_thread(self) -> None:
        """None: a monitor would measure real time."""

    @property
    def threadpool(self) -> NoReturn:
        refuse("the hub's thread pool")

    @property
    def resolver(self) -> NoReturn:
        refuse("a DNS lookup")


def run_virtual(
    function: Callable[..., Result],
    *args: Any,
    rng: Chooser | None = None,
    max_steps: int = MAX_STEPS,
) -> Result:
    """Run `function(*args)` in a greenlet on a new virtual loop, and return what it returns.

    Args:
        function: what to simulate. It may spawn, sleep and wait as on the real loop.
        rng: chooses which runnable callback is next; None takes them in the order they came.
        max_steps: callbacks to run at most.

    The calling greenlet's thread does nothing else meanwhile: its real hub stands still, and is its hub
    again afterwards, whatever happened. When the function has ended, greenlets that it left are killed, in
    the order they were spawned, with a virtual minute to clean up. Raw greenlets are not tracked: they end
    when the last reference to them goes. An object on which real greenlets have waited (an Event, a lock)
    can be set inside, but not waited for.

    Raises:
        SimulationStuck: the function waits for something that can never happen.
        TooManySteps: the limit is reached.
        RealWorldInSimulation: called inside a simulation; or the function let one of these out.
        BaseException: whatever else the function raised.
    """
    return run_on(VirtualLoop(rng, max_steps=max_steps), function, *args)


def run_on(loop: VirtualLoop, function: Callable[..., Result], *args: Any) -> Result:
    """`run_virtual` on a loop of the caller's, which can be read afterwards but not used again."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function(*args))
        except BaseException as error:
            errors.append(error)

    with installed(loop):
        with leftovers_killed(loop):
            _join(gevent.spawn(body), loop)
        if errors:
            raise errors.pop()
        return results.pop()


def _join(main: gevent.Greenlet, loop: VirtualLoop) -> None:
    try:
        main.join()
    except LoopExit:
        raise stopped(loop, "the function") from None


def stopped(loop: VirtualLoop, who: str) -> SimulationError:
    """Why a loop ran out while `who` waits."""
    if loop.exhausted:
        return TooManySteps(
            f"{loop.steps:,} steps were run and {who} has not ended, at virtual time "
            f"{loop.now():.6f} s; it spins (a loop of gevent.sleep(0) lets no time pass), "
            "or needs a higher max_steps"
        )
    return SimulationStuck(
        f"at virtual time {loop.now():.6f} s, after {loop.steps:,} steps, {who} waits "
        "for something that nothing scheduled will do"
    )


@contextmanager
def installed(loop: VirtualLoop) -> Iterator[Hub]:
    """Make a hub on `loop` the current thread's hub; destroy it and put the real one back at the end."""
    check_outside()
    real = get_hub_if_exists()
    if loop.destroyed:
        raise SimulationError("this loop has run already; make a new one")
    hub = _VirtualHub(loop)
    set_hub(hub)
    if real is not None:
        real.switch = refused("waiting for an object that belongs to the real hub")
    try:
        yield hub
    finally:
        if real is not None:
            del real.switch
        try:
            release_idle_workers()  # actors' parked greenlets would keep the hub in memory
            hub.destroy(destroy_loop=True)
        finally:
            set_hub(real)


@contextmanager
def leftovers_killed(loop: VirtualLoop) -> Iterator[Started]:
    """Kill the gevent greenlets that were started meanwhile and are alive at the end, in their order."""
    hub = get_hub_if_exists()
    started: Started = WeakValueDictionary()
    numbers = count()

    def note(greenlet: gevent.Greenlet) -> None:
        if greenlet.parent is hub:
            started[next(numbers)] = greenlet

    gevent.Greenlet.add_spawn_callback(note)
    try:
        yield started
    finally:
        try:
            _kill_all(loop, started)
        finally:
            gevent.Greenlet.remove_spawn_callback(note)


def _kill_all(loop: VirtualLoop, started: Started) -> None:
    """Kill what is alive, and what that spawns while it dies; what goes on for all that is left alone."""
    for number in range(_CLOSING_ROUNDS + _CLOSING_TURNS):
        if gevent.get_hub().dead:  # an error of the loop's own ended it: nothing can run any more
            return
        alive = [greenlet for greenlet in started.values() if not greenlet.dead]
        turns = kill_turns()  # each may be followed by the next in its conversation's line
        if number >= _CLOSING_ROUNDS:
            alive.clear()
            if not turns:
                return
        loop.max_steps = loop.steps + _CLOSING_STEPS + _CLOSING_STEPS_EACH * (len(alive) + turns)
        try:
            gevent.killall(alive, timeout=_CLOSING_S)
            _settle(loop)
        except gevent.Timeout:
            continue
        except LoopExit:
            return


def _settle(loop: VirtualLoop) -> None:
    """Let what is runnable run: a raw greenlet that never comes to its first switch stays in memory."""
    for _ in range(_CLOSING_TURNS):
        if not loop.runnable:
            return
        gevent.sleep(0)
