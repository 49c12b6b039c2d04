"""The parts of the benchmark, in the order in which they are run."""

from __future__ import annotations

from attrs import frozen


@frozen
class Entry:
    """A part, and about how many seconds it takes on two cores that have nothing else to do."""

    name: str
    full_s: int
    quick_s: int

    @property
    def module(self) -> str:
        """What measures it, by its function `run`."""
        return f"benchmarks.{_ELSEWHERE.get(self.name, self.name)}"


_ELSEWHERE = {"peers": "peers.part"}

PARTS = (
    Entry("actors", 100, 15),
    Entry("turns", 100, 15),
    Entry("breakdown", 20, 4),
    Entry("journal", 60, 8),
    Entry("dialogues", 40, 4),
    Entry("peers", 300, 20),
    Entry("history", 60, 8),
    Entry("live", 120, 8),
    Entry("stored", 90, 8),
    Entry("simulated", 70, 4),
    Entry("shards", 40, 6),
    Entry("queueing", 200, 2),
    Entry("fidelity", 75, 5),
    Entry("longrun", 110, 8),
    Entry("soak", 60, 5),
)
NAMES = tuple(entry.name for entry in PARTS)
