"""Whole workloads on virtual time, from a seed."""

from __future__ import annotations

import io

from attrs import evolve

from palaver.simulation.distributions import Exponential, Fixed, LogNormal
from palaver.simulation.outcome import percentile
from palaver.simulation.simulate import simulate
from palaver.simulation.workload import Arrivals, Provider, Senders, Workload

BUSY = Workload(
    senders=Senders(
        count=10,
        turns=5,
        think_s=Exponential(3),
        topics=2,
        steer=Fixed(0.1),
        cancel=Fixed(0.05),
        switch=Fixed(0.1),
        compact=Fixed(0.05),
        close=Fixed(0.05),
        remember=Fixed(0.05),
    ),
    provider=Provider(
        first_token_s=LogNormal(0.5, 2.0),
        tokens_per_s=Fixed(50),
        chunks=3,
        tool_calls=Fixed(0.3),
        errors=Fixed(0.05),
        cuts=Fixed(0.05),
        concurrency=4,
    ),
)


def test_each_sender_has_its_turns_and_waits_as_long_as_the_provider_takes() -> None:
    workload = Workload(
        senders=Senders(count=20, turns=5), provider=Provider(first_token_s=Fixed(2.0), concurrency=10)
    )
    outcome = simulate(workload, 3)
    assert outcome.turns == {"done": 100, "failed": 0, "cancelled": 0, "closed": 0}
    assert len(outcome.latency_s) == len(outcome.wait_s) == 100
    assert outcome.virtual_s >= 20.0  # 100 answers of 2 s, 10 at a time
    assert 4.0 <= percentile(outcome.latency_s, 50) < 4.1
    assert outcome.model_calls == 100
    assert max(sample.model_calls for sample in outcome.samples) == 10
    assert max(sample.model_waiting for sample in outcome.samples) == 10
    assert outcome.samples[-1].done == 100


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    def lived(seed: int) -> tuple[str, object]:
        trace = io.StringIO()
        outcome = simulate(BUSY, seed, trace=trace)
        return trace.getvalue(), outcome

    trace, outcome = lived(1)
    assert lived(1) == (trace, outcome)
    assert lived(2)[0] != trace


def test_an_open_arrival_does_not_wait_for_the_provider() -> None:
    arrivals = Arrivals(kind="poisson", rate=2.0)
    slow = Provider(first_token_s=Fixed(1.0), concurrency=1)
    workload = Workload(duration_s=60.0, senders=Senders(count=50), arrivals=arrivals, provider=slow)
    outcome = simulate(workload, 1)
    assert outcome.done > 80  # some 120 come, 60 are answered meanwhile
    assert percentile(outcome.wait_s, 90) > 20.0
    fast = simulate(evolve(workload, provider=evolve(slow, concurrency=0)), 1)
    assert fast.done == outcome.done
    assert percentile(fast.wait_s, 99) < 2.0
