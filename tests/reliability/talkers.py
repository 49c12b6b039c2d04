"""Callers of conversations in a crash storm; some conversations die themselves, the others must go on."""

from __future__ import annotations

import random

from palaver import ConversationClosed, ConversationParked, HandlerFailed, Runtime
from palaver.simulation.loop import VirtualClock
from reliability.cast import wait

SLOW_S = 1.0  # longer than any model and commit take
SOME_S = 200.0


class Talker:
    """Sends one message after the other, remembers and recalls, and finds its conversation again."""

    def __init__(self, rt: Runtime, number: int, rng: random.Random, *, wild: bool) -> None:
        self._rt, self._rng, self._wild = rt, rng, wild
        self._sender = f"sender {number}"
        self._clock = VirtualClock()
        self._topic = number % 3 != 0
        self._cid = self._find()
        self._sent = 0
        self._answered = 0

    def _find(self) -> int:
        if self._topic:
            return self._rt.switch_topic("crab", self._sender, "work", "what it is about").conversation_id
        return self._rt.get_or_create("crab", self._sender)

    def act(self, until: float) -> None:
        while self._clock.monotonic() < until:
            wait(self._rng.choice((0.05, 0.5, 1.5)))
            if self._wild and self._rng.random() < 0.3:
                self._let_it_die()
            self._say()
            if not self._wild:
                self._look()

    def _let_it_die(self) -> None:
        state = self._rt._services.directory.conversations.get(self._cid)  # noqa: SLF001 - what is to die
        if state is not None and state.ref is not None and state.ref.is_alive():
            state.ref.tell(object())

    def _say(self) -> None:
        self._sent += 1
        words, began = f"{self._sender} says {self._sent}", self._clock.monotonic()
        try:
            result = self._rt.send(self._cid, words, timeout=SOME_S)
        except (ConversationParked, HandlerFailed, ConversationClosed) as error:
            if not self._wild:
                raise AssertionError(f"{words}: {error!r}") from error
            return
        self._answered += 1
        if self._wild and result.stop_reason == "error":
            assert "given up" in (result.error or ""), f"{words}: {result}"
            return
        assert (result.stop_reason, result.text) == ("text_response", words), f"{words}: {result}"
        spent = self._clock.monotonic() - began
        assert self._wild or spent < SLOW_S, f"{words} was answered after {spent} s"

    def _look(self) -> None:
        """What goes through the registry and the memory actor, which die meanwhile."""
        found = self._find()
        assert found == self._cid, f"{self._sender} has conversation {found}, and had {self._cid}"
        note = f"note {self._sent}"
        self._rt.memory.remember("crab", self._sender, note, f"content {self._sent}")
        entries = self._rt.memory.recall("crab", self._sender, note)
        assert note in [entry.name for entry in entries], f"{self._sender} does not find {note}: {entries}"

    def check(self) -> None:
        """It can be used."""
        shown = self._rt.conversation(self._cid)
        if self._wild:
            if shown is not None and shown.state == "parked":
                assert self._rt.unpark(self._cid), "a parked conversation is not unparked"
                wait(1.0)
        else:
            assert self._answered == self._sent, f"{self._sender}: {self._answered} of {self._sent}"
        result = self._rt.send(self._cid, "at last", timeout=SOME_S)
        assert result.text == "at last", f"{self._sender}: {result}"
