"""The plots of a run, or of several seeds: each with what it shows in words, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen

from palaver.simulation.outcome import Outcome, percentile
from palaver.simulation.reports.curves import Curve, Measure, over_time, turns_per_s
from palaver.simulation.reports.numbers import counted, number, percent, seconds
from palaver.simulation.reports.scales import Axis
from palaver.simulation.reports.summary import Summary, latencies, summary, waits
from palaver.simulation.reports.svg import Chart, Line
from palaver.simulation.reports.words import bound_of

PERCENTS = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 99.95, 99.99)
IN_TABLE = (50, 75, 90, 95, 99, 99.9, 100)
ROWS = 12
ORDERED_BY_SEED = 40


@frozen
class Plot:
    """One plot.

    Args:
        title: of it.
        words: what it shows, in sentences.
        chart: the drawing.
        headers, rows: its figures.
    """

    title: str
    words: Sequence[str]
    chart: Chart
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def plots(outcomes: Sequence[Outcome]) -> list[Plot]:
    """Of runs of one workload."""
    found: list[Plot | None] = [
        _by_percentile(outcomes),
        _turns(outcomes),
        _model_calls(outcomes),
        _queue(outcomes),
        _live(outcomes),
    ]
    if len(outcomes) > 1:
        found += _seeds(outcomes)
    return [each for each in found if each is not None]


def percentile_line(name: str, ascending: Sequence[float], kind: int) -> Line:
    """A line of values by percentile, as far as there are enough of them to tell."""
    enough = 100 * (1 - 1 / max(2, len(ascending)))
    points = [(p, percentile(ascending, p)) for p in PERCENTS if p <= enough]
    return Line(name, points, kind=kind)


def _by_percentile(outcomes: Sequence[Outcome]) -> Plot | None:
    taken, waited = latencies(outcomes), waits(outcomes)
    if not taken:
        return None
    p50, p95, p99 = (percentile(taken, p) for p in (50, 95, 99))
    words = [
        f"Of {counted(len(taken), 'result')}, half took {seconds(p50)} or less, and one of twenty "
        f"{seconds(p95)} or more; p99 is {number(p99 / p50 if p50 else 0)} times the median.",
        f"Before the model took it up, half waited {seconds(percentile(waited, 50))} or less, and one "
        f"of twenty {seconds(percentile(waited, 95))} or more.",
    ]
    chart = Chart(
        "Latency by percentile",
        Axis("percentile of turns", "nines"),
        Axis("seconds"),
        [
            percentile_line("from sending to result", taken, 0),
            percentile_line("until the model took it up", waited, 1),
        ],
    )
    rows = [
        ["max" if p == 100 else f"p{p:g}", number(percentile(taken, p)), number(percentile(waited, p))]
        for p in IN_TABLE
    ]
    return Plot(
        "Latency by percentile", words, chart, ["percentile", "latency, s", "wait for a model, s"], rows
    )


def _turns(outcomes: Sequence[Outcome]) -> Plot | None:
    curve = turns_per_s(outcomes)
    if curve is None:
        return None
    at, most = curve.peak
    mean = number(summary(outcomes).throughput)
    words = [f"On average {mean} turns a second ended done, at most {number(most)} {_when(at)}."]
    return _timed("Turns per second", words, "turns/s", [("turns ended done", curve)])


def _model_calls(outcomes: Sequence[Outcome]) -> Plot | None:
    answered, waited = _curve(outcomes, "model_calls"), _curve(outcomes, "model_waiting")
    if answered is None or waited is None:
        return None
    (at, most), (waited_at, most_waited) = answered.peak, waited.peak
    name, cap = bound_of(outcomes[0])
    words = [
        f"On average {number(answered.mean)} calls were being answered, at most {number(most)} {_when(at)}."
    ]
    if most_waited:
        busy = sum(1 for value in waited.middle if value) / len(waited.middle)
        words.append(
            f"Calls waited for a slot {percent(busy)} of the time, at most {number(most_waited)} of them "
            f"{_when(waited_at)}; the least bound on calls is {name} = {cap:,}."
        )
    else:
        words.append("None waited for a slot.")
    return _timed("Calls of the model", words, "calls", [("being answered", answered), ("waiting", waited)])


def _queue(outcomes: Sequence[Outcome]) -> Plot | None:
    queued, running = _curve(outcomes, "queued"), _curve(outcomes, "running")
    if queued is None or running is None:
        return None
    (at, most), (running_at, most_running) = queued.peak, running.peak
    words = [
        f"At most {counted(round(most_running), 'turn')} ran at once {_when(running_at)}, "
        f"{number(running.mean)} on average.",
        f"At most {counted(round(most), 'message')} waited for a turn before {_when(at)}, "
        f"{number(queued.mean)} on average."
        if most
        else "No message waited for a turn before it.",
    ]
    return _timed(
        "Queue", words, "messages", [("waiting for a turn before", queued), ("turns that run", running)]
    )


def _live(outcomes: Sequence[Outcome]) -> Plot | None:
    curve = _curve(outcomes, "live")
    if curve is None:
        return None
    most = max(outcome.most_live for outcome in outcomes)
    words = [
        f"At most {counted(most, 'conversation')} were in memory, {number(curve.mean)} on average, and "
        f"{number(curve.middle[-1])} at the end."
    ]
    kept = max((s.bytes for o in outcomes for s in o.samples), default=0)
    if kept:
        words.append(f"Their histories took at most {number(kept / 1_000_000)} MB.")
    return _timed("Live conversations", words, "conversations", [("in memory", curve)])


def _curve(outcomes: Sequence[Outcome], name: str) -> Curve | None:
    measure: Measure = lambda sample: float(getattr(sample, name))  # noqa: E731
    return over_time(outcomes, measure)


def _when(at_s: float) -> str:
    return f"after {seconds(at_s)}"


def _timed(title: str, words: Sequence[str], unit: str, named: Sequence[tuple[str, Curve]]) -> Plot:
    lines = []
    for kind, (name, curve) in enumerate(named):
        low, high = curve.band
        lines.append(Line(name, curve.points, low, high, kind=kind))
    if (runs := named[0][1].runs) > 1:
        words = [
            *words,
            f"Lines are the median of {runs:,} runs, bands go from the least to the most, while half go on.",
        ]
    chart = Chart(title, Axis("virtual time, s", tight=True), Axis(unit), lines, above=1.0)
    return Plot(title, words, chart, ["virtual time, s", *(name for name, _ in named)], [*_rows(named)])


def _rows(named: Sequence[tuple[str, Curve]]) -> Iterable[list[str]]:
    at_s = named[0][1].at_s
    count = min(ROWS, len(at_s))
    for row in range(count):
        place = round(row * (len(at_s) - 1) / max(1, count - 1))
        yield [number(at_s[place]), *(number(curve.middle[place]) for _, curve in named)]


def _seeds(outcomes: Sequence[Outcome]) -> list[Plot | None]:
    ones = [(outcome.seed, summary([outcome])) for outcome in outcomes]
    return [
        _compared("Latency of each seed", ones, "seconds", {"p50": _p50, "p95": _p95}),
        _compared(
            "Throughput of each seed", ones, "turns/s", {"turns ended done": lambda one: one.throughput}
        ),
    ]


def _p50(one: Summary) -> float:
    return one.latency.p50


def _p95(one: Summary) -> float:
    return one.latency.p95


def _compared(
    title: str,
    ones: Sequence[tuple[int, Summary]],
    unit: str,
    measures: Mapping[str, Callable[[Summary], float]],
) -> Plot:
    by_seed = len(ones) <= ORDERED_BY_SEED
    words, lines, columns = [], [], []
    for kind, (name, measure) in enumerate(measures.items()):
        values = [measure(one) for _, one in ones]
        low, high = (choose(range(len(values)), key=values.__getitem__) for choose in (min, max))
        words.append(
            f"{name}: from {number(values[low])} (seed {ones[low][0]}) to {number(values[high])} (seed "
            f"{ones[high][0]}), {number(percentile(sorted(values), 50))} in the middle."
        )
        columns.append(values)
        xs = [seed for seed, _ in ones] if by_seed else range(1, len(ones) + 1)
        shown = values if by_seed else sorted(values)
        lines.append(Line(name, [*zip(map(float, xs), shown, strict=True)], dots=by_seed, kind=kind))
    seeds = [float(seed) for seed, _ in ones]
    across = (
        Axis("seed", ticks=seeds)
        if by_seed
        else Axis("seeds, from the least to the greatest value", tight=True)
    )
    rows = [[str(seed), *(number(column[n]) for column in columns)] for n, (seed, _) in enumerate(ones)]
    chart = Chart(title, across, Axis(unit), lines)
    return Plot(
        title, words, chart, ["seed", *(f"{name}, {unit}" for name in measures)], rows[:ORDERED_BY_SEED]
    )
