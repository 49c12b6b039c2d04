"""A simulated world: one seed's callers, file and process lives, and everything that goes wrong in them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from palaver import Limits
from palaver.simulation.checks.disk import Disk
from palaver.simulation.checks.ledger import Broken, Ledger, Message
from palaver.simulation.checks.watch import Watch
from palaver.simulation.loop import VirtualLoop, run_on
from reliability.callers import Sender
from reliability.cast import AGENTS
from reliability.life import Life
from reliability.mishaps import Rates

FAULTS = ("time", "time", "before", "after", "after", "shutdown", "ioerr")
LAST_EVENTS = 40


class World:
    """One seed. `run()` lives it to its end, and raises AssertionError for what must not be.

    A life of the process is a loop and a hub of its own: what it leaves behind when it crashes is gone, and
    what its dying greenlets do is neither stored nor noted. `disk` and `watch` are those of the present life.

    Args:
        number: the seed.
        path: where its file is to be.
        template: the bytes of a fresh database.
    """

    disk: Disk
    watch: Watch

    def __init__(self, number: int, path: Path, template: bytes) -> None:
        self.number = number
        self.path = path
        self.rng = rng = random.Random(f"world {number}")
        self.rates = Rates.draw(rng)
        self.ledger = Ledger()
        self.require = self.ledger.require
        self.trace: list[tuple[float, str, str]] = []
        self.titles = ("one", "two", "three")[: rng.choice((1, 2, 2, 3))]
        self.limits = Limits(
            queued_per_conversation=rng.choice((100, 100, 3)),
            event_buffer=rng.choice((1_024, 1_024, 6)),
            attempts=rng.choice((3, 2, 1)),
            # In most worlds nobody is idle for long enough to leave memory; in others everybody is.
            passivate_after_s=rng.choice((3_600.0, 3_600.0, 0.3, 0.02)),
            tmp_expires_s=rng.choice((3_600.0, 3_600.0, 3_600.0, 0.5)),
            live_conversations=rng.choice((1_000, 1_000, 1_000, 6, 3)),
        )
        self.reads_all = rng.random() < 0.4
        self.begun: dict[int, list[int]] = {}  # turn -> the lives in which it was begun
        self.notes: dict[str, tuple[str, str]] = {}  # what is remembered -> its agent and scope
        self.healing = False
        self.elapsed = 0.0
        self._crashes = rng.choice((0, 1, 1, 2, 3))
        self._keys: dict[tuple[str, str], int] = {}
        self._numbers = 0
        self._loop: VirtualLoop | None = None
        self.senders = self._draw_senders()
        path.write_bytes(template)
        path.with_name(path.name + "-wal").unlink(missing_ok=True)

    def _draw_senders(self) -> list[Sender]:
        rng = self.rng
        count = rng.choice((3, 3, 4, 5, 6, 8, 12))
        names = ("sue", "tom", "una", "vic")[: rng.choice((1, 2, 2, 4))]
        steps = max(3, rng.choice((18, 28, 40)) // count)
        return [Sender(self, f"c{n}", rng.choice(AGENTS), rng.choice(names), steps) for n in range(count)]

    # -- telling -----------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self.elapsed + (self._loop.now() if self._loop is not None else 0.0)

    def note(self, who: str, what: str) -> None:
        """Something happened."""
        if not self.ledger.frozen:
            self.trace.append((round(self.now, 6), who, what))

    def number_of(self) -> int:
        """A number that was never given before."""
        self._numbers += 1
        return self._numbers

    def new_key(self, agent: str, sender: str) -> str:
        """A key that is new for the pair; other pairs have the same ones."""
        self._keys[agent, sender] = number = self._keys.get((agent, sender), 0) + 1
        return f"key {number}"

    def message(self, by: str, agent: str, sender: str, **more: Any) -> Message:
        """A new message."""
        number = self.number_of()
        facts = {"lane": "", "steers": False, **more}
        return Message(f"{by}.{number}", number, by, agent, sender, **facts)

    # -- living ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through crashes and restarts to the end."""
        another = True
        while another:
            life = self._next_life()
            try:
                another = run_on(life.loop, life.run)
            except Exception as error:
                life.abandon()
                raise AssertionError(self._report(self.ledger.broken or error)) from error
            self.elapsed, self._loop = self.now, None

    def _next_life(self) -> Life:
        fault = self.rng.choice(FAULTS) if self._crashes else ""
        self._crashes -= bool(fault)
        order = random.Random(f"order {self.number} {self.ledger.life}") if self.rng.random() < 0.9 else None
        self._loop = VirtualLoop(order)
        return Life(self, self._loop, fault)

    def _report(self, error: Exception) -> str:
        what = str(error) if isinstance(error, Broken) else f"G13: {error!r}"
        events = [f"  {at:12.6f}  {who:6} {text}" for at, who, text in self.trace[-LAST_EVENTS:]]
        where = f"in world {self.number}, life {self.ledger.life}, at {self.now:.6f} virtual seconds, after"
        again = f"again: python tests/reliability --part seeds 1 {self.number}"
        return "\n".join((what, where, *events, again))
