"""Greenlets that do a bit of everything, at random, as many users would."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

from actors.ticket import Ticket
from crash.calls import Place, accepted, compact, enter, result_of, send, submit, tag, value_of
from crash.life import AGENTS, Life
from crash.mind import message

SENDERS = ("ann", "bob", "cyd")
TOPICS = ("Plan A", "Plan B")
NOTES = 4

# What a sender does next, by weight. A life's order may give others.
MIX = {
    "switch": 8,
    "submit": 36,
    "send": 14,
    "steer": 14,
    "result": 8,
    "cancel_ticket": 4,
    "cancel": 2,
    "compact": 5,
    "close": 3,
    "delete": 1,
    "remember": 4,
    "forget": 1,
    "look": 2,
}
POLICIES = {"enqueue": 80, "interrupt": 8, "reject": 6, "steer": 6}


class Keys:
    """Idempotency keys of one life, those of earlier lives whose answer never came among them.

    The first key of each pair in a life is the same text for all pairs, and so on: keys are a pair's own.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._known: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._made: dict[tuple[str, str], int] = {}
        for agent, sender, key, content in life.order.get("retries", ()):
            self._known.setdefault((agent, sender), []).append((key, content))

    def pick(self, rng: random.Random, pair: tuple[str, str], content: str) -> tuple[str, str]:
        """A key and content: new ones, the same as before, or now and then a key for other content."""
        known = self._known.setdefault(pair, [])
        chance = rng.random()
        if not known or chance < 0.5:
            number = self._made[pair] = self._made.get(pair, 0) + 1
            known.append((f"key {self._life.name} {number}", content))
            return known[-1]
        key, before = rng.choice(known)
        return (key, content) if chance > 0.95 else (key, before)


class Sender:
    """A greenlet that makes calls one after the other, mostly in one conversation."""

    def __init__(self, life: Life, number: int, keys: Keys) -> None:
        self._life = life
        self._rt = life.rt
        self._keys = keys
        self._rng = random.Random(f"{life.order['seed']} {life.name} {number}")
        self._who = f"g{number}"
        self._place: Place | None = None
        self._tickets: list[tuple[Ticket, str, str]] = []
        mix = life.order.get("mix", MIX)
        self._acts, self._weights = list(mix), list(mix.values())

    def run(self) -> None:
        """Do as many things as the life's order says."""
        for _ in range(self._life.order["acts"]):
            if self._place is None or self._gone(self._place):
                self.switch()
            else:
                (act,) = self._rng.choices(self._acts, self._weights)
                getattr(self, act)(self._place)

    def _gone(self, place: Place) -> bool:
        snapshot = self._rt.conversation(place.cid)
        # Now and then something is asked of a conversation that closes.
        return snapshot is None or (snapshot.state == "closing" and self._rng.random() < 0.8)

    # -- conversations -----------------------------------------------------------------------------

    def switch(self, _place: Place | None = None) -> None:
        agent, sender, topic = AGENTS[0].name, SENDERS[0], TOPICS[0]
        if not self._life.order.get("crowded"):
            agent, sender = self._rng.choice(AGENTS).name, self._rng.choice(SENDERS)
            topic = self._rng.choice(TOPICS)
        self._place = enter(self._life, agent, sender, topic)

    def close(self, place: Place) -> None:
        mode: Literal["drain", "now"] = self._rng.choice(("drain", "now"))
        self._call("close", place, lambda: self._rt.close(place.cid, mode=mode), value_of, mode=mode)

    def delete(self, place: Place) -> None:
        self._call("delete", place, lambda: self._rt.delete_session(place.handle), value_of)

    def compact(self, place: Place) -> None:
        compact(self._life, place)

    def cancel(self, place: Place) -> None:
        self._call("cancel", place, lambda: self._rt.cancel(place.cid), value_of)

    # -- messages ----------------------------------------------------------------------------------

    def submit(self, place: Place) -> None:
        op, content, key = self._message(place)
        busy = "enqueue"
        if key is None:
            (busy,) = self._rng.choices(list(POLICIES), list(POLICIES.values()))
        ticket = submit(self._life, place, op, content, busy=busy, key=key, who=self._who)
        if ticket is not None:
            self._tickets.append((ticket, content, place.handle))

    def send(self, place: Place) -> None:
        op, content, key = self._message(place)
        send(self._life, place, op, content, key, who=self._who)

    def steer(self, place: Place) -> None:
        op = self._life.next_op()
        content = message(op)
        ticket = self._call(
            "steer",
            place,
            lambda: self._rt.steer(place.cid, content),
            accepted,
            op=op,
            content=content,
            busy="steer",
        )
        if ticket is not None:
            self._tickets.append((ticket, content, place.handle))

    def result(self, _place: Place) -> None:
        if self._tickets:
            ticket, content, handle = self._tickets.pop(self._rng.randrange(len(self._tickets)))
            self._life.call("result", ticket.result, result_of, of=content, handle=handle)

    def cancel_ticket(self, _place: Place) -> None:
        if self._tickets:
            ticket, content, handle = self._rng.choice(self._tickets)
            turn = ticket.turn_id
            self._life.call("cancel_ticket", ticket.cancel, value_of, of=content, handle=handle, turn=turn)

    def _message(self, place: Place) -> tuple[str, str, str | None]:
        """The name of the call, its content, and now and then a key."""
        op = self._life.next_op()
        tools = self._rng.choice((0, 0, 0, 1, 2))
        if place.agent == "small" and self._life.order.get("steady"):
            tools = 0  # when a turn compacts midway depends on where it was interrupted
        content = message(op, tools=tools, delay=self._rng.choice(self._life.order["delays"]))
        if self._rng.random() < 0.7:
            return op, content, None
        key, content = self._keys.pick(self._rng, (place.agent, place.sender), content)
        return op, content, key

    # -- memory ------------------------------------------------------------------------------------

    def remember(self, place: Place) -> None:
        op = self._life.next_op()
        name = self._note(place)
        self._call(
            "remember",
            place,
            lambda: self._rt.memory.remember(place.agent, place.sender, name, op),
            lambda entry: {"content": entry.content},
            op=op,
            name=name,
        )

    def forget(self, place: Place) -> None:
        name = self._note(place)
        forget = self._rt.memory.forget
        self._call("forget", place, lambda: forget(place.agent, place.sender, name), value_of, name=name)

    def look(self, place: Place) -> None:
        """Whatever memory shows is of the pair's own scope, and says so."""
        memory, ours = self._rt.memory, tag(place.agent, place.sender)
        self._call(
            "look",
            place,
            lambda: [
                *memory.entries(place.agent, place.sender),
                *memory.recall(place.agent, place.sender, "note of", limit=20),
            ],
            lambda found: {
                "foreign": [e.name for e in found if e.kind != "archive" and ours not in e.name + e.content][
                    :5
                ]
            },
        )

    def _note(self, place: Place) -> str:
        return f"{tag(place.agent, place.sender)} {self._rng.randrange(NOTES)}"

    def _call(
        self, do: str, place: Place, function: Callable[[], Any], reply: Callable[[Any], Any], **facts: Any
    ) -> Any:
        return self._life.call(do, function, reply, **place.facts, **facts)
