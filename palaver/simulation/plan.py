"""What a seed makes of a workload before anything runs: its rates, each sender's steps, the faults.

Nothing is kept: each step of a sender is drawn from a generator of its own when it is asked for, so ten
thousand senders for an hour cost no more than what is lived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import count
from typing import TYPE_CHECKING

from attrs import frozen

from palaver.simulation.arrivals import arriving
from palaver.simulation.outcome import Act
from persistence.sources import seeded_random

if TYPE_CHECKING:
    from random import Random

    from palaver.simulation.arrivals import Arrival
    from palaver.simulation.workload import Rate, Workload

WORLD = "world"
HOUR_S = 3_600.0
MEETING = ("steer", "cancel")
"""What meets the turn that is under way, and so does not wait for its end."""

_OTHERS = ("steer", "cancel", "switch", "compact", "close", "remember")
_OF_PROVIDER = ("tool_calls", "errors", "cuts", "empty", "stalls", "limited")
_OF_FAULTS = ("crashes_per_hour", "torn", "deaths_per_hour", "disk_full_per_hour", "slow_commits")
_STEPS_EACH = 100  # for each message of a sender that hardly ever sends one
_AGAIN = 0.3  # of the messages with a key: sent once more when they have their result
_CRASHES = ("at once", "before a commit", "after a commit")


@frozen
class Rates:
    """The chances and frequencies of one seed, each drawn from its `Rate`."""

    steer: float
    cancel: float
    switch: float
    compact: float
    close: float
    remember: float
    keyed: float
    tool_calls: float
    errors: float
    cuts: float
    empty: float
    stalls: float
    limited: float
    tool_failures: float
    crashes_per_hour: float
    torn: float
    deaths_per_hour: float
    disk_full_per_hour: float
    slow_commits: float

    @classmethod
    def draw(cls, workload: Workload, seed: int) -> Rates:
        """Each from a generator of its own: a rate does not change when another is added."""
        senders, provider, faults = workload.senders, workload.provider, workload.faults
        wanted: dict[str, Rate] = {name: getattr(senders, name) for name in (*_OTHERS, "keyed")}
        wanted |= {name: getattr(provider, name) for name in _OF_PROVIDER}
        wanted["tool_failures"] = workload.tools.failures
        wanted |= {name: getattr(faults, name) for name in _OF_FAULTS}
        drawn = {name: rate.draw(seeded_random("rate", name, seed)) for name, rate in wanted.items()}
        return cls(**drawn)


class Plan:
    """The acts of one workload and seed.

    The number of an act says whose it is and which of his it is, so it stays the same whatever else is lived:
    the world's are the multiples of `count + 1`, those of sender i (from 1) come i after them.
    """

    def __init__(self, workload: Workload, seed: int) -> None:
        self.workload = workload
        self.seed = seed
        self.rates = Rates.draw(workload, seed)
        self._stride = workload.senders.count + 1
        self._others = [(what, chance) for what in _OTHERS if (chance := getattr(self.rates, what)) > 0.0]
        provider = workload.provider
        speed = provider.tokens_per_s.mean
        self._answer_s = provider.first_token_s.mean + (provider.tokens_out.mean / speed if speed else 0.0)

    # -- senders -----------------------------------------------------------------------------------

    def steps(self, sender: int) -> Iterator[Act]:
        """What a sender (from 1) of a closed arrival does, in order; without end where `turns` is 0."""
        rng = seeded_random("steps", self.seed, sender)
        senders, spread_s = self.workload.senders, self.workload.arrivals.spread_s
        who, sent, most = f"s{sender}", 0, senders.turns * _STEPS_EACH
        for step, number in enumerate(count(sender, self._stride)):
            if senders.turns and (sent == senders.turns or step == most):
                return
            what = self._kind(rng) if step else "send"
            if not step:
                at_s = rng.random() * spread_s
            elif what in MEETING:
                at_s = rng.random() * self._answer_s
            else:
                at_s = senders.think_s.draw(rng)
            sent += what == "send"
            yield Act(number, who, what, at_s, self._facts(what, rng))

    def arrivals(self) -> Iterator[Act]:
        """The messages of an open arrival, in the order in which they come.

        Raises:
            BadConfigFile: what was recorded cannot be read; told now, not when the first is asked for.
        """
        return self._meant(arriving(self.workload, seeded_random("arrivals", self.seed)))

    def _meant(self, arrivals: Iterator[Arrival]) -> Iterator[Act]:
        rng, steps = seeded_random("arriving steps", self.seed), [0] * self._stride
        for arrival in arrivals:
            sender = arrival.sender
            number = sender + steps[sender] * self._stride
            what = self._kind(rng) if steps[sender] else "send"
            steps[sender] += 1
            facts = self._facts(what, rng)
            if arrival.chars is not None and "chars" in facts:
                facts["chars"] = arrival.chars
            yield Act(number, f"s{sender}", what, arrival.at_s, facts)

    def _kind(self, rng: Random) -> str:
        if self._others:
            chance = rng.random()
            for what, share in self._others:
                if chance < share:
                    return what
                chance -= share
        return "send"

    def _facts(self, what: str, rng: Random) -> dict[str, object]:
        senders = self.workload.senders
        if what == "send":
            facts: dict[str, object] = {"chars": int(senders.chars.draw(rng))}
            if self.rates.keyed and rng.random() < self.rates.keyed:
                facts["key"] = f"k{rng.getrandbits(48):012x}"
                facts["again"] = rng.random() < _AGAIN
            return facts
        if what == "steer":
            return {"chars": int(senders.chars.draw(rng))}
        if what == "switch":
            return {"topic": rng.randrange(max(1, senders.topics))}
        if what == "close":
            return {"mode": "now" if rng.random() < 0.5 else "drain"}
        return {}

    # -- the world ---------------------------------------------------------------------------------

    def faults(self) -> Iterator[Act]:
        """What goes wrong with the host, in the order of its time; without end where a rate is above 0."""
        for number, (at_s, what, facts) in zip(
            count(0, self._stride), merge(*self._kinds(), key=lambda fault: fault[0]), strict=False
        ):
            yield Act(number, WORLD, what, at_s, facts)

    def _kinds(self) -> Sequence[Iterator[tuple[float, str, dict[str, object]]]]:
        rates = self.rates
        return (
            ((at_s, "crash", self._crash(rng)) for rng, at_s in self._given()),
            (
                (at_s, "crash", self._crash(rng))
                for rng, at_s in self._at_random("crash", rates.crashes_per_hour)
            ),
            (
                (at_s, "death", {"sender": rng.randrange(self._stride - 1) + 1})
                for rng, at_s in self._at_random("death", rates.deaths_per_hour)
            ),
            (
                (at_s, "disk full", {"for_s": round(self.workload.faults.disk_full_s.draw(rng), 6)})
                for rng, at_s in self._at_random("disk full", rates.disk_full_per_hour)
            ),
        )

    def _given(self) -> Iterator[tuple[Random, float]]:
        rng = seeded_random("given crashes", self.seed)
        for at_s in sorted(self.workload.faults.crashes_at_s):
            yield rng, at_s

    def _at_random(self, what: str, per_hour: float) -> Iterator[tuple[Random, float]]:
        rng, at_s = seeded_random(what, self.seed), 0.0
        while per_hour > 0.0:
            at_s += rng.expovariate(per_hour / HOUR_S)
            yield rng, at_s

    def _crash(self, rng: Random) -> dict[str, object]:
        torn, how, part = rng.random(), rng.choice(_CRASHES), rng.random()
        facts: dict[str, object] = {"how": how}
        if torn < self.rates.torn:
            facts = {"how": "in a commit", "torn": round(part, 6)}
        return {**facts, "restart_s": round(self.workload.faults.restart_s.draw(rng), 6)}
