"""Records and events as JSON values, and back: one rule for every attrs class that callers see."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

import actors.events
from actors.events import Event
from palaver.host.errors import ProtocolError

T = TypeVar("T")

_EVENTS: dict[str, type[Event]] = {
    name: value
    for name, value in vars(actors.events).items()
    if isinstance(value, type) and issubclass(value, Event)
}

_HINTS: dict[Any, dict[str, Any]] = {}  # each class's, read once


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; records become objects with their fields' names."""
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def event_to_wire(event: Event) -> dict[str, Any]:
    """An event: its fields, and its class's name as `type`."""
    return {"type": type(event).__name__, **plain(event)}


def event_from_wire(fields: Any) -> Event | None:
    """The event that `event_to_wire` wrote, or None for one of a kind that this Palaver does not know.

    Raises:
        ProtocolError: of an unknown shape.
    """
    if not isinstance(fields, dict):
        raise ProtocolError(f"an event came as {fields!r}")
    kind = _EVENTS.get(str(fields.get("type")))
    return None if kind is None else record(kind, fields)


def record(kind: type[T], fields: Any) -> T:
    """The record of the class `kind` that `plain` wrote. Fields that it does not know are left out: a newer
    host has more.

    Raises:
        ProtocolError: a field is missing, or of another shape.
    """
    if not isinstance(fields, dict):
        raise ProtocolError(f"the host sent {fields!r} where a {kind.__name__} was expected")
    try:
        return kind(
            **{name: _as(hint, fields[name]) for name, hint in _hints(kind).items() if name in fields}
        )
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"the host sent a {kind.__name__} of an unknown shape: {error}") from error


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = get_type_hints(kind)
        _HINTS[kind] = {field.name: hints[field.name] for field in attrs.fields(kind)}
    return _HINTS[kind]


def _as(hint: Any, value: Any) -> Any:
    """`value` as its annotation says: only what holds records needs anything done."""
    if attrs.has(hint):
        return record(hint, value)
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _as_one_of(arguments, value)
    if origin in (tuple, list) and isinstance(value, list):
        items = [_as(arguments[0], each) for each in value]
        return tuple(items) if origin is tuple else items
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _as(arguments[1], each) for key, each in value.items()}
    if origin is None and isinstance(hint, type) and not _fits(hint, value):
        raise TypeError(f"{value!r} is no {hint.__name__}")
    if origin is Literal and value not in arguments:
        raise TypeError(f"{value!r} is none of {arguments}")
    return value


def _as_one_of(choices: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        return None
    for choice in choices:
        if choice is not types.NoneType:
            try:
                return _as(choice, value)
            except (TypeError, ProtocolError):
                continue
    raise TypeError(f"{value!r} is none of {choices}")


def _fits(hint: type[Any], value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint)
