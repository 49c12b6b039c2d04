"""Stored bodies: versioned JSON, written by hand for speed and read strictly.

Fields that are empty are left out. A body of another version or shape is an error, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring as quote
from typing import Any

from persistence.errors import RecordError
from persistence.records import NO_USAGE, HistoryEntry, JsonObject, ToolCall, TurnResult, Usage

VERSION = 1

_ENTRY_TEXTS = ("content", "tool_call_id", "name", "reasoning", "agent", "sender")
_STOP_REASONS = ("text_response", "max_iterations", "no_action", "error", "cancelled", "closed")
_USAGE = tuple(a.name for a in Usage.__attrs_attrs__)
_RESULT_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "stop_reason": (str,),
    "error": (str, type(None)),
    "steps": (int,),
    "usage": (Usage,),
    "model": (str,),
    "conversation_id": (int,),
    "turn_id": (int,),
    "retryable": (bool,),
}


def encode_entry(entry: HistoryEntry) -> str:
    """The body that `decode_entry` reads back as an equal entry."""
    body = f'{{"v":1,"role":"{entry.role}"'
    if entry.content:
        body += f',"content":{quote(entry.content)}'
    if entry.tool_calls:
        calls = ",".join(
            f'{{"id":{quote(c.id)},"name":{quote(c.name)},"arguments":{quote(c.arguments)}}}'
            for c in entry.tool_calls
        )
        body += f',"tool_calls":[{calls}]'
    if entry.tool_call_id:
        body += f',"tool_call_id":{quote(entry.tool_call_id)}'
    if entry.name:
        body += f',"name":{quote(entry.name)}'
    if entry.reasoning:
        body += f',"reasoning":{quote(entry.reasoning)}'
    if entry.agent:
        body += f',"agent":{quote(entry.agent)}'
    if entry.sender:
        body += f',"sender":{quote(entry.sender)}'
    return body + "}"


def decode_entry(body: str) -> HistoryEntry:
    """The entry that `encode_entry` wrote.

    Raises:
        RecordError: not JSON, or of an unknown version or shape.
    """
    return _entry(_loads(body, "a history entry"))


def decode_entries(bodies: Sequence[str]) -> list[HistoryEntry]:
    """`decode_entry` of each, by one call of the JSON reader; `RecordError` as there."""
    try:
        fields = json.loads(f"[{','.join(bodies)}]")
    except ValueError:
        fields = ()
    if len(fields) != len(bodies):  # some body is not one JSON value: find out which
        return [decode_entry(body) for body in bodies]
    return [_entry(each) for each in fields]


def encode_result(result: TurnResult) -> str:
    """The body that `decode_result` reads back as an equal result."""
    body = f'{{"v":1,"stop_reason":{quote(result.stop_reason)}'
    if result.text:
        body += f',"text":{quote(result.text)}'
    if result.error is not None:
        body += f',"error":{quote(result.error)}'
    if result.steps:
        body += f',"steps":{result.steps:d}'
    if result.usage is not NO_USAGE and (counts := _counts(result.usage)):
        body += f',"usage":{{{counts[1:]}}}'
    if result.model:
        body += f',"model":{quote(result.model)}'
    if result.conversation_id:
        body += f',"conversation_id":{result.conversation_id:d}'
    if result.turn_id:
        body += f',"turn_id":{result.turn_id:d}'
    if result.retryable:
        body += ',"retryable":true'
    return body + "}"


def _counts(usage: Usage) -> str:
    # Spelt out: a loop over the fields costs more than all the rest of a result.
    counts = ""
    if usage.prompt_tokens:
        counts += f',"prompt_tokens":{usage.prompt_tokens:d}'
    if usage.completion_tokens:
        counts += f',"completion_tokens":{usage.completion_tokens:d}'
    if usage.total_tokens:
        counts += f',"total_tokens":{usage.total_tokens:d}'
    if usage.cached_tokens:
        counts += f',"cached_tokens":{usage.cached_tokens:d}'
    if usage.reasoning_tokens:
        counts += f',"reasoning_tokens":{usage.reasoning_tokens:d}'
    return counts


def decode_result(body: str) -> TurnResult:
    """The result that `encode_result` wrote.

    Raises:
        RecordError: not JSON, or of an unknown version or shape.
    """
    fields = _checked(_loads(body, "a turn's result"), "a turn's result")
    if fields.get("stop_reason") not in _STOP_REASONS:
        raise RecordError(f"a stored turn's result has the unknown stop reason {fields.get('stop_reason')!r}")
    usage = fields.get("usage", {})
    if not isinstance(usage, dict) or not all(k in _USAGE and type(n) is int for k, n in usage.items()):
        raise RecordError("a stored turn's result has a usage of an unknown shape")
    fields["usage"] = Usage(**usage)
    for name, value in fields.items():
        if type(value) not in _RESULT_TYPES.get(name, ()):  # by `type`: True is an int, but no count
            raise RecordError(f"a stored turn's result has the field {name!r} with an unknown shape")
    return TurnResult(text=fields.pop("text", ""), **fields)


def _loads(body: str, what: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{what} is stored as something that is not JSON: {error}") from error


def _checked(fields: Any, what: str) -> JsonObject:
    if not isinstance(fields, dict):
        raise RecordError(f"{what} is stored as a {type(fields).__name__}, not as an object")
    version = fields.pop("v", None)
    if version != VERSION or isinstance(version, bool):
        raise RecordError(f"{what} is stored in version {version!r}; this Palaver reads version {VERSION}")
    return fields


def _entry(fields: Any) -> HistoryEntry:
    fields = _checked(fields, "a history entry")
    calls = fields.pop("tool_calls", None)
    try:
        if calls is not None:
            fields["tool_calls"] = tuple(_call(call) for call in calls)
        entry = HistoryEntry(**fields)
    except (TypeError, ValueError) as error:
        raise RecordError(f"a history entry is stored in an unknown shape: {error}") from error
    for name in _ENTRY_TEXTS:
        if name in fields and not isinstance(fields[name], str):
            raise RecordError(f"a history entry is stored with a {name} that is not text")
    return entry


def _call(fields: Any) -> ToolCall:
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise RecordError("a tool call is stored in an unknown shape")
    return ToolCall(**fields)
