"""Every mailbox message: requests (verbs) first, then notices (past tense).

A request is asked: its handler returns the reply, or a future of it where the reply has to wait.
Notices are told, by child greenlets and by the database thread's answers.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Full
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.config import AgentConfig
    from actors.greenlet import GreenletFuture
    from actors.ticket import SteerRequest, Ticket
    from actors.timetable import Lane, Place
    from actors.topics import TopicRouter
    from actors.transfer import MovedConversation
    from actors.turn import Turn
    from persistence.dormant import Dormant
    from persistence.records import (
        HistoryEntry,
        SessionSummary,
        StoredSession,
        TimerInfo,
        TurnResult,
        TurnRow,
        UnfinishedWork,
    )
    from persistence.timers import NewTimer, PendingTimer

CloseMode = Literal["drain", "now"]

# -- requests to the registry ----------------------------------------------------------------------


@frozen
class PutAgent:
    """Register an agent. Reply: None. Fails with AgentExists unless `replace`, InvalidConfig."""

    config: AgentConfig
    replace: bool = False
    ephemeral: bool = False


@frozen
class RemoveAgent:
    """Forget an agent. Reply: whether it was registered."""

    name: str
    ephemeral: bool = False


@frozen
class GetOrCreate:
    """The pair's conversation. Reply: its id. Fails with AgentNotRegistered."""

    agent: str
    sender: str


@frozen
class SwitchTopic:
    """Make a topic the pair's active one. Reply: a future of SwitchOutcome.

    Fails with AgentNotRegistered, DescriptionRequired, StorageError.
    """

    agent: str
    sender: str
    title: str
    description: str | None


@frozen
class LoadSession:
    """Bring a stored session to life. Reply: a future of the id.

    Fails with SessionNotFound, AgentNotRegistered, StorageError.
    """

    handle: str


@frozen
class DeleteSession:
    """Delete a stored session, once its conversation, if there is one, is cancelled and closed.

    Args:
        unchanged_since: leave it alone, and reply False, if it is live or was changed at or after this time.

    Reply: a future of whether it was deleted. Fails with StorageError.
    """

    handle: str
    unchanged_since: float | None = None


@frozen
class BringBack:
    """Open sessions that an earlier process left with unfinished work, and that could not be opened before.
    Told by the registry to itself, some time later."""


@frozen
class Wake:
    """Make sure that a conversation has its actor: bring it back if it has left memory, or is restarting.

    Reply: a future of its ref. Fails with ConversationNotFound, ConversationClosed, ConversationParked,
    MailboxFull, StorageError. `messages` are told to it then, or their tickets fail with that.
    """

    conversation_id: int
    messages: tuple[Any, ...] = ()


@frozen
class FindConversation:
    """Reply: a future of the handle of a conversation that has left memory, and of None for any other."""

    conversation_id: int


@frozen
class FindActive:
    """The pair's active conversation. Reply: its id or None, or a future of that. Makes nothing."""

    agent: str
    sender: str


@frozen
class ListPassive:
    """Reply: a future of up to `most` ids of conversations that have left memory."""

    most: int


@frozen
class Unpark:
    """Start a parked conversation again. Reply: whether it was parked."""

    conversation_id: int


@frozen
class Sweep:
    """Let what has been idle for long leave memory. Told by the registry's own timer."""


@frozen
class MakeRoom:
    """The histories in memory exceed their bound: let idle topics leave. Told by whoever notices."""


@frozen
class Restart:
    """It is time to start a dead conversation again. Told by the registry to itself, after a delay."""

    conversation_id: int


@frozen
class CloseConversation:
    """Close a conversation. Reply: a future of whether this request closed it."""

    conversation_id: int
    mode: CloseMode


@frozen
class BeginTransfer:
    """Let no conversation open or close from now on. Reply: the refs of all live ones, by id."""


@frozen
class EndTransfer:
    """The transfer is over: forget the conversations that moved, and open new ones again. Reply: None."""

    moved: tuple[int, ...]


@frozen
class DescribeRouting:
    """Reply: (a copy of the routers, the next free id)."""


@frozen
class CheckAdoption:
    """Reply: None if conversations of these agents could come here. Fails with AgentNotRegistered,
    ConversationExists, RuntimeClosed."""

    agents: tuple[str, ...]
    ids: tuple[int, ...]


@frozen
class Adopt:
    """Take over another runtime's conversations, routers and ids. Reply: None."""

    conversations: tuple[MovedConversation, ...]
    routers: Mapping[tuple[str, str], TopicRouter]
    next_id: int


@frozen
class RefuseNewWork:
    """The runtime is shutting down: nothing opens any more. Reply: the refs of all live conversations."""


# -- requests to a conversation --------------------------------------------------------------------


@frozen
class OpenSession:
    """Load the session `handle`, or find or create the topic's. Told by the registry, first of all.

    `description` is what a new topic needs, `scope` where it goes in memory. `asked_for` are the ids of turns
    that a dead predecessor owed answers to. The registry hears ConversationOpened or OpeningFailed.
    """

    handle: str | None
    description: str | None
    scope: str
    asked_for: tuple[int, ...] = ()


@frozen
class Submit:
    """Take a turn. Told, not asked: the ticket is the reply, accepted or failed."""

    ticket: Ticket

    def fail(self, error: BaseException) -> None:
        """Nobody takes it."""
        self.ticket.fail(error)


@frozen
class Steer:
    """Put a message into the running turn at its next step boundary. Told; the ticket is the reply.

    Fails, through the ticket, with NoActiveTurn, MailboxFull, ConversationClosed, StorageError.
    """

    ticket: Ticket

    def fail(self, error: BaseException) -> None:
        """Nobody takes it."""
        self.ticket.fail(error)


@frozen
class SetTimer:
    """Let a message come to this conversation later. Told; `reply` is the answer: the TimerInfo, once it is
    stored, or that of an earlier request with the same key.

    Fails with MailboxFull, KeyReused, ConversationClosed, StorageError.
    """

    timer: NewTimer
    reply: GreenletFuture[TimerInfo]

    def fail(self, error: BaseException) -> None:
        """Nobody takes it; who asked may have been answered before."""
        with suppress(Full):
            self.reply.fail(error)


@frozen
class ListTickets:
    """Reply: the tickets of accepted turns that have not ended: the running one, the steers that it has not
    come to, those that wait, in order."""


@frozen
class CancelTurn:
    """Cancel the running turn, or with an id that turn, queued or running.

    Reply: a future of whether it was there to cancel, set when its end is stored.
    """

    turn_id: int | None = None


@frozen
class Compact:
    """Compact in the conversation's own order. Reply: a future of CompactOutcome.

    Fails with CompactionFailed, ConversationClosed, StorageError.
    """


@frozen
class Close:
    """End: queued turns as `closed`, the running one by itself ("drain") or cancelled ("now").

    Told by the registry, which hears ConversationStopped.
    """

    mode: CloseMode


@frozen
class Passivate:
    """Leave memory (a tmp chat: end), if nothing runs or waits. Told by the registry, which hears
    ConversationPassive, ConversationStopped, or PassivationRefused."""


@frozen
class Proceed:
    """Go on with what is queued. Told to a conversation that has just moved in, or been started again."""


@frozen
class Settle:
    """Take nothing new; reply: a future of None, set when nothing runs and nothing waits."""


@frozen
class Suspend:
    """Take nothing new, cancel what runs, keep what is queued in the journal, then stop.

    Reply: a future of None, set when all is stored.
    """


@frozen
class Detach:
    """Finish the running turn, start no other, and hand everything over. Reply: a future of
    MovedConversation, after which the actor is gone."""


# -- requests to the memory actor ------------------------------------------------------------------


@frozen
class NameArchive:
    """The next archive name of a slug. Reply: a future of the name; no other gets the same one."""

    agent: str
    scope: str
    slug: str


@frozen
class Remember:
    """Store a note. Reply: a future of the MemoryEntry."""

    agent: str
    scope: str
    name: str
    content: str
    aliases: tuple[str, ...]


@frozen
class Forget:
    """Delete a note. Reply: a future of whether it was there."""

    agent: str
    scope: str
    name: str


@frozen
class Recall:
    """Search memory, best first. Reply: a future of a list of MemoryEntry."""

    agent: str
    scope: str
    query: str
    limit: int
    kind: str | None = None


@frozen
class ListMemory:
    """Reply: a future of all MemoryEntry of a scope, in the order of their creation."""

    agent: str
    scope: str
    kind: str | None = None


# -- requests and notices to the timer actor -------------------------------------------------------


@frozen
class TimersPut:
    """These timers are set."""

    timers: tuple[PendingTimer, ...]


@frozen
class TimerEnded:
    """A timer was cancelled."""

    timer_id: int


@frozen
class PlaceGone:
    """A session was deleted, or a conversation moved to another runtime, and its timers with it."""

    place: Place


@frozen
class AgentArrived:
    """An agent is registered: its timers that are due can fire."""

    agent: str


@frozen
class TimersReleased:
    """Some timers are held no more."""


@frozen
class TimersRead:
    """Timers that the file holds, by id, or why it could not be read. No more of them: the end."""

    timers: tuple[PendingTimer, ...]
    error: BaseException | None = None


@frozen
class TimersDue:
    """It is time to look which timers are due. Told by the actor to itself, some time later."""


@frozen
class TimerTried:
    """The first timer of a lane has fired, and is due again at `due_at` or ends (None); or it could not fire,
    because of `error`, and is to be tried again."""

    lane: Lane
    timer_id: int
    due_at: float | None = None
    error: BaseException | None = None


# -- notices to the registry -----------------------------------------------------------------------


@frozen
class ConversationOpened:
    """A conversation has its session."""

    conversation_id: int
    handle: str
    resumed: bool


@frozen
class OpeningFailed:
    """A conversation could not get its session, and is gone."""

    conversation_id: int
    error: BaseException


@frozen
class ConversationStopped:
    """A conversation is gone: closed, or dead of `error`. `unstored`: the journal misses the end of a turn,
    which an opening of the topic will find unfinished. `remains`: what may not have ended yet, to be waited
    for."""

    conversation_id: int
    error: BaseException | None = None
    unstored: bool = False
    remains: tuple[Any, ...] = ()


@frozen
class ConversationPassive:
    """An idle conversation has left; its next message is to bring it back."""

    conversation_id: int


@frozen
class PassivationRefused:
    """A conversation that was asked to leave has something to do."""

    conversation_id: int


@frozen
class PassiveStored:
    """It is stored where a passive conversation is to be found (`count` is 1 if it was not before), or that
    failed."""

    conversation_id: int
    count: int = 0
    error: BaseException | None = None


@frozen
class PassiveDeleted:
    """The session of a passive conversation is deleted, or not; `count` of its rows were forgotten."""

    row: Dormant
    deleted: bool
    count: int


@frozen
class PassiveForgotten:
    """A conversation is no more to be found among the passive ones; `count` is 1 if it was. With an error it
    could not be struck off, and is still to be found there."""

    conversation_id: int
    count: int
    error: BaseException | None = None


@frozen
class PassiveFound:
    """The passive conversations of a pair; `request` is who waits for them."""

    found: Any
    error: BaseException | None
    request: Any


@frozen
class SessionLookedUp:
    """The answer of the database about a session that is not live; `request` is who waits for it. `passive`
    are the passive conversations of its pair, if its own is one of them."""

    handle: str
    summary: SessionSummary | None
    passive: list[Dormant]
    error: BaseException | None
    request: Any


# -- notices to a conversation ---------------------------------------------------------------------


@frozen
class SessionReady:
    """The session is loaded or created; None where the topic is unknown and had no description.
    `outcomes` are the turns that were asked for, or that the steers asked for were applied to."""

    session: StoredSession | None
    resumed: bool
    unfinished: UnfinishedWork
    outcomes: Mapping[int, TurnRow] = field(factory=dict)
    error: BaseException | None = None


@frozen
class TurnJournalled:
    """The accepted message's row is committed, or failed. `existing` was accepted under the same key."""

    ticket: Ticket
    error: BaseException | None = None
    existing: Any = None


@frozen
class TimerJournalled:
    """The timer that was asked for is stored, or not: who asked knows."""


@frozen
class SteerJournalled:
    """The accepted steer's row is committed, or failed."""

    steer: SteerRequest
    turn: Turn
    error: BaseException | None = None


@frozen
class StepStored:
    """A step of the running turn is committed (for a tmp chat: done)."""

    turn: Turn
    entries: tuple[HistoryEntry, ...]


@frozen
class TurnEnded:
    """The running turn's greenlet is done; `entries` are still to be stored."""

    turn: Turn
    result: TurnResult
    entries: tuple[HistoryEntry, ...]


@frozen
class TurnStored:
    """The end of a turn is committed, or failed."""

    ended: TurnEnded
    leftovers: tuple[Ticket, ...]
    error: BaseException | None = None
    accepted: bool = False  # and the row of its message with it, of which no TurnJournalled tells


@frozen
class ClosedTurnsStored:
    """Turns that ended without running are committed as `closed` or `cancelled`, or that failed."""

    tickets: tuple[Ticket, ...]
    results: tuple[TurnResult, ...]
    error: BaseException | None = None


@frozen
class PayOwed:
    """It is time to store what could not be stored. Told by a timer."""


@frozen
class OwedStored:
    """Ends of turns that could not be stored in their time are committed, or failed again."""


@frozen
class HistoryCompacted:
    """The summary stands for the history (stored as `archive`, for a topic)."""

    summary: str
    archive: str | None


@frozen
class CompactionDone:
    """A requested compaction's greenlet is done."""

    error: BaseException | None = None
    outcome: Any = None


@frozen
class AutomaticCompactionFailed:
    """An automatic compaction failed; history is unchanged."""

    error: str


@frozen
class TitleProposed:
    """A title for a conversation that had none; "" when the model gave none."""

    title: str


# -- notices to the memory actor -------------------------------------------------------------------


@frozen
class ArchivesCounted:
    """The highest stored number of a slug's archives is known."""

    agent: str
    scope: str
    slug: str
    highest: int
    error: BaseException | None = None
