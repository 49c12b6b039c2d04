"""`palaver sessions purge` and `palaver sessions unfinished`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

import click
from sqlite_utils import Database

from actors.system import GIVEN_UP
from palaver.commands.base import agent_option, db_option, json_option, sender_option
from palaver.commands.output import counted, echo_json, local_time, table
from palaver.commands.progress import progress
from palaver.offline import offline
from persistence import sessions as stored
from persistence.errors import StorageError
from persistence.records import UnfinishedSession
from persistence.recovery import fail_unfinished, unfinished_sessions
from persistence.retention import OldSession, sessions_older_than, unfinished_older_than
from persistence.sources import SystemClock
from persistence.transaction import transaction

DELETED_AT_ONCE = 500
WORTH_TELLING = 1_000_000  # bytes
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """A duration, a number and a unit, in seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is no age; give a number and s, m, h, d or w, as in 30d")
    return float(int(found[1]) * UNITS_S[found[2]])


@click.command()
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_seconds,
    required=True,
    help="Unchanged for so long: 90s, 15m, 12h, 30d, 8w.",
)
@agent_option
@sender_option
@click.option("-n", "--dry-run", is_flag=True, help="Only list what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--vacuum", is_flag=True, help="Give the freed space back to the disk, by rewriting the file.")
@json_option
@db_option()
def purge(
    older_than: float,
    agent: str | None,
    sender: str | None,
    dry_run: bool,
    yes: bool,
    vacuum: bool,
    as_json: bool,
    path: str,
) -> None:
    """Delete sessions that have not changed for some time, with all their turns.

    Those with messages that have not ended, or with timers, stay, however old they are: see `palaver sessions
    unfinished` and `palaver sessions timers`.
    Archives and topics stay in memory. Freed space is used again for what is stored next.
    """
    now = SystemClock.wall()
    before = max(0.0, now - older_than)
    with offline(path) as db:
        old = sessions_older_than(db, before, agent, sender)
        kept = unfinished_older_than(db, before, agent, sender)
        if dry_run:
            _show_old(old, kept, as_json)
            return
        what = f"{counted(len(old), 'session')} unchanged since {local_time(before)}"
        if old and not yes and not click.confirm(f"Delete {what}?", err=as_json):
            click.echo("kept", err=as_json)
            return
        _delete_all(db, [each.handle for each in old], now)
        if vacuum:
            _vacuum(db)
        ((free,),) = db.execute(
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        ).fetchall()
    if as_json:
        echo_json({"deleted": len(old), "unfinished": kept, "free_bytes": free})
        return
    click.echo(f"deleted {what}" if old else f"no session is unchanged since {local_time(before)}")
    _tell_kept(kept)
    if old and not vacuum and free > WORTH_TELLING:
        click.echo(f"{free:,} bytes of the file are free for new data; --vacuum gives them back to the disk")


@click.command()
@agent_option
@click.option("--fail", is_flag=True, help="End their messages as failed, without running them.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@db_option()
def unfinished(agent: str | None, fail: bool, yes: bool, as_json: bool, path: str) -> None:
    """List sessions with accepted messages that have not ended.

    A runtime that opens the file goes on with them, or lists them, as Runtime.open(recover=...) says. --fail
    ends them now.
    """
    with offline(path) as db:
        found = [each for each in unfinished_sessions(db) if agent in (None, each.agent)]
        if not fail:
            _show_unfinished(found, as_json)
            return
        what = f"the unfinished messages of {counted(len(found), 'session')}"
        if found and not yes and not click.confirm(f"End {what} as failed?", err=as_json):
            click.echo("kept", err=as_json)
            return
        with transaction(db):
            ended = fail_unfinished(
                db,
                [each.handle for each in found],
                reason=GIVEN_UP,
                at=SystemClock.wall(),
            )
    if as_json:
        echo_json({"sessions": len(found), "failed": ended})
    else:
        click.echo(f"ended {counted(ended, 'message')} of {counted(len(found), 'session')} as failed")


def _show_old(old: Sequence[OldSession], kept: int, as_json: bool) -> None:
    if as_json:
        echo_json(old)
        return
    if old:
        rows = [(s.handle, s.agent, s.sender, s.topic, s.entry_count, local_time(s.updated_at)) for s in old]
        click.echo(table(("HANDLE", "AGENT", "SENDER", "TOPIC", "ENTRIES", "CHANGED"), rows, cut=(2, 3)))
    click.echo(f"{counted(len(old), 'session')} would be deleted")
    _tell_kept(kept)


def _tell_kept(kept: int) -> None:
    if kept:
        click.echo(f"{counted(kept, 'session')} as old had unfinished messages or timers and stayed")


def _delete_all(db: Database, handles: Sequence[str], at: float) -> None:
    with progress("deleting", len(handles)) as on_deleted:
        for first in range(0, len(handles), DELETED_AT_ONCE):
            with transaction(db):
                for handle in handles[first : first + DELETED_AT_ONCE]:
                    stored.delete_session(db, handle, at=at)
                    on_deleted()


def _vacuum(db: Database) -> None:
    try:
        db.execute("VACUUM")
    except sqlite3.OperationalError as error:  # no room for it, say: the file is as it was
        raise StorageError(
            f"the sessions are deleted, but the file could not be rewritten: {error}"
        ) from error


def _show_unfinished(found: Sequence[UnfinishedSession], as_json: bool) -> None:
    if as_json:
        echo_json(found)
    elif not found:
        click.echo("every accepted message has ended")
    else:
        rows = [(s.handle, s.agent, s.sender, s.topic, s.turns, s.steers, local_time(s.since)) for s in found]
        headers = ("HANDLE", "AGENT", "SENDER", "TOPIC", "TURNS", "STEERS", "SINCE")
        click.echo(table(headers, rows, cut=(2, 3)))
