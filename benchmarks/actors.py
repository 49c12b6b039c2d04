"""Actors beside pykka's, a raw gevent queue, and a hand-written floor."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from attrs import asdict, frozen

from benchmarks.report import Curve, Goal, Part, Row, Series, Tell, in_turns, ratio
from benchmarks.showing import setting

ABOUT = """A handler that does nothing; one process a system, one core. `floor` is a hand-written actor: it
does the least that can be done on gevent and nothing for safety: a deque, and a raw greenlet from a pool
that drains it. `queue` is a greenlet that reads a gevent queue for good. `threads` is pykka's
ThreadingActor, `patched` the same patched by gevent."""
SYSTEMS = ("ours", "floor", "queue", "threads", "patched")
PAGE = os.sysconf("SC_PAGE_SIZE")


@frozen
class Sizes:
    """How much is measured; times are then a second or less for each figure."""

    asks: int = 30_000
    asks_of_threads: int = 5_000
    callers: int = 1_000
    asks_each: int = 20
    tells: int = 100_000
    alive: int = 100_000
    alive_of_others: int = 3_000
    starts: int = 20_000
    stops: int = 50
    rounds: int = 5


QUICK = Sizes(
    asks=10_000,
    asks_of_threads=1_000,
    callers=200,
    asks_each=10,
    tells=20_000,
    alive=10_000,
    alive_of_others=1_000,
    starts=5_000,
    rounds=2,
)


# -- the systems, each in a child process -----------------------------------------------------------


Callers = list[Callable[[], None]]


def stock_actor(patched: bool) -> tuple[Any, Callable[[Callers], None]]:
    """pykka's own actor on threads, and how to run many callers at once."""
    if patched:
        import gevent.monkey

        gevent.monkey.patch_all()
    import threading

    import pykka

    class Stock(pykka.ThreadingActor):
        use_daemon_thread = True

        def on_receive(self, message: Any) -> Any:
            return message

    def at_once(callers: Callers) -> None:
        threads = [threading.Thread(target=caller) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    threading.stack_size(256 * 1024)
    return Stock, at_once


def our_actor() -> Any:
    from actors.greenlet import GreenletActor

    class Ours(GreenletActor):
        def on_receive(self, message: Any) -> Any:
            return message

    return Ours


def floor_actor() -> Any:
    """A deque, and a raw greenlet from a pool that drains it: no guard, no timeout, no life cycle."""
    import gevent
    from gevent.event import AsyncResult
    from greenlet import getcurrent, greenlet

    hub, idle = gevent.get_hub(), []

    def work() -> None:
        me = getcurrent()
        while True:
            me.actor.drain()
            idle.append(me)
            hub.switch()

    class Floor:
        __slots__ = ("busy", "queue")

        def __init__(self) -> None:
            self.queue: deque[tuple[Any, Any]] = deque()
            self.busy = False

        @classmethod
        def start(cls) -> Floor:
            return cls()

        def on_receive(self, message: Any) -> Any:
            return message

        def ask(self, message: Any) -> Any:
            reply = AsyncResult()
            self.put((message, reply))
            return reply.get()

        def tell(self, message: Any) -> None:
            self.put((message, None))

        def put(self, letter: tuple[Any, Any]) -> None:
            self.queue.append(letter)
            if not self.busy:
                self.busy = True
                worker = idle.pop() if idle else greenlet(work, hub)
                worker.actor = self
                hub.loop.run_callback(worker.switch)

        def drain(self) -> None:
            queue = self.queue
            while queue:
                message, reply = queue.popleft()
                answer = self.on_receive(message)
                if reply is not None:
                    reply.set(answer)
            self.busy = False

    return Floor


def queue_actor() -> Any:
    """A gevent queue, and a greenlet of its own that reads it."""
    import gevent
    from gevent.event import AsyncResult
    from gevent.queue import SimpleQueue

    class Queued:
        __slots__ = ("greenlet", "queue")

        def __init__(self) -> None:
            self.queue = SimpleQueue()
            self.greenlet = gevent.spawn(self.work)

        @classmethod
        def start(cls) -> Queued:
            return cls()

        def on_receive(self, message: Any) -> Any:
            return message

        def ask(self, message: Any) -> Any:
            reply = AsyncResult()
            self.queue.put((message, reply))
            return reply.get()

        def tell(self, message: Any) -> None:
            self.queue.put((message, None))

        def work(self) -> None:
            get = self.queue.get
            while letter := get():
                message, reply = letter
                answer = self.on_receive(message)
                if reply is not None:
                    reply.set(answer)

        def stop(self, block: bool = True) -> None:
            self.queue.put(None)
            if block:
                self.greenlet.join()

    return Queued


def prepare(system: str) -> tuple[Any, Callable[[Callers], None]]:
    """The system's actor class, and how to run many callers at once."""
    if system in ("threads", "patched"):
        return stock_actor(system == "patched")
    import gevent

    def at_once(callers: Callers) -> None:
        gevent.joinall([gevent.spawn(caller) for caller in callers])

    actors = {"ours": our_actor, "floor": floor_actor, "queue": queue_actor}
    return actors[system](), at_once


class Measures:
    """The figures of one system, measured in this process."""

    def __init__(self, system: str, sizes: Sizes) -> None:
        self.actor_class, self.at_once = prepare(system)
        self.sizes = sizes
        self.threads, self.floor = system == "threads", system == "floor"
        self.light = system in ("ours", "floor")
        self.alive = sizes.alive if self.light else sizes.alive_of_others

    def ask(self, **options: Any) -> float:
        """Round trips a second, one caller and one actor."""
        count = self.sizes.asks_of_threads if self.threads else self.sizes.asks
        with self.started(1) as (ref,):
            ask = ref.ask
            ask(0)
            begin = time.perf_counter()
            for n in range(count):
                ask(n, **options)
            return count / (time.perf_counter() - begin)

    def ask_timeout(self) -> float:
        """The same with a timeout on each."""
        return self.ask(timeout=60)

    def many(self) -> float:
        """Round trips a second, each of many callers with an actor of its own."""
        callers, each = self.sizes.callers, self.sizes.asks_each
        with self.started(callers) as refs:

            def caller(ref: Any) -> Callable[[], None]:
                def call() -> None:
                    for n in range(each):
                        ref.ask(n)

                return call

            calls = [caller(ref) for ref in refs]
            begin = time.perf_counter()
            self.at_once(calls)
            return callers * each / (time.perf_counter() - begin)

    def tell(self) -> float:
        """Messages a second, sent and handled."""
        count = self.sizes.tells
        with self.started(1) as (ref,):
            tell = ref.tell
            begin = time.perf_counter()
            for n in range(count):
                tell(n)
            ref.ask(None)
            return count / (time.perf_counter() - begin)

    def start(self, alive: str = "") -> float:
        """Starts a second while so many actors are alive."""
        count = self.sizes.starts if self.light else 500
        with self.started(int(alive or self.alive)):
            start = self.actor_class.start
            begin = time.perf_counter()
            refs = [start() for _ in range(count)]
            took = time.perf_counter() - begin
            self.end(refs)
        return count / took

    def size(self) -> float:
        """Bytes of resident memory per idle actor that has answered once."""
        count = self.alive if self.light else 1_000
        with self.started(100) as warm:
            for ref in warm:
                ref.ask(0)
            gc.collect()
            before = resident()
            with self.started(count) as refs:
                for ref in refs:
                    ref.ask(0)
                gc.collect()
                return (resident() - before) / count

    def stop(self, alive: str = "") -> float:
        """Microseconds to stop one of so many, or of as many as are alive otherwise."""
        stops = self.sizes.stops
        with self.started(int(alive or self.alive)) as refs:
            # pykka looks through a list: one in its middle is the fair one to stop
            middle = len(refs) // 2
            doomed = refs[middle - stops // 2 : middle + stops // 2]
            begin = time.perf_counter()
            for ref in doomed:
                ref.stop()
            took = time.perf_counter() - begin
        return took / len(doomed) * 1e6

    @contextlib.contextmanager
    def started(self, count: int) -> Iterator[list[Any]]:
        refs = [self.actor_class.start() for _ in range(count)]
        gc.collect()
        try:
            yield refs
        finally:
            self.end(refs)
            refs.clear()
            gc.collect()

    def end(self, refs: list[Any]) -> None:
        if self.floor:
            return
        for ref in reversed(refs):
            ref.stop(block=False)
        if refs:
            refs[0].stop()


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE


def serve(system: str, sizes: Sizes) -> None:
    """The child: read a measure's name and argument, write its figure, until there are no more."""
    measures = Measures(system, sizes)
    for line in sys.stdin:
        name, *rest = line.split()
        print(getattr(measures, name)(*rest), flush=True)
    os._exit(0)  # the threads of a stock actor would be waited for


# -- the parent -------------------------------------------------------------------------------------


class Child:
    """One system in a process of its own."""

    def __init__(self, system: str, quick: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.actors", "--child", system]
        if quick:
            command.append("--quick")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def measure(self, name: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that measured {name!r} ended with {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()


ALL = frozenset(SYSTEMS)
ROWS = {
    "ask": ("asks/s, one to one", ALL),
    "ask_timeout": ("asks/s, each with a timeout", ALL - {"floor", "queue"}),  # which have none
    "many": ("asks/s, {callers:,} callers to {callers:,} actors", ALL),
    "tell": ("tells/s", ALL),
    "start": ("starts/s at {alive:,} alive (queue, pykka: {alive_of_others:,})", ALL - {"threads"}),
    "size": ("bytes per idle actor", ALL),
}
STOPPED = {
    "ours": ("100", "1000", "10000", "100000"),
    "queue": ("100", "1000"),
    "patched": ("100", "1000", "3000"),
}


def measure_all(
    children: Mapping[str, Child], sizes: Sizes, quick: bool, tell: Tell
) -> dict[str, dict[str, Series]]:
    found = {}
    for row, (_, systems) in ROWS.items():
        measures = {
            system: partial(_one, child, row, system, quick)
            for system, child in children.items()
            if system in systems
        }
        found[row] = in_turns(measures, sizes.rounds, _named(row, tell))
    return found


def _named(row: str, tell: Tell) -> Tell:
    return lambda words: tell(f"{row}: {words}")


def stops(children: Mapping[str, Child], sizes: Sizes, tell: Tell) -> Curve:
    """What it takes to stop one of many; pykka's registry is a list that is looked through."""
    measures = {
        (system, alive): partial(children[system].measure, f"stop {alive}")
        for system, numbers in STOPPED.items()
        for alive in numbers
        if int(alive) <= sizes.alive
    }
    named = {f"{system} {alive}": measure for (system, alive), measure in measures.items()}
    found = in_turns(named, sizes.rounds, _named("stop", tell))
    lines: dict[str, dict[float, Series]] = {}
    for (system, alive), series in zip(measures, found.values(), strict=True):
        lines.setdefault(system, {})[float(alive)] = series
    return Curve("µs to stop one", "actors alive", lines)


def _one(child: Child, row: str, system: str, quick: bool) -> float:
    if row != "size":
        return child.measure(row)
    fresh = Child(system, quick)  # memory that was freed before would be taken again, unseen
    try:
        return fresh.measure(row)
    finally:
        fresh.close()


def goals(figures: dict[str, dict[str, Series]], stopping: Curve) -> list[Goal]:
    """What is to be reached."""
    ask, many, tell = figures["ask"], figures["many"], figures["tell"]
    return [
        Goal("ask, over pykka on threads", ratio(ask["ours"], ask["threads"]), 12),
        Goal("ask, over pykka patched by gevent", ratio(ask["ours"], ask["patched"]), 3),
        Goal("ask, over the floor", ratio(ask["ours"], ask["floor"]), 0.8),
        Goal("many callers, over the floor", ratio(many["ours"], many["floor"]), 0.8),
        Goal("tell, over the floor", ratio(tell["ours"], tell["floor"]), 0.5),
        Goal("starts/s", figures["start"]["ours"].median, 150_000),
        Goal("bytes per idle actor", figures["size"]["ours"].median, 1_500, at_most=True),
        Goal("stop one of many, over one of 100", stopping.growth("ours"), 1.3, at_most=True),
    ]


def run(quick: bool, tell: Tell) -> Part:
    sizes = QUICK if quick else Sizes()
    children = {system: Child(system, quick) for system in SYSTEMS}
    try:
        figures = measure_all(children, sizes, quick, tell)
        stopping = stops(children, sizes, tell)
    finally:
        for child in children.values():
            child.close()
    rows = [Row(ROWS[row][0].format(**asdict(sizes)), systems) for row, systems in figures.items()]
    where = setting("pykka", "gevent", "greenlet")
    return Part("actors", ABOUT, rows, [stopping], goals(figures, stopping), setting=where)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=SYSTEMS, required=True)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    serve(given.child, QUICK if given.quick else Sizes())
