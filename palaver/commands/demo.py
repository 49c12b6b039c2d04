"""`palaver demo`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

import click

from palaver.commands.base import interruptible
from palaver.commands.output import echo_lines
from palaver.commands.progress import progress
from palaver.demo import DemoReport, demo_dialogues, run_demo


@click.command()
@click.option("--db", "path", metavar="PATH", help="Keep the database in this file.")
def demo(path: str | None) -> None:
    """Show in a few seconds that nothing is lost.

    Senders talk to an agent at the same time; some steer it while it works, some switch topics, some close
    their conversation and come back. Histories are compacted. In the middle, while turns are running, the
    runtime is stopped, and a new one goes on with the same file. Then the file is verified, and every stored
    transcript compared with what was said: exit status 1 if anything differs. Needs no network.
    """
    dialogues = demo_dialogues()
    turns = sum(len(dialogue.turns) for dialogue in dialogues)
    with contextlib.ExitStack() as stack:
        where = path
        if where is None:
            where = os.path.join(stack.enter_context(tempfile.TemporaryDirectory("-palaver")), "demo.db")
        stack.enter_context(interruptible())
        on_turn = stack.enter_context(progress("talking", turns))
        report = run_demo(where, on_turn=on_turn)
    _show(report)
    if path is not None:
        click.echo(f"look around: palaver sessions list --db {path}")
    _conclude(report)
    sys.exit(0 if report.ok else 1)


def _show(report: DemoReport) -> None:
    for name, lines in (("verify", report.problems), ("not as expected", report.differences)):
        if lines:
            click.echo(f"{name}: {len(lines):,}")
            echo_lines(lines)


def _conclude(report: DemoReport) -> None:
    done = (
        f"{report.senders} senders, {report.topics} topics, {report.turns} turns, "
        f"{report.tool_calls} tool calls, {report.steers} steers, {report.closes} closes, "
        f"{report.compactions} compactions, a stop with {report.running_at_stop} turns running, a resume"
    )
    if report.ok:
        click.echo(
            f"proved: {done}: nothing was lost, doubled or out of order in {report.entries} entries, "
            f"and the file is whole ({report.seconds:.1f} s)"
        )
    else:
        wrong = len(report.problems) + len(report.differences)
        click.echo(f"failed: {wrong} things are not as they should be after {done}", err=True)
