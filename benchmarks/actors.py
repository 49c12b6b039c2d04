"""Actors beside pykka's: round trips, tells, starts, size, and stopping one of many.

    python -m benchmarks.actors [--quick] [--json]

Four systems, each in a process of its own, measured in turns: `ours`; `floor`, a hand-written actor that does
the least that can be done on gevent and nothing for safety; pykka's ThreadingActor on `threads`; and the same
`patched` by gevent. The figures to compare are the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from attrs import asdict, frozen

from benchmarks.report import Goal, Series, as_json, in_turns, number, ratio, setting, table

SYSTEMS = ("ours", "floor", "threads", "patched")
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
    alive_of_pykka: int = 3_000
    starts: int = 20_000
    stops: int = 50
    rounds: int = 5


QUICK = Sizes(
    asks=10_000,
    asks_of_threads=1_000,
    callers=200,
    tells=20_000,
    alive=20_000,
    alive_of_pykka=1_000,
    starts=5_000,
    rounds=3,
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


def prepare(system: str) -> tuple[Any, Callable[[Callers], None]]:
    """The system's actor class, and how to run many callers at once."""
    if system in ("threads", "patched"):
        return stock_actor(system == "patched")
    import gevent

    def at_once(callers: Callers) -> None:
        gevent.joinall([gevent.spawn(caller) for caller in callers])

    return (our_actor() if system == "ours" else floor_actor()), at_once


class Measures:
    """The figures of one system, measured in this process."""

    def __init__(self, system: str, sizes: Sizes) -> None:
        self.actor_class, self.at_once = prepare(system)
        self.sizes = sizes
        self.threads, self.floor = system == "threads", system == "floor"
        self.alive = sizes.alive if system in ("ours", "floor") else sizes.alive_of_pykka

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
        """The same with a timeout on each (which the floor does not have)."""
        return self.ask() if self.floor else self.ask(timeout=60)

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

    def start(self) -> float:
        """Starts a second while many actors are alive."""
        count = self.sizes.starts if self.alive > self.sizes.alive_of_pykka else 500
        with self.started(self.alive):
            start = self.actor_class.start
            begin = time.perf_counter()
            refs = [start() for _ in range(count)]
            took = time.perf_counter() - begin
            self.end(refs)
        return count / took

    def size(self) -> float:
        """Bytes of resident memory per idle actor that has answered once."""
        count = self.alive if self.alive > self.sizes.alive_of_pykka else 1_000
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

    def stop_few(self) -> float:
        """Microseconds to stop one of 100."""
        return self._stop(100)

    def stop_many(self) -> float:
        """Microseconds to stop one of many."""
        return self._stop(self.alive)

    def _stop(self, alive: int) -> float:
        stops = self.sizes.stops
        with self.started(alive) as refs:
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
    """The child: read a measure's name, write its figure, until there are no more."""
    measures = Measures(system, sizes)
    for line in sys.stdin:
        print(getattr(measures, line.strip())(), flush=True)
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


ROWS = {
    "ask": "asks/s, one to one",
    "ask_timeout": "asks/s, each with a timeout",
    "many": "asks/s, {callers:,} callers to {callers:,} actors",
    "tell": "tells/s",
    "start": "starts/s at {alive:,} alive (pykka: {alive_of_pykka:,})",
    "size": "bytes per idle actor",
    "stop_few": "µs to stop one of 100",
    "stop_many": "µs to stop one of {alive:,} (pykka: {alive_of_pykka:,})",
}
SKIPPED = {("start", "threads"), ("stop_many", "threads"), ("stop_few", "floor"), ("stop_many", "floor")}


def measure_all(sizes: Sizes, quick: bool) -> dict[str, dict[str, Series]]:
    children = {system: Child(system, quick) for system in SYSTEMS}
    try:
        return {
            row: in_turns(
                {
                    system: partial(_one, child, row, system, quick)
                    for system, child in children.items()
                    if (row, system) not in SKIPPED
                },
                sizes.rounds,
            )
            for row in ROWS
        }
    finally:
        for child in children.values():
            child.close()


def _one(child: Child, row: str, system: str, quick: bool) -> float:
    if row != "size":
        return child.measure(row)
    fresh = Child(system, quick)  # memory that was freed before would be taken again, unseen
    try:
        return fresh.measure(row)
    finally:
        fresh.close()


def goals(figures: dict[str, dict[str, Series]]) -> list[Goal]:
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
        Goal(
            "stop one of many, over one of 100",
            ratio(figures["stop_many"]["ours"], figures["stop_few"]["ours"]),
            1.3,
            at_most=True,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds; a few seconds")
    parser.add_argument("--json", action="store_true", help="figures for a program")
    parser.add_argument("--child", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.child:
        serve(arguments.child, sizes)
    figures = measure_all(sizes, arguments.quick)
    where = setting("pykka", "gevent", "greenlet")
    reached = goals(figures)
    if arguments.json:
        print(as_json(where, figures, reached))
        return
    print(f"{where}; medians of {sizes.rounds} rounds in turns, ± half the range\n")
    rows = [
        [
            ROWS[row].format(**asdict(sizes)),
            *(str(systems[s]) if s in systems else "-" for s in SYSTEMS),
            number(ratio(systems["ours"], systems["floor"])) if "floor" in systems else "-",
        ]
        for row, systems in figures.items()
    ]
    print(table(["", *SYSTEMS, "ours/floor"], rows))
    print()
    print(table(["to reach", "ours", "bound", ""], [goal.row() for goal in reached]))


if __name__ == "__main__":
    main()
