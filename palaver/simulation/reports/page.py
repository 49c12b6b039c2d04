"""The report as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from palaver.simulation.outcome import Outcome, Violation
from palaver.simulation.reports.guarantees import GUARANTEES
from palaver.simulation.reports.html import Rows, cards, details, page, paragraphs, section, table, tiles
from palaver.simulation.reports.numbers import counted, kinds, number, seconds
from palaver.simulation.reports.plots import plots
from palaver.simulation.reports.settings import changed_settings
from palaver.simulation.reports.summary import Summary, summary
from palaver.simulation.reports.sweep_plots import sweep_plots
from palaver.simulation.reports.sweeping import METHOD, Swept, in_figures
from palaver.simulation.reports.text import MOST_RUNS, act_words
from palaver.simulation.reports.words import MOST_ACTS, alone, in_short, violated
from palaver.simulation.runs import Sweep


def report_html(results: Sequence[Outcome] | Sweep, *, checked: bool = True, command: str = "") -> str:
    """A page about runs.

    Args:
        results: outcomes of one workload, one for each seed, one at least; or a sweep.
        checked: whether the guarantees were checked.
        command: what shows the same again.
    """
    outcomes = results.outcomes if isinstance(results, Sweep) else [*results]
    if not outcomes:
        return page("Simulation", ["<main><h1>Simulation</h1><p>No run has ended.</p></main>"])
    body = _sweep(results) if isinstance(results, Sweep) else _runs(outcomes)
    name = outcomes[0].workload.name
    title, subtitle = _titles(results, outcomes)
    parts = [
        "<main>",
        f"<header><h1>{escape(name)}</h1><p>{escape(subtitle)}</p></header>",
        *_guarantees(outcomes, checked),
        *body,
        *_settings(outcomes[0], command, results.key if isinstance(results, Sweep) else ""),
        "</main>",
    ]
    return page(f"{name}: {title}", parts)


def _titles(results: Sequence[Outcome] | Sweep, outcomes: Sequence[Outcome]) -> tuple[str, str]:
    figures = summary(outcomes)
    lived = f"{seconds(figures.virtual_s)} of virtual time"
    if figures.real_s:
        lived += f" in {seconds(figures.real_s)} of one core ({number(figures.speed)} turns/s)"
    if isinstance(results, Sweep):
        title = f"sweep of {results.key}"
        return title, f"A {title}: {counted(len(outcomes), 'simulated run')}, {lived}."
    if len(outcomes) > 1:
        return f"{len(outcomes):,} seeds", f"{counted(len(outcomes), 'simulated run')}, {lived}."
    return f"seed {outcomes[0].seed}", f"A simulated run from seed {outcomes[0].seed}, {lived}."


def _runs(outcomes: Sequence[Outcome]) -> Iterable[str]:
    figures = summary(outcomes)
    yield section("In short", [paragraphs(in_short(outcomes)), tiles(_key_figures(figures))])
    yield section("Plots", [cards(plots(outcomes))])
    yield section("Figures", [table(["", ""], _all_figures(figures), "Figures of the run")])
    if len(outcomes) > 1:
        yield section("Runs", [_each("seed", [(str(each.seed), each) for each in outcomes])])


def _sweep(results: Sweep) -> Iterable[str]:
    swept = in_figures(results)
    method = [f"The knee is found by {METHOD}."] if swept.knee is not None else []
    yield section("In short", [paragraphs([*swept.words, *method])])
    yield section("Plots", [cards(sweep_plots(results, swept))])
    yield section("Values", [_values(swept)])
    if len(results.outcomes) > len(results.points):
        named = [(f"{point.value}, {run.seed}", run) for point in results.points for run in point.outcomes]
        yield section("Runs", [_each(f"{results.key}, seed", named)])


def _key_figures(figures: Summary) -> Iterable[tuple[str, str]]:
    yield "throughput", f"{number(figures.throughput)} turns/s"
    yield "latency p50", seconds(figures.latency.p50)
    yield "latency p95", seconds(figures.latency.p95)
    yield "latency p99", seconds(figures.latency.p99)
    yield "wait for a model p95", seconds(figures.wait.p95)
    yield "turns ended done", f"{figures.done:,}"
    yield "ended otherwise", f"{figures.ended - figures.done:,}"
    yield "refused", f"{figures.all_refused:,}"


def _all_figures(figures: Summary) -> Rows:
    errors = sum(figures.model_errors.values())
    return [
        ["turns", ", ".join(f"{state} {count:,}" for state, count in figures.turns.items())],
        ["refused", kinds(figures.refused) or "0"],
        *([f"{name} {label}", seconds(value)] for name, label, value in _spreads(figures)),
        ["model calls", f"{figures.model_calls:,}"],
        ["model errors", f"{errors:,}" + (f" ({kinds(figures.model_errors)})" if errors else "")],
        ["tool calls", f"{figures.tool_calls:,}"],
        ["commits", f"{figures.commits:,}"],
        ["crashes", f"{figures.crashes:,}"],
        ["live conversations at most", f"{figures.most_live:,}"],
        ["virtual time", seconds(figures.virtual_s)],
        ["real time of one core", seconds(figures.real_s)],
        ["simulated turns/s", number(figures.speed)],
    ]


def _spreads(figures: Summary) -> Iterable[tuple[str, str, float]]:
    for name, spread in (("latency", figures.latency), ("wait for a model", figures.wait)):
        for label in ("mean", "p50", "p90", "p95", "p99", "max"):
            yield name, label, getattr(spread, label)


def _each(header: str, named: Sequence[tuple[str, Outcome]]) -> str:
    headers = [header, *_HEADERS, "violated"]
    rows = []
    for name, outcome in named[: 10 * MOST_RUNS]:
        broken = outcome.violation
        mark = f"guarantee {broken.guarantee}" if broken is not None else ""
        rows.append([*_cells(name, summary([outcome])), mark])
    left = len(named) - len(rows)
    return table(headers, rows, "Each run") + (f"<p>... and {counted(left, 'more run')}.</p>" if left else "")


def _values(swept: Swept) -> str:
    headers = [swept.key, *_HEADERS, ""]
    rows = []
    for place, (value, one) in enumerate(zip(swept.values, swept.summaries, strict=True)):
        mark = "knee" if swept.knee is not None and swept.knee.place == place else ""
        rows.append([*_cells(str(value), one), mark])
    return table(headers, rows, "Each value")


_HEADERS = ("turns/s", "p50, s", "p95, s", "p99, s", "done", "otherwise", "refused", "crashes")


def _cells(first: str, one: Summary) -> list[str]:
    times = [number(each) for each in (one.throughput, one.latency.p50, one.latency.p95, one.latency.p99)]
    counts = [one.done, one.ended - one.done, one.all_refused, one.crashes]
    return [first, *times, *(f"{count:,}" for count in counts)]


def _guarantees(outcomes: Sequence[Outcome], checked: bool) -> Iterable[str]:
    found = [(each.violation, each.seed) for each in outcomes if each.violation is not None]
    if not found:
        runs = "the run" if len(outcomes) == 1 else f"all {len(outcomes):,} runs"
        words = (
            f"Every guarantee that was checked held in {runs}." if checked else "Guarantees were not checked."
        )
        yield f'<p class="{"held" if checked else "unchecked"}">{words}</p>'
        return
    title = f"Violated in {len(found):,} of {counted(len(outcomes), 'run')}"
    yield f'<section class="violated" role="alert"><h2>{title}</h2>'
    for violation, seed in found[:MOST_RUNS]:
        yield from _violation(violation, seed)
    if len(found) > MOST_RUNS:
        yield f"<p>... and {len(found) - MOST_RUNS:,} more.</p>"
    yield "</section>"


def _violation(violation: Violation, seed: int) -> Iterable[str]:
    yield f"<p><strong>{escape(violated(violation, seed))}</strong></p>"
    promise = GUARANTEES.get(violation.guarantee)
    if promise:
        yield f"<p>Promised: {escape(promise)}.</p>"
    if violation.again:
        yield f"<p>To see it again:</p><pre>{escape(violation.again)}</pre>"
        for command in alone(violation):
            yield f"<p>With these acts alone:</p><pre>{escape(command)}</pre>"
    if violation.acts:
        rows = [
            [f"{act.at_s:.6g}", str(act.number), act.who, act_words(act)]
            for act in violation.acts[:MOST_ACTS]
        ]
        more = len(violation.acts) - len(rows)
        acts = table(["at, s", "act", "who", "what"], rows, "Acts that show it")
        if more:
            acts += f"<p>... and {more:,} more.</p>"
        yield details(f"{counted(len(violation.acts), 'act')} that show it", acts)
    if violation.last:
        yield details("The last lines of the trace", f"<pre>{escape(chr(10).join(violation.last))}</pre>")


def _settings(outcome: Outcome, command: str, swept: str) -> Iterable[str]:
    rows = [[name, value] for name, value in changed_settings(outcome.workload) if name != swept]
    parts = [f"<p>To see this again:</p><pre>{escape(command)}</pre>"] if command else []
    parts.append("<p>What the workload sets; everything else is as by default.</p>")
    parts.append(table(["setting", "value"], rows, "Settings of the workload"))
    yield section("Workload", parts)
