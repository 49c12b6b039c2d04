"""The wire form of OpenAI-compatible chat completions: what is sent, and what the answers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from actors.models.base import Chunk, ModelRequest, ToolCallDelta
from actors.models.encoded import message_pieces, to_json
from actors.models.plain import message_text
from actors.text import mend_text
from persistence.records import Usage

ERROR_CHARS = 500

_RETRIED = (408, 409, 425, 429)
_CROWDED = (429, 503)
_TOOL_CHOICES = ("auto", "none", "required")


class Failed(Exception):
    """One attempt failed, for the reason in its text.

    Args:
        again: whether another attempt may succeed.
        later: whether one may succeed that is made some time later; as `again`, unless it is given.
        retry_after_s: seconds that the endpoint wants to be left alone before that.
        crowded: whether it wants that of all requests, because it gets too many.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = False,
        later: bool | None = None,
        retry_after_s: float | None = None,
        crowded: bool = False,
    ) -> None:
        super().__init__(reason)
        self.again = again
        self.later = again if later is None else later
        self.retry_after_s = retry_after_s
        self.crowded = crowded and retry_after_s is not None


def request_body(request: ModelRequest, extra: Mapping[str, Any]) -> bytes:
    """The JSON that asks for a streamed answer; `extra` is added last and wins."""
    body: dict[str, Any] = {}
    if request.model:
        body["model"] = request.model
    if request.tools:
        body["tools"] = request.tools
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice}}
        body["tool_choice"] = choice if choice in _TOOL_CHOICES else named
    if request.thinking:
        body["reasoning_effort"] = "medium"
    body |= {"stream": True, "stream_options": {"include_usage": True}, **extra}
    if "messages" in extra:
        return to_json({"messages": [], **body})
    # What is kept of the messages is copied once, however many there are, and nobody runs meanwhile.
    pieces = [part for piece in message_pieces(request) for part in (b",", piece)]
    return b"".join((b'{"messages":[', *pieces[1:], b"],", to_json(body)[1:]))


def may_retry(status: int) -> bool:
    """Whether a request that got this HTTP status may succeed when it is sent again."""
    return status in _RETRIED or status >= 500


def is_crowded(status: int) -> bool:
    """Whether this HTTP status says that the endpoint gets more requests than it can take."""
    return status in _CROWDED


class Answer:
    """Puts together one answer from the objects that an endpoint sends.

    `finish_reason` and `usage` hold what was said of them so far; `take` leaves them out.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self._ids: dict[int, str] = {}  # a tool call's index -> its id, "" while it is not known
        self._moved: dict[int, int] = {}  # an index that the endpoint used twice -> where it goes now

    def take(self, data: str) -> Chunk | None:
        """What one object adds, or None if that is nothing to pass on.

        Args:
            data: a chunk of a stream, or a whole completion, as JSON text.

        Raises:
            Failed: it is no JSON, has the wrong shape, or holds an error.
        """
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Failed(f"the endpoint sent what is not JSON: {_start(data)}", again=True) from None
        if isinstance(body, dict) and body.get("error"):
            raise _failure_in_stream(body)
        try:
            return self._read(body)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            what = f"the endpoint sent an object that is no chat completion: {_start(data)}"
            raise Failed(what, again=True) from None

    def _read(self, body: dict[str, Any]) -> Chunk | None:
        if body.get("usage"):
            self.usage = _usage(body["usage"])
        choice = next((c for c in body.get("choices") or () if c.get("index", 0) == 0), None)
        if choice is None:
            return None
        finish_reason = choice.get("finish_reason")
        if finish_reason is not None:
            self.finish_reason = str(finish_reason)
        said = choice.get("delta") or choice.get("message") or {}
        text = _said(said, "content") or _said(said, "refusal")
        reasoning = _said(said, "reasoning_content") or _said(said, "reasoning")
        deltas = tuple(self._delta(call) for call in said.get("tool_calls") or ())
        return Chunk(text, reasoning, deltas) if text or reasoning or deltas else None

    def _delta(self, call: dict[str, Any]) -> ToolCallDelta:
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        if isinstance(arguments, dict):  # some endpoints send the object instead of its text
            arguments = json.dumps(arguments, ensure_ascii=False)
        call_id, name = call.get("id") or None, function.get("name") or None
        return ToolCallDelta(
            self._place(call.get("index"), call_id, starts=call_id is not None or name is not None),
            None if call_id is None else _string(call_id),
            None if name is None else _string(name),
            _string(arguments),
        )

    def _place(self, index: int | None, call_id: str | None, *, starts: bool) -> int:
        """The call that a delta belongs to. Some endpoints leave the index out, or say 0 for every call."""
        if index is None:
            known = [place for place, known_id in self._ids.items() if call_id and known_id == call_id]
            last = max(self._ids, default=0)
            place = known[0] if known else self._free() if starts else last
        else:
            place = self._moved.get(int(index), int(index))
            if call_id and self._ids.get(place, call_id) not in ("", call_id):
                place = self._moved[int(index)] = self._free()
        self._ids[place] = self._ids.get(place) or call_id or ""
        return place

    def _free(self) -> int:
        return max(self._ids, default=-1) + 1


def error_text(status: int, phrase: str, body: bytes) -> str:
    """What an HTTP error says: its status, and the error object or text in its body, cut short."""
    text = body.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    said = _describe(found) if isinstance(found, dict) else text
    what = f"the endpoint answered {status} {phrase}".rstrip()
    return f"{what}: {_start(said)}" if said else what


def _failure_in_stream(body: dict[str, Any]) -> Failed:
    error = body["error"]
    code, kind = (error.get("code"), error.get("type")) if isinstance(error, dict) else (None, None)
    again = may_retry(code) if isinstance(code, int) else kind == "server_error"
    return Failed(f"the endpoint sent an error: {_start(_describe(body))}", again=again)


def _describe(body: dict[str, Any]) -> str:
    error = body.get("error") or body.get("detail") or body.get("message") or body
    if not isinstance(error, dict):
        return str(error)
    kind = error.get("type") or error.get("code")
    message = error.get("message")
    if not message:
        return json.dumps(error, ensure_ascii=False)
    return f"{kind}: {message}" if kind else str(message)


def _start(text: str) -> str:
    line = " ".join(text[: 4 * ERROR_CHARS].split())
    return line if len(line) <= ERROR_CHARS else f"{line[:ERROR_CHARS]}..."


def _said(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if isinstance(value, list):
        value = message_text({"content": value})
    return "" if value is None else mend_text(_string(value))


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {type(value).__name__}")
    return value


def _usage(usage: dict[str, Any]) -> Usage:
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Usage(
        prompt,
        completion,
        _count(usage, "total_tokens") or prompt + completion,
        _count(usage.get("prompt_tokens_details") or {}, "cached_tokens"),
        _count(usage.get("completion_tokens_details") or {}, "reasoning_tokens"),
    )


def _count(usage: dict[str, Any], name: str) -> int:
    return int(usage.get(name) or 0)
