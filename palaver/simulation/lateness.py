"""Commits of a simulated run that nobody checks: many of them are made at once, after their virtual time."""

from __future__ import annotations

from collections.abc import Sequence

from palaver.simulation.errors import SimulationError
from persistence.committer import Committer, Item
from persistence.writes import WriteSet

TOGETHER = 128  # always so many: a statement for as many rows as before is compiled already


class LateCommitter(Committer):
    """Counts a batch of writes as committed, and makes it together with later ones: when there are many, or
    when somebody reads. What the database holds is the same then, row by row, for a fraction of the work.

    It is for databases in memory, without faults: there nobody can see the difference, unless a write fails.
    That is a bug of the product, and ends the run.

    Attributes:
        wrong: what failed, for whoever lives the run.
    """

    wrong: SimulationError | None = None

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._late: list[Item] = []

    def run(self, batch: Sequence[Item]) -> None:
        """As `Committer.run`."""
        for item in batch:
            if not isinstance(item.work, WriteSet):
                self._catch_up()
                super().run(batch)
                return
        if batch:
            self.commits += 1
            self.jobs += len(batch)
            self.largest_batch = max(self.largest_batch, len(batch))
            self._late += [Item(item.work) for item in batch]  # theirs ends with their answers
            while len(self._late) >= TOGETHER:
                self._catch_up(TOGETHER)

    def close(self) -> None:
        """As `Committer.close`."""
        self._catch_up()
        super().close()

    def _catch_up(self, most: int | None = None) -> None:
        items, self._late = self._late[:most], [] if most is None else self._late[most:]
        if not items:
            return
        counted = self.commits, self.jobs, self.largest_batch
        super().run(items)
        self.commits, self.jobs, self.largest_batch = counted
        error = next((item.error for item in items if item.error is not None), None)
        if error is not None and self.wrong is None:
            self.wrong = SimulationError(
                f"a write failed after it had been answered: {error}; use check=True"
            )
            self.give_up(error)
