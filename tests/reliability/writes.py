"""Every statement of every write, failing once and for good: for a turn with its steps and its end, for
compactions, for topic switches, for endings, and for recoveries.

A point is one statement (a BEGIN, an INSERT, a COMMIT) of one workload, and one way to fail. Each workload
runs whole on virtual time, with that one failure in it; then nothing may have been acknowledged that is not
stored, what is stored must be whole, and all must work again: at once after a full disk, after a new opening
of the file when the disk was broken.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from failing import FOR_GOOD, ONCE, FailingStatements, Kind, Point
from turns_support import assert_at_rest, assert_memory_is_disk

from palaver import (
    AgentConfig,
    ModelRequest,
    PalaverError,
    Reply,
    Runtime,
    ScriptedModel,
    StorageError,
    Ticket,
    TurnResult,
)
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.committer import Committer
from persistence.database import close_database, open_database
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from reliability.check import Check
from reliability.stage import in_memory, quiet, wait
from reliability.whole import content_problems, whole_problems

AGENT, SENDER = "crab", "alice"
PATIENCE_S = 3_600.0
HEALED_S = 600.0  # all that was accepted has ended by then
CONFIG = AgentConfig(name=AGENT, model="m", compact_threshold=60)


class Caller:
    """Calls a runtime, and keeps what it was told. Every message has its own words."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self.tickets: dict[str, Ticket] = {}
        self.refused: dict[str, StorageError] = {}
        self.other: list[Any] = []
        self.topics: list[int] = []
        self.handle = ""

    def topic(self, title: str = "auth") -> None:
        """Open it; `handle` is its handle then, or ""."""
        self.handle = ""
        outcome = self.try_(partial(self.rt.switch_topic, AGENT, SENDER, title, f"about {title}"))
        if outcome is not None:
            self.topics.append(outcome.conversation_id)
            shown = self.rt.conversation(outcome.conversation_id)
            self.handle = "" if shown is None else shown.handle or ""

    @property
    def cid(self) -> int:
        return self.rt.get_or_create(AGENT, SENDER)

    def say(self, words: str, **options: Any) -> None:
        self._keep(words, lambda: self.rt.submit(self.cid, words, **options))

    def steer(self, words: str) -> None:
        self._keep(words, lambda: self.rt.steer(self.cid, words))

    def _keep(self, words: str, call: Callable[[], Ticket]) -> None:
        ticket = self.try_(call, words)
        if ticket is not None and ticket.conversation_id in self.topics:  # tmp chats are not stored
            self.tickets[words] = ticket

    def try_(self, call: Callable[[], Any], words: str = "") -> Any:
        """The value of a call; None if it failed in a way that it may."""
        try:
            value = call()
        except StorageError as error:
            if words:
                self.refused[words] = error
            return None
        except PalaverError:  # closed, not found, nothing to steer: a call before it failed
            return None
        self.other.append(value)
        return value

    def settle(self) -> None:
        for ticket in [*self.tickets.values()]:
            self.try_(ticket.result)


# -- workloads: what comes before the failure is possible, and what it meets --------------------------


def before(caller: Caller) -> None:
    caller.topic()
    caller.say("before")
    caller.settle()


def turn(caller: Caller) -> None:
    """Two steps with a steer between them, a steer that comes too late, and what was queued."""
    caller.say("use a tool, then take long", key="k")
    wait(0.5)
    caller.steer("steered")
    caller.say("queued")
    wait(1.0)
    caller.steer("too late")
    caller.say("urgent", on_busy="interrupt", key="k2")
    caller.say("use a tool, then take long", key="k")
    caller.settle()


def compaction(caller: Caller) -> None:
    """One that is asked for, and automatic ones in the middle and at the end of a turn."""
    caller.try_(lambda: caller.rt.compact(caller.cid))
    caller.say("use a tool " + "x" * 300)
    caller.settle()
    caller.say("answer " + "y" * 300)
    caller.settle()
    caller.try_(lambda: caller.rt.compact(caller.cid))


def switches(caller: Caller) -> None:
    """New topics, several callers at once, and back."""
    for title in ("billing", "auth", "travel"):
        calls = [gevent.spawn(caller.topic, title) for _ in range(3)]
        gevent.joinall(calls, raise_error=True)
        caller.say(f"in {title}")
    caller.try_(lambda: caller.rt.load(caller.handle or "unknown"))
    caller.try_(lambda: caller.rt.memory.remember(AGENT, SENDER, "shoe", "43"))
    caller.try_(lambda: caller.rt.memory.forget(AGENT, SENDER, "shoe"))
    caller.settle()


def endings(caller: Caller) -> None:
    """Cancelled turns and steers, closed topics, a deleted session."""
    caller.say("take long")
    for words in ("cancelled", "closed", "closed too"):
        caller.say(words)
    caller.steer("taken back")
    for words in ("cancelled", "taken back"):
        if words in caller.tickets:
            caller.try_(caller.tickets[words].cancel)
    caller.try_(lambda: caller.rt.close(caller.cid))
    caller.settle()
    caller.topic("gone")
    handle = caller.handle or "unknown"
    caller.say("take long, and be deleted")
    caller.try_(lambda: caller.rt.delete_session(handle))
    caller.settle()
    caller.topic("gone")
    caller.say("after the deletion")
    caller.settle()


def recovery(caller: Caller) -> None:
    """What a killed process left is brought back by registering the agent."""
    wait(60.0)
    caller.topic()
    caller.say("after the recovery")
    caller.settle()


WORKLOADS: dict[str, Callable[[Caller], None]] = {
    "turn": turn,
    "compaction": compaction,
    "switches": switches,
    "endings": endings,
    "recovery": recovery,
    "recovery by failing": recovery,
}


def answers(request: ModelRequest) -> Reply:
    last = request.messages[-1]
    if last["role"] == "user" and last["content"].startswith("use a tool"):
        return Reply(tool_calls=[("work", {})])
    words = next(str(m["content"]) for m in reversed(request.messages) if m["role"] == "user")
    said = " ".join(str(m["content"]) for m in request.messages if m["role"] == "user")
    slow = "take long" in words or ("then take long" in said and "steered" in words)
    return Reply(f"re: {words[:40]}", delay_s=5.0 if slow else 0.1)


def work() -> str:
    wait(1.0)
    return "worked"


# -- one point -------------------------------------------------------------------------------------


def opened(path: Path, seed: int, committer: Committer | None, recover: str = "run") -> Runtime:
    worker = InlineWorker(path, schedule=gevent.spawn_later, commit_latency=lambda: 0.01, committer=committer)
    return Runtime.open(
        path,
        ScriptedModel(answers, sleep=wait, keep_requests=0),
        tools=[work],
        sources=seeded_sources(VirtualClock(), seed),
        worker=worker,
        recover=recover,  # type: ignore[arg-type]  # one of the three words
        on_failure=lambda _error: None,
    )


def make_template(path: Path, workload: str) -> None:
    """The file that a workload starts on: for a recovery, one that a killed process left."""
    worker = InlineWorker(path, schedule=gevent.spawn_later, commit_latency=lambda: 0.01)
    model = ScriptedModel(answers, sleep=wait)
    rt = Runtime.open(path, model, tools=[work], worker=worker, sources=seeded_sources(VirtualClock(), 0))
    rt.add_agent(CONFIG)
    caller = Caller(rt)
    before(caller)
    if workload.startswith("recovery"):
        caller.say("use a tool, then take long")
        wait(0.5)
        caller.steer("steered")
        wait(1.0)
        caller.steer("left over")
        caller.steer("left over too")
        caller.say("left queued", key="k")
        caller.topic("other")
        caller.say("take long elsewhere")
        caller.say("left queued elsewhere")
    worker.abandon()


class Run:
    """One workload with one failure in it, or with none."""

    def __init__(self, workload: str, template: Path, path: Path, order: int, point: Point | None) -> None:
        self.workload, self.path, self.order, self.point = workload, path, order, point
        shutil.copyfile(template, path)
        self.disk = FailingStatements(path, point)
        run_virtual(self._all, rng=random.Random(order) if order else None)

    def _all(self) -> None:
        with gevent.Timeout(PATIENCE_S, AssertionError("G2: somebody waits for ever")):
            caller = self._work()
            if self.point is None or self.point.kind in ONCE:
                self._goes_on(caller)
                caller.rt.shutdown()
            else:
                self._refuses(caller)
                caller.rt.shutdown()
                self._check(caller, ended=False)
                self._again()
            self._check(caller, ended=True)

    def _work(self) -> Caller:
        recovering = self.workload.startswith("recovery")
        recover = "fail" if self.workload == "recovery by failing" else "run"
        rt = self._open(recover, armed=recovering)
        caller = Caller(rt)
        if not recovering:
            self.disk.armed = True
            caller.topic()
        WORKLOADS[self.workload](caller)
        self.disk.armed = False
        return caller

    def _open(self, recover: str, *, armed: bool) -> Runtime:
        """The runtime; where the failure hits the opening itself, that of the next opening."""
        self.disk.arm_when_open = armed
        try:
            rt = opened(self.path, self.order, self.disk, recover)
        except StorageError:
            self.disk = FailingStatements(self.path)
            rt = opened(self.path, self.order, self.disk, recover)
        rt.add_agent(CONFIG)
        return rt

    # -- what must be true afterwards --------------------------------------------------------------

    def _goes_on(self, caller: Caller) -> None:
        rt = caller.rt
        for words in ("it works where they are", "it works in the topic"):
            assert rt.send(caller.cid, words).text == f"re: {words}"
            caller.topic()
        assert_memory_is_disk(rt)
        assert rt.compact(caller.cid).archive is not None
        wait(HEALED_S)
        assert rt.unfinished() == [], "G2: something is left that does not go on"
        assert_at_rest(rt)
        assert_memory_is_disk(rt)

    def _refuses(self, caller: Caller) -> None:
        if self.disk.hit is None:
            return
        for call in (caller.rt.sessions, partial(caller.rt.switch_topic, AGENT, SENDER, "another", "d")):
            try:
                call()
            except StorageError:
                continue
            raise AssertionError("G16: work goes on after an I/O error")

    def _again(self) -> None:
        """A later process ends what is left, once."""
        rt = opened(self.path, self.order + 1, None)
        rt.add_agent(CONFIG)
        wait(60.0)
        assert rt.unfinished() == [], "G2: something is left after a recovery"
        assert not any(info.queued for info in rt.list_active())
        outcome = rt.switch_topic(AGENT, SENDER, "auth", "d")
        assert rt.send(outcome.conversation_id, "it works again").text == "re: it works again"
        rt.shutdown()

    def _check(self, caller: Caller, *, ended: bool) -> None:
        db = open_database(self.path, create=False)
        try:
            problems = whole_problems(db)
            problems += content_problems(db, told(caller), self._unstored(caller), ended=ended)
        finally:
            close_database(db)
        assert not problems, "\n".join(problems)

    def _unstored(self, caller: Caller) -> list[str]:
        """Messages that must not be in the file: refused, and nothing was committed all the same."""
        return [] if self.disk.committed_after_all else [*caller.refused]


def told(caller: Caller) -> dict[str, TurnResult | Exception | None]:
    """What is known of each accepted message: its result, the error in its place, None while it waits."""
    known: dict[str, TurnResult | Exception | None] = {}
    for words, ticket in caller.tickets.items():
        try:
            known[words] = ticket.result(timeout=0) if ticket.done else None
        except PalaverError as error:
            known[words] = error
    return known


# -- all points ------------------------------------------------------------------------------------


class Points:
    """The points of one workload, in an order of their own for each `order` of callbacks."""

    def __init__(self, workload: str, kinds: tuple[Kind, ...], seed: int, folder: Path) -> None:
        self.workload, self.kinds, self.seed, self.folder = workload, kinds, seed, folder
        self.template = folder / f"{workload}.template"
        if not self.template.exists():
            run_virtual(make_template, self.template, workload)
        self._points = self._all()

    def _all(self) -> Iterator[tuple[int, Point]]:
        for order in count(0 if self.seed == 1 else self.seed * 1_000):
            places = [*range(self._statements(order))]
            rng = random.Random(f"{self.workload} {self.kinds} {order}")
            rng.shuffle(places)
            for number, place in enumerate(places * len(self.kinds)):
                turn, odd = divmod(number, len(places))
                yield order, Point(place, self.kinds[(turn + odd) % len(self.kinds)])

    def _statements(self, order: int) -> int:
        """How many there are when none fails."""
        whole = Run(self.workload, self.template, self.folder / "whole.db", order, None)
        assert len(whole.disk.statements) > 20
        return len(whole.disk.statements)

    def see(self) -> None:
        """Let the next point fail."""
        order, point = next(self._points)
        try:
            Run(self.workload, self.template, self.folder / "point.db", order, point)
        except BaseException as error:
            error.add_note(
                f"statement {point.at} of {self.workload!r} was {point.kind!r}; to see it again: "
                f"reliability.writes.again({self.workload!r}, {point.kind!r}, {order}, {point.at}, folder)"
            )
            raise


def again(workload: str, kind: Kind, order: int, place: int, folder: Path) -> None:
    """One point, as a failure has named it."""
    template = folder / "template"
    run_virtual(make_template, template, workload)
    Run(workload, template, folder / "point.db", order, Point(place, kind))


def run(count: int, seed: int, folder: Path) -> int:
    """As many points, the same number of each workload and kind."""
    with quiet(), in_memory(folder) as inside:
        points = [Points(name, kinds, seed, inside) for name in WORKLOADS for kinds in (ONCE, FOR_GOOD)]
        each = -(-count // len(points))
        for one in points:
            for _ in range(each):
                one.see()
    return each * len(points)


CHECKS = (Check("failed-writes", (2, 3, 9, 16), "points", quick=120, long=12_000, run=run, chunk=1_200),)
