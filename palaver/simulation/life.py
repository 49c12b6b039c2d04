"""One life of the simulated process: it opens the database, serves its senders, and crashes or ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event as Signal

from actors.config import AgentConfig
from palaver.runtime import Runtime
from palaver.simulation.checks.births import OUTLIVES_S, Births
from palaver.simulation.checks.disk import Disk, FaultyCommitter
from palaver.simulation.checks.rest import heal
from palaver.simulation.checks.stored import left_in_order
from palaver.simulation.checks.watch import Left, Watch
from palaver.simulation.lateness import LateCommitter
from palaver.simulation.loop import EPOCH, VirtualClock, VirtualLoop
from palaver.simulation.provider import FIRST, Provider, Toolbox
from palaver.simulation.sender import AGENT
from palaver.simulation.trouble import Trouble
from persistence.committer import Committer
from persistence.database import MEMORY, abandon_database, open_database
from persistence.errors import StorageError
from persistence.inline import InlineWorker
from persistence.sources import seeded_random, seeded_sources

if TYPE_CHECKING:
    from pathlib import Path

    from palaver.simulation.run import Run
    from palaver.simulation.simulating import Progress

LIVES = 4_096  # of one seed, for numbers of sources
LOOK_EVERY_S = 600.0
READS_ALL = 0.3  # of the checked seeds: whether all events are read


class Life:
    """The life of one process, on a loop of its own."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        run.life += 1
        self._run = run
        self._progress = progress
        order = seeded_random("order", run.seed, run.life) if run.workload.shuffle else None
        self.loop = run.loop = VirtualLoop(order, max_steps=1 << 62)
        self._end = Signal()
        self._provider = Provider(run)
        self._worker: InlineWorker | None = None
        self._births = Births()
        self._ours: list[gevent.Greenlet] = []
        self._rt: Runtime | None = None
        self._error: Exception | None = None
        self._committer: Committer | None = None
        run.frozen = False
        run.disk = Disk(crash=self.crash)

    def live(self) -> bool:
        """Live, on the loop; whether another life follows."""
        if not self._run.check:
            return self._live()
        with self._births.noted():
            return self._live()

    def abandon(self) -> Callable[[], None]:
        """Let go of the file, as the crash has left it; as `InlineWorker.abandon`."""
        if self._worker is None:
            return lambda: None
        answer = self._worker.abandon()
        self._run.disk.tear()
        return answer

    def _live(self) -> bool:
        run = self._run
        run.ledger.begin_life(self._end.set)
        run.note("world", "life", number=run.life)
        try:
            self._rt = rt = self._open()
        except StorageError:
            if not run.frozen:
                raise
            self.abandon()()  # it crashed on the way
            return True
        trouble = Trouble(run, rt, self.crash, self._spawn)
        self._spawn(trouble.make)
        self._spawn(self._sample, rt)
        self._spawn(self._look_for_progress)
        for sender in run.senders:
            sender.begin_life(rt)
        busy = self._begin()
        self._spawn(self._when_done, busy, trouble)
        self._end.wait()
        if run.ledger.broken is not None or self._error is not None:
            raise run.ledger.broken or self._error or AssertionError
        if run.frozen:
            gevent.killall(self._ours)  # callers of the dead process hear nothing
            self.abandon()()
            return True
        self._come_to_rest(rt)
        return False

    def _begin(self) -> list[gevent.Greenlet]:
        run = self._run
        if run.arrivals is None:
            return [self._spawn(sender.live) for sender in run.senders]
        return [self._spawn(sender.send_again) for sender in run.senders] + [self._spawn(self._let_arrive)]

    def _spawn(self, function: Callable[..., object], *args: object) -> gevent.Greenlet:
        greenlet = gevent.spawn(self._carefully, function, *args)
        self._ours.append(greenlet)
        return greenlet

    def _carefully(self, function: Callable[..., object], *args: object) -> None:
        """What it raises ends the run, and is raised there."""
        try:
            function(*args)
        except Exception as error:
            if not self._run.frozen:
                self._error = self._error or error
                self._end.set()

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> Runtime:
        run, workload = self._run, self._run.workload
        left = self._left_behind()
        if run.life > 1:
            run.note("world", "opens", left=len(left))
        path = MEMORY if run.path is None else run.path
        self._committer = committer = self._new_committer(path)
        self._worker = worker = InlineWorker(
            path, schedule=self._schedule, commit_latency=self._commit_latency(), committer=committer
        )
        rt = Runtime.open(
            path,
            self._provider,
            tools=[Toolbox(run).work],
            limits=workload.limits,
            sources=seeded_sources(VirtualClock(epoch=EPOCH + run.elapsed), run.seed * LIVES + run.life),
            worker=worker,
        )
        if run.check:
            run.watch = Watch(rt, run.ledger, workload.limits.attempts, run.begun)
            run.watch.expect(left)
            if seeded_random("reads all", run.seed).random() < READS_ALL:
                self._spawn(run.watch.read, rt.subscribe(), FIRST)
        rt.add_agent(AgentConfig(name=AGENT, auto_title=False, compact_threshold=workload.compact_threshold))
        return rt

    def _new_committer(self, path: str | Path) -> Committer:
        run = self._run
        faulty = run.check or run.path is not None or run.plan.rates.disk_full_per_hour
        return FaultyCommitter(path, run.disk) if faulty else LateCommitter(MEMORY)

    def _schedule(self, seconds: float, function: Callable[[], None]) -> None:
        """In the hub, as what a database thread calls there."""
        if seconds > 0.0:
            self.loop.call_later(seconds, function)
        else:
            self.loop.run_callback(function)

    def _left_behind(self) -> Left:
        """What the last life did not come to, read from the file while nobody has it."""
        if self._run.path is None or self._run.life == 1:
            return []
        db = open_database(self._run.path, create=False)
        try:
            return left_in_order(db)
        finally:
            abandon_database(db)  # its WAL stays, as the process left it

    def _commit_latency(self) -> Callable[[], float]:
        run, workload = self._run, self._run.workload
        rng = seeded_random("disk", run.seed, run.life)
        usual_s, slow_s = workload.disk.commit_s, workload.faults.slow_commit_s
        slow = run.plan.rates.slow_commits
        if not slow:
            return lambda: usual_s.draw(rng)
        return lambda: (slow_s if rng.random() < slow and not run.healing else usual_s).draw(rng)

    # -- while it lives ----------------------------------------------------------------------------

    def _let_arrive(self) -> None:
        """The messages of an open arrival, each in its time."""
        run = self._run
        under_way: list[gevent.Greenlet] = []
        assert run.arrivals is not None
        for act in run.arrivals:
            if run.workload.duration_s and act.at_s > run.workload.duration_s:
                break
            if not run.lives(act):
                continue
            if act.at_s > run.now:
                gevent.sleep(act.at_s - run.now)
            sender = run.senders[int(act.who[1:]) - 1]
            under_way.append(self._spawn(sender.meet, act))
            if len(under_way) >= 10_000:
                under_way = [each for each in under_way if not each.dead]
                self._ours = [each for each in self._ours if not each.dead]
        gevent.joinall(under_way)

    def _when_done(self, busy: list[gevent.Greenlet], trouble: Trouble) -> None:
        gevent.joinall(busy)
        trouble.over = True
        self._run.disk.last = 0  # a crash that waited for a commit comes too late
        self._end.set()

    def _sample(self, rt: Runtime) -> None:
        run, slots = self._run, self._provider.slots
        while not run.healing:
            run.figures.sample(rt.stats(), slots.taken, slots.waiting)
            if self._progress is not None:
                self._progress(run.now, run.figures.done)
            gevent.sleep(run.figures.sample_s)

    def _look_for_progress(self) -> None:
        """Nobody waits for ever: not longer than a turn may take, while nothing else happens either."""
        run, before, since = self._run, -1, 0.0
        while not run.healing:
            if run.figures.happened != before:
                before, since = run.figures.happened, run.now
            waiting = [f"{s.name} {act.what} {act.number}" for s in run.senders for act in s.doing.values()]
            stuck = waiting and run.now - since > run.workload.limits.turn_s + LOOK_EVERY_S
            run.require(
                not stuck, 13, f"nothing happens since {since:.6f} s, and callers wait: {waiting[:20]}"
            )
            gevent.sleep(LOOK_EVERY_S)

    # -- its end -----------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process ends here and now."""
        run, worker = self._run, self._worker
        if run.frozen or self._end.is_set():
            return
        run.note("world", "crashes", commits=run.disk.commits)
        run.figures.crashes += 1
        if self._rt is not None and worker is not None:
            run.figures.end_life(self._rt.stats())
        run.ledger.end_life()
        run.frozen = run.disk.dead = True
        run.elapsed_next = run.now + run.restart_s
        self._end.set()

    def _come_to_rest(self, rt: Runtime) -> None:
        run, slots = self._run, self._provider.slots
        run.figures.sample(rt.stats(), slots.taken, slots.waiting)
        run.figures.end_life(rt.stats())
        run.figures.close()
        run.disk.full, run.healing = False, True
        if not run.check:
            rt.shutdown()
            if isinstance(self._committer, LateCommitter) and self._committer.wrong is not None:
                raise self._committer.wrong
            return
        run.note("world", "heals")
        assert self._worker is not None
        heal(run, rt, self._worker)
        gevent.sleep(OUTLIVES_S)
        left = self._births.left(self._ours)
        run.require(not left, 13, f"greenlets are left over: {left}")
        run.note("world", "rests")
