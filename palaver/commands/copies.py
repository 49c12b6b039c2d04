"""`palaver backup`, `palaver export` and `palaver import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import click

from palaver.commands.base import json_option
from palaver.commands.output import counted, echo_json
from palaver.copies import Contents, backup_database, export_database, import_database
from persistence.errors import DatabaseInUse


@click.command()
@click.argument("path", metavar="DB")
@click.argument("to", metavar="TO")
@json_option
def backup(path: str, to: str, as_json: bool) -> None:
    """Copy the database DB to the new file TO.

    TO is a database like DB. It appears when it is complete and on the disk; nothing is overwritten. For a
    file that a runtime has open, call rt.backup(TO) in its process: copies by other programs are not whole.
    """
    with watched("copying") as progress, _while_in_use(f"rt.backup({to!r})"):
        backup_database(path, to, progress=progress)
    size = os.stat(to).st_size
    if as_json:
        echo_json({"backup": to, "bytes": size})
    else:
        click.echo(f"copied {path} to {to}: {size:,} bytes")


@click.command()
@click.argument("path", metavar="DB")
@click.argument("directory", metavar="DIR")
@json_option
def export(path: str, directory: str, as_json: bool) -> None:
    """Write all that the database DB holds as text into the new directory DIR.

    Sessions become JSON lines, a file each; notes, topics and archives become Markdown files. `palaver
    import` makes an equal database of DIR. For a file that a runtime has open, call rt.export(DIR) in its
    process.
    """
    with watched("exporting") as progress, _while_in_use(f"rt.export({directory!r})"):
        contents = export_database(path, directory, progress=progress)
    if as_json:
        echo_json({"export": directory, **attrs.asdict(contents)})
    else:
        click.echo(f"exported {path} to {directory}: {_in_words(contents)}")


@click.command("import")
@click.argument("directory", metavar="DIR")
@click.argument("path", metavar="DB")
@click.option("--edited", is_flag=True, help="Take memory files that were changed by hand since the export.")
@json_option
def import_(directory: str, path: str, edited: bool, as_json: bool) -> None:
    """Store what `palaver export` wrote into DIR in the database DB.

    DB is made if it is missing; in one that is there, what DIR holds comes beside what DB holds. All of it is
    stored or nothing: a damaged file, or a session that DB has already, is an error. Messages that had not
    ended go on when a runtime opens DB: see `palaver sessions unfinished`.
    """
    with watched("importing") as progress:
        found = import_database(directory, path, edited=edited, progress=progress)
    if as_json:
        rest = {"edited": found.edited, "renumbered": found.renumbered}
        echo_json({"import": directory, **attrs.asdict(found.contents), **rest})
        return
    click.echo(f"imported {directory} into {path}: {_in_words(found.contents)}")
    for file in found.edited:
        click.echo(f"  as edited: {file}")
    if found.renumbered:
        click.echo(f"  {found.renumbered:,} turns, steers and timers have new ids: the old ones were taken")


@contextmanager
def watched(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that moves a progress bar to so many of so many; it does nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = max(1, total)
            # Thousands of steps are too many to draw; one back is a copy that began again.
            if done - bar.pos >= total / 200 or done < bar.pos or done == total:
                bar.update(done - bar.pos)

        yield show


@contextmanager
def _while_in_use(call: str) -> Iterator[None]:
    try:
        yield
    except DatabaseInUse as error:
        raise DatabaseInUse(f"{error}; without stopping it: {call} in that process", error.pid) from error


def _in_words(contents: Contents) -> str:
    return ", ".join(
        (
            counted(contents.sessions, "session"),
            counted(contents.turns, "turn"),
            f"{contents.entries:,} entries",
            counted(contents.compactions, "compaction"),
            f"{contents.memory:,} of memory",
        )
    )
