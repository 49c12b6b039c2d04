"""`palaver host`."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import gevent

from palaver.commands.output import printable
from palaver.host.config import HostConfig, load_config
from palaver.host.host import Host
from palaver.host.notify import Notifier
from palaver.logs import set_up
from palaver.toml.reading import BadConfigFile

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A turn leaves no cycles: seldom, and all of memory hardly ever. A second look is at no more than two first
# ones have left, so that nobody waits long for it.
COLLECTED_AFTER = (2_500, 1, 15_000)


@click.command()
@click.argument("config", metavar="CONFIG.toml", type=click.Path(dir_okay=False))
@click.option("--check", is_flag=True, help="Read and validate the file, and start nothing.")
@click.option(
    "--drain",
    "drain_s",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="How long accepted turns may go on after a signal.  [default: drain_s of the file, else 30]",
)
@click.option(
    "--wait-for-database",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=0.0,
    help="How long to wait for a file that another process holds, as the host before this one may.",
)
def host(config: str, check: bool, drain_s: float | None, wait_s: float) -> None:
    """Run agents until told to stop, and serve clients on a Unix socket.

    SIGTERM and SIGINT stop it: it takes no new work, lets accepted turns end, commits, and exits with 0.
    A second one cancels what still runs. Whatever was acknowledged is stored in either case.

    \b
    palaver chat --host SOCKET   talks to it
    """
    found = _load(config)
    if check:
        _describe(found)
        return
    set_up(logging.getLevelNamesMapping()[found.log_level.upper()], found.log_format, long_running=True)
    running = Host(found, drain_s=drain_s, wait_s=wait_s, notifier=Notifier(os.environ))
    with _stopped_by_signals(running.stop), _seldom_collected(running):
        running.run()


def _load(config: str) -> HostConfig:
    try:
        return load_config(config, os.environ)
    except BadConfigFile as error:
        for problem in error.problems:
            click.echo(printable(f"Error: {problem}"), err=True)
        sys.exit(1)


def _describe(config: HostConfig) -> None:
    click.echo(f"ok: {config.file}")
    click.echo(f"  database  {config.database}")
    click.echo(f"  socket    {config.socket}")
    click.echo(f"  models    {', '.join(config.models)}")
    click.echo(f"  agents    {', '.join(agent.name for agent in config.agents)}")
    click.echo(f"  tools     {', '.join(tool.name for tool in config.tools) or 'the built-in ones'}")


@contextmanager
def _seldom_collected(running: Host) -> Iterator[None]:
    """While the block runs, Python's cyclic collector, which stops everybody while it looks, looks seldom,
    and never at what was there before the first client came."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTED_AFTER)
    freezing = gevent.spawn(_freeze, running)
    try:
        yield
    finally:
        freezing.kill()
        gc.unfreeze()
        gc.set_threshold(*before)


def _freeze(running: Host) -> None:
    running.serving.wait()
    gc.collect()
    gc.freeze()


class _stopped_by_signals:  # noqa: N801 - used as a function
    """While the block runs, each stop signal calls `stop`; after the second one they end the process."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._count = 0
        self._handlers: list[Any] = []

    def __enter__(self) -> None:
        self._handlers = [gevent.signal_handler(number, self._told) for number in STOP_SIGNALS]

    def __exit__(self, *_exc: object) -> None:
        # The process ends now, with its status: what comes this late must not change that.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _told(self) -> None:
        self._count += 1
        if self._count == 2:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        self._stop()
