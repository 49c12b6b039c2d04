"""A sender that floods the runtime does not delay the others: who wants a model takes turns by sender.

A seed is two runs of the same quiet senders on virtual time, one of them beside a sender with hundreds of
turns in many topics. The quiet ones' latency beside the flood is compared with theirs without it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

import gevent
from attrs import frozen

from palaver import AgentConfig, Limits, ModelRequest, Reply, Runtime, ScriptedModel
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from reliability.check import Check

SPAN = 1_000_000
AGENT = "crab"
MODEL_CALLS = 4
SENDERS = 20
TURNS = 5
SERVICE_S = 1.0
MOST = 1.5  # times the latency without the flood, and one service time


@frozen
class Plan:
    """What a seed draws. Quiet senders use up to a third of the model, and the flood wants all of it.

    `pauses` holds, for each quiet sender, the seconds before each of its turns.
    """

    number: int
    topics: int
    turns_each: int
    pauses: tuple[tuple[float, ...], ...]

    @classmethod
    def draw(cls, number: int) -> Plan:
        rng = random.Random(f"fairness {number}")
        think_s = rng.choice((10.0, 12.0, 15.0)) * SERVICE_S
        pauses = tuple(tuple(rng.uniform(0.0, 2.0 * think_s) for _ in range(TURNS)) for _ in range(SENDERS))
        return cls(number, *rng.choice(((8, 60), (25, 20), (60, 8))), pauses)


def run(count: int, seed: int, folder: Path) -> int:
    """Compare `count` seeds, from this one's first on."""
    first = seed if seed >= SPAN else seed * SPAN
    for number in range(first, first + count):
        plan = Plan.draw(number)
        calm, flooded = p99(latencies(plan, flood=False)), p99(latencies(plan, flood=True))
        most = MOST * calm + SERVICE_S
        assert flooded <= most, (
            f"G14: beside a flood the quiet senders' p99 is {flooded:.3f} s, and may be {most:.3f} s; it is "
            f"{calm:.3f} s without. Again: python tests/reliability --part fairness 1 {number}"
        )
    return count


def p99(values: Iterable[float]) -> float:
    """The 99th percentile."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def latencies(plan: Plan, *, flood: bool) -> list[float]:
    """The virtual seconds that each turn of the quiet senders took."""
    order = random.Random(f"order {plan.number}")
    return run_virtual(_day, plan, flood, rng=order)


def _day(plan: Plan, flood: bool) -> list[float]:
    clock = VirtualClock()
    rng = random.Random(f"service {plan.number}")

    def answer(_request: ModelRequest) -> Reply:
        return Reply("done", delay_s=SERVICE_S * rng.uniform(0.5, 1.0))

    worker = InlineWorker(":memory:", schedule=gevent.spawn_later)
    limits = Limits(model_calls=MODEL_CALLS)
    model = ScriptedModel(answer, keep_requests=0)
    sources = seeded_sources(clock, plan.number)
    took: list[float] = []
    with Runtime.open(":memory:", model, worker=worker, sources=sources, limits=limits) as rt:
        rt.add_agent(AgentConfig(name=AGENT))
        if flood:
            _flood(rt, plan)

        def talk(sender: str, pauses: Iterable[float]) -> None:
            cid = rt.get_or_create(AGENT, sender)
            for pause_s in pauses:
                gevent.sleep(pause_s)
                began = clock.monotonic()
                assert rt.send(cid, "hello").text == "done"
                took.append(clock.monotonic() - began)

        quiet = [gevent.spawn(talk, f"quiet {n}", pauses) for n, pauses in enumerate(plan.pauses)]
        gevent.joinall(quiet, raise_error=True)
        rt.shutdown(drain=0)
    return took


def _flood(rt: Runtime, plan: Plan) -> None:
    for number in range(plan.topics):
        cid = rt.switch_topic(AGENT, "flood", f"topic {number}", "one of many").conversation_id
        for _ in range(plan.turns_each):
            rt.submit(cid, "more")


CHECKS = (
    Check(
        name="fairness",
        guarantees=(14,),
        unit="seeds",
        quick=10,
        long=500,
        run=run,
    ),
)
