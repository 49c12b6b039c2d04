"""Whole worlds on virtual time, each from one seed: nothing that was acknowledged is ever lost.

A seed is a small world: some callers who do everything that the API offers, a slow and faulty model, a disk
that fills up, crashes and restarts of the process in between. All that callers are told is kept in a ledger,
which the file is compared with when the faults have stopped and everything has come to rest.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path

from palaver.simulation.simulating import quietly
from persistence.database import close_database, open_database
from reliability.check import Check
from reliability.world import World

SPAN = 1_000_000  # worlds of one seed; a seed from here on is the number of a world
COLLECTED_AFTER = 20  # worlds


def run(count: int, seed: int, folder: Path) -> int:
    """Live `count` worlds: those of this seed or, from `SPAN` on, those from this number on."""
    first = seed if seed >= SPAN else seed * SPAN
    return sum(1 for _ in live(range(first, first + count), folder))


def live(numbers: Iterable[int], folder: Path) -> Iterator[World]:
    """Each number's world, lived to its end. Its file is in `folder`."""
    template = _fresh(folder)
    with quietly():
        for count, number in enumerate(numbers, start=1):
            world = World(number, folder / "world.db", template)
            world.run()
            yield world
            if count % COLLECTED_AFTER == 0:
                gc.collect()


def _fresh(folder: Path) -> bytes:
    """A database with all its tables and nothing in them."""
    path = folder / "fresh.db"
    close_database(open_database(path))
    return path.read_bytes()


CHECKS = (
    Check(
        name="seeds",
        guarantees=(2, 6, 7, 11, 19),
        unit="seeds",
        quick=300,
        long=20_000,
        run=run,
    ),
)
