"""Live a workload on a seed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from palaver.simulation.errors import SimulationError
from palaver.simulation.life import Life
from palaver.simulation.loop import run_on
from palaver.simulation.outcome import Outcome
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
    acts: Sequence[int] | None = None,
) -> Outcome:
    """Run the whole runtime on virtual time, under a workload, and tell what came of it.

    Args:
        workload: what to live.
        seed: everything is drawn from it; the same seed gives the same run.
        trace: the run is written here, a line of JSON for each thing that happened, the same bytes for the
            same seed.
        progress: called now and then.
        database: a file that is kept afterwards; it must not exist.
        check: whether the guarantees are checked on the way and at the end.
        acts: numbers of the plan's acts to live; None is all. Shrinking takes away what is not needed.

    Returns:
        Its figures. A guarantee that did not hold is in `violation`, not raised.
    """
    if database is not None and database.exists():
        raise SimulationError(f"{str(database)!r} exists; a simulation makes its own database")
    clock = SystemClock()
    began_s = clock.monotonic()
    run = Run(workload, seed, database, trace, acts, check=check)
    with quietly():
        another = True
        while another:
            life = Life(run, progress)
            another = run_on(life.loop, life.live)
            run.elapsed, run.loop = run.now, None
    return run.figures.outcome(seed, clock.monotonic() - began_s, None)


@contextmanager
def quietly() -> Iterator[None]:
    """No log output, and no garbage collection at moments that depend on how much memory is in use."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        logging.disable(before)
