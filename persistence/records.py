"""The frozen records that are stored, and that callers see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from attrs import field, frozen
from attrs.validators import in_, instance_of

Role = Literal["user", "assistant", "tool", "system"]
Kind = Literal["note", "archive", "topic"]
StopReason = Literal["text_response", "max_iterations", "no_action", "error", "cancelled", "closed"]
TurnState = Literal["queued", "running", "done", "failed", "cancelled", "closed"]

TERMINAL_STATES: frozenset[str] = frozenset({"done", "failed", "cancelled", "closed"})
STATE_OF_STOP: dict[str, TurnState] = {
    "text_response": "done",
    "max_iterations": "done",
    "no_action": "done",
    "error": "failed",
    "cancelled": "cancelled",
    "closed": "closed",
}


def _as_calls(calls: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(calls)


def _as_words(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(words)


@frozen
class ToolCall:
    """One call that a model asked for; `arguments` is JSON text, exactly as the model wrote it."""

    id: str
    name: str
    arguments: str = "{}"


@frozen
class HistoryEntry:
    """One item of a conversation's history.

    `tool_calls` is set on an assistant entry that called tools; `tool_call_id` and `name` on a tool
    entry; `agent` on an entry by a guest agent; `sender` on a user entry.
    """

    role: Role = field(validator=in_(("user", "assistant", "tool", "system")))
    content: str = field(default="", validator=instance_of(str))
    tool_calls: tuple[ToolCall, ...] = field(default=(), converter=_as_calls)
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""
    agent: str = ""
    sender: str = ""


@frozen
class Usage:
    """Tokens, as the model's endpoint counted them. 0 where it did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


NO_USAGE = Usage()


@frozen
class TurnResult:
    """How a turn ended.

    `text` is the final answer ("" if there is none), `error` says what went wrong when `stop_reason`
    is "error", `steps` counts model rounds, `usage` is summed over them. `retryable` says that the error
    was one of time or of the model's endpoint: the same message, sent again, may get an answer.
    """

    text: str
    stop_reason: StopReason
    error: str | None = None
    steps: int = 0
    usage: Usage = NO_USAGE
    model: str = ""
    conversation_id: int = 0
    turn_id: int = 0
    retryable: bool = False


@frozen
class SessionSummary:
    """A stored session. Times are seconds since the Unix epoch; `archive` names its newest archive."""

    handle: str
    agent: str
    sender: str
    topic: str
    title: str
    created_at: float
    updated_at: float
    archive: str | None = None
    uptime_s: float = 0.0
    entry_count: int = 0


@frozen
class MemoryEntry:
    """A note, a topic's description, or the archive of a compaction."""

    name: str
    kind: Kind
    content: str
    aliases: tuple[str, ...] = field(default=(), converter=_as_words)
    created_at: float = 0.0


@frozen
class StoredSession:
    """A session as it is brought back: its row, and what makes up the live history.

    `live` holds the entries after the newest compaction marker, in order; `archive_content` is None
    when there is no archive, or when the archive named by `summary.archive` is missing.
    """

    id: int
    summary: SessionSummary
    revision: int
    next_seq: int
    live: tuple[HistoryEntry, ...]
    archive_content: str | None


@frozen
class TurnRow:
    """An accepted message as the journal holds it."""

    id: int
    session_id: int
    sender: str
    content: str
    state: TurnState
    attempts: int = 0
    key: str | None = None
    guest: str | None = None
    tool_choice: str | None = None
    accepted_at: float = 0.0
    finished_at: float | None = None
    result: TurnResult | None = None
    error: str | None = None


@frozen
class UnfinishedWork:
    """What a session's last life left undone, in the order in which it is to be done.

    `steered` holds the ids of turns that were steers.
    `last_turn` is the turn that the session's last entry belongs to, and `last_entry` that entry: a turn
    that has stored a step goes on after it.
    """

    turns: tuple[TurnRow, ...] = ()
    steered: frozenset[int] = frozenset()
    last_turn: int | None = None
    last_entry: HistoryEntry | None = None


@frozen
class UnfinishedSession:
    """A stored session whose accepted messages have not all ended.

    `turns` counts those that ran or waited, `steers` those that entered no turn; `since` is when the oldest
    of them was accepted, in seconds since the Unix epoch. `guests` are the other agents that they need.
    """

    handle: str
    agent: str
    sender: str
    topic: str
    turns: int
    steers: int
    since: float
    guests: tuple[str, ...] = ()


@frozen
class TimerInfo:
    """A message that is to come later, once or again and again.

    `agent`, `sender`, `topic` and `handle` say to which conversation it comes (the last two are None for a
    tmp chat), `said_by` who says it then ("": the conversation's sender). `due_at` is when it comes next, in
    seconds since the Unix epoch, and `every_s` how often it comes from then on, None for once. `key` is its
    message's idempotency key. `conversation_id` is the id of that conversation, None if it has none in this
    process. `held`: it was due before a runtime was opened with `recover="hold"`, and waits for
    `Runtime.recover`.
    """

    id: int
    agent: str
    sender: str
    topic: str | None
    handle: str | None
    said_by: str
    content: str
    due_at: float
    every_s: float | None = None
    key: str | None = None
    created_at: float = 0.0
    conversation_id: int | None = None
    held: bool = False


JsonObject = dict[str, Any]
