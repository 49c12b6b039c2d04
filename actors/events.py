"""What a turn, and the runtime itself, tell their subscribers, as it happens.

Deltas come only between the start and the end of their segment, and one segment is open at a time.
"""

from __future__ import annotations

from attrs import frozen

from persistence.records import ToolCall, TurnResult


@frozen
class Event:
    """Base of all events."""


@frozen
class TextStart(Event):
    """The model begins to answer in text."""


@frozen
class TextDelta(Event):
    """A piece of the answer."""

    text: str


@frozen
class TextEnd(Event):
    """The text segment is over."""


@frozen
class ThinkingStart(Event):
    """The model begins to reason aloud."""


@frozen
class ThinkingDelta(Event):
    """A piece of its reasoning."""

    text: str


@frozen
class ThinkingEnd(Event):
    """The reasoning segment is over."""


@frozen
class ToolCallsBegin(Event):
    """The model has begun to write tool calls; `name` is the first one's, as far as it is known."""

    name: str = ""


@frozen
class ToolCallsStart(Event):
    """The calls are whole and start now, all at once."""

    calls: tuple[ToolCall, ...]


@frozen
class ToolResult(Event):
    """One call has ended. Results come in the order of completion; history has them in call order."""

    call_id: str
    name: str
    output: str
    is_error: bool = False
    duration_s: float = 0.0


@frozen
class ToolCallsComplete(Event):
    """Every call of the step has ended."""


@frozen
class UserSteered(Event):
    """A steering message entered the history."""

    content: str


@frozen
class ContextUsage(Event):
    """The size of the context after a step; `reported` is False where `tokens` is an estimate."""

    tokens: int
    threshold: int | None = None
    reported: bool = True


@frozen
class Compacted(Event):
    """History was replaced by `summary`, stored as `archive` (None for a tmp chat)."""

    summary: str
    archive: str | None = None


@frozen
class CompactionSkipped(Event):
    """A compaction failed and changed nothing. `paused`: no automatic one is tried any more."""

    error: str
    paused: bool = False


@frozen
class Lagged(Event):
    """`missed` events were dropped because this subscriber fell behind. A segment that lost a piece is not
    continued; in `Runtime.subscribe` the dropped ones may be of any conversation.

    The turn lost nothing: its result, `Runtime.conversation` and `Runtime.transcript` are whole.
    """

    missed: int


@frozen
class Done(Event):
    """The turn is over and, for a topic, stored."""

    result: TurnResult


# -- of the runtime itself -------------------------------------------------------------------------


@frozen
class Incident(Event):
    """Something that an operator wants to know: one event, one line in the log, one count in `stats`."""


@frozen
class ActorRestarted(Incident):
    """An actor died of `reason` and was started again, for the `attempt`-th time within its period, after
    `delay_s` seconds."""

    actor: str
    reason: str
    attempt: int = 1
    delay_s: float = 0.0


@frozen
class ActorParked(Incident):
    """An actor kept dying and is not started again by itself; `reason` is what it died of last."""

    actor: str
    reason: str


@frozen
class Passivated(Incident):
    """An idle topic conversation left memory after `idle_s` seconds; its next message brings it back."""

    idle_s: float


@frozen
class Expired(Incident):
    """A tmp chat ended, with all that it held, after `idle_s` seconds without a message."""

    idle_s: float


@frozen
class Overflowed(Incident):
    """Something was refused, or cut, because a bound was reached: `limit`, a field of `Limits`, is `most`."""

    limit: str
    most: int


@frozen
class DeadLettered(Incident):
    """A message was given up because its process or conversation ended each time that it was begun."""

    turn_id: int
    reason: str
