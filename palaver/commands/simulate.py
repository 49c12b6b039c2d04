"""`palaver simulate`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from attrs import define, evolve, field, frozen

from actors.errors import InvalidConfig
from palaver.commands.base import interruptible
from palaver.commands.output import counted, printable
from palaver.commands.progress import share_done
from palaver.simulation.outcome import Outcome
from palaver.simulation.reports import report_html, report_json, report_text
from palaver.simulation.runs import Point, Standing, Sweep, live, swept
from palaver.simulation.values import written, written_values
from palaver.simulation.worker import Job
from palaver.simulation.workload import Workload
from palaver.toml.reading import BadConfigFile

MOST_SEEDS = 1_000_000
_ACT = re.compile(r"(\d{1,12})(?:@(\d{1,12}(?:\.\d{1,20})?(?:e-\d{1,3})?))?")
_SEEDS = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?")


class _Seeds(click.ParamType[range]):
    """ "3" or "0..99", both ends included."""

    name = "A..B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        found = _SEEDS.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no range of seeds such as 0..99", param, ctx)
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + MOST_SEEDS:
            self.fail(f"{value!r} must name 1 to {MOST_SEEDS:,} seeds, the lower first", param, ctx)
        return range(first, last + 1)


class _Swept(click.ParamType["_Setting"]):
    """ "limits.model_calls=10,50,100"."""

    name = "KEY=VALUE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Setting:
        key, equals, values = value.partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} is no setting with values such as limits.model_calls=10,50,100", param, ctx)
        found = written_values(values)
        if not found:
            self.fail(f"{key.strip()} has no value after the '='", param, ctx)
        if len({*map(repr, found)}) < len(found):
            self.fail(f"{key.strip()} has the same value twice", param, ctx)
        return _Setting(key.strip(), tuple(found))


class _Acts(click.ParamType[Mapping[int, float] | Sequence[int]]):
    """ "3,17,20", or each with the virtual second at which it begins: "3@1.5,17@2.25"."""

    name = "N[@S],..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Mapping[int, float] | Sequence[int]:
        parts = [_ACT.fullmatch(part.strip()) for part in value.split(",")]
        found = [(int(part[1]), part[2]) for part in parts if part is not None]
        timed = {number: float(at_s) for number, at_s in found if at_s is not None}
        if len(found) < len(parts) or (timed and len(timed) < len(found)):
            self.fail(f"{value!r} are no acts such as 3,17 or 3@1.5,17@2.25", param, ctx)
        return timed or [number for number, _ in found]


@frozen
class _Setting:
    key: str
    values: tuple[Any, ...]


@define
class _Runs:
    """What was asked for, and what has come of it."""

    file: str
    workload: Workload
    setting: _Setting | None
    jobs: list[Job]
    places: list[int]  # of each job's value, among the setting's
    found: dict[int, Outcome] = field(factory=dict)

    @property
    def results(self) -> list[Outcome] | Sweep:
        """What has come so far, in the order of the jobs."""
        if self.setting is None:
            return [self.found[number] for number in sorted(self.found)]
        points = [
            Point(value, [self.found[n] for n in sorted(self.found) if self.places[n] == place])
            for place, value in enumerate(self.setting.values)
        ]
        return Sweep(self.setting.key, [point for point in points if point.outcomes])

    def note(self, number: int, outcome: Outcome) -> None:
        """Keep an outcome; the command that shows its violation again names the file as it was given here."""
        if outcome.violation is not None:
            words = ["palaver", "simulate", self.file, "--seed", str(outcome.seed)]
            if self.setting is not None:
                value = written(self.setting.values[self.places[number]])
                words += ["--sweep", f"{self.setting.key}={value}"]
            again = " ".join(map(shlex.quote, words))
            outcome = evolve(outcome, violation=evolve(outcome.violation, again=again))
        self.found[number] = outcome


@click.command()
@click.argument("file", metavar="WORKLOAD.toml", type=click.Path(dir_okay=False))
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="What everything is drawn from.  [default: 0]"
)
@click.option("--seeds", type=_Seeds(), help="A run for each seed from A to B.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs side by side, each in a process of its own.",
)
@click.option("--sweep", "setting", type=_Swept(), help="A run for each value of a setting.")
@click.option(
    "--check/--no-check", default=True, help="Whether the guarantees are checked.  [default: check]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the report as a page with plots, too.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all that happens in the one run, as lines of JSON.",
)
@click.option(
    "--database",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the one run's database in this file, which must not exist.",
)
@click.option("--acts", type=_Acts(), help="Live only these acts of the plan, as a violation tells them.")
def simulate(
    file: str,
    seed: int | None,
    seeds: range | None,
    jobs: int,
    setting: _Setting | None,
    check: bool,
    as_json: bool,
    html: Path | None,
    trace: Path | None,
    database: Path | None,
    acts: Mapping[int, float] | Sequence[int] | None,
) -> None:
    """Live a workload on virtual time, and report what it was like.

    The whole runtime runs under the traffic, the provider and the faults that WORKLOAD.toml describes, from a
    seed: the same seed gives the same run. Guarantees are checked on the way; exit status 1 if one is
    violated, with the events that show it and the command that shows it again.

    \b
    palaver simulate rush.toml --seed 7
    palaver simulate rush.toml --seeds 0..99 -j 2 --html report.html
    palaver simulate rush.toml --sweep limits.model_calls=10,50,100 --html report.html
    """
    if seed is not None and seeds is not None:
        raise click.UsageError("--seed and --seeds exclude each other.")
    wanted = seeds if seeds is not None else [seed or 0]
    runs = _planned(file, wanted, setting, check)
    if len(runs.jobs) > 1:
        for name, given in (("--trace", trace), ("--database", database), ("--acts", acts)):
            if given is not None:
                raise click.UsageError(f"{name} is for one run, and these are {len(runs.jobs):,}.")
    if database is not None and database.exists():
        raise click.UsageError(f"{str(database)!r} exists; --database makes a new file.")
    runs.jobs = [evolve(job, trace=trace, database=database, acts=acts) for job in runs.jobs]
    for path in (html, trace, database):
        if path is not None:
            _check_writable(path)
    try:
        _live(runs, jobs)
    except KeyboardInterrupt:
        _report(runs, as_json, html, check)
        click.echo(f"{len(runs.found):,} of {counted(len(runs.jobs), 'run')} had ended", err=True)
        raise
    _report(runs, as_json, html, check)
    sys.exit(1 if any(each.violation is not None for each in runs.found.values()) else 0)


def _planned(file: str, seeds: Sequence[int], setting: _Setting | None, check: bool) -> _Runs:
    try:
        workload = Workload.from_toml(file)
        if setting is None:
            jobs = [Job(workload, seed, check) for seed in seeds]
            return _Runs(file, workload, None, jobs, [0] * len(jobs))
        points = swept(workload, setting.key, setting.values, seeds, check, os.path.dirname(file))
    except BadConfigFile as error:
        _refuse(error.problems)
    except InvalidConfig as error:
        _refuse([error])
    places = [place for place, (_, jobs) in enumerate(points) for _ in jobs]
    return _Runs(file, workload, setting, [job for _, jobs in points for job in jobs], places)


def _refuse(problems: Sequence[object]) -> NoReturn:
    for problem in problems:
        click.echo(printable(f"Error: {problem}"), err=True)
    sys.exit(2)


def _check_writable(path: Path) -> None:
    """Say before the work that a file cannot be written, rather than after it."""
    if not path.parent.is_dir():
        raise click.UsageError(f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.UsageError(f"{str(path)!r} cannot be written: permission denied.")


def _live(runs: _Runs, jobs: int) -> None:
    with interruptible(), share_done("simulating") as show:

        def watch(standing: Standing) -> None:
            show(standing.share, _words(standing))

        for number, outcome in live(runs.jobs, jobs=jobs, progress=watch):
            runs.note(number, outcome)


def _words(standing: Standing) -> str:
    words = counted(standing.turns, "turn")
    if standing.planned > 1:
        words = f"{standing.runs:,} of {standing.planned:,} runs, {words}"
    if standing.shrinking:
        words += f", making {counted(standing.shrinking, 'violation')} small ({standing.shrunk_by:,} runs)"
    return words


def _report(runs: _Runs, as_json: bool, html: Path | None, check: bool) -> None:
    results = runs.results
    if as_json:
        click.echo(report_json(results, checked=check, planned=len(runs.jobs)), nl=False)
    elif runs.found:
        click.echo(printable(report_text(results, checked=check)), nl=False)
    if html is not None and runs.found:  # last: the report has been told, whatever becomes of the file
        html.write_text(report_html(results, checked=check, command=_command(runs)), encoding="utf-8")
        if not as_json:
            click.echo(f"\nthe page: {html}")


def _command(runs: _Runs) -> str:
    seeds = [job.seed for job in runs.jobs]
    which = f"--seed {seeds[0]}" if seeds[0] == seeds[-1] else f"--seeds {seeds[0]}..{seeds[-1]}"
    words = f"palaver simulate {shlex.quote(runs.file)} {which}"
    if runs.setting is None:
        return words
    setting = f"{runs.setting.key}={','.join(map(written, runs.setting.values))}"
    return f"{words} --sweep {shlex.quote(setting)}"
