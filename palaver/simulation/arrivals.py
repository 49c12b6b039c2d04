"""When messages come that wait for no results: at random, at a rate that varies, or as they were recorded.

Everything is a stream: an hour of ten thousand senders takes no more memory than one message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import cos, inf, pi
from typing import TYPE_CHECKING, Any

from attrs import frozen

from palaver.simulation.distributions import is_number
from palaver.toml.fields import shown
from palaver.toml.reading import BadConfigFile, Problem

if TYPE_CHECKING:
    from random import Random

    from palaver.simulation.workload import Arrivals, Workload

_A_LINE = '{"at": 0.5, "sender": "alice", "chars": 120}'


@frozen
class Arrival:
    """One message comes.

    Args:
        at_s: virtual seconds since the run began.
        sender: who sends it, a number from 1 on.
        chars: how long it is, where that was recorded.
    """

    at_s: float
    sender: int
    chars: int | None = None


def arriving(workload: Workload, rng: Random) -> Iterator[Arrival]:
    """What comes, in the order of its time: without end, or to the end of what was recorded.

    Args:
        workload: its `arrivals` are not closed ones.
        rng: a generator that nobody else draws from.

    Raises:
        BadConfigFile: what was recorded cannot be read; with the line.
    """
    arrivals, senders = workload.arrivals, workload.senders.count
    if arrivals.kind == "recorded":
        for _ in _recorded(arrivals.file, senders):
            pass  # what is wrong with the file is told before anything runs
        return _recorded(arrivals.file, senders)
    times = {"poisson": _poisson, "bursts": _bursts, "diurnal": _diurnal}[arrivals.kind]
    return (Arrival(at_s, rng.randrange(senders) + 1) for at_s in times(arrivals, rng))


def rate_at(arrivals: Arrivals, at_s: float) -> float:
    """The rate at an instant, in messages a second; bursts begin at 0, and so does the wave, at its foot."""
    if arrivals.kind == "bursts":
        return arrivals.burst_rate if at_s % arrivals.period_s < arrivals.burst_s else arrivals.rate
    if arrivals.kind == "diurnal":
        height = (1.0 - cos(2.0 * pi * at_s / arrivals.period_s)) / 2.0
        return arrivals.rate + (arrivals.burst_rate - arrivals.rate) * height
    return arrivals.rate


def _poisson(arrivals: Arrivals, rng: Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += rng.expovariate(arrivals.rate)
        yield at_s


def _bursts(arrivals: Arrivals, rng: Random) -> Iterator[float]:
    """The rate changes at known instants; as nothing is remembered, a draw that crosses one is drawn anew."""
    begins, pieces = 0.0, ((arrivals.burst_s, arrivals.burst_rate), (arrivals.period_s, arrivals.rate))
    while True:
        at_s = begins
        for length_s, rate in pieces:
            ends = begins + length_s
            while (at_s := at_s + (rng.expovariate(rate) if rate else inf)) < ends:
                yield at_s
            at_s = ends
        begins += arrivals.period_s


def _diurnal(arrivals: Arrivals, rng: Random) -> Iterator[float]:
    """Thinning (P. A. W. Lewis and G. S. Shedler, "Simulation of nonhomogeneous Poisson processes by
    thinning", Naval Research Logistics Quarterly 26, 1979): of those that come at the highest rate, each
    stays with the chance that the rate then is of the highest."""
    at_s = 0.0
    while True:
        at_s += rng.expovariate(arrivals.burst_rate)
        if rng.random() * arrivals.burst_rate < rate_at(arrivals, at_s):
            yield at_s


# -- recorded traffic --------------------------------------------------------------------------------


def _recorded(file: str, most: int) -> Iterator[Arrival]:
    """What the lines of a file say. Names become numbers in the order in which they come."""
    numbers: dict[str, int] = {}
    last_s = 0.0
    for number, line in _lines(file):

        def wrong(words: str, key: str = "", line_number: int = number) -> BadConfigFile:
            return BadConfigFile([Problem(file, line_number, key, words)])

        facts = _facts(line, wrong)
        at_s, name = facts["at"], facts["sender"]
        if at_s < last_s:
            raise wrong(f"must not be before the line above, {last_s}, but is {at_s}", "at")
        last_s = at_s
        sender = numbers.setdefault(name, len(numbers) + 1)
        if sender > most:
            raise wrong(f"is one more than the workload's senders.count, {most}: {shown(name)}", "sender")
        yield Arrival(float(at_s), sender, _chars(facts))


def _lines(file: str) -> Iterator[tuple[int, str]]:
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadConfigFile([Problem(file, 1, "", f"cannot be read: {words}")]) from error


def _facts(line: str, wrong: Callable[..., BadConfigFile]) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except ValueError:
        raise wrong(f"must be a line of JSON such as {_A_LINE}, not {shown(line.strip())}") from None
    if not isinstance(facts, dict):
        raise wrong(f"must be a line of JSON such as {_A_LINE}, not {shown(facts)}")
    at_s, chars, content = facts.get("at"), facts.get("chars"), facts.get("content", "")
    if not (is_number(at_s) and at_s >= 0):
        raise wrong(f"must be a number of seconds from 0 on, not {shown(at_s)}", "at")
    if not isinstance(facts.get("sender"), str):
        raise wrong(f"must be text, not {shown(facts.get('sender'))}", "sender")
    if chars is not None and (isinstance(chars, bool) or not isinstance(chars, int) or chars < 0):
        raise wrong(f"must be a whole number from 0 on, not {shown(chars)}", "chars")
    if not isinstance(content, str):
        raise wrong(f"must be text, not {shown(content)}", "content")
    return facts


def _chars(facts: dict[str, Any]) -> int | None:
    if facts.get("chars") is not None:
        return int(facts["chars"])
    return len(facts["content"]) if "content" in facts else None
