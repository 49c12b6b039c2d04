"""A world on virtual time for a test of one's own agents and tools: `with world(seed=7) as world:`."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import gevent
from gevent.exceptions import LoopExit

from actors.config import Limits
from actors.errors import RuntimeClosed
from actors.models.base import Chunk, Model, ModelRequest
from actors.models.scripted import Script, ScriptedModel
from actors.tools import Tool
from palaver.runtime import Runtime
from palaver.simulation.checks.disk import Disk, FaultyCommitter
from palaver.simulation.distributions import Distribution, Fixed, Uniform
from palaver.simulation.errors import SimulationError, refusals_told
from palaver.simulation.loop import (
    MAX_STEPS,
    Started,
    VirtualClock,
    VirtualLoop,
    check_outside,
    installed,
    leftovers_killed,
    stopped,
)
from palaver.simulation.strays import Strays
from persistence.database import close_database, open_database
from persistence.inline import InlineWorker
from persistence.sources import seeded_global_random, seeded_random, seeded_sources

if TYPE_CHECKING:
    from random import Random

P = ParamSpec("P")
T = TypeVar("T", bound=BaseException)

Order = Literal["shuffled", "fifo"]
Recover = Literal["run", "hold", "fail"]

ORDERS = ("shuffled", "fifo")
LIVES = 4_096  # openings of one seed, for numbers of sources
BURIAL_STEPS = 100_000  # at most, of each
MODEL_S = Uniform(0.1, 2.0)
COMMIT_S = Uniform(0.0, 0.005)


class World:
    """Virtual time, and what lives in it. Made by `world`.

    Attributes:
        seed: what everything is drawn from.
        order: how runnable greenlets are taken, "shuffled" or "fifo".
        rng: a generator of this seed, for the test.
        clock: virtual time for code that takes a clock; its `wall()` begins at the same instant every time.
        disk: of the present process: `disk.full = True` lets no commit succeed until it is False again.
    """

    def __init__(
        self, seed: int, order: Order, loop: VirtualLoop, started: Started, folder: Path, strays: Strays
    ) -> None:
        self.seed = seed
        self.order = order
        self.rng: Random = seeded_random("world", seed)
        self.clock = VirtualClock(loop)
        self.disk = Disk()
        self._loop = loop
        self._started = started
        self._folder = folder
        self._strays = strays
        self._owner = gevent.getcurrent()
        self._latency = seeded_random("commits", seed)
        self._models = 0
        self._opened: list[tuple[Runtime, InlineWorker]] = []
        self._openings = 0
        self._ours: list[gevent.Greenlet] = []
        self._dead: list[Runtime] = []
        self._dropped: list[object] = []  # of dead processes: nothing of them may run, not even to clean up

    # -- time and greenlets ------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self._loop.now()

    def sleep(self, seconds: float = 0.0) -> None:
        """Let virtual time pass; 0 lets others run. The same as `gevent.sleep`."""
        gevent.sleep(seconds)

    def spawn(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> gevent.Greenlet:
        """Run a function in a greenlet, which is killed when the block ends; before the runtimes are shut
        down, unlike one of `gevent.spawn`. What it raises and nobody gets from it is raised at the end."""
        greenlet = gevent.spawn(function, *args, **kwargs)
        self._ours.append(greenlet)
        return greenlet

    # -- runtimes ----------------------------------------------------------------------------------

    def model(self, script: Script | None = None, *, seconds: Distribution | float = MODEL_S) -> PacedModel:
        """A `ScriptedModel` whose answers take a time that is drawn from the seed.

        Args:
            script: as of `ScriptedModel`: None echoes; or a list of replies, or a function of the request.
            seconds: until the first chunk of an answer.
        """
        self._models += 1
        rng = seeded_random("model", self.seed, self._models)
        return PacedModel(script, seconds if not isinstance(seconds, int | float) else Fixed(seconds), rng)

    def open(
        self,
        models: Model | Mapping[str, Model] | None = None,
        *,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        hooks: Iterable[object] = (),
        limits: Limits | None = None,
        path: str | os.PathLike[str] | None = None,
        recover: Recover = "run",
        commit_s: Distribution | float = COMMIT_S,
    ) -> Runtime:
        """A Runtime in this world; it is shut down when the block ends.

        Args:
            models: as of `Runtime.open`; `self.model()` if None.
            tools, hooks, limits, recover: as of `Runtime.open`. After a crash make the tools anew, as a new
                process does: a lock that the dead one held is held for ever.
            path: the database; None is a file of the world's own, the same at each opening. It survives a
                crash, and goes with the world. ":memory:" does not survive one.
            commit_s: virtual seconds that a commit takes.

        Raises:
            DatabaseInUse: a Runtime of this world has that file open.
        """
        path = self._own_file() if path is None else path
        self._openings += 1
        worker = InlineWorker(
            path,
            schedule=gevent.spawn_later,
            commit_latency=self._commit_latency(commit_s),
            committer=FaultyCommitter(path, self.disk),
        )
        runtime = Runtime.open(
            path,
            self.model() if models is None else models,
            tools=tools,
            hooks=hooks,
            limits=limits,
            sources=seeded_sources(self.clock, self.seed * LIVES + self._openings),
            worker=worker,
            recover=recover,
        )
        self._opened.append((runtime, worker))
        return runtime

    def _own_file(self) -> Path:
        """The world's own file, which is a copy at first: to make one takes longer than most tests."""
        file = self._folder / "world.db"
        if not file.exists():
            file.write_bytes(_fresh_database(self._folder))
        return file

    def _commit_latency(self, seconds: Distribution | float) -> Callable[[], float]:
        drawn = Fixed(seconds) if isinstance(seconds, int | float) else seconds
        return lambda: drawn.draw(self._latency)

    def crash(self) -> None:
        """End the process here and now: every greenlet but the calling one stops where it is, for good, and
        the files are as the last commits have left them. `open` is the next process, on the same seed.

        What the dead process gave out is void: its runtimes refuse everything, and its tickets and streams
        are never answered. Its `finally` blocks do not run until the world ends, and then count for nothing.

        Raises:
            SimulationError: called by another greenlet than the one that the block runs in.
        """
        if gevent.getcurrent() is not self._owner:
            raise SimulationError(
                "a crash ends every greenlet but the one of the with block; let that one call crash(), when "
                "world.sleep or an event has brought it to the right moment"
            )
        for runtime, worker in self._opened:
            worker.abandon()
            runtime._refusal = RuntimeClosed(  # noqa: SLF001 - of the same package
                "the process of this Runtime has crashed; go on with a new one, of world.open"
            )
        self._dropped += [[greenlet for greenlet in self._started.values() if not greenlet.dead]]
        self._dropped += [self._loop.forget(self._owner)]
        self._dead += [runtime for runtime, _ in self._opened]
        self._opened, self._ours, self.disk = [], [], Disk()

    # -- what went wrong ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what a greenlet has let out and nobody has got from it, as the end of the block does; or a
        refusal of the real world that was swallowed on its way."""
        self._strays.check()

    def take_errors(self) -> list[BaseException]:
        """What `check` and the end of the block would raise, oldest first; they raise it no more."""
        return self._strays.take()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Within, a wait that never ends raises SimulationStuck, and every error says where in virtual time
        it came. The block of `world` is one such, and the pytest plugin makes one of a test that has the
        `world` fixture."""
        with self._named():
            yield
            self.check()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except LoopExit as error:
            raise self._told(stopped(self._loop, "the block")).with_traceback(error.__traceback__) from None
        except BaseException as error:
            self._told(error)
            raise

    def _told(self, error: T) -> T:
        self._strays.tell(error)
        note = f"in the world of seed {self.seed}, order {self.order}, at {self.now:.6f} virtual seconds"
        # The outcomes that pytest raises to skip a test, say, are no Exceptions and need no place.
        if isinstance(error, Exception) and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return error

    def close(self) -> None:
        """What the end of the block does: end who talks to the runtimes, and then the runtimes."""
        with self.telling():
            gevent.killall(self._ours)
        opened, self._opened = self._opened, []
        with self._named():  # and no check: greenlets that are left find their runtime closed
            for runtime, _ in reversed(opened):
                runtime.shutdown(drain=0)

    def bury(self) -> None:
        """Let the crashed processes come to an end, so that nothing of them stays in memory. Nobody wants to
        hear of it."""
        if not self._dead:
            return
        logged = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        self._loop.max_steps = self._loop.steps + BURIAL_STEPS * len(self._dead)
        for runtime in self._dead:
            with suppress(Exception):
                runtime._refusal = None  # noqa: SLF001 - see above
                runtime.shutdown(drain=0)
        logging.disable(logged)
        self._dead.clear()
        self._dropped.clear()

    def let_go(self) -> None:
        """Let go of files, as a crash does."""
        for _, worker in self._opened:
            worker.abandon()


_fresh: list[bytes] = []


def _fresh_database(folder: Path) -> bytes:
    if not _fresh:
        file = folder / "fresh.db"
        close_database(open_database(file))
        _fresh.append(file.read_bytes())
    return _fresh[0]


class PacedModel:
    """A `ScriptedModel` that takes its time. Made by `World.model`.

    Attributes:
        requests: what it was asked, oldest first.
    """

    def __init__(self, script: Script | None, seconds: Distribution, rng: Random) -> None:
        self._scripted = ScriptedModel(script)
        self._seconds = seconds
        self._rng = rng
        self.requests = self._scripted.requests

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """The scripted answer, after a while."""
        gevent.sleep(self._seconds.draw(self._rng))
        yield from self._scripted.stream(request)


@contextmanager
def world(seed: int = 0, *, order: Order = "shuffled", max_steps: int = MAX_STEPS) -> Iterator[World]:
    """Run a with block on virtual time: everything of gevent in it follows a virtual loop.

    For tests of agents and tools, in pytest or any script. The same seed gives the same run, as long as the
    code in it takes time and randomness from gevent, the world and the `random` module, whose own generator
    is seeded meanwhile. No garbage is collected: what that finalizes would be another thing each time.

    Args:
        seed: the order of runnable greenlets, latencies, ids and the runtimes' random numbers come from it.
        order: "shuffled" takes any of the runnable greenlets next, which is how races are found; "fifo" takes
            them in the order of the real loop.
        max_steps: callbacks to run at most.

    When the block ends, what was spawned in it is killed, runtimes are shut down, and the real hub is back;
    also when it raises.

    Raises:
        SimulationStuck: the block waits for something that can never happen.
        TooManySteps: the limit is reached.
        RealWorldInSimulation: called inside a simulation; or something in the block reached for a socket, a
            thread, a process: also where that error was swallowed on its way.
        SimulationError: no such order.
        BaseException: what a greenlet raised, if nobody got it from the greenlet; what the block raised.
    """
    if order not in ORDERS:
        raise SimulationError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    rng = seeded_random("order", seed) if order == "shuffled" else None
    check_outside()
    loop = VirtualLoop(rng, max_steps=max_steps)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="palaver-world-"))
        stack.enter_context(_no_garbage_collected())
        stack.enter_context(seeded_global_random(seed))
        strays = Strays()
        stack.enter_context(installed(loop)).handle_error = strays.handle_error
        stack.enter_context(refusals_told(strays.refused))
        started = stack.enter_context(leftovers_killed(loop))
        made = World(seed, order, loop, started, Path(folder), strays)
        try:
            with made.telling():
                yield made
            made.close()
        finally:
            made.let_go()
            made.bury()


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
