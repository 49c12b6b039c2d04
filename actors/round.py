"""One model round: a stream of chunks becomes events and one whole answer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import frozen

from actors.errors import ModelError
from actors.events import (
    Event,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCallsBegin,
)
from actors.models.base import Chunk, Model, ModelRequest, ToolCallDelta
from actors.text import mend_text
from persistence.records import ToolCall, Usage

Emit = Callable[[Event], None]


@frozen
class Round:
    """A whole answer of a model."""

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish_reason: str | None
    usage: Usage | None

    @property
    def said_nothing(self) -> bool:
        """Neither text nor calls."""
        return not self.text and not self.calls


def run_round(model: Model, request: ModelRequest, emit: Emit | None) -> Round:
    """Ask a model and read its whole answer, in the calling greenlet.

    Args:
        emit: gets the events of the stream as they come; None where nobody listens.

    Raises:
        ModelError: the stream ended without a finish reason after something was said.
        BaseException: whatever the model raised. The stream is closed in any case.
    """
    return Reader(emit).read(model, request)


class Reader:
    """Reads one answer; keeps at most one segment open."""

    __slots__ = ("_calls", "_emit", "_finish_reason", "_open", "_reasoning", "_text", "_usage")

    def __init__(self, emit: Emit | None) -> None:
        self._emit = emit
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[Any]] = {}  # index -> [id, name, pieces of arguments]
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._open: type[Event] | None = None  # the end event that the open segment waits for

    def read(self, model: Model, request: ModelRequest) -> Round:
        """As `run_round`."""
        stream = model.stream(request)
        try:
            for chunk in stream:
                self.take(chunk)
        finally:
            if self._open is not None:
                self.end_segment()
            close = getattr(stream, "close", None)  # generators have one, other iterators need not
            if close is not None:
                close()
        return self.whole(request)

    def abandon(self) -> None:
        """Nobody waits for the answer any more: whatever still comes is shown to nobody."""
        self.end_segment()
        self._emit = None

    def take(self, chunk: Chunk) -> None:
        emit = self._emit
        if chunk.reasoning:
            reasoning = mend_text(chunk.reasoning)
            self._reasoning.append(reasoning)
            if emit is not None:
                if self._open is not ThinkingEnd:
                    self._segment(ThinkingStart, ThinkingEnd)
                emit(ThinkingDelta(reasoning))
        if chunk.text:
            text = mend_text(chunk.text)
            self._text.append(text)
            if emit is not None:
                if self._open is not TextEnd:
                    self._segment(TextStart, TextEnd)
                emit(TextDelta(text))
        for delta in chunk.tool_calls:
            self._take_call(delta)
        if chunk.finish_reason is not None:
            self._finish_reason = chunk.finish_reason
        if chunk.usage is not None:
            self._usage = chunk.usage

    def _take_call(self, delta: ToolCallDelta) -> None:
        first = not self._calls
        call = self._calls.setdefault(delta.index, [None, None, []])
        call[0] = call[0] or delta.id
        call[1] = call[1] or delta.name
        if delta.arguments:
            call[2].append(delta.arguments)
        if first and self._emit is not None:
            self.end_segment()
            self._emit(ToolCallsBegin(mend_text(delta.name or "")))

    def _segment(self, start: type[Event] | None, end: type[Event] | None) -> None:
        if self._open is end or self._emit is None:
            return
        if self._open is not None:
            self._emit(self._open())
        self._open = end
        if start is not None:
            self._emit(start())

    def end_segment(self) -> None:
        """Close the segment that is open, if one is."""
        self._segment(None, None)

    def whole(self, request: ModelRequest) -> Round:
        text = "".join(self._text)
        calls = self._whole_calls(request) if self._calls else ()
        if self._finish_reason is None and (text or calls or self._reasoning):
            raise ModelError(
                "the model's answer ended without a finish reason: it was cut off, nothing of it is kept",
                retryable=True,
            )
        return Round(text, "".join(self._reasoning), calls, self._finish_reason, self._usage)

    def _whole_calls(self, request: ModelRequest) -> tuple[ToolCall, ...]:
        given = {mend_text(call[0] or ""): True for call in self._calls.values()}
        taken: dict[str, bool] = {}
        calls: list[ToolCall] = []
        for index in sorted(self._calls):
            raw_id, name, pieces = self._calls[index]
            call_id = mend_text(raw_id or "")
            if not call_id or call_id in taken:  # an endpoint that gives none, or the same one twice
                call_id = _free_id(
                    f"call_{request.turn_id}_{len(request.messages)}_{index}", {**given, **taken}
                )
            taken[call_id] = True
            calls.append(ToolCall(call_id, mend_text(name or ""), mend_text("".join(pieces))))
        return tuple(calls)


def _free_id(wanted: str, taken: dict[str, bool]) -> str:
    """`wanted`, with a number behind it where it is taken."""
    if wanted not in taken:
        return wanted
    return next(f"{wanted}_{n}" for n in count(1) if f"{wanted}_{n}" not in taken)
