"""The command line of the planted bugs: which to run, and the table of what became of them."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from planted.bugs import QUICK, Bug, all_bugs, named, planted
from planted.runner import Outcome, Ran, run_all

COLUMNS = ("#", "bug", "G", "caught by", "s", "")


@click.command()
@click.argument("numbers", nargs=-1, type=int)
@click.option("--quick", is_flag=True, help=f"The first {QUICK}, which the test command plants.")
@click.option("-j", "jobs", default=2, show_default=True, help="Bugs side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table into this file, too.")
def main(numbers: tuple[int, ...], quick: bool, jobs: int, as_json: bool, markdown: Path | None) -> None:
    """Plant bugs in copies of the code and see that the tests and checks notice them: all, or those with
    these NUMBERS. The exit status is 1 when one is missed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bugs = chosen(numbers, quick)
    for bug in bugs:
        planted(bug)  # says at once which of them does not apply any more
    began = time.monotonic()
    try:
        outcomes, unsound = run_all(bugs, jobs, _Progress(len(bugs)))
    except KeyboardInterrupt:
        click.echo("given up; nothing is left of it", err=True)
        sys.exit(130)
    seconds = time.monotonic() - began
    if as_json:
        click.echo(json.dumps(_facts(outcomes, unsound, seconds), indent=1))
    else:
        click.echo("\n".join(_lines(outcomes, unsound, seconds)))
    if markdown is not None:
        markdown.write_text("\n".join([*_markdown(outcomes), ""]))
    sys.exit(0 if not unsound and all(outcome.caught for outcome in outcomes) else 1)


def chosen(numbers: Sequence[int], quick: bool) -> list[Bug]:
    """The bugs to run: those with these numbers; the first twelve; or all."""
    bugs = all_bugs()
    unknown = [number for number in numbers if number not in {bug.number for bug in bugs}]
    if unknown:
        raise click.ClickException(f"no planted bug has the number {unknown[0]}; there are 1 to {len(bugs)}")
    wanted = numbers or (range(1, QUICK + 1) if quick else [bug.number for bug in bugs])
    return [bug for bug in bugs if bug.number in wanted]


class _Progress:
    """A line for each bug that is done, from whatever thread."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._mutex = threading.Lock()

    def __call__(self, outcome: Outcome) -> None:
        with self._mutex:
            self._done += 1
            place, bug = f"{self._done:3}/{self._total}", outcome.bug
            click.echo(
                f"{place}  {outcome.seconds:5.1f} s  {bug.number:2} {bug.name}: {outcome.status}", err=True
            )


# -- what is shown ---------------------------------------------------------------------------------


def _cells(outcome: Outcome) -> tuple[str, ...]:
    bug = outcome.bug
    return (
        str(bug.number),
        bug.name.replace("-", " "),
        " ".join(map(str, bug.guarantees)),
        ", ".join(_short(each) for each in outcome.runs),
        f"{outcome.seconds:.1f}",
        outcome.status,
    )


def _short(what: str) -> str:
    """A test by its name alone, a check as it is."""
    return what.rpartition("::")[2]


def _lines(outcomes: Sequence[Outcome], unsound: dict[str, Ran], seconds: float) -> list[str]:
    rows = [COLUMNS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    right = (0, 4)
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for what, ran in unsound.items():
        lines.append(f"the code as it is does not pass {what} ({ran.verdict}): {ran.words}")
    for outcome in outcomes:
        if not outcome.caught:
            lines += [
                f"{outcome.bug.number} {outcome.bug.name}: {what}: {ran.verdict} {ran.words}".rstrip()
                for what, ran in outcome.runs.items()
                if ran.verdict != "failed"
            ]
    caught = sum(outcome.caught for outcome in outcomes)
    return [*lines, f"{caught} of {len(outcomes)} caught, {seconds:.0f} s"]


def _markdown(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [("#", "planted bug", "G", "caught by", "s", "result"), ("--:", "---", "---", "---", "--:", "---")]
    for outcome in outcomes:
        number, _, guarantees, _, seconds, status = _cells(outcome)
        by = ", ".join(f"`{_short(each)}`" for each in outcome.runs)
        rows.append((number, outcome.bug.what, guarantees, by, seconds, status))
    return [f"| {' | '.join(row)} |" for row in rows]


def _facts(outcomes: Sequence[Outcome], unsound: dict[str, Ran], seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "unsound": {what: [ran.verdict, ran.words] for what, ran in unsound.items()},
        "bugs": [
            {
                **named(outcome.bug),
                "status": outcome.status,
                "seconds": round(outcome.seconds, 1),
                "runs": {what: [ran.verdict, ran.words] for what, ran in outcome.runs.items()},
            }
            for outcome in outcomes
        ],
    }
