"""The core of a supervisor: its children come and go, and are started and stopped one step at a time."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any

import pykka

from actors.children import (
    Book,
    Child,
    ChildSpec,
    ChildStarted,
    ChildStopped,
    StartFailed,
    Unit,
)
from actors.errors import InvalidConfig, InvalidInput
from actors.events import ActorRestarted
from actors.greenlet import GreenletActor, GreenletFuture
from actors.incidents import log_incident
from actors.lasting import LastingRef
from actors.logs import log
from actors.policy import STRATEGIES, Budget, Strategy
from actors.steps import Surroundings, begin_start, begin_stop, surroundings
from actors.text import describe_error
from persistence.sources import SystemClock

logger = logging.getLogger("palaver.supervisor")


class SupervisorCore(GreenletActor):
    """What a supervisor knows, and the steps that it takes. Children are in the order of their start."""

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

    def _down(self, child: Child) -> None:
        """An incarnation is gone: another one follows, or none."""
        child.ref, child.renew = None, False
        if child.wanted:
            return
        if child.lasting is not None:
            child.lasting.end(epitaph(child))
        if child.leaving or child.spec.restart == "temporary":
            self._forget(child)
        self._check_ready()

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
        if child.spec.restart != "temporary":
            self._book.specs[message.name] = child.spec
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

    @abstractmethod
    def _gone(self, child: Child, error: BaseException | None) -> None:
        """A child has ended by itself, or could not be started."""


def epitaph(child: Child) -> str:
    """Why a child does not come back, for who asks for it."""
    if child.parked:
        return f"it kept dying and is parked; the last time of {child.last_error}"
    return "it has ended and is not started again"
