"""Distributions of seconds, sizes and chances, drawn from a generator that is handed in."""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from random import Random

_Z95 = 1.6448536269514722  # the 95th percentile of the standard normal distribution


class Distribution(Protocol):
    """Something to draw from."""

    def draw(self, rng: Random) -> float:
        """One value, not negative."""

    @property
    def mean(self) -> float:
        """Its expected value."""


@frozen
class Fixed:
    """Always `value`."""

    value: float

    def draw(self, rng: Random) -> float:
        return self.value

    @property
    def mean(self) -> float:
        return self.value


@frozen
class Uniform:
    """Evenly between `low` and `high`."""

    low: float
    high: float

    def draw(self, rng: Random) -> float:
        return rng.uniform(self.low, self.high)

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


@frozen
class Exponential:
    """Memoryless, with this mean."""

    mean: float

    def draw(self, rng: Random) -> float:
        return rng.expovariate(1 / self.mean) if self.mean else 0.0


@frozen
class LogNormal:
    """What latencies of services look like: its logarithm is normal. `p95` is the 95th percentile."""

    median: float
    p95: float

    def draw(self, rng: Random) -> float:
        return rng.lognormvariate(log(self.median), self._sigma)

    @property
    def mean(self) -> float:
        return self.median * exp(self._sigma**2 / 2)

    @property
    def _sigma(self) -> float:
        return log(self.p95 / self.median) / _Z95


@frozen
class Empirical:
    """Each of the values as likely as the others: what was measured, as it was."""

    values: tuple[float, ...]

    def draw(self, rng: Random) -> float:
        return rng.choice(self.values)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)
