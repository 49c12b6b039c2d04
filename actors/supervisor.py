"""The supervisor: starts its children in order, restarts those that die, stops them in reverse order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Self

import gevent
import pykka

from actors import policy
from actors.children import (
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
)
from actors.errors import RestartsSpent
from actors.events import ActorParked
from actors.greenlet import GreenletFuture
from actors.lasting import IncarnationDied
from actors.logs import log
from actors.policy import Budget, Plan
from actors.steps import stop_all
from actors.storage import notify
from actors.supervisor_core import SupervisorCore
from actors.text import describe_error

logger = logging.getLogger("palaver.supervisor")


class Supervisor(SupervisorCore):
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
