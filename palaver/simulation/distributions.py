"""Distributions of seconds, sizes and chances, drawn from a generator that is handed in."""

from __future__ import annotations

from math import exp, inf, isfinite, log
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

from attrs import Attribute, field, frozen

from actors.errors import InvalidConfig
from palaver.toml.fields import shown

if TYPE_CHECKING:
    from random import Random

_Z95 = 1.6448536269514722  # the 95th percentile of the standard normal distribution


@runtime_checkable
class Distribution(Protocol):
    """Something to draw from."""

    def draw(self, rng: Random) -> float:
        """One value, not negative."""

    @property
    def mean(self) -> float:
        """Its expected value."""

    @property
    def least(self) -> float:
        """No draw is below this."""

    @property
    def most(self) -> float:
        """No draw is above this; may be infinite."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def drawn(value: float | Distribution) -> Distribution:
    """A number as what is always that number; a distribution, or what is neither, as it is."""
    if is_number(value) and value >= 0:
        return Fixed(value)
    return value  # type: ignore[return-value]  # the field that it is for says what does not fit


def _from_zero(_self: Any, attribute: Attribute[Any], value: Any) -> None:
    if not (is_number(value) and value >= 0):
        raise InvalidConfig(f"{attribute.name} must be a number from 0 on, not {shown(value)}")


@frozen
class Fixed:
    """Always `value`."""

    value: float = field(validator=_from_zero)

    def draw(self, rng: Random) -> float:
        return self.value

    @property
    def mean(self) -> float:
        return self.value

    @property
    def least(self) -> float:
        return self.value

    @property
    def most(self) -> float:
        return self.value


@frozen
class Uniform:
    """Evenly between `low` and `high`."""

    low: float = field(validator=_from_zero)
    high: float = field(validator=_from_zero)

    @high.validator
    def _check_order(self, _attribute: Attribute[Any], high: float) -> None:
        if high < self.low:
            raise InvalidConfig(f"high must be at least low, {self.low}, not {high}")

    def draw(self, rng: Random) -> float:
        return rng.uniform(self.low, self.high)

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def least(self) -> float:
        return self.low

    @property
    def most(self) -> float:
        return self.high


@frozen
class Exponential:
    """Memoryless, with this mean."""

    mean: float = field(validator=_from_zero)

    def draw(self, rng: Random) -> float:
        return rng.expovariate(1 / self.mean) if self.mean else 0.0

    @property
    def least(self) -> float:
        return 0.0

    @property
    def most(self) -> float:
        return inf if self.mean else 0.0


@frozen
class LogNormal:
    """What latencies of services look like: its logarithm is normal. `p95` is the 95th percentile."""

    median: float = field()
    p95: float = field()
    _mu: float = field(init=False, repr=False, eq=False)
    _sigma: float = field(init=False, repr=False, eq=False)

    @median.validator
    def _check_median(self, _attribute: Attribute[Any], median: float) -> None:
        if not (is_number(median) and median > 0):
            raise InvalidConfig(f"median must be a number above 0, not {shown(median)}")

    @p95.validator
    def _check_p95(self, _attribute: Attribute[Any], p95: float) -> None:
        if not (is_number(p95) and p95 >= self.median):
            raise InvalidConfig(
                f"p95 must be a number that is at least the median, {self.median}, not {shown(p95)}"
            )

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_mu", log(self.median))
        object.__setattr__(self, "_sigma", log(self.p95 / self.median) / _Z95)

    def draw(self, rng: Random) -> float:
        return rng.lognormvariate(self._mu, self._sigma)

    @property
    def mean(self) -> float:
        return self.median * exp(self._sigma**2 / 2)

    @property
    def least(self) -> float:
        return 0.0 if self._sigma else self.median

    @property
    def most(self) -> float:
        return inf if self._sigma else self.median


def _values(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,)


@frozen
class Empirical:
    """Each of the values as likely as the others: what was measured, as it was."""

    values: tuple[float, ...] = field(converter=_values)

    @values.validator
    def _check_values(self, _attribute: Attribute[Any], values: tuple[Any, ...]) -> None:
        if not values:
            raise InvalidConfig("values must be at least one number, not none")
        for value in values:
            if not (is_number(value) and value >= 0):
                raise InvalidConfig(f"values must be numbers from 0 on, not {shown(value)}")

    def draw(self, rng: Random) -> float:
        return rng.choice(self.values)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)
