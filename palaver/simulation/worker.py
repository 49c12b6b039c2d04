"""What a process does that lives simulations for another one: jobs in, and what came of them out."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from attrs import evolve, frozen

from palaver.simulation.outcome import Outcome
from palaver.simulation.shrinking import shrink
from palaver.simulation.simulating import simulate
from palaver.simulation.workload import Workload
from persistence.errors import PalaverError
from persistence.sources import SystemClock

TOLD_EVERY_S = 0.1


@frozen
class Job:
    """One run.

    Args:
        workload, seed, check, acts: of `simulate`.
        trace: a file to write the trace into.
        database: a file that is kept.
        shrunk: whether the acts that show a violation are made fewer.
    """

    workload: Workload
    seed: int
    check: bool = True
    acts: Mapping[int, float] | Sequence[int] | None = None
    trace: Path | None = None
    database: Path | None = None
    shrunk: bool = True


@frozen
class Lived:
    """So far: virtual seconds, and turns done."""

    virtual_s: float
    turns: int


@frozen
class Violated:
    """The run is over, and its violation will be made small; the end will come with that."""

    outcome: Outcome


@frozen
class Shrunk:
    """So many runs have made what shows a violation so few acts."""

    runs: int
    acts: int


@frozen
class Ended:
    """The run is over."""

    outcome: Outcome


@frozen
class Failed:
    """The run could not be lived; the error in words, and where it was raised if that is a fault of ours."""

    words: str
    raised: str = ""


Told = Lived | Violated | Shrunk | Ended | Failed


def main() -> None:
    """Live the jobs that come on standard input until that ends; the process is patched by gevent before."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a run may print must not get between the answers
    tell = _teller(answers)
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        tell(answer(job, tell))


def _teller(answers: BinaryIO) -> Callable[[Told], None]:
    def tell(told: Told) -> None:
        try:
            pickle.dump(told, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # whoever wanted to know is gone

    return tell


def answer(job: Job, tell: Callable[[Told], object]) -> Ended | Failed:
    """Live a job, and tell how far it is on the way."""
    try:
        return Ended(_lived(job, tell))
    except PalaverError as error:
        return Failed(str(error))
    except OSError as error:
        return Failed(str(error))
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())


def _lived(job: Job, tell: Callable[[Told], object]) -> Outcome:
    clock = SystemClock()
    next_s = 0.0

    def now_and_then(told: Told) -> None:
        nonlocal next_s
        if clock.monotonic() >= next_s:
            next_s = clock.monotonic() + TOLD_EVERY_S
            tell(told)

    def progress(virtual_s: float, turns: int) -> None:
        now_and_then(Lived(virtual_s, turns))

    trace = job.trace.open("w", encoding="utf-8", newline="\n") if job.trace is not None else None
    try:
        outcome = simulate(
            job.workload,
            job.seed,
            trace=trace,
            progress=progress,
            database=job.database,
            check=job.check,
            acts=job.acts,
        )
    finally:
        if trace is not None:
            trace.close()
    if outcome.violation is None or not job.shrunk or job.acts is not None:
        return outcome
    tell(Violated(outcome))
    smaller = shrink(
        job.workload,
        job.seed,
        outcome.violation,
        progress=lambda runs, acts: now_and_then(Shrunk(runs, acts)),
    )
    return evolve(outcome, violation=smaller)
