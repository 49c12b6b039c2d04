"""What the commands share: how errors and Ctrl-C end them, and their common options."""

from __future__ import annotations

import errno
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import click
import gevent

from palaver.commands.output import printable
from persistence.errors import DatabaseFailed, PalaverError

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
TERMINATED = 143  # and for one that SIGTERM ended
DATABASE_FAILED = 74  # EX_IOERR of sysexits.h
DEFAULT_DB = "palaver.db"


class PlainErrors(click.Group):
    """A group whose errors are one line on stderr, and exit status 1; 74 if the database failed while it was
    in use, 130 for Ctrl-C.

    Args:
        homes: each command, and its module in this package, which is imported when the command is wanted;
            with ":NAME" where it is not called there as it is here.
    """

    def __init__(self, *args: Any, homes: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._homes:
            return None
        module, _, name = self._homes[cmd_name].partition(":")
        found: click.Command = getattr(import_module(f"palaver.commands.{module}"), name or cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DatabaseFailed as error:
            raise _failure(str(error), _DatabaseGone) from error
        except PalaverError as error:
            raise _failure(str(error)) from error
        except sqlite3.Error as error:
            raise _failure(f"the database cannot be read: {error}; `palaver verify` says more") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has enough: click ends quietly
                raise
            raise _failure(str(error)) from error
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal's ^C gets a line of its own
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


class _DatabaseGone(click.ClickException):
    exit_code = DATABASE_FAILED


def _failure(words: str, kind: type[click.ClickException] = click.ClickException) -> click.ClickException:
    return kind(printable(" ".join(words.split())))


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the calling greenlet, and SIGTERM SystemExit, for as long as the
    block runs.

    Python's own handler would raise the first in whichever greenlet happens to run: a turn, say, which would
    end with an error in place of the command. The second would leave temporary files.
    """
    waiting = gevent.getcurrent()
    loop = gevent.get_hub().loop
    raised = {signal.SIGINT: (KeyboardInterrupt,), signal.SIGTERM: (SystemExit, TERMINATED)}
    before = {number: signal.getsignal(number) for number in raised}
    handlers = [
        gevent.signal_handler(number, loop.run_callback, waiting.throw, *error)
        for number, error in raised.items()
    ]
    try:
        yield
    finally:
        for handler in handlers:
            handler.cancel()
        for number, handling in before.items():
            signal.signal(number, handling)


def db_option(**changes: Any) -> Callable[[F], F]:
    """`--db PATH`."""
    settings: dict[str, Any] = {
        "default": DEFAULT_DB,
        "show_default": True,
        "envvar": "PALAVER_DB",
        "show_envvar": True,
        "help": "The database file.",
    }
    return click.option("--db", "path", metavar="PATH", **{**settings, **changes})


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
agent_option = click.option("--agent", metavar="NAME", help="Only this agent's.")
sender_option = click.option("--sender", metavar="NAME", help="Only this sender's.")
