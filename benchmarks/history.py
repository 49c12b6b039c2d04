"""What a turn, a resume and a compaction cost against the length of the history."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402  # gevent patches first
import shutil  # noqa: E402
import sqlite3  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

from actors.models.completion import request_body  # noqa: E402
from benchmarks.filled import add_sessions, filling, handle  # noqa: E402
from benchmarks.report import Curve, Goal, Part, Series, Tell, in_turns, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import HubWatch, answering, closed_loop, running, settled  # noqa: E402
from palaver import Chunk, ModelRequest, ScriptedModel  # noqa: E402

ABOUT = """Conversations of as many entries as stand there, 20 at once, whose senders each send a few
durable turns. `asked as JSON` is a model that makes the body of an HTTP request of all that it is asked, as
the model for OpenAI's API does, and `copy` copies the bytes of such a body, once: what nobody can do
without. It copies those of 20 conversations, one after the other: so it is in turns, too, and two megabytes
that the processor has not just seen take up to three times as long as if they were copied again and again.
From a turn that makes no body no copy is taken off.
Resume is `Runtime.load` of a session that is not in memory; `raw` reads the same rows by sqlite3 and decodes
their JSON."""
SIZES = (10, 100, 1_000, 10_000)
TOGETHER = 20
RESUMED = 5  # sessions that are resumed and let go in each round
KEPT = 10  # live entries behind those that are archived


class AskedAsJson:
    """Makes the whole body of each request, and answers what the scripted model does."""

    def __init__(self) -> None:
        self._scripted: ScriptedModel = answering()
        self.body = b""

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.purpose == "turn":
            self.body = request_body(request, {})
        return self._scripted.stream(request)


class Long:
    """A file whose sessions have so many entries, and runtimes on it."""

    def __init__(self, stack: ExitStack, folder: Path, size: int) -> None:
        plain, bodies = folder / f"{size}.db", folder / f"{size}-bodies.db"
        with filling(plain) as db:
            add_sessions(db, 0, TOGETHER, entries=size)
            add_sessions(db, TOGETHER, TOGETHER, entries=KEPT, archived=size)
        shutil.copy(plain, bodies)
        shutil.copy(plain, folder / f"{size}-raw.db")
        self.size = size
        self.model = AskedAsJson()
        self.rt = stack.enter_context(running(plain, compact_threshold=None))
        self.other = stack.enter_context(running(bodies, self.model, compact_threshold=None))
        self._raw = stack.enter_context(sqlite3.connect(folder / f"{size}-raw.db"))
        self._plain, self._bodies = (
            [rt.load(handle(n)) for n in range(TOGETHER)] for rt in (self.rt, self.other)
        )
        self._resumed: dict[int, int] = dict(enumerate(self._plain))
        self.blocked_ms = 0.0

    def turn(self) -> float:
        """Microseconds of processor time of a turn."""
        with HubWatch() as hub:
            took = closed_loop(self.rt, self._plain, 2)
        self.blocked_ms = max(self.blocked_ms, hub.blocked_ms)
        return took.busy_us

    def asked(self) -> float:
        """The same with the request's body."""
        return closed_loop(self.other, self._bodies, 1).busy_us

    def copy(self) -> float:
        """Microseconds of processor time to copy the bytes of a body, of one conversation after the other."""
        body = self.model.body or b" " * 190 * self.size
        bodies = [bytes(bytearray(body)) for _ in range(TOGETHER)]
        began = time.process_time()
        for each in bodies:
            copied = bytearray(each)  # the one before stays until then, as the model keeps it
        spent = time.process_time() - began
        assert len(copied) == len(body)
        return spent / TOGETHER * 1e6

    def resume(self, first: int) -> float:
        """Milliseconds to bring a session back to memory."""
        took = 0.0
        for number in range(first, first + RESUMED):
            if number in self._resumed:
                self.rt.close(self._resumed[number])
            began = time.perf_counter()
            self._resumed[number] = self.rt.load(handle(number))
            took += time.perf_counter() - began
        return took / RESUMED * 1e3

    def resume_raw(self) -> float:
        """Milliseconds to read the rows of a session and decode their JSON."""
        began = time.perf_counter()
        for number in range(RESUMED):
            sql = "SELECT body FROM entries WHERE session_id = ? ORDER BY seq"
            found = [json.loads(body) for (body,) in self._raw.execute(sql, [number + 1])]
            assert len(found) == self.size
        return (time.perf_counter() - began) / RESUMED * 1e3

    def compact(self, number: int) -> float:
        """Milliseconds to put a summary in place of the history."""
        cid = self._bodies[number]
        began = time.perf_counter()
        self.other.compact(cid)
        return (time.perf_counter() - began) * 1e3


def run(quick: bool, tell: Tell) -> Part:
    rounds, sizes = (2, SIZES[:3]) if quick else (5, SIZES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tell("filling files")
        longs = [Long(stack, folder, size) for size in sizes]
        with settled():
            # The bodies come first: what is copied then is one of them.
            asked = _line(longs, rounds, tell, "turns, asked as JSON", Long.asked)
            turn = _line(longs, rounds, tell, "turns", Long.turn)
            copy = _line(longs, rounds, tell, "copies", Long.copy)
        resume = _line(longs, rounds, tell, "resumes", partial(Long.resume, first=0))
        raw = _line(longs, rounds, tell, "raw resumes", Long.resume_raw)
        archived = _line(longs, rounds, tell, "archived", partial(Long.resume, first=TOGETHER))
        compact = {
            float(long.size): Series(tuple(long.compact(number) for number in range(rounds)))
            for long in longs
        }
        blocked = {float(long.size): Series((long.blocked_ms,)) for long in longs}
    curves = [
        Curve(
            "µs of processor time per turn",
            "entries of history",
            {"ours": turn, "asked as JSON": asked, "copy": copy},
        ),
        Curve("ms to resume", "entries of history", {"ours": resume, "raw": raw}),
        Curve("ms to resume a compacted one", "entries archived", {"ours": archived}),
        Curve("ms to compact", "entries of history", {"ours": compact}),
        Curve("hub blocked by turns, ms", "entries of history", {"ours": blocked}),
    ]
    return Part("history", ABOUT, (), curves, _goals(curves), setting=setting("gevent", "sqlite-utils"))


def _line(
    longs: list[Long], rounds: int, tell: Tell, what: str, measure: Callable[[Long], float]
) -> dict[float, Series]:
    measures = {str(long.size): partial(measure, long) for long in longs}
    found = in_turns(measures, rounds, lambda words: tell(f"{what}: {words}"))
    return {float(size): series for size, series in found.items()}


def _goals(curves: list[Curve]) -> list[Goal]:
    turns, resumes, compacted, _, blocked = curves
    low, high = turns.sizes[0], turns.sizes[-1]

    asked, copy = turns.lines["asked as JSON"], turns.lines["copy"]
    few, many = (asked[size].median - copy[size].median for size in (low, high))
    most = f"{high:,.0f}"
    resume = ratio(resumes.lines["ours"][high], resumes.lines["raw"][high])
    longest = max(each.median for each in blocked.lines["ours"].values())
    return [
        Goal(f"a turn at {most} entries over one at 10", turns.growth("ours"), 2, at_most=True),
        Goal("the same, asked as JSON, beyond the copy", many / few, 2, at_most=True),
        Goal(f"resume of {most} entries, over raw", resume, 3, at_most=True),
        Goal(f"resume with {most} archived over with 10", compacted.growth("ours"), 1.5, at_most=True),
        Goal("hub blocked by turns, ms", longest, 50, at_most=True),
    ]
