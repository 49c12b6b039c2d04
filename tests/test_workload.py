"""Workloads: what a file may say, what is told of one that cannot be used, and how one key is replaced."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest
from attrs import evolve
from support import run_script

import palaver.simulation as simulation
from palaver import InvalidConfig, Limits
from palaver.simulation import (
    Arrivals,
    Disk,
    Empirical,
    Exponential,
    Faults,
    Fixed,
    LogNormal,
    Provider,
    Senders,
    Tools,
    Uniform,
    Workload,
)
from palaver.simulation.quantities import Quantity, seconds
from palaver.simulation.workload_file import PARTS, keys, swept
from palaver.toml.reading import BadConfigFile
from persistence.sources import seeded_random

EVERYTHING = """
name = "evening"
duration_s = "1h30m"
compact_threshold = 2000

[senders]
count = 500
think_s = {exponential = "1m"}
chars = {values = [20, 200, 2000]}
steer = 0.05
keyed = {uniform = [0, 0.5]}

[arrivals]
kind = "bursts"
rate = 2
burst_rate = 40
burst_s = "5m"
period_s = "1h"

[provider]
first_token_s = {lognormal = {median = 0.6, p95 = 2}}
tokens_per_s = 50
concurrency = 40
over = "429"
stall_s = {file = "stalls.txt"}

[tools.seconds]
exponential = 0.5

[limits]
model_calls = 40
passivate_after_s = "10m"

[disk]
commit_s = "2ms"

[faults]
crashes_at_s = [60, "1h"]
deaths_per_hour = {uniform = [0, 10]}
"""

MEANT = Workload(
    name="evening",
    duration_s=5400,
    compact_threshold=2000,
    senders=Senders(
        count=500,
        think_s=Exponential(60),
        chars=Empirical((20, 200, 2000)),
        steer=Fixed(0.05),
        keyed=Uniform(0, 0.5),
    ),
    arrivals=Arrivals(kind="bursts", rate=2, burst_rate=40, burst_s=300, period_s=3600),
    provider=Provider(
        first_token_s=LogNormal(0.6, 2),
        tokens_per_s=Fixed(50),
        concurrency=40,
        over="429",
        stall_s=Empirical((1.0, 2.5)),
    ),
    tools=Tools(seconds=Exponential(0.5)),
    limits=Limits(model_calls=40, passivate_after_s=600),
    disk=Disk(commit_s=Fixed(0.002)),
    faults=Faults(crashes_at_s=(60, 3600), deaths_per_hour=Uniform(0, 10)),
)


def test_a_file_says_what_python_says(tmp_path: Path) -> None:
    (tmp_path / "stalls.txt").write_text("# measured\n1.0\n\n2.5  # at night\n")
    (tmp_path / "evening.toml").write_text(EVERYTHING)
    assert Workload.from_toml(tmp_path / "evening.toml") == MEANT
    assert Workload.from_toml(str(tmp_path / "evening.toml")) == MEANT
    assert Workload.from_text("") == Workload()


def problems(text: str, folder: Path) -> list[str]:
    path = folder / "w.toml"
    with pytest.raises(BadConfigFile) as caught:
        Workload.from_text(dedent(text), str(path))
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


def test_everything_that_is_wrong_is_told_at_once_with_its_line_and_key(tmp_path: Path) -> None:
    text = """\
    duration_s = "soon"
    compact_threshold = 0
    colour = "red"
    [senders]
    count = 0
    think_s = {exponental = 2}
    steer = 1.5
    turn = 3
    [arrivals]
    kind = "poison"
    [provider]
    first_token_s = {lognormal = {median = 2}}
    tokens_out = {uniform = [5, 2]}
    limited = {exponential = 0.1}
    [provider.stall_s]
    file = "gone.txt"
    [limits]
    model_calls = -1
    [faults]
    crashes_at_s = ["never"]
    [disk]
    file = 1
    """
    assert problems(text, tmp_path) == [
        '1: duration_s: must be a number of seconds from 0 on, or a length of time as in "1h30m", not "soon"',
        '2: compact_threshold: must be a whole number from 1 on, or "never", not 0',
        "3: colour: there is no such key; known are: name, duration_s, sample_s, compact_threshold, shuffle, "
        "senders, arrivals, provider, tools, limits, disk, faults",
        "5: senders.count: must be a whole number from 1 on, not 0",
        "6: senders.think_s: must be a distribution; there is no 'exponental'; did you mean 'exponential'?",
        "7: senders.steer: must be a number from 0 to 1, or a distribution of them as in "
        "{uniform = [0, 0.2]}, not 1.5",
        "8: senders.turn: there is no such key; did you mean 'turns'?",
        '10: arrivals.kind: must be one of closed, poisson, bursts, diurnal, recorded, not "poison"',
        "12: provider.first_token_s: must be a distribution; of lognormal, median and p95 are needed, as in "
        '{median = 0.6, p95 = 2}, not {"median": 2}',
        "13: provider.tokens_out: must be a distribution; of uniform, high must be at least low, 5, not 2",
        "14: provider.limited: must be a number from 0 to 1, or a distribution of them as in "
        '{uniform = [0, 0.2]}, not "Exponential(mean=0.1)"',
        f"15: provider.stall_s: must be a distribution; of file, {tmp_path / 'gone.txt'} cannot be read: "
        "No such file or directory",
        "18: limits.model_calls: must be a whole number above 0, not -1",
        "20: faults.crashes_at_s: must be a list of instants, each a number of seconds from 0 on or as in "
        '"1h30m", not ["never"]',
        "22: disk.file: must be true or false, not 1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[senders]\nturns = 0", "1: duration_s: is needed: senders without a number of turns never end"),
        (
            '[arrivals]\nkind = "diurnal"\nburst_rate = 2',
            "1: duration_s: is needed: diurnal arrivals never end",
        ),
        (
            'duration_s = 60\n[arrivals]\nkind = "poisson"\nrate = 0',
            "4: arrivals.rate: must be above 0 for poisson arrivals",
        ),
        (
            'duration_s = 60\n[arrivals]\nkind = "bursts"\nburst_rate = 5\nburst_s = 20\nperiod_s = 10',
            "5: arrivals.burst_s: must be above 0 and at most period_s, 10",
        ),
        ('[arrivals]\nkind = "recorded"', "1: arrivals.file: is needed for recorded arrivals"),
        (
            "[provider]\nerrors = 0.6\ncuts = {uniform = [0.2, 0.6]}",
            "1: provider: errors, cuts can be 1.2 together: "
            "each time at most one of them comes, so 1 is the most",
        ),
        ("[senders\n", "1: this is no TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_keys_that_do_not_fit_together_are_told(text: str, line: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [line]


def test_a_file_of_numbers_is_read_to_the_line(tmp_path: Path) -> None:
    (tmp_path / "stalls.txt").write_text("1\n2 s\n")
    [line] = problems("[provider]\nstall_s = {file = 'stalls.txt'}", tmp_path)
    assert line.endswith('stalls.txt:2 must be one number, not "2 s"')
    with pytest.raises(BadConfigFile, match=r"none\.toml:1: cannot be read"):
        Workload.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Senders(count=0), "count must be a whole number from 1 on, not 0"),
        (lambda: Senders(steer=1.5), "steer must be a number from 0 to 1"),
        (lambda: Senders(think_s=-1), "think_s must be a number from 0 on"),
        (
            lambda: Senders(think_s="2"),  # type: ignore[arg-type]
            'think_s must be .* not "2"',
        ),
        (lambda: Provider(over="later"), "over must be one of wait, 429"),
        (
            lambda: Faults(crashes_at_s=[1.0]),  # type: ignore[arg-type]
            "crashes_at_s must be a list of instants",
        ),
        (lambda: Workload(duration_s=float("nan")), "duration_s must be a number of seconds"),
        (lambda: LogNormal(2, 1), "p95 must be a number that is at least the median, 2, not 1"),
        (lambda: LogNormal(0, 1), "median must be a number above 0, not 0"),
        (lambda: Exponential(-1), "mean must be a number from 0 on, not -1"),
        (lambda: Empirical(()), "values must be at least one number"),
        (lambda: Empirical((1, -1)), "values must be numbers from 0 on, not -1"),
        (lambda: Uniform(2, 1), "high must be at least low, 2, not 1"),
    ],
)
def test_python_code_is_told_which_field_and_what_would_fit(make: Any, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        make()


def test_a_number_stands_for_what_is_always_that_number() -> None:
    assert Senders(think_s=2.5).think_s == Fixed(2.5)
    assert Faults(torn=Uniform(0, 1)).torn == Uniform(0, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172_800), ("1.5m", 90)],
)
def test_lengths_of_time_are_seconds(text: str, found: float) -> None:
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "h", "1 h", "-1h", "1hh", "90"])
def test_what_is_no_length_of_time_stays_as_it_is(text: str) -> None:
    assert seconds(text) == text


# -- one key ----------------------------------------------------------------------------------------


def test_one_key_is_replaced_as_a_file_or_as_python_would_write_it() -> None:
    base = Workload()
    assert base.with_value("limits.model_calls", 50) == evolve(base, limits=Limits(model_calls=50))
    assert base.with_value("duration_s", "5m").duration_s == 300
    assert base.with_value("compact_threshold", "never").compact_threshold is None
    slow = base.with_value("provider.first_token_s", {"exponential": 2})
    assert slow == base.with_value("provider.first_token_s", Exponential(2))
    both = base.with_values({"arrivals.kind": "poisson", "duration_s": 60, "arrivals.rate": 2.0})
    assert both.arrivals == Arrivals(kind="poisson", rate=2.0)
    assert base == Workload()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "limits.modelcalls",
            1,
            "a workload has no key limits.modelcalls; did you mean 'limits.model_calls'",
        ),
        ("limits", {}, "a workload has no key limits; "),
        ("senders.count", 0, "senders.count must be a whole number from 1 on, not 0"),
        ("limits.model_calls", "many", "limits.model_calls must be a whole number above 0, not 'many'"),
        ("provider.cuts", {"uniform": [0]}, "provider.cuts must be a distribution; of uniform"),
        ("arrivals.kind", "poisson", "duration_s is needed"),
    ],
)
def test_a_key_that_cannot_be_replaced_is_named(key: str, value: object, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        Workload().with_value(key, value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("limits.model_calls=10,50,100", ("limits.model_calls", [10, 50, 100])),
        ("provider.over=wait,429", ("provider.over", ["wait", "429"])),
        ("senders.think_s = 30s, 5m", ("senders.think_s", ["30s", "5m"])),
        ("senders.think_s={exponential=1},2.5", ("senders.think_s", [{"exponential": 1}, 2.5])),
    ],
)
def test_a_sweep_is_a_key_and_its_values(text: str, found: tuple[str, list[object]]) -> None:
    assert swept(text) == found
    assert [Workload().with_value(found[0], value) for value in found[1]]


@pytest.mark.parametrize(
    "text", ["limits.model_calls", "limits.model_calls=", "limit.x=1", "tools.seconds={,"]
)
def test_a_sweep_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig):
        swept(text)


# -- what the language is made of -------------------------------------------------------------------


def test_every_key_has_a_unit_and_a_default_that_fits() -> None:
    for key, attribute in keys().items():
        if not key.startswith("limits."):
            assert isinstance(attribute.validator, Quantity), key
            attribute.validator(None, attribute, attribute.default)
    assert {each.name for each in attrs.fields(Workload)} == {*PARTS, *(k for k in keys() if "." not in k)}


@pytest.mark.parametrize(
    "each",
    [
        Fixed(3.0),
        Uniform(1, 5),
        Exponential(2.0),
        LogNormal(1.0, 3.0),
        LogNormal(2.0, 2.0),
        Empirical((1, 1, 10)),
        Exponential(0),
    ],
)
def test_draws_have_the_mean_and_the_bounds_that_are_told(each: Any) -> None:
    rng = seeded_random("draws")
    draws = [each.draw(rng) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(each.mean, rel=0.03)
    assert each.least <= min(draws)
    assert max(draws) <= each.most


def test_the_percentile_of_a_log_normal_is_the_one_that_is_told() -> None:
    rng = seeded_random("percentile")
    draws = sorted(LogNormal(0.6, 2.0).draw(rng) for _ in range(20_000))
    assert draws[10_000] == pytest.approx(0.6, rel=0.03)
    assert draws[19_000] == pytest.approx(2.0, rel=0.03)


def test_importing_the_names_loads_nothing_that_must_come_after_patching() -> None:
    ran = run_script(
        "import sys, palaver.simulation as simulation\n"
        "print([name for name in ('gevent', 'pykka', 'threading') if name in sys.modules])\n"
        "print([getattr(simulation, name) and 0 for name in simulation.__all__][:1])"
    )
    assert ran.stdout.split("\n")[:2] == ["[]", "[0]"], ran.stderr


def test_the_public_names_are_their_homes_names() -> None:
    homes = simulation._HOMES  # noqa: SLF001 - the table itself is checked
    assert sorted(name for names in homes.values() for name in names) == simulation.__all__
    # Once a module is imported, it is its package's attribute: a name of its own would be hidden by it.
    assert {*homes} & {*simulation.__all__} == set()
