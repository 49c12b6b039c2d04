"""What runs show, in sentences made of their figures."""

from __future__ import annotations

from collections.abc import Sequence

from palaver.simulation.outcome import Outcome, Sample, Violation
from palaver.simulation.reports.numbers import counted, kinds, number, percent, seconds
from palaver.simulation.reports.summary import Summary, summary

MOST_ACTS = 30
_OFTEN = 0.1


def in_short(outcomes: Sequence[Outcome]) -> list[str]:
    """What an operator asks first."""
    if not outcomes:
        return ["No run has ended."]
    figures = summary(outcomes)
    return [
        sentence
        for sentence in (_turns(figures), _latency(figures), _bound(outcomes), _backlog(outcomes))
        if sentence
    ]


def _turns(figures: Summary) -> str:
    words = (
        f"{counted(figures.done, 'turn')} ended done in {seconds(figures.virtual_s)} of virtual time, "
        f"{number(figures.throughput)} a second"
    )
    other = {state: count for state, count in figures.turns.items() if state != "done" and count}
    if other:
        words += f"; {kinds(other)}"
    if figures.all_refused:
        words += f"; {counted(figures.all_refused, 'message')} refused"
    return f"{words}."


def _latency(figures: Summary) -> str:
    if not figures.results:
        return ""
    share = figures.wait.mean / figures.latency.mean if figures.latency.mean else 0.0
    return (
        f"Half of {counted(figures.results, 'result')} came within {seconds(figures.latency.p50)}, 95 of 100 "
        f"within {seconds(figures.latency.p95)}, the slowest after {seconds(figures.latency.max)}; "
        f"{percent(share)} of that time went by before the model took it up."
    )


def _bound(outcomes: Sequence[Outcome]) -> str:
    samples = all_samples(outcomes)
    if not samples:
        return ""
    waiting = sum(1 for each in samples if each.model_waiting) / len(samples)
    if waiting == 0:
        return "No call of the model was seen waiting for a slot."
    name, cap = bound_of(outcomes[0])
    words = f"Calls of the model waited for a slot in {percent(waiting)} of the samples"
    busy = sum(1 for each in samples if each.model_calls >= cap) / len(samples) if cap else 0.0
    if busy >= _OFTEN:
        return f"{words}: {name} = {cap:,} was used up in {percent(busy)} of them."
    return f"{words}."


def bound_of(outcome: Outcome) -> tuple[str, int]:
    """The least bound on calls of the model at once, and its name."""
    workload = outcome.workload
    bounds = {"limits.model_calls": workload.limits.model_calls}
    if workload.provider.concurrency:
        bounds["provider.concurrency"] = workload.provider.concurrency
    name = min(bounds, key=bounds.__getitem__)
    return name, bounds[name]


def _backlog(outcomes: Sequence[Outcome]) -> str:
    """Whether work piled up for as long as messages came: then latency says how long the run was."""
    growing = [each for each in outcomes if piles_up(each)]
    if not growing:
        return ""
    which = "it" if len(outcomes) == 1 else f"{len(growing)} of {len(outcomes)} runs"
    return (
        f"Work piled up for as long as messages came ({which}): more came than could be done, "
        "and a longer run would show longer latencies."
    )


def piles_up(outcome: Outcome) -> bool:
    """Whether what had not ended grew in each third of the time in which messages came."""
    workload = outcome.workload
    if workload.arrivals.kind == "closed":
        return False
    last = workload.duration_s or outcome.virtual_s
    open_now = [s.queued + s.running for s in outcome.samples if s.at_s <= last]
    if len(open_now) < 9:
        return False
    size = len(open_now) // 3
    thirds = [sum(open_now[n * size : (n + 1) * size]) / size for n in range(3)]
    return thirds[0] * 1.5 < thirds[1] and thirds[1] * 1.2 < thirds[2] and thirds[2] > 5


def all_samples(outcomes: Sequence[Outcome]) -> list[Sample]:
    return [sample for outcome in outcomes for sample in outcome.samples]


def violated(violation: Violation, seed: int) -> str:
    """One sentence on what did not hold."""
    return (
        f"Guarantee {violation.guarantee} did not hold on seed {seed}, {number(violation.at_s)} s of virtual "
        f"time after the run began: {violation.words}"
    )


def alone(violation: Violation) -> list[str]:
    """The command that lives nothing but the acts that show it, if they are few."""
    if not violation.again or not 0 < len(violation.acts) <= MOST_ACTS:
        return []
    acts = ",".join(f"{act.number}@{act.at_s!r}" for act in violation.acts)
    return [f"{violation.again} --acts {acts}"]
