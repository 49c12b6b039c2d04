"""When a dead actor is started again, and who with it: pure values and functions, no actor.

The terms and rules are those of Erlang/OTP's supervisor: strategies, restart types, restart intensity and
period (https://www.erlang.org/doc/system/sup_princ.html); the delay between restarts is an exponential
back-off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from attrs import Attribute, field, frozen

from actors.errors import InvalidConfig

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one-for-one", "one-for-all", "rest-for-one"]
Ending = Literal["stop", "error"]  # how an actor ended: by a normal stop, or of an error
WhenSpent = Literal["park", "escalate"]

RESTARTS: tuple[Restart, ...] = get_args(Restart)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
WHEN_SPENT: tuple[WhenSpent, ...] = get_args(WhenSpent)


def one_of(*words: str) -> Any:
    """An attrs validator: the value is one of these words."""

    def check(_self: Any, attribute: Attribute[Any], value: object) -> None:
        if value not in words:
            raise InvalidConfig(f"{attribute.name} must be one of {', '.join(words)}, not {value!r}")

    return check


def number_from(least: float, *, above: bool = False) -> Any:
    """An attrs validator: a finite number from `least` on, or `above` it."""

    def check(_self: Any, attribute: Attribute[Any], value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < least or (above and value == least):  # type: ignore[operator]  # it is a number
            words = "above" if above else "from"
            raise InvalidConfig(f"{attribute.name} must be a number {words} {least:g}, not {value!r}")

    return check


def _whole(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidConfig(f"{attribute.name} must be a whole number from 0 on, not {value!r}")


@frozen
class Budget:
    """How often an actor may be restarted, and after which delays.

    Args:
        restarts: at most so many restarts (the restart intensity) ...
        period_s: ... within so many seconds.
        first_delay_s: seconds before the first of them.
        factor: each further delay is so many times as long,
        delay_cap_s: and never longer than so many seconds.

    Raises:
        InvalidConfig: naming the field.
    """

    restarts: int = field(default=3, validator=_whole)
    period_s: float = field(default=5.0, validator=number_from(0, above=True))
    first_delay_s: float = field(default=0.05, validator=number_from(0))
    factor: float = field(default=2.0, validator=number_from(1))
    delay_cap_s: float = field(default=1.0, validator=number_from(0))


def recent(times: Sequence[float], now: float, budget: Budget) -> list[float]:
    """Those of the times that still count against the budget."""
    return [time for time in times if now - time < budget.period_s]


def restart_delay(times: Sequence[float], now: float, budget: Budget) -> float | None:
    """Seconds to wait before the next restart, or None when the budget is spent.

    Args:
        times: when the earlier restarts were decided, in seconds, oldest first.
        now: the time of the death, on the same clock.
    """
    spent = len(recent(times, now, budget))
    if spent >= budget.restarts:
        return None
    return _delay(spent, budget)


def _delay(spent: int, budget: Budget) -> float:
    try:
        return min(budget.delay_cap_s, budget.first_delay_s * budget.factor**spent)
    except OverflowError:  # a large budget, nearly spent
        return budget.delay_cap_s if budget.first_delay_s else 0.0


def is_restarted(restart: Restart, ending: Ending) -> bool:
    """Whether a child of this restart type is started again after such an end."""
    if restart == "permanent":
        return True
    return restart == "transient" and ending == "error"


@frozen
class Plan:
    """What follows from a child's end: `stop` these, in this order (the last started first), `start` these,
    in this order, and `forget` these. The child that ended is in none but the last two."""

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()


def plan(strategy: Strategy, children: Mapping[str, Restart], ended: str, ending: Ending) -> Plan:
    """What a supervisor does about a child that has ended by itself.

    Args:
        children: the restart types of all children, in the order of their start; `ended` among them.
    """
    kind = children[ended]
    if not is_restarted(kind, ending):
        return Plan(forget=(ended,) if kind == "temporary" else ())
    group = affected(strategy, [*children], ended)
    return Plan(
        stop=tuple(name for name in reversed(group) if name != ended),
        start=tuple(name for name in group if children[name] != "temporary"),
        forget=tuple(name for name in group if children[name] == "temporary"),
    )


def affected(strategy: Strategy, names: Sequence[str], ended: str) -> tuple[str, ...]:
    """Who is started anew when `ended` is, in the order of their start."""
    if strategy == "one-for-one":
        return (ended,)
    if strategy == "one-for-all":
        return tuple(names)
    return tuple(names[names.index(ended) :])
