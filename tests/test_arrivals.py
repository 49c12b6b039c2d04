"""When messages come: the rates that are asked for, the same each time, and recorded traffic to the line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

import pytest

from palaver.simulation import Arrivals, Senders, Workload, simulate
from palaver.simulation.arrivals import Arrival, arriving, rate_at
from palaver.toml.reading import BadConfigFile
from persistence.sources import seeded_random


def arrivals_until(end_s: float, arrivals: Arrivals, senders: int = 10, seed: int = 1) -> Iterator[Arrival]:
    workload = Workload(duration_s=end_s, senders=Senders(count=senders), arrivals=arrivals)
    return takewhile(lambda each: each.at_s < end_s, arriving(workload, seeded_random("test", seed)))


def counted(arrivals: Arrivals, end_s: float, bin_s: float) -> list[int]:
    counts = [0] * round(end_s / bin_s)
    for each in arrivals_until(end_s, arrivals):
        counts[int(each.at_s / bin_s)] += 1
    return counts


def expected(arrivals: Arrivals, bin_s: float, number: int) -> float:
    return sum(rate_at(arrivals, (number + (part + 0.5) / 100) * bin_s) for part in range(100)) * bin_s / 100


POISSON = Arrivals(kind="poisson", rate=5)
BURSTS = Arrivals(kind="bursts", rate=2, burst_rate=20, burst_s=30, period_s=120)
SILENT = Arrivals(kind="bursts", rate=0, burst_rate=20, burst_s=30, period_s=120)
DIURNAL = Arrivals(kind="diurnal", rate=1, burst_rate=9, period_s=600)


@pytest.mark.parametrize("arrivals", [POISSON, BURSTS, SILENT, DIURNAL], ids=["p", "b", "silent", "d"])
def test_each_stretch_of_time_has_as_many_as_its_rate_says_and_poissons_spread(arrivals: Arrivals) -> None:
    counts = counted(arrivals, 6_000, 30)
    means = [expected(arrivals, 30, number) for number in range(len(counts))]
    assert sum(counts) == pytest.approx(sum(means), rel=0.03)
    # Of a Poisson count, the variance is the mean: each squared distance, in means, is 1 on average.
    spread = mean((n - m) ** 2 / m for n, m in zip(counts, means, strict=True) if m)
    assert 0.75 < spread < 1.25
    assert [n for n, m in zip(counts, means, strict=True) if not m and n] == []


def test_gaps_between_poisson_arrivals_are_exponential() -> None:
    times = [each.at_s for each in arrivals_until(4_000, POISSON)]
    gaps = [after - before for before, after in pairwise(times)]
    assert mean(gaps) == pytest.approx(1 / 5, rel=0.03)
    assert pvariance(gaps) == pytest.approx(1 / 25, rel=0.06)
    below = sum(gap < 0.1 for gap in gaps) / len(gaps)
    assert below == pytest.approx(1 - 2.718281828**-0.5, rel=0.03)


def test_the_wave_begins_at_its_foot_and_a_burst_at_once() -> None:
    assert [round(rate_at(DIURNAL, at_s), 6) for at_s in (0, 150, 300, 600)] == [1, 5, 9, 1]
    assert [rate_at(BURSTS, at_s) for at_s in (0, 29.9, 30, 119, 120)] == [20, 20, 2, 2, 20]


@pytest.mark.parametrize("arrivals", [POISSON, BURSTS, DIURNAL])
def test_times_go_up_senders_are_equally_likely_and_a_seed_gives_them_again(arrivals: Arrivals) -> None:
    found = [*arrivals_until(2_000, arrivals)]
    assert found == [*arrivals_until(2_000, arrivals)]
    assert found[:5] != [*islice(arrivals_until(2_000, arrivals, seed=2), 5)]
    assert [each.at_s for each in found] == sorted(each.at_s for each in found)
    by_sender = [sum(each.sender == number for each in found) for number in range(1, 11)]
    assert sum(by_sender) == len(found)
    assert min(by_sender) > 0.85 * len(found) / 10


# -- recorded traffic --------------------------------------------------------------------------------


def recorded(folder: Path, *lines: object, senders: int = 2) -> Workload:
    path = folder / "traffic.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return Workload(senders=Senders(count=senders), arrivals=Arrivals(kind="recorded", file=str(path)))


LINES: list[dict[str, Any]] = [
    {"at": 0, "sender": "alice", "chars": 12},
    {"at": 1.5, "sender": "bob", "content": "how are you?!"},
    {"at": 1.5, "sender": "alice"},
]


def test_recorded_traffic_comes_when_it_came(tmp_path: Path) -> None:
    workload = recorded(tmp_path, *LINES[:2], "", LINES[2])
    found = [*arriving(workload, seeded_random())]
    assert found == [Arrival(0.0, 1, 12), Arrival(1.5, 2, 13), Arrival(1.5, 1)]
    outcome = simulate(workload, 1)
    assert outcome.violation is None
    assert outcome.turns["done"] == 3
    assert outcome.virtual_s == pytest.approx(1.5, abs=0.01)


def test_messages_that_come_while_others_are_being_accepted_have_no_order_to_break(tmp_path: Path) -> None:
    """The first of each three wakes a topic that has left memory, and a later one may overtake it."""
    lines = [{"at": at, "sender": "alice"} for at in (0, 20, 20.1, 20.2, 40, 40.1, 40.2)]
    changes = {"limits.passivate_after_s": 2, "disk.commit_s": {"uniform": [0.01, 0.5]}}
    workload = recorded(tmp_path, *lines).with_values(changes)
    outcomes = [simulate(workload, seed) for seed in range(4)]
    assert [outcome.violation for outcome in outcomes] == [None] * 4
    assert {outcome.turns["done"] for outcome in outcomes} == {7}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["soon"], r":1: must be a line of JSON such as .*, not \"soon\""),
        ([[1, 2]], r":1: must be a line of JSON"),
        ([LINES[0], {"at": "1", "sender": "a"}], r":2: at: must be a number of seconds from 0 on, not \"1\""),
        ([{"at": -1, "sender": "a"}], r":1: at: must be a number of seconds"),
        ([{"at": 1, "sender": 7}], r":1: sender: must be text, not 7"),
        ([{"at": 1, "sender": "a", "chars": 1.5}], r":1: chars: must be a whole number from 0 on, not 1.5"),
        ([{"at": 1, "sender": "a", "content": None}], r":1: content: must be text, not null"),
        ([*LINES, "", {"at": 1, "sender": "a"}], r":5: at: must not be before the line above, 1.5"),
        ([*LINES, {"at": 2, "sender": "c"}], r":4: sender: is one more than the workload's senders.count, 2"),
    ],
)
def test_what_is_wrong_with_recorded_traffic_is_told_before_it_comes(
    lines: list[object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadConfigFile, match=words):
        arriving(recorded(tmp_path, *lines), seeded_random())


def test_recorded_traffic_that_is_not_there_is_told(tmp_path: Path) -> None:
    workload = Workload(arrivals=Arrivals(kind="recorded", file=str(tmp_path / "gone.jsonl")))
    with pytest.raises(BadConfigFile, match=r"gone\.jsonl:1: cannot be read: No such file"):
        simulate(workload, 1)


def test_an_hour_of_ten_thousand_senders_is_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text("".join(f'{{"at": {n / 10}, "sender": "s{n % 100}"}}\n' for n in range(10_000)))
    hour = Arrivals(kind="diurnal", rate=1, burst_rate=9, period_s=3_600)
    tracemalloc.start()
    try:
        assert sum(1 for _ in arrivals_until(3_600, hour, senders=10_000)) > 15_000
        recorded = Workload(arrivals=Arrivals(kind="recorded", file=str(path)))
        assert sum(1 for _ in arriving(recorded, seeded_random())) == 10_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 200_000  # bytes; kept, the messages would take 2 MB and more
