"""Live a workload on a seed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from palaver.simulation.distributions import Fixed
from palaver.simulation.errors import SimulationError
from palaver.simulation.life import Life
from palaver.simulation.loop import run_on
from palaver.simulation.outcome import Outcome, Violation
from palaver.simulation.run import Run
from palaver.simulation.workload import Workload
from persistence.sources import SystemClock

Progress = Callable[[float, int], object]
"""Called now and then, with the virtual seconds lived and the turns done."""


def simulate(
    workload: Workload,
    seed: int = 0,
    *,
    trace: TextIO | None = None,
    progress: Progress | None = None,
    database: Path | None = None,
    check: bool = True,
    acts: Mapping[int, float] | Sequence[int] | None = None,
) -> Outcome:
    """Run the whole runtime on virtual time, under a workload, and tell what came of it.

    Args:
        workload: what to live.
        seed: everything is drawn from it; the same seed gives the same run.
        trace: the run is written here, a line of JSON for each thing that happened, the same bytes for the
            same seed and the same `check`, in every process and on every machine.
        progress: called now and then.
        database: a file that is kept afterwards; it must not exist.
        check: whether the guarantees are checked on the way and at the end. Without, it is about twice as
            fast, and a database in memory that meets no fault makes its commits later, many at once.
        acts: numbers of the plan's acts to live, and perhaps the virtual seconds at which each is to begin;
            None is all. Shrinking takes away what is not needed.

    Raises:
        SimulationError: the file exists.
        BadConfigFile: recorded traffic cannot be read; with the line.

    Returns:
        Its figures. A guarantee that did not hold is in `violation`, not raised.
    """
    if database is not None and database.exists():
        raise SimulationError(f"{str(database)!r} exists; a simulation makes its own database")
    with ExitStack() as stack:
        path = database
        if path is None and _needs_file(workload):
            folder = stack.enter_context(TemporaryDirectory(prefix="palaver-simulation-"))
            path = Path(folder) / "simulated.db"
        stack.enter_context(quietly())
        return _lived_through(partial(Run, workload, seed, path, trace, acts, check=check), progress)


def _lived_through(make: Callable[[], Run], progress: Progress | None) -> Outcome:
    """The outcome of a run that nothing keeps afterwards: it is what `quietly` collects."""
    clock = SystemClock()
    began_s = clock.monotonic()
    run = make()
    violation = _lived(run, progress)
    return run.figures.outcome(run.seed, clock.monotonic() - began_s, violation)


def _lived(run: Run, progress: Progress | None) -> Violation | None:
    """Live through crashes and restarts to the end, or to the first thing that must not be."""
    another = True
    while another:
        life = Life(run, progress)
        try:
            another = run_on(life.loop, life.live)
        except Exception as error:
            life.abandon()
            if not run.check:
                raise
            return run.violation(error)
        run.elapsed, run.loop = run.elapsed_next if another else run.now, None
    return None


def _needs_file(workload: Workload) -> bool:
    faults = workload.faults
    return workload.disk.file or bool(faults.crashes_at_s) or faults.crashes_per_hour != Fixed(0.0)


@contextmanager
def quietly() -> Iterator[None]:
    """No log output, and no garbage collection at moments that depend on how much memory is in use. Within
    another one it does nothing: that one ends it."""
    before, collects = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.CRITICAL)
    if collects:
        gc.freeze()
        gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.collect()  # what the run has left; what was there before is frozen, and not looked at
            gc.unfreeze()
            gc.enable()
        logging.disable(before)
