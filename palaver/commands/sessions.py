"""`palaver sessions`."""

from __future__ import annotations

import click
from sqlite_utils import Database

from palaver.commands.base import agent_option, db_option, json_option, sender_option
from palaver.commands.output import counted, echo_json, facts, local_time, one_line, printable, table
from palaver.commands.retention import purge, unfinished
from palaver.commands.timers import timers
from palaver.offline import offline
from persistence import sessions as stored
from persistence.errors import SessionNotFound
from persistence.records import HistoryEntry, SessionSummary
from persistence.sources import SystemClock
from persistence.transaction import transaction


@click.group()
def sessions() -> None:
    """List, show, delete and purge stored conversations, and what they have left to do."""


for _elsewhere in (purge, timers, unfinished):
    sessions.add_command(_elsewhere)


@sessions.command("list")
@agent_option
@sender_option
@click.option("--topic", metavar="TITLE", help="Only of this topic.")
@json_option
@db_option()
def list_(agent: str | None, sender: str | None, topic: str | None, as_json: bool, path: str) -> None:
    """List stored sessions, the one that changed last first."""
    with offline(path) as db:
        found = stored.list_sessions(db, agent, sender, topic)
    if as_json:
        echo_json(found)
    elif not found:
        click.echo("no sessions")
    else:
        rows = [
            (s.handle, s.agent, s.sender, s.topic, s.title, s.entry_count, local_time(s.updated_at))
            for s in found
        ]
        headers = ("HANDLE", "AGENT", "SENDER", "TOPIC", "TITLE", "ENTRIES", "CHANGED")
        click.echo(table(headers, rows, cut=(2, 3, 4)))


@sessions.command()
@click.argument("handle")
@json_option
@db_option()
def show(handle: str, as_json: bool, path: str) -> None:
    """Show a session: what is known of it, and its whole transcript."""
    with offline(path) as db:
        summary = _find(db, handle)
        entries = stored.transcript(db, handle)
    if as_json:
        echo_json({"session": summary, "transcript": entries})
        return
    click.echo(
        facts(
            [
                ("agent", one_line(summary.agent)),
                ("sender", one_line(summary.sender)),
                ("topic", one_line(summary.topic)),
                ("title", one_line(summary.title)),
                ("created", local_time(summary.created_at)),
                ("changed", local_time(summary.updated_at)),
                ("archive", summary.archive or "none"),
                ("entries", summary.entry_count),
            ],
            right=False,
        )
    )
    for entry in entries:
        _show_entry(entry)


@sessions.command()
@click.argument("handle")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@db_option()
def delete(handle: str, yes: bool, path: str) -> None:
    """Delete a session with all its turns. Its archives and its topic stay in memory."""
    with offline(path) as db:
        summary = _find(db, handle)
        what = (
            f"the session of {one_line(summary.sender)!r} with {one_line(summary.agent)!r} "
            f"on {one_line(summary.topic)!r}, {counted(summary.entry_count, 'message')}"
        )
        if not yes and not click.confirm(f"Delete {what}?"):
            click.echo("kept")
            return
        with transaction(db):
            stored.delete_session(db, handle, at=SystemClock.wall())
    click.echo(f"deleted {what}")


def _find(db: Database, handle: str) -> SessionSummary:
    found = stored.find_session(db, handle)
    if found is None:
        raise SessionNotFound(f"no stored session has the handle {handle!r}; see `palaver sessions list`")
    return found


def _show_entry(entry: HistoryEntry) -> None:
    name = entry.agent or entry.sender or entry.name
    who = f"{entry.role} ({one_line(name)})" if name else entry.role
    click.echo()
    click.secho(f"{who}:", bold=True)
    if entry.reasoning:
        click.secho(printable(entry.reasoning), dim=True)
    if entry.content:
        click.echo(printable(entry.content))
    for call in entry.tool_calls:
        click.secho(f"calls {printable(call.name)} {printable(call.arguments)}", dim=True)
