"""Actors that crash in storms, in many ways, and what they saw of their restarts themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gevent
import pykka

from palaver import Budget, ChildSpec, GreenletActor, Runtime, Supervisor
from palaver.simulation.loop import VirtualClock
from reliability.cast import wait
from reliability.trapped import KINDS

FRAMES = Budget()  # what RELIABILITY promises: 3 restarts in 5 s, after 0.05, 0.1, 0.2 s
BUDGETS = (None, None, Budget(restarts=1, period_s=2.0), Budget(6, 20.0, 0.5, 3.0, 4.0), Budget(restarts=0))
EXACT_S = 1e-6
PATIENCE_S = 100.0


class Seen:
    """When one actor was started and when it ended, as it saw it itself."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.starts: list[float] = []
        self.ends: list[tuple[float, str]] = []  # and of what
        self.fails_next: list[str] = []  # "constructor" or "on_start"

    def started(self) -> None:
        self.starts.append(self.clock.monotonic())

    def ended(self, of: str) -> None:
        self.ends.append((self.clock.monotonic(), of))


class Mortal(GreenletActor):
    """Dies of what it is told, and writes down that it did."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen
        if seen.fails_next == ["constructor"]:
            seen.fails_next.clear()
            seen.ended("constructor")
            raise OSError("constructor")
        self.count = 0

    def on_start(self) -> None:
        if self.seen.fails_next == ["on_start"]:
            self.seen.fails_next.clear()
            raise OSError("on_start")
        self.seen.started()

    def on_receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.count += 1
        return self.count

    def on_death(self, reason: BaseException | None) -> None:
        self.seen.ended("stop" if reason is None else type(reason).__name__)


def raise_(error: BaseException) -> Callable[[Any], None]:
    def fail(_actor: Any) -> None:
        raise error

    return fail


class Crashing:
    """A supervised actor of a user's that dies again and again, and what is promised for it."""

    WAYS = ("handler", "handler", "killed", "stop", "stop itself", "constructor", "on_start", "blocked")

    def __init__(self, name: str, rng: random.Random, clock: VirtualClock) -> None:
        self.name, self._rng, self._clock = name, rng, clock
        self._own = rng.choice(BUDGETS)
        self._budget = self._own or FRAMES
        self._restart = rng.choice(("permanent", "permanent", "transient"))
        self._gaps = rng.choice(((0.02,), (0.3, 1.0), (1.7, 2.5), (0.02, 6.0)))
        self.seen = Seen(clock)

    @property
    def restarts(self) -> int:
        """How often it was started again, by its own account; starts that failed in `on_start` among them."""
        failed = sum(of == "OSError" for _, of in self.seen.ends)
        return len(self.seen.starts) - 1 + failed

    def supervise(self, rt: Runtime) -> None:
        spec = ChildSpec(
            self.name,
            lambda: Mortal.start(self.seen),
            restart=self._restart,  # type: ignore[arg-type]  # one of the words
            budget=self._own,
        )
        self._ref = rt.supervise(spec)

    def act(self, until: float) -> None:
        """Die, and again as soon as it is back and some time has passed."""
        while self._clock.monotonic() < until:
            wait(self._rng.choice(self._gaps))
            try:
                if self._ref.is_alive():
                    self._die()
            except pykka.ActorDeadError:  # it was quicker
                continue

    def _die(self) -> None:
        way = self._rng.choice(self.WAYS)
        if way in ("constructor", "on_start"):
            self.seen.fails_next[:] = [way]
        if way == "killed":
            self._ref.tell(lambda _actor: wait(PATIENCE_S))
            wait(0.0)
            worker = self._ref.actor_inbox.worker
            if worker is not None:
                gevent.get_hub().loop.run_callback(worker.throw)
        elif way == "stop":
            self._ref.stop(block=False)
        elif way == "stop itself":
            self._ref.tell(lambda actor: actor.stop())
        elif way == "blocked":
            self._ref.tell(lambda _actor: wait(0.5))
            self._ref.tell(raise_(ValueError("after a while")))
        else:
            self._ref.tell(raise_(self._rng.choice([*KINDS.values()])()))

    def check(self, rt: Runtime) -> None:
        """Every end had the consequence that it must have, at its time, and the last one shows."""
        starts = [*self.seen.starts]
        decided: list[float] = []
        state, at = "running", starts.pop(0)
        for time, of in self.seen.ends:
            assert time >= at, f"{self.name} ended at {time}, before its start at {at}"
            if of == "stop" and self._restart == "transient":
                state = "stopped"
                break
            recent = sum(time - earlier < self._budget.period_s for earlier in decided)
            if recent >= self._budget.restarts:
                state = "parked"
                break
            decided.append(time)
            delay = self._budget.first_delay_s * self._budget.factor**recent
            at = time + min(delay, self._budget.delay_cap_s)
            if starts and abs(starts[0] - at) < EXACT_S:
                starts.pop(0)
        status = next(status for status in rt.supervised() if status.name == self.name)
        assert not starts, f"{self.name} was started at {starts}, for which there is no reason"
        assert status.state == state, f"{self.name} is {status.state}, not {state}: {self.seen.ends}"
        over = [time for time, _ in self.seen.ends][len(decided) + (state != "running") :]
        assert not over, f"{self.name} ended at {over}, and was not to run"
        if state == "parked":
            assert status.last_error, f"{self.name} is parked and nobody says why"
        assert self._frames_hold(), f"{self.name} was restarted too often: {self.seen.starts}"

    def _frames_hold(self) -> bool:
        times, most = self.seen.starts[1:], self._budget.restarts
        if most == 0:
            return not times
        return all(
            times[later] - times[later - most] > self._budget.period_s - EXACT_S
            for later in range(most, len(times))
        )


class Steady:
    """A sibling that nothing happens to: it is asked all the time, answers at once, and forgets nothing."""

    restarts = 0

    def __init__(self, name: str, clock: VirtualClock) -> None:
        self.name, self._clock = name, clock
        self.seen = Seen(clock)

    def supervise(self, rt: Runtime) -> None:
        self._ref = rt.supervise(ChildSpec(self.name, lambda: Mortal.start(self.seen)))

    def act(self, until: float) -> None:
        count = 0
        while self._clock.monotonic() < until:
            wait(0.1)
            count, asked = count + 1, self._clock.monotonic()
            answer = self._ref.ask("how many?", timeout=PATIENCE_S)
            assert answer == count, f"{self.name} has forgotten: {answer}, not {count}"
            assert self._clock.monotonic() == asked, f"{self.name} kept its asker waiting"

    def check(self, rt: Runtime) -> None:
        status = next(status for status in rt.supervised() if status.name == self.name)
        assert (status.state, status.restarts, status.last_error) == ("running", 0, None), f"{status}"
        assert len(self.seen.starts) == 1, f"{self.name} was restarted"


class Pool:
    """A supervisor of a user's, whose children are restarted together as its strategy says."""

    NAMES = ("first", "second", "third")

    def __init__(self, name: str, rng: random.Random, clock: VirtualClock) -> None:
        self.name, self._rng, self._clock = name, rng, clock
        self._strategy = rng.choice(("one-for-one", "one-for-all", "rest-for-one"))
        self._seen = {name: Seen(clock) for name in self.NAMES}
        self._refs: dict[str, Any] = {}

    def supervise(self, rt: Runtime) -> None:
        children = [ChildSpec(name, lambda name=name: self._start(name)) for name in self.NAMES]  # type: ignore[misc]
        launch = lambda: Supervisor.launch(children, strategy=self._strategy)  # noqa: E731 - a child's start
        rt.supervise(ChildSpec(self.name, launch, stop_timeout_s=None))

    def _start(self, name: str) -> Any:
        self._refs[name] = Mortal.start(self._seen[name])
        return self._refs[name]

    def act(self, until: float) -> None:
        """One of them dies now and then, never too often."""
        while self._clock.monotonic() < until:
            name = self._rng.choice(self.NAMES)
            before = {each: len(self._seen[each].starts) for each in self.NAMES}
            if self._refs[name].is_alive():
                self._refs[name].tell(raise_(ValueError("one of a pool")))
            wait(2.5)
            started = [each for each in self.NAMES if len(self._seen[each].starts) > before[each]]
            assert started == self._companions(name), f"{name} died, and {started} were started"
            times = [self._seen[each].starts[-1] for each in started]
            assert all(a <= b for a, b in pairwise(times)), f"started in a wrong order: {times}"

    def _companions(self, name: str) -> list[str]:
        at = self.NAMES.index(name)
        group = {"one-for-one": self.NAMES[at : at + 1], "rest-for-one": self.NAMES[at:]}
        return [*group.get(self._strategy, self.NAMES)]

    def check(self, rt: Runtime) -> None:
        status = next(status for status in rt.supervised() if status.name == self.name)
        assert (status.state, status.restarts) == ("running", 0), f"{status}"
