"""The `palaver` command line, as click commands; the process must be patched by gevent before."""

from __future__ import annotations

import logging

import click

from palaver import __version__
from palaver.commands.base import PlainErrors
from palaver.logs import LogFormat, set_up

__all__ = ["palaver"]

_SILENT = logging.CRITICAL + 1

# Each command, where it is: a process imports what it runs, which is a third of all.
_HOMES = {
    "backup": "copies",
    "chat": "chat",
    "dead": "dead",
    "demo": "demo",
    "export": "copies",
    "host": "host",
    "import": "copies:import_",
    "memory": "memory",
    "replay": "replay",
    "sessions": "sessions",
    "simulate": "simulate",
    "top": "top",
    "verify": "verify",
}


@click.group(cls=PlainErrors, homes=_HOMES, context_settings={"help_option_names": ["-h", "--help"]})
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
