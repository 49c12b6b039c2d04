"""What is known of a live conversation, and the frozen views of it that callers get."""

from __future__ import annotations

from typing import Any, Literal

import pykka
from attrs import frozen

from actors.history import LiveHistory
from persistence.records import HistoryEntry
from persistence.sources import Clock

ConversationPhase = Literal["opening", "idle", "running", "closing"]


@frozen
class ConversationInfo:
    """One line of a listing.

    `message_count` counts live entries, `queued` the turns that wait, `alive_s` the seconds since the
    conversation became live in this process.
    """

    id: int
    agent: str
    sender: str
    topic: str | None
    title: str
    state: ConversationPhase
    message_count: int
    queued: int
    alive_s: float


@frozen
class ConversationSnapshot(ConversationInfo):
    """A conversation at one moment.

    `uptime_s` is the time its turns took, over all its lives; `history` the live history without
    injected entries.
    """

    handle: str | None = None
    uptime_s: float = 0.0
    history: tuple[HistoryEntry, ...] = ()


@frozen
class SwitchOutcome:
    """Where a topic lives, and whether it existed before."""

    conversation_id: int
    resumed: bool


@frozen
class CompactOutcome:
    """What a compaction made. `archive` is None for a tmp chat, `summary` None for an empty history."""

    archive: str | None
    summary: str | None


class ConversationState:
    """The live state of one conversation. Its actor alone writes; the directory reads.

    Reading never waits: everything lives in the hub's thread, and a view is taken between two switches.
    """

    __slots__ = (
        "agent",
        "compaction_failures",
        "handle",
        "history",
        "id",
        "opened_at",
        "phase",
        "queued",
        "ref",
        "sender",
        "title",
        "topic",
        "uptime_s",
    )

    def __init__(self, id: int, agent: str, sender: str, topic: str | None, opened_at: float) -> None:  # noqa: A002  # the word of the contract
        self.id = id
        self.agent = agent
        self.sender = sender
        self.topic = topic
        self.opened_at = opened_at
        self.phase: ConversationPhase = "idle" if topic is None else "opening"
        self.title = ""
        self.handle: str | None = None
        self.uptime_s = 0.0
        self.queued = 0
        self.compaction_failures = 0
        self.history = LiveHistory()
        self.ref: pykka.ActorRef[Any] | None = None

    def info(self, clock: Clock) -> ConversationInfo:
        """One line of a listing, as of now."""
        return ConversationInfo(*self._common(clock))

    def snapshot(self, clock: Clock) -> ConversationSnapshot:
        """Everything, as of now."""
        return ConversationSnapshot(
            *self._common(clock), self.handle, self.uptime_s, tuple(self.history.entries)
        )

    def _common(
        self, clock: Clock
    ) -> tuple[int, str, str, str | None, str, ConversationPhase, int, int, float]:
        return (
            self.id,
            self.agent,
            self.sender,
            self.topic,
            self.title,
            self.phase,
            len(self.history),
            self.queued,
            clock.monotonic() - self.opened_at,
        )
