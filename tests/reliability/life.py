"""One life of a simulated process: it opens the file, serves its callers, and crashes, or comes to rest."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import gevent
from gevent.event import Event as Signal
from sqlite_utils import Database

from palaver import AgentConfig, Runtime, StorageError
from palaver.simulation.checks.births import OUTLIVES_S, Births
from palaver.simulation.checks.disk import Disk, FaultyCommitter
from palaver.simulation.checks.rest import heal, unended
from palaver.simulation.checks.stored import left_in_order
from palaver.simulation.checks.watch import Left, Watch
from palaver.simulation.loop import EPOCH, VirtualClock, VirtualLoop
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from reliability.cast import AGENTS, FIRST, SCOPES, Tools, WorldModel, wait

if TYPE_CHECKING:
    from reliability.world import World

LIFE_S = 7_200.0
CALLERS_S = 60.0
MODES: tuple[Literal["run", "hold", "fail"], ...] = ("run", "run", "run", "run", "hold", "fail")


class Life:
    """A life that ends by `fault`: at a "time", "before" or "after" a commit, by a "shutdown", some time
    after an "ioerr"; or in peace, by "".
    """

    def __init__(self, world: World, loop: VirtualLoop, fault: str) -> None:
        self.loop = loop
        self._world = world
        self._fault = fault
        self._rng = rng = world.rng
        self._worker: InlineWorker | None = None
        self._over = False  # no fault begins any more
        self._ours: list[gevent.Greenlet] = []
        self._births = Births()
        last = 1 + int(60 * rng.random() ** 2) if fault in ("before", "after") else 0
        self._disk = world.disk = Disk(last, fault == "after", self._crash)

    def run(self) -> bool:
        """Live, on the loop; whether another life follows."""
        with self._births.noted():
            return self._live()

    def abandon(self) -> Callable[[], None]:
        """Let go of the file; as `InlineWorker.abandon`."""
        return (lambda: None) if self._worker is None else self._worker.abandon()

    def _live(self) -> bool:
        world, self._end = self._world, Signal()
        world.ledger.begin_life(self._end.set)
        world.note("world", f"begins life {world.ledger.life}, {self._fault or 'the last one'}")
        try:
            rt = self._open()
        except StorageError:
            if not world.ledger.frozen:
                raise
            self.abandon()()  # it crashed on the way
            return True
        self._spawn(self._trouble)
        self._callers = [self._spawn(sender.run, rt) for sender in world.senders]
        self._spawn(self._when_done)
        self._wait_for_end()
        if world.ledger.frozen:
            gevent.killall(self._ours)  # callers of the dead process hear nothing
            self.abandon()()
        elif self._fault:
            self._shut_down(rt)
        else:
            assert self._worker is not None
            world.disk.full, world.healing = False, True
            world.note("world", "heals")
            heal(world, rt, self._worker)
            self._check_nothing_left()
            world.note("world", "rests")
        return bool(self._fault)

    def _wait_for_end(self) -> None:
        ended = self._end.wait(LIFE_S)
        if self._world.ledger.broken is not None:
            raise self._world.ledger.broken
        self._world.require(ended, 13, f"after {LIFE_S} s callers still wait: {self._doing()}")

    def _doing(self) -> list[str]:
        pairs = zip(self._world.senders, self._callers, strict=True)
        return [f"{sender.name}: {sender.doing}" for sender, greenlet in pairs if not greenlet.dead]

    def _spawn(self, function: Callable[..., object], *args: object) -> gevent.Greenlet:
        greenlet = gevent.spawn(function, *args)
        self._ours.append(greenlet)
        return greenlet

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> Runtime:
        world, left = self._world, self._left_behind()
        mode = self._rng.choice(MODES) if left else "run"
        world.note("world", f"opens to {mode} {len(left)}")
        self._worker = worker = self._new_worker()
        tools = Tools(world)
        clock = VirtualClock(epoch=EPOCH + world.elapsed)
        rt = Runtime.open(
            world.path,
            {"m": WorldModel(world)},
            tools=[tools.work, tools.relay, tools.harm],
            limits=world.limits,
            sources=seeded_sources(clock, world.number * 64 + world.ledger.life),
            worker=worker,
            recover=mode,
        )
        tools.rt = rt
        world.watch = Watch(rt, world.ledger, world.limits.attempts, world.begun)
        world.watch.expect(left)
        if mode == "fail":
            still = worker.call(left_in_order)
            world.require(not still, 2, f"recover='fail' has left {still}")
            world.ledger.given_up.update((content, True) for _, _, content in left)
        if world.reads_all:
            self._spawn(world.watch.read, rt.subscribe(), FIRST)
        self._add_agents(rt)
        if mode == "hold":
            self._check_held(rt, left)
        return rt

    def _left_behind(self) -> Left:
        """What the last life did not come to, read from the file while nobody has it."""
        conn = sqlite3.connect(self._world.path)
        try:
            return left_in_order(Database(conn))
        finally:
            conn.close()

    def _new_worker(self) -> InlineWorker:
        world = self._world
        rng = random.Random(f"disk {world.number} {world.ledger.life}")
        return InlineWorker(
            world.path,
            schedule=gevent.spawn_later,
            commit_latency=lambda: 0.0 if world.healing else rng.choice(world.rates.commits),
            committer=FaultyCommitter(world.path, self._disk),
        )

    def _add_agents(self, rt: Runtime) -> None:
        rng = random.Random(f"agents {self._world.number}")
        for name in AGENTS:
            rt.add_agent(
                AgentConfig(
                    name=name,
                    model="m",
                    compact_threshold=rng.choice((None, 20, 60)),
                    auto_title=rng.random() < 0.3,
                    max_iterations=rng.choice((16, 2)),
                    memory_scope=SCOPES[name],
                )
            )

    def _check_held(self, rt: Runtime, left: Left) -> None:
        held = [session.handle for session in rt.unfinished()]
        wanted = sorted({handle for handle, _, _ in left})
        self._world.require(sorted(held) == wanted, 2, f"held are {held}, left was {left}")
        if self._rng.random() < 0.5:
            rt.recover()

    # -- faults ------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        rng, often = self._rng, self._world.rates.disk_full
        if self._fault in ("time", "ioerr", "shutdown"):
            self._spawn(self._end_in, rng.choice((0.0, 1.0, 10.0, 40.0)) * rng.random())
        while often and not self._over:
            wait(rng.random() * 10 / often)
            self._disk.full = not self._over
            self._world.note("world", f"disk full: {self._disk.full}")
            wait(rng.choice((0.1, 1.0, 5.0)))
            self._disk.full = False
            self._world.note("world", "there is room")

    def _end_in(self, seconds: float) -> None:
        wait(seconds)
        for _ in range(self._rng.randrange(12)):
            wait(0)
        if self._fault == "ioerr":
            self._world.note("world", "the disk fails")
            self._disk.dead = True
            wait(self._rng.choice((0.0, 0.5, 4.0)))
        if self._fault == "shutdown":
            self._end.set()
        else:
            self._crash()

    def _when_done(self) -> None:
        gevent.joinall(self._callers)
        self._over = True
        if self._fault not in ("", "shutdown"):
            self._crash()
        self._end.set()

    def _crash(self) -> None:
        """The process ends here and now."""
        world = self._world
        if not world.ledger.frozen and not self._end.is_set():
            world.note("world", f"crashes after {self._disk.commits} commits")
            world.ledger.end_life()
            self._disk.dead = True
            self._end.set()

    def _shut_down(self, rt: Runtime) -> None:
        """The process ends properly, whatever its callers do; each of them gets an answer."""
        world, drain = self._world, self._rng.choice((0, 1, 30))
        self._over, self._disk.full = True, False
        world.note("world", f"shuts down, drain {drain}")
        rt.shutdown(drain=drain)
        gevent.joinall(self._callers, timeout=CALLERS_S)
        waiting, lost = self._doing(), unended(world.ledger)
        world.require(not waiting, 13, f"callers were left waiting by a shutdown: {waiting}")
        world.require(not lost, 13, f"tickets were left open by a shutdown: {lost}")
        self._check_nothing_left()
        world.ledger.end_life()

    def _check_nothing_left(self) -> None:
        """The runtime is shut down: no greenlet of its own is alive."""
        wait(OUTLIVES_S)
        left = self._births.left(self._ours)
        self._world.require(not left, 13, f"greenlets are left over: {left}")
