"""`palaver memory`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from palaver.commands.base import agent_option, db_option, json_option, sender_option
from palaver.commands.output import echo_json, table
from palaver.offline import offline
from persistence import memories
from persistence.records import MemoryEntry

Found = Sequence[tuple[str, str, MemoryEntry]]


@click.group()
def memory() -> None:
    """Search what agents remember: notes, topics, archives."""


@memory.command("list")
@agent_option
@sender_option
@json_option
@db_option()
def list_(agent: str | None, sender: str | None, as_json: bool, path: str) -> None:
    """List everything that is remembered, oldest first."""
    with offline(path) as db:
        found = memories.list_entries(db, agent, sender)
    _show(found, as_json, "nothing is remembered")


@memory.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Entries at most.")
@agent_option
@sender_option
@json_option
@db_option()
def search(query: str, limit: int, agent: str | None, sender: str | None, as_json: bool, path: str) -> None:
    """Find entries by words, best match first. QUERY is plain text: nothing in it is an operator."""
    with offline(path) as db:
        found = memories.search(db, query, agent, sender, limit)
    _show(found, as_json, "nothing matches")


def _show(found: Found, as_json: bool, nothing: str) -> None:
    if as_json:
        echo_json(
            [
                {
                    "agent": agent,
                    "sender": scope or None,
                    "kind": entry.kind,
                    "name": entry.name,
                    "content": entry.content,
                    "aliases": entry.aliases,
                    "created_at": entry.created_at,
                }
                for agent, scope, entry in found
            ]
        )
    elif not found:
        click.echo(nothing)
    else:
        rows = [(agent, scope or "(all)", e.kind, e.name, e.content) for agent, scope, e in found]
        click.echo(table(("AGENT", "SENDER", "KIND", "NAME", "CONTENT"), rows, cut=(3, 4)))
