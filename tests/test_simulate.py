"""Whole workloads on virtual time, from a seed."""

from __future__ import annotations

import gc
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from actors.conversation import ConversationActor
from palaver import InvalidConfig, Limits
from palaver.simulation.distributions import Exponential, Fixed, LogNormal, Uniform
from palaver.simulation.errors import SimulationError
from palaver.simulation.lateness import LateCommitter
from palaver.simulation.loop import VirtualLoop
from palaver.simulation.outcome import percentile
from palaver.simulation.shrinking import ddmin, shrink
from palaver.simulation.simulating import simulate
from palaver.simulation.workload import Arrivals, Faults, Provider, Senders, Workload
from persistence.batches import Item
from persistence.database import MEMORY, close_database, open_database
from persistence.verify import verify
from persistence.writes import TurnUpdate, WriteSet

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


@pytest.mark.parametrize("over", ["wait", "429"])
def test_answers_that_need_no_draw_are_as_if_they_were_drawn(over: str) -> None:
    def lived(first_token_s: Fixed | Uniform) -> str:
        provider = Provider(first_token_s=first_token_s, tokens_per_s=Fixed(40.0), concurrency=3, over=over)
        trace = io.StringIO()
        simulate(Workload(senders=Senders(count=6, turns=3, topics=1), provider=provider), 1, trace=trace)
        return trace.getvalue()

    assert lived(Fixed(0.5)) == lived(Uniform(0.5, 0.5))


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


def test_late_commits_change_nothing_that_can_be_seen(tmp_path: Path) -> None:
    late = simulate(BUSY, 5, check=False)
    assert simulate(BUSY, 5, check=False, database=tmp_path / "kept.db") == late
    assert late.commits > 100
    db = open_database(tmp_path / "kept.db", create=False)
    assert verify(db) == []
    close_database(db)
    with pytest.raises(SimulationError, match="exists"):
        simulate(BUSY, 5, database=tmp_path / "kept.db")


def test_a_late_write_that_fails_is_said() -> None:
    committer = LateCommitter(MEMORY)
    committer.open()
    committer.run([Item(WriteSet(turn_updates=(TurnUpdate(77, "done"),)))])
    assert committer.wrong is None
    committer.run([Item(lambda db: None)])
    assert "check=True" in str(committer.wrong)
    committer.close()


ADVERSE = evolve(
    BUSY,
    compact_threshold=200,
    limits=Limits(passivate_after_s=5.0, live_conversations=8),
    senders=evolve(BUSY.senders, count=5, keyed=Uniform(0.0, 0.5)),
    faults=Faults(
        crashes_per_hour=Fixed(300),
        torn=Fixed(0.4),
        deaths_per_hour=Uniform(0, 100),
        disk_full_per_hour=Uniform(0, 100),
        slow_commits=Fixed(0.05),
    ),
)


def test_crashes_full_disks_and_deaths_lose_nothing() -> None:
    outcomes = [simulate(ADVERSE, seed) for seed in range(4)]
    assert [outcome.violation for outcome in outcomes] == [None] * 4
    assert sum(outcome.crashes for outcome in outcomes) > 10


def test_a_dead_process_leaves_nothing_in_memory() -> None:
    crashing = evolve(ADVERSE, faults=Faults(crashes_at_s=(3.0, 9.0)))
    before = loops_in_memory()  # what other tests have left
    assert simulate(crashing, 1).crashes == 2
    assert [loop for loop in loops_in_memory() if loop not in before] == []


def loops_in_memory() -> list[VirtualLoop]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, VirtualLoop)]


def test_a_bug_is_a_violation_with_the_guarantee_and_what_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    turn_ended = ConversationActor._turn_ended  # noqa: SLF001 - the bug is planted here

    def forgets_steers(self: Any, ended: Any) -> None:
        ended.turn.steers.clear()
        turn_ended(self, ended)

    monkeypatch.setattr(ConversationActor, "_turn_ended", forgets_steers)
    workload = evolve(BUSY, senders=evolve(BUSY.senders, steer=Fixed(0.4)))
    seed, violation = next((s, v) for s in range(20) if (v := simulate(workload, s).violation) is not None)
    assert violation.guarantee in (2, 7, 13, 19)
    assert violation.at_s > 0.0
    assert any("steer" in line for line in violation.last)
    assert any(act.what == "steer" for act in violation.acts)
    assert violation.again.endswith(f"--seed {seed}")
    smaller = shrink(workload, seed, violation, runs=60)
    assert smaller.guarantee == violation.guarantee
    assert len(smaller.acts) <= 6 < len(violation.acts)
    assert "steer" in [act.what for act in smaller.acts]
    again = simulate(workload, seed, acts={act.number: act.at_s for act in smaller.acts})
    assert again.violation is not None
    assert again.violation.words == smaller.words


@pytest.mark.parametrize(
    ("whole", "needed"),
    [(8, [2]), (8, [0, 7]), (9, [1, 2, 5]), (50, [3, 20, 21, 49]), (3, [0, 1, 2]), (1, [0])],
)
def test_delta_debugging_finds_what_is_needed(whole: int, needed: list[int]) -> None:
    asked = []

    def shows(part: Sequence[int]) -> bool:
        asked.append(part)
        return {*needed} <= {*part}

    assert ddmin(range(whole), shows) == needed
    assert len(asked) < whole**2 + 3 * whole  # the bound that the paper gives


def test_a_workload_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="duration_s"):
        Workload(senders=Senders(turns=0))
    with pytest.raises(InvalidConfig, match="duration_s"):
        Workload(arrivals=Arrivals(kind="poisson"))
