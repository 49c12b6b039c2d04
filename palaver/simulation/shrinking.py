"""Make what shows a violation small: leave out acts for as long as the guarantee is violated without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from attrs import evolve

from palaver.simulation.outcome import Violation
from palaver.simulation.simulating import simulate
from palaver.simulation.workload import Workload

T = TypeVar("T")

RUNS = 200

Shrinking = Callable[[int, int], object]
"""Called after each run, with the number of runs so far and of acts that are left."""


def shrink(
    workload: Workload,
    seed: int,
    violation: Violation,
    *,
    runs: int = RUNS,
    progress: Shrinking | None = None,
) -> Violation:
    """The violation of a run that lives fewer acts, each at the instant at which it began in the first one.

    Whole senders are left out first, then single acts and faults, by delta debugging (ddmin: Zeller and
    Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE Transactions on Software Engineering
    28(2), 2002). What is left is 1-minimal where the runs suffice: without any one of its acts, the guarantee
    is not seen to be violated.

    Args:
        violation: of `simulate(workload, seed)`.
        runs: simulations to live at most.

    Returns:
        The smallest found, its `acts` with the virtual seconds at which they began; the given one if it
        does not show again.
    """
    search = _Search(workload, seed, violation, runs, progress)
    numbers = [act.number for act in violation.acts]
    if not search.shows(numbers):
        return violation
    groups: dict[str, list[int]] = {}
    for act in violation.acts:
        groups.setdefault(act.who, []).append(act.number)
    kept = ddmin([*groups], lambda names: search.shows([n for name in names for n in groups[name]]))
    ddmin([number for name in kept for number in groups[name]], search.shows)
    return search.smallest


class _Search:
    def __init__(
        self, workload: Workload, seed: int, violation: Violation, runs: int, progress: Shrinking | None
    ) -> None:
        self.smallest = violation
        self._workload = workload
        self._seed = seed
        self._at_s: Mapping[int, float] = {act.number: act.at_s for act in violation.acts}
        self._left = self._runs = runs
        self._progress = progress

    def shows(self, numbers: Sequence[int]) -> bool:
        """Whether these acts alone violate the same guarantee; no, when no run is left."""
        if not self._left:
            return False
        self._left -= 1
        acts = {number: self._at_s[number] for number in numbers}
        found = simulate(self._workload, self._seed, acts=acts).violation
        same = found is not None and found.guarantee == self.smallest.guarantee
        if same and found is not None and len(numbers) <= len(self.smallest.acts):
            self.smallest = evolve(found, again=self.smallest.again)
        if self._progress is not None:
            self._progress(self._runs - self._left, len(self.smallest.acts))
        return same


def ddmin(whole: Sequence[T], shows: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """A part of `whole`, in its order, that still `shows`, and does not without any one of its items.

    Args:
        whole: shows.
        shows: asked about parts of it.
    """
    kept, parts = [*whole], 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        starts = range(0, len(kept), size)
        part = next((p for start in starts if shows(p := kept[start : start + size])), None)
        if part is not None:
            kept, parts = part, 2
            continue
        rests = ((*kept[:start], *kept[start + size :]) for start in starts) if parts > 2 else ()
        rest = next((r for r in rests if shows(r)), None)
        if rest is not None:
            kept, parts = [*rest], max(parts - 1, 2)
        elif parts < len(kept):
            parts = min(len(kept), parts * 2)
        else:
            break
    return kept
