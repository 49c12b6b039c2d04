"""A memory entry as a Markdown file: front matter with its exact fields, then the content."""

from __future__ import annotations

import json
from typing import Any

from persistence.errors import RecordError
from persistence.records import JsonObject

VERSION = 1

_FENCE = "---"
_FIELDS: dict[str, tuple[type, ...]] = {
    "agent": (str,),
    "scope": (str,),
    "kind": (str,),
    "name": (str,),
    "aliases": (list, str),
    "created_at": (float, int),
    "handle": (str, type(None)),
}


def encode_memory(row: JsonObject) -> bytes:
    """The file of a row of memory, that `decode_memory` reads back as the same row."""
    head = [_FENCE, f"palaver-memory: {VERSION}"]
    for name in _FIELDS:
        value = row[name]
        if name == "aliases":
            value = _nested_aliases(value)
        head.append(f"{name}: {_visible(json.dumps(value, ensure_ascii=False))}")
    return "\n".join([*head, _FENCE, row["content"], ""]).encode()


def decode_memory(data: bytes, where: str) -> JsonObject:
    """The row of a file.

    Args:
        where: the file's name, for errors.

    Raises:
        RecordError: not such a file; names the line.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecordError(f"{where}, line {line}: not UTF-8: {error.reason}") from error
    lines = text.split("\n", len(_FIELDS) + 3)
    expected = [_FENCE, f"palaver-memory: {VERSION}"]
    for number, wanted in enumerate(expected, start=1):
        if lines[number - 1 : number] != [wanted]:
            raise RecordError(f"{where}, line {number}: {wanted!r} should be here")
    row: JsonObject = {}
    for number, name in enumerate(_FIELDS, start=len(expected) + 1):
        row[name] = _field(lines[number - 1 : number], name, f"{where}, line {number}")
    end = len(expected) + len(_FIELDS)
    if lines[end : end + 1] != [_FENCE] or len(lines) != end + 2:
        raise RecordError(f"{where}, line {end + 1}: {_FENCE!r} should be here, and content after it")
    if isinstance(row["aliases"], list):
        row["aliases"] = json.dumps(row["aliases"], ensure_ascii=False)
    row["content"] = lines[-1].removesuffix("\n")
    return row


def _field(line: list[str], name: str, at: str) -> Any:
    key, _, value = (line[0] if line else "").partition(": ")
    if key != name:
        raise RecordError(f"{at}: {name!r} should be here, with its value as JSON")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{at}: the value of {name!r} is not JSON: {error}") from error
    if not isinstance(found, _FIELDS[name]) or isinstance(found, bool):
        raise RecordError(f"{at}: {name!r} cannot be {value}")
    if name == "aliases" and isinstance(found, list) and not all(isinstance(each, str) for each in found):
        raise RecordError(f"{at}: each of the aliases must be text")
    return found


def _nested_aliases(stored: str) -> list[str] | str:
    """Stored aliases as a list; as the text itself where the list would not be stored the same."""
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        return stored
    texts = isinstance(found, list) and all(isinstance(each, str) for each in found)
    return found if texts and json.dumps(found, ensure_ascii=False) == stored else stored


def _visible(value: str) -> str:
    """JSON with escapes for what an editor could take for a line break, or not show."""
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in value)
