"""Tools: functions that a model may call, the registry of them, and the one way to call one.

A tool runs in a greenlet of its own, so it may block through gevent; it must not block the thread.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen
from gevent import GreenletExit

from actors.errors import InvalidConfig
from actors.logs import log
from actors.schema_check import Schema, object_problems
from actors.signature import (
    CONTEXT,
    Signature,
    doc_of,
    read_signature,
    summary,
    takes_any,
    wants_context,
)
from actors.text import cut_text, describe_error, mend_text
from actors.tool_json import BadArguments, BadResult, read_arguments, result_text

logger = logging.getLogger("palaver.tools")

OUTPUT_CHARS = 200_000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@frozen
class ToolContext:
    """Who is calling: what a tool gets that asks for an argument named `call`."""

    agent: str
    sender: str
    conversation_id: int
    turn_id: int
    call_id: str


@frozen
class ToolOutcome:
    """What the model gets to read: a result, or the text of an error."""

    output: str
    is_error: bool = False
    cut: bool = field(default=False, eq=False)  # it was longer than `Limits.tool_output_chars`


class Tool:
    """A function that a model may call.

    Args:
        function: gets the model's arguments by name, as the types that its annotations say (an Enum's
            member, an attrs class's or dataclass's instance), and a `ToolContext` as `call` if it has an
            argument of that name. It returns text, or anything JSON can hold; None is an empty text.
        name: 1 to 64 letters, digits, "_" and "-"; the function's own name if None.
        description: for the model; the first paragraph of the docstring if None.
        parameters: the JSON schema of the arguments, used as it is; then the function gets plain JSON
            values. From the signature, and the docstring's `Args:` section, if None.

    `schema` is the OpenAI function schema; read it, do not change it.

    Raises:
        InvalidConfig: saying what of this cannot be used.
    """

    __slots__ = ("_checked", "_signature", "description", "function", "name", "parameters", "schema")

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        _check_function(function)
        self.function = function
        self.name = _checked_name(function, name)
        self.description = _checked_description(function, description)
        try:
            self._signature = (
                _given(function, parameters) if parameters is not None else read_signature(function)
            )
        except InvalidConfig as error:
            raise InvalidConfig(f"tool {self.name!r}: {error}") from error
        self.parameters = self._signature.parameters
        self._checked = {"additionalProperties": self._signature.takes_any, **self.parameters}
        self.schema: Schema = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    def calling(self, function: Callable[..., Any]) -> Tool:
        """This tool with another function of the same signature, which is not read again: that is slow."""
        other = copy.copy(self)
        other.function = function
        return other

    def call(self, arguments: str, context: ToolContext) -> str:
        """Call the function with arguments that a model wrote, and return its result as text.

        Args:
            arguments: JSON text of an object; empty text is an object without members. Half surrogate
                pairs and NULs in it are shown as U+FFFD.
            context: handed to a function that asks for `call`.

        Raises:
            BadArguments: not JSON, not an object, or not what the schema says.
            BadResult: the result is not something JSON can hold.
            BaseException: whatever the function raises.
        """
        values = self._load(read_arguments(arguments))
        if self._signature.wants_context:
            values[CONTEXT] = context
        return result_text(self.function(**values))

    def _load(self, values: dict[str, Any]) -> dict[str, Any]:
        problems = object_problems(values, self._checked)
        if CONTEXT in values and self._signature.wants_context:
            problems.append(f"argument {CONTEXT!r} is not yours to give")
        if problems:
            raise BadArguments("; ".join(problems))
        shapes = self._signature.shapes
        loaded = {}
        for name, value in values.items():
            try:
                loaded[name] = shapes[name].load(value) if name in shapes else value
            except Exception as error:
                raise BadArguments(f"argument {name!r} is not acceptable: {describe_error(error)}") from error
        return loaded


class ToolRegistry:
    """The tools of one runtime, by name, in the order in which they were added.

    Args:
        tools: `Tool`s, or functions that become one.

    Raises:
        InvalidConfig: two of one name, or something that is neither.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._schemas: dict[tuple[str, ...] | None, list[Schema]] = {}
        for tool in tools:
            self.add(tool)

    def add(self, tool: Tool | Callable[..., Any]) -> Tool:
        """Add a tool; agents that are registered already do not see it.

        Raises:
            InvalidConfig: its name is taken.
        """
        tool = tool if isinstance(tool, Tool) else Tool(tool)
        if tool.name in self._tools:
            raise InvalidConfig(f"there are two tools named {tool.name!r}; give one another name=")
        self._tools[tool.name] = tool
        self._schemas.clear()
        return tool

    def get(self, name: str) -> Tool | None:
        """The tool of this name, or None."""
        return self._tools.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tools, in order."""
        return tuple(self._tools)

    def check(self, names: Iterable[str] | None) -> None:
        """Make sure that every name is a tool's; None is all of them.

        Raises:
            InvalidConfig: naming those that are not, and the tools that there are.
        """
        unknown = [name for name in names or () if name not in self._tools]
        if unknown:
            known = _list(self._tools)
            raise InvalidConfig(f"there is no tool {_list(unknown)}; the tools are: {known}")

    def schemas(self, names: tuple[str, ...] | None = None) -> list[Schema]:
        """The OpenAI function schemas of some tools, or of all, in the registry's order.

        The list is made once for each `names`: read it, do not change it.

        Raises:
            InvalidConfig: an unknown name.
        """
        found = self._schemas.get(names)
        if found is None:
            self.check(names)
            found = [tool.schema for tool in self._tools.values() if names is None or tool.name in names]
            self._schemas[names] = found
        return found


def dispatch(
    registry: ToolRegistry,
    name: str,
    arguments: str,
    context: ToolContext,
    *,
    most: int = OUTPUT_CHARS,
    allowed: Callable[[str], bool] | None = None,
) -> ToolOutcome:
    """Call a tool by name. Whatever goes wrong becomes a text, beginning with "error: ", for the model.

    Args:
        registry: the tools that there are.
        name: what the model called.
        arguments: JSON text, as the model wrote it.
        context: whose call it is.
        most: characters of output; a longer one is cut, visibly.
        allowed: whether the agent may call a tool of this name; None allows all.

    What the tool raises is logged. A BaseException (a Timeout, SystemExit) is an error like any other,
    except for GreenletExit, which is how a cancel ends the greenlet: that one is raised.
    """
    tool = registry.get(name) if allowed is None or allowed(name) else None
    if tool is None:
        known = _list(n for n in registry.names if allowed is None or allowed(n))
        return _error(f"there is no tool {name!r}; the tools are: {known}", most)
    try:
        output = mend_text(tool.call(arguments, context))
        return ToolOutcome(cut_text(output, most), cut=len(output) > most)
    except GreenletExit:
        raise
    except BadArguments as error:
        _say(logging.INFO, "a tool was called with bad arguments", name, context, reason=str(error))
        return _error(f"{name} was not called: {error}", most)
    except BaseException as error:
        _say(logging.WARNING, "a tool failed", name, context, error=error)
        return _error(describe_error(error, named=not isinstance(error, BadResult)), most)


def _error(words: str, most: int) -> ToolOutcome:
    return ToolOutcome(cut_text(mend_text(f"error: {words}"), most), is_error=True)


def _say(
    level: int,
    words: str,
    tool: str,
    context: ToolContext,
    *,
    reason: str | None = None,
    error: BaseException | None = None,
) -> None:
    log(
        logger,
        level,
        words,
        agent=context.agent,
        sender=context.sender,
        conversation=context.conversation_id,
        turn=context.turn_id,
        tool=tool,
        call=context.call_id,
        reason=reason,
        error=error,
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


# -- a tool's parts -----------------------------------------------------------------------------------


def _check_function(function: object) -> None:
    if not callable(function):
        raise InvalidConfig(f"a tool's function must be callable, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidConfig(f"{function!r} is async; a tool is a plain function that blocks through gevent")


def _checked_name(function: object, name: object) -> str:
    given = getattr(function, "__name__", None) if name is None else name
    if name is None and (not isinstance(given, str) or given == "<lambda>"):
        raise InvalidConfig(f"{function!r} has no name of its own; give name=")
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise InvalidConfig(
            f'a tool\'s name is 1 to 64 letters, digits, "_" and "-", not {given!r}; give name='
        )
    return given


def _checked_description(function: Callable[..., Any], description: object) -> str:
    if description is None:
        return mend_text(summary(doc_of(function)))
    if not isinstance(description, str):
        raise InvalidConfig(f"a tool's description must be text, not {type(description).__name__}")
    return mend_text(description)


def _given(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Signature:
    """A schema from the user; it refuses unknown arguments unless it, or the function, takes them."""
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise InvalidConfig('parameters must be a dict, a JSON schema with "type": "object"')
    try:
        schema = json.loads(json.dumps(parameters, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"parameters is not a JSON schema: {error}") from error
    if not isinstance(schema.get("properties", {}), dict) or not isinstance(schema.get("required", []), list):
        raise InvalidConfig(
            "parameters must have an object as its properties, and a list of names as required"
        )
    return Signature(schema, {}, takes_any(function), wants_context(function))
