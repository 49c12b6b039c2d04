"""`palaver top`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import click
import gevent
from gevent.event import Event as Signal

from palaver.commands.base import interruptible
from palaver.commands.figures import span
from palaver.commands.output import one_line
from palaver.commands.screen import Screen
from palaver.commands.top_table import frame, heads, short
from palaver.host.client import HostClient
from palaver.host.errors import HostUnreachable
from palaver.stats import Stats, rates

ANSWER_S = 10.0
HEADS_EVERY = 20


@click.command()
@click.argument("socket", type=click.Path())
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3_600),
    default=2.0,
    show_default=True,
    help="How often it looks.",
)
@click.option("--once", is_flag=True, help="Look once; rates are since the host's start.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each look, on a line.")
def top(socket: str, interval: float, once: bool, as_json: bool) -> None:
    """Watch a host: what it holds, what it does, and what went wrong.

    SOCKET is the host's Unix socket. In a terminal the figures are drawn in place; q or Ctrl-C leaves.
    Elsewhere each look is a line. When the host goes away, that is said, and it is looked for again.
    """
    watch = Watch(HostClient(socket, answer_timeout_s=ANSWER_S), interval)
    try:
        with interruptible(), watch.client:
            watch.look()
            if once or as_json or not sys.stdout.isatty():
                _print(watch, once=once, as_json=as_json)
            else:
                _show(watch)
    except KeyboardInterrupt:
        return


class Watch:
    """The host's counts of now and of the time before, or why there are none."""

    def __init__(self, client: HostClient, interval: float) -> None:
        self.client = client
        self.interval = interval
        self.before: Stats | None = None
        self.after: Stats | None = None
        self.hello: dict[str, Any] = {}
        self.gone = ""

    def look(self) -> Stats:
        """Ask the host.

        Raises:
            HostUnreachable: it is not there.
        """
        if not self.hello or self.gone:
            self.hello = self.client.hello()
        stats = self.client.stats()
        again = self.after is not None and self.after.uptime_s > stats.uptime_s
        self.before, self.after, self.gone = (None if again else self.after), stats, ""
        return stats

    def try_to_look(self) -> None:
        """Ask the host; if it is not there, `gone` says so."""
        try:
            self.look()
        except HostUnreachable as error:
            self.gone = f"the host is gone, looking again every {span(self.interval)}: {error}"

    @property
    def title(self) -> str:
        """Which host this is."""
        database, pid = one_line(str(self.hello.get("database"))), self.hello.get("pid")
        up = span(self.after.uptime_s) if self.after is not None else "-"
        return f"palaver {self.hello.get('palaver')}   {database}   pid {pid}   up {up}"


# -- lines, where nobody watches -----------------------------------------------------------------------


def _print(watch: Watch, *, once: bool, as_json: bool) -> None:
    if once and not as_json:
        assert watch.after is not None
        click.echo("\n".join(frame(None, watch.after, watch.title, sys.maxsize, sys.maxsize)))
        return
    for number in _moments(watch):
        assert watch.after is not None
        if as_json:
            click.echo(_as_json(watch.before, watch.after))
        else:
            if number % HEADS_EVERY == 0:
                click.echo(heads())
            click.echo(short(watch.before, watch.after))
        sys.stdout.flush()
        if once:
            return


def _moments(watch: Watch) -> Iterator[int]:
    """The numbers of the looks at which the host was there."""
    number, said = 0, False
    while True:
        if watch.gone and not said:
            click.echo(one_line(watch.gone, 300), err=True)
        said = bool(watch.gone)
        if not watch.gone:
            yield number
            number += 1
        gevent.sleep(watch.interval)
        watch.try_to_look()


def _as_json(before: Stats | None, after: Stats) -> str:
    return json.dumps({**attrs.asdict(after), "per_second": attrs.asdict(rates(before, after))})


# -- a terminal ----------------------------------------------------------------------------------------


def _show(watch: Watch) -> None:
    wake, leave = Signal(), Signal()

    def key(typed: str) -> None:
        if typed in "qQ":
            leave.set()
            wake.set()

    last: list[str] = []
    with Screen(wake.set, key) as screen:
        looker = gevent.spawn(_keep_looking, watch, wake)
        try:
            while not leave.is_set():
                last = _draw(watch, screen)
                wake.wait()
                wake.clear()
        finally:
            looker.kill()
    click.echo("\n".join(last))


def _keep_looking(watch: Watch, wake: Signal) -> None:
    while True:
        gevent.sleep(watch.interval)
        watch.try_to_look()
        wake.set()


def _draw(watch: Watch, screen: Screen) -> list[str]:
    assert watch.after is not None
    columns, lines = screen.size
    title = one_line(watch.gone, 300) if watch.gone else watch.title
    drawn = frame(watch.before, watch.after, title, columns, lines)
    screen.draw(drawn)
    return drawn
