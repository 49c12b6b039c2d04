"""What is live in one runtime: conversations by id, accepted turns, and the readers of all events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from actors.config import Limits
from actors.counts import Counts
from actors.errors import MailboxFull, RuntimeClosed
from actors.events import Event
from actors.feed import EventStream
from actors.state import ConversationInfo, ConversationPhase, ConversationState
from actors.ticket import Ticket
from actors.topics import TopicRouter
from persistence.sources import Clock


class Directory:
    """Live conversations, their routes and accepted turns. Reading it never waits for a conversation.

    The registry alone changes conversations and routers; conversations count their turns here, and say when
    they rest. It outlives the registry actor, which finds here what there is when it is started again.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self.counts = Counts(clock.monotonic())
        self._conversations: dict[int, ConversationState] = {}
        self.next_id = 1
        self.refusal: RuntimeClosed | None = None  # why nothing opens or closes any more
        self.passive = 0  # conversations that have left memory and keep their ids
        # Conversations at rest, the one that has rested longest first.
        self.idle: OrderedDict[int, ConversationState] = OrderedDict()
        self.idle_chats: OrderedDict[int, ConversationState] = OrderedDict()
        self.history_bytes = 0
        self.on_crowded: Callable[[], None] | None = None  # called when the histories exceed their bound
        self.routers: dict[tuple[str, str], TopicRouter] = {}
        self.tickets: dict[int, Ticket] = {}
        self.queued_by_sender: dict[str, int] = {}
        self.streams: list[EventStream[tuple[ConversationInfo, Event]]] = []

    def active(self, agent: str, sender: str) -> int | None:
        """The pair's active conversation, or None."""
        router = self.routers.get((agent, sender))
        return None if router is None else router.current()

    def topic(self, agent: str, sender: str, title: str) -> int | None:
        """The pair's live conversation of that topic, or None."""
        router = self.routers.get((agent, sender))
        found = None if router is None else router.by_title.get(title)
        return found if found in self._conversations else None

    # -- conversations -----------------------------------------------------------------------------

    @property
    def conversations(self) -> Mapping[int, ConversationState]:
        """The live conversations, by id."""
        return self._conversations

    def enter(self, state: ConversationState) -> None:
        """A conversation is live from now on, and if it is idle, rests since `idle_since`."""
        self._conversations[state.id] = state
        state.count_in(self.counts)
        state.counted_in, state.counted_bytes = self, 0
        if state.history.entries:
            self.measure(state)
        if state.phase == "idle":
            self._resting(state)[state.id] = state

    def uncount(self, state: ConversationState) -> None:
        """A conversation is about to leave; it is found here until it does."""
        if state.counted_in is not self:
            return
        state.count_out(self.counts)
        self.history_bytes -= state.counted_bytes
        state.counted_in = None
        self.stir(state)

    def leave(self, conversation_id: int) -> ConversationState | None:
        """A conversation is not live any more; its state, if it was."""
        state = self._conversations.pop(conversation_id, None)
        if state is not None:
            self.uncount(state)
        return state

    def set_phase(self, state: ConversationState, phase: ConversationPhase) -> None:
        """Note what a conversation does now, and whether it rests."""
        before = state.pass_to(phase)
        if before == phase or state.counted_in is not self:
            return
        if phase == "idle":
            self._rest(state)
        elif before == "idle":
            self.stir(state)

    def stir(self, state: ConversationState) -> None:
        """The conversation does not rest, or is about to be asked to leave."""
        self._resting(state).pop(state.id, None)

    def _rest(self, state: ConversationState) -> None:
        state.idle_since = self._clock.monotonic()
        self._resting(state)[state.id] = state

    def _resting(self, state: ConversationState) -> OrderedDict[int, ConversationState]:
        return self.idle_chats if state.topic is None else self.idle

    def stay(self, state: ConversationState) -> None:
        """An idle conversation was asked to leave and could not: as if it had come to rest now."""
        if state.phase == "idle" and state.counted_in is self:
            self._rest(state)

    def measure(self, state: ConversationState) -> None:
        """Count a conversation's history as it is now."""
        size, counted = state.history.bytes, state.counted_bytes
        if size == counted or state.counted_in is not self:
            return
        self.history_bytes += size - counted
        state.counted_bytes = size
        if self.crowded and self.on_crowded is not None:
            self.on_crowded()

    @property
    def crowded(self) -> bool:
        """Whether the histories take more than they may."""
        return self.history_bytes > self._limits.history_bytes

    # -- bounds ------------------------------------------------------------------------------------

    def take(self, ticket: Ticket, state: ConversationState, waiting: int) -> None:
        """Count one more accepted turn of a conversation in which `waiting` wait already.

        Raises:
            MailboxFull: naming the bound that is reached.
        """
        limits, sender = self._limits, state.sender
        if waiting >= limits.queued_per_conversation:
            raise MailboxFull(
                f"conversation {state.id} has {waiting} turns waiting, the most that "
                "limits.queued_per_conversation allows; send again when some are done",
                "queued_per_conversation",
                limits.queued_per_conversation,
            )
        of_sender = self.queued_by_sender.get(sender, 0)
        if of_sender >= limits.queued_per_sender:
            raise MailboxFull(
                f"sender {sender!r} has {of_sender} turns accepted and not done, the most that "
                "limits.queued_per_sender allows; send again when some are done",
                "queued_per_sender",
                limits.queued_per_sender,
            )
        if len(self.tickets) >= limits.queued_total:
            raise MailboxFull(
                f"{len(self.tickets)} turns are accepted and not done, the most that "
                "limits.queued_total allows; send again later",
                "queued_total",
                limits.queued_total,
            )
        most = self.counts.most_queued
        if waiting >= most["conversation"]:
            most["conversation"] = waiting + 1
        if of_sender >= most["sender"]:
            most["sender"] = of_sender + 1
        self.hold(ticket, sender)

    def hold(self, ticket: Ticket, sender: str) -> None:
        """Count an accepted turn, whatever the bounds (work that moves or is brought back)."""
        self.queued_by_sender[sender] = self.queued_by_sender.get(sender, 0) + 1
        self.tickets[ticket.turn_id] = ticket
        ticket.count_in(self.counts)

    def release(self, turn_id: int, sender: str) -> None:
        """The turn is over, or was not accepted after all."""
        ticket = self.tickets.pop(turn_id, None)
        if ticket is None:
            return
        ticket.count_out()
        left = self.queued_by_sender[sender] - 1
        if left:
            self.queued_by_sender[sender] = left
        else:
            del self.queued_by_sender[sender]

    # -- events ------------------------------------------------------------------------------------

    def subscribe(self, only: int | None = None) -> EventStream[tuple[ConversationInfo, Event]]:
        """A stream of all conversations' events from now on, or of the conversation `only`."""
        stream: EventStream[tuple[ConversationInfo, Event]] = EventStream(
            self._limits.event_buffer, self._with_info, self._drop_stream, self.counts, keeps_done=False
        )
        stream.only = only
        for state in self._conversations.values():
            stream.join_midway(state)
        self.streams.append(stream)
        return stream

    def watched(self, conversation_id: int) -> bool:
        """Whether somebody reads the events of this very conversation."""
        return any(stream.only == conversation_id for stream in self.streams)

    def publish(self, state: ConversationState, event: Event) -> None:
        """Hand an event to everybody who reads all events."""
        for stream in tuple(self.streams):
            if stream.only is None or stream.only == state.id:
                stream.push(state, event)

    def end_streams(self) -> None:
        """The runtime is over: every reader's iteration ends."""
        for stream in tuple(self.streams):
            stream.end()
        self.streams.clear()

    def _drop_stream(self, stream: EventStream[tuple[ConversationInfo, Event]]) -> None:
        if stream in self.streams:
            self.streams.remove(stream)

    def _with_info(self, state: Any, event: Event) -> tuple[ConversationInfo, Event]:
        return state.info(self._clock), event
