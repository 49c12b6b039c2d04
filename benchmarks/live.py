"""What a turn costs, and a conversation takes, against the number of conversations in memory."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402  # gevent patches first
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import gevent  # noqa: E402

from benchmarks.report import Curve, Goal, Line, Part, Row, Series, Tell, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import (  # noqa: E402
    MESSAGE,
    HubWatch,
    answering,
    closed_loop,
    freeze,
    open_topics,
    running,
    settled,
    temporary_file,
)
from palaver import AgentConfig, Limits, Runtime  # noqa: E402
from palaver.process import rss_bytes  # noqa: E402

ABOUT = """Idle tmp chats, more and more of them in one process; beside them 100 topics whose senders send
durable turns, all at once, and one whose sender sends alone. As a host with so many should, the process
takes what is there for good out of the collector's sight (`gc.freeze`) each time that it has opened so
many, and lets the collector look seldom at what comes."""
SIZES = (1, 100, 1_000, 10_000, 100_000, 1_000_000)
ACTIVE = 100
CALLERS = 100  # who open idle conversations at once
BYTES_EACH = 4_000  # of memory that must be there for the largest size
LISTED = 100_000
BYSTANDERS = 1_000  # turns that run while all are listed
FREED_AT_ONCE = 2_000  # lines of a listing


class Crowd:
    """A runtime with more and more idle conversations, and what was measured beside them."""

    def __init__(self, rt: Runtime, rounds: int) -> None:
        self.rt = rt
        self.rounds = rounds
        self.alone: dict[float, Series] = {}
        self.together: dict[float, Series] = {}
        self.blocked: dict[float, Series] = {}
        self.blocked_by_opening: dict[float, Series] = {}
        self.opened: dict[float, Series] = {}
        self.bytes_each: dict[float, Series] = {}
        self.closing: dict[float, Series] = {}
        self.listing: dict[float, Series] = {}
        self._topics: list[int] = []
        self._idle = 0

    def grow(self, size: int) -> None:
        """Have so many live conversations, the ones that work among them."""
        if not self._topics:
            self._topics = open_topics(self.rt, 1)
        if size >= ACTIVE and len(self._topics) == 1:
            self._topics += open_topics(self.rt, ACTIVE - 1, first=1)
        missing = size - len(self._topics) - self._idle
        if missing <= 0:
            return
        gc.collect()
        before = rss_bytes()
        with HubWatch() as hub:
            began = time.perf_counter()
            self._open(range(self._idle, self._idle + missing))
            spent = time.perf_counter() - began
        self.blocked_by_opening[size] = Series((hub.blocked_ms,))
        self._idle += missing
        self.opened[size] = Series((missing / spent,))
        if missing >= 1_000:
            self.bytes_each[size] = Series(((rss_bytes() - before) / missing,))

    def _open(self, numbers: range) -> None:
        """Open that many idle conversations, by 100 callers at once."""

        def caller(first: int) -> None:
            for number in numbers[first::CALLERS]:
                self.rt.get_or_create("agent", f"idle {number}")

        gevent.joinall([gevent.spawn(caller, first) for first in range(CALLERS)], raise_error=True)

    def measure(self, size: int) -> None:
        """What turns cost now, a close, and a listing; how long the hub was blocked."""
        freeze()
        took: dict[str, list[float]] = {"alone": [], "together": [], "close": []}
        with HubWatch() as hub:
            for _ in range(self.rounds):
                took["alone"].append(closed_loop(self.rt, self._topics[:1], 50).busy_us)
                if len(self._topics) > 1:
                    took["together"].append(closed_loop(self.rt, self._topics, 10).busy_us)
                took["close"].append(self._close())
        found = {name: Series(tuple(values)) for name, values in took.items() if values}
        self.alone[size], self.closing[size] = found["alone"], found["close"]
        if "together" in found:
            self.together[size] = found["together"]
        self.blocked[size] = Series((hub.blocked_ms,))
        # Behind the turns: so many lines are garbage afterwards, which is not theirs to clean up.
        times = self.rounds if size <= LISTED else 1
        self.listing[size] = Series(tuple(self._list() for _ in range(times)))

    def _close(self, count: int = 20) -> float:
        """Microseconds to close an idle conversation."""
        doomed = [self.rt.get_or_create("agent", f"closed {number}") for number in range(count)]
        began = time.perf_counter()
        for conversation in doomed:
            self.rt.close(conversation)
        return (time.perf_counter() - began) / count * 1e6

    def _list(self) -> float:
        """Milliseconds to list all live conversations."""
        began = time.perf_counter()
        lines = self.rt.list_active()
        spent = (time.perf_counter() - began) * 1e3
        while lines:  # who lets go of 100,000 at once holds up others for 20 ms
            del lines[-FREED_AT_ONCE:]
            gevent.sleep(1e-6)  # a timer, unlike sleep(0), fifty of which come before any timer
        return spent

    def listing_while_turns_run(self) -> tuple[Series, HubWatch]:
        """Milliseconds of a listing while 1,000 turns run, and what the hub's watch saw."""
        took = []
        with HubWatch() as hub:
            for _ in range(self.rounds):
                callers = [
                    gevent.spawn(self.rt.submit(one, MESSAGE).result)
                    for _ in range(BYSTANDERS // len(self._topics))
                    for one in self._topics
                ]
                took.append(self._list())
                gevent.joinall(callers, raise_error=True)
        return Series(tuple(took)), hub


def idle_topics(count: int) -> list[Row]:
    """What idle topics take, which are stored, and how fast new ones are opened."""
    with temporary_file() as path, running(path) as rt, settled():
        open_topics(rt, 100)
        gc.collect()
        before, began = rss_bytes(), time.perf_counter()
        open_topics(rt, count, first=100)
        spent = time.perf_counter() - began
        gc.collect()
        each = (rss_bytes() - before) / count
    return [
        Row(f"bytes per idle topic, {count:,} new ones", {"ours": Series((each,))}),
        Row("new topics opened/s, 500 at once", {"ours": Series((count / spent,))}),
    ]


def run(quick: bool, tell: Tell) -> Part:
    tell("idle topics")
    topics = idle_topics(1_000 if quick else 20_000)
    sizes = [size for size in SIZES if size <= (10_000 if quick else _most())]
    listed: tuple[Series, HubWatch] | None = None
    # The runtime is left as it is: nobody waits here until a million conversations have been closed.
    with temporary_file() as path, settled():
        rt = Runtime.open(path, answering(), limits=Limits(queued_total=1_000_000))
        rt.add_agent(AgentConfig(name="agent", compact_threshold=None))
        crowd = Crowd(rt, 2 if quick else 5)
        for size in sizes:
            tell(f"{size:,} live conversations")
            crowd.grow(size)
            crowd.measure(size)
            if size == LISTED or (quick and size == sizes[-1]):
                listed = crowd.listing_while_turns_run()
    return _part(crowd, sizes, topics, listed)


def _most() -> int:
    """The largest size that the machine has memory for."""
    with open("/proc/meminfo") as meminfo:
        lines = dict(line.split(":", 1) for line in meminfo)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return max(size for size in SIZES if size * BYTES_EACH < free or size == 1)


def _part(
    crowd: Crowd, sizes: Sequence[int], topics: Sequence[Row], listed: tuple[Series, HubWatch] | None
) -> Part:
    most = float(sizes[-1])
    base = 1_000.0  # what the largest is compared with
    curves = [
        Curve(
            "µs of processor time per turn",
            "live conversations",
            {"100 at once": crowd.together, "one alone": crowd.alone},
        ),
        Curve("bytes per idle conversation", "live conversations", {"ours": crowd.bytes_each}),
        Curve("idle conversations opened/s", "live conversations", {"ours": crowd.opened}),
        Curve("µs to close one", "live conversations", {"ours": crowd.closing}),
        Curve("ms to list all", "live conversations", {"ours": crowd.listing}),
        Curve(
            "hub blocked, ms",
            "live conversations",
            {"turns and closes": crowd.blocked, "opening": crowd.blocked_by_opening},
        ),
    ]
    longest = max(each.median for each in crowd.blocked.values())
    goals = [
        Goal(
            f"a turn at {most:,.0f} live over one at 1,000", _growth(crowd.together, most, base), 1.25, True
        ),
        Goal(
            f"bytes per idle conversation at {most:,.0f}", crowd.bytes_each[most].median, 3_072, at_most=True
        ),
        Goal(f"opened/s on the way to {most:,.0f}", crowd.opened[most].median, 50_000),
        Goal("hub blocked by turns and closes, ms", longest, 50, at_most=True),
    ]
    rows = list(topics)
    if listed is not None:
        number = f"{min(LISTED, sizes[-1]):,}"
        rows.append(Row(f"ms to list {number} while 1,000 turns run", {"ours": listed[0]}))
        rows.append(Row("hub blocked meanwhile, ms", {"ours": Series((listed[1].blocked_ms,))}))
        rows.append(Row("of which at work itself, ms", {"ours": Series((listed[1].busy_ms,))}))
        goals.append(Goal(f"ms to list {number} while turns run", listed[0].median, 300, at_most=True))
        goals.append(Goal("hub blocked meanwhile, ms", listed[1].blocked_ms, 50, at_most=True))
    notes = [] if sizes[-1] >= SIZES[-1] else [f"the largest size was {most:,.0f}"]
    return Part("live", ABOUT, rows, curves, goals, notes, setting("gevent", "sqlite-utils"))


def _growth(line: Line, most: float, base: float) -> float:
    return ratio(line[most], line[base])
