"""`palaver chat`."""

from __future__ import annotations

import os
import sys

import click

from actors.config import AgentConfig
from actors.models.base import Model
from actors.models.openai import OpenAIModel
from actors.models.scripted import ScriptedModel
from palaver import __version__
from palaver.commands.base import db_option, interruptible
from palaver.commands.output import one_line
from palaver.commands.prompt import Prompt
from palaver.running import running
from palaver.runtime import Runtime

STDIN = 0
ECHO = "echo"


@click.command()
@db_option(help="The database file; it keeps topics.")
@click.option("--agent", metavar="NAME", default="assistant", show_default=True, help="The agent's name.")
@click.option("--sender", metavar="NAME", default="me", show_default=True, help="Your name.")
@click.option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint, as in https://host/v1.")
@click.option("--model", metavar="NAME", help="The model's name at that endpoint.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="PALAVER_API_KEY",
    show_envvar=True,
    help="The key for that endpoint; better in the environment, where no process list shows it.",
)
@click.option("--system", metavar="TEXT", default="", help="The system prompt.")
@click.option(
    "--steer/--no-steer",
    default=None,
    help="Whether a line that comes while the agent answers steers it, or waits for its turn. "
    "At a terminal it steers; from a pipe or a file it waits.",
)
def chat(
    path: str,
    agent: str,
    sender: str,
    base_url: str | None,
    model: str | None,
    api_key: str | None,
    system: str,
    steer: bool | None,
) -> None:
    """Talk to an agent in the terminal.

    Without --base-url the embedded model answers, which echoes what it is told. What you type while the
    agent answers steers it. Ctrl-C cancels the answer; at the prompt it leaves, as Ctrl-D does.

    \b
    /topic TITLE[: DESCRIPTION]  go to a topic; a new one needs a description
    /compact  /close  /list      of the conversation that you are in
    /help  /quit
    """
    if sys.stdin is None:  # whatever is open under its number now is not for reading lines from
        raise click.ClickException("there is no standard input to read from")
    if (base_url is None) != (model is None):
        raise click.UsageError("--base-url and --model go together")
    endpoint: Model = ScriptedModel(keep_requests=0) if base_url is None else OpenAIModel(base_url, api_key)
    config = AgentConfig(agent, model=model or ECHO, system_prompt=system)
    terminal = os.isatty(STDIN)
    with interruptible(), running(Runtime.open(path, endpoint)) as rt:
        rt.add_agent(config)
        prompt = Prompt(
            rt,
            agent,
            sender,
            fd=STDIN,
            steers=terminal if steer is None else steer,
            interactive=terminal,
        )
        if terminal:
            who = f"{one_line(agent)} ({one_line(model or 'the embedded echo')})"
            click.secho(f"palaver {__version__}, {who}, {path}; /help lists the commands", dim=True)
        prompt.run()
    if prompt.failed and not terminal:
        sys.exit(1)
