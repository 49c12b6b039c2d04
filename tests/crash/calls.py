"""Calls of the public API, as a life makes and says them."""

from __future__ import annotations

from typing import Any

from attrs import define

from actors.ticket import Ticket, check_on_busy
from crash.life import Life, scope_of
from persistence.records import TurnResult


@define(eq=False)
class Place:
    """The conversation that a sender is in."""

    agent: str
    sender: str
    topic: str
    cid: int
    handle: str
    resumed: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What is said of it with every call."""
        return {"cid": self.cid, "handle": self.handle, "agent": self.agent, "sender": self.sender}


def enter(life: Life, agent: str, sender: str, topic: str) -> Place | None:
    """Switch to a topic. None if somebody closed it at once. A topic that is open has a handle."""

    def switch() -> Place | None:
        outcome = life.rt.switch_topic(agent, sender, topic, description=f"topic, {tag(agent, sender)}")
        snapshot = life.rt.conversation(outcome.conversation_id)
        if snapshot is None:
            return None
        handle = snapshot.handle or "no handle, which no stored session has"
        return Place(agent, sender, topic, outcome.conversation_id, handle, outcome.resumed)

    def reply(place: Place | None) -> dict[str, Any]:
        return {} if place is None else {"cid": place.cid, "handle": place.handle, "resumed": place.resumed}

    return life.call("switch", switch, reply, agent=agent, sender=sender, topic=topic)


def submit(
    life: Life, place: Place, op: str, content: str, *, busy: str, key: str | None = None, who: str = ""
) -> Ticket | None:
    """Submit a message."""
    return life.call(
        "submit",
        lambda: life.rt.submit(place.cid, content, sender=who, on_busy=check_on_busy(busy), key=key),
        accepted,
        op=op,
        content=content,
        key=key,
        busy=busy,
        **place.facts,
    )


def send(life: Life, place: Place, op: str, content: str, key: str | None, *, who: str = "") -> None:
    """Send a message and wait for its result."""
    life.call(
        "send",
        lambda: life.rt.send(place.cid, content, sender=who, key=key),
        result_of,
        op=op,
        content=content,
        key=key,
        busy="enqueue",
        **place.facts,
    )


def compact(life: Life, place: Place) -> None:
    """Compact a conversation."""
    life.call(
        "compact",
        lambda: life.rt.compact(place.cid),
        lambda outcome: {"archive": outcome.archive, "summary": outcome.summary},
        **place.facts,
    )


def tag(agent: str, sender: str) -> str:
    """What every entry of memory of this pair's scope has in its name or content."""
    return f"note of {agent} in {scope_of(agent, sender) or 'all'}"


def value_of(value: object) -> dict[str, Any]:
    """What is said of a call that returned a value."""
    return {"value": value}


def accepted(ticket: Ticket) -> dict[str, Any]:
    """What is said of a call that accepted a message."""
    return {"turn": ticket.turn_id}


def result_of(result: TurnResult) -> dict[str, Any]:
    """What is said of a call that returned a turn's result."""
    return {"turn": result.turn_id, "text": result.text, "stop": result.stop_reason, "steps": result.steps}
