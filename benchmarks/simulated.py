"""Turns on virtual time: how much of a day a core lives in a second."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import time  # noqa: E402  # gevent patches first
from functools import partial  # noqa: E402

from benchmarks.report import Curve, Goal, Part, Row, Series, Tell, in_turns  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.turns import rate_goal, raw  # noqa: E402
from palaver.simulation import (  # noqa: E402
    Arrivals,
    Exponential,
    Fixed,
    LogNormal,
    Provider,
    Senders,
    Workload,
    simulate,
)

ABOUT = """`palaver.simulation.simulate` on one core: senders with a topic each send messages one after the
other, all at once, to a model that answers at once and a database whose commits take a virtual millisecond;
with the checks of all guarantees, as it is by default, and without them. `raw` writes the rows of as many
turns by sqlite3 alone, 1,000 to a commit. Turns per second of processor time."""
SENDERS = (10, 100, 1_000)
TURNS = 2_000  # of all senders together


def rate(senders: int, check: bool) -> float:
    """Turns that ended, for each second of processor time."""
    workload = Workload(senders=Senders(count=senders, turns=TURNS // senders))
    began = time.process_time()
    outcome = simulate(workload, seed=1, check=check)
    spent = time.process_time() - began
    if outcome.violation is not None:
        raise AssertionError(outcome.violation.words)
    return outcome.done / spent


def hour_s() -> float:
    """Seconds that a virtual hour of 10,000 senders takes."""
    workload = Workload(
        duration_s=3_600.0,
        senders=Senders(count=10_000, turns=0, think_s=Exponential(600.0)),
        arrivals=Arrivals(spread_s=600.0),
        provider=Provider(first_token_s=LogNormal(0.5, 2.0), tokens_per_s=Fixed(60.0), concurrency=500),
    )
    began = time.monotonic()
    simulate(workload, seed=1, check=False)
    return time.monotonic() - began


def run(quick: bool, tell: Tell) -> Part:
    rounds, sizes = (1, SENDERS[1:2]) if quick else (5, SENDERS)
    measures = {
        f"{senders} {words}": partial(rate, senders, check)
        for senders in sizes
        for words, check in (("checked", True), ("unchecked", False))
    }
    measures["raw"] = partial(raw, 1_000, TURNS, time.process_time)
    found = in_turns(measures, rounds, tell)
    lines = {
        words: {float(senders): found[f"{senders} {words}"] for senders in sizes}
        for words in ("checked", "unchecked")
    }
    shown = lines["unchecked"][100.0]
    beside = {"checked": lines["checked"][100.0], "raw": found["raw"]}
    row = Row("simulated turns/s, 100 senders", {"ours": shown, **beside})
    goals = [rate_goal("simulated turns/s, 100 senders, without checks", shown, found["raw"], 5_000)]
    rows = [row]
    if not quick:
        tell("an hour of 10,000 senders")
        took = hour_s()
        rows.append(Row("an hour of 10,000 senders, s", {"ours": Series((took,))}))
        goals.append(Goal("an hour of 10,000 senders, s", took, 120, at_most=True))
    curve = Curve("simulated turns/s", "senders", lines)
    return Part("simulated", ABOUT, rows, [curve], goals, setting=setting("gevent", "sqlite-utils"))
