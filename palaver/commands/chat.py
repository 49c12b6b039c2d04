"""`palaver chat`."""

from __future__ import annotations

import os
import sys

import click
from click.core import ParameterSource

from actors.config import AgentConfig
from actors.models.base import Model
from actors.models.openai import OpenAIModel
from actors.models.scripted import ScriptedModel
from palaver import __version__
from palaver.commands.base import db_option, interruptible
from palaver.commands.output import one_line
from palaver.commands.port import Conversations
from palaver.commands.prompt import Prompt
from palaver.host.client import HostClient
from palaver.running import running
from palaver.runtime import Runtime

STDIN = 0
ECHO = "echo"
ASSISTANT = "assistant"


@click.command()
@db_option(help="The database file; it keeps topics.")
@click.option("--host", "socket", metavar="SOCKET", help="Talk to an agent of the host that listens there.")
@click.option(
    "--agent", metavar="NAME", help="The agent's name.  [default: assistant; of a host, its only one]"
)
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
    socket: str | None,
    agent: str | None,
    sender: str,
    base_url: str | None,
    model: str | None,
    api_key: str | None,
    system: str,
    steer: bool | None,
) -> None:
    """Talk to an agent in the terminal.

    Without --base-url the embedded model answers, which echoes what it is told. What you type while the
    agent answers steers it. Ctrl-C cancels the answer; at the prompt it leaves, as Ctrl-D does. With --host,
    agents, models and the file are those of a running `palaver host`.

    \b
    /topic TITLE[: DESCRIPTION]  go to a topic; a new one needs a description
    /compact  /close  /list      of the conversation that you are in
    /help  /quit
    """
    if sys.stdin is None:  # whatever is open under its number now is not for reading lines from
        raise click.ClickException("there is no standard input to read from")
    terminal = os.isatty(STDIN)
    steers = terminal if steer is None else steer
    with interruptible():
        if socket is not None:
            _refuse_what_a_host_has()
            failed = _at_host(socket, agent, sender, steers=steers, terminal=terminal)
        else:
            if (base_url is None) != (model is None):
                raise click.UsageError("--base-url and --model go together")
            endpoint = ScriptedModel(keep_requests=0) if base_url is None else OpenAIModel(base_url, api_key)
            config = AgentConfig(agent or ASSISTANT, model=model or ECHO, system_prompt=system)
            failed = _here(path, endpoint, config, sender, steers=steers, terminal=terminal)
    if failed and not terminal:
        sys.exit(1)


def _here(
    path: str, endpoint: Model, config: AgentConfig, sender: str, *, steers: bool, terminal: bool
) -> bool:
    """Talk in a runtime of this process; whether something failed."""
    with running(Runtime.open(path, endpoint)) as rt:
        rt.add_agent(config)
        model = "the embedded echo" if config.model == ECHO else config.model
        return _talk(rt, config.name, model, path, sender, steers=steers, terminal=terminal)


def _at_host(socket: str, agent: str | None, sender: str, *, steers: bool, terminal: bool) -> bool:
    """Talk to a host; whether something failed."""
    with HostClient(socket) as client:
        agents = client.hello()["agents"]
        if agent is None and len(agents) != 1:
            raise click.UsageError(
                f"the host has several agents; choose one with --agent: {', '.join(agents)}"
            )
        if agent is not None and agent not in agents:
            raise click.UsageError(f"the host has no agent {agent!r}, only: {', '.join(agents)}")
        return _talk(client, agent or agents[0], "a host", socket, sender, steers=steers, terminal=terminal)


def _talk(
    rt: Conversations, agent: str, model: str, where: str, sender: str, *, steers: bool, terminal: bool
) -> bool:
    prompt = Prompt(rt, agent, sender, fd=STDIN, steers=steers, interactive=terminal)
    if terminal:
        who = f"{one_line(agent)} ({one_line(model)})"
        click.secho(f"palaver {__version__}, {who}, {where}; /help lists the commands", dim=True)
    prompt.run()
    return prompt.failed


def _refuse_what_a_host_has() -> None:
    """Options that a host's configuration decides."""
    context = click.get_current_context()
    for name in ("path", "base_url", "model", "api_key", "system"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = {"path": "db"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{option} does not go with --host: the host's configuration says that")
