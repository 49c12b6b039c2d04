"""What a check is, and where all of them are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

PARTS = 20


@frozen
class Check:
    """One way to show that guarantees hold.

    Args:
        name: unique; what `--only` takes.
        guarantees: their numbers.
        unit: what is counted.
        quick: how many in the test command.
        long: how many in the long run.
        run: `run(count, seed, folder)` does at least `count`, with files in the empty `folder`, and returns
            how many it did; an AssertionError is a violation and says how to see it again.
        chunk: the most that one process does in the long run; 0 is a twentieth of `long`.
    """

    name: str
    guarantees: tuple[int, ...]
    unit: str
    quick: int
    long: int
    run: Callable[[int, int, Path], int]
    chunk: int = 0

    @property
    def share(self) -> int:
        """How many one process does in the long run."""
        return self.chunk or max(1, self.long // PARTS)


def all_checks() -> list[Check]:
    """Every check of this package, by name."""
    package = importlib.import_module("reliability")
    found: list[Check] = []
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            found += getattr(importlib.import_module(f"reliability.{module.name}"), "CHECKS", ())
    names = [check.name for check in found]
    assert len(names) == len({*names}), f"two checks have one name: {names}"
    return sorted(found, key=lambda check: (check.guarantees, check.name))
