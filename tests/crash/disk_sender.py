"""Somebody who uses a Runtime all day long, and notes every promise that it makes."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actors.ticket import OnBusy
from crash.disk import Recorder
from palaver import AgentConfig, Runtime, Ticket
from palaver import PalaverError as Refused

STEERS = "steers with"


class Sender:
    """Somebody who uses a Runtime, remembers what was promised, and puts it into the log."""

    def __init__(self, recorder: Recorder, name: str, agent: AgentConfig, rng: random.Random) -> None:
        self._name = name
        self._agent = agent
        self._rng = rng
        self._recorder = recorder
        self._said = 0
        self._cid: int | None = None
        self._handle = ""
        self._tickets: list[tuple[Ticket, str]] = []
        self._known: set[int] = set()
        self._keyed: list[tuple[str, str]] = []
        self._promised: dict[str, tuple[list[int], list[str]]] = {}
        self._notes: dict[str, int] = {}
        self._ways: list[Callable[[Runtime], None]] = [
            way
            for way, weight in (
                (self._talk, 12),
                (self._talk_and_steer, 7),
                (self._talk_again, 3),
                (self._wait, 8),
                (self._switch, 4),
                (self._compact, 3),
                (self._close, 3),
                (self._delete, 1),
                (self._cancel, 2),
                (self._note, 4),
                (self._forget, 2),
            )
            for _ in range(weight)
        ]

    def work(self, rt: Runtime, steps: int) -> None:
        """Do so many things, one after the other."""
        for _ in range(steps):
            # Refusals are part of life: what is refused was not promised.
            with suppress(Refused):
                if self._cid is None:
                    self._switch(rt)
                self._rng.choice(self._ways)(rt)

    def hurry(self, rt: Runtime) -> None:
        """Ask for more than can be done before the day ends."""
        for _ in range(2):
            with suppress(Refused):
                if self._cid is None:
                    self._switch(rt)
                self._talk(rt)
        self._cid = None

    def go_home(self) -> None:
        """Take the answers that are there."""
        for ticket, handle in self._tickets:
            if ticket.done:
                with suppress(Refused):
                    self._take_result(ticket, handle)
        self._tickets.clear()

    # -- what it does ------------------------------------------------------------------------------

    def _switch(self, rt: Runtime) -> None:
        topic = f"topic {self._rng.randint(1, 3)}"
        cid = rt.switch_topic(self._agent.name, self._name, topic, f"what {topic} is about").conversation_id
        snapshot = rt.conversation(cid)
        if snapshot is None or snapshot.handle is None:
            return
        self._cid, self._handle = cid, snapshot.handle
        if self._handle not in self._promised:
            self._promised[self._handle] = ([], [])
            self._ack("session", handle=self._handle)

    def _say(self, verb: str = "says") -> str:
        self._said += 1
        return f"{self._name} {verb} number {self._said}: {filler(self._rng)}"

    def _talk(self, rt: Runtime) -> None:
        content = self._say()
        key = f"key of {content[:40]}" if self._rng.random() < 0.5 else None
        on_busy: OnBusy = "interrupt" if self._rng.random() < 0.25 else "enqueue"
        self._accepted(rt.submit(self._id, content, key=key, on_busy=on_busy), content, key)
        if key is not None:
            self._keyed.append((content, key))

    def _talk_again(self, rt: Runtime) -> None:
        """Send something a second time, as one who has not heard the answer."""
        if self._keyed:
            content, key = self._rng.choice(self._keyed)
            ticket = rt.submit(self._id, content, key=key)
            if ticket.turn_id not in self._known:  # the session of the first time was deleted
                self._accepted(ticket, content, key)

    def _talk_and_steer(self, rt: Runtime) -> None:
        self._talk(rt)
        for _ in range(self._rng.randint(1, 3)):
            content = self._say(STEERS)
            rt.steer(self._id, content)
            self._ack("steer", handle=self._handle, content=content)
            self._promised[self._handle][1].append(content)

    def _wait(self, _rt: Runtime) -> None:
        if self._tickets:
            self._take_result(*self._tickets.pop(0))

    def _cancel(self, _rt: Runtime) -> None:
        if self._tickets:
            ticket, handle = self._tickets.pop()
            ticket.cancel()
            self._take_result(ticket, handle)

    def _take_result(self, ticket: Ticket, handle: str) -> None:
        result = ticket.result()
        self._ack("result", handle=handle, turn=ticket.turn_id, state=ticket.state, text=result.text)

    def _compact(self, rt: Runtime) -> None:
        handle = self._handle
        outcome = rt.compact(self._id)
        if outcome.archive is not None:
            scope = self._agent.scope(self._name)
            about = {"agent": self._agent.name, "scope": scope, "archive": outcome.archive}
            self._ack("compacted", handle=handle, summary=outcome.summary, **about)

    def _close(self, rt: Runtime) -> None:
        for _ in range(self._rng.randint(0, 2)):
            self._talk(rt)  # so that something waits
        cid, self._cid = self._id, None
        turns, steers = self._promised[self._handle]
        if rt.close(cid, mode=self._rng.choice(("drain", "now"))):
            self._ack("closed", handle=self._handle, turns=turns, steers=steers)
        self._promised[self._handle] = ([], [])

    def _delete(self, rt: Runtime) -> None:
        handle = self._handle
        self._cid = None
        self._recorder.ask("delete", {"handle": handle})
        if rt.delete_session(handle):
            self._ack("deleted", handle=handle)

    def _note(self, rt: Runtime) -> None:
        name = f"{self._name}'s note {self._rng.randint(1, 3)}"
        version = self._notes[name] = self._notes.get(name, 0) + 1
        content = f"version {version} {filler(self._rng)}".strip()
        about = self._ask_note(name, version, f"{content} of {name}")
        rt.memory.remember(self._agent.name, self._name, name, about["content"])
        self._ack("note", **about)

    def _forget(self, rt: Runtime) -> None:
        if self._notes:
            name = self._rng.choice([*self._notes])
            version = self._notes[name] = self._notes[name] + 1
            about = self._ask_note(name, version, None)
            rt.memory.forget(self._agent.name, self._name, name)
            self._ack("note", **about)

    def _ask_note(self, name: str, version: int, content: str | None) -> dict[str, Any]:
        scope = self._agent.scope(self._name)
        about = {
            "agent": self._agent.name,
            "scope": scope,
            "name": name,
            "version": version,
            "content": content,
        }
        self._recorder.ask("note", about)
        return about

    # -- what it is told ---------------------------------------------------------------------------

    @property
    def _id(self) -> int:
        assert self._cid is not None
        return self._cid

    def _accepted(self, ticket: Ticket, content: str, key: str | None) -> None:
        self._known.add(ticket.turn_id)
        self._ack("message", handle=self._handle, turn=ticket.turn_id, content=content, key=key)
        self._promised[self._handle][0].append(ticket.turn_id)
        self._tickets.append((ticket, self._handle))

    def _ack(self, what: str, **about: Any) -> None:
        self._recorder.ack(what, about)


def filler(rng: random.Random) -> str:
    """Text for a line, sometimes for pages."""
    return "so they say, " * rng.choice((0, 1, 3, 10, 40, 350))
