"""Live a workload on a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from palaver.simulation.outcome import Outcome
from palaver.simulation.workload import Workload

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
    raise NotImplementedError
