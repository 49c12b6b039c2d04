"""`palaver simulate` as a user runs it."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner, Result
from terminal import Child, children_without_monitor
from test_reports import BROKEN, outcome

from palaver.commands import palaver
from palaver.offline import inspect_database
from palaver.simulation import (
    Exponential,
    Fixed,
    Outcome,
    SimulationError,
    Standing,
    Workload,
    run_seeds,
    runs,
    simulate,
    worker,
)
from palaver.simulation.worker import Ended, Job, Violated

__all__ = ["children_without_monitor"]

command = importlib.import_module("palaver.commands.simulate")  # a name that the command itself has, too

SMALL = """
name = "small"

[senders]
count = 4
turns = 3

[provider]
first_token_s = {exponential = 1}
concurrency = 2
"""


@pytest.fixture(name="in_this_process")
def lived_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's runs need no process of their own, which takes most of a second."""

    def live(wanted: list[Job], **_options: object) -> Iterator[tuple[int, Outcome]]:
        for number, job in enumerate(wanted):
            ended = worker.answer(job, lambda _told: None)
            assert isinstance(ended, Ended), ended
            yield number, ended.outcome

    monkeypatch.setattr(command, "live", live)


@pytest.fixture(name="small")
def small_workload(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(palaver, ["simulate", *map(str, args)], prog_name="palaver")


@pytest.mark.usefixtures("in_this_process")
def test_a_run_is_reported_in_text_and_as_a_page(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run(small, "--seed", 3, "--html", page)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("small, seed 3\n")
    assert "guarantees: held in the run" in result.stdout
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("in_this_process")
def test_the_same_seed_gives_the_same_json_but_for_the_real_time(small: Path) -> None:
    first, again = (json.loads(run(small, "--seeds", "5..6", "--json").stdout) for _ in range(2))
    assert [one["seed"] for one in first["runs"]] == [5, 6]
    for found in (first, again):
        for figures in (found["together"], *found["runs"]):
            del figures["real_s"], figures["turns_per_real_s"]
    assert first == again


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_names_the_values_and_keeps_their_order(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    result = run(small, "--sweep", "provider.concurrency=4,1", "--html", page, "--json", "--no-check")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["sweep"]["key"] == "provider.concurrency"
    assert [point["value"] for point in found["sweep"]["points"]] == [1, 4]
    slow, quick = (point["together"]["latency_s"]["p50"] for point in found["sweep"]["points"])
    assert slow > quick
    assert "Throughput against provider.concurrency" in page.read_text()


LOUD = """
from gevent import monkey; monkey.patch_all()
from palaver.simulation import worker
real = worker.simulate
def loud(*args, **options):
    print("a word " * 10_000)
    return real(*args, **options)
worker.simulate = loud
worker.main()
"""


def test_seeds_are_lived_side_by_side_in_processes_whatever_these_print(
    small: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "_PROGRAM", LOUD)
    workload = Workload.from_toml(small)
    seen: list[Standing] = []
    outcomes = run_seeds(workload, [4, 2], jobs=2, check=False, progress=seen.append)
    assert [outcome.seed for outcome in outcomes] == [4, 2]
    assert outcomes[1] == simulate(workload, 2, check=False)
    assert (seen[-1].runs, seen[-1].planned, seen[-1].share, seen[-1].turns) == (2, 2, 1.0, 24)
    shares = [standing.share for standing in seen]
    assert shares == sorted(shares)
    out, err = capfd.readouterr()
    assert (out, err.count("a word ")) == ("", 20_000)


def test_a_swept_value_may_be_what_python_gives_the_field_or_what_a_file_writes(small: Path) -> None:
    values = [Fixed(3.0), {"exponential": 1}, "1m"]
    jobs = [job for _, [job] in runs.swept(Workload.from_toml(small), "senders.think_s", values, [0])]
    assert [job.workload.senders.think_s for job in jobs] == [Fixed(3.0), Exponential(1.0), Fixed(60)]


@pytest.mark.usefixtures("in_this_process")
def test_one_run_leaves_its_trace_and_its_database(small: Path, tmp_path: Path) -> None:
    trace, database = tmp_path / "trace.jsonl", tmp_path / "kept.db"
    result = run(small, "--trace", trace, "--database", database)
    assert result.exit_code == 0, result.output
    assert all(json.loads(line) for line in trace.read_text().splitlines())
    report = inspect_database(database)
    assert report.problems == ()
    assert report.turns >= 12  # and those that checked that all was well at the end


# -- what is refused, before anything runs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "5..3"], "the lower first"),
        (["--seeds", "1-3"], "'1-3' is no range of seeds such as 0..99"),
        (["--seeds", "0..99999999"], "1,000,000 seeds"),
        (["--seed", "1", "--seeds", "1..3"], "--seed and --seeds exclude each other"),
        (["--seed", "-1"], "--seed"),
        (["--sweep", "limits.model_calls"], "limits.model_calls=10,50,100"),
        (["--sweep", "limits.model_calls="], "has no value"),
        (["--sweep", "limits.model_calls=5,5"], "the same value twice"),
        (["--sweep", "limits.modelcalls=5"], "model_calls"),
        (["--sweep", "limits.model_calls=many"], "limits.model_calls"),
        (["--sweep", "senders=5"], "senders"),
        (["--seeds", "1..2", "--trace", "t.jsonl"], "--trace is for one run, and these are 2"),
        (["--sweep", "senders.count=5,6", "--database", "d.db"], "--database is for one run"),
        (["--acts", "1,x"], "no acts such as 3,17"),
        (["--acts", "1,2@3"], "no acts such as 3,17"),
        (["--html", "missing/report.html"], "missing"),
        (["--trace", "missing/trace.jsonl"], "missing"),
        (["--database", "small.toml"], "exists"),
        (["--database", "missing/d.db"], "missing"),
        (["-j", "0"], "-j"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_status_2_and_leaves_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(small.parent)
    result = run("small.toml", *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""
    assert [path.name for path in small.parent.iterdir()] == ["small.toml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[senders]\ncount = 'many'", "bad.toml:2: senders.count: must be"),
        ("[senders]\ncounts = 3", "bad.toml:2: senders.counts: there is no such key"),
        ("[senders", "bad.toml:1: "),
        ("[arrivals]\nkind = 'poisson'", "duration_s: is needed"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    result = run(path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = run(tmp_path / "none.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.toml" in result.stderr


# -- violations, and runs that fail ----------------------------------------------------------------


def lived(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome | SimulationError) -> list[Job]:
    """Let the command's runs come to this. The jobs will be in the list."""
    seen: list[Job] = []

    def live(wanted: list[Job], **_options: object) -> Iterator[tuple[int, Outcome]]:
        seen.extend(wanted)
        for number in range(len(wanted)):
            found = outcomes[number % len(outcomes)]
            if isinstance(found, SimulationError):
                raise found
            yield number, found

    monkeypatch.setattr(command, "live", live)
    return seen


def test_a_violation_is_status_1_and_its_command_names_the_file_and_the_value(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    lived(monkeypatch, outcome(7), outcome(8, violation=BROKEN))
    result = run(small, "--seeds", "7..8", "--html", page)
    assert result.exit_code == 1
    assert "Guarantee 7 did not hold on seed 8" in result.stdout
    assert f"to see it again: palaver simulate {small} --seed 8\n" in result.stdout
    assert f"palaver simulate {small} --seed 8" in page.read_text()
    swept = run(small, "--seed", 8, "--sweep", 'provider.over="wait","429"')
    assert f"palaver simulate {small} --seed 8 --sweep 'provider.over=\"429\"'\n" in swept.stdout
    as_json = run(small, "--seed", 8, "--sweep", "senders.count=1,2", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["violations"]) == (1, 1)


@pytest.mark.parametrize(
    ("given", "acts"),
    [("3,17", [3, 17]), ("4@1.0,9@2.5", {4: 1.0, 9: 2.5}), ("4@1e-06", {4: 1e-06}), (None, None)],
)
def test_acts_are_lived_alone_and_at_their_instants(
    small: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, acts: object
) -> None:
    seen = lived(monkeypatch, outcome(8))
    run(small, "--seed", 8, *(["--acts", given] if given else []))
    assert [job.acts for job in seen] == [acts]


@pytest.mark.parametrize("acts", [None, {4: 1.0}])
def test_what_shows_a_violation_is_made_small_unless_it_already_is(
    monkeypatch: pytest.MonkeyPatch, acts: dict[int, float] | None
) -> None:
    small = evolve(BROKEN, acts=BROKEN.acts[:1])
    monkeypatch.setattr(worker, "simulate", lambda *_args, **_options: outcome(8, violation=BROKEN))
    monkeypatch.setattr(worker, "shrink", lambda *_args, **_options: small)
    told: list[object] = []
    ended = worker.answer(Job(Workload(), 8, acts=acts), told.append)
    assert isinstance(ended, Ended)
    assert ended.outcome.violation == (small if acts is None else BROKEN)
    first = outcome(8, violation=BROKEN)
    assert told == ([Violated(first)] if acts is None else [])  # so that Ctrl-C does not lose it


def test_a_run_that_cannot_be_lived_is_one_line_and_status_1(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived(monkeypatch, SimulationError("seed 7: it never ends"))
    result = run(small, "--seeds", "7..8")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: seed 7: it never ends\n")


def test_a_process_that_is_killed_is_told_with_its_seed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    result = run(small, "--seed", 9)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: seed 9: its process ended by SIGKILL\n"


# -- at a terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_a_signal_ends_all_runs_and_ctrl_c_reports_those_that_had_ended(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, places = tmp_path / "quick.toml", tmp_path / "places"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    # The second value never comes to its end while a test waits.
    file.write_text(SMALL.replace("turns = 3", "turns = 1"))
    child = Child("simulate", file, "--sweep", "senders.turns=1,10000000", "-j", "2", "--no-check")
    try:
        child.expect("1 of 2 runs")
        if how == "ctrl-c":
            child.type("\x03")
        else:
            child.signal(signal.SIGTERM)
        status, rest = child.finish()
    finally:
        child.end()
    assert "Traceback" not in rest
    if how == "ctrl-c":
        assert status == 130
        assert "senders.turns  turns/s" in rest
        assert rest.endswith("1 of 2 runs had ended\r\n\r\ninterrupted\r\n")
    else:
        assert status == 143
    assert [*places.iterdir()] == []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            assert str(places).encode() not in environment.read_bytes(), environment
