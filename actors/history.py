"""A conversation's live history: its entries, and the same in the form that models are asked in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import evolve

from actors.models.base import Message
from actors.models.encoded import Encoded
from persistence.records import HistoryEntry, ToolCall

INTERRUPTED = "interrupted: the turn was cancelled before this call gave a result"
ENTRY_BYTES = 600  # of an entry's objects, besides its text
CHARS_PER_TOKEN = 4


def to_wire(entry: HistoryEntry, viewer: str = "") -> Message:
    """One entry in OpenAI chat form, as the agent `viewer` sees it.

    "" is the conversation's own agent. What another agent said is shown as a user message inside
    `<from agent="name">` tags, so that a model never takes it for its own words.
    """
    if entry.role == "assistant" and entry.agent and entry.agent != viewer:
        return {"role": "user", "content": f'<from agent="{entry.agent}">\n{entry.content}\n</from>'}
    if entry.role == "tool":
        return {"role": "tool", "tool_call_id": entry.tool_call_id, "content": entry.content}
    if entry.tool_calls:
        return {
            "role": "assistant",
            "content": entry.content or None,
            "tool_calls": [_call_to_wire(call) for call in entry.tool_calls],
        }
    return {"role": entry.role, "content": entry.content}


def _call_to_wire(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def entry_chars(entry: HistoryEntry) -> int:
    """Characters of an entry that a model has to read."""
    chars = len(entry.content)
    for call in entry.tool_calls:  # no sum() of nothing: it is asked twice for each entry
        chars += len(call.name) + len(call.arguments)
    return chars


class LiveHistory:
    """What the model is shown of a conversation. Entries are only added, or replaced by a summary.

    The conversation actor alone changes it, and only with what is committed. `entries` and `wire` grow
    in place; a summary or a cut puts new lists there, so whoever holds a list keeps what it saw.

    Models refuse a tool call without its results, and a result without its call. Where the stored entries
    have such a thing, what the model is shown is repaired, visibly; `repairs` counts that. What is stored
    stays as it is.
    """

    __slots__ = ("_bytes", "_encoded", "_open_calls", "chars", "entries", "repairs", "wire")

    def __init__(self, entries: Iterable[HistoryEntry] = ()) -> None:
        self.entries: list[HistoryEntry] = []
        self.wire: list[Message] = []
        self.chars = 0
        self._bytes = 0
        self._encoded: Encoded | None = None
        self.repairs = 0
        self._open_calls: dict[str, ToolCall] | None = None  # calls of the last assistant entry
        if entries:
            self.extend(entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return self._bytes if self._encoded is None else self._bytes + self._encoded.size

    @property
    def encoded(self) -> Encoded:
        """The JSON of what the model is shown, for requests to share."""
        if self._encoded is None:
            self._encoded = Encoded(self.wire)
        return self._encoded

    def extend(self, entries: Iterable[HistoryEntry]) -> None:
        """Add committed entries at the end."""
        for entry in entries:
            if entry.role == "tool":
                self._add_result(entry)
            else:
                if self._open_calls is not None:
                    self.mend()
                self._add(entry)
                if entry.tool_calls:
                    self._open_calls = {call.id: call for call in entry.tool_calls}

    def mend(self) -> int:
        """Give every call that still has none an `interrupted` result; to be called before a model is asked.

        Returns:
            How many there were.
        """
        calls, self._open_calls = self._open_calls, None
        if not calls:
            return 0
        for call in calls.values():
            self._add(tool_result(call, INTERRUPTED))
        self.repairs += len(calls)
        return len(calls)

    def _add_result(self, entry: HistoryEntry) -> None:
        if self._open_calls is not None and self._open_calls.pop(entry.tool_call_id, None) is not None:
            self._add(entry)
            return
        self.repairs += 1
        self.mend()
        note = f"[a result of {entry.name or 'a tool'}, without the call that it answers]\n{entry.content}"
        self._add(HistoryEntry("user", note))

    def _add(self, entry: HistoryEntry) -> None:
        self.entries.append(entry)
        self.wire.append(to_wire(entry))
        chars = entry_chars(entry)
        self.chars += chars
        self._bytes += chars + ENTRY_BYTES

    def cut(self, length: int) -> None:
        """Drop the entries behind the first `length`."""
        dropped = self.entries[length:]
        chars = sum(entry_chars(entry) for entry in dropped)
        self.chars -= chars
        self._bytes -= chars + ENTRY_BYTES * len(dropped)
        self.entries, self.wire = self.entries[:length], self.wire[:length]
        self._open_calls = self._encoded = None

    def replace(self, summary: HistoryEntry) -> None:
        """Let `summary` stand for all entries so far."""
        self.entries = [summary]
        self.wire = [to_wire(summary)]
        self.chars = entry_chars(summary)
        self._bytes = self.chars + ENTRY_BYTES
        self._open_calls = self._encoded = None

    def seen_by(self, guest: str, host: str) -> list[Message]:
        """The history in wire form: as the host agent sees it, or as its guest `guest` does. Copy it to keep
        it: what the host sees is the live list, which grows behind what it holds now.

        A guest answers in text and has no tools: it is shown what was said, the host's words as those of
        another agent, and no tool calls.
        """
        if not guest:
            return self.wire
        return [
            to_wire(
                evolve(entry, agent=entry.agent or host, tool_calls=())
                if entry.role == "assistant"
                else entry,
                guest,
            )
            for entry in self.entries
            if entry.role != "tool" and not (entry.tool_calls and not entry.content)
        ]


def interrupted_results(
    calls: Sequence[ToolCall], results: Sequence[HistoryEntry | None]
) -> list[HistoryEntry]:
    """A result for every call, in call order: those without one get an `interrupted` result."""
    return [
        result if result is not None else tool_result(call, INTERRUPTED)
        for call, result in zip(calls, results, strict=True)
    ]


def tool_result(call: ToolCall, output: str) -> HistoryEntry:
    """The entry that answers `call`."""
    return HistoryEntry("tool", output, tool_call_id=call.id, name=call.name)


def resumed(
    archive: str | None, archive_content: str | None, live: Sequence[HistoryEntry]
) -> list[HistoryEntry]:
    """The history of a session that is brought back: its archive as the first user entry, then `live`."""
    if archive is None:
        return list(live)
    if archive_content is None:
        return [HistoryEntry("user", f"[archived context unavailable: {archive}]"), *live]
    return [HistoryEntry("user", archive_content), *live]
