"""What a caller of a simulated world says: messages of all kinds, retries of keys, tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from palaver import Done, KeyReused, PalaverError, Ticket
from palaver.simulation.checks.eventorder import EventOrder
from palaver.simulation.checks.ledger import UNKNOWN, Message
from reliability.caller import Caller
from reliability.cast import FIRST


class Talking(Caller):
    """The part of a caller that sends messages, and keeps account of them in the ledger."""

    # -- messages ----------------------------------------------------------------------------------

    def _new(self, **facts: Any) -> Message:
        world = self._world
        message = world.message(self.name, self._agent, self._sender, **facts)
        return world.ledger.sent(message, world.watch.handle_of(self._cid))

    def _submitted(self, message: Message, how: Callable[..., Ticket], **options: Any) -> str:
        ledger = self._world.ledger
        try:
            ticket = how(self._cid, message.content, **options)
        except PalaverError as error:
            ledger.refused(message, error)
            raise
        ledger.accepted(message, ticket)
        self._tickets.append((message, ticket))
        return f"{message.content} {ticket.turn_id} {ticket.state}"

    def _submit(self) -> str:
        return self._submitted(self._new(lane="queue"), self._rt.submit)

    def _interrupt(self) -> str:
        self._world.ledger.interrupted[self._world.watch.handle_of(self._cid) or ""] = True
        return self._submitted(self._new(), self._rt.submit, on_busy="interrupt")

    def _reject(self) -> str:
        return self._submitted(self._new(), self._rt.submit, on_busy="reject")

    def _steer(self) -> str:
        # A steer waits for its turn to go on, and the next may overtake it where that turn or its actor dies.
        lane = "" if self._world.rates.deaths else f"steers {self._world.ledger.life}"
        return self._submitted(self._new(lane=lane, steers=True), self._rt.steer)

    def _steer_or_submit(self) -> str:
        return self._submitted(self._new(steers=True), self._rt.submit, on_busy="steer")

    def _guest(self) -> str:
        guest = self._rng.choice(("ann", "bob"))
        return self._submitted(self._new(), self._rt.submit, guest=guest)

    def _send(self) -> str:
        message, ledger = self._new(lane="queue"), self._world.ledger
        try:
            timeout = self._rng.choice((None, None, 0.01, 5.0))
            result = self._rt.send(self._cid, message.content, timeout=timeout)
        except PalaverError as error:
            ledger.refused(message, error)
            raise
        ledger.told(message, result)
        return f"{message.content} {result.turn_id} {result.stop_reason}"

    def _stream(self) -> str:
        message, ledger, order = self._new(lane="queue"), self._world.ledger, EventOrder(FIRST)
        try:
            stream: Any = self._rt.stream(self._cid, message.content)
        except PalaverError as error:
            ledger.refused(message, error)
            raise
        ledger.accepted(message)
        leave_after = self._rng.choice((None, None, 2))
        for number, event in enumerate(stream):
            self._world.watch.hear(order, event, message.content)
            if isinstance(event, Done):
                ledger.told(message, event.result)
            if number == leave_after:
                stream.close()
                return f"{message.content} left"
        self._world.require(order.done, 2, f"the events of {message.content} ended without Done")
        return f"{message.content} {message.turn_id}"

    # -- keys --------------------------------------------------------------------------------------

    def _keyed(self) -> str | None:
        return self._with_key(None)

    def _retry(self) -> str | None:
        message = self._rng.choice(self._keyed_ones) if self._keyed_ones else None
        return self._with_key(message) if message is not None else None

    def _with_key(self, message: Message | None) -> str | None:
        world = self._world
        handle = world.watch.handle_of(self._cid)
        if handle in (None, UNKNOWN):
            return None  # keys of a tmp chat are of one process
        if message is None:
            message = world.message(self.name, self._agent, self._sender)
            message.key = world.new_key(self._agent, self._sender)
            self._keyed_ones.append(message)
        elif world.ledger.forgot(message):
            return None  # its key went with the session
        world.ledger.sent(message, handle)
        return self._submitted(message, self._rt.submit, key=message.key)

    def _other_content(self) -> str | None:
        world = self._world
        firm = [m for m in self._keyed_ones if m.accepted and not world.ledger.forgot(m)]
        handle = world.watch.handle_of(self._cid)
        if not firm or handle is None:
            return None
        first = self._rng.choice(firm)
        message = self._new()
        try:
            self._rt.submit(self._cid, message.content, key=first.key)
        except KeyReused:
            world.ledger.refused(message, KeyReused())
            return "refused"
        except PalaverError as error:
            world.ledger.refused(message, error)
            raise
        gone = world.ledger.forgot(first)
        world.require(gone, 4, f"the key of {first.content} was taken for {message.content}")
        world.ledger.accepted(message)
        return "the session was deleted meanwhile"

    # -- tickets -----------------------------------------------------------------------------------

    def _ask_ticket(self) -> str | None:
        if not self._tickets:
            return None
        message, ticket = self._rng.choice(self._tickets)
        result = ticket.result(timeout=self._rng.choice((None, 1.0)))
        self._world.ledger.told(message, result, ticket.state)
        return f"{message.content} {result.turn_id} {result.stop_reason}"

    def _cancel_ticket(self) -> str | None:
        if not self._tickets:
            return None
        message, ticket = self._rng.choice(self._tickets)
        cancelled = ticket.cancel()
        if cancelled:
            result = ticket.result(timeout=0)
            self._world.ledger.told(message, result, ticket.state)
            self._world.require(result.stop_reason == "cancelled", 2, f"cancelled, but {result}")
        return f"{message.content} {cancelled} {ticket.state}"
