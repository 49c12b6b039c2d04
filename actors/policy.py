"""When a dead actor is started again: pure values and functions, no actor.

The terms and rules are those of Erlang/OTP's supervisor: restart intensity and period
(https://www.erlang.org/doc/system/sup_princ.html); the delay between restarts is an exponential back-off.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen


@frozen
class Budget:
    """How often an actor may be restarted: `restarts` times within `period_s` seconds, after delays that
    begin at `first_delay_s`, are `factor` times as long each time, and never longer than `delay_cap_s`."""

    restarts: int = 3
    period_s: float = 5.0
    first_delay_s: float = 0.05
    factor: float = 2.0
    delay_cap_s: float = 1.0


def restart_delay(times: Sequence[float], now: float, budget: Budget) -> float | None:
    """Seconds to wait before the next restart, or None when the budget is spent.

    Args:
        times: when the earlier restarts were decided, in seconds, oldest first.
        now: the time of the death, on the same clock.
    """
    recent = sum(1 for time in times if now - time < budget.period_s)
    if recent >= budget.restarts:
        return None
    return min(budget.delay_cap_s, budget.first_delay_s * budget.factor**recent)
