"""Several runs side by side, in processes of their own: seeds of a workload, or values of a setting."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from typing import Any

import gevent
from attrs import define, evolve, field, frozen
from gevent import subprocess
from gevent.queue import Queue

from palaver.simulation.errors import SimulationError
from palaver.simulation.outcome import Outcome
from palaver.simulation.worker import Ended, Failed, Job, Lived, Shrunk, Told, Violated
from palaver.simulation.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
WITH_SAMPLES = 50
_PROGRAM = "from gevent import monkey; monkey.patch_all(); from palaver.simulation.worker import main; main()"


@frozen
class Standing:
    """How far several runs are.

    Args:
        share: of all the work, from 0 to 1, as far as that can be told.
        runs: those that have ended.
        planned: all of them.
        turns: done so far, in all runs.
        shrinking: how many runs have violated a guarantee, and what shows it is being made small.
        shrunk_by: runs that this has taken.
    """

    share: float
    runs: int
    planned: int
    turns: int
    shrinking: int
    shrunk_by: int


Watcher = Callable[[Standing], object]
"""Called now and then, in the greenlet that waits for the runs."""


@frozen
class Point:
    """One value of a sweep, and what came of it: an outcome for each seed."""

    value: Any
    outcomes: Sequence[Outcome]


@frozen
class Sweep:
    """A workload lived with several values of one of its settings.

    Args:
        key: the setting, with dots: `limits.model_calls`.
        points: in the order of the values that were asked for.
    """

    key: str
    points: Sequence[Point]

    @property
    def outcomes(self) -> list[Outcome]:
        """All of them."""
        return [outcome for point in self.points for outcome in point.outcomes]


def run_seeds(
    workload: Workload,
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    check: bool = True,
    progress: Watcher | None = None,
) -> list[Outcome]:
    """Live a workload on several seeds.

    The calling greenlet waits; the runs are in processes of their own, which end with the call, however it
    ends. It must be called in the main thread.

    Args:
        workload: what to live.
        seeds: one run for each.
        jobs: processes side by side.
        check: whether the guarantees are checked.
        progress: called now and then.

    Raises:
        SimulationError: a run could not be lived; its words say which and why.

    Returns:
        An outcome for each seed, in their order. A violation's acts are shrunk. Only the first 50 have their
        samples.
    """
    wanted = [Job(workload, seed, check) for seed in seeds]
    found = dict(live(wanted, jobs=jobs, progress=progress))
    return [found[number] for number in range(len(wanted))]


def sweep(
    workload: Workload,
    key: str,
    values: Iterable[Any],
    *,
    seeds: Iterable[int] = (0,),
    jobs: int = 1,
    check: bool = True,
    folder: str = "",
    progress: Watcher | None = None,
) -> Sweep:
    """Live a workload with each of several values of one setting, on the same seeds; else as `run_seeds`.

    Args:
        key: the setting, with dots: `limits.model_calls`, `senders.count`, `arrivals.rate`.
        values: each as Python code would give it, or as a workload file would write it.
        folder: where files that the values name are found.

    Raises:
        InvalidConfig: there is no such setting, or a value does not fit it.
        SimulationError: as `run_seeds`.
    """
    wanted = swept(workload, key, values, seeds, check, folder)
    numbers = iter(range(sum(len(jobs) for _, jobs in wanted)))
    found = dict(live([job for _, each in wanted for job in each], jobs=jobs, progress=progress))
    return Sweep(key, [Point(value, [found[next(numbers)] for _ in each]) for value, each in wanted])


def swept(
    workload: Workload,
    key: str,
    values: Iterable[Any],
    seeds: Iterable[int],
    check: bool = True,
    folder: str = "",
) -> list[tuple[Any, list[Job]]]:
    """The jobs for each value. Raises as `sweep`."""
    wanted = [*seeds]
    changed = [(value, workload.with_value(key, value, folder)) for value in values]
    return [(value, [Job(each, seed, check) for seed in wanted]) for value, each in changed]


def live(
    jobs_wanted: Sequence[Job], *, jobs: int = 1, progress: Watcher | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Each outcome, with the place of its job, as soon as it is there; one with a violation also before that
    is made small. The processes end with the iteration.

    Raises:
        SimulationError: a run could not be lived.
    """
    if not jobs_wanted:
        return
    told: Queue[tuple[int, Told]] = Queue()
    waiting = iter(enumerate(jobs_wanted))
    progress_of = _Progress(jobs_wanted, progress)
    # Runs keep databases in temporary folders, which a process that is killed would leave behind.
    with TemporaryDirectory(prefix="palaver-simulations-") as folder:
        workers: list[_Worker] = []
        greenlets: list[gevent.Greenlet] = []
        try:
            for _ in range(min(jobs, len(jobs_wanted))):
                workers.append(_Worker(Path(folder)))
                greenlets.append(gevent.spawn(_work, workers[-1], waiting, told))
            yield from _ended(jobs_wanted, told, progress_of)
        finally:
            gevent.killall(greenlets)
            for worker in workers:
                worker.kill()


def _ended(
    jobs: Sequence[Job], told: Queue[tuple[int, Told]], progress: _Progress
) -> Iterator[tuple[int, Outcome]]:
    left = len(jobs)
    while left:
        number, what = told.get()
        progress.note(number, what)
        if isinstance(what, Failed):
            raise _failure(jobs[number], what)
        left -= isinstance(what, Ended)
        if isinstance(what, Ended | Violated):
            yield number, what.outcome if number < WITH_SAMPLES else evolve(what.outcome, samples=())


def _failure(job: Job, failed: Failed) -> SimulationError:
    error = SimulationError(f"seed {job.seed}: {failed.words}")
    if failed.raised:
        error.add_note(failed.raised)
    return error


def _work(worker: _Worker, waiting: Iterator[tuple[int, Job]], told: Queue[tuple[int, Told]]) -> None:
    for number, job in waiting:
        for what in worker.live(job):
            told.put((number, what))


class _Worker:
    """A process that lives one job after the other."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
            start_new_session=True,  # Ctrl-C is for whoever waits for it, who ends it
        )

    def live(self, job: Job) -> Iterator[Told]:
        """What it tells of a job; the last is its end."""
        try:
            pickle.dump(job, self._process.stdin)
            self._process.stdin.flush()
            while True:
                told: Told = pickle.load(self._process.stdout)
                yield told
                if isinstance(told, Ended | Failed):
                    return
        except (EOFError, OSError, pickle.UnpicklingError):
            yield Failed(f"its process ended {_how(self._process.wait())}")

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()


def _how(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    return f"by {Signals(-status).name}"


@define
class _Progress:
    """Adds up what runs tell of themselves."""

    jobs: Sequence[Job]
    watcher: Watcher | None
    _share: dict[int, float] = field(factory=dict)  # of the runs that are under way
    _turns: dict[int, int] = field(factory=dict)
    _shrinking: dict[int, int] = field(factory=dict)  # the runs that it has taken
    _runs: int = 0
    _turns_of_ended: int = 0

    def note(self, number: int, told: Told) -> None:
        match told:
            case Lived():
                self._share[number] = lived_share(self.jobs[number].workload, told)
                self._turns[number] = told.turns
            case Violated():
                self._shrinking[number] = 0
            case Shrunk():
                self._shrinking[number] = told.runs
            case Ended():
                self._share.pop(number, None)
                self._turns.pop(number, None)
                self._shrinking.pop(number, None)
                self._runs += 1
                self._turns_of_ended += told.outcome.done
        if self.watcher is not None:
            self.watcher(self._standing())

    def _standing(self) -> Standing:
        return Standing(
            share=(self._runs + sum(self._share.values())) / len(self.jobs),
            runs=self._runs,
            planned=len(self.jobs),
            turns=self._turns_of_ended + sum(self._turns.values()),
            shrinking=len(self._shrinking),
            shrunk_by=sum(self._shrinking.values()),
        )


def lived_share(workload: Workload, lived: Lived) -> float:
    """How much of a run is over, from 0 to 1: of its messages or its seconds, whichever is known."""
    if workload.duration_s:
        return min(1.0, lived.virtual_s / workload.duration_s)
    senders = workload.senders
    wanted = senders.count * senders.turns
    return min(1.0, lived.turns / wanted) if wanted else 0.0
