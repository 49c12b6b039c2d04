"""The workload language: who talks to a host, how, with which model, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

from attrs import field, frozen

from actors.config import Limits
from actors.errors import InvalidConfig
from palaver.simulation.distributions import Distribution, Fixed, drawn
from palaver.simulation.quantities import Drawn, Flag, Instants, Number, Seconds, Text, Whole, Word

Rate = Distribution
"""A chance from 0 to 1, or a frequency; drawn once for each seed: `Uniform(0, 0.2)` gives each its own."""

_COUNT = Whole(least=1)
_BOUND = Whole(least=0)
_FLAG = Flag()
_SECONDS = Seconds()
_A_SECOND = Number("a second")
_DRAWN_S = Drawn("seconds")
_CHARS = Drawn("characters")
_TOKENS = Drawn("tokens")
_TOKENS_A_SECOND = Drawn("tokens a second")
_CHANCE = Drawn("chance", most=1, once=True)
_AN_HOUR = Drawn("an hour", once=True)

OPEN = ("poisson", "bursts", "diurnal", "recorded")
"""Kinds of arrivals that do not wait for results."""


@frozen
class Arrivals:
    """When messages come.

    Args:
        kind: `closed`: each sender sends, waits for the result, thinks, and sends again. The others are open:
            messages come when they come, whether or not earlier ones are done. `poisson`: at `rate` a second
            over all senders; `bursts`: so too, but `burst_rate` for the first `burst_s` of every `period_s`;
            `diurnal`: the rate follows a sine wave of `period_s` from `rate` up to `burst_rate` and back;
            `recorded`: at the instants in `file`.
        rate: messages a virtual second, of all senders together.
        burst_rate: the same, in a burst, or at the height of the wave.
        burst_s: how long a burst lasts.
        period_s: from the beginning of a burst to the next one; the length of the wave.
        file: JSON lines with `at` (seconds), `sender` (a name), and perhaps `chars` or `content`, of which
            only the length counts; in the order of their time.
        spread_s: closed: senders begin at random within so many seconds.
    """

    kind: str = field(default="closed", validator=Word(choices=("closed", *OPEN)))
    rate: float = field(default=1.0, validator=_A_SECOND)
    burst_rate: float = field(default=0.0, validator=_A_SECOND)
    burst_s: float = field(default=0.0, validator=_SECONDS)
    period_s: float = field(default=86_400.0, validator=_SECONDS)
    file: str = field(default="", validator=Text(of_file=True))
    spread_s: float = field(default=0.0, validator=_SECONDS)


@frozen
class Senders:
    """Who sends, and what they do.

    Args:
        count: how many.
        turns: messages of each of a closed arrival, if no `duration_s` of the workload ends it first; 0 is no
            bound.
        think_s: seconds between a result and the next message, of a closed arrival.
        chars: characters of a message.
        topics: topics of each sender, one of which each `switch` chooses; 0 is a tmp chat, which is not
            stored.
        steer: the chance that a step is a steer of the turn that is under way, instead of a message.
        cancel: the chance that it cancels that turn.
        switch: the chance that it switches to one of the sender's topics.
        compact: the chance that it compacts the conversation.
        close: the chance that it closes the conversation.
        remember: the chance that it stores a note and looks for it.
        keyed: the chance that a message has an idempotency key; and then it may be sent again.
    """

    count: int = field(default=100, validator=_COUNT)
    turns: int = field(default=10, validator=_BOUND)
    think_s: Distribution = field(default=Fixed(0.0), converter=drawn, validator=_DRAWN_S)
    chars: Distribution = field(default=Fixed(100), converter=drawn, validator=_CHARS)
    topics: int = field(default=1, validator=_BOUND)
    steer: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    cancel: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    switch: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    compact: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    close: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    remember: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    keyed: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)


@frozen
class Provider:
    """The model's side.

    Args:
        first_token_s: seconds until the first token of an answer.
        tokens_per_s: tokens a second after it; one draw for each answer; 0 is at once.
        tokens_out: tokens of an answer.
        chunks: pieces that an answer comes in.
        tool_calls: the chance that an answer asks for a tool (the answer after the tools' results is text as
            often as not, so a turn has a geometric number of rounds).
        errors: the chance that an answer fails at once.
        cuts: the chance that it breaks off.
        empty: the chance that it says nothing.
        stalls: the chance that it comes to a stop for `stall_s`.
        stall_s: seconds of such a stop.
        limited: the chance of a 429, with `retry_after_s`.
        retry_after_s: seconds after which a 429 asks to come again.
        concurrency: calls that the provider answers at once, of all senders; 0 is no bound.
        over: what happens above it: `wait` (they queue at the provider) or `429`.
        retries: attempts after the first when the provider refuses or fails before it has said anything, with
            the back-off of `OpenAIModel`.
    """

    first_token_s: Distribution = field(default=Fixed(0.0), converter=drawn, validator=_DRAWN_S)
    tokens_per_s: Distribution = field(default=Fixed(0.0), converter=drawn, validator=_TOKENS_A_SECOND)
    tokens_out: Distribution = field(default=Fixed(50), converter=drawn, validator=_TOKENS)
    chunks: int = field(default=1, validator=_COUNT)
    tool_calls: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    errors: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    cuts: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    empty: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    stalls: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    stall_s: Distribution = field(default=Fixed(60.0), converter=drawn, validator=_DRAWN_S)
    limited: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    retry_after_s: Distribution = field(default=Fixed(5.0), converter=drawn, validator=_DRAWN_S)
    concurrency: int = field(default=0, validator=_BOUND)
    over: str = field(default="wait", validator=Word(choices=("wait", "429")))
    retries: int = field(default=3, validator=_BOUND)


@frozen
class Tools:
    """The tools' side.

    Args:
        seconds: that a call takes.
        chars: characters that it gives.
        failures: the chance that it fails.
    """

    seconds: Distribution = field(default=Fixed(0.0), converter=drawn, validator=_DRAWN_S)
    chars: Distribution = field(default=Fixed(100), converter=drawn, validator=_CHARS)
    failures: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)


@frozen
class Disk:
    """The database's side.

    Args:
        commit_s: seconds that a commit takes.
        file: whether the database is a file, as it is wherever crashes are asked for; else it is in memory.
    """

    commit_s: Distribution = field(default=Fixed(0.001), converter=drawn, validator=_DRAWN_S)
    file: bool = field(default=False, validator=_FLAG)


@frozen
class Faults:
    """What goes wrong with the host itself.

    Args:
        crashes_at_s: virtual seconds at which the process ends at once.
        crashes_per_hour: the same, at random.
        torn: the chance that a crash tears the last, unacknowledged commit.
        restart_s: seconds until the next process opens the file.
        deaths_per_hour: a conversation's actor is killed.
        disk_full_per_hour: the disk has no room, for `disk_full_s`.
        disk_full_s: seconds until there is room again.
        slow_commits: the chance that a commit takes `slow_commit_s` instead.
        slow_commit_s: seconds of such a commit.
    """

    crashes_at_s: tuple[float, ...] = field(default=(), validator=Instants())
    crashes_per_hour: Rate = field(default=Fixed(0.0), converter=drawn, validator=_AN_HOUR)
    torn: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    restart_s: Distribution = field(default=Fixed(1.0), converter=drawn, validator=_DRAWN_S)
    deaths_per_hour: Rate = field(default=Fixed(0.0), converter=drawn, validator=_AN_HOUR)
    disk_full_per_hour: Rate = field(default=Fixed(0.0), converter=drawn, validator=_AN_HOUR)
    disk_full_s: Distribution = field(default=Fixed(5.0), converter=drawn, validator=_DRAWN_S)
    slow_commits: Rate = field(default=Fixed(0.0), converter=drawn, validator=_CHANCE)
    slow_commit_s: Distribution = field(default=Fixed(1.0), converter=drawn, validator=_DRAWN_S)


class Contradiction(InvalidConfig):
    """Keys of a workload that do not fit together.

    Attributes:
        problems: dotted keys, each with what is wrong with it.
    """

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key} {words}" for key, words in problems))


@frozen
class Workload:
    """Everything that a simulated run is drawn from, together with a seed.

    Args:
        name: for reports.
        duration_s: virtual seconds in which messages are sent; 0.0 is until each sender has had its turns.
        sample_s: virtual seconds between two samples; 0.0 chooses, for some 200 of them.
        compact_threshold: of the agent, in tokens; None never compacts.
        shuffle: whether what is due at one instant runs in an order that the seed draws, so that races show;
            else in the order in which it came, as on the real loop.

    Where a distribution is expected, a number stands for what is always that number.

    Raises:
        InvalidConfig: naming the field, what it was given, and what would fit.
        Contradiction: values that do not fit together.
    """

    name: str = field(default="workload", validator=Text())
    duration_s: float = field(default=0.0, validator=_SECONDS)
    sample_s: float = field(default=0.0, validator=_SECONDS)
    compact_threshold: int | None = field(default=None, validator=Whole("tokens", least=1, never="never"))
    shuffle: bool = field(default=True, validator=_FLAG)
    senders: Senders = field(factory=Senders)
    arrivals: Arrivals = field(factory=Arrivals)
    provider: Provider = field(factory=Provider)
    tools: Tools = field(factory=Tools)
    limits: Limits = field(factory=Limits)
    disk: Disk = field(factory=Disk)
    faults: Faults = field(factory=Faults)

    def __attrs_post_init__(self) -> None:
        if problems := tuple(_contradictions(self)):
            raise Contradiction(problems)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """The workload that a file describes.

        Raises:
            BadConfigFile: with everything that is wrong, each with file, line and key.
        """
        from palaver.simulation.workload_file import load_workload

        return load_workload(path, cls)

    @classmethod
    def from_text(cls, text: str, file: str = "workload.toml") -> Self:
        """`from_toml`, of a text.

        Args:
            text: TOML.
            file: its name in messages; files that it names are found beside it.
        """
        from palaver.simulation.workload_file import read_workload

        return read_workload(text, file, cls)

    def with_value(self, key: str, value: object, folder: str = "") -> Self:
        """This workload with another value of one key: `workload.with_value("limits.model_calls", 50)`.

        Args:
            key: dotted, as a file would write it.
            value: what Python code would give the field, or what a file would write: `"5m"`,
                `{"exponential": 2.0}`.
            folder: where files that the value names are found.

        Raises:
            InvalidConfig: there is no such key, or the value does not fit; the message names the key.
        """
        return self.with_values({key: value}, folder)

    def with_values(self, changes: Mapping[str, object], folder: str = "") -> Self:
        """`with_value` of several keys at once, which only together need to make sense."""
        from palaver.simulation.workload_file import changed

        return changed(self, changes, folder)


def _contradictions(workload: Workload) -> Iterator[tuple[str, str]]:
    arrivals, senders = workload.arrivals, workload.senders
    kind = arrivals.kind
    if kind in ("poisson", "bursts", "diurnal") and not workload.duration_s:
        yield "duration_s", f"is needed: {kind} arrivals never end"
    if kind == "closed" and not workload.duration_s and not senders.turns:
        yield "duration_s", "is needed: senders without a number of turns never end"
    if kind == "poisson" and not arrivals.rate:
        yield "arrivals.rate", "must be above 0 for poisson arrivals"
    if kind in ("bursts", "diurnal") and not arrivals.period_s:
        yield "arrivals.period_s", f"must be above 0 for {kind} arrivals"
    if kind in ("bursts", "diurnal") and not arrivals.burst_rate:
        yield "arrivals.burst_rate", f"must be above 0 for {kind} arrivals"
    if kind == "bursts" and not 0 < arrivals.burst_s <= arrivals.period_s:
        yield "arrivals.burst_s", f"must be above 0 and at most period_s, {arrivals.period_s}"
    if kind == "diurnal" and arrivals.burst_rate < arrivals.rate:
        yield "arrivals.burst_rate", f"must be at least rate, {arrivals.rate}: it is the height of the wave"
    if kind == "recorded" and not arrivals.file:
        yield "arrivals.file", "is needed for recorded arrivals"
    yield from _too_likely("senders", senders, ("steer", "cancel", "switch", "compact", "close", "remember"))
    yield from _too_likely("provider", workload.provider, ("errors", "cuts", "empty", "limited"))


def _too_likely(table: str, part: Any, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    rates = {name: most for name in names if (most := getattr(part, name).most)}
    if (together := sum(rates.values())) > 1.0 + 1e-9:
        words = f"can be {together:g} together: each time at most one of them comes, so 1 is the most"
        yield table, f"{', '.join(rates)} {words}"
