"""The check of a value that a model wrote against a JSON schema, in words that the model can act on.

It covers type, enum, const, anyOf, properties, required, additionalProperties, items, prefixItems and the
number of items. Other keywords are taken as met: a tool checks what matters to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

_KINDS = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def problem(value: Any, schema: Mapping[str, Any] | bool, where: str) -> str | None:
    """What is wrong with a value, in words for the model, or None."""
    if not isinstance(schema, Mapping):
        return f"{where} must not be given" if schema is False else None
    if "anyOf" in schema and (words := _problem_of_union(value, schema["anyOf"], where)):
        return words
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is not None and not any(_same(value, choice) for choice in choices):
        return f"{where} must be one of {', '.join(map(_show, choices))}, not {_show(value)}"
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted or []
    if kinds and not any(is_kind(value, kind) for kind in kinds):
        return f"{where} must be {_either(kinds)}, not {_show(value)}"
    if isinstance(value, dict):
        return "; ".join(object_problems(value, schema, where)) or None
    if isinstance(value, list):
        return _problem_of_array(value, schema, where)
    return None


def object_problems(value: Mapping[str, Any], schema: Mapping[str, Any], where: str = "") -> list[str]:
    """Everything that is wrong with an object's members, each in words for the model."""
    members: Mapping[str, Any] = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    found = [f"{_member(where, name)} is missing" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        if name in members:
            found.append(problem(item, members[name], _member(where, name)) or "")
        elif others is False:
            known = ", ".join(map(repr, members)) or "none"
            found.append(f"{_member(where, name)} is unknown (known: {known})")
        elif others is not True:
            found.append(problem(item, others, _member(where, name)) or "")
    return [words for words in found if words]


def is_kind(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a JSON type; it is of any type that is not known here."""
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return True


def _same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def _problem_of_union(value: Any, alternatives: Sequence[Mapping[str, Any] | bool], where: str) -> str | None:
    """What is wrong by the alternative of the value's own type, or else the types that there are."""
    kinds: list[str] = []
    nearest = None
    for alternative in alternatives:
        words = problem(value, alternative, where)
        if words is None:
            return None
        kind = alternative.get("type") if isinstance(alternative, Mapping) else None
        if not isinstance(kind, str) or is_kind(value, kind):
            nearest = nearest or words
        elif kind not in kinds:
            kinds.append(kind)
    return nearest or f"{where} must be {_either(kinds)}, not {_show(value)}"


def _problem_of_array(value: list[Any], schema: Mapping[str, Any], where: str) -> str | None:
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not least <= len(value) <= most:
        wanted = f"{least}" if least == most else f"{least} to {schema.get('maxItems', 'any number of')}"
        return f"{where} must have {wanted} items, not {len(value)}"
    first: Sequence[Any] = schema.get("prefixItems", ())
    rest: Any = schema.get("items", {})
    for place, item in enumerate(value):
        wants = first[place] if place < len(first) else rest
        if words := problem(item, wants, f"{where}[{place}]"):
            return words
    return None


def _member(where: str, name: str) -> str:
    return f"{where}.{name}" if where else f"argument {name!r}"


def _either(kinds: Sequence[str]) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds)


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else f'the text "{value[:40]}..."'
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value!r:.40}"
