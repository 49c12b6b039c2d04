"""The plots of a sweep: throughput and latency against the value that was swept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from palaver.simulation.outcome import Outcome, percentile
from palaver.simulation.reports.curves import over_time
from palaver.simulation.reports.numbers import number, percent, seconds
from palaver.simulation.reports.plots import IN_TABLE, Plot, percentile_line
from palaver.simulation.reports.scales import Axis
from palaver.simulation.reports.summary import Summary, latencies, summary
from palaver.simulation.reports.svg import KINDS, Chart, Line
from palaver.simulation.reports.sweeping import Swept
from palaver.simulation.runs import Sweep

WIDE = 20
"""From this ratio of the greatest to the least value on, the axis is logarithmic."""


def sweep_plots(sweep: Sweep, swept: Swept) -> list[Plot]:
    """Of a sweep, and its figures."""
    outcomes = {repr(point.value): point.outcomes for point in sweep.points}
    ordered = [outcomes[repr(value)] for value in swept.values]
    found = [
        _throughput(swept, ordered),
        _latency(swept, ordered),
        _percentiles(swept, ordered),
        _calls(swept, ordered),
        _waiting(swept, ordered),
        _lost(swept),
    ]
    return [each for each in found if each is not None]


def _across(swept: Swept) -> tuple[Axis, list[float]]:
    """The axis of the values, and where each is on it."""
    names = [str(value) for value in swept.values]
    if not swept.numeric:
        places = [float(n) for n in range(len(names))]
        return Axis(swept.key, ticks=places, names=names), places
    values = [float(value) for value in swept.values]
    wide = values[0] > 0 and values[-1] / values[0] >= WIDE
    return Axis(swept.key, "log" if wide else "linear", ticks=values, names=names), values


def _marked(swept: Swept, xs: Sequence[float]) -> tuple[float, str] | None:
    if swept.knee is None:
        return None
    return xs[swept.knee.place], f"knee: {swept.knee.value}"


def _line(
    name: str,
    xs: Sequence[float],
    ordered: Sequence[Sequence[Outcome]],
    measure: Callable[[Summary], float],
    kind: int,
) -> Line:
    """What `measure` gives of each value's runs together, with a band from the least to the most of them."""
    together = [measure(summary(runs)) for runs in ordered]
    points = [*zip(xs, together, strict=True)]
    if max(map(len, ordered)) == 1:
        return Line(name, points, dots=True, kind=kind)
    single = [[measure(summary([run])) for run in runs] for runs in ordered]
    low, high = ([*zip(xs, map(choose, single), strict=True)] for choose in (min, max))
    return Line(name, points, low, high, dots=True, kind=kind)


def _throughput(swept: Swept, ordered: Sequence[Sequence[Outcome]]) -> Plot:
    axis, xs = _across(swept)
    line = _line("turns ended done", xs, ordered, lambda one: one.throughput, 0)
    chart = Chart(f"Throughput against {swept.key}", axis, Axis("turns/s"), [line], _marked(swept, xs))
    most = max(each.throughput for each in swept.summaries) or 1.0
    rows = [
        [str(value), number(one.throughput), percent(one.throughput / most)]
        for value, one in zip(swept.values, swept.summaries, strict=True)
    ]
    words = [swept.words[0], swept.words[2]]
    return Plot("Throughput", words, chart, [swept.key, "turns/s", "of the most"], rows)


def _latency(swept: Swept, ordered: Sequence[Sequence[Outcome]]) -> Plot:
    axis, xs = _across(swept)
    lines = [
        _line("p50", xs, ordered, lambda one: one.latency.p50, 0),
        _line("p95", xs, ordered, lambda one: one.latency.p95, 1),
    ]
    chart = Chart(f"Latency against {swept.key}", axis, Axis("seconds"), lines, _marked(swept, xs))
    rows = [
        [
            str(value),
            *(number(each) for each in (one.latency.p50, one.latency.p95, one.latency.p99, one.latency.max)),
        ]
        for value, one in zip(swept.values, swept.summaries, strict=True)
    ]
    return Plot(
        "Latency",
        [swept.words[1], *swept.words[3:]],
        chart,
        [swept.key, "p50, s", "p95, s", "p99, s", "max, s"],
        rows,
    )


def _shown(count: int) -> list[int]:
    """As many of so many values as there are kinds of lines, the first and the last among them."""
    lines = min(KINDS, count)
    return [round(n * (count - 1) / max(1, lines - 1)) for n in range(lines)]


def _percentiles(swept: Swept, ordered: Sequence[Sequence[Outcome]]) -> Plot | None:
    shown = _shown(len(ordered))
    taken = {str(swept.values[n]): latencies(ordered[n]) for n in shown}
    if not any(taken.values()):
        return None
    lines = [percentile_line(name, each, kind) for kind, (name, each) in enumerate(taken.items()) if each]
    ratios = {
        name: percentile(each, 95) / percentile(each, 50)
        for name, each in taken.items()
        if percentile(each, 50)
    }
    words = ["Each line is the latency of all turns at one value."]
    if ratios:
        widest = max(ratios, key=ratios.__getitem__)
        words.append(
            f"The slow turns differ most from the usual ones at {widest}: p95 is {number(ratios[widest])} "
            "times p50."
        )
    chart = Chart(
        "Latency by percentile at each value", Axis("percentile of turns", "nines"), _seconds(lines), lines
    )
    rows = [
        ["max" if p == 100 else f"p{p:g}", *(number(percentile(each, p)) for each in taken.values())]
        for p in IN_TABLE
    ]
    return Plot("Latency by percentile", words, chart, ["percentile", *(f"{n}, s" for n in taken)], rows)


def _seconds(lines: Sequence[Line]) -> Axis:
    """Logarithmic where the slowest value's line would press the others flat."""
    heights = [y for line in lines for _, y in line.points]
    tops = [max(y for _, y in line.points) for line in lines]
    return Axis("seconds", "log" if min(heights) > 0 and max(tops) > WIDE * min(tops) / 4 else "linear")


def _calls(swept: Swept, ordered: Sequence[Sequence[Outcome]]) -> Plot | None:
    if not all(any(run.samples for run in runs) for runs in ordered):
        return None
    axis, xs = _across(swept)
    answered = [_mean(runs, "model_calls") for runs in ordered]
    waited = [_mean(runs, "model_waiting") for runs in ordered]
    lines = [
        Line("being answered", [*zip(xs, answered, strict=True)], dots=True, kind=0),
        Line("waiting for a slot", [*zip(xs, waited, strict=True)], dots=True, kind=1),
    ]
    chart = Chart(
        f"Calls of the model against {swept.key}", axis, Axis("calls, on average"), lines, above=1.0
    )
    words = [
        f"On average {number(answered[0])} calls were being answered and {number(waited[0])} waited at "
        f"{swept.values[0]}, {number(answered[-1])} and {number(waited[-1])} at {swept.values[-1]}."
    ]
    rows = [
        [str(value), number(a), number(w)] for value, a, w in zip(swept.values, answered, waited, strict=True)
    ]
    return Plot("Calls of the model", words, chart, [swept.key, "being answered", "waiting"], rows)


def _mean(runs: Sequence[Outcome], name: str) -> float:
    values = [float(getattr(sample, name)) for run in runs for sample in run.samples]
    return sum(values) / len(values)


def _waiting(swept: Swept, ordered: Sequence[Sequence[Outcome]]) -> Plot | None:
    """What waits over virtual time: it grows for as long as messages come where these are too many."""
    found = {
        n: over_time(ordered[n], lambda each: each.queued + each.model_waiting) for n in _shown(len(ordered))
    }
    curves = {str(swept.values[n]): curve for n, curve in found.items() if curve is not None}
    if not curves:
        return None
    lines = [Line(name, curve.points, kind=kind) for kind, (name, curve) in enumerate(curves.items())]
    most = max(curves, key=lambda name: curves[name].peak[1])
    at_s, count = curves[most].peak
    words = [
        f"Most messages and calls waited at {most}: {number(count)} after {seconds(at_s)}, and "
        f"{number(curves[most].mean)} on average."
    ]
    axis = Axis("virtual time, s", tight=True)
    chart = Chart("Messages and calls that wait, at each value", axis, Axis("waiting"), lines, above=1.0)
    rows = [
        [name, number(curve.mean), number(curve.peak[1]), number(curve.peak[0])]
        for name, curve in curves.items()
    ]
    headers = [swept.key, "waiting on average", "at most", "after, s"]
    return Plot("What waits over virtual time", words, chart, headers, rows)


def _lost(swept: Swept) -> Plot | None:
    """Turns that did not end done, and messages that were refused; None if there were none."""
    other = [float(one.ended - one.done) for one in swept.summaries]
    refused = [float(one.all_refused) for one in swept.summaries]
    if not any(other) and not any(refused):
        return None
    axis, xs = _across(swept)
    lines = [
        Line("turns that ended otherwise", [*zip(xs, other, strict=True)], dots=True, kind=0),
        Line("messages refused", [*zip(xs, refused, strict=True)], dots=True, kind=1),
    ]
    most = max(range(len(other)), key=lambda n: other[n] + refused[n])
    words = [
        f"Most at {swept.values[most]}: {other[most]:,.0f} turns that did not end done, and "
        f"{refused[most]:,.0f} messages refused."
    ]
    rows = [
        [str(value), f"{one.done:,}", f"{a:,.0f}", f"{b:,.0f}"]
        for value, one, a, b in zip(swept.values, swept.summaries, other, refused, strict=True)
    ]
    chart = Chart(f"What did not end done, against {swept.key}", axis, Axis("count"), lines, above=1.0)
    return Plot("What did not end done", words, chart, [swept.key, "done", "otherwise", "refused"], rows)
