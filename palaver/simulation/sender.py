"""A sender of a simulated run: it does what its plan says, through the public calls of a Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gevent
from gevent import GreenletExit

from actors.errors import ConversationClosed, ConversationNotFound, RuntimeClosed
from palaver.simulation.plan import MEETING
from palaver.simulation.provider import filled
from persistence.errors import PalaverError

if TYPE_CHECKING:
    from actors.ticket import Ticket
    from palaver.runtime import Runtime
    from palaver.simulation.outcome import Act
    from palaver.simulation.run import Run

AGENT = "agent"


class Sender:
    """One of them. It goes on in the next life of the process where the last one ended.

    Args:
        index: from 1.
        steps: its acts; none for an open arrival, whose acts come by `do`.
    """

    def __init__(self, run: Run, index: int, steps: Iterator[Act]) -> None:
        self.name = f"s{index}"
        self.doing: Act | None = None
        self._run = run
        self._steps = steps
        self._topic = 0
        self._cid = 0
        self._keyed: Act | None = None  # sent with a key, and its result not known
        self._rt: Runtime

    def begin_life(self, rt: Runtime) -> None:
        """A new process; what the last one told is void."""
        self._rt, self._cid = rt, 0

    # -- a closed arrival --------------------------------------------------------------------------

    def live(self) -> None:
        """Do what is left to do, each when the one before is over, until the time is."""
        run, sent = self._run, None
        self._send_again()
        for act in self._steps:
            if sent is not None and act.what not in MEETING:
                self._wait_for(*sent)
                sent = None
            if not run.lives(act):
                continue
            if act.at_s:
                gevent.sleep(act.at_s)
            if run.over:
                break
            ticket = self.do(act)
            if ticket is not None and act.what == "send":
                sent = (act, ticket)
        if sent is not None:
            self._wait_for(*sent)

    def _send_again(self) -> None:
        """What had a key when the process died is sent once more, and has its one result."""
        act, self._keyed = self._keyed, None
        if act is not None:
            ticket = self.do(act, again=True)
            if ticket is not None:
                self._wait_for(act, ticket)

    # -- an open one -------------------------------------------------------------------------------

    def meet(self, act: Act) -> None:
        """Do one thing, and wait for what comes of it, whatever else is under way."""
        ticket = self.do(act)
        if ticket is not None and act.what == "send":
            self._wait_for(act, ticket)

    # -- doing -------------------------------------------------------------------------------------

    def do(self, act: Act, *, again: bool = False) -> Ticket | None:
        """One act; the ticket of a message that was accepted."""
        run = self._run
        self.doing = act
        if run.telling:
            run.note(self.name, act.what, act=act.number, **act.facts)
        try:
            return self._do(act, again)
        except GreenletExit:
            raise
        except PalaverError as error:
            self._failed(act, error)
            return None
        finally:
            self.doing = None

    def _failed(self, act: Act, error: PalaverError) -> None:
        kind = type(error).__name__
        self._run.note(self.name, f"{act.what}: {kind}", act=act.number)
        if isinstance(error, ConversationClosed | ConversationNotFound):
            self._cid = 0
        if act.what in ("send", "steer"):
            self._run.figures.given_up(act.number, kind)

    def _do(self, act: Act, again: bool) -> Ticket | None:
        rt, facts = self._rt, act.facts
        if act.what == "switch":
            self._topic = int(str(facts["topic"]))
            self._open()
            return None
        if not self._cid:
            self._open()
        match act.what:
            case "send":
                if not again:
                    self._run.figures.sent(act.number)
                key = facts.get("key")
                if key is not None:
                    self._keyed = act
                return rt.submit(self._cid, content_of(act), key=None if key is None else str(key))
            case "steer":
                return rt.steer(self._cid, content_of(act))
            case "cancel":
                rt.cancel(self._cid)
            case "compact":
                rt.compact(self._cid)
            case "close":
                rt.close(self._cid, mode="now" if facts["mode"] == "now" else "drain")
                self._cid = 0
            case "remember":
                rt.memory.remember(AGENT, self.name, f"of {self.name}", f"note {act.number}")
        return None

    def _open(self) -> None:
        rt = self._rt
        if self._run.workload.senders.topics:
            title = f"topic {self._topic}"
            self._cid = rt.switch_topic(AGENT, self.name, title, "what is talked about").conversation_id
        else:
            self._cid = rt.get_or_create(AGENT, self.name)

    def _wait_for(self, act: Act, ticket: Ticket) -> None:
        run = self._run
        self.doing = act
        try:
            result = ticket.result()
        except RuntimeClosed:
            raise
        except PalaverError as error:
            self._failed(act, error)
            return
        finally:
            self.doing = None
        if self._keyed is act:
            self._keyed = None
        run.figures.ended(act.number, done=ticket.state == "done")
        if run.telling:
            run.note(self.name, "result", act=act.number, turn=result.turn_id, stop=result.stop_reason)


def content_of(act: Act) -> str:
    """The message of an act: its number, and text up to its size."""
    return filled(str(act.number), int(str(act.facts["chars"])))
