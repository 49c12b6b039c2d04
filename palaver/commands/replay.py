"""`palaver replay`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

import click

from actors.models.dialogues import read_dialogues
from palaver.commands.base import interruptible
from palaver.commands.output import counted, echo_json, echo_lines, facts
from palaver.commands.progress import progress
from palaver.replay import Replay, ReplayReport


@click.command()
@click.argument("file", metavar="FILE.jsonl")
@click.option(
    "--senders",
    metavar="N",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Dialogues that run at a time.",
)
@click.option("--db", "path", metavar="PATH", help="The database file; a temporary one if left out.")
@click.option(
    "--compact-threshold",
    metavar="TOKENS",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Compact a history that is longer.",
)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Only the first N dialogues.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def replay(
    file: str, senders: int, path: str | None, compact_threshold: int, limit: int | None, as_json: bool
) -> None:
    """Replay recorded dialogues through the whole runtime, and check what it stored.

    Each dialogue of FILE.jsonl is spoken by a sender of its own in a topic of its own. The embedded model
    makes the recorded tool calls and gives the recorded answers. At the end the file is verified, and every
    stored transcript is compared with the recording, entry by entry: exit status 1 if anything differs.

    A line of FILE.jsonl is {"id", "services", "turns": [{"user", "calls": [{"name", "service",
    "arguments", "results"}], "assistant"}]}.
    """
    dialogues = read_dialogues(file)[:limit]
    turns = sum(len(dialogue.turns) for dialogue in dialogues)
    with contextlib.ExitStack() as stack:
        if path is None:
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory("-palaver")), "replay.db")
        run = Replay(dialogues, path)
        with interruptible(), progress("replaying", turns) as on_turn:
            run.play(senders=senders, compact_threshold=compact_threshold, on_turn=on_turn)
        report = run.check()
    if as_json:
        echo_json(report)
    else:
        _show(report)
    sys.exit(0 if report.ok else 1)


def _show(report: ReplayReport) -> None:
    click.echo(
        facts(
            [
                ("dialogues", report.dialogues),
                ("senders at a time", report.senders),
                ("turns", report.turns),
                ("turns/s", round(report.turns_per_s)),
                ("latency p50, ms", f"{report.p50_ms:.1f}"),
                ("latency p99, ms", f"{report.p99_ms:.1f}"),
                ("tool calls", report.tool_calls),
                ("compactions", report.compactions),
                ("archives", report.archives),
                ("commits", report.commits),
                ("peak memory, MB", f"{report.peak_memory_mb:.0f}"),
            ]
        )
    )
    if report.problems:
        click.echo(f"verify: broken, {counted(len(report.problems), 'problem')}")
        echo_lines(report.problems)
    else:
        click.echo("verify: ok")
    if report.differences:
        click.echo(f"transcripts: {counted(len(report.differences), 'difference')}")
        echo_lines(report.differences)
    else:
        click.echo(f"transcripts: all {report.entries:,} entries are as recorded")
