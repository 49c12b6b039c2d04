"""A host's configuration file: TOML, validated as a whole before anything is opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, cast

import attrs
from attrs import field, frozen

from actors.builtin_tools import BUILTIN_NAMES
from actors.config import AgentConfig, Limits
from actors.errors import InvalidConfig
from actors.hooks import Hooks
from actors.models.base import Model
from actors.system import Recover
from actors.tools import Tool
from palaver.host.connection import Bounds
from palaver.host.importing import load
from palaver.host.models import read_models
from palaver.logs import LogFormat
from palaver.toml.fields import SECONDS, TEXT, WHOLE, suggest
from palaver.toml.lines import Path
from palaver.toml.reading import Reader

KEYS = (
    "database",
    "socket",
    "drain_s",
    "recover",
    "log_format",
    "log_level",
    "tools",
    "hooks",
    "connections",
    "line_bytes",
    "models",
    "agents",
    "limits",
)
RECOVER = ("run", "hold", "fail")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
NEVER = "never"
LINE_ROOM = 65_536  # bytes of a request besides its content
BYTES_A_CHAR = 6  # of JSON, at most, for a character that is written as it is or as one escape


@frozen
class HostConfig:
    """What a host runs on.

    Args:
        file: the configuration file.
        database, socket: paths; relative ones were taken from the file's directory.
        models: by the names that agents use.
        agents: registered at the start, in the file's order.
        limits: of the runtime.
        tools, hooks: as for `Runtime.open`.
        drain_s: seconds that accepted turns get when the host is told to stop.
        recover: as for `Runtime.open`.
        log_format: "text" or "json".
        log_level: "debug", "info", "warning" or "error".
        bounds: of the clients.
    """

    file: str
    database: str
    socket: str
    models: Mapping[str, Model]
    agents: tuple[AgentConfig, ...]
    limits: Limits = field(factory=Limits)
    tools: tuple[Tool, ...] = ()
    hooks: tuple[object, ...] = ()
    drain_s: float = 30.0
    recover: Recover = "run"
    log_format: LogFormat = "text"
    log_level: str = "info"
    bounds: Bounds = field(factory=Bounds)


def load_config(path: str | os.PathLike[str], environ: Mapping[str, str]) -> HostConfig:
    """Read and validate a configuration file. Imports what it names; modules beside the file are found, too.

    Args:
        environ: where keys come from.

    Raises:
        BadConfigFile: with everything that is wrong, each with its line and key.
    """
    reader = Reader.of_file(path)
    folder = os.path.dirname(os.path.abspath(reader.file))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    config = _config(reader, folder, environ)
    reader.finish()
    return config


def _config(reader: Reader, folder: str, environ: Mapping[str, str]) -> HostConfig:
    reader.known((), KEYS)
    limits = Limits(**reader.fields(("limits",), Limits))
    tools, models = _tools(reader), read_models(reader, environ)
    return HostConfig(
        file=reader.file,
        database=_path(reader, "database", folder),
        socket=_path(reader, "socket", folder),
        models=models,
        agents=_agents(reader, models, [*(tool.name for tool in tools), *BUILTIN_NAMES]),
        limits=limits,
        tools=tuple(tools),
        hooks=tuple(_hooks(reader)),
        drain_s=_drain(reader),
        recover=cast(Recover, reader.choice(("recover",), RECOVER, "run")),
        log_format=cast(LogFormat, reader.choice(("log_format",), LOG_FORMATS, "text")),
        log_level=reader.choice(("log_level",), LOG_LEVELS, "info"),
        bounds=_bounds(reader, limits),
    )


def _path(reader: Reader, key: str, folder: str) -> str:
    value = reader.value((key,), TEXT, "", required=True)
    if reader.data.get(key) == "":
        reader.problem((key,), "must be the path of a file, and is empty")
    return value if value in ("", ":memory:") else os.path.join(folder, os.path.expanduser(value))


def _drain(reader: Reader) -> float:
    drain_s = reader.value(("drain_s",), SECONDS, 30.0)
    if not 0 <= drain_s < float("inf"):
        reader.problem(("drain_s",), f"must be a number of seconds from 0 on, not {drain_s}")
    return float(drain_s)


def _bounds(reader: Reader, limits: Limits) -> Bounds:
    default = Bounds(line_bytes=BYTES_A_CHAR * limits.content_chars + LINE_ROOM)
    changes = {}
    for key in ("connections", "line_bytes"):
        changes[key] = reader.value((key,), WHOLE, getattr(default, key))
        if changes[key] <= 0:
            reader.problem((key,), f"must be a whole number above 0, not {changes[key]}")
    return attrs.evolve(default, **changes)


def _tools(reader: Reader) -> list[Tool]:
    tools: list[Tool] = []
    for path, text in reader.texts(("tools",)):
        try:
            found = load(text)
            tool = found if isinstance(found, Tool) else Tool(found)
            if tool.name in [*BUILTIN_NAMES, *(each.name for each in tools)]:
                raise InvalidConfig(f"there is another tool named {tool.name!r}")  # noqa: TRY301 - noted below
        except InvalidConfig as error:
            reader.problem(path, error)
        else:
            tools.append(tool)
    return tools


def _hooks(reader: Reader) -> list[object]:
    hooks: list[object] = []
    for path, text in reader.texts(("hooks",)):
        try:
            hook = load(text)
            hook = _made(hook) if isinstance(hook, type) else hook
            Hooks([hook])
        except InvalidConfig as error:
            reader.problem(path, error)
        else:
            hooks.append(hook)
    return hooks


def _made(kind: type[Any]) -> object:
    try:
        made: object = kind()
    except Exception as error:
        raise InvalidConfig(f"{kind.__name__}() raised {type(error).__name__}: {error}") from error
    return made


# -- agents and limits ------------------------------------------------------------------------------


def _agents(reader: Reader, models: Mapping[str, Model], tools: list[str]) -> tuple[AgentConfig, ...]:
    if not reader.table(("agents",)) and not reader.data.get("agents"):
        reader.problem(("agents",), "is missing: at least one agent, as in [agents.clerk]")
    return tuple(
        config
        for name in reader.tables(("agents",))
        if (config := _agent(reader, name, models, tools)) is not None
    )


def _agent(reader: Reader, name: str, models: Mapping[str, Model], tools: list[str]) -> AgentConfig | None:
    path: Path = ("agents", name)
    try:
        AgentConfig(name)
    except InvalidConfig as error:
        reader.problem(path, error)
        return None
    config = _read_agent(reader, path, name)
    for number, tool in enumerate(config.tools or ()):
        if tool not in tools:
            reader.problem((*path, "tools", number), f"there is no tool {tool!r}; {suggest(tool, tools)}")
    return _with_model(reader, path, config, models)


def _read_agent(reader: Reader, path: Path, name: str) -> AgentConfig:
    def read(key: str, written: Any) -> Any:
        return None if key == "compact_threshold" and written == NEVER else written

    hints = {"name": "is the table's own name"}
    return AgentConfig(name, **reader.fields(path, AgentConfig, hints=hints, read=read))


def _with_model(reader: Reader, path: Path, config: AgentConfig, models: Mapping[str, Model]) -> AgentConfig:
    """The config, with the only model that there is if it names none."""
    known = [*reader.table(("models",))]
    if not config.model and "model" not in reader.table(path):
        if len(known) == 1:
            return attrs.evolve(config, model=known[0])
        if known:
            reader.problem((*path, "model"), f"is missing: one of {', '.join(known)}")
    elif config.model not in known and isinstance(reader.table(path).get("model"), str):
        words = f"there is no model {config.model!r} in [models]; {suggest(config.model, known)}"
        reader.problem((*path, "model"), words)
    return config
