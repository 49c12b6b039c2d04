"""Whether a simulated host waits as queueing theory says: M/M/c, and its mean wait by Erlang's formula."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from collections.abc import Iterable  # noqa: E402  # gevent patches first
from heapq import heapreplace  # noqa: E402
from math import factorial  # noqa: E402

from benchmarks.report import Goal, Part, Row, Series, Tell  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from palaver import Limits  # noqa: E402
from palaver.simulation import (  # noqa: E402
    Arrivals,
    Disk,
    Exponential,
    Outcome,
    Provider,
    Senders,
    Workload,
    simulate,
)

ABOUT = """One class of senders whose messages come as a Poisson process, a model whose answers take an
exponentially distributed time, and c of them at once, by the host's limit and the provider's: M/M/c. The
mean wait over a long run is compared with Erlang's formula; and by Little's law the mean number of turns in
the host, as sampled, with the rate of turns times their mean latency."""
QUEUES = ((1, 0.5), (2, 0.5), (4, 0.6))  # c, and the share of the time that each place is busy
TURNS = 100_000
SAMPLES = 5_000
QUICK_TURNS = 1_500
MOST_OFF = 0.05
SERVICE_S = 1.0


def erlang_c(places: int, load: float) -> float:
    """The chance that a customer of M/M/c waits at all.

    Args:
        places: c, the servers.
        load: a, the rate of arrivals times the mean service; below c.

    Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
    automatic telephone exchanges", 1917; L. Kleinrock, Queueing Systems I, 1975, section 3.5.
    """
    all_busy = load**places / factorial(places) * places / (places - load)
    return all_busy / (sum(load**k / factorial(k) for k in range(places)) + all_busy)


def mean_wait_s(places: int, rate: float, service_s: float) -> float:
    """The mean wait of M/M/c in the long run, in seconds: Erlang C over c/s - rate."""
    return erlang_c(places, rate * service_s) / (places / service_s - rate)


def waits(places: int, customers: Iterable[tuple[float, float]]) -> list[float]:
    """How long each of the customers waits in G/G/c, first come, first served.

    Args:
        customers: when each arrives, and the service that it takes, in the order of arrival.

    Source: J. Kiefer and J. Wolfowitz, "On the theory of queues with many servers", 1955.
    """
    free = [0.0] * places  # when each place is free again, the first of all in front
    waited = []
    for arrives, service in customers:
        begins = max(arrives, free[0])
        heapreplace(free, begins + service)
        waited.append(begins - arrives)
    return waited


def queue(places: int, busy: float, turns: int, *, samples: int = 500) -> Workload:
    """About so many turns of M/M/c. There are so many senders that hardly one has two turns at once, which
    would wait for each other."""
    rate = busy * places / SERVICE_S
    return Workload(
        name=f"M/M/{places}",
        duration_s=turns / rate,
        sample_s=turns / rate / samples,
        shuffle=False,
        senders=Senders(count=500 * places, topics=0, chars=10),
        arrivals=Arrivals(kind="poisson", rate=rate),
        provider=Provider(first_token_s=Exponential(SERVICE_S), tokens_out=1, concurrency=places),
        limits=Limits(model_calls=places),
        disk=Disk(commit_s=0.0),
    )


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def little(outcome: Outcome) -> tuple[float, float]:
    """The mean number of turns in the host, as sampled; and the rate of turns times their mean latency.

    Source: J. D. C. Little, "A proof for the queuing formula L = lambda W", 1961.
    """
    seen = [sample for sample in outcome.samples if sample.at_s <= outcome.workload.duration_s]
    inside = mean(sample.queued + sample.running for sample in seen)
    return inside, outcome.throughput * mean(outcome.latency_s)


def run(quick: bool, tell: Tell) -> Part:
    rows, goals = [], []
    for number, (places, busy) in enumerate(QUEUES[:1] if quick else QUEUES):
        name = f"M/M/{places}, each place busy {busy:.0%} of the time"
        tell(name)
        workload = queue(places, busy, QUICK_TURNS) if quick else queue(places, busy, TURNS, samples=SAMPLES)
        outcome = simulate(workload, number, check=False)
        formula_s = mean_wait_s(places, workload.arrivals.rate, SERVICE_S)
        found_s, (inside, rate_times_latency) = mean(outcome.wait_s), little(outcome)
        systems = {"simulated": found_s, "by the formula": formula_s}
        rows.append(Row(f"{name}: mean wait, s", {which: Series((s,)) for which, s in systems.items()}))
        counts = {"simulated": inside, "by the formula": rate_times_latency}
        rows.append(Row(f"{name}: turns inside", {which: Series((c,)) for which, c in counts.items()}))
        if not quick:  # so few turns are not the long run
            off = abs(found_s / formula_s - 1.0)
            goals.append(Goal(f"{name}: mean wait off by", off, MOST_OFF, at_most=True))
        off = abs(inside / rate_times_latency - 1.0)
        goals.append(Goal(f"{name}: Little's law off by", off, MOST_OFF, at_most=True))
    return Part("queueing", ABOUT, rows, goals=goals, setting=setting("gevent"))
