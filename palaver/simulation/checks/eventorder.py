"""What the order of the events of one reader has to be."""

from __future__ import annotations

from actors.events import (
    Done,
    Event,
    Lagged,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCallsComplete,
    ToolCallsStart,
    ToolResult,
)

_SEGMENTS = {TextStart: "text", ThinkingStart: "thinking"}
_DELTAS = {TextDelta: "text", ThinkingDelta: "thinking"}
_ENDS = {TextEnd: "text", ThinkingEnd: "thinking"}


class EventOrder:
    """Deltas and ends only in their open segment, one segment at a time, results only of calls that started.

    After `Lagged`, the segment that was open may go on or not.

    Args:
        first: what the first piece of a text begins with, so that a piece behind a lost one is seen.
    """

    def __init__(self, first: str = "") -> None:
        self.done = False
        self._first = first
        self._fresh = False
        self._open: str | None = None
        self._lagged = False
        self._calls: dict[str, bool] | None = None  # under way -> whether its result came

    def take(self, event: Event) -> str:
        """What is wrong with this event here; "" if nothing is."""
        kind = type(event)
        if isinstance(event, Lagged):
            self._lagged = True
            self._calls = None
        elif kind in _SEGMENTS:
            if self._open is not None and not self._lagged:
                return f"{event} in the open segment {self._open}"
            self._open, self._lagged, self._fresh = _SEGMENTS[kind], False, True
        elif kind in _DELTAS or kind in _ENDS:
            wanted = _DELTAS.get(kind) or _ENDS.get(kind)
            if self._open != wanted:
                return f"{event} where the open segment is {self._open}"
            if isinstance(event, TextDelta):
                if self._fresh and not event.text.startswith(self._first):
                    return f"{event} where the first piece of a text should be"
                self._fresh = False
            if kind in _ENDS:
                self._open = None
        elif isinstance(event, ToolCallsStart):
            self._calls = {call.id: False for call in event.calls}
        elif isinstance(event, ToolResult) and self._calls is not None:
            if self._calls.get(event.call_id) is not False:
                return f"{event} twice, or of a call that did not start"
            self._calls[event.call_id] = True
        elif isinstance(event, ToolCallsComplete) and self._calls is not None:
            if not all(self._calls.values()):
                return f"{event}, but not all of {self._calls} have results"
            self._calls = None
        elif isinstance(event, Done) and event.result.steps == 0:
            self.done = True  # perhaps of a turn that did not run, in the middle of another's events
        elif isinstance(event, Done):
            if self._open is not None and not self._lagged:
                return f"{event} in the open segment {self._open}"
            self.done, self._open, self._calls, self._lagged = True, None, None, False
        return ""
