"""What a supervisor does that may block: starting and stopping a child, each time in a greenlet apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

import gevent
import pykka
from attrs import frozen
from gevent import GreenletExit

from actors.children import Child, ChildEnded, ChildSpec, ChildStarted, ChildStopped, StartFailed, Unit
from actors.errors import AskTimeout, InvalidConfig
from actors.events import Incident
from actors.greenlet import GreenletActorRef
from actors.logs import log
from actors.storage import notify
from persistence.sources import Clock

logger = logging.getLogger("palaver.supervisor")

GIVE_UP_START_S = 10.0


@frozen
class Surroundings:
    """What supervisors of one tree share: one that is started as another's child takes these from that.

    `path` is the supervisor's own name with a "/" behind it, and goes before its children's in reports.
    """

    clock: Clock
    report: Callable[[Incident], None]
    path: str = ""


surroundings: ContextVar[Surroundings | None] = ContextVar("palaver_surroundings", default=None)


def begin_start(child: Child, around: Surroundings, supervisor: pykka.ActorRef[Any]) -> gevent.Greenlet:
    """Start an incarnation of a child; `supervisor` hears ChildStarted or StartFailed."""
    step = gevent.spawn(_start, child.spec, child.number, around, supervisor)
    step.link(partial(_tell_failed, supervisor, child.spec.name, child.number))
    return step


def _start(
    spec: ChildSpec, number: int, around: Surroundings, supervisor: pykka.ActorRef[Any]
) -> GreenletActorRef[Any] | BaseException:
    surroundings.set(Surroundings(around.clock, around.report, f"{around.path}{spec.name}/"))
    limit = gevent.Timeout(spec.start_timeout_s)
    try:
        with limit:
            ref: object = spec.start()
    except gevent.Timeout as error:
        if error is not limit:
            return error  # type: ignore[no-any-return]  # gevent ships no types
        return AskTimeout(f"{around.path}{spec.name} did not start within {spec.start_timeout_s:g} s")
    except BaseException as error:
        return error
    if not isinstance(ref, GreenletActorRef):
        return InvalidConfig(
            f"start of {around.path}{spec.name} must return the ref of a GreenletActor, not {ref!r}"
        )
    # Now, before anybody else runs: it may die at once, of what its on_start raises.
    notify(supervisor, ChildStarted(spec.name, number, ref))
    ref.watch(lambda error: notify(supervisor, ChildEnded(spec.name, number, error)))
    return ref


def _tell_failed(supervisor: pykka.ActorRef[Any], name: str, number: int, step: gevent.Greenlet) -> None:
    outcome = step.value
    if not isinstance(outcome, GreenletActorRef):  # a greenlet that is killed before it begins has no value
        error = outcome if isinstance(outcome, BaseException) else GreenletExit("its start was killed")
        notify(supervisor, StartFailed(name, number, error))


def begin_stop(child: Child, supervisor: pykka.ActorRef[Any]) -> gevent.Greenlet:
    """Stop a child that is up; `supervisor` hears ChildStopped."""
    assert child.ref is not None
    step = gevent.spawn(_stop, child.ref, child.spec)
    step.link(partial(_tell_stopped, supervisor, child.spec.name, child.number))
    return step


def _stop(ref: pykka.ActorRef[Any], spec: ChildSpec) -> bool:
    try:
        ref.stop(timeout=spec.stop_timeout_s)
    except pykka.Timeout:
        log(logger, logging.ERROR, f"an actor did not stop within {spec.stop_timeout_s:g} s and is given up",
            actor=spec.name)  # fmt: skip
        return False
    return True


def _tell_stopped(supervisor: pykka.ActorRef[Any], name: str, number: int, step: gevent.Greenlet) -> None:
    notify(supervisor, ChildStopped(name, number, step.value is True))


def stop_all(children: Iterable[Child], units: Iterable[Unit]) -> None:
    """Give up what is under way, and stop all children, the last started first. Blocks until they have ended
    or their time limits are over."""
    for unit in units:
        for greenlet in (unit.pause, unit.step):
            if greenlet is not None:
                greenlet.kill(block=False)
    for child in reversed([*children]):
        step = child.unit.step
        if child.ref is None and step is not None and child.unit.at is child:
            step.join(GIVE_UP_START_S)  # a killed start may have to clean up
            if isinstance(step.value, GreenletActorRef):
                child.ref = step.value  # it was quicker
        if child.ref is not None:
            _stop(child.ref, child.spec)
