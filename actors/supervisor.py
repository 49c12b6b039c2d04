"""The supervisor: starts its children in order, restarts those that die, stops them in reverse order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Self

import gevent
import pykka

from actors import policy
from actors.children import (
    Book,
    Child,
    ChildEnded,
    ChildSpec,
    ChildStarted,
    ChildStopped,
    ListChildren,
    PauseOver,
    RemoveChild,
    Renewal,
    StartChild,
    StartFailed,
    Unit,
)
from actors.errors import InvalidConfig, InvalidInput, RestartsSpent
from actors.events import ActorParked, ActorRestarted
from actors.greenlet import GreenletActor, GreenletFuture
from actors.incidents import log_incident
from actors.lasting import IncarnationDied, LastingRef
from actors.logs import log
from actors.policy import STRATEGIES, Budget, Plan, Strategy
from actors.steps import Surroundings, begin_start, begin_stop, stop_all, surroundings
from actors.storage import notify
from actors.text import describe_error
from persistence.sources import SystemClock

logger = logging.getLogger("palaver.supervisor")


class Supervisor(GreenletActor):
    """Supervises actors as Erlang/OTP's supervisor does.

    Its children are started one after the other in their order, and stopped in the reverse order. A child
    that ends is started again as its restart type says, alone or with others as the strategy says, after a
    delay that grows. When that happens too often, the child is parked, or the supervisor stops its other
    children and dies of `RestartsSpent`, so that its own supervisor decides.

    No handler waits: children are started and stopped, one step at a time, by greenlets that report. Only
    `on_stop` and `on_failure` wait, for the children to end.

    Args:
        children: what it starts with; more can be added.
        strategy: who is started anew when one child is: "one-for-one" that child alone, "one-for-all" all of
            them, "rest-for-one" that child and those that were started after it.
        budget: how often: each child's own under "one-for-one", otherwise of all together.
        around: clock and reports; those of the supervisor whose child this is, if None.
        book: what it takes over from an earlier incarnation, and leaves to the next.
        ready: set when for the first time all children are up, or are not to be started again.

    Raises:
        InvalidConfig: a name is taken twice, a budget has no use, an unknown strategy.
    """

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Strategy = "one-for-one",
        budget: Budget | None = None,
        around: Surroundings | None = None,
        book: Book | None = None,
        ready: GreenletFuture[None] | None = None,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise InvalidConfig(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if budget is not None and not isinstance(budget, Budget):
            raise InvalidConfig(f"budget must be a Budget(...), not {budget!r}")
        self._strategy = strategy
        self._budget = budget or Budget()
        self._around = around or surroundings.get() or Surroundings(SystemClock(), log_incident)
        self._children: dict[str, Child] = {}
        self._together = None if strategy == "one-for-one" else Unit()
        self._starts = 0
        self._unborn: deque[Child] = deque()  # whose first start is to come, in order
        self._book = book or Book()
        self._has_heir = book is not None
        self._ready = ready
        for spec in (*self._book.specs.values(), *children):
            self._add(spec)

    @classmethod
    def launch(cls, children: Iterable[ChildSpec] = (), **options: Any) -> pykka.ActorRef[Self]:
        """Start a supervisor, and return its ref when its children are up, but those that it has given up by
        then. Blocks the calling greenlet; as a child's `start`, it keeps the order of starts across
        supervisors. Arguments and errors as for the class.

        Raises:
            pykka.ActorDeadError: it ended before that; the cause says of what.
        """
        ready: GreenletFuture[None] = GreenletFuture()
        ref = cls.start(children, ready=ready, **options)
        try:
            ready.get()
        except BaseException:
            ref.stop(block=False)
            raise
        return ref

    def on_start(self) -> None:
        self._begin_first()

    def on_receive(self, message: Any) -> Any:
        match message:
            case StartChild():
                return self._start_child(message.spec)
            case RemoveChild():
                return self._remove_child(message.name)
            case ListChildren():
                return [child.status() for child in self._children.values()]
            case ChildStarted():
                return self._started(message)
            case StartFailed():
                return self._start_failed(message)
            case ChildStopped():
                return self._stopped(message)
            case ChildEnded():
                return self._ended(message)
            case PauseOver():
                message.unit.pause = None
                return self._advance(message.unit)
            case _:
                raise TypeError(f"a supervisor does not understand {message!r}")

    # -- children come and go ----------------------------------------------------------------------

    def _add(self, spec: ChildSpec) -> Child:
        if not isinstance(spec, ChildSpec):
            raise InvalidConfig(f"a child is described by a ChildSpec(...), not by {spec!r}")
        if spec.name in self._children:
            raise InvalidInput(f"a child named {spec.name!r} is there already; remove it first")
        if spec.budget is not None and self._together is not None:
            raise InvalidConfig(
                f"budget: the child {spec.name!r} has one of its own, and under {self._strategy!r} all "
                "children have one together"
            )
        child = Child(spec, self._together or Unit())
        self._children[spec.name] = child.unit.children[spec.name] = child
        self._unborn.append(child)
        if spec.restart != "temporary":
            self._book.specs[spec.name] = spec
            child.lasting = self._book.refs.get(spec.name)
        return child

    def _start_child(self, spec: ChildSpec) -> GreenletFuture[LastingRef[Any]]:
        child = self._add(spec)
        child.starter = GreenletFuture()
        self._begin_first()
        return child.starter

    def _remove_child(self, name: str) -> GreenletFuture[bool]:
        reply: GreenletFuture[bool] = GreenletFuture()
        child = self._children.get(name)
        if child is None:
            reply.set(False)
            return reply
        child.leaving.append(reply)
        child.wanted = False
        if child.ref is None and child.unit.at is not child:
            self._down(child)
        self._advance(child.unit)
        return reply

    def _forget(self, child: Child) -> None:
        name = child.spec.name
        del self._children[name], child.unit.children[name]
        self._book.forget(name)
        if self._together is None and child.unit.pause is not None:
            child.unit.pause.kill(block=False)
        if child in self._unborn:
            self._unborn.remove(child)
            self._begin_first()
        for number, reply in enumerate(child.leaving):
            reply.set(number == 0)
        if child.starter is not None:
            child.starter.fail(pykka.ActorDeadError(f"the child {name!r} was removed before it had started"))

    # -- steps: one at a time in each unit ---------------------------------------------------------

    def _begin_first(self) -> None:
        """Go on with the first starts, which come one after the other, in order."""
        if self._unborn:
            self._advance(self._unborn[0].unit)
        self._check_ready()

    def _check_ready(self) -> None:
        if self._ready is None or self._unborn:
            return
        if all(child.ref is not None or not child.wanted for child in self._children.values()):
            ready, self._ready = self._ready, None
            ready.set()

    def _advance(self, unit: Unit) -> None:
        """Begin the next step of a unit, if none is under way: stops first, in reverse order, then starts."""
        if unit.step is not None:
            return
        up = (child for child in reversed(unit.children.values()) if child.ref is not None)
        stop = next((child for child in up if child.renew or not child.wanted), None)
        if stop is not None:
            unit.at, unit.step = stop, begin_stop(stop, self.actor_ref)
        elif unit.pause is None:
            down = (child for child in unit.children.values() if child.ref is None and child.wanted)
            start = next(down, None)
            if start is not None and (start.number or start is self._unborn[0]):
                self._starts += 1
                start.number = self._starts
                unit.at, unit.step = start, begin_start(start, self._around, self.actor_ref)

    def _step_done(self, message: ChildStarted | StartFailed | ChildStopped) -> Child:
        child = self._children[message.name]
        child.unit.step = child.unit.at = None
        return child

    def _started(self, message: ChildStarted) -> None:
        child = self._step_done(message)
        child.ref = message.ref
        if child.lasting is None:
            child.lasting = LastingRef(self._around.path + message.name, message.ref)
            self._book.refs[message.name] = child.lasting
        else:
            child.lasting.follow(message.ref)
        if child.renewal is not None and not child.renew:
            renewal, child.renewal = child.renewal, None
            child.restarts += 1
            name = self._around.path + message.name
            self._around.report(ActorRestarted(name, renewal.reason, renewal.attempt, renewal.delay_s))
        if child.starter is not None:
            starter, child.starter = child.starter, None
            starter.set(child.lasting)
        self._born(child)
        self._check_ready()
        self._advance(child.unit)

    def _start_failed(self, message: StartFailed) -> None:
        child = self._step_done(message)
        child.last_error = describe_error(message.error)
        log(
            logger,
            logging.ERROR,
            "an actor could not be started",
            actor=self._around.path + message.name,
            error=message.error,
        )
        if child.starter is not None:
            starter, child.starter = child.starter, None
            child.wanted = False
            self._forget(child)
            starter.fail(message.error)
        else:
            self._gone(child, message.error)
            self._born(child)
        self._advance(child.unit)

    def _born(self, child: Child) -> None:
        if self._unborn and self._unborn[0] is child:
            self._unborn.popleft()
            self._begin_first()

    def _stopped(self, message: ChildStopped) -> None:
        child = self._step_done(message)
        self._down(child)
        self._advance(child.unit)

    # -- deaths ------------------------------------------------------------------------------------

    def _ended(self, message: ChildEnded) -> None:
        child = self._children.get(message.name)
        if child is None or child.number != message.number or child.ref is None:
            return
        if message.error is not None:
            child.last_error = describe_error(message.error)
        if child.unit.at is child:  # it is being stopped, and that greenlet reports
            return
        self._gone(child, message.error)
        self._advance(child.unit)

    def _gone(self, child: Child, error: BaseException | None) -> None:
        """A child has ended by itself, or could not be started."""
        if child.renew or not child.wanted:  # it was to be stopped anyway
            self._down(child)
            return
        kinds = {name: sibling.spec.restart for name, sibling in child.unit.children.items()}
        name = child.spec.name
        plan = policy.plan(self._strategy, kinds, name, "stop" if error is None else "error")
        if not plan.start:
            if error is not None:
                words = "an actor died and is not started again"
                log(logger, logging.WARNING, words, actor=self._around.path + name, reason=child.last_error)
            child.wanted = False
            self._down(child)
            return
        child.ref = None
        budget, now = child.spec.budget or self._budget, self._around.clock.monotonic()
        delay = policy.restart_delay(child.unit.times, now, budget)
        if delay is None:
            self._spend(child, plan, error, budget)
            return
        child.unit.times = [*policy.recent(child.unit.times, now, budget), now]
        self._renew(child, plan, error, delay)

    def _renew(self, ended: Child, plan: Plan, error: BaseException | None, delay: float) -> None:
        reason, unit = _words(error), ended.unit
        for child in self._concerned(plan.start):
            own = reason if child is ended else f"restarted with {ended.spec.name!r}: {reason}"
            child.parked, child.wanted = False, True
            child.renew = child.ref is not None or unit.at is child
            child.renewal = Renewal(own, len(unit.times), delay)
        self._discard(plan.forget)
        if unit.pause is not None:
            unit.pause.kill(block=False)
        unit.pause = gevent.spawn_later(delay, notify, self.actor_ref, PauseOver(unit))

    def _spend(self, ended: Child, plan: Plan, error: BaseException | None, budget: Budget) -> None:
        """The budget of restarts is spent: park the child, and who depends on it, or escalate."""
        name, reason = self._around.path + ended.spec.name, _words(error)
        if ended.spec.when_spent == "escalate":
            raise RestartsSpent(
                f"the actor {name!r} died once more after {budget.restarts} restarts within "
                f"{budget.period_s:g} s, of {reason}"
            ) from error
        for child in self._concerned(plan.start):
            child.last_error = reason if child is ended else f"parked with {ended.spec.name!r}: {reason}"
            child.parked, child.wanted, child.renewal = True, False, None
            if child.ref is None and child.unit.at is not child:
                self._down(child)
            self._around.report(ActorParked(self._around.path + child.spec.name, child.last_error))
        self._discard(plan.forget)

    def _concerned(self, names: Iterable[str]) -> list[Child]:
        children = [self._children[name] for name in names]
        return [child for child in children if not child.leaving]

    def _discard(self, names: Iterable[str]) -> None:
        for child in self._concerned(names):
            child.wanted = False
            if child.ref is None and child.unit.at is not child:
                self._down(child)

    def _down(self, child: Child) -> None:
        """An incarnation is gone: another one follows, or none."""
        child.ref, child.renew = None, False
        if child.wanted:
            return
        if child.lasting is not None:
            child.lasting.end(_epitaph(child))
        if child.leaving or child.spec.restart == "temporary":
            self._forget(child)
        self._check_ready()

    # -- its own end -------------------------------------------------------------------------------

    def on_stop(self) -> None:
        self._stop_children(None)

    def on_failure(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._stop_children(error)

    def _stop_children(self, reason: BaseException | None) -> None:
        if not self._has_heir:
            self._book.close(self._end(reason))  # nobody is to wait for a restart that does not come
        children = [*self._children.values()]
        gevent.spawn(stop_all, children, [child.unit for child in children]).join()

    def _end(self, reason: BaseException | None) -> str:
        return f"the supervisor {self._around.path or self.actor_ref} has ended: {_words(reason)}"

    def on_death(self, reason: BaseException | None) -> None:
        died = IncarnationDied(self._end(reason))
        died.__cause__ = reason
        if not self._has_heir:
            self._book.close(str(died))
        for child in self._children.values():
            if child.lasting is not None and child.spec.restart == "temporary":
                child.lasting.end(str(died))
            if child.starter is not None:
                child.starter.fail(died)
            for reply in child.leaving:
                reply.fail(died)
        if self._ready is not None:
            self._ready.fail(died)


def _words(error: BaseException | None) -> str:
    return "a normal stop" if error is None else describe_error(error)


def _epitaph(child: Child) -> str:
    if child.parked:
        return f"it kept dying and is parked; the last time of {child.last_error}"
    return "it has ended and is not started again"
