"""One caller of a simulated world: what it does next, and which errors it may get."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from gevent import GreenletExit

from palaver import (
    CompactionFailed,
    ConversationBusy,
    ConversationClosed,
    ConversationNotFound,
    ConversationParked,
    HandlerFailed,
    MailboxFull,
    NoActiveTurn,
    ResultTimeout,
    Runtime,
    RuntimeClosed,
    SessionNotFound,
    StorageError,
    Ticket,
)
from palaver.simulation.checks.ledger import Broken, Message
from reliability.cast import wait

if TYPE_CHECKING:
    from reliability.world import World

EXPECTED = (
    CompactionFailed,
    ConversationBusy,
    ConversationClosed,
    ConversationNotFound,
    MailboxFull,
    NoActiveTurn,
    ResultTimeout,
    SessionNotFound,
)
# Calls to which a StorageError may also say that the key's first message waits in a topic that is not open.
KEYED = ("keyed", "retry", "other_content")
WEIGHTS = {
    "submit": 8,
    "send": 4,
    "stream": 3,
    "interrupt": 2,
    "reject": 1,
    "steer": 4,
    "steer_or_submit": 2,
    "guest": 1,
    "keyed": 3,
    "retry": 3,
    "other_content": 1,
    "ask_ticket": 3,
    "cancel": 2,
    "cancel_ticket": 2,
    "compact": 2,
    "summarize": 1,
    "close": 2,
    "open": 3,
    "delete": 1,
    "remember": 2,
    "forget": 1,
    "look": 2,
    "kill": 1,
}


class Caller:
    """A caller goes on in the next life of the process where the last one ended.

    `doing` is the name of what it does now, which is that of its method without the underscore.
    """

    def __init__(self, world: World, name: str, agent: str, sender: str, steps: int) -> None:
        self.name = name
        self.doing = ""
        self._world = world
        self._agent = agent
        self._sender = sender
        self._steps = steps  # things that are left to do
        self._rng = rng = random.Random(f"{name} {world.number}")
        self._weights = [weight * rng.choice((0.0, 0.5, 1.0, 3.0)) for weight in WEIGHTS.values()]
        self._weights[0] += 1
        self._weights[-1] *= world.rates.deaths
        self._keyed_ones: list[Message] = []
        self._tickets: list[tuple[Message, Ticket]] = []
        self._cid = 0

    def run(self, rt: Runtime) -> None:
        """What it does in one life, until it has done everything, or the runtime is shut down."""
        self._rt, self._tickets, self._cid = rt, [], 0
        while self._steps > 0:
            wait(self._rng.choice(self._world.rates.think))
            self._steps -= 1
            if not self._do("open" if not self._cid else self._rng.choices([*WEIGHTS], self._weights)[0]):
                return

    def _do(self, what: str) -> bool:
        """One thing; False if that was the last one in this life."""
        self.doing = what
        self._world.note(self.name, f"{what} {self._cid}")
        try:
            outcome = self._outcome(what)
        except (RuntimeClosed, Broken) as error:
            self._world.note(self.name, f"{what}: {error!r}")
            return False
        self._world.note(self.name, f"{what}: {outcome}")
        self.doing = ""
        return True

    def _outcome(self, what: str) -> object:
        try:
            return getattr(self, f"_{what}")()
        except (RuntimeClosed, Broken, GreenletExit):
            raise
        except BaseException as error:
            self._check_expected(what, error)
            if isinstance(error, ConversationClosed | ConversationNotFound):
                self._cid = 0
            return type(error).__name__

    def _check_expected(self, what: str, error: BaseException) -> None:
        world = self._world
        if isinstance(error, StorageError):
            fine = what in KEYED or world.disk.failed
        elif isinstance(error, HandlerFailed | ConversationParked):
            fine = world.rates.deaths > 0
        else:
            fine = isinstance(error, EXPECTED)
        world.require(fine, 13, f"{self.name} {what}: {error!r}")
