"""One run: what all its lives share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palaver.simulation.figures import Figures
from palaver.simulation.loop import VirtualLoop
from palaver.simulation.plan import Plan
from palaver.simulation.sender import Sender
from palaver.simulation.tracing import Notes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

    from palaver.simulation.outcome import Act
    from palaver.simulation.workload import Workload


class Run:
    """A workload and a seed, while they are lived.

    Attributes:
        elapsed: virtual seconds of the lives before this one.
        healing: the faults have stopped.
        frozen: the process is dead; what its greenlets do while they are dropped means nothing.
        telling: whether anybody reads notes: those that cost something are made only then.
    """

    def __init__(
        self,
        workload: Workload,
        seed: int,
        path: Path | None,
        trace: TextIO | None,
        acts: Sequence[int] | None,
        *,
        check: bool,
    ) -> None:
        self.workload = workload
        self.seed = seed
        self.path = path
        self.check = check
        self.plan = Plan(workload, seed)
        self.elapsed = 0.0
        self.life = 0
        self.healing = False
        self.frozen = False
        self.loop: VirtualLoop | None = None
        self.figures = Figures(workload, lambda: self.now)
        self._notes = Notes(lambda: self.now, trace, keep=check)
        self.telling = self._notes.wanted
        self._acts = None if acts is None else dict.fromkeys(acts)
        self.faults = iter(self.plan.faults())
        self.next_fault: Act | None = None
        open_ = workload.arrivals.kind != "closed"
        nothing: Iterator[Act] = iter(())
        self.arrivals = self.plan.arrivals() if open_ else None
        self.senders = [
            Sender(self, index, nothing if open_ else self.plan.steps(index))
            for index in range(1, workload.senders.count + 1)
        ]

    @property
    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self.elapsed + (self.loop.now() if self.loop is not None else 0.0)

    @property
    def over(self) -> bool:
        """Whether no sender begins anything any more."""
        duration_s = self.workload.duration_s
        return bool(duration_s) and self.now >= duration_s

    @property
    def last(self) -> Sequence[str]:
        """The last lines of the trace."""
        return self._notes.last

    def lives(self, act: Act) -> bool:
        """Whether an act of the plan is to be lived."""
        return self._acts is None or act.number in self._acts

    def note(self, who: str, what: str, **facts: object) -> None:
        """Something happened."""
        if not self.frozen:
            self._notes.note(who, what, facts)
