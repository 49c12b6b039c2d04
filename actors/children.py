"""What a supervisor knows of its children, and what it can be asked and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gevent
import pykka
from attrs import Attribute, define, field, frozen

from actors.errors import InvalidConfig
from actors.greenlet import GreenletActorRef, GreenletFuture
from actors.lasting import LastingRef
from actors.policy import RESTARTS, WHEN_SPENT, Budget, Restart, WhenSpent, number_from, one_of
from actors.text import check_text

NAME_CHARS = 200

ChildState = Literal["starting", "running", "restarting", "parked", "stopped"]


def _name(_self: Any, attribute: Attribute[Any], value: object) -> None:
    check_text(value, what=f"a child's {attribute.name}", error=InvalidConfig, most=NAME_CHARS)


def _start(_self: Any, _attribute: Attribute[Any], value: object) -> None:
    if not callable(value):
        raise InvalidConfig(
            f"start must be a function that starts an actor and returns its ref, not {value!r}"
        )


def _budget(_self: Any, _attribute: Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, Budget):
        raise InvalidConfig(f"budget must be a Budget(...) or None, not {value!r}")


def _limit(self: Any, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        number_from(0, above=True)(self, attribute, value)


@frozen
class ChildSpec:
    """How a supervisor starts an actor, and what it does when the actor ends.

    Args:
        name: unique among the supervisor's children.
        start: starts the actor and returns its ref, as `MyActor.start` does; called for each incarnation, in
            a greenlet of its own, where it may block. What it raises counts as a death of the actor.
        restart: "permanent": always started again; "transient": only when it died of an error, not after a
            normal stop; "temporary": never, and forgotten when it has ended.
        budget: how often it is restarted, and after which delays; the supervisor's if None. Only under
            "one-for-one": elsewhere children are restarted together and have one budget.
        when_spent: what happens when it dies once more: "park" leaves it stopped, with its error to be seen,
            and its siblings running; "escalate" ends the supervisor, whose own supervisor then decides.
        start_timeout_s: seconds that `start` may take, or None for any time.
        stop_timeout_s: seconds that the actor may take to stop, or None for any time (for a supervisor, which
            has limits for its own children). One that takes longer is given up, and the log says so.

    Raises:
        InvalidConfig: naming the field.
    """

    name: str = field(validator=_name)
    start: Callable[[], pykka.ActorRef[Any]] = field(validator=_start)
    restart: Restart = field(default="permanent", validator=one_of(*RESTARTS))
    budget: Budget | None = field(default=None, validator=_budget)
    when_spent: WhenSpent = field(default="park", validator=one_of(*WHEN_SPENT))
    start_timeout_s: float | None = field(default=30.0, validator=_limit)
    stop_timeout_s: float | None = field(default=10.0, validator=_limit)


@frozen
class ChildStatus:
    """A child at one moment.

    `state` is `starting` (for the first time), `running`, `restarting` (from its death, or from its being
    stopped with a sibling, until it runs), `parked` or `stopped` (it has ended as its restart type allows).
    `restarts` counts since it was added, `last_error` is what it died of last, in words.
    """

    name: str
    state: ChildState
    restarts: int = 0
    last_error: str | None = None


@frozen
class Renewal:
    """Why and how a child is being restarted."""

    reason: str
    attempt: int
    delay_s: float


@define(eq=False)
class Unit:
    """Children that are restarted together: one child, or all of a supervisor's. At most one of them is being
    started or stopped at a time (`step`, of the child `at`), and none starts while there is a `pause`."""

    children: dict[str, Child] = field(factory=dict)
    times: list[float] = field(factory=list)  # of recent restarts
    step: gevent.Greenlet | None = None
    at: Child | None = None
    pause: gevent.Greenlet | None = None


@define(eq=False)
class Child:
    """A child as its supervisor sees it.

    `ref` is set while it is up. `wanted` says whether it is to be up, `renew` whether it is to be stopped
    first. Notices that name another incarnation than `number` come too late.
    """

    spec: ChildSpec
    unit: Unit
    number: int = 0
    ref: GreenletActorRef[Any] | None = None
    lasting: LastingRef[Any] | None = None
    wanted: bool = True
    renew: bool = False
    parked: bool = False
    renewal: Renewal | None = None
    restarts: int = 0
    last_error: str | None = None
    starter: GreenletFuture[LastingRef[Any]] | None = None  # who waits for its first start
    leaving: list[GreenletFuture[bool]] = field(factory=list)  # who waits for its end

    def status(self) -> ChildStatus:
        """What others see of it."""
        return ChildStatus(self.spec.name, self._state(), self.restarts, self.last_error)

    def _state(self) -> ChildState:
        if self.parked:
            return "parked"
        if not self.wanted:
            return "stopped"
        if self.lasting is None and self.last_error is None:
            return "starting"
        return "restarting" if self.ref is None or self.renew else "running"


@define(eq=False)
class Book:
    """What outlives a supervisor: its children's specs, and the refs that others have of them. Its next
    incarnation goes on with both; `close` when there is none."""

    specs: dict[str, ChildSpec] = field(factory=dict)
    refs: dict[str, LastingRef[Any]] = field(factory=dict)

    def forget(self, name: str) -> None:
        """The child is gone for good."""
        self.specs.pop(name, None)
        self.refs.pop(name, None)

    def close(self, words: str) -> None:
        """Let whoever waits for a child hear, in these words, that none comes back."""
        for ref in self.refs.values():
            ref.end(words)


# -- requests --------------------------------------------------------------------------------------


@frozen
class StartChild:
    """Add a child behind the others and start it. Reply: a future of its lasting ref.

    Fails, and nothing has changed, with InvalidInput (the name is taken), InvalidConfig, what `start` raises.
    """

    spec: ChildSpec


@frozen
class RemoveChild:
    """Stop a child and forget it. Reply: a future of whether it was there, set when it has stopped."""

    name: str


@frozen
class ListChildren:
    """Reply: a list of ChildStatus, in the order of their start."""


# -- notices ---------------------------------------------------------------------------------------


@frozen
class ChildStarted:
    """`start` has returned the ref of an incarnation."""

    name: str
    number: int
    ref: GreenletActorRef[Any]


@frozen
class StartFailed:
    """`start` has raised, took too long, or returned what is no ref of a GreenletActor."""

    name: str
    number: int
    error: BaseException


@frozen
class ChildStopped:
    """An incarnation was stopped, or given up after its time limit."""

    name: str
    number: int
    in_time: bool


@frozen
class ChildEnded:
    """An incarnation has ended, by itself or not; `error` is None after a normal stop."""

    name: str
    number: int
    error: BaseException | None


@frozen
class PauseOver:
    """The delay before a restart is over."""

    unit: Unit
