"""The `palaver` command line, as click commands; the process must be patched by gevent before."""

from __future__ import annotations

import logging

import click

from palaver import __version__
from palaver.commands.base import PlainErrors
from palaver.commands.chat import chat
from palaver.commands.copies import backup, export, import_
from palaver.commands.dead import dead
from palaver.commands.demo import demo
from palaver.commands.host import host
from palaver.commands.memory import memory
from palaver.commands.replay import replay
from palaver.commands.retention import purge, unfinished
from palaver.commands.sessions import sessions
from palaver.commands.simulate import simulate
from palaver.commands.timers import timers
from palaver.commands.top import top
from palaver.commands.verify import verify
from palaver.logs import LogFormat, set_up

__all__ = ["palaver"]

_SILENT = logging.CRITICAL + 1


@click.group(cls=PlainErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="palaver")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, to stderr.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object a line.",
)
def palaver(verbose: bool, log_format: LogFormat) -> None:
    """Conversations between agents and senders that lose nothing they have accepted."""
    # What a user must know is printed by the commands; the log is for those who ask for it.
    set_up(logging.INFO if verbose else _SILENT, log_format)


for command in (
    demo,
    chat,
    host,
    top,
    replay,
    simulate,
    sessions,
    memory,
    verify,
    backup,
    export,
    import_,
    dead,
):
    palaver.add_command(command)
for command in (purge, timers, unfinished):
    sessions.add_command(command)
