"""One run: what all its lives share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from attrs import evolve

from palaver.simulation.checks.disk import Disk
from palaver.simulation.checks.ledger import Broken, Ledger, Message
from palaver.simulation.figures import Figures
from palaver.simulation.loop import VirtualLoop
from palaver.simulation.outcome import Violation
from palaver.simulation.plan import Plan
from palaver.simulation.sender import Sender
from palaver.simulation.tracing import Notes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

    from palaver.simulation.checks.watch import Watch
    from palaver.simulation.outcome import Act
    from palaver.simulation.workload import Workload

Wanted = Mapping[int, float] | Sequence[int]
"""Numbers of the acts to live; and, in a mapping, when each is to begin."""


class Run:
    """A workload and a seed, while they are lived.

    Attributes:
        disk, watch: of the present life.
        elapsed: virtual seconds of the lives before this one.
        healing: the faults have stopped.
        frozen: the process is dead; what its greenlets do while they are dropped means nothing.
        telling: whether anybody reads notes: those that cost something are made only then.
        lived: the acts that were begun, and when; kept where guarantees are checked.
    """

    disk: Disk
    watch: Watch

    def __init__(
        self,
        workload: Workload,
        seed: int,
        path: Path | None,
        trace: TextIO | None,
        acts: Wanted | None,
        *,
        check: bool,
    ) -> None:
        self.workload = workload
        self.seed = seed
        self.path = path
        self.check = check
        self.plan = Plan(workload, seed)
        self.elapsed = 0.0
        self.life = 0
        self.restart_s = 0.0  # from the crash until the next life begins
        self.elapsed_next = 0.0  # what `elapsed` will be then
        self.healing = False
        self.frozen = False
        self.loop: VirtualLoop | None = None
        self.ledger = Ledger()
        self.begun: dict[int, list[int]] = {}  # turn -> the lives in which it was begun
        self.lived: dict[int, Act] = {}
        self.figures = Figures(workload, self.seconds)
        self._notes = Notes(self.seconds, trace, keep=check)
        self.telling = self._notes.wanted
        self._wanted = None if acts is None else dict.fromkeys(acts)
        self._schedule: Mapping[int, float] = acts if isinstance(acts, Mapping) else {}
        self._last_wanted = max(acts, default=0) if acts is not None else None
        self._numbers = count(1)
        self.faults = iter(self.plan.faults())
        self.next_fault: Act | None = None
        open_ = workload.arrivals.kind != "closed"
        nothing: Iterator[Act] = iter(())
        self.arrivals = self.plan.arrivals() if open_ else None
        self.senders = [
            Sender(self, index, nothing if open_ else self.plan.steps(index))
            for index in range(1, workload.senders.count + 1)
        ]

    # -- time and telling --------------------------------------------------------------------------

    def seconds(self) -> float:
        """Virtual seconds since the run began."""
        return self.elapsed + (self.loop.instant if self.loop is not None else 0.0)

    now = property(seconds)

    @property
    def over(self) -> bool:
        """Whether no sender begins anything any more."""
        duration_s = self.workload.duration_s
        return bool(duration_s) and self.now >= duration_s

    def note(self, who: str, what: str, **facts: object) -> None:
        """Something happened."""
        if not self.frozen:
            self._notes.note(who, what, facts)

    # -- acts --------------------------------------------------------------------------------------

    def lives(self, act: Act) -> bool:
        """Whether an act of the plan is to be lived."""
        return self._wanted is None or act.number in self._wanted

    def behind(self, act: Act) -> bool:
        """Whether neither this act of a closed arrival's sender nor any later one is to be lived."""
        return self._last_wanted is not None and act.number > self._last_wanted

    def wait_s(self, act: Act) -> float:
        """Seconds until it begins, from now."""
        at_s = self._schedule.get(act.number)
        return act.at_s if at_s is None else max(0.0, at_s - self.now)

    def begins(self, act: Act) -> None:
        """It does."""
        if self.check and not self.frozen:
            self.lived.setdefault(act.number, evolve(act, at_s=self.now))
        if self.telling:
            self.note(act.who, act.what, act=act.number, **act.facts)

    # -- guarantees --------------------------------------------------------------------------------

    def require(self, fact: object, guarantee: int, what: str) -> None:
        """As `Ledger.require`."""
        self.ledger.require(fact, guarantee, what)

    def message(self, by: str, agent: str, sender: str) -> Message:
        """A message of the run's own, which no act sends."""
        number = next(self._numbers)
        return Message(f"{by}.{number}", number, by, agent, sender, lane="", steers=False)

    def said(self, act: Act, content: str, agent: str, *, alone: bool) -> Message:
        """The message of an act. `alone`: no other call of its sender is under way, and may come first."""
        steers, key = act.what == "steer", act.facts.get("key")
        lane = "queue" if alone and key is None else ""
        if steers:  # one waits for its turn to go on, and the next may overtake it where that one dies
            lane = "" if self.plan.rates.deaths_per_hour or not alone else f"steers {self.ledger.life}"
        message = Message(content, next(self._numbers), act.who, agent, act.who, lane=lane, steers=steers)
        message.key = None if key is None else str(key)
        return message

    def violation(self, error: Exception) -> Violation:
        """What an error says that ended the run."""
        broken = self.ledger.broken or error
        guarantee, words = 13, f"{type(error).__name__}: {error}"
        if isinstance(broken, Broken):
            guarantee, words = broken.guarantee, broken.what
        words = re.sub(r" \.{3,}", "", words)  # what messages are filled up with
        if self.path is not None:  # whose folder may have another name each time
            words = words.replace(str(self.path), self.path.name)
        acts = sorted(self.lived.values(), key=lambda act: (act.at_s, act.number))
        again = f"palaver simulate {self.workload.name}.toml --seed {self.seed}"
        return Violation(guarantee, words, round(self.now, 6), self._notes.last, tuple(acts), again)
