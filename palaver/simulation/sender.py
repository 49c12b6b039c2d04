"""A sender of a simulated run: it does what its plan says, through the public calls of a Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from actors.errors import (
    CompactionFailed,
    ConversationBusy,
    ConversationClosed,
    ConversationNotFound,
    ConversationParked,
    HandlerFailed,
    MailboxFull,
    NoActiveTurn,
    RuntimeClosed,
)
from palaver.simulation.loop import pause
from palaver.simulation.plan import MEETING
from palaver.simulation.provider import filled
from persistence.errors import PalaverError, StorageError

if TYPE_CHECKING:
    from actors.ticket import Ticket
    from palaver.runtime import Runtime
    from palaver.simulation.checks.ledger import Message
    from palaver.simulation.outcome import Act
    from palaver.simulation.run import Run

AGENT = "agent"
EXPECTED = (
    CompactionFailed,
    ConversationBusy,
    ConversationClosed,
    ConversationNotFound,
    MailboxFull,
    NoActiveTurn,
)


class Sender:
    """One of them. It goes on in the next life of the process where the last one ended.

    Args:
        index: from 1.
        steps: its acts; none for an open arrival, whose acts come by `meet`.

    Attributes:
        doing: the acts whose calls have not returned.
        cid: the conversation that it talks in, or 0.
    """

    def __init__(self, run: Run, index: int, steps: Iterator[Act]) -> None:
        self.name = f"s{index}"
        self.doing: dict[int, Act] = {}
        self.cid = 0
        self._run = run
        self._steps = steps
        self._topic = 0
        self._keyed: dict[int, Act] = {}  # sent with a key, and the result not known
        self._said: dict[int, Message] = {}  # of acts that are not over
        self._calls = 0  # that have not returned
        self._rt: Runtime

    def begin_life(self, rt: Runtime) -> None:
        """A new process; what the last one told is void."""
        self._rt, self.cid = rt, 0
        self.doing.clear()

    # -- a closed arrival --------------------------------------------------------------------------

    def live(self) -> None:
        """Do what is left to do, each when the one before is over, until the time is."""
        run = self._run
        sent: tuple[Act, Ticket] | None = None
        self.send_again()
        for act in self._steps:
            if sent is not None and act.what not in MEETING:
                self._wait_for(*sent)
                sent = None
            if run.behind(act):
                break
            if not run.lives(act):
                continue
            wait_s = run.wait_s(act)
            if wait_s:
                pause(wait_s)
            if run.over:
                break
            ticket = self._do(act)
            if ticket is not None and act.what == "send":
                sent = (act, ticket)
        if sent is not None:
            self._wait_for(*sent)

    def send_again(self) -> None:
        """What had a key when the process died is sent once more, and has its one result."""
        for act in [*self._keyed.values()]:
            self._send(act, again=True)

    # -- an open one -------------------------------------------------------------------------------

    def meet(self, act: Act) -> None:
        """Do one thing, and wait for what comes of it, whatever else is under way."""
        self._send(act)

    def _send(self, act: Act, *, again: bool = False) -> None:
        ticket = self._do(act, again=again)
        if ticket is not None and act.what == "send":
            self._wait_for(act, ticket, again=again)

    # -- doing -------------------------------------------------------------------------------------

    def _do(self, act: Act, *, again: bool = False) -> Ticket | None:
        """One act; the ticket of a message that was accepted."""
        run = self._run
        run.begins(act)
        self.doing[act.number] = act
        try:
            ticket = self._done(act, again)
        except PalaverError as error:
            self._failed(act, error)
            return None
        del self.doing[act.number]
        return ticket

    def _done(self, act: Act, again: bool) -> Ticket | None:
        rt, facts = self._rt, act.facts
        if act.what == "switch":
            self._topic = int(str(facts["topic"]))
            self._open()
            return None
        if not self.cid:
            self._open()
        match act.what:
            case "send" | "steer":
                return self._say(act, again)
            case "cancel":
                rt.cancel(self.cid)
            case "compact":
                self._compact()
            case "close":
                self._close(act)
            case "remember":
                self._remember(act)
        return None

    def _open(self) -> None:
        if self._run.workload.senders.topics:
            title = f"topic {self._topic}"
            self.cid = self._rt.switch_topic(AGENT, self.name, title, "work").conversation_id
        else:
            self.cid = self._rt.get_or_create(AGENT, self.name)

    def _say(self, act: Act, again: bool) -> Ticket:
        alone = not self._calls
        self._calls += 1
        try:
            return self._handed_over(act, again, alone)
        finally:
            self._calls -= 1

    def _handed_over(self, act: Act, again: bool, alone: bool) -> Ticket:
        run, cid, content = self._run, self.cid, content_of(act)
        if not again and act.what == "send":
            run.figures.sent(act.number)
        key = act.facts.get("key")
        if key is not None:
            self._keyed[act.number] = act
        message = None
        if run.check:
            said = run.said(act, content, AGENT, alone=alone)
            message = self._said.setdefault(act.number, said)
            run.ledger.sent(message, run.watch.handle_of(cid))
        try:
            if act.what == "steer":
                ticket = self._rt.steer(cid, content)
            else:
                ticket = self._rt.submit(cid, content, key=None if key is None else str(key))
        except PalaverError as error:
            if message is not None:
                run.ledger.refused(message, error)
            raise
        if message is not None:
            run.ledger.accepted(message, ticket)
        return ticket

    def _wait_for(self, act: Act, ticket: Ticket, *, again: bool = False) -> None:
        run = self._run
        self.doing[act.number] = act
        try:
            result = ticket.result()
        except PalaverError as error:
            self._failed(act, error)
            return
        del self.doing[act.number]
        self._keyed.pop(act.number, None)
        message = self._said.get(act.number)
        if message is not None:
            run.ledger.told(message, result, ticket.state)
        run.figures.ended(act.number, done=ticket.state == "done")
        if run.telling:
            run.note(self.name, "result", act=act.number, turn=result.turn_id, stop=result.stop_reason)
        if act.facts.get("again") and not again:
            self._send(act, again=True)  # and has the same result
        if act.number not in self._keyed:  # else the process died meanwhile: the next life asks again
            self._said.pop(act.number, None)

    def _failed(self, act: Act, error: PalaverError) -> None:
        """The call raised: it is over, unless the process died and there is a key to ask again with."""
        run, kind = self._run, type(error).__name__
        if run.frozen:
            return
        self.doing.pop(act.number, None)
        self._keyed.pop(act.number, None)
        self._said.pop(act.number, None)
        run.note(self.name, f"{act.what}: {kind}", act=act.number)
        if isinstance(error, ConversationClosed | ConversationNotFound):
            self.cid = 0
        if act.what in ("send", "steer"):
            run.figures.given_up(act.number, kind)
        if run.check:
            run.require(self._expected(act, error), 13, f"{self.name} {act.what}: {error!r}")

    def _expected(self, act: Act, error: PalaverError) -> bool:
        run = self._run
        if isinstance(error, StorageError):
            return run.disk.failed or "key" in act.facts  # its first message may wait in a topic that is shut
        if isinstance(error, HandlerFailed | ConversationParked):
            return run.plan.rates.deaths_per_hour > 0.0
        if isinstance(error, RuntimeClosed):
            return False
        return isinstance(error, EXPECTED)

    # -- what has an account in the ledger ---------------------------------------------------------

    def _compact(self) -> None:
        outcome = self._rt.compact(self.cid)
        if self._run.check and outcome.archive is not None and outcome.summary is not None:
            key, known = (AGENT, self.name, outcome.archive), self._run.ledger.archives
            self._run.require(key not in known, 10, f"two archives are called {key}")
            known[key] = outcome.summary

    def _close(self, act: Act) -> None:
        cid, rt = self.cid, self._rt
        try:
            rt.close(cid, mode="now" if act.facts["mode"] == "now" else "drain")
        except StorageError:
            if rt.conversation(cid) is None:  # closed all the same
                self._gone(cid)
            raise
        self._gone(cid)

    def _gone(self, cid: int) -> None:
        run = self._run
        if self.cid == cid:
            self.cid = 0
        if run.check and not run.frozen:
            run.watch.closed[cid] = True
            left = run.ledger.unended(cid)
            run.require(not left, 2, f"conversation {cid} was closed, and {left} have no end")

    def _remember(self, act: Act) -> None:
        name, content = f"of {self.name}", f"note {act.number}"
        may_be = self._run.ledger.notes.setdefault((AGENT, self.name, name), [None])
        may_be.append(content)
        self._rt.memory.remember(AGENT, self.name, name, content)
        may_be[:] = [content]


def content_of(act: Act) -> str:
    """The message of an act: its number, and text up to its size."""
    return filled(str(act.number), int(str(act.facts["chars"])))
