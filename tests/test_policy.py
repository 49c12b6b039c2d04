"""The rules of supervision, by table: restart type x way of dying x strategy, budgets and delays."""

from __future__ import annotations

from typing import Any

import pytest

from actors.policy import (
    RESTARTS,
    STRATEGIES,
    Budget,
    Ending,
    Plan,
    Restart,
    Strategy,
    is_restarted,
    plan,
    recent,
    restart_delay,
)
from palaver import InvalidConfig

# -- who is started again --------------------------------------------------------------------------

RESTARTED: dict[tuple[Restart, Ending], bool] = {
    ("permanent", "stop"): True,
    ("permanent", "error"): True,
    ("transient", "stop"): False,
    ("transient", "error"): True,
    ("temporary", "stop"): False,
    ("temporary", "error"): False,
}


@pytest.mark.parametrize(("restart", "ending"), RESTARTED)
def test_restart_type_and_way_of_dying_decide_on_a_restart(restart: Restart, ending: Ending) -> None:
    assert is_restarted(restart, ending) is RESTARTED[restart, ending]


# Of the children a, b, c, d the second is the one that ends; its restart type is in the table, the others are
# permanent, but for d, which is temporary.
PLANS: dict[tuple[Strategy, Restart, Ending], Plan] = {
    ("one-for-one", "permanent", "stop"): Plan(start=("b",)),
    ("one-for-one", "permanent", "error"): Plan(start=("b",)),
    ("one-for-one", "transient", "stop"): Plan(),
    ("one-for-one", "transient", "error"): Plan(start=("b",)),
    ("one-for-one", "temporary", "stop"): Plan(forget=("b",)),
    ("one-for-one", "temporary", "error"): Plan(forget=("b",)),
    ("one-for-all", "permanent", "stop"): Plan(("d", "c", "a"), ("a", "b", "c"), ("d",)),
    ("one-for-all", "permanent", "error"): Plan(("d", "c", "a"), ("a", "b", "c"), ("d",)),
    ("one-for-all", "transient", "stop"): Plan(),
    ("one-for-all", "transient", "error"): Plan(("d", "c", "a"), ("a", "b", "c"), ("d",)),
    ("one-for-all", "temporary", "stop"): Plan(forget=("b",)),
    ("one-for-all", "temporary", "error"): Plan(forget=("b",)),
    ("rest-for-one", "permanent", "stop"): Plan(("d", "c"), ("b", "c"), ("d",)),
    ("rest-for-one", "permanent", "error"): Plan(("d", "c"), ("b", "c"), ("d",)),
    ("rest-for-one", "transient", "stop"): Plan(),
    ("rest-for-one", "transient", "error"): Plan(("d", "c"), ("b", "c"), ("d",)),
    ("rest-for-one", "temporary", "stop"): Plan(forget=("b",)),
    ("rest-for-one", "temporary", "error"): Plan(forget=("b",)),
}


def test_the_table_is_whole() -> None:
    assert len(PLANS) == len(STRATEGIES) * len(RESTARTS) * 2


@pytest.mark.parametrize(("strategy", "restart", "ending"), PLANS)
def test_the_strategy_decides_who_else_is_stopped_and_started(
    strategy: Strategy, restart: Restart, ending: Ending
) -> None:
    children: dict[str, Restart] = {"a": "permanent", "b": restart, "c": "permanent", "d": "temporary"}
    assert plan(strategy, children, "b", ending) == PLANS[strategy, restart, ending]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_only_child_is_restarted_alone(strategy: Strategy) -> None:
    assert plan(strategy, {"a": "permanent"}, "a", "error") == Plan(start=("a",))


# -- how often, and when ---------------------------------------------------------------------------

BUDGET = Budget(restarts=3, period_s=5.0, first_delay_s=0.05, factor=2.0, delay_cap_s=1.0)

# times of earlier restarts, now, delay
DELAYS: list[tuple[list[float], float, float | None]] = [
    ([], 0.0, 0.05),
    ([0.0], 0.1, 0.1),
    ([0.0, 0.1], 0.4, 0.2),
    ([0.0, 0.1, 0.4], 0.9, None),
    ([0.0, 0.1, 0.4], 4.999, None),
    ([0.0, 0.1, 0.4], 5.0, 0.2),  # the first does not count any more
    ([0.0, 0.1, 0.4], 5.2, 0.1),
    ([0.0, 0.1, 0.4], 100.0, 0.05),
    ([99.0, 99.0, 99.0], 100.0, None),
]


@pytest.mark.parametrize(("times", "now", "delay"), DELAYS)
def test_delays_double_until_the_budget_is_spent(times: list[float], now: float, delay: float | None) -> None:
    assert restart_delay(times, now, BUDGET) == delay


def test_no_delay_is_longer_than_the_cap() -> None:
    budget = Budget(restarts=100_000, period_s=1e9, first_delay_s=0.5, factor=3.0, delay_cap_s=4.0)
    delays = [restart_delay([0.0] * spent, 1.0, budget) for spent in (0, 1, 2, 3, 10, 99_999)]
    assert delays == [0.5, 1.5, 4.0, 4.0, 4.0, 4.0]
    assert restart_delay([0.0] * 100_000, 1.0, budget) is None


def test_a_budget_without_restarts_is_spent_from_the_start() -> None:
    assert restart_delay([], 0.0, Budget(restarts=0)) is None


def test_without_a_first_delay_there_is_none_at_all() -> None:
    budget = Budget(restarts=100_000, period_s=1e9, first_delay_s=0.0)
    assert restart_delay([0.0] * 5_000, 1.0, budget) == 0.0


def test_only_recent_restarts_are_kept() -> None:
    assert recent([0.0, 1.0, 2.0, 7.0], 7.0, BUDGET) == [7.0]
    assert recent([2.0, 2.1, 7.0], 7.0, BUDGET) == [2.1, 7.0]


WRONG: list[dict[str, Any]] = [
    {"restarts": -1},
    {"restarts": True},
    {"restarts": 1.5},
    {"period_s": 0},
    {"period_s": "5"},
    {"first_delay_s": -0.1},
    {"first_delay_s": float("nan")},
    {"factor": 0.5},
    {"delay_cap_s": float("inf")},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_budget_that_makes_no_sense_names_the_field(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidConfig, match=name):
        Budget(**wrong)
