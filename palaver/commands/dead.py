"""`palaver dead`: messages that were given up."""

from __future__ import annotations

import click

from palaver.commands.base import agent_option, db_option, json_option, sender_option
from palaver.commands.output import counted, echo_json, facts, local_time, one_line, printable, table
from palaver.offline import offline
from persistence import dead_letters
from persistence.sessions import highest_ids
from persistence.sources import SystemClock
from persistence.transaction import transaction


@click.group()
def dead() -> None:
    """Messages that were given up: they took their process or conversation down each time."""


@dead.command("list")
@agent_option
@sender_option
@json_option
@db_option()
def list_letters(agent: str | None, sender: str | None, as_json: bool, path: str) -> None:
    """List them, in the order in which they were given up."""
    with offline(path) as db:
        letters = dead_letters.dead_letters(db, agent, sender)
    if as_json:
        echo_json(letters)
    elif not letters:
        click.echo("no message was given up")
    else:
        rows = [
            (one.turn_id, one.agent, one.sender, one.topic, local_time(one.at), one_line(one.content, 60))
            for one in letters
        ]
        click.echo(table(("TURN", "AGENT", "SENDER", "TOPIC", "GIVEN UP", "MESSAGE"), rows, cut=(3, 5)))


@dead.command()
@click.argument("turn", type=int)
@json_option
@db_option()
def show(turn: int, as_json: bool, path: str) -> None:
    """Show the dead letter of this TURN: the message, and why it was given up."""
    with offline(path) as db:
        letter = dead_letters.dead_letter(db, turn)
    if as_json:
        echo_json(letter)
        return
    pairs: list[tuple[str, object]] = [
        ("turn", str(letter.turn_id)),
        ("agent", letter.agent),
        ("sender", letter.sender),
        ("topic", letter.topic),
        ("session", letter.handle),
        ("given up", local_time(letter.at)),
        ("begun", f"{letter.attempts} times"),
        ("reason", letter.reason),
        ("tried again", "no" if letter.retried_as is None else f"as turn {letter.retried_as}"),
    ]
    click.echo(printable(facts(pairs, right=False)))
    click.echo()
    click.echo(printable(letter.content))


@dead.command()
@click.argument("turns", metavar="TURN...", type=int, nargs=-1, required=True)
@json_option
@db_option()
def retry(turns: tuple[int, ...], as_json: bool, path: str) -> None:
    """Accept these messages once more, as new turns: they run when a host opens the file. All, or none."""
    with offline(path) as db, transaction(db):
        first = max(highest_ids(db)) + 1
        made = dict(zip(turns, range(first, first + len(turns)), strict=True))
        for turn, new_id in made.items():
            dead_letters.retry(db, turn, new_id=new_id, at=SystemClock.wall())
    if as_json:
        echo_json({"retried_as": made})
    else:
        click.echo(f"{counted(len(turns), 'message')} will be run when a host opens {printable(path)}")
