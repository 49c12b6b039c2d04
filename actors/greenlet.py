"""pykka's actors and futures on gevent: a greenlet only while there are messages.

`GreenletActor` and `GreenletFuture` take the place of pykka's `ThreadingActor` and `ThreadingFuture`, in a
process that gevent has patched or has not. This is the only file that touches pykka's private names.

An actor that has nothing to do holds no greenlet: the first message gives its inbox to a worker, a raw
greenlet that handles what is there and goes back to its hub's pool. What differs from pykka:

- A `BaseException` that leaves a handler (`gevent.Timeout`, `GreenletExit`, `SystemExit`, ...) harms that
  actor alone. An asker gets it as `HandlerFailed` and the actor goes on; under `tell` it is a failure like
  any other, and the actor dies. pykka would stop every actor of the process.
- `on_death` is called at every end of an actor, whatever the cause, and so is whoever watches its ref.
- Actors are not in `pykka.ActorRegistry`, so stopping one costs the same whatever their number, and
  `ActorRegistry.stop_all()` leaves them alone. Whoever starts actors keeps their refs. An actor that nobody
  refers to and that has no messages is collected, without `on_stop` or `on_death`.
- An actor belongs to the thread that started it and a future to the thread that made it: other threads get
  `WrongThread`. An actor that waits without a timeout for its own answer gets `Deadlock`.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import Empty, Full
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import gevent.monkey
import pykka
from gevent.hub import RawGreenlet
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from actors.errors import HandlerFailed, WrongThread
from persistence.errors import PalaverError

__all__ = [
    "LATER",
    "Deadlock",
    "GreenletActor",
    "GreenletActorRef",
    "GreenletFuture",
    "NotHandled",
    "release_idle_workers",
]

T = TypeVar("T")
A = TypeVar("A", bound=pykka.Actor)
_Letter = tuple[Any, "pykka.Future[Any] | None"]  # message, reply_to: quicker to make than an Envelope
ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

logger = logging.getLogger("pykka")

IDLE_WORKERS = 1_000  # per hub; one more than this ends instead of waiting for work
BURST = 100  # messages of one inbox before other greenlets and timers get their turn
AT_ONCE = 10  # asks in a hub that took no hop through its loop before others get their turn

# In a patched process threading.get_ident() tells greenlets apart, not threads.
_thread_ident: Any = gevent.monkey.get_original("_thread", "get_ident")
_current = gevent.getcurrent
_actor_numbers = count(1)
_UNSET: Any = object()
_FAILED: Any = object()
_EXPIRED = object()
LATER: Any = object()  # instead of a reply that takes no wait: there is none now


class Deadlock(PalaverError, RuntimeError):
    """This wait could never end: an actor waits for its own answer, or the hub for something it must run."""


class NotHandled(pykka.ActorDeadError):
    """The actor is dead, or died before it came to the message: nothing has been done about it.

    Attributes:
        inbox: that actor's, which tells this error from one that a handler has raised.
    """

    def __init__(self, name: object, words: str, inbox: object) -> None:
        super().__init__(f"{name} {words}")
        self.inbox = inbox


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
        self._thread: int = _thread_ident()
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
        if _thread_ident() != self._thread:
            raise _wrong_thread("this future")
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
            error, traceback = _contained(error, "who was to answer raised"), None
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
        if _thread_ident() != self._thread:
            raise _wrong_thread("this future")
        first, self._get_hook = self._get_hook is None, func
        if first:
            self._wake()

    def _run_get_hook(self, get_hook: Callable[[float | None], T], timeout: float | None) -> None:
        if _thread_ident() != self._thread:
            raise _wrong_thread("this future")
        me = _current()
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
        if _thread_ident() != self._thread:
            raise _wrong_thread("this future")
        if timeout is not None and timeout <= 0:
            raise pykka.Timeout(f"{timeout} seconds")
        me, hub = _current(), gevent.get_hub()
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


class _Workers:
    """The idle workers of one hub."""

    __slots__ = ("apart", "at_once", "busy", "hub", "idle", "picks", "thread")

    def __init__(self, hub: Any, thread: int) -> None:
        self.hub = hub
        self.thread = thread
        self.at_once = 0  # asks without a hop through the loop since one gave way
        # A loop that picks the order of what is due, as that of a simulation, gets to pick who is asked.
        self.picks = hub is not None and getattr(hub.loop, "picks", False)
        self.idle: list[_Worker] = []
        self.apart: list[Any] = []  # those that serve no actors
        self.busy: dict[Any, None] = {}  # greenlets of that other pool while they run something

    def take(self) -> _Worker:
        if self.idle:
            return self.idle.pop()
        worker = _Worker(self.idle)
        worker.switch()  # to its first wait: even a kill before its first message finds it running
        worker.parent = self.hub
        return worker


# An inbox that is not open has one of these for its workers, so that an open one pays for no test of it.
_NOT_STARTED = _Workers(None, -1)
_DEAD = _Workers(None, -1)


def _workers_here() -> _Workers:
    hub = gevent.get_hub()
    workers: _Workers | None = getattr(hub, "palaver_workers", None)
    if workers is None:
        workers = hub.palaver_workers = _Workers(hub, _thread_ident())
    return workers


def idle_apart(hub: Any) -> list[Any]:
    """The hub's idle greenlets of another pool than the actors', which end with theirs."""
    apart: list[Any] = (getattr(hub, "palaver_workers", None) or _workers_here()).apart
    return apart


def busy_apart(hub: Any) -> dict[Any, None]:
    """The hub's greenlets of that other pool that run something, the one that began first first."""
    busy: dict[Any, None] = (getattr(hub, "palaver_workers", None) or _workers_here()).busy
    return busy


def release_idle_workers() -> int:
    """End the idle workers of the current thread's hub; returns how many there were.

    Idle greenlets keep their hub in memory, so call it before a hub is destroyed. At any other time it is
    harmless: new workers come with the next messages.
    """
    workers = _workers_here()
    released = [*workers.idle, *workers.apart]
    workers.idle.clear()
    workers.apart.clear()
    for worker in released:
        end_idle(worker)
    return len(released)


def end_idle(worker: Any) -> None:
    """End a greenlet that waits in its hub for something to do."""
    hub = worker.parent
    worker.parent = _current()  # a greenlet that ends goes on in its parent: here
    worker.throw()
    worker.parent = hub  # where a switch to it goes from now on, if somebody has one left


class _Worker(RawGreenlet):  # type: ignore[misc]  # gevent ships no types
    """A greenlet that drains one inbox after the other, and waits among the idle ones in between."""

    __slots__ = ("asked", "back", "idle", "inbox", "queue")

    switch_out = None  # hub.switch() looks for it every time, and is slow to find nothing

    def __init__(self, idle: list[_Worker]) -> None:
        super().__init__()
        self.idle = idle
        self.inbox: _Inbox | None = None
        self.queue: deque[_Letter] = deque()
        self.asked: _Inbox | None = None  # whose asker runs this worker at once
        self.back: Callable[[], object] | None = None  # to that asker

    def run_callback(self, switch: Callable[[], object]) -> Any:
        """Wake the asker that runs this worker: as soon as it is through, if nothing can come in between."""
        asked = self.asked
        if asked is None or asked.stopped or self.queue or self is not _current():
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


class _Inbox:
    """An actor's mailbox. While it has messages it has a worker, and borrows that worker's queue."""

    __slots__ = ("actor", "number", "queue", "reason", "stopped", "stopping", "worker", "workers")

    reason: HandlerFailed | None  # what the actor died of, in words; set when it has ended

    def __init__(self, actor: GreenletActor) -> None:
        self.actor: GreenletActor | None = actor
        self.number = next(_actor_numbers)
        self.queue: deque[_Letter] | None = None
        self.stopped = False  # what pykka has a threading.Event for, of over 1 KB
        self.stopping: GreenletFuture[None] | None = None  # for who waits for it
        self.worker: _Worker | None = None
        self.workers = _NOT_STARTED

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, as `post` does."""
        self.post((envelope.message, envelope.reply_to))

    def get(self) -> Envelope[Any]:
        """Take the oldest message out; `queue.Empty` if there is none. Does not wait."""
        if not self.queue:
            raise Empty
        return Envelope(*self.queue.popleft())

    def post(self, letter: _Letter) -> None:
        """Add a message; wakes a worker, never blocks.

        Raises:
            WrongThread: called from a thread that the actor does not live in.
        """
        if _thread_ident() != self.workers.thread:
            self._post_while_closed(letter)
        elif self.queue is not None:
            self.queue.append(letter)
        else:
            self.dispatch().append(letter)

    def hand_over(self, message: Any, future: GreenletFuture[Any], timeout: float | None) -> bool:
        """Handle a message at once, if there is nothing that it would have to wait for; whether it was.

        The asker's greenlet switches to the worker and that back again, both without the hub: what a hop
        through its loop costs is most of a short ask. Its worker handles the message all the same, so the
        asker may be killed, and its time may run out, while the handler waits for something.
        """
        workers = self.workers
        if self.queue is not None or _thread_ident() != workers.thread:
            return False
        hub = gevent.get_hub()
        me = _current()
        if hub is not workers.hub or me is hub or (timeout is not None and timeout <= 0):
            return False
        if workers.picks or workers.at_once >= AT_ONCE:
            workers.at_once = 0
            return False
        workers.at_once += 1
        worker = self.worker = workers.take()
        self.queue = worker.queue
        self.queue.append((message, future))
        worker.inbox = worker.asked = self
        try:
            future.wait_by(worker, worker, me, timeout)
        finally:
            if worker.inbox is self:  # there was no wait: no such timeout, or no memory
                hub.loop.run_callback(worker.switch)
        return True

    def empty(self) -> bool:
        return not self.queue

    def __len__(self) -> int:
        return 0 if self.queue is None else len(self.queue)

    def open(self) -> None:
        """From now on messages are handled, by workers of the current hub."""
        self.workers = _workers_here()
        if self.queue:
            self.dispatch()

    def hold(self) -> deque[_Letter]:
        """The queue of an inbox that is not open yet."""
        if self.queue is None:
            self.queue = deque()
        return self.queue

    def dispatch(self) -> deque[_Letter]:
        """Hand the inbox to a worker, which runs as soon as the hub gets to it; returns the queue."""
        hub = gevent.get_hub()
        if hub is not self.workers.hub:
            self.workers = _workers_here()  # this thread got another hub since
        worker = self.worker = self.workers.take()
        if self.queue is None:
            self.queue = worker.queue
        else:
            worker.queue = self.queue
        worker.inbox = self
        hub.loop.run_callback(worker.switch)
        return self.queue

    def answer_at_once(self, message: Any) -> Any:
        """The actor's answer, made in the asker's greenlet, or LATER.

        The asker stands in for the worker that would answer, and the actor is busy as long as it does: what
        others send meanwhile waits for that worker.
        """
        workers, me = self.workers, _current()
        if self.queue is not None or _thread_ident() != workers.thread or me is workers.hub:
            return LATER
        if gevent.get_hub() is not workers.hub:
            return LATER
        workers.at_once += 1
        worker, actor = workers.take(), self.actor
        self.queue, self.worker = worker.queue, me
        try:
            return actor.answer_at_once(message)  # type: ignore[union-attr]  # it lives, as it has workers
        except BaseException as error:
            logger.info("Exception returned from %s to caller:", actor, exc_info=error)
            if isinstance(error, Exception):
                raise
            raise _contained(error, f"{actor} raised") from error
        finally:
            self._relieve(worker)

    def _relieve(self, worker: _Worker) -> None:
        """Who stood in for a worker is done; if something came meanwhile, the worker goes on."""
        if self.stopped:
            self.actor._actor_loop_teardown()  # type: ignore[union-attr]  # noqa: SLF001 - as after any message
        elif worker.queue:
            self.worker, worker.inbox = worker, self
            worker.parent.loop.run_callback(worker.switch)
            return
        else:
            self.queue = self.worker = None
        worker.idle.append(worker)

    def drain(self) -> Any:
        """Let the actor handle messages, in a worker; True if some are left for another turn of the hub."""
        actor: Any = self.actor
        try:
            return actor._actor_loop()  # noqa: SLF001 - pykka's name for it
        except BaseException as error:
            return actor._crashed(error)  # noqa: SLF001 - users of an actor should not see it

    def stop(self) -> None:
        self.stopped = True
        stopping, self.stopping = self.stopping, None
        if stopping is not None:
            stopping.set()

    def wait_until_stopped(self, timeout: float | None) -> None:
        if not self.stopped:
            if self.stopping is None:
                self.stopping = GreenletFuture()
            self.stopping.get(timeout=timeout)

    def close(self) -> list[_Letter]:
        """Take no message any more, let the actor go; returns the messages that are left."""
        left: list[_Letter] = []
        if self.queue is not None:
            left.extend(self.queue)
            self.queue.clear()  # it is its worker's, which goes on
        self.workers, self.actor, self.queue, self.worker = _DEAD, None, None, None
        return left

    def _post_while_closed(self, letter: _Letter) -> None:
        if self.workers is _NOT_STARTED:
            self.hold().append(letter)
        elif self.workers is not _DEAD:
            raise _wrong_thread("this actor")
        else:
            _answer_as_dead(letter, "the actor", self)


class _StopFlag:
    """Whether an actor has stopped: what users of pykka know of `threading.Event`. Made when looked at."""

    __slots__ = ("_inbox",)

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox

    def is_set(self) -> bool:
        return self._inbox.stopped

    def set(self) -> None:
        self._inbox.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Block the calling greenlet until the flag is up; False if that takes over `timeout` seconds."""
        try:
            self._inbox.wait_until_stopped(timeout)
        except pykka.Timeout:
            return False
        return True


class _Start(NamedTuple):
    """The first message of an actor that has an `on_start`."""


class GreenletActorRef(pykka.ActorRef[A]):
    """pykka's reference to an actor, for greenlets."""

    __slots__ = ("actor_class", "actor_inbox")

    actor_inbox: _Inbox

    def __init__(self, actor: A, inbox: _Inbox) -> None:
        # pykka's own __init__ would make a weak reference: the inbox knows the actor as long as it lives.
        self.actor_class = type(actor)
        self.actor_inbox = inbox

    @property
    def actor_urn(self) -> str:  # type: ignore[override]  # nobody sets it
        return f"urn:palaver:actor:{self.actor_inbox.number}"

    @property
    def actor_stopped(self) -> _StopFlag:  # type: ignore[override]  # has what users need of an Event
        return _StopFlag(self.actor_inbox)

    def is_alive(self) -> bool:
        """Whether the actor has not stopped; it may do so before the next message."""
        return not self.actor_inbox.stopped

    def _actor_weakref(self) -> GreenletActor | None:  # type: ignore[override]  # proxies call it, no more
        return self.actor_inbox.actor

    def watch(self, watcher: Callable[[BaseException | None], object]) -> None:
        """Call `watcher(reason)` when the actor has ended, once, after its `on_death` and as that is called.
        For whoever is responsible for an actor of another's making.

        If it has ended already, that is at once, and a reason is then a `HandlerFailed` that names the error:
        a dead actor keeps nothing alive.
        """
        inbox = self.actor_inbox
        if inbox.actor is None:
            watcher(inbox.reason)
        else:
            inbox.actor._watchers += (watcher,)  # noqa: SLF001 - users of an actor should not see it

    def tell(self, message: Any) -> None:
        """Send a message, and do not wait.

        Raises:
            pykka.ActorDeadError: the actor is dead.
            WrongThread: the actor lives in another thread.
        """
        inbox = self.actor_inbox
        if inbox.stopped:
            raise NotHandled(self, "not found", inbox)
        # As post() does, without the call: tells come in floods.
        if _thread_ident() != inbox.workers.thread:
            inbox.post((message, None))
        elif inbox.queue is not None:
            inbox.queue.append((message, None))
        else:
            inbox.dispatch().append((message, None))

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and wait for the reply; with `block=False` get its future at once.

        Args:
            message: anything.
            block: whether to wait.
            timeout: seconds to wait; None is for ever. The message is handled even when time is up.

        Raises:
            pykka.Timeout: no reply in time.
            pykka.ActorDeadError: the actor is dead, or died before it came to this message.
            HandlerFailed: its handler raised what must not cross to another actor; the cause is chained.
            Deadlock: an actor asks itself, to wait without a timeout.
            WrongThread: the actor lives in another thread.
            Exception: whatever else its handler raised.
        """
        inbox = self.actor_inbox
        if block and timeout is None and inbox.worker is not None and inbox.worker is _current():
            raise Deadlock(
                f"{self} asks itself and would wait for ever: use tell(), or call the method itself"
            )
        future = self.actor_class._create_future()  # noqa: SLF001 - pykka's hook
        if inbox.stopped:
            future.set_exception((NotHandled, NotHandled(self, "not found", inbox), None))
        elif not (block and type(future) is GreenletFuture and inbox.hand_over(message, future, timeout)):
            inbox.post((message, future))
        if not block:
            return future
        try:
            return future.get(timeout=timeout)
        finally:
            del future  # an error's traceback holds this frame: no cycle through it

    def ask_at_once(self, message: Any) -> Any:
        """The reply, if the actor is at rest and has one that needs no wait: `GreenletActor.answer_at_once`.

        No other greenlet runs while it is made, so it costs a small part of an `ask`. Nothing is overtaken:
        an actor that has messages, or handles one, gives none. After every ten such replies in a hub, who
        asks for the next gives way to other greenlets first, once.

        Returns:
            The reply, or `LATER`: nothing was done; use `ask`.

        Raises:
            HandlerFailed, Exception: as for `ask`.
        """
        workers = self.actor_inbox.workers
        if workers.at_once >= AT_ONCE and _thread_ident() == workers.thread and _current() is not workers.hub:
            workers.at_once = 0
            gevent.sleep(0)
        return self.actor_inbox.answer_at_once(message)


class GreenletActor(pykka.Actor):
    """pykka's actor on gevent: subclass it as you would `pykka.ThreadingActor`.

    Hooks and handlers run in a worker greenlet of the thread that called `start()`, one at a time and in
    the order of the messages. A handler may block: the others go on, its own messages wait. Every 100
    messages of one actor, other greenlets and timers get their turn. An actor that is asked while it has
    nothing to do handles that before whatever else is due, ten times of eleven.

    Not promised: which greenlet runs a handler, or that two handlers see the same one. Never kill a worker:
    it is a failure of the handler that it runs at that moment, of whichever actor.
    """

    actor_inbox: _Inbox
    _death_cause: BaseException | None = None
    _watchers: tuple[Callable[[BaseException | None], object], ...] = ()  # an unwatched actor has none

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        # pykka's own __init__ would add a UUID and a threading.Event.
        self.actor_inbox = _Inbox(self)
        self._actor_ref = GreenletActorRef(self, self.actor_inbox)

    @property
    def actor_urn(self) -> str:  # type: ignore[override]  # nobody sets it
        return self._actor_ref.actor_urn

    @property
    def actor_stopped(self) -> _StopFlag:  # type: ignore[override]  # has what users need of an Event
        return _StopFlag(self.actor_inbox)

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> pykka.ActorRef[Self]:
        """Start an actor; the arguments go to its constructor.

        Returns its ref at once. `on_start`, if the class has one, runs later in a worker: when it fails, the
        ref is dead and `on_death` was called.
        """
        actor = cls(*args, **kwargs)
        logger.debug("Starting %s", actor)
        actor._start_actor_loop()
        return actor.actor_ref

    def on_death(self, reason: BaseException | None) -> None:
        """Called once, last of all, at any end of the actor; for whoever supervises it.

        Everything queued is answered by then, though no asker has run yet unless a hook blocked.
        An exception from here is logged and changes nothing.

        Args:
            reason: None after a normal stop, else the first exception that a handler, `on_start`, `on_stop`
                or `on_failure` died of.
        """

    def answer_at_once(self, message: Any) -> Any:
        """Reply to `ask_at_once`, in the asker's greenlet: for what an actor can say or do in one go.

        It is a handler as any other: one at a time, in the order of the messages. But it must not wait, nor
        call what may: who kills the asker would kill it half-way.

        Returns:
            The reply, or `LATER` with nothing done: the message is then to be asked.
        """
        return LATER

    def on_undelivered(self, message: Any) -> None:
        """Called for every message that was told, not asked, and that the actor ended before handling.

        For an actor whose messages carry what somebody waits for. Called in their order, before `on_death`;
        an exception from here is logged and changes nothing.
        """

    @staticmethod
    def _create_actor_inbox() -> NoReturn:
        raise NotImplementedError("an actor's inbox is made for that actor, in __init__")

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        return GreenletFuture()

    def _start_actor_loop(self) -> None:
        inbox = self.actor_inbox
        if type(self).on_start is not pykka.Actor.on_start:
            inbox.hold().appendleft((_Start(), None))
        inbox.open()

    def _actor_loop(self) -> Any:
        """Handle up to a burst of messages; True if some are left for another turn of the hub."""
        inbox = self.actor_inbox
        queue = inbox.queue
        message = reply_to = reply = None
        for _ in range(BURST):
            if not queue:
                break
            message, reply_to = queue.popleft()
            try:
                if isinstance(message, tuple):  # as all of pykka's own messages are
                    reply = self._handle_receive(message)
                else:
                    reply = self.on_receive(message)
                if reply_to is not None:
                    reply_to.set(reply)
            except BaseException as error:
                self._handler_raised(error, reply_to)
            if inbox.stopped:
                self._actor_loop_teardown()
                break
        del message, reply_to, reply  # the traceback of an answered error holds this frame
        if queue:
            return True
        inbox.queue = inbox.worker = None
        return False

    def _handle_receive(self, message: Any) -> Any:
        if isinstance(message, _Start):
            return self._actor_loop_setup()
        return super()._handle_receive(message)

    def _actor_loop_setup(self) -> None:
        try:
            self.on_start()
        except BaseException as error:
            self._handle_failure(type(error), error, error.__traceback__)

    def _handler_raised(self, error: BaseException, reply_to: pykka.Future[Any] | None) -> None:
        if reply_to is not None:
            answer = error
            if not isinstance(error, Exception):
                answer = _contained(error, f"a handler of {self._actor_ref} raised")
            reply_to.set_exception((type(answer), answer, answer.__traceback__))
            logger.info("Exception returned from %s to caller:", self, exc_info=error)
            return
        self._handle_failure(type(error), error, error.__traceback__)
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except BaseException as failure:
            self._handle_failure(type(failure), failure, failure.__traceback__)

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._death_cause is None:
            self._death_cause = exception_value
        self.actor_inbox.stop()
        logger.error(
            "Unhandled exception in %s:",
            self,
            exc_info=(exception_type, exception_value, traceback),  # type: ignore[arg-type]  # as pykka calls it
        )

    def _stop(self) -> None:
        self.actor_inbox.stop()
        logger.debug("Stopped %s", self)
        try:
            self.on_stop()
        except BaseException as error:
            self._handle_failure(type(error), error, error.__traceback__)

    def _crashed(self, error: BaseException) -> bool:
        """The loop itself failed: a reply could not be set, or a logging handler was killed."""
        if self.actor_inbox.actor is not None:
            self._handle_failure(type(error), error, error.__traceback__)
            self._actor_loop_teardown()
        return False

    def _actor_loop_teardown(self) -> None:
        inbox = self.actor_inbox
        reason, self._death_cause = self._death_cause, None
        inbox.reason = (
            None if reason is None else HandlerFailed(f"{self._actor_ref} died of {_shown(reason)}")
        )
        for letter in inbox.close():
            _answer_as_dead(letter, self._actor_ref, inbox)
            message, reply_to = letter
            if reply_to is None and not isinstance(message, _ActorStop):
                self._call_last_hook(self.on_undelivered, message)
        self._call_last_hook(self.on_death, reason)
        for watcher in self._watchers:
            self._call_last_hook(watcher, reason)

    def _call_last_hook(self, hook: Callable[[Any], object], argument: Any) -> None:
        try:
            hook(argument)
        except BaseException:
            name = getattr(hook, "__name__", "a watcher")
            logger.exception("Unhandled exception in %s of %s, which is dead:", name, self)


def _answer_as_dead(letter: _Letter, name: object, inbox: _Inbox) -> None:
    """Answer a message that nobody will handle: to stop a dead actor is a success, all else an error."""
    message, reply_to = letter
    if reply_to is None:
        return
    try:
        if isinstance(message, _ActorStop):
            reply_to.set(None)
        else:
            dead = NotHandled(name, "stopped before handling the message", inbox)
            reply_to.set_exception((NotHandled, dead, None))
    except (Full, WrongThread):
        logger.exception("A message to %s could not be answered:", name)


def _contained(error: BaseException, what: str) -> HandlerFailed:
    failed = HandlerFailed(f"{what} {_shown(error)}, which must not cross from one actor to another")
    failed.__cause__ = error
    return failed


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except BaseException:  # whatever the error's own code raises
        return type(error).__name__


def _wrong_thread(what: str) -> WrongThread:
    return WrongThread(
        f"{what} belongs to another thread: call it from there, or hand the call over with "
        "Runtime.from_thread(), or by an async watcher of that thread's loop"
    )
