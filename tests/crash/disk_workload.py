"""What happens on the disk that loses power: a process that lives through a Runtime's day, twice, recorded.

`record` runs it in a process of its own, because the recorder stays in a process for good, and gives back
the log.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gevent
from attrs import define, field, frozen
from gevent.event import Event as Signal

import persistence.worker
from actors.bell import bell
from crash.disk import NoRecorder, Recorder
from crash.disk_ledger import WHOLE_AT_ONCE
from crash.disk_log import Event
from crash.disk_sender import STEERS, Sender, filler
from palaver import AgentConfig, ModelRequest, Reply, Runtime, ScriptedModel
from persistence.committer import Committer, Item
from persistence.worker import DatabaseWorker

TESTS = Path(__file__).resolve().parents[1]
NAME = "agents.db"
IDLE = "idle"  # the worker begins and ends a checkpoint because nothing else is to be done

AGENTS = (
    # Its answers are stored with the ends of their turns, never before.
    AgentConfig(name=WHOLE_AT_ONCE, model="m", max_iterations=6, auto_title=False, compact_threshold=None),
    AgentConfig(name="scribe", model="m", max_iterations=6, compact_threshold=6_000, memory_scope="agent"),
)

CANNOT_RECORD = 3
_START = """
from gevent import monkey; monkey.patch_all()
import sys
from crash.disk_workload import main
sys.exit(main(sys.argv[1]))
"""
PATIENCE_S = 30

# So that a short day has many checkpoints, and logs that begin anew. What is durable when stays as it is.
SETTINGS = ("wal_autocheckpoint=60", "journal_size_limit=131072")
IDLE_S = 0.02
SENDERS = 6


@frozen
class Plan:
    """A day to be recorded.

    Args:
        seed: of all choices; what the threads make of them is not the same twice.
        steps: things that the senders do, together.
        settings: pragmas after opening; tests hand in one that breaks a promise.
    """

    seed: int
    steps: int
    settings: tuple[str, ...] = ()


@frozen
class Recorded:
    """A log, and what went wrong in the workload, or None. It is worth looking at all the same."""

    log: list[Event]
    failure: str | None


def record(plan: Plan, folder: Path) -> Recorded:
    """The log of such a day, on a new database in `folder`; as far as it came, if it did not go well.

    Raises:
        NoRecorder: this Python's SQLite cannot be recorded.
    """
    out = folder / "log"
    arguments = json.dumps([plan.seed, plan.steps, plan.settings, str(folder / NAME), str(out)])
    done = subprocess.run(
        [sys.executable, "-c", _START, arguments],
        check=False,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    if done.returncode == CANNOT_RECORD:
        raise NoRecorder(done.stderr.strip())
    assert out.exists(), f"the workload ended with {done.returncode}:\n{done.stderr[-4000:]}"
    log, failure = pickle.loads(out.read_bytes())
    return Recorded(log, failure)


# -- in the process that is recorded ----------------------------------------------------------------


def main(arguments: str) -> int:
    """Live through a day, as `record` says in JSON, and write its log; the exit status."""
    seed, steps, settings, path, out = json.loads(arguments)
    recorder = Recorder(path)
    try:
        recorder.install()
    except NoRecorder as error:
        print(error, file=sys.stderr)
        return CANNOT_RECORD
    persistence.worker.IDLE_S = IDLE_S
    day = Day(recorder, Plan(seed, steps, tuple(settings)))
    failure = None
    try:
        with gevent.Timeout(PATIENCE_S):
            day.live(share=0.5, drain=0)
            day.live(share=0.5, drain=PATIENCE_S)
        recorder.ack("drained", None)
    except BaseException:  # a runtime that is broken enough hangs; what it did before tells more
        failure = traceback.format_exc()
    if recorder.failure is not None:
        raise recorder.failure
    Path(out).write_bytes(pickle.dumps((list(recorder.log), failure)))
    sys.stderr.flush()
    os._exit(0)  # whatever still hangs


@define(eq=False)
class BusyCommitter(Committer):
    """The real one, with batches parted at random, as if the jobs had come at other times. It says when the
    worker is idle, and puts that into the log."""

    recorder: Recorder = field(kw_only=True)
    settings: Sequence[str] = field(kw_only=True)
    rng: random.Random = field(kw_only=True)
    on_idle: Callable[[], None] = field(kw_only=True)

    def open(self) -> None:
        super().open()
        assert self._db is not None
        for setting in self.settings:
            self._db.execute(f"PRAGMA {setting}").fetchall()

    def run(self, batch: Sequence[Item]) -> None:
        at = 0
        while at < len(batch):
            size = self.rng.choice((1, 1, 2, 4, len(batch)))
            super().run(batch[at : at + size])
            at += size

    def checkpoint(self) -> None:
        self.recorder.ask(IDLE, "begin")
        super().checkpoint()
        self.recorder.ask(IDLE, "end")
        self.on_idle()


class Day:
    """One database, opened and worked on once or more."""

    def __init__(self, recorder: Recorder, plan: Plan) -> None:
        self.recorder = recorder
        self.plan = plan
        self.rng = random.Random(f"power {plan.seed}")
        self.idle = Signal()
        self.senders = [
            Sender(recorder, f"sender {number}", AGENTS[number % len(AGENTS)], self._new_rng())
            for number in range(SENDERS)
        ]

    def live(self, share: float, drain: float) -> None:
        """Open, work, be idle, work, shut down: `drain` 0 leaves things undone."""
        steps = int(self.plan.steps * share / len(self.senders) / 2)
        self.rt = self._open()
        for _ in range(2):
            works = [gevent.spawn(sender.work, self.rt, steps) for sender in self.senders]
            gevent.joinall(works, raise_error=True)
            self.idle.clear()
            self.rt.sessions()  # the worker is idle again after something to do
            self.idle.wait()
        for sender in self.senders:
            sender.hurry(self.rt)
        self.rt.shutdown(drain=drain)
        for sender in self.senders:
            sender.go_home()

    def _open(self) -> Runtime:
        committer = BusyCommitter(
            self.recorder.path,
            recorder=self.recorder,
            settings=(*SETTINGS, *self.plan.settings),
            rng=self._new_rng(),
            on_idle=partial(bell(), self.idle.set),
        )
        worker = DatabaseWorker(self.recorder.path, notify=bell(), committer=committer)
        rt = Runtime.open(self.recorder.path, ScriptedModel(self._reply), tools=[weigh], worker=worker)
        for agent in AGENTS:
            rt.add_agent(agent)
        return rt

    def _new_rng(self) -> random.Random:
        return random.Random(self.rng.random())

    def _reply(self, request: ModelRequest) -> Reply:
        rng = self.rng
        wait = rng.choice((0.0, 0.0, 0.001, 0.002))
        # A steer is answered by a call, so that it is stored with a step and not with the turn's end.
        if STEERS in request.messages[-1]["content"] or rng.random() < 0.4:
            calls = [("weigh", {"what": f"{rng.random()}"}) for _ in range(rng.randint(1, 3))]
            return Reply("let me see", tool_calls=calls, delay_s=wait)
        return Reply(f"turn {request.turn_id}: {rng.random()} {filler(rng)}", delay_s=wait)


def weigh(what: str) -> str:
    """A tool."""
    return f"{what} weighs {len(what) * 17} g " + "as the scales say " * (len(what) % 7)
