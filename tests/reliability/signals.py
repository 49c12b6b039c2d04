"""Signals to a real host at random moments, under load from several clients: status, time, and the books."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gevent
from attrs import define, field, frozen
from crash.picture import take_picture
from gevent.event import Event as Signal

from palaver import HostClient, HostUnreachable, PalaverError, Place
from reliability.check import Check
from reliability.socket_books import Asked, Books

ROOT = Path(__file__).resolve().parents[2]
LIVES_ON_A_FILE = 5
SENDERS = 6
TOPICS = ("boats", "ropes")
PATIENCE_S = 90.0  # for a host to start, or to end: a machine that is busy takes its time
LONG_S = 60.0  # a drain that has time enough for all that waits
POLL_S = 0.01

CONFIG = """\
database = "host.db"
socket = "{socket}"
log_level = "error"

[models.slow]
kind = "model_of_signals:Slow"

[agents.clerk]
auto_title = false
"""

# It takes as long as the message says; the memory tool in between gives steers a place to come in.
MODEL = """
import gevent
from palaver import Chunk, ToolCallDelta


class Slow:
    def stream(self, request):
        last = request.messages[-1]
        said = [m["content"] for m in request.messages if m["role"] == "user"][-1]
        gevent.sleep(int(said.rpartition(" ")[2]) / 1_000)
        if last["role"] != "tool" and "tool" in said:
            yield Chunk(tool_calls=(ToolCallDelta(0, "1", "recall", '{"query": "x"}'),))
            yield Chunk(finish_reason="tool_calls")
        else:
            yield Chunk(f"heard {said}")
            yield Chunk(finish_reason="stop")
"""


@frozen
class Plan:
    """When a life is told to end, and how."""

    first: int  # the signal
    after_acks: int
    later_s: float
    then: int | None  # a further signal, or SIGKILL
    then_s: float
    drain_s: float


def some_plan(rng: random.Random) -> Plan:
    """A way to be told to stop."""
    return Plan(
        first=rng.choice((signal.SIGTERM, signal.SIGINT)),
        after_acks=rng.choice((0, 1, rng.randint(2, 40), rng.randint(40, 120))),
        later_s=rng.choice((0, rng.random() * 0.02)),
        then=rng.choice((None, None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)),
        then_s=rng.choice((0, rng.random() * 0.02, rng.random() * 0.2)),
        drain_s=rng.choice((0, 0.02, LONG_S, LONG_S)),
    )


# The first life of each file: some host has much to drain and the time for it, whatever the others draw.
DRAINS = Plan(signal.SIGTERM, 30, 0, None, 0, LONG_S)
LAST = Plan(signal.SIGTERM, 0, 0, None, 0, LONG_S)


@define
class Stage:
    """Where the lives of one file take place, and the books of all of them."""

    folder: Path
    socket: str
    books: Books = field(factory=Books)


class Life:
    """A host in a process of its own, its clients, and what they are told."""

    def __init__(self, stage: Stage, number: int, rng: random.Random, drain_s: float) -> None:
        self.number = number
        folder, self.books, self.socket = stage.folder, stage.books, stage.socket
        self.rng = rng
        self.told = Signal()
        self.progress = Signal()
        self.folder = folder
        self._errors = (folder / "stderr").open("w+")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "palaver", "host", "host.toml", "--drain", str(drain_s)]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            stderr=self._errors,
            env={**_without_monitor(), "PYTHONPATH": path},
            start_new_session=True,
        )

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    @property
    def errors(self) -> str:
        """What it printed on stderr."""
        return (self.folder / "stderr").read_text()

    def client(self) -> HostClient:
        return HostClient(self.socket)

    def wait_until_it_serves(self) -> None:
        """Wait until a client is let in."""
        while True:
            with contextlib.suppress(HostUnreachable):
                self.client().hello()
                return
            assert self._process.poll() is None, f"the host ended at its start: {self.errors}"
            gevent.sleep(POLL_S)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.told.set()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self, plan: Plan) -> None:
        """Tell it to end, when and how the plan says."""
        already = self.books.acks
        while self.books.acks - already < plan.after_acks:
            self.progress.clear()
            self.progress.wait()
        gevent.sleep(plan.later_s)
        self.signal(plan.first)
        if plan.then is not None:
            gevent.sleep(plan.then_s)
            self.signal(plan.then)

    def wait(self) -> int:
        """Its exit status."""
        return int(self._process.wait())

    # -- what a client does ------------------------------------------------------------------------

    def talk(self, sender: str) -> None:
        """Send messages in two topics until the host takes no more."""
        client, count = self.client(), 0
        while not self.told.is_set() or count < 1:
            count += 1
            self.one(client, self._message(sender, count))
            if self.rng.random() < 0.1:
                gevent.sleep(0)
        client.close_connections()

    def _message(self, sender: str, count: int) -> Asked:
        rng = self.rng
        how = rng.choices(("submit", "send", "stream", "steer"), (55, 20, 15, 10))[0]
        delay, kind = rng.choice((0, 0, 1, 5, 20)), rng.choice(("tool", "text"))
        content = f"{sender} {self.number} {count} {kind} {delay}"
        key = content if how in ("submit", "send") and rng.random() < 0.5 else None
        asked = Asked(content, how, rng.choice(TOPICS), key)
        self.books.asked[content] = asked
        return asked

    def one(self, client: HostClient, asked: Asked) -> None:
        """Make one call, and book what comes of it."""
        asked.lives.append(self.number)
        place = Place("clerk", asked.content.split()[0], asked.topic, f"about {asked.topic}")
        try:
            self._call(client, place, asked)
        except PalaverError as error:
            self.books.fail(asked, type(error).__name__, str(error), told=self.told.is_set())
        self.progress.set()

    def _call(self, client: HostClient, place: Place, asked: Asked) -> None:
        books = self.books
        match asked.how:
            case "submit":
                books.accept(asked, client.submit(place, asked.content, key=asked.key).turn_id)
            case "send":
                result = client.send(place, asked.content, key=asked.key)
                books.end(asked, result.turn_id, result.text, result.stop_reason)
            case "stream":
                events = client.stream(place, asked.content)
                books.accept(asked, None)
                for event in events:
                    if (found := getattr(event, "result", None)) is not None:
                        books.end(asked, found.turn_id, found.text, found.stop_reason)
            case "steer":
                client.steer(place, asked.content)
                books.accept(asked, None)

    def retry(self) -> None:
        """Send messages with a key again, as clients do that got no answer."""
        client = self.client()
        for asked in self.books.to_retry():
            self.one(client, asked)
        client.close_connections()

    def settle(self) -> None:
        """Wait until all that is left from earlier lives is done."""
        client = self.client()
        while client.unfinished() or (stats := client.stats()).running or stats.queued:
            gevent.sleep(POLL_S)


def signals(count: int, seed: int, folder: Path) -> int:
    """G18: hosts are told to stop, told again, and killed while they drain."""
    done = 0
    while done < count:
        rng = random.Random(f"signals {seed} {done}")
        own = folder / f"signals {done}"
        own.mkdir()
        with tempfile.TemporaryDirectory(prefix="palaver") as short:  # a socket's path has little room
            done += _on_one_file(Stage(own, f"{short}/host.sock"), rng, min(LIVES_ON_A_FILE, count - done))
    return done


def _on_one_file(stage: Stage, rng: random.Random, lives: int) -> int:
    (stage.folder / "host.toml").write_text(CONFIG.format(socket=stage.socket))
    (stage.folder / "model_of_signals.py").write_text(MODEL)
    for number in range(lives + 1):
        plan = DRAINS if number == 0 else some_plan(rng) if number < lives else LAST
        try:
            with gevent.Timeout(PATIENCE_S, AssertionError(f"G18: not over after {PATIENCE_S} s")):
                _live(stage, number, rng, plan)
        except AssertionError as error:
            raise AssertionError(f"{error}\n(life {number} in {stage.folder}: {plan})") from error
    return lives


def _live(stage: Stage, number: int, rng: random.Random, plan: Plan) -> None:
    with Life(stage, number, rng, plan.drain_s) as life:
        life.wait_until_it_serves()
        clients = [gevent.spawn(life.retry)]
        if plan is LAST:
            life.settle()
        else:
            clients += [gevent.spawn(life.talk, f"s{n}") for n in range(SENDERS)]
        try:
            life.end(plan)
            status = life.wait()
            gevent.joinall(clients, raise_error=True)
        finally:
            gevent.killall(clients)
    _judge(life, plan, status)


def _judge(life: Life, plan: Plan, status: int) -> None:
    killed = status == -signal.SIGKILL
    assert status == 0 or (killed and plan.then == signal.SIGKILL), f"G18: status {status}: {life.errors}"
    assert killed or not os.path.exists(life.socket), "G18: the socket is still there"
    assert "Traceback" not in life.errors, life.errors
    drained = not killed and plan.then is None and plan.drain_s == LONG_S
    seen = take_picture(life.folder / "host.db", life.folder)
    life.books.audit(seen, orderly=not killed, drained=drained, life=life.number)
    if plan is LAST:
        life.books.audit_end(seen)


def _without_monitor() -> dict[str, str]:
    """The environment without what makes gevent's monitor print into the log of the host."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GEVENT_")}


CHECKS = (Check("signals", (18,), "signals", 10, 300, signals),)
