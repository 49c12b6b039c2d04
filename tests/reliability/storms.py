"""Crash storms on virtual time, each from one seed: who dies is restarted as promised, the others go on.

A seed is a runtime in which actors of users, a supervisor of theirs with a strategy of its own, the memory
actor, the registry and conversations die again and again, in many ways, while others work beside them. All
that the actors saw themselves, when they were started and when they died, is compared with the promise.
"""

from __future__ import annotations

import gc
import random
from pathlib import Path

import gevent

from palaver import AgentConfig, Limits, Reply, Runtime, RuntimeFailed, ScriptedModel
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from persistence.verify import verify
from reliability.cast import wait
from reliability.check import Check
from reliability.crashing import FRAMES, Crashing, Pool, Steady
from reliability.seeds import quietly
from reliability.talkers import Talker

SPAN = 1_000_000  # storms of one seed; a seed from here on is the number of a storm
COLLECTED_AFTER = 20
STORM_S = 12.0
REST_S = 30.0
MOST_IN_FIVE = 3


def run(count: int, seed: int, _folder: Path) -> int:
    """Live through `count` storms: those of this seed or, from `SPAN` on, those from this number on."""
    first = seed if seed >= SPAN else seed * SPAN
    with quietly():
        for done, number in enumerate(range(first, first + count), start=1):
            try:
                run_virtual(Storm(number).run, rng=random.Random(f"order {number}"))
            except Exception as error:
                words = f"{error} in storm {number}; python tests/reliability --part storms 1 {number}"
                raise AssertionError(words) from error
            if done % COLLECTED_AFTER == 0:
                gc.collect()
    return count


class Storm:
    """One runtime, and what befalls it."""

    def __init__(self, number: int) -> None:
        self._rng = random.Random(number)
        self._seed = number
        self._told: list[Exception] = []

    def run(self) -> None:
        """The storm, the calm behind it, and what must be true then."""
        rng = self._rng
        self._clock = VirtualClock()
        rt = self._rt = self._open()
        actors = [Crashing(f"wild {n}", rng, self._clock) for n in range(rng.randrange(1, 6))]
        steady = [Steady(f"calm {n}", self._clock) for n in range(3)]
        pool = Pool("pool", rng, self._clock)
        for each in sorted([*actors, *steady, pool], key=lambda _each: rng.random()):
            each.supervise(rt)
        talkers = [Talker(rt, n, rng, wild=n >= 3) for n in range(6)]
        until = self._clock.monotonic() + STORM_S
        acts = [gevent.spawn(each.act, until) for each in (*actors, *steady, pool, *talkers)]
        acts += [gevent.spawn(self._kill_ours, name, until) for name in ("memory", "registry")]
        gevent.joinall(acts, raise_error=True)
        wait(REST_S)
        for each in (*actors, *steady, pool):
            each.check(rt)
        for talker in talkers:
            talker.check()
        self._check_counts(rt, [*actors, pool])
        problems = rt._services.store.call(verify)  # noqa: SLF001 - the open file's
        assert problems == [], f"verify: {problems}"
        if rng.random() < 0.2:
            self._fail(rt)
        rt.shutdown()

    def _open(self) -> Runtime:
        rng = random.Random(f"runtime {self._seed}")
        rt = Runtime.open(
            ":memory:",
            ScriptedModel(
                lambda request: Reply(request.messages[-1]["content"], delay_s=rng.choice((0, 0.3)))
            ),
            worker=InlineWorker(
                ":memory:", schedule=gevent.spawn_later, commit_latency=lambda: rng.choice((0.0, 0.01))
            ),
            sources=seeded_sources(self._clock, self._seed),
            limits=Limits(attempts=MOST_IN_FIVE),
            on_failure=self._told.append,
        )
        rt.add_agent(AgentConfig(name="crab", auto_title=False))
        return rt

    def _kill_ours(self, name: str, until: float) -> None:
        """Let one of Palaver's own actors die, as often as its budget allows."""
        ref, times = getattr(self._rt._services, name), list[float]()  # noqa: SLF001 - what is to die
        while (now := self._clock.monotonic()) < until:
            wait(self._rng.choice((0.01, 0.3, 2.0, 4.0)))
            if sum(now - time < FRAMES.period_s + 1 for time in times) < MOST_IN_FIVE and ref.is_alive():
                times.append(self._clock.monotonic())
                ref.tell(object())
        wait(FRAMES.period_s)
        assert ref.is_alive(), f"{name} is not restarted"

    def _check_counts(self, rt: Runtime, actors: list[Crashing | Pool]) -> None:
        """Every restart was told of, whoever's it was."""
        counted = sum(status.restarts for status in rt.supervised())
        assert counted == sum(each.restarts for each in actors if isinstance(each, Crashing)), "restarts"
        assert rt.stats().restarts >= counted, "restarts that stats() does not count"
        assert self._told == [], f"the runtime failed: {self._told}"

    def _fail(self, rt: Runtime) -> None:
        """More than can be mended ends the runtime, visibly, and shutting down still works."""
        memory = rt._services.memory  # noqa: SLF001 - what is to die
        assert memory is not None
        for _ in range(MOST_IN_FIVE + 1):
            memory.tell(object())
            wait(1.0)
        (failure,) = self._told
        assert isinstance(failure, RuntimeFailed), repr(failure)
        try:
            rt.get_or_create("crab", "late")
        except RuntimeFailed:
            return
        raise AssertionError("a failed runtime took new work")


CHECKS = (Check(name="storms", guarantees=(12,), unit="seeds", quick=50, long=5_000, run=run),)
