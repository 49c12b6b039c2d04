"""`palaver sessions timers`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from palaver.commands.base import db_option, json_option
from palaver.commands.output import echo_json, local_time, one_line, table
from palaver.offline import offline
from persistence import sessions
from persistence import timers as stored
from persistence.errors import TimerGone
from persistence.records import TimerInfo
from persistence.transaction import transaction


@click.command()
@click.argument("handle", required=False)
@click.option("--cancel", "timer_id", metavar="ID", type=int, help="End this timer: its message never comes.")
@json_option
@db_option()
def timers(handle: str | None, timer_id: int | None, as_json: bool, path: str) -> None:
    """List the timers of stored sessions, or of the session HANDLE: the one that is due first comes first.

    They fire in a runtime that opens the file; those that are overdue then fire at once, or are held, as
    Runtime.open(recover=...) says.
    """
    with offline(path) as db:
        if handle is not None:
            sessions.get_session(db, handle)
        if timer_id is None:
            _show(stored.list_timers(db, handle), as_json)
            return
        found = stored.get(db, timer_id)
        if found is None or handle not in (None, found.handle):
            whose = "" if handle is None else f" of the session {handle}"
            raise TimerGone(f"no timer{whose} has the id {timer_id}; see `palaver sessions timers`")
        with transaction(db):
            stored.cancel(db, timer_id)
    if as_json:
        echo_json({"cancelled": found})
    else:
        click.echo(f"cancelled timer {found.id}, due {local_time(found.due_at)}: {one_line(found.content)}")


def _show(found: Sequence[TimerInfo], as_json: bool) -> None:
    if as_json:
        echo_json(found)
    elif not found:
        click.echo("no timers")
    else:
        rows = [
            (t.id, t.handle, t.agent, t.sender, t.topic, local_time(t.due_at), _period(t), t.content)
            for t in found
        ]
        headers = ("ID", "HANDLE", "AGENT", "SENDER", "TOPIC", "DUE", "EVERY", "SAYS")
        click.echo(table(headers, rows, cut=(3, 4, 7)))


def _period(timer: TimerInfo) -> str:
    return "" if timer.every_s is None else f"{timer.every_s:,.15g} s"
