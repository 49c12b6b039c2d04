"""What a function's signature and docstring say to a model: its arguments, as a JSON schema."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from attrs import frozen

from actors.errors import InvalidConfig
from actors.schema_check import Schema, problem
from actors.schemas import Shape, shape_of, union_of

CONTEXT = "call"

_ARGUMENTS = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_REFUSED = {
    inspect.Parameter.VAR_POSITIONAL: "takes *{}, and a model gives arguments by name; remove it",
    inspect.Parameter.POSITIONAL_ONLY: "takes {} by position only, and a model gives arguments by name",
}


@frozen
class Signature:
    """A function as a model sees it.

    `shapes` has the arguments it takes by name; `takes_any` is whether it takes others too;
    `wants_context` whether it asks for the call's context.
    """

    parameters: Schema
    shapes: Mapping[str, Shape]
    takes_any: bool
    wants_context: bool


def read_signature(function: Callable[..., Any]) -> Signature:
    """The arguments of a function, with types from annotations and descriptions from the docstring.

    An argument whose default is None may be null. An annotation in text whose names cannot be resolved,
    and a missing one, take anything.

    Raises:
        InvalidConfig: *args, positional-only arguments, or a type that JSON has no form for.
    """
    hints, docs = _hints(function), argument_docs(doc_of(function))
    shapes: dict[str, Shape] = {}
    required: list[str] = []
    takes_any = False
    for name, parameter in _parameters(function).items():
        if parameter.kind in _REFUSED:
            raise InvalidConfig(f"the tool's function {_REFUSED[parameter.kind].format(name)}")
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_any = True
        elif name != CONTEXT:
            shape = shape_of(hints.get(name, Any), f"argument {name!r}")
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
            elif parameter.default is None and problem(None, shape.schema, "") is not None:
                shape = union_of([shape, Shape({"type": "null"})])
            shapes[name] = _described(shape, docs.get(name))
    parameters: Schema = {
        "type": "object",
        "properties": {name: shape.schema for name, shape in shapes.items()},
        "additionalProperties": takes_any,
    }
    if required:
        parameters["required"] = required
    return Signature(parameters, shapes, takes_any, wants_context(function))


def wants_context(function: Callable[..., Any]) -> bool:
    """Whether the function has an argument named `call`."""
    return CONTEXT in _parameters(function)


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether the function has `**` arguments."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(function).values())


def doc_of(function: Callable[..., Any]) -> str:
    """The docstring of a function, "" if it has none."""
    return inspect.getdoc(_unwrapped(function)) or ""


def summary(doc: str) -> str:
    """The first paragraph of a docstring, on one line; "" if it begins with its arguments."""
    paragraph = re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0]
    lines = [line.strip() for line in paragraph.splitlines()]
    return "" if lines and _ARGUMENTS.match(lines[0]) else " ".join(lines)


def argument_docs(doc: str) -> dict[str, str]:
    """The descriptions in a docstring's `Args:` section, each on one line."""
    lines = iter(doc.splitlines())
    if not any(_ARGUMENTS.match(line) for line in lines):
        return {}
    found: dict[str, list[str]] = {}
    margin = name = None
    for line in lines:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if not text:
            continue
        if indent == 0:
            break
        margin = indent if margin is None else margin
        entry = _ENTRY.match(text) if indent <= margin else None
        if entry:
            name = entry[1]
            found[name] = [entry[2]] if entry[2] else []
        elif name is not None:
            found[name].append(text)
    return {argument: " ".join(words) for argument, words in found.items() if words}


def _described(shape: Shape, words: str | None) -> Shape:
    return shape if words is None else Shape({**shape.schema, "description": words}, shape.load)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InvalidConfig(
            f"the signature of {function!r} cannot be read; wrap it in a function of your own"
        ) from error


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, resolved one by one where they cannot be all at once."""
    target = _unwrapped(function)
    if inspect.isclass(target):
        target = target.__init__
    elif not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except Exception:
        return _resolved_singly(target)


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _resolved_singly(target: Any) -> dict[str, Any]:
    found = {}
    names = getattr(inspect.unwrap(target), "__globals__", {})
    for name, annotation in getattr(target, "__annotations__", {}).items():
        single = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found.update(get_type_hints(single, globalns=names, include_extras=True))
        except Exception:
            found[name] = Any
    return found
