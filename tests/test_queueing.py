"""Queueing theory as an oracle of the simulation: each wait by recursion, the mean by Erlang's formula."""

from __future__ import annotations

import io
import json
import random
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.queueing import erlang_c, little, mean, mean_wait_s, queue, waits
from palaver import Limits
from palaver.simulation import Arrivals, Disk, Exponential, Provider, Senders, Workload, simulate


def poisson(rng: random.Random, rate: float) -> Any:
    """Instants of a Poisson process."""
    at = 0.0
    for _ in count():
        at += rng.expovariate(rate)
        yield at


def test_erlangs_formula_gives_what_its_tables_hold() -> None:
    loads = ((1, 0.5), (2, 1.0), (4, 2.0), (5, 2.5), (10, 8.0))
    found = [round(erlang_c(places, load), 4) for places, load in loads]
    assert found == [0.5, 0.3333, 0.1739, 0.1304, 0.4092]


@pytest.mark.parametrize(("places", "chance"), [(1, 0.5), (2, 1 / 3)])
def test_the_recursion_comes_to_erlangs_formula_in_the_long_run(places: int, chance: float) -> None:
    rate = places / 2
    assert erlang_c(places, rate) == pytest.approx(chance, rel=1e-3)
    rng = random.Random(places)
    customers = ((at, rng.expovariate(1.0)) for at in islice(poisson(rng, rate), 150_000))
    assert mean(waits(places, customers)) == pytest.approx(chance / rate, rel=0.05)


@pytest.mark.parametrize("bound", ["limits.model_calls", "provider.concurrency"])
def test_every_turn_waits_as_long_as_the_recursion_says(tmp_path: Path, bound: str) -> None:
    places, turns = 3, 500
    file = tmp_path / "arrivals.jsonl"
    instants = islice(poisson(random.Random(bound), 0.8 * places), turns)
    lines = [json.dumps({"at": at, "sender": f"s{number}"}) for number, at in enumerate(instants)]
    file.write_text("\n".join(lines))
    workload = Workload(
        shuffle=False,
        senders=Senders(count=turns, topics=0),
        arrivals=Arrivals(kind="recorded", file=str(file)),
        provider=Provider(first_token_s=Exponential(1.0)),
        limits=Limits(model_calls=turns),
        disk=Disk(commit_s=0.0),
    ).with_value(bound, places)
    trace = io.StringIO()
    outcome = simulate(workload, 1, trace=trace, check=False)
    assert outcome.done == turns
    at: dict[str, dict[int, float]] = {"send": {}, "answers": {}, "result": {}}
    for event in map(json.loads, trace.getvalue().splitlines()):
        if event["what"] in at:
            at[event["what"]][event["act"]] = event["at_s"]
    customers = [(sent, at["result"][act] - at["answers"][act]) for act, sent in at["send"].items()]
    expected = waits(places, customers)
    found = [at["answers"][act] - sent for act, sent in at["send"].items()]
    assert found == pytest.approx(expected, abs=1e-5 * turns)  # a trace's instants are rounded
    assert max(found) > 1.0
    assert list(outcome.wait_s) == pytest.approx(sorted(expected), abs=1e-5 * turns)


def test_the_mean_wait_is_that_of_the_formula_and_littles_law_holds() -> None:
    # So few turns come as near as this on some seeds only; the benchmark has enough of them for any.
    workload = queue(2, 0.5, 1_500, samples=300)
    outcome = simulate(workload, 7, check=False)
    assert outcome.done == len(outcome.wait_s) == 1_503
    assert mean(outcome.wait_s) == pytest.approx(mean_wait_s(2, workload.arrivals.rate, 1.0), rel=0.05)
    inside, rate_times_latency = little(outcome)
    assert inside == pytest.approx(rate_times_latency, rel=0.05)
