"""The report for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palaver.simulation.outcome import Act, Outcome, Violation
from palaver.simulation.reports.guarantees import GUARANTEES
from palaver.simulation.reports.numbers import counted, kinds, number, seconds
from palaver.simulation.reports.summary import Spread, Summary, summary
from palaver.simulation.reports.sweeping import METHOD, Swept, in_figures
from palaver.simulation.reports.words import MOST_ACTS, alone, in_short, violated
from palaver.simulation.runs import Sweep

MOST_RUNS = 40
PERCENTILES = ("p50", "p90", "p95", "p99", "max")


def report_text(results: Sequence[Outcome] | Sweep, *, checked: bool = True) -> str:
    """Tables and sentences about runs, in lines that end with a line break.

    Args:
        results: outcomes of one workload, one for each seed; or a sweep.
        checked: whether the guarantees were checked.
    """
    outcomes = results.outcomes if isinstance(results, Sweep) else [*results]
    if not outcomes:
        return "no run has ended\n"
    parts = _sweep(in_figures(results)) if isinstance(results, Sweep) else _runs(outcomes)
    return "\n\n".join([*parts, *_guarantees(outcomes, checked)]) + "\n"


def _runs(outcomes: Sequence[Outcome]) -> Iterable[str]:
    figures = summary(outcomes)
    which = f"seed {outcomes[0].seed}" if len(outcomes) == 1 else counted(len(outcomes), "seed")
    yield f"{outcomes[0].workload.name}, {which}"
    yield _states(figures)
    yield _seconds(figures)
    yield aligned([[name, value] for name, value in _facts(figures)], left=1)
    if len(outcomes) > 1:
        yield _each(outcomes)
    yield "\n".join(in_short(outcomes))


def _states(figures: Summary) -> str:
    names = [*figures.turns, "refused"]
    return aligned(
        [["turns", *names], ["", *(f"{n:,}" for n in (*figures.turns.values(), figures.all_refused))]]
    )


def _seconds(figures: Summary) -> str:
    rows = [
        ["seconds", "mean", *PERCENTILES],
        ["latency", *_numbers(figures.latency)],
        ["wait for a model", *_numbers(figures.wait)],
    ]
    return aligned(rows)


def _numbers(spread: Spread) -> list[str]:
    return [number(getattr(spread, name)) for name in ("mean", *PERCENTILES)]


def _facts(figures: Summary) -> Iterable[tuple[str, str]]:
    yield "throughput", f"{number(figures.throughput)} turns/s"
    yield "model calls", f"{figures.model_calls:,}"
    errors = sum(figures.model_errors.values())
    yield "model errors", f"{errors:,}{f' ({kinds(figures.model_errors)})' if errors else ''}"
    if figures.refused:
        yield "refused", f"{figures.all_refused:,} ({kinds(figures.refused)})"
    yield "tool calls", f"{figures.tool_calls:,}"
    yield "commits", f"{figures.commits:,}"
    yield "crashes", f"{figures.crashes:,}"
    yield "live conversations at most", f"{figures.most_live:,}"
    yield "virtual time", seconds(figures.virtual_s)
    if figures.real_s:
        yield "real time of one core", seconds(figures.real_s)
        yield "simulated turns/s", f"{number(figures.speed)}"


def _each(outcomes: Sequence[Outcome]) -> str:
    rows = [
        ["seed", "turns/s", "p50", "p95", "p99", "done", "other", "refused", "crashes", "virtual", "violated"]
    ]
    for outcome in outcomes[:MOST_RUNS]:
        one = summary([outcome])
        cells = _cells(one, [str(outcome.seed)])
        rows.append([*cells, seconds(one.virtual_s), _number_of(outcome.violation)])
    table = aligned(rows)
    left = len(outcomes) - MOST_RUNS
    return f"{table}\n... and {counted(left, 'more seed')}" if left > 0 else table


def _cells(one: Summary, first: list[str]) -> list[str]:
    times = [number(each) for each in (one.throughput, one.latency.p50, one.latency.p95, one.latency.p99)]
    counts = [one.done, one.ended - one.done, one.all_refused, one.crashes]
    return [*first, *times, *(f"{count:,}" for count in counts)]


def _number_of(violation: Violation | None) -> str:
    return f"G{violation.guarantee}" if violation is not None else ""


def _sweep(swept: Swept) -> Iterable[str]:
    yield f"sweep of {swept.key}, {counted(swept.summaries[0].runs, 'seed')} each; latencies in seconds"
    rows = [
        [swept.key, "turns/s", "p50", "p95", "p99", "done", "other", "refused", "crashes", "wait p95", ""]
    ]
    for place, (value, one) in enumerate(zip(swept.values, swept.summaries, strict=True)):
        mark = "<- knee" if swept.knee is not None and swept.knee.place == place else ""
        rows.append([*_cells(one, [str(value)]), number(one.wait.p95), mark])
    yield aligned(rows)
    yield "\n".join(swept.words)
    if swept.knee is not None:
        yield f"({METHOD})"


def _guarantees(outcomes: Sequence[Outcome], checked: bool) -> Iterable[str]:
    found = [(each.violation, each) for each in outcomes if each.violation is not None]
    if not found:
        runs = "the run" if len(outcomes) == 1 else f"all {len(outcomes):,} runs"
        yield f"guarantees: held in {runs}" if checked else "guarantees: not checked"
        return
    yield f"guarantees: VIOLATED in {len(found):,} of {counted(len(outcomes), 'run')}"
    for violation, outcome in found[:MOST_RUNS]:
        yield violation_text(violation, outcome.seed)


def violation_text(violation: Violation, seed: int) -> str:
    """What did not hold, what shows it, and how to see it again."""
    promise = GUARANTEES.get(violation.guarantee, "")
    lines = [violated(violation, seed)]
    if promise:
        lines.append(f"  promised: {promise}")
    if violation.acts:
        lines.append(f"  {counted(len(violation.acts), 'act')} that show it:")
        rows = [
            ["   ", f"{act.at_s:.6g} s", f"#{act.number}", act.who, act_words(act)] for act in violation.acts
        ]
        lines += aligned(rows[:MOST_ACTS], left=5).splitlines()
        if len(rows) > MOST_ACTS:
            lines.append(f"    ... and {len(rows) - MOST_ACTS:,} more")
    if violation.last:
        lines += ["  the last lines of the trace:", *(f"    {line}" for line in violation.last[-10:])]
    if violation.again:
        lines.append(f"  to see it again: {violation.again}")
        lines += [f"  with these acts alone: {command}" for command in alone(violation)]
    return "\n".join(lines)


def act_words(act: Act) -> str:
    """ "send chars=100 topic=2"."""
    return " ".join([act.what, *(f"{name}={value}" for name, value in act.facts.items())])


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows in columns: the first `left` to the left, and the last too if nothing is to the right of it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
