"""What is known of a live conversation, and the frozen views of it that callers get."""

from __future__ import annotations

from typing import Any, Literal

import pykka
from attrs import frozen

from actors.counts import Counts
from actors.history import LiveHistory
from persistence.records import HistoryEntry
from persistence.sources import Clock

ConversationPhase = Literal["opening", "idle", "running", "closing", "parked"]

# An actor that has left: to be brought back by the next message, or for good.
Fate = Literal["passive", "over"]


@frozen
class ConversationInfo:
    """One line of a listing.

    `message_count` counts live entries, `queued` the turns that wait, `alive_s` the seconds since the
    conversation became live in this process. One that is `parked` kept dying and takes no messages; `error`
    says of what.
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
    error: str | None = None


class _Unfrozen(ConversationInfo):
    """A line while it is written: what frozen fields take is most of a listing, six times what this takes."""

    __slots__ = ()
    __init__ = object.__init__
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


@frozen
class ConversationSnapshot(ConversationInfo):
    """A conversation at one moment.

    `uptime_s` is the time its turns took, over all its lives; `history` the live history without
    injected entries.
    """

    handle: str | None = None
    uptime_s: float = 0.0
    history: tuple[HistoryEntry, ...] = ()
    error: str | None = None  # behind the fields that are the contract's


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
        "_counts",
        "_phase",
        "agent",
        "compaction_failures",
        "counted_bytes",
        "counted_in",
        "fate",
        "handle",
        "history",
        "id",
        "idle_since",
        "opened_at",
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
        self._phase: ConversationPhase = "idle" if topic is None else "opening"
        self._counts: Counts | None = None  # of the directory that it is in
        self.title = ""
        self.handle: str | None = None
        self.uptime_s = 0.0
        self.queued = 0
        self.compaction_failures = 0
        self.history = LiveHistory()
        self.ref: pykka.ActorRef[Any] | None = None
        self.idle_since = opened_at
        self.counted_in: object = None  # the directory whose figures it is part of, and
        self.counted_bytes = 0  # what it adds to them
        self.fate: Fate | BaseException | None = None  # how its actor ended, if it has

    @property
    def phase(self) -> ConversationPhase:
        """What it does: `opening`, `idle`, `running` or `closing`."""
        return self._phase

    def pass_to(self, phase: ConversationPhase) -> ConversationPhase:
        """It does something else from now on; what it did before."""
        before = self._phase
        if before != phase:
            self._phase = phase
            if self._counts is not None:
                self._counts.leave(before)
                self._counts.enter(phase)
        return before

    def count_in(self, counts: Counts) -> None:
        """Count it in `counts` from now on, and no more where it was counted before."""
        if self._counts is not None:
            self._counts.leave(self._phase)
        counts.enter(self._phase)
        self._counts = counts

    def count_out(self, counts: Counts) -> None:
        """Count it no more in `counts`, if it was; another runtime may have taken it over."""
        if self._counts is counts:
            counts.leave(self._phase)
            self._counts = None

    def info(self, clock: Clock) -> ConversationInfo:
        """One line of a listing, as of now."""
        return self.line(clock.monotonic())

    def line(self, now: float) -> ConversationInfo:
        """One line of a listing, as of `now`."""
        line: Any = _Unfrozen()
        line.id, line.agent, line.sender = self.id, self.agent, self.sender
        line.topic, line.title, line.state = self.topic, self.title, self._phase
        line.message_count, line.queued = len(self.history.entries), self.queued
        line.alive_s, line.error = now - self.opened_at, None if self._phase != "parked" else self._error
        line.__class__ = ConversationInfo
        return line  # type: ignore[no-any-return]  # it is one now

    def snapshot(self, clock: Clock) -> ConversationSnapshot:
        """Everything, as of now."""
        return ConversationSnapshot(
            self.id,
            self.agent,
            self.sender,
            self.topic,
            self.title,
            self._phase,
            len(self.history),
            self.queued,
            clock.monotonic() - self.opened_at,
            self.handle,
            self.uptime_s,
            tuple(self.history.entries),
            self._error,
        )

    @property
    def _error(self) -> str | None:
        return str(self.fate) if self._phase == "parked" else None
