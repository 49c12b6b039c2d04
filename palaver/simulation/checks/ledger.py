"""The conservation ledger of a simulated run: what its callers were told, once and for all."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from actors.errors import ConversationParked, HandlerFailed, ResultTimeout, RuntimeClosed
from actors.ticket import Ticket
from persistence.errors import PalaverError, StorageError
from persistence.records import STATE_OF_STOP, TurnResult

# Errors after which the message may be stored all the same.
OPEN = (ConversationParked, HandlerFailed, ResultTimeout, RuntimeClosed, StorageError)


UNKNOWN = "?"  # in place of a session's handle


class Broken(AssertionError):
    """A guarantee does not hold."""

    def __init__(self, guarantee: int, what: str) -> None:
        super().__init__(f"G{guarantee}: {what}")
        self.guarantee = guarantee
        self.what = what


@define(eq=False)
class Message:
    """One message, known by its content, which no other message has.

    Messages of one caller in the same `lane` keep their order; "" is none. `turn_id` is the one that was told
    with the acceptance (0 until then, and where only a turn's is known), `told` the first result that anybody
    got for it, `refused` that it certainly was not stored.
    """

    content: str
    number: int
    by: str
    agent: str
    sender: str
    lane: str
    steers: bool
    key: str | None = None
    tries: int = 0
    life: int = 0
    handles: list[str] = field(factory=list)  # of the sessions that it was sent to; none for a tmp chat
    ticket: Ticket | None = None
    accepted: bool = False
    refused: bool = False
    turn_id: int = 0
    told: TurnResult | None = None


@define(eq=False)
class Ledger:
    """Everything that was said, to anybody, in all lives of the process. Nothing is noted while `frozen`."""

    messages: dict[str, Message] = field(factory=dict)
    deleted: dict[str, bool] = field(factory=dict)  # handle -> whether that was acknowledged
    notes: dict[tuple[str, str, str], list[str | None]] = field(factory=dict)  # what each may hold
    archives: dict[tuple[str, str, str], str] = field(factory=dict)
    interrupted: dict[str, bool] = field(factory=dict)  # handles of sessions that were, once
    given_up: dict[str, bool] = field(factory=dict)  # contents
    frozen: bool = False
    life: int = 0
    broken: Broken | None = None
    stop: Callable[[], object] = lambda: None
    _ids: dict[int, Message] = field(factory=dict)
    _lately: dict[str, Message] = field(factory=dict)  # handed over in this life
    _within: dict[int, list[Message]] = field(factory=dict)  # conversation -> those with a ticket of it

    def require(self, fact: object, guarantee: int, what: str) -> None:
        """Unless the fact holds, note the first violation, whoever swallows the exception, and `stop`."""
        if not fact:
            self.fail(guarantee, what)

    def fail(self, guarantee: int, what: str) -> None:
        """A guarantee does not hold; after the end of a process, that means nothing."""
        if not self.frozen:
            self.broken = self.broken or Broken(guarantee, what)
            self.stop()
            raise self.broken

    # -- while callers talk ------------------------------------------------------------------------

    def sent(self, message: Message, handle: str | None) -> Message:
        """A message is handed over, perhaps again; `handle` is None in a tmp chat."""
        if not self.frozen:
            self.messages[message.content] = self._lately[message.content] = message
            message.tries += 1
            message.life = self.life
            if handle is not None and handle not in message.handles:
                message.handles.append(handle)
        return message

    def accepted(self, message: Message, ticket: Ticket | None = None) -> None:
        """It is acknowledged."""
        if self.frozen:
            return
        message.accepted, message.refused = True, False
        if ticket is not None:
            message.ticket = ticket
            self._within.setdefault(ticket.conversation_id, []).append(message)
            if not message.steers or ticket.state == "queued":  # a steer takes its turn's id on
                self._own(message, ticket.turn_id)

    def refused(self, message: Message, error: BaseException) -> None:
        """A call raised an error: most mean that nothing was stored, some leave it open."""
        if not self.frozen and message.tries == 1 and not isinstance(error, OPEN):
            message.refused = True

    def told(self, message: Message, result: TurnResult, state: str | None = None) -> None:
        """Somebody was given its result."""
        if self.frozen:
            return
        if message.told not in (None, result) and not self.forgot(message):
            self.fail(2, f"{message.content} ended as {message.told}, then as {result}")
        if state not in (None, STATE_OF_STOP[result.stop_reason]):
            self.fail(2, f"the ticket of {message.content} is {state}, its result {result}")
        if not message.steers:
            self._own(message, result.turn_id)
        message.accepted, message.refused, message.told = True, False, result

    def _own(self, message: Message, turn_id: int) -> None:
        owner = self._ids.setdefault(turn_id, message)
        if owner is not message:
            self.fail(11, f"turn id {turn_id} of {owner.content} was given to {message.content}")
        if message.turn_id not in (0, turn_id):
            if not self.forgot(message):
                what = f"{message.content} is turn {message.turn_id} and turn {turn_id}"
                self.fail(4 if message.key else 2, what)
            message.told = None  # what was told went with the session
        message.turn_id = turn_id

    def forgot(self, message: Message) -> bool:
        """Whether the message has a key that went with its session, so that it can be accepted anew."""
        return message.key is not None and any(handle in self.deleted for handle in message.handles)

    def settle(self) -> None:
        """Note what the tickets of this life know by now."""
        for message in self.of_this_life():
            if message.ticket is not None and message.ticket.done:
                try:
                    result = message.ticket.result(timeout=0)
                except PalaverError as error:  # its end is not known: not stored, or in a later life
                    if isinstance(error, StorageError):
                        message.lane = ""
                    continue
                self.told(message, result, message.ticket.state)

    def end_life(self) -> None:
        """The process is gone: what only its memory had is nobody's business any more."""
        self.settle()
        self.frozen = True

    def begin_life(self, stop: Callable[[], object]) -> None:
        """A new process; `stop` is called when something is wrong in it."""
        self.frozen, self.stop = False, stop
        self.life += 1
        for message in self._lately.values():
            message.ticket = None
        self._lately.clear()
        self._within.clear()
        self._ids = {turn_id: m for turn_id, m in self._ids.items() if m.handles}

    def of_this_life(self) -> list[Message]:
        """What was handed over in this process."""
        return [*self._lately.values()]

    def unended(self, cid: int) -> list[str]:
        """Acknowledged messages of a conversation whose tickets have no end yet."""
        tickets = [message.ticket for message in self._within.pop(cid, ()) if message.accepted]
        return [t.content for t in tickets if t is not None and t.conversation_id == cid and not t.done]
