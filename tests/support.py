"""What tests of the runtime share: runtimes that end with their test, and models that wait to be told."""

from __future__ import annotations

import builtins
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from gevent.event import Event as Signal
from gevent.monkey import get_original
from gevent.queue import Queue

from actors.bell import bell
from actors.models.scripted import ReplyLike
from palaver import AgentConfig, Chunk, HistoryEntry, ModelRequest, Runtime, ScriptedModel
from persistence.worker import Committer, DatabaseWorker

ROOT = Path(__file__).resolve().parents[1]
PROCESS_S = 60.0  # what a process of its own may take by the clock: starting one is seconds of computing
PATIENCE_S = PROCESS_S  # a test that takes longer waits for something that never comes
DEADLINE_S = 30.0
IDLE = 0.01  # a process that uses less of a core than this does nothing

CRAB = AgentConfig(name="crab", model="m", system_prompt="You are a crab.", auto_title=False)

_allocate_lock = get_original("_thread", "allocate_lock")
_END = object()


class Hangs(AssertionError):
    """A test did not end in time: somebody waits for what never comes."""


@contextlib.contextmanager
def deadline(seconds: float = DEADLINE_S) -> Iterator[None]:
    """Fail what is still waiting after so many seconds: of the clock while this process does nothing, and of
    the processor while it does something. A busy machine may take its time; what hangs, or runs in circles,
    ends as soon on any."""
    waiting, spent, seen = gevent.getcurrent(), 0.0, (time.perf_counter(), time.process_time())
    tick_s = min(1.0, seconds / 4)

    def look() -> None:
        nonlocal spent, seen
        now = (time.perf_counter(), time.process_time())
        clock, processor = now[0] - seen[0], now[1] - seen[1]
        seen = now
        spent += processor if processor > IDLE * clock else clock
        if spent >= seconds:
            timer.stop()
            waiting.throw(Hangs(f"not done after {seconds} s"))

    timer = gevent.get_hub().loop.timer(tick_s, tick_s)
    timer.start(look)
    try:
        yield
    finally:
        timer.close()


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


class Runtimes:
    """Opens runtimes on files of the test's own, and shuts all of them down at its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[tuple[Runtime, DatabaseWorker]] = []

    def open(
        self,
        model: Any = None,
        *,
        path: Path | str | None = None,
        agents: Iterable[AgentConfig] = (CRAB,),
        committer: Callable[[Path | str], Committer] | None = None,
        **options: Any,
    ) -> Runtime:
        """A runtime with `agents`, on a new file unless `path` is given."""
        path = path or self.directory / f"agents{len(self._opened)}.db"
        worker = DatabaseWorker(path, notify=bell(), committer=committer(path) if committer else None)
        rt = Runtime.open(path, model or ScriptedModel(), worker=worker, **options)
        self._opened.append((rt, worker))
        for agent in agents:
            rt.add_agent(agent)
        return rt

    def reopen(self, rt: Runtime, model: Any = None, **options: Any) -> Runtime:
        """Shut `rt` down, and open its file again."""
        rt.shutdown(drain=0)
        return self.open(model, path=rt.path, **options)

    def sql(self, rt: Runtime, statement: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement on the file of a running runtime, by its own database thread."""
        return self.worker(rt).call(lambda db: db.execute(statement, [*params]).fetchall())

    @contextlib.contextmanager
    def held_database(self, rt: Runtime) -> Iterator[None]:
        """Within, the database thread does nothing: what is submitted waits."""
        gate, began = _allocate_lock(), _allocate_lock()
        gate.acquire()
        began.acquire()

        def hold(_db: object) -> None:
            began.release()
            gate.acquire()

        self.worker(rt).submit(hold)
        began.acquire()
        try:
            yield
        finally:
            gate.release()

    def worker(self, rt: Runtime) -> DatabaseWorker:
        """The database worker of a runtime that was opened here."""
        return next(worker for opened, worker in self._opened if opened is rt)

    def close(self) -> None:
        for rt, _ in reversed(self._opened):
            rt.shutdown(drain=0)


@pytest.fixture(name="runtimes")
def opened_runtimes(tmp_path: Path) -> Iterator[Runtimes]:
    """Runtimes of this test. Nothing in it may wait for ever."""
    with deadline(PATIENCE_S):
        opened = Runtimes(tmp_path)
        yield opened
        opened.close()


@pytest.fixture(name="shown_folder")
def folder_for_all() -> Iterator[Path]:
    """A folder that other users may look into.

    Those of pytest are none: each pytest that starts shuts the one that all of them share.
    """
    with tempfile.TemporaryDirectory(prefix="palaver-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


class Asked:
    """One request that a `PuppetModel` was asked; it waits until it is answered."""

    def __init__(self, request: ModelRequest, voice: ScriptedModel, say: Callable[[ReplyLike], None]) -> None:
        self.request = request
        self.closed = Signal()
        self.pieces = Queue()
        self._voice = voice
        self._set_reply = say

    def say(self, *chunks: Chunk) -> None:
        """Stream these pieces, and go on waiting."""
        for chunk in chunks:
            self.pieces.put(chunk)

    def answer(self, reply: ReplyLike = "ok") -> None:
        """Say all of `reply`, or raise it, and end."""
        self._set_reply(reply)
        try:
            self.say(*self._voice.stream(attrs.evolve(self.request, purpose="turn")))
        except BaseException as error:
            self.pieces.put(error)
        self.end()

    def end(self) -> None:
        """End the stream."""
        self.pieces.put(_END)


class PuppetModel:
    """A model that answers when the test says so: nothing in a test with it depends on time.

    Requests of other purposes than `purposes` get what a `ScriptedModel` says.
    """

    def __init__(self, purposes: Iterable[str] = ("turn",)) -> None:
        self.requests: list[ModelRequest] = []
        self._purposes = tuple(purposes)
        self._others = ScriptedModel()
        self._reply: ReplyLike = ""
        self._voice = ScriptedModel(lambda _request: self._reply)
        self._waiting = Queue()

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        if request.purpose not in self._purposes:
            yield from self._others.stream(request)
            return
        asked = Asked(request, self._voice, self._set_reply)
        self._waiting.put(asked)
        try:
            while (piece := asked.pieces.get()) is not _END:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            asked.closed.set()

    def asked(self) -> Asked:
        """The next request, waited for."""
        asked: Asked = self._waiting.get()
        return asked

    @property
    def idle(self) -> bool:
        """Whether no request waits to be taken by `asked`."""
        return bool(self._waiting.empty())

    def _set_reply(self, reply: ReplyLike) -> None:
        self._reply = reply


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def until(fact: Callable[[], object]) -> None:
    """Let others run until `fact()` is true; the test's own timeout ends a wait that is in vain."""
    while not fact():
        gevent.sleep(0)


def texts(history: Iterable[HistoryEntry]) -> list[tuple[str, str]]:
    """Roles and contents of a history."""
    return [(entry.role, entry.content) for entry in history]


def topic(rt: Runtime, title: str = "work", sender: str = "alice", agent: str = "crab") -> int:
    """The id of a topic conversation, opened if need be."""
    return rt.switch_topic(agent, sender, title, description=f"about {title}").conversation_id


def handle_of(rt: Runtime, cid: int) -> str:
    """The handle of a live topic conversation."""
    snapshot = rt.conversation(cid)
    assert snapshot is not None
    assert snapshot.handle is not None
    return snapshot.handle


def history_of(rt: Runtime, cid: int) -> list[tuple[str, str]]:
    """Roles and contents of a conversation's live history."""
    snapshot = rt.conversation(cid)
    assert snapshot is not None
    return texts(snapshot.history)


def routers_of(rt: Runtime) -> dict[tuple[str, str], Any]:
    """The topic routers that a runtime holds: what no public call shows is that none is left over."""
    return rt._services.directory.routers  # noqa: SLF001 - see above


def in_thread(function: Callable[..., Any], *args: object) -> Any:
    """Call a function in a native thread, and wait for its value or error in this greenlet."""
    return gevent.get_hub().threadpool.apply(function, args)


def run_script(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python process of its own."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=PROCESS_S)
