"""`palaver verify`."""

from __future__ import annotations

import sys

import click

from palaver.commands.output import counted, echo_json, echo_lines
from palaver.offline import inspect_database
from persistence.database import damaged


@click.command()
@click.argument("path", metavar="DB")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(path: str, as_json: bool) -> None:
    """Check that the file DB is whole.

    Checks SQLite's own structures, the order of entries, that every tool call has its result, that every
    turn ended in one state, and that compactions and their archives belong together. Prints what is
    broken, with exit status 1. No runtime may have the file open.
    """
    report = inspect_database(path)
    if as_json:
        echo_json(report)
    elif report.problems:
        click.echo(f"broken: {counted(len(report.problems), 'problem')} in {path}")
        echo_lines(report.problems)
        if any(problem.startswith("database:") for problem in report.problems):
            click.echo(f"to recover: {damaged(path)}")
    else:
        counts = ", ".join(
            (
                counted(report.sessions, "session"),
                counted(report.turns, "turn"),
                f"{report.entries:,} entries",
                counted(report.compactions, "compaction"),
                counted(report.archives, "archive"),
                counted(report.notes, "note"),
            )
        )
        click.echo(f"ok: {counts}")
    sys.exit(1 if report.problems else 0)
