"""The watch over one life of a simulated process: what runs where, who is live, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import define, field

from actors.events import CompactionSkipped, Event, Lagged
from actors.models.base import ModelRequest
from actors.state import ConversationInfo
from palaver.runtime import Runtime
from palaver.simulation.checks.eventorder import EventOrder
from palaver.simulation.checks.ledger import UNKNOWN, Ledger

Left = list[tuple[str, int, str]]  # (handle, turn id, content) of messages without an end
Name = tuple[str, str, str | None]  # agent, sender, topic
LOOKED_AT = 4  # conversations, for each turn that begins where many are live
FEW = 32

Where = str | int  # a session's handle, or the id of a tmp chat


@define(eq=False)
class Watch:
    """What is seen of the conversations of one life.

    Args:
        attempts: how often a turn may be begun.
        earlier: turn -> the lives in which it was begun; goes on from life to life.
    """

    rt: Runtime
    ledger: Ledger
    attempts: int
    earlier: dict[int, list[int]]
    closed: dict[int, bool] = field(factory=dict)
    _names: dict[int, Name] = field(factory=dict)
    _handles: dict[int, str | None] = field(factory=dict)
    _at_work: dict[Where, list[int]] = field(factory=dict)  # the turns whose calls are under way
    _begun: dict[int, bool] = field(factory=dict)
    _left: dict[str, list[int]] = field(factory=dict)  # by handle: the turns that are to run first, in order
    _reached: dict[str, int] = field(factory=dict)
    _look_in: int = 0  # turns that begin

    def expect(self, left: Left) -> None:
        """These were left behind; they run before all else, in this order. Ids that are not among them and
        were not acknowledged may be given again."""
        for handle, turn_id, _ in left:
            self._left.setdefault(handle, []).append(turn_id)
        known = {turn_id: self.earlier.get(turn_id, []) for _, turn_id, _ in left}
        self.earlier.clear()
        self.earlier.update(known)

    def handle_of(self, cid: int) -> str | None:
        """The handle of a conversation; None for a tmp chat, `UNKNOWN` if it is still opening, or gone."""
        if cid not in self._handles:
            shown = self.rt.conversation(cid)
            if shown is None or (shown.topic is not None and shown.handle is None):
                return UNKNOWN
            self._handles[cid] = shown.handle
        return self._handles[cid]

    def look(self) -> None:
        """At all live conversations: one of a kind, none under another's id, none that was closed."""
        seen: dict[Name, int] = {}
        for info in self.rt.list_active():
            name = (info.agent, info.sender, info.topic)
            if self._names.setdefault(info.id, name) != name:
                self.ledger.fail(11, f"conversation {info.id} was {self._names[info.id]} and is {name}")
            if info.id in self.closed:
                self.ledger.fail(8, f"conversation {info.id} was closed, and is live")
            if info.topic is None and info.state == "closing":
                continue
            if seen.setdefault(name, info.id) != info.id:
                self.ledger.fail(11, f"{seen[name]} and {info.id} are both live for {name}")

    # -- calls of models and tools -----------------------------------------------------------------

    def begins(self, request: ModelRequest) -> bool:
        """Whether a turn asks its model for the first time in this life; it must be its turn."""
        cid, turn_id = request.conversation_id, request.turn_id
        self._look_in -= 1
        if self._look_in <= 0:  # at each turn where few are live, and at some a turn where many are
            self.look()
            live = self.rt.conversation_count()
            self._look_in = live // LOOKED_AT if live > FEW else 0
        if cid in self.closed:
            self.ledger.fail(8, f"turn {turn_id} runs in {cid}, which was closed")
        handle = self.handle_of(cid)
        if turn_id in self._begun or handle in (None, UNKNOWN):
            return False
        assert handle is not None
        self._begun[turn_id] = True
        lives = self.earlier.setdefault(turn_id, [])
        lives.append(self.ledger.life)
        if len(lives) > self.attempts:
            self.ledger.fail(12, f"turn {turn_id} is begun in lives {lives}, {self.attempts} are allowed")
        self._check_order(handle, turn_id)
        return True

    def _check_order(self, handle: str, turn_id: int) -> None:
        left = self._left.get(handle, [])
        if turn_id in left:
            place, reached = left.index(turn_id), self._reached.get(handle, -1)
            if place < reached:
                self.ledger.fail(5, f"turn {turn_id} runs after {left[reached]}; {left} was left in {handle}")
            self._reached[handle] = place

    def _enter(self, cid: int, turn_id: int) -> Where:
        where: Where = self.handle_of(cid) or cid
        others = self._at_work.setdefault(where, [])
        if any(other != turn_id for other in others):
            self.ledger.fail(6, f"turns {others} and {turn_id} of {where} run at once")
        others.append(turn_id)
        return where

    @contextmanager
    def at_work(self, cid: int, turn_id: int) -> Iterator[None]:
        """A turn's model or tool works for as long as the block runs."""
        where = self._enter(cid, turn_id)
        try:
            yield
        finally:
            self._at_work[where].remove(turn_id)

    def check_pairing(self, request: ModelRequest) -> None:
        """Every tool call that a model is shown has its result right behind it, and no result is alone."""
        open_calls: list[str] = []
        for message in request.messages:
            if message["role"] == "tool":
                if not (open_calls and open_calls.pop(0) == message["tool_call_id"]):
                    self.ledger.fail(3, f"turn {request.turn_id} was shown a result out of place")
            elif open_calls:
                break
            else:
                open_calls = [call["id"] for call in message.get("tool_calls", ())]
        if open_calls:
            self.ledger.fail(3, f"turn {request.turn_id} was shown an unanswered call")

    # -- events ------------------------------------------------------------------------------------

    def read(self, events: Iterable[tuple[ConversationInfo, Event]], first: str) -> None:
        """All events of the runtime, until they end; `first` is what every answer begins with."""
        orders: dict[int, EventOrder] = {}
        for info, event in events:
            order = orders.setdefault(info.id, EventOrder(first))
            for each in orders.values() if isinstance(event, Lagged) else (order,):
                self.hear(each, event, f"conversation {info.id}")

    def hear(self, order: EventOrder, event: Event, where: str) -> None:
        """One more event of a reader."""
        wrong = order.take(event)
        if wrong:
            self.ledger.fail(17, f"{where}: {wrong}")
        if isinstance(event, CompactionSkipped) and "taken" in event.error:
            self.ledger.fail(10, f"{where}: {event}")
