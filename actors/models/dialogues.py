"""Recorded dialogues as a model and its tools: a replay that notices what is lost, doubled or reordered.

A recording says, for each turn, what the user said, the service calls made before the answer (often
none), and the answer. Call ids follow from the place in the recording, so that what a run must have
stored is known to the letter: `expected_entries`, `compare`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import gevent
from attrs import define

from actors.errors import InvalidInput, ModelError
from actors.models.base import Chunk, Message, ModelRequest
from actors.models.plain import message_text
from actors.models.recordings import Dialogue, DialogueTurn, RecordedCall, by_id, read_dialogues
from actors.models.scripted import Reply, ScriptedModel
from actors.tools import Tool, ToolContext
from persistence.records import HistoryEntry, ToolCall

__all__ = [
    "ACKNOWLEDGED",
    "Dialogue",
    "DialogueTurn",
    "RecordedCall",
    "RecordedModel",
    "compare",
    "expected_entries",
    "read_dialogues",
    "recorded_tools",
    "tool_calls",
]

ACKNOWLEDGED = "Noted, thank you."


@define
class _Cursor:
    """Where a dialogue is: its turn, and what of that turn the model has said last."""

    turn: int = 0
    said: Literal["nothing", "calls", "answer"] = "nothing"


class RecordedModel:
    """A model that gives the recorded calls and answers; `ModelRequest.sender` picks the dialogue.

    A turn begins when its recorded user text is among the user messages after the last assistant
    message (more of them may be there: steers). The recorded calls come first, all in one step, then the
    answer. A turn that is run again, after a cancel or a crash, gets the same again. Any other
    message is a `ModelError` that says which text was expected. Summaries and titles are those of
    `ScriptedModel`.

    Args:
        dialogues: each with an id of its own.
        delay_s: seconds before each reply, or a function of the request that gives them.
        chunk_chars: characters of one chunk; 0 or None says everything at once.
        sleep: what waits for `delay_s`.

    `stream` runs in the calling greenlet. One conversation of each sender, one turn at a time.
    """

    def __init__(
        self,
        dialogues: Iterable[Dialogue],
        *,
        delay_s: float | Callable[[ModelRequest], float] = 0.0,
        chunk_chars: int | None = 16,
        sleep: Callable[[float], object] = gevent.sleep,
    ) -> None:
        self._dialogues = by_id(dialogues)
        self._cursors = {sender: _Cursor() for sender in self._dialogues}
        self._allowed: dict[str, list[str]] = {}
        self._delay_s = delay_s
        self._chunk_chars = chunk_chars
        self._scripted = ScriptedModel(self._reply, sleep=sleep, keep_requests=0)

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """What was recorded for this place in the sender's dialogue."""
        return self._scripted.stream(request)

    def allow(self, sender: str, text: str) -> None:
        """Take `text`, which is not in the recording, from `sender`: alone in a turn, it is acknowledged.

        For steers: one that comes too late for its turn becomes a turn of its own.
        """
        self._allowed.setdefault(sender, []).append(text)

    def seek(self, sender: str, turn: int) -> None:
        """Go on with turn number `turn` (from 0; the number of turns when all are answered).

        For a new model on a file that was begun with another one.

        Raises:
            InvalidInput: there is no such turn.
            ModelError: there is no such sender.
        """
        dialogue = self._dialogue(sender)
        if not 0 <= turn <= len(dialogue.turns):
            raise InvalidInput(
                f"dialogue {sender!r} has {len(dialogue.turns)} turns; there is no turn {turn}"
            )
        everything = turn == len(dialogue.turns)
        self._cursors[sender] = _Cursor(turn - 1, "answer") if everything else _Cursor(turn)

    def _reply(self, request: ModelRequest) -> Reply:
        dialogue = self._dialogue(request.sender)
        text, calls = self._advance(dialogue, request.messages)
        delay_s = self._delay_s(request) if callable(self._delay_s) else self._delay_s
        return Reply(text, tool_calls=calls, delay_s=delay_s, chunk_chars=self._chunk_chars)

    def _advance(self, dialogue: Dialogue, messages: list[Message]) -> tuple[str, tuple[ToolCall, ...]]:
        cursor = self._cursors[dialogue.id]
        heard = _unanswered(messages)
        following = dialogue.turns[cursor.turn + 1 : cursor.turn + 2]
        if cursor.said == "answer" and following and following[0].user in heard:
            cursor.turn += 1
            cursor.said = "nothing"
        turn = dialogue.turns[cursor.turn]
        if turn.user in heard:
            if turn.calls:
                cursor.said = "calls"
                return "", tool_calls(cursor.turn, turn)
        elif cursor.said != "calls" and not _made_calls(messages, tool_calls(cursor.turn, turn)):
            if heard and all(text in self._allowed.get(dialogue.id, ()) for text in heard):
                return ACKNOWLEDGED, ()
            raise ModelError(_unexpected(dialogue, cursor, heard))
        cursor.said = "answer"
        return turn.assistant, ()

    def _dialogue(self, sender: str) -> Dialogue:
        try:
            return self._dialogues[sender]
        except KeyError:
            raise ModelError(
                f"no dialogue of the sender {sender!r} was recorded; a sender must be a dialogue's id"
            ) from None


def _unanswered(messages: list[Message]) -> list[str]:
    """The user texts after the last assistant message, oldest first."""
    texts: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        if message["role"] == "user":
            texts.append(message_text(message))
    return texts[::-1]


def _made_calls(messages: list[Message], calls: tuple[ToolCall, ...]) -> bool:
    """Whether the last assistant message made these calls: a turn that was recovered after that step."""
    last = next((message for message in reversed(messages) if message["role"] == "assistant"), {})
    made = [call["id"] for call in last.get("tool_calls") or ()]
    return bool(calls) and made == [call.id for call in calls]


def _unexpected(dialogue: Dialogue, cursor: _Cursor, heard: list[str]) -> str:
    turn = cursor.turn + (cursor.said == "answer")
    what = f"dialogue {dialogue.id!r}, turn {turn}: "
    if turn < len(dialogue.turns):
        what += f"expected the user text {dialogue.turns[turn].user!r}"
    else:
        what += "expected nothing more, all turns were answered"
    return f"{what}; got {heard!r}"


# -- the tools, and what must be stored ----------------------------------------------------------------


def tool_calls(number: int, turn: DialogueTurn) -> tuple[ToolCall, ...]:
    """The calls of turn `number` as a model makes them, with ids that follow from their place."""
    return tuple(
        ToolCall(f"call_{number}_{i}", call.name, json.dumps(call.arguments, ensure_ascii=False))
        for i, call in enumerate(turn.calls)
    )


def _results(call: RecordedCall) -> str:
    return json.dumps(call.results, ensure_ascii=False)


@define
class _Recorded:
    """The results of one call of one sender: by call id, and in recorded order for other ids."""

    by_id: dict[str, str] = attrs.field(factory=dict)
    in_order: deque[str] = attrs.field(factory=deque)

    def take(self, call_id: str) -> str:
        if call_id in self.by_id:
            return self.by_id[call_id]
        return self.in_order.popleft() if len(self.in_order) > 1 else self.in_order[0]


def recorded_tools(dialogues: Iterable[Dialogue]) -> list[Tool]:
    """One tool for each service call's name, in the order of first use.

    A tool gives the results, as a JSON list, that were recorded for its sender and arguments: those of
    the call with this id if `RecordedModel` made it, else those of the next such call in recorded order;
    the last ones are given again and again. A call that was not recorded is an error result.
    """
    recorded: dict[str, dict[tuple[str, str], _Recorded]] = {}
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue.turns):
            for made, call in zip(tool_calls(number, turn), turn.calls, strict=True):
                found = recorded.setdefault(call.name, {}).setdefault(
                    (dialogue.id, _canonical(call.arguments)), _Recorded()
                )
                found.by_id[made.id] = _results(call)
                found.in_order.append(_results(call))
    return [_tool(name, found) for name, found in recorded.items()]


def _canonical(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True)


def _tool(name: str, recorded: dict[tuple[str, str], _Recorded]) -> Tool:
    def give(call: ToolContext, **arguments: Any) -> str:
        found = recorded.get((call.sender, _canonical(arguments)))
        if found is None:
            raise LookupError(f"no call of {name} by {call.sender!r} with {arguments!r} was recorded")
        return found.take(call.call_id)

    return Tool(
        give,
        name=name,
        description=f"Recorded results of {name}.",
        parameters={"type": "object", "additionalProperties": True},
    )


def expected_entries(dialogue: Dialogue) -> list[HistoryEntry]:
    """What the stored transcript of a whole replay must be, entry by entry."""
    entries: list[HistoryEntry] = []
    for number, turn in enumerate(dialogue.turns):
        entries.append(HistoryEntry("user", turn.user, sender=dialogue.id))
        calls = tool_calls(number, turn)
        if calls:
            entries.append(HistoryEntry("assistant", tool_calls=calls))
            entries += [
                HistoryEntry("tool", _results(call), tool_call_id=made.id, name=made.name)
                for made, call in zip(calls, turn.calls, strict=True)
            ]
        entries.append(HistoryEntry("assistant", turn.assistant))
    return entries


def compare(expected: Sequence[HistoryEntry], stored: Sequence[HistoryEntry]) -> list[str]:
    """How `stored` differs from `expected`, one line for each difference; none if they are equal."""
    found: list[str] = []
    for number, (want, have) in enumerate(zip(expected, stored, strict=False)):
        found += [
            f"entry {number}: {name} should be {getattr(want, name)!r}, is {getattr(have, name)!r}"
            for name in attrs.fields_dict(HistoryEntry)
            if getattr(want, name) != getattr(have, name)
        ]
    shared = min(len(expected), len(stored))
    found += [f"entry {n}: missing: {expected[n]!r}" for n in range(shared, len(expected))]
    found += [f"entry {n}: not expected: {stored[n]!r}" for n in range(shared, len(stored))]
    return found
