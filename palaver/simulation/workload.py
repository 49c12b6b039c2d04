"""The workload language: who talks to a host, how, with which model, and what goes wrong."""

from __future__ import annotations

from attrs import field, frozen

from actors.config import Limits
from palaver.simulation.distributions import Distribution, Fixed

Rate = Distribution
"""A chance from 0 to 1, or a frequency; drawn once for each seed: `Uniform(0, 0.2)` gives each its own."""


@frozen
class Arrivals:
    """When messages come.

    Args:
        kind: `closed`: each sender sends, waits for the result, thinks, and sends again. The others are open:
            messages come when they come, whether or not earlier ones are done. `poisson`: at `rate` a second
            over all senders; `bursts`: so too, but `burst_rate` for `burst_s` in every `period_s`; `diurnal`:
            the rate follows a sine wave of `period_s` between `rate` and `burst_rate`; `recorded`: at the
            instants in `file`.
        rate: messages a virtual second, of all senders together.
        file: JSON lines with `at` (seconds), `sender`, and `chars` or `content`.
        spread_s: closed: senders begin at random within so many seconds.
    """

    kind: str = "closed"
    rate: float = 1.0
    burst_rate: float = 0.0
    burst_s: float = 0.0
    period_s: float = 86_400.0
    file: str = ""
    spread_s: float = 0.0


@frozen
class Senders:
    """Who sends, and what they do.

    Args:
        count: how many.
        turns: messages of each, if no `duration_s` of the workload ends it first; 0 is no bound.
        think_s: seconds between a result and the next message, of a closed arrival.
        chars: characters of a message.
        topics: topics of each sender, chosen at random for each message by `switch`.
        steer, cancel, switch, compact, close, remember: the chance that a step is that instead of a message
            (steer and cancel meet the turn that is under way).
        keyed: the chance that a message has an idempotency key; and then it may be sent again.
    """

    count: int = 100
    turns: int = 10
    think_s: Distribution = Fixed(0.0)
    chars: Distribution = Fixed(100)
    topics: int = 1
    steer: Rate = Fixed(0.0)
    cancel: Rate = Fixed(0.0)
    switch: Rate = Fixed(0.0)
    compact: Rate = Fixed(0.0)
    close: Rate = Fixed(0.0)
    remember: Rate = Fixed(0.0)
    keyed: Rate = Fixed(0.0)


@frozen
class Provider:
    """The model's side.

    Args:
        first_token_s: seconds until the first token of an answer.
        tokens_per_s: tokens a second after it; one draw for each answer.
        tokens_out: tokens of an answer.
        chunks: pieces that an answer comes in.
        tool_calls: the chance that an answer asks for a tool (the answer after the tools' results is text as
            often as not, so a turn has a geometric number of rounds).
        errors: the chance that an answer fails at once; `cuts`: that it breaks off; `empty`: that it says
            nothing; `stalls`: that it comes to a stop for `stall_s`.
        limited: the chance of a 429, with `retry_after_s`.
        concurrency: calls that the provider answers at once, of all senders; 0 is no bound.
        over: what happens above it: `wait` (they queue at the provider) or `429`.
        retries: attempts after the first when the provider refuses or fails before it has said anything, with
            the back-off of `OpenAIModel`.
    """

    first_token_s: Distribution = Fixed(0.0)
    tokens_per_s: Distribution = Fixed(0.0)
    tokens_out: Distribution = Fixed(50)
    chunks: int = 1
    tool_calls: Rate = Fixed(0.0)
    errors: Rate = Fixed(0.0)
    cuts: Rate = Fixed(0.0)
    empty: Rate = Fixed(0.0)
    stalls: Rate = Fixed(0.0)
    stall_s: Distribution = Fixed(60.0)
    limited: Rate = Fixed(0.0)
    retry_after_s: Distribution = Fixed(5.0)
    concurrency: int = 0
    over: str = "wait"
    retries: int = 3


@frozen
class Tools:
    """The tools' side: seconds that a call takes, characters that it gives, and the chance that it fails."""

    seconds: Distribution = Fixed(0.0)
    chars: Distribution = Fixed(100)
    failures: Rate = Fixed(0.0)


@frozen
class Disk:
    """The database's side.

    Args:
        commit_s: seconds that a commit takes.
        file: whether the database is a file, as crashes need; else it is in memory.
    """

    commit_s: Distribution = Fixed(0.001)
    file: bool = False


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
        slow_commits: the chance that a commit takes `slow_commit_s` instead.
    """

    crashes_at_s: tuple[float, ...] = ()
    crashes_per_hour: Rate = Fixed(0.0)
    torn: Rate = Fixed(0.0)
    restart_s: Distribution = Fixed(1.0)
    deaths_per_hour: Rate = Fixed(0.0)
    disk_full_per_hour: Rate = Fixed(0.0)
    disk_full_s: Distribution = Fixed(5.0)
    slow_commits: Rate = Fixed(0.0)
    slow_commit_s: Distribution = Fixed(1.0)


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
    """

    name: str = "workload"
    duration_s: float = 0.0
    sample_s: float = 0.0
    compact_threshold: int | None = None
    shuffle: bool = True
    senders: Senders = field(factory=Senders)
    arrivals: Arrivals = field(factory=Arrivals)
    provider: Provider = field(factory=Provider)
    tools: Tools = field(factory=Tools)
    limits: Limits = field(factory=Limits)
    disk: Disk = field(factory=Disk)
    faults: Faults = field(factory=Faults)
