"""A host at work for long: what it takes of the machine must not grow.

    python -m benchmarks.soak [--turns 500000] [--plot soak.png] [--json]

Senders with several topics each talk to an agent over a real file: plain turns, turns with tools that are
steered or cancelled, turns that fail, keys, streams, compactions, closes, deletions, tmp chats that expire.
Not all topics fit into memory; they leave it and come back all the time. After each fiftieth of the turns
everybody rests, and the process's memory, descriptors and greenlets and the WAL are looked at. What is there
after a fifth of the turns is what the rest is compared with; the exit status is 1 when something has grown.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402  # gevent patches first
import gc  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median_low  # noqa: E402

import attrs  # noqa: E402
import gevent  # noqa: E402
import greenlet  # noqa: E402
from attrs import frozen  # noqa: E402

from actors.greenlet import release_idle_workers  # noqa: E402
from benchmarks.report import Curve, Goal, Part, Row, Series, Tell  # noqa: E402
from benchmarks.showing import aligned, setting  # noqa: E402
from benchmarks.work import hoard  # noqa: E402
from palaver import (  # noqa: E402
    AgentConfig,
    ConversationClosed,
    ConversationNotFound,
    Limits,
    ModelRequest,
    NoActiveTurn,
    Reply,
    Runtime,
    ScriptedModel,
)
from palaver.process import open_descriptors, rss_bytes  # noqa: E402

ABOUT = """Senders with several topics each talk to an agent over a real file: plain turns, turns with tools
that are steered or cancelled, turns that fail, keys, streams, compactions, closes, deletions, tmp chats
that expire; not all topics fit into memory. `python -m benchmarks.soak` does so for long, and is what
judges."""
SENDERS = 20
TOPICS = 4  # of each sender
LIVE = 60  # conversations in memory
LOOKS = 50
FEWEST_LOOKS = 20
COUNTS = 3  # of greenlets at each look: one that is ending is no leak, and is gone at the next
WARM = 5  # of so many looks the first is what the rest is compared with
GROWTH = 1.02
WAL_BYTES = 64 * 1024 * 1024
MIB = 1024 * 1024

# What may come of a conversation that somebody else closes, or of a turn that is over already.
EXPECTED = (ConversationClosed, ConversationNotFound, NoActiveTurn)


@frozen
class Look:
    """What there was at one moment, with everybody at rest."""

    turns: int
    seconds: float
    rss_bytes: int
    descriptors: int
    greenlets: int
    wal_bytes: int
    file_bytes: int


@frozen
class Soaked:
    """What came of a soak."""

    looks: tuple[Look, ...]
    ended: dict[str, int]
    did: dict[str, int]

    @property
    def warm(self) -> int:
        """The place of the look after a fifth of the turns."""
        return len(self.looks) // WARM - 1

    @property
    def violations(self) -> list[str]:
        """What has grown, in words."""
        warm, rest = self.looks[: self.warm + 1], self.looks[self.warm :]
        found = []
        if rest[-1].rss_bytes > GROWTH * rest[0].rss_bytes:
            grown = rest[-1].rss_bytes / rest[0].rss_bytes
            found.append(
                f"RSS at the end is {grown:.3f} times that after a fifth; at most {GROWTH} is allowed"
            )
        before, after = (max(look.descriptors for look in looks) for looks in (warm, rest))
        if after > before:
            found.append(f"there were up to {after} descriptors, and {before} in the first fifth")
        # A look may meet conversations that are just leaving memory, and their greenlets.
        before = max(look.greenlets for look in warm)
        after = median_low(look.greenlets for look in self.looks[-len(warm) :])
        if after > before:
            found.append(f"in the last fifth there were {after} greenlets, and up to {before} in the first")
        largest = max(look.wal_bytes for look in self.looks)
        if largest >= WAL_BYTES:
            found.append(f"the WAL had {largest:,} bytes; less than {WAL_BYTES:,} is allowed")
        return found


# -- the work --------------------------------------------------------------------------------------------


def look_up(number: int) -> str:
    """Look something up."""
    gevent.sleep(0.001)
    return f"{number} is " + "known " * 20


def answers(rng: random.Random) -> Callable[[ModelRequest], Reply]:
    """What the model says: text, tool calls where it is told to, and now and then an error."""

    def answer(request: ModelRequest) -> Reply:
        last = request.messages[-1]
        if last["role"] == "user" and "look up" in last["content"]:
            return Reply(tool_calls=[("look_up", {"number": rng.randrange(1_000)})] * rng.choice((1, 2)))
        if rng.random() < 0.01:
            return Reply("half an ans", error=ConnectionError("the endpoint went away"))
        return Reply("answer " * 30, chunk_chars=100)

    return answer


class Sender:
    """One sender, who does one thing after the other."""

    def __init__(self, rt: Runtime, name: str, rng: random.Random, did: Counter[str]) -> None:
        self._rt = rt
        self._name = name
        self._rng = rng
        self._did = did
        self._topics: dict[int, int] = {}
        self._keys = 0
        self._things = [self.talk, self.stream, self.steer, self.cancel, self.keyed, self.chat]
        self._things += [self.compact, self.close, self.delete]
        self._weights = [60, 10, 6, 4, 5, 8, 1, 3, 3]

    def work(self, things: int) -> None:
        """Do so many things; most of them are a turn, or several."""
        for _ in range(things):
            (thing,) = self._rng.choices(self._things, self._weights)
            try:
                thing()
            except EXPECTED as error:
                self._did[type(error).__name__] += 1
            else:
                self._did[thing.__name__] += 1

    def topic(self) -> int:
        """The conversation of one of the topics, opened if it is new or closed; it may be out of memory."""
        number = self._rng.randrange(TOPICS)
        if number not in self._topics:
            title = f"topic {number}"
            self._topics[number] = self._rt.switch_topic("agent", self._name, title, "soaks").conversation_id
        return self._topics[number]

    def talk(self) -> None:
        self._rt.send(self.topic(), "message " * 12)

    def stream(self) -> None:
        for _event in self._rt.stream(self.topic(), "message " * 12):
            pass

    def steer(self) -> None:
        cid = self.topic()
        ticket = self._rt.submit(cid, "look up")
        gevent.sleep(0)
        try:
            self._rt.steer(cid, "something else").result()
        finally:
            ticket.result()

    def cancel(self) -> None:
        cid = self.topic()
        tickets = [self._rt.submit(cid, "look up") for _ in range(3)]
        self._rt.cancel(cid)
        tickets[1].cancel()
        for ticket in tickets:
            ticket.result()

    def keyed(self) -> None:
        cid, self._keys = self.topic(), self._keys + 1
        for _ in range(2):
            self._rt.send(cid, "once", key=f"{self._name} {self._keys}")

    def chat(self) -> None:
        self._rt.send(self._rt.get_or_create("agent", f"{self._name}, now and then"), "hello")

    def compact(self) -> None:
        self._rt.compact(self.topic())

    def close(self) -> None:
        cid = self.topic()
        self._topics = {number: each for number, each in self._topics.items() if each != cid}
        self._rt.close(cid, mode=self._rng.choice(("drain", "now")))

    def delete(self) -> None:
        cid = self.topic()
        shown = self._rt.conversation(cid)
        self._topics = {number: each for number, each in self._topics.items() if each != cid}
        if shown is not None and shown.handle is not None:
            self._rt.delete_session(shown.handle)


# -- looking ---------------------------------------------------------------------------------------------


def look(rt: Runtime, began: float) -> Look:
    """Wait until everybody rests, and look."""
    while _busy(rt):
        gevent.sleep(0.005)
    release_idle_workers()  # bounded, and as many as were ever busy at once
    greenlets = []
    for _ in range(COUNTS):
        gevent.sleep(0.005)
        gc.collect()
        greenlets.append(sum(1 for each in gc.get_objects() if isinstance(each, greenlet.greenlet) and each))
    stats = rt.stats()
    return Look(
        turns=sum(stats.turns_ended.values()),
        seconds=time.monotonic() - began,
        rss_bytes=rss_bytes(),
        descriptors=open_descriptors() or 0,
        greenlets=min(greenlets),
        wal_bytes=stats.wal_bytes,
        file_bytes=stats.file_bytes,
    )


def _ended(rt: Runtime) -> int:
    return sum(rt.stats().turns_ended.values())


def _busy(rt: Runtime) -> bool:
    stats = rt.stats()
    counts = stats.conversations
    return bool(
        stats.running or stats.queued or counts["opening"] or counts["closing"] or stats.database_waiting
    )


def soak(turns: int, folder: Path, seed: int = 1, tell: Callable[[Look], object] = lambda _: None) -> Soaked:
    """Do at least so many turns on a file in `folder`."""
    logging.getLogger("palaver").setLevel(logging.CRITICAL)  # turns that fail on purpose
    rng, did = random.Random(seed), Counter[str]()
    model = ScriptedModel(answers(rng), keep_requests=0)
    limits = Limits(live_conversations=LIVE, passivate_after_s=0.5, tmp_expires_s=0.5, event_buffer=64)
    with Runtime.open(folder / "soak.db", model, tools=[look_up], limits=limits) as rt:
        rt.add_agent(AgentConfig("agent", model="m", compact_threshold=2_000))
        unread = rt.subscribe()
        senders = [Sender(rt, f"sender {n}", random.Random(rng.random()), did) for n in range(SENDERS)]
        hoard(rt)
        looks, began = [], time.monotonic()
        times = min(LOOKS, max(FEWEST_LOOKS, turns // 1_000))
        for number in range(1, times + 1):
            while (missing := turns * number // times - _ended(rt)) > 0:
                things = -(-missing // SENDERS)
                gevent.joinall([gevent.spawn(each.work, things) for each in senders], raise_error=True)
            looks.append(look(rt, began))
            tell(looks[-1])
        unread.close()
        stats = rt.stats()
        did.update(passivated=stats.passivations, expired=stats.expirations, lagged=stats.lagged_events)
        return Soaked(tuple(looks), dict(stats.turns_ended), dict(did))


# -- showing ---------------------------------------------------------------------------------------------

FIGURES: tuple[tuple[str, Callable[[Look], float]], ...] = (
    ("RSS, MiB", lambda look: look.rss_bytes / MIB),
    ("descriptors", lambda look: look.descriptors),
    ("greenlets", lambda look: look.greenlets),
    ("WAL, MiB", lambda look: look.wal_bytes / MIB),
)
BARS = " ▁▂▃▄▅▆▇█"


def text_plot(soaked: Soaked) -> str:
    """Each figure over time, from 0 up to its largest."""
    rows = []
    for name, figure in FIGURES:
        values = [figure(each) for each in soaked.looks]
        most = max(values) or 1.0
        bars = "".join(BARS[round(value / most * (len(BARS) - 1))] for value in values)
        rows.append([name, f"{values[soaked.warm]:,.1f}", f"{most:,.1f}", f"{values[-1]:,.1f}", bars])
    return aligned((["", "after 20 %", "most", "end", "over time"], rows))


def image_plot(looks: Sequence[Look], path: str) -> bool:
    """The same as an image, if matplotlib is there; whether it is."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(FIGURES), sharex=True, figsize=(9, 8), layout="constrained")
    for axis, (name, value) in zip(axes, FIGURES, strict=True):
        axis.plot([each.turns for each in looks], [value(each) for each in looks])
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("turns")
    figure.savefig(path, dpi=120)
    return True


def run(quick: bool, tell: Tell) -> Part:
    """The same for `python -m benchmarks`, with few turns: what grows slowly takes many to be seen."""
    turns = 300 if quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        soaked = soak(turns, Path(folder), tell=lambda look: tell(f"{look.turns:,} of {turns:,} turns"))
    lines = {
        name: {float(look.turns): Series((float(figure(look)),)) for look in soaked.looks}
        for name, figure in FIGURES
    }
    grown = soaked.looks[-1].rss_bytes / soaked.looks[soaked.warm].rss_bytes
    rate = soaked.looks[-1].turns / soaked.looks[-1].seconds
    rows = [
        Row("turns/s, all kinds of things among them", {"ours": Series((rate,))}),
        Row("memory at the end over that at a fifth", {"ours": Series((grown,))}),
    ]
    # Few turns end before allocators and caches have their size: only the whole soak judges memory.
    goals = [Goal("largest WAL, MiB", max(look.wal_bytes for look in soaked.looks) / MIB, 64, at_most=True)]
    curves = [Curve("a host at work", "turns", lines)]
    return Part("soak", ABOUT, rows, curves, goals, setting=setting("gevent", "sqlite-utils"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=500_000, help="how many (500,000)")
    parser.add_argument("--seed", type=int, default=1, help="of what the senders do")
    parser.add_argument("--folder", help="where the database is made and deleted; the system's temporary one")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="an image of the figures over time; needs matplotlib"
    )
    parser.add_argument("--json", action="store_true", help="figures for a program")
    arguments = parser.parse_args()
    tell: Callable[[Look], object] = (lambda _: None) if arguments.json else _tell
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        soaked = soak(arguments.turns, Path(folder), arguments.seed, tell)
    if arguments.json:
        print(json.dumps(attrs.asdict(soaked) | {"violations": soaked.violations}))
    else:
        print(f"\n{soaked.looks[-1].turns:,} turns: {soaked.ended}\n{soaked.did}\n\n{text_plot(soaked)}")
        for violation in soaked.violations:
            print(f"!! {violation}")
    if arguments.plot and not image_plot(soaked.looks, arguments.plot):
        print("matplotlib is not installed: no image was made", file=sys.stderr)
    sys.exit(1 if soaked.violations else 0)


def _tell(look: Look) -> None:
    print(
        f"{look.seconds:8,.0f} s  {look.turns:9,} turns  RSS {look.rss_bytes / MIB:6.1f} MiB  "
        f"{look.descriptors:3} descriptors  {look.greenlets:4} greenlets  "
        f"WAL {look.wal_bytes / MIB:5.1f} MiB  file {look.file_bytes / MIB:7.1f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
