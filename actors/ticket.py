"""A ticket: what the caller of a turn holds while the conversation owns the turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pykka
from attrs import frozen

from actors.counts import Counts
from actors.errors import (
    ConversationNotFound,
    ConversationParked,
    InvalidInput,
    ResultTimeout,
    RuntimeClosed,
)
from actors.events import Done, Event
from actors.feed import EventStream
from actors.greenlet import GreenletFuture
from actors.messages import CancelTurn
from actors.own_turn import check_not_own_turn, in_own_turn
from persistence.records import (
    STATE_OF_STOP,
    TERMINAL_STATES,
    HistoryEntry,
    TurnResult,
    TurnState,
)
from persistence.writes import TimerUpdate

OnBusy = Literal["enqueue", "reject", "interrupt", "steer"]
ASK_TIMEOUT_S = 30.0  # a conversation handles a message at once; the end of the turn is waited for apart
ON_BUSY: tuple[OnBusy, ...] = ("enqueue", "reject", "interrupt", "steer")


def _event_alone(_source: object, event: Event) -> Event:
    return event


class Ticket:
    """One message that was handed to a conversation.

    `state` is one of `queued running done failed cancelled closed`; exactly one of the last four is
    reached, and never left. `turn_id` is the turn's; a steer that is put into a running turn takes on
    that turn's id. Letting go of a ticket changes nothing: the turn ends and is stored.
    """

    __slots__ = (
        "_accepted",
        "_counted",
        "_counts",
        "_result",
        "_stands_in",
        "_state",
        "accepted_at",
        "attempts",
        "content",
        "conversation_id",
        "crashes",
        "durable",
        "eager",
        "followers",
        "from_steer",
        "guest",
        "interrupts",
        "key",
        "last_entry",
        "on_busy",
        "owner",
        "refused",
        "retries",
        "sender",
        "streams",
        "timer",
        "tool_choice",
        "turn_id",
    )

    def __init__(
        self,
        turn_id: int,
        conversation_id: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        key: str | None = None,
        tool_choice: str | None = None,
        on_busy: OnBusy = "enqueue",
        counts: Counts | None = None,
    ) -> None:
        self._counts = counts
        self._counted = False  # as a turn that has not ended
        self._state: TurnState = "queued"
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.content = content
        self.sender = sender
        self.guest = guest
        self.key = key
        self.tool_choice = tool_choice
        self.on_busy = on_busy
        self.accepted_at = 0.0
        self.attempts = 0  # how often it was started before
        self.crashes = 0  # how often its conversation died of it before it was accepted
        self.last_entry: HistoryEntry | None = None  # of the steps that an earlier life stored
        self.durable = False
        self.eager = False  # runs while it is being stored; what it stores comes behind
        self.retries: int | None = None  # the dead letter that it tries again
        self.refused = False  # it could not be stored, so nothing of it is
        self.interrupts: Ticket | None = None  # what it cancels, once it is accepted
        self.from_steer = False
        self.timer: TimerUpdate | None = None  # it fires with this message, and is stored with its row
        self.owner: pykka.ActorRef[Any] | None = None
        # Tuples, as most turns have none: a list would be one object more for the collector to look at.
        self.streams: tuple[EventStream[Event], ...] = ()
        self.followers: tuple[Ticket, ...] = ()
        self._stands_in: Ticket | None = None  # whose message was accepted before, under the same key
        self._accepted: GreenletFuture[None] | None = None  # for who waits for it
        self._result: GreenletFuture[TurnResult] = GreenletFuture()

    @property
    def state(self) -> TurnState:
        """Where the turn is; see above."""
        return self._state

    @state.setter
    def state(self, state: TurnState) -> None:
        if state != self._state and self._counted and self._counts is not None:
            self._counts.release(self.turn_id, self._state)
            self._counts.hold(self.turn_id, state, self.accepted_at)
        self._state = state

    @property
    def last_answer(self) -> str | None:
        """The final answer, where an earlier life of the turn stored that but not the turn's end."""
        last = self.last_entry
        return last.content if last is not None and last.role == "assistant" and not last.tool_calls else None

    def __repr__(self) -> str:
        return f"<Ticket turn={self.turn_id} conversation={self.conversation_id} {self.state}>"

    # -- for callers -------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the turn has reached a terminal state."""
        return self._state in TERMINAL_STATES

    def result(self, timeout: float | None = None) -> TurnResult:
        """Wait for the end of the turn, in the calling greenlet.

        Args:
            timeout: seconds to wait; None waits for as long as the turn takes.

        Raises:
            ResultTimeout: the wait is over; the turn goes on.
            Deadlock: called by a tool or hook of a running turn of this very conversation.
            StorageError: the turn's end could not be stored.
            ConversationClosed, MailboxFull, RuntimeClosed: the message was never accepted, or the
                runtime was shut down before its turn came.
        """
        if in_own_turn(self.conversation_id) and not self.done:
            check_not_own_turn(self.conversation_id, f"the result of turn {self.turn_id}")
        try:
            result: TurnResult = self._result.get(timeout=timeout)
        except pykka.Timeout as error:
            raise ResultTimeout(
                f"turn {self.turn_id} has not ended after {timeout} s; it goes on, ask its ticket again"
            ) from error
        return result

    def wait_accepted(self, timeout: float | None = None) -> Ticket:
        """Wait until the message is accepted (for a topic: stored); the ticket of its turn.

        That is another ticket than this one when the same key was accepted before.

        Raises:
            As `result`.
        """
        if not self.durable:
            if self.done:
                self._result.get(timeout=0)  # raises why it was not accepted
            if self._accepted is None:
                self._accepted = GreenletFuture()
            try:
                self._accepted.get(timeout=timeout)
            except pykka.Timeout as error:
                raise ResultTimeout(
                    f"the message was not accepted within {timeout} s; it may be later"
                ) from error
        return self if self._stands_in is None else self._stands_in

    def cancel(self) -> bool:
        """Cancel the turn, queued or running, and wait until that is stored.

        Returns:
            True if this call ended it; False if it had ended before.
        """
        if self.done or self.owner is None:
            return False
        try:
            waiting: GreenletFuture[bool] = self.owner.ask(
                CancelTurn(self.turn_id), block=True, timeout=ASK_TIMEOUT_S
            )
        except pykka.ActorDeadError:
            return False
        return bool(waiting.get())

    def events(self, limit: int = 1_024) -> Iterator[Event]:
        """The turn's events from now on, ending with `Done`; only `Done` for a turn that has ended.

        Args:
            limit: events that may wait before `Lagged`.
        """
        return self.open_stream(limit, midway=self.state != "queued")

    # -- for the conversation ----------------------------------------------------------------------

    def open_stream(self, limit: int, *, midway: bool = False) -> EventStream[Event]:
        """A stream of this turn's events; `midway` if the turn may be in the middle of a segment."""
        stream: EventStream[Event] = EventStream(limit, _event_alone, self._drop_stream, self._counts)
        if midway:
            stream.join_midway(None)
        if self.done:
            self._end_stream(stream)
        else:
            self.streams = (*self.streams, stream)
        return stream

    def accept(self, by: Ticket | None = None) -> None:
        """The message is accepted; `by` is the ticket that stands for the same key."""
        if self._counted and self._counts is not None and not self.durable:
            self._counts.accepted += 1
        self.durable = True
        self._stands_in = by
        if self._accepted is not None:
            self._accepted.set()

    def count_in(self, counts: Counts) -> None:
        """Count it among the turns that have not ended; the directory holds it."""
        self._counts, self._counted = counts, True
        counts.hold(self.turn_id, self._state, self.accepted_at)
        if self.durable:
            counts.brought_back += 1

    def count_out(self) -> None:
        """The directory has let it go: it has ended, or was not accepted, or leaves the runtime."""
        self._counted = False
        if self._counts is not None:
            self._counts.release(self.turn_id, self._state)

    def take_up(self, accepted_at: float, attempts: int, *, from_steer: bool) -> None:
        """It waits, as the journal says, for a conversation that was brought back."""
        self.accepted_at, self.attempts, self.from_steer = accepted_at, attempts, from_steer
        self.state = "queued"
        self.last_entry = self.interrupts = None
        if not self.durable:
            self.accept()

    def leave(self, turn: Ticket, turn_id: int) -> None:
        """This steer is not part of `turn` after all: its step was not stored."""
        turn.followers = tuple(follower for follower in turn.followers if follower is not self)
        self.turn_id, self.state = turn_id, "queued"

    def follow(self, turn: Ticket) -> None:
        """This steer was put into `turn`: it ends as that turn ends."""
        self.turn_id = turn.turn_id
        self.state = "running"
        turn.followers = (*turn.followers, self)
        if self._counts is not None:
            self._counts.steered += 1
            self._counts = None  # no turn of its own ends

    def finish(self, result: TurnResult) -> None:
        """The turn is over (and stored, for a topic): wake everybody who waits for it."""
        if self.done:
            return
        self.state = STATE_OF_STOP[result.stop_reason]
        self._count_end()
        self._result.set(result)
        if self.streams:
            self._end_all(None)
        followers, self.followers = self.followers, ()
        for follower in followers:
            follower.finish(result)

    def fail(self, error: BaseException) -> None:
        """The message was not accepted, or its end not stored: everybody who waits gets `error`."""
        if self.done:
            return
        self.state = "failed"
        if not self.durable:
            if self._accepted is not None:
                self._accepted.fail(error)
        elif not isinstance(
            error, RuntimeClosed | ConversationParked
        ):  # of which the journal says that it goes on
            self._count_end()
        self._result.fail(error)
        self._end_all(error)
        followers, self.followers = self.followers, ()
        for follower in followers:
            follower.fail(error)

    def _count_end(self) -> None:
        if self._counts is not None:
            self._counts.ended[self._state] += 1

    def _end_all(self, error: BaseException | None) -> None:
        streams, self.streams = self.streams, ()
        for stream in streams:
            if error is None:
                self._end_stream(stream)
            else:
                stream.end(error)

    def _end_stream(self, stream: EventStream[Event]) -> None:
        try:
            stream.push(None, Done(self._result.get(timeout=0)))
        except Exception as error:  # whatever the turn failed with is what the stream's reader gets
            stream.end(error)
        else:
            stream.end()

    def _drop_stream(self, stream: EventStream[Event]) -> None:
        self.streams = tuple(other for other in self.streams if other is not stream)


@frozen
class SteerRequest:
    """An accepted steer: its id, which it keeps if it becomes a turn, and its ticket."""

    id: int
    ticket: Ticket


def check_on_busy(value: str) -> OnBusy:
    """`value` as a busy policy.

    Raises:
        InvalidInput: naming the four.
    """
    for known in ON_BUSY:
        if value == known:
            return known
    raise InvalidInput(f"on_busy must be one of {', '.join(ON_BUSY)}, not {value!r}")


def unknown_conversation(conversation_id: int) -> ConversationNotFound:
    """The error for an id that is not live."""
    return ConversationNotFound(
        f"no live conversation has the id {conversation_id}; get one with get_or_create, switch_topic or load"
    )
