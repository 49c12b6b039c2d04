"""One life of the simulated process: it opens the database, serves its senders, and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
from gevent.event import Event as Signal

from actors.config import AgentConfig
from palaver.runtime import Runtime
from palaver.simulation.loop import EPOCH, VirtualClock, VirtualLoop
from palaver.simulation.provider import Provider, Toolbox
from palaver.simulation.sender import AGENT
from persistence.database import MEMORY
from persistence.inline import InlineWorker
from persistence.sources import seeded_random, seeded_sources

if TYPE_CHECKING:
    from palaver.simulation.run import Run
    from palaver.simulation.simulate import Progress

LIVES = 64  # of one seed, for numbers of sources


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

    def live(self) -> bool:
        """Live, on the loop; whether another life follows."""
        run = self._run
        run.note("world", f"begins life {run.life}")
        rt = self._open()
        sampling = gevent.spawn(self._sample, rt)
        for sender in run.senders:
            sender.begin_life(rt)
        if run.arrivals is None:
            busy = [gevent.spawn(sender.live) for sender in run.senders]
        else:
            busy = [gevent.spawn(self._let_arrive)]
        gevent.joinall(busy, raise_error=True)
        sampling.kill()
        run.figures.sample(rt.stats(), self._provider.slots.taken, self._provider.slots.waiting)
        run.figures.end_life(rt.stats())
        rt.shutdown()
        return False

    def _open(self) -> Runtime:
        run, workload = self._run, self._run.workload
        path = MEMORY if run.path is None else run.path
        rng, disk = seeded_random("disk", run.seed, run.life), workload.disk
        self._worker = worker = InlineWorker(
            path, schedule=gevent.spawn_later, commit_latency=lambda: disk.commit_s.draw(rng)
        )
        rt = Runtime.open(
            path,
            self._provider,
            tools=[Toolbox(run).work],
            limits=workload.limits,
            sources=seeded_sources(VirtualClock(epoch=EPOCH + run.elapsed), run.seed * LIVES + run.life),
            worker=worker,
        )
        rt.add_agent(AgentConfig(name=AGENT, auto_title=False, compact_threshold=workload.compact_threshold))
        return rt

    def _let_arrive(self) -> None:
        """The messages of an open arrival, each in its time."""
        run, under_way = self._run, []
        assert run.arrivals is not None
        for act in run.arrivals:
            if act.at_s > run.workload.duration_s:
                break
            if not run.lives(act):
                continue
            if act.at_s > run.now:
                gevent.sleep(act.at_s - run.now)
            sender = run.senders[int(act.who[1:]) - 1]
            under_way.append(gevent.spawn(sender.meet, act))
            if len(under_way) > 10_000:
                under_way = [each for each in under_way if not each.dead]
        gevent.joinall(under_way, raise_error=True)

    def _sample(self, rt: Runtime) -> None:
        run, slots = self._run, self._provider.slots
        while True:
            stats = rt.stats()
            run.figures.sample(stats, slots.taken, slots.waiting)
            if self._progress is not None:
                self._progress(run.now, stats.turns_ended["done"])
            gevent.sleep(run.figures.sample_s)
