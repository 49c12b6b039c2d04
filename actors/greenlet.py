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
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import Empty, Full
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import gevent
import pykka
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from actors.errors import HandlerFailed, WrongThread
from actors.futures import Deadlock, GreenletFuture, contained, current, shown, thread_ident, wrong_thread
from actors.workers import (
    DEAD,
    NOT_STARTED,
    Letter,
    Worker,
    release_idle_workers,
    workers_here,
)

__all__ = [
    "LATER",
    "Deadlock",
    "GreenletActor",
    "GreenletActorRef",
    "GreenletFuture",
    "NotHandled",
    "release_idle_workers",
]

A = TypeVar("A", bound=pykka.Actor)

logger = logging.getLogger("pykka")

BURST = 100  # messages of one inbox before other greenlets and timers get their turn
AT_ONCE = 10  # asks in a hub that took no hop through its loop before others get their turn

_actor_numbers = count(1)
LATER: Any = object()  # instead of a reply that takes no wait: there is none now


class NotHandled(pykka.ActorDeadError):
    """The actor is dead, or died before it came to the message: nothing has been done about it.

    Attributes:
        inbox: that actor's, which tells this error from one that a handler has raised.
    """

    def __init__(self, name: object, words: str, inbox: object) -> None:
        super().__init__(f"{name} {words}")
        self.inbox = inbox


class Inbox:
    """An actor's mailbox. While it has messages it has a worker, and borrows that worker's queue."""

    __slots__ = ("actor", "number", "queue", "reason", "stopped", "stopping", "worker", "workers")

    reason: HandlerFailed | None  # what the actor died of, in words; set when it has ended

    def __init__(self, actor: GreenletActor) -> None:
        self.actor: GreenletActor | None = actor
        self.number = next(_actor_numbers)
        self.queue: deque[Letter] | None = None
        self.stopped = False  # what pykka has a threading.Event for, of over 1 KB
        self.stopping: GreenletFuture[None] | None = None  # for who waits for it
        self.worker: Worker | None = None
        self.workers = NOT_STARTED

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, as `post` does."""
        self.post((envelope.message, envelope.reply_to))

    def get(self) -> Envelope[Any]:
        """Take the oldest message out; `queue.Empty` if there is none. Does not wait."""
        if not self.queue:
            raise Empty
        return Envelope(*self.queue.popleft())

    def post(self, letter: Letter) -> None:
        """Add a message; wakes a worker, never blocks.

        Raises:
            WrongThread: called from a thread that the actor does not live in.
        """
        if thread_ident() != self.workers.thread:
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
        if not self._at_rest() or (timeout is not None and timeout <= 0):
            return False
        workers = self.workers
        if workers.picks or workers.at_once >= AT_ONCE:
            workers.at_once = 0
            return False
        workers.at_once += 1
        worker = self.worker = workers.take()
        self.queue = worker.queue
        self.queue.append((message, future))
        worker.inbox = worker.asked = self
        try:
            future.wait_by(worker, worker, current(), timeout)
        finally:
            if worker.inbox is self:  # there was no wait: no such timeout, or no memory
                workers.hub.loop.run_callback(worker.switch)
        return True

    def _at_rest(self) -> bool:
        """Whether the actor lives and has nothing to do, and a greenlet of its hub asks."""
        if self.queue is not None or self.stopped or thread_ident() != self.workers.thread:
            return False
        hub = gevent.get_hub()
        return hub is self.workers.hub and hub is not current()

    def empty(self) -> bool:
        return not self.queue

    def __len__(self) -> int:
        return 0 if self.queue is None else len(self.queue)

    def open(self) -> None:
        """From now on messages are handled, by workers of the current hub."""
        self.workers = workers_here()
        if self.queue:
            self.dispatch()

    def hold(self) -> deque[Letter]:
        """The queue of an inbox that is not open yet."""
        if self.queue is None:
            self.queue = deque()
        return self.queue

    def dispatch(self) -> deque[Letter]:
        """Hand the inbox to a worker, which runs as soon as the hub gets to it; returns the queue."""
        hub = gevent.get_hub()
        if hub is not self.workers.hub:
            self.workers = workers_here()  # this thread got another hub since
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
        if not self._at_rest():
            return LATER
        self.workers.at_once += 1
        worker, actor = self.workers.take(), self.actor
        self.queue, self.worker = worker.queue, current()
        try:
            return actor.answer_at_once(message)  # type: ignore[union-attr]  # it lives, as it has workers
        except BaseException as error:
            logger.info("Exception returned from %s to caller:", actor, exc_info=error)
            if isinstance(error, Exception):
                raise
            raise contained(error, f"{actor} raised") from error
        finally:
            self._relieve(worker)

    def _relieve(self, worker: Worker) -> None:
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

    def close(self) -> list[Letter]:
        """Take no message any more, let the actor go; returns the messages that are left."""
        left: list[Letter] = []
        if self.queue is not None:
            left.extend(self.queue)
            self.queue.clear()  # it is its worker's, which goes on
        self.workers, self.actor, self.queue, self.worker = DEAD, None, None, None
        return left

    def _post_while_closed(self, letter: Letter) -> None:
        if self.workers is NOT_STARTED:
            self.hold().append(letter)
        elif self.workers is not DEAD:
            raise wrong_thread("this actor")
        else:
            _answer_as_dead(letter, "the actor", self)


class _StopFlag:
    """Whether an actor has stopped: what users of pykka know of `threading.Event`. Made when looked at."""

    __slots__ = ("_inbox",)

    def __init__(self, inbox: Inbox) -> None:
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

    actor_inbox: Inbox

    def __init__(self, actor: A, inbox: Inbox) -> None:
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
        if thread_ident() != inbox.workers.thread:
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
        if block and timeout is None and inbox.worker is not None and inbox.worker is current():
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
        if workers.at_once >= AT_ONCE and thread_ident() == workers.thread and current() is not workers.hub:
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

    actor_inbox: Inbox
    _death_cause: BaseException | None = None
    _watchers: tuple[Callable[[BaseException | None], object], ...] = ()  # an unwatched actor has none

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        # pykka's own __init__ would add a UUID and a threading.Event.
        self.actor_inbox = Inbox(self)
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
                answer = contained(error, f"a handler of {self._actor_ref} raised")
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
        inbox.reason = None if reason is None else HandlerFailed(f"{self._actor_ref} died of {shown(reason)}")
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


def _answer_as_dead(letter: Letter, name: object, inbox: Inbox) -> None:
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
