"""The calls of a runtime that find conversations and talk in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from actors import compaction
from actors.errors import ConversationClosed, InvalidInput
from actors.events import Event
from actors.greenlet import LATER
from actors.messages import (
    CancelTurn,
    CloseConversation,
    Compact,
    GetOrCreate,
    ListTickets,
    LoadSession,
    Steer,
    Submit,
    SwitchTopic,
    Unpark,
)
from actors.own_turn import check_not_own_turn, in_own_turn
from actors.state import (
    CompactOutcome,
    SwitchOutcome,
)
from actors.text import check_text, check_title
from actors.ticket import OnBusy, Ticket, check_on_busy
from palaver.asking import NAME_CHARS, Asking
from persistence.records import (
    TurnResult,
)


class Talking(Asking):
    """The part of `Runtime` that opens and closes conversations, and sends messages."""

    # -- finding and opening conversations ---------------------------------------------------------

    def get_or_create(self, agent: str, sender: str) -> int:
        """The pair's conversation: that of its active topic, else its tmp chat, made if need be.

        Raises:
            AgentNotRegistered, InvalidInput.
        """
        self._check_pair(agent, sender)
        self._check_open()
        registry, request = self._services.registry, GetOrCreate(agent, sender)
        assert registry is not None
        conversation_id: int = registry.ask_at_once(request)
        if conversation_id is LATER:
            conversation_id = self._ask_registry(request)
        return conversation_id

    def switch_topic(
        self, agent: str, sender: str, title: str, description: str | None = None
    ) -> SwitchOutcome:
        """Make a topic the pair's active one: the live one, the latest stored one, or a new one.

        A topic that is closing is opened anew when it has closed, which may wait for its last turn.

        Args:
            title: one line, up to 200 characters; the same title is the same topic.
            description: what the topic is about; needed when it is new, kept as its memory entry.

        Raises:
            AgentNotRegistered, InvalidTitle, StorageError.
            DescriptionRequired: the topic is new; the topic that was active before stays active.
        """
        self._check_pair(agent, sender)
        title = check_title(title)
        if description is not None:
            check_text(
                description, what="the description", empty=True, most=self._services.limits.content_chars
            )
            description = description.strip() or None
        outcome: SwitchOutcome = self._ask_registry(
            SwitchTopic(agent, sender, title, description), waits=True
        )
        return outcome

    def load(self, handle: str) -> int:
        """Bring a stored session to life; one that is live already gives its live id, one that is closing is
        opened anew when it has closed.

        Raises:
            SessionNotFound, AgentNotRegistered, StorageError.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        conversation_id: int = self._ask_registry(LoadSession(handle), waits=True)
        return conversation_id

    def close(self, cid: int, *, mode: Literal["drain", "now"] = "drain") -> bool:
        """Close a conversation; nothing starts in it once this has returned.

        Args:
            mode: "drain" lets the running turn finish, "now" cancels it. Queued turns end as `closed`.

        Returns:
            True if this call closed it, False if it is unknown or another call did.
        """
        if not isinstance(cid, int):
            raise InvalidInput(f"a conversation is named by its id, a whole number, not by {cid!r}")
        if mode not in ("drain", "now"):
            raise InvalidInput(f'mode must be "drain" or "now", not {mode!r}')
        if mode == "drain":
            check_not_own_turn(cid, f"closing conversation {cid}")
        closed: bool = self._ask_registry(CloseConversation(cid, mode), waits=True)
        return closed

    # -- turns -------------------------------------------------------------------------------------

    def send(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> TurnResult:
        """Send a message and wait for the turn's result; for a topic, it is committed.

        Args:
            content: the message.
            sender: who says it, in the history; the conversation's sender if "".
            guest: another registered agent that answers this one turn, in text only.
            on_busy: when a turn runs or waits: "enqueue" behind it, "reject", "interrupt" it, or "steer" it.
            key: idempotency key, one per message of this agent and sender: the same key and content give
                the first one's result.
            tool_choice: "auto", "none", "required" or a tool's name, for the first model round.
            timeout: seconds to wait; the turn goes on when they are over.

        Raises:
            ConversationNotFound, ConversationBusy, ConversationClosed, MailboxFull, KeyReused,
            InvalidInput, AgentNotRegistered (an unknown guest), ResultTimeout, StorageError.
            A model failure is no exception but a result with `stop_reason="error"`.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        if on_busy != "reject" and in_own_turn(cid):
            check_not_own_turn(cid, f"the result of a turn of conversation {cid}")
        self._hand_over(ticket)
        if key is not None or on_busy == "reject":
            ticket = ticket.wait_accepted(timeout)
        return ticket.result(timeout)

    def submit(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """Send a message and return once it is accepted: for a topic, its row is committed.

        Arguments and errors as `send`; `timeout` is for the acceptance.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        self._hand_over(ticket)
        return ticket.wait_accepted(timeout)

    def stream(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """Send a message and iterate over the turn's events, the last of which is `Done(result)`.

        The message is accepted when this returns. Letting go of the iterator changes nothing: the turn ends
        and is stored. Arguments and errors as `submit`; a storage error of the turn's end is raised by the
        iterator.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        stream = ticket.open_stream(self._services.limits.event_buffer)
        self._hand_over(ticket)
        accepted = ticket.wait_accepted(timeout)
        if accepted is not ticket:
            return accepted.events(self._services.limits.event_buffer)
        return stream

    def steer(self, cid: int, content: str) -> Ticket:
        """Put a message into the running turn at its next step boundary; accepted when this returns.

        Steers are applied in order, all of them. One whose turn ends first becomes the next turn.

        Raises:
            NoActiveTurn, ConversationNotFound, ConversationClosed, MailboxFull, InvalidInput, StorageError.
        """
        ticket = self._ticket(cid, content, "", None, "steer", None, None)
        self._tell(cid, Steer(ticket))
        return ticket.wait_accepted()

    def tickets(self, cid: int) -> list[Ticket]:
        """The accepted turns of a conversation that have not ended: the running one, the steers that it has
        not come to, and those that wait, in the order in which they will run. `Ticket.cancel` ends one.

        Raises:
            ConversationNotFound.
        """
        found: list[Ticket] = self._ask_conversation(cid, ListTickets())
        return found

    def cancel(self, cid: int) -> bool:
        """Cancel the running turn and wait for its clean-up; whether one was running.

        Its completed steps stay stored; queued turns go on.

        Raises:
            ConversationNotFound.
        """
        return bool(self._ask_conversation(cid, CancelTurn()))

    def _ticket(
        self,
        cid: int,
        content: str,
        sender: str,
        guest: str | None,
        on_busy: str,
        key: str | None,
        tool_choice: str | None,
    ) -> Ticket:
        self._check_message(content, sender, key)
        if tool_choice is not None:
            check_text(tool_choice, what="tool_choice", most=NAME_CHARS)
        if guest is not None:
            self._services.agents.get(guest)
        if on_busy == "steer" and (key is not None or guest is not None):
            raise InvalidInput(
                'on_busy="steer" takes no key and no guest: a steer becomes part of another turn'
            )
        return Ticket(
            0,  # until it is told
            cid,
            content,
            sender=sender,
            guest=guest,
            key=key,
            tool_choice=tool_choice,
            on_busy=check_on_busy(on_busy),
            counts=self._services.directory.counts,
        )

    def _check_message(self, content: str, sender: str, key: str | None) -> None:
        check_text(content, what="the message", most=self._services.limits.content_chars)
        if sender:
            check_text(sender, what="the sender", most=NAME_CHARS)
        if key is not None:
            check_text(key, what="the key", most=NAME_CHARS)

    def _hand_over(self, ticket: Ticket) -> None:
        self._tell(ticket.conversation_id, Submit(ticket))

    def unpark(self, cid: int) -> bool:
        """Start a conversation again that kept dying and was parked; whether it was. Its next messages are
        taken, and what its topic had accepted goes on.

        Raises:
            RuntimeClosed.
        """
        return bool(self._ask_registry(Unpark(cid)))

    # -- summaries ---------------------------------------------------------------------------------

    def summarize(self, cid: int) -> str | None:
        """A summary of the live history by the agent's own model; nothing changes. None for an empty one.

        Runs beside turns, on what is committed; only the calling greenlet waits.

        Raises:
            ConversationNotFound, AgentNotRegistered, CompactionFailed.
        """
        self._ref(cid)
        state = self._conversations.get(cid)
        if state is None:
            raise ConversationClosed(f"conversation {cid} is closed")
        if not state.history.entries:
            return None
        agent = self._services.agents.get(state.agent)
        messages = [*state.history.seen_by("", state.agent)]
        return compaction.summarize(self._services, state, agent, messages)

    def compact(self, cid: int) -> CompactOutcome:
        """Replace the live history by a summary, after the turns that were accepted before.

        For a topic the summary is stored as an archive; the transcript stays whole.

        Raises:
            ConversationNotFound, ConversationClosed.
            CompactionFailed, StorageError: nothing has changed.
        """
        check_not_own_turn(cid, f"compacting conversation {cid}")
        outcome: CompactOutcome = self._ask_conversation(cid, Compact())
        return outcome
