"""What reports say of simulated runs, in words, figures, JSON and plots."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from attrs import evolve
from support import ROOT

from palaver import Limits
from palaver.simulation import (
    Act,
    Arrivals,
    Fixed,
    Outcome,
    Point,
    Provider,
    Sample,
    Sweep,
    Violation,
    Workload,
    report_html,
    report_json,
    report_text,
)
from palaver.simulation.reports.curves import over_time
from palaver.simulation.reports.guarantees import GUARANTEES
from palaver.simulation.reports.knee import knee
from palaver.simulation.reports.numbers import number, percent, seconds
from palaver.simulation.reports.scales import Axis
from palaver.simulation.reports.settings import changed_settings
from palaver.simulation.reports.summary import summary
from palaver.simulation.reports.svg import Chart, Line, draw
from palaver.simulation.reports.words import in_short

BROKEN = Violation(
    guarantee=7,
    words="the steer <b>9</b> was applied twice",
    at_s=12.5,
    last=('{"at": 12.5}',),
    acts=(Act(4, "s1", "send", 1.0, {"chars": 10}), Act(9, "s1", "steer", 2.5)),
    again="palaver simulate rush.toml --seed 3",
)


def outcome(seed: int = 0, *, rate: float = 2.0, latency: float = 1.0, **changes: Any) -> Outcome:
    """A made-up run of 100 s: so many turns a second, each of some latency."""
    done = round(100 * rate)
    samples = [Sample(float(s), round(s * rate), s % 3, 4, 5, s % 2, 8, 1_000) for s in range(0, 101, 5)]
    made = Outcome(
        workload=Workload(name="rush", provider=Provider(concurrency=5)),
        seed=seed,
        virtual_s=100.0,
        real_s=0.5,
        turns={"done": done, "failed": 3, "cancelled": 0, "closed": 1},
        refused={"MailboxFull": 2},
        latency_s=array("d", [latency * (n + 1) / done for n in range(done)]),
        wait_s=array("d", [latency * (n + 1) / done / 4 for n in range(done)]),
        samples=samples,
        model_calls=done + 5,
        model_errors={"cut": 1, "429": 4},
        tool_calls=7,
        commits=99,
        crashes=1,
        most_live=8,
    )
    return evolve(made, **changes)


def made_sweep(rates: dict[Any, float], latency: Callable[[Any], float] = lambda _value: 1.0) -> Sweep:
    points = [Point(v, [outcome(0, rate=rate, latency=latency(v))]) for v, rate in rates.items()]
    return Sweep("limits.model_calls", points)


SATURATING = {10: 2.0, 20: 4.0, 40: 8.0, 60: 8.1, 80: 8.2, 100: 8.2}

# -- figures ---------------------------------------------------------------------------------------


def test_figures_of_several_runs_are_sums_and_the_percentiles_of_all_turns() -> None:
    together = summary([outcome(0, rate=1.0, latency=1.0), outcome(1, rate=3.0, latency=100.0)])
    assert together.turns == {"done": 400, "failed": 6, "cancelled": 0, "closed": 2}
    assert together.throughput == 2.0
    assert together.refused == {"MailboxFull": 4}
    assert together.model_errors == {"429": 8, "cut": 2}
    everything = sorted([(n + 1) / 100 for n in range(100)] + [(n + 1) / 3 for n in range(300)])
    assert together.latency.p50 == pytest.approx(everything[199])
    assert together.latency.max == 100.0
    assert together.speed == 408


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (7, "7"),
        (46.003, "46.0"),
        (6.8, "6.80"),
        (0.0123, "0.0123"),
        (12400.4, "12,400"),
        (3e-7, "3e-07"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 s"), (0.012, "12 ms"), (3.21, "3.21 s"), (400, "6 min 40 s"), (10_000, "2 h 46 min")],
)
def test_seconds_have_a_unit_that_suits_them(value: float, words: str) -> None:
    assert seconds(value) == words


def test_a_small_share_is_not_nothing() -> None:
    assert [percent(share) for share in (0, 0.004, 0.62)] == ["0 %", "0.4 %", "62 %"]


# -- the knee --------------------------------------------------------------------------------------


def test_the_knee_of_the_papers_example_is_found() -> None:
    """Its figure 2: y = -1 / (x + 0.1) + 5, with the knee at 0.22, the third of these ten points."""
    xs = [n / 9 for n in range(10)]
    assert knee(xs, [-1 / (x + 0.1) + 5 for x in xs]) == 2


@pytest.mark.parametrize(
    ("ys", "place"),
    [
        ([2, 4, 8, 8.1, 8.2], 2),  # rises, then is level
        ([90, 45, 10, 9, 9], 2),  # falls, then is level
        ([1, 1, 1.1, 5, 10], 2),  # is level, then rises
        ([10, 10, 9.9, 5, 1], 2),  # is level, then falls
        ([1, 2, 3, 4, 5], None),  # straight
        ([5, 5.1, 5, 5.1, 5.2], None),  # flat, but for noise
        ([0, 0, 0, 0, 0], None),
    ],
)
def test_a_knee_is_where_a_curve_bends(ys: list[float], place: int | None) -> None:
    assert knee([1, 2, 3, 4, 5], ys) == place


def test_two_points_have_no_knee() -> None:
    assert knee([1, 2], [1, 9]) is None
    assert knee([], []) is None


def test_a_sweep_names_the_knee_of_its_throughput_and_what_it_costs_there() -> None:
    text = report_text(made_sweep(SATURATING, lambda value: 200 / value))
    assert re.search(r"^40 .*<- knee$", text, re.M)
    assert "The knee of throughput is at limits.model_calls = 40: there it is 8 turns/s, 98 % of" in text
    assert "with latency p50 2.50 s and p95 4.75 s" in text
    assert "Satopaa" in text


def test_where_throughput_is_level_the_knee_is_that_of_latency() -> None:
    text = report_text(made_sweep(dict.fromkeys(SATURATING, 3.0), lambda v: 1.0 if v <= 60 else v / 10))
    assert "Throughput hardly depends on limits.model_calls" in text
    assert "The knee of latency p95 is at limits.model_calls = 60" in text


@pytest.mark.parametrize(
    ("rates", "why"),
    [
        ({10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}, "throughput still grows at 40; higher values may show it"),
        ({10: 1.0, 20: 2.0}, "it takes three values or more"),
        ({"wait": 1.0, "429": 2.0, "x": 3.0}, "the values are no numbers"),
        ({10: 1.0, 20: 1.0, 30: 1.0}, "neither throughput nor latency p95 changes by more than a tenth"),
    ],
)
def test_where_there_is_no_knee_the_reason_is_told(rates: dict[Any, float], why: str) -> None:
    sweep = made_sweep(rates)
    assert f"No knee: {why}" in report_text(sweep)
    assert json.loads(report_json(sweep))["sweep"]["knee"] is None


def test_a_sweep_is_shown_in_ascending_order_whatever_order_was_asked_for() -> None:
    sweep = made_sweep({100: 8.2, 10: 2.0, 40: 8.0})
    points = json.loads(report_json(sweep))["sweep"]["points"]
    assert [point["value"] for point in points] == [10, 40, 100]
    assert [point["together"]["throughput"] for point in points] == [2.0, 8.0, 8.2]


# -- words -----------------------------------------------------------------------------------------


def test_the_bound_that_calls_wait_for_is_named() -> None:
    busy = outcome(workload=Workload(limits=Limits(model_calls=5), provider=Provider(concurrency=9)))
    assert "limits.model_calls = 5 was used up in 100 % of them" in " ".join(in_short([busy]))
    idle = [evolve(sample, model_waiting=0) for sample in outcome().samples]
    assert "No call of the model was seen waiting" in " ".join(in_short([outcome(samples=idle)]))


def test_work_that_piles_up_is_told_of_since_latency_then_says_how_long_the_run_was() -> None:
    open_workload = Workload(duration_s=100.0, arrivals=Arrivals(kind="poisson", rate=9.0))
    piling = [evolve(sample, queued=round(sample.at_s) * 3) for sample in outcome().samples]
    assert "Work piled up" in " ".join(in_short([outcome(workload=open_workload, samples=piling)]))
    assert "Work piled up" not in " ".join(in_short([outcome(workload=open_workload)]))
    assert "Work piled up" not in " ".join(in_short([outcome(samples=piling)]))  # senders wait for results


def test_a_sweep_says_at_which_values_work_piled_up() -> None:
    workload = Workload(duration_s=100.0, arrivals=Arrivals(kind="poisson", rate=9.0))
    piling = [evolve(sample, queued=round(sample.at_s) * 3) for sample in outcome().samples]
    runs = [(1, outcome()), (2, outcome(workload=workload, samples=piling)), (3, outcome())]
    text = report_text(Sweep("arrivals.rate", [Point(value, [run]) for value, run in runs]))
    assert "At 2 work piled up for as long as messages came" in text


def test_settings_that_differ_from_the_default_are_listed_with_dots() -> None:
    workload = Workload(name="rush", provider=Provider(first_token_s=Fixed(2.0), concurrency=5))
    assert changed_settings(workload) == [
        ["name", "rush"],
        ["provider.first_token_s", "2"],
        ["provider.concurrency", "5"],
    ]


# -- text ------------------------------------------------------------------------------------------


def test_the_text_of_a_run_has_all_its_figures() -> None:
    text = report_text([outcome(rate=2.0, latency=4.0)])
    for line in (
        r"turns  done  failed  cancelled  closed  refused\n +200 +3 +0 +1 +2",
        r"seconds +mean +p50 +p90 +p95 +p99 +max\nlatency +2.01 +2 +3.60 +3.80 +3.96 +4",
        r"wait for a model +0.502 +0.500 +0.900 +0.950 +0.990 +1",
        r"throughput +2 turns/s",
        r"model errors +5 \(429 4, cut 1\)",
        r"refused +2 \(MailboxFull 2\)",
        r"tool calls +7\ncommits +99\ncrashes +1",
        r"virtual time +100 s",
        r"simulated turns/s +408",
        r"guarantees: held in the run",
    ):
        assert re.search(line, text), line


def test_a_report_does_not_say_that_guarantees_held_which_nobody_checked() -> None:
    assert "not checked" in report_text([outcome()], checked=False)
    assert "not checked" in report_html([outcome()], checked=False)
    assert "held" not in report_text([outcome()], checked=False)


def test_a_violation_is_told_with_number_words_seed_instant_acts_and_command() -> None:
    text = report_text([outcome(2), outcome(3, violation=BROKEN)])
    assert "VIOLATED in 1 of 2 runs" in text
    assert "Guarantee 7 did not hold on seed 3, 12.5 s of virtual time after the run began" in text
    assert f"promised: {GUARANTEES[7]}" in text
    assert re.search(r"2 acts that show it:\n +1 s +#4 +s1 +send chars=10\n +2.5 s +#9 +s1 +steer\n", text)
    assert "to see it again: palaver simulate rush.toml --seed 3\n" in text
    assert "alone: palaver simulate rush.toml --seed 3 --acts 4@1.0,9@2.5\n" in text
    assert '{"at": 12.5}' in text


def test_the_guarantees_have_the_numbers_of_the_document() -> None:
    document = (ROOT / "docs" / "reliability.md").read_text()
    promised = document.partition("## What is promised")[2].partition("\n## ")[0]
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", promised, re.M)}
    assert told <= {*GUARANTEES}
    assert {*GUARANTEES} - told <= {19}  # liveness, which the document tells of elsewhere


def test_no_outcome_is_no_error() -> None:
    assert report_text([]) == "no run has ended\n"
    assert "No run has ended" in report_html([])
    assert json.loads(report_json([], planned=3)) == {
        **json.loads(report_json([], planned=3)),
        "planned": 3,
        "together": None,
        "runs": [],
    }


# -- JSON ------------------------------------------------------------------------------------------


def test_json_has_the_keys_that_the_document_lists() -> None:
    document = (ROOT / "docs" / "simulation.md").read_text()
    found = json.loads(report_json([outcome(3, violation=BROKEN)]))
    [run] = found["runs"]
    swept = json.loads(report_json(made_sweep(SATURATING)))["sweep"]
    keys = {*found, *run, *run["latency_s"], *run["samples"], *run["violation"], *swept, *swept["points"][0]}
    assert {key for key in keys if f"`{key}`" not in document} == set()
    assert run["violation"]["acts"][0] == {
        "number": 4,
        "who": "s1",
        "what": "send",
        "at_s": 1.0,
        "facts": {"chars": 10},
    }
    assert (found["format"], found["violations"], found["planned"], found["checked"]) == (1, 1, 1, True)


# -- the page --------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """What a page is made of."""

    VOID = {"meta", "link", "img", "br", "line", "circle", "path"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


PAGES = {
    "one run": [outcome()],
    "seeds": [outcome(seed, rate=1.0 + seed) for seed in range(4)],
    "many seeds": [outcome(seed, rate=1.0 + seed % 7, samples=()) for seed in range(60)],
    "a violation": [outcome(3, violation=BROKEN)],
    "nothing done": [outcome(turns={"failed": 3}, latency_s=array("d"), wait_s=array("d"), samples=())],
    "a sweep": made_sweep(SATURATING),
    "a sweep over words": made_sweep({"wait": 1.0, "429": 2.0}),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_from_elsewhere_and_every_plot_has_words_and_a_table(name: str) -> None:
    page = report_html(PAGES[name], command="palaver simulate x.toml")
    elements = _Elements(page).found
    tags = [tag for tag, _ in elements]
    assert not {"script", "link", "img", "iframe", "object"} & {*tags}
    assert not re.search(r"https?:|//|url\(|@import", page)
    assert "nan" not in page
    figures = re.findall(r"<figure>.*?</figure>", page, re.S)
    assert len(figures) == tags.count("figure")
    for figure in figures:
        caption = figure.partition("</figcaption>")[0]
        assert re.search(r"<p>.*\d.*</p>", caption), "words with numbers"
        assert figure.count('role="img"') == 1
        assert "<table>" in figure
        assert figure.count("<tr>") >= 2


def test_colours_follow_the_readers_choice_of_light_or_dark() -> None:
    page = report_html([outcome()])
    assert "@media (prefers-color-scheme:dark)" in page
    assert 'name="viewport"' in page


def test_what_a_workload_is_called_and_a_violation_says_cannot_become_markup() -> None:
    evil = Workload(name="<script>alert(1)</script>")
    page = report_html([outcome(workload=evil, violation=BROKEN)])
    assert "<script" not in page
    assert "<b>9</b>" not in page
    assert "&lt;b&gt;9&lt;/b&gt;" in page


def test_the_page_of_several_seeds_compares_them() -> None:
    page = report_html([outcome(seed, rate=1.0 + seed) for seed in range(4)])
    assert "Throughput of each seed" in page
    assert "turns ended done: from 1 (seed 0) to 4 (seed 3)" in page
    assert "<h3>Throughput of each seed</h3>" not in report_html([outcome()])


def test_curves_of_several_runs_end_when_fewer_than_half_of_these_go_on() -> None:
    long, short = outcome(), [evolve(sample, at_s=sample.at_s / 4) for sample in outcome().samples]
    curve = over_time(
        [long, outcome(1, samples=short), outcome(2, samples=short)], lambda sample: sample.live
    )
    assert curve is not None
    assert curve.runs == 3
    assert 24.0 < curve.at_s[-1] <= 25.0
    assert "the median of 3 runs" in report_html([long, outcome(1), outcome(2)])


def test_the_page_of_a_sweep_has_a_line_of_what_waits_for_each_of_its_values() -> None:
    page = report_html(made_sweep(SATURATING))
    [figure] = re.findall(r"<figure>(?:(?!</figure>).)*What waits over virtual time.*?</figure>", page, re.S)
    assert len(re.findall(r'<path class="l\d" d="M58 ', figure)) == len(SATURATING)
    assert "Most messages and calls waited at 10: 3 after 5 s" in figure


def test_the_page_of_a_sweep_marks_the_knee_in_its_plots() -> None:
    page = report_html(made_sweep(SATURATING))
    assert page.count(">knee: 40</text>") == 2


# -- drawings --------------------------------------------------------------------------------------


def drawn(*lines: Line, x: Axis | None = None, y: Axis | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(draw(Chart("t", x or Axis("x"), y or Axis("y"), lines)))


def labels(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


def test_a_line_runs_through_its_points_with_more_being_higher() -> None:
    svg = drawn(Line("a", [(0, 0), (5, 10), (10, 5)]))
    [path] = svg.iter("path")
    points = [tuple(map(float, each.split())) for each in path.attrib["d"][1:].split(" L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] < points[2][1] < points[0][1]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0])


def test_percentiles_are_drawn_by_their_nines() -> None:
    svg = drawn(Line("a", [(0, 0), (90, 1), (99, 2), (99.9, 3)]), x=Axis("p", "nines"))
    [path] = svg.iter("path")
    xs = [float(each.split()[0]) for each in path.attrib["d"][1:].split(" L")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert xs[3] - xs[2] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert {"p90", "p99", "p99.9"} <= {*labels(svg)}


def test_ticks_are_round_and_labels_do_not_cover_each_other() -> None:
    svg = drawn(Line("a", [(0, 0), (97, 0.037)]))
    assert {"0", "20", "40", "60", "80", "100", "0.01", "0.02"} <= {*labels(svg)}
    crowded = drawn(
        Line("a", [(n, 1) for n in range(100)]), x=Axis("x", ticks=[float(n) for n in range(100)])
    )
    assert len(labels(crowded)) < 40


def test_one_point_and_no_point_can_be_drawn() -> None:
    assert len([*drawn(Line("a", [(3, 3)])).iter("circle")]) == 1
    assert [*drawn(Line("a", [])).iter("path")] == []


def test_a_logarithmic_axis_has_round_ticks_that_cover_its_values() -> None:
    wide = drawn(Line("a", [(0, 3), (1, 700)]), y=Axis("y", "log"))
    assert {"1", "10", "100", "1,000"} <= {*labels(wide)}
    narrow = drawn(Line("a", [(0, 3), (1, 9)]), y=Axis("y", "log"))
    assert {"2", "5", "10"} <= {*labels(narrow)}
