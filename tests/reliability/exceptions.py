"""Exceptions of every kind at every point where a user's code runs: nothing of them reaches anybody else."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent

from palaver import AgentConfig, CompactionFailed, HandlerFailed, NoActiveTurn, Runtime, Ticket, TurnResult
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from persistence.verify import verify
from reliability.check import Check
from reliability.trapped import KINDS, SIBLING, Hooks, Model, Neighbour, Trap, tool, victim, wait

AGENT = "crab"
PATIENCE_S = 300.0

EVENTS = (
    "TextStart",
    "TextDelta",
    "TextEnd",
    "ThinkingStart",
    "ThinkingDelta",
    "ThinkingEnd",
    "ToolCallsBegin",
    "ToolCallsStart",
    "ToolResult",
    "ToolCallsComplete",
    "UserSteered",
    "ContextUsage",
    "Compacted",
    "Done",
)
IN_TURNS = (
    "model call",
    "model iter",
    "model first",
    "model middle",
    "model end",
    "model close",
    "model title",
    "model compact",
    "model compact asked",
    "model summarize",
    "tool",
    "tool at once",
    "before_run",
    "preprocess",
    "reader of a turn",
    *(f"on_event {event}" for event in EVENTS),
)
IN_ACTORS = (
    "actor told",
    "actor asked",
    "actor on_start",
    "actor on_stop",
    "actor on_failure",
    "actor on_death",
)
POINTS = (*IN_TURNS, *IN_ACTORS, "on_build_agent", "subscriber", "database job", "database answer")


class Scene:
    """Victims and a sibling at work side by side, while something of each victim's raises."""

    def __init__(self, points: Sequence[str], kind: str, seed: int) -> None:
        self.kind = kind
        self.seed = seed
        self.rng = random.Random(f"{points} {kind} {seed}")
        self.points = points
        self.trap = Trap(points, KINDS[kind])
        self.hooks = Hooks(self.trap)
        self.escaped: list[Any] = []

    def run(self) -> None:
        """Raises AssertionError for whatever the exceptions did beyond their places."""
        hub = gevent.get_hub()
        hub.handle_error = lambda where, kind, _error, _trace: self.escaped.append((where, kind))
        with gevent.Timeout(PATIENCE_S, AssertionError("G13: somebody is not answered")):
            worker = InlineWorker(":memory:", schedule=gevent.spawn_later, commit_latency=self.rng.random)
            rt = Runtime.open(
                ":memory:",
                Model(self.trap, self.rng),
                tools=[tool(self.trap, self.rng)],
                hooks=[self.hooks],
                sources=seeded_sources(VirtualClock(), self.seed),
                worker=worker,
            )
            with rt:
                self._act(rt, worker)
                self._check_rest(rt, worker)
        assert worker.stats.failed is None
        # Ctrl-C may come in any callback of the hub: there it is the host's, and nobody else's.
        if not ("database answer" in self.points and self.kind in ("KeyboardInterrupt", "SystemExit")):
            assert self.escaped == [], f"G13: it reached the hub: {self.escaped}"
        # A steer that comes late is a turn of its own.
        missed = [point for point in self.trap.points if point != "on_event UserSteered"]
        assert missed == [], f"the scene does not come to {missed}"

    def _act(self, rt: Runtime, worker: InlineWorker) -> None:
        rt.add_agent(AgentConfig(name=AGENT, model="m", compact_threshold=1_000))
        bystander = Neighbour.start(self.trap, "bystander")
        talkers = [victim(point) for point in self.points if point in IN_TURNS] + [SIBLING]
        cids = {who: rt.switch_topic(AGENT, who, "work", "it").conversation_id for who in talkers}
        for who, cid in cids.items():
            self.hooks.belongs(cid, who)
        consumers = [gevent.spawn(quietly, self._consume, rt, who) for who in (victim("subscriber"), SIBLING)]
        wait(0.01)
        self.trap.armed = True
        turns = [gevent.spawn(self._talk, rt, cid, who) for who, cid in cids.items()]
        beside = [
            gevent.spawn(self._late_agent, rt),
            gevent.spawn(self._jobs, worker),
            *(gevent.spawn(self._neighbour, point) for point in self.points if point in IN_ACTORS),
        ]
        gevent.joinall([*turns, *beside], raise_error=True)
        assert bystander.ask("x", timeout=9) == "re: x", "G13: an actor of somebody else's died"
        assert not consumers[1].ready(), "G13: another subscriber's stream has ended"
        gevent.killall(consumers)

    # -- a conversation ----------------------------------------------------------------------------

    def _talk(self, rt: Runtime, cid: int, who: str) -> None:
        asked = who in (victim("model compact asked"), victim("model summarize"))
        size = "small" if asked else "large"  # what is large is compacted by itself
        tickets = [rt.submit(cid, f"{who}: tools, {size}")]
        gevent.spawn(quietly, self._read, tickets[0], who)
        try:
            tickets.append(rt.steer(cid, f"{who}: a steer, {size}"))
        except NoActiveTurn:
            assert who != SIBLING  # a victim's turn may be over by then
        tickets.append(rt.submit(cid, f"{who}: more"))
        for ticket in tickets:
            self._check_result(who, ticket)
        if asked:
            outcome = quietly(rt.compact if who == victim("model compact asked") else rt.summarize, cid)
            assert isinstance(outcome, CompactionFailed), (
                f"G13: the caller of {who} got {type(outcome).__name__}"
            )
        assert rt.compact(cid).archive, f"G13: {who} was not compacted"
        result = rt.send(cid, f"{who}: afterwards")
        assert result.text.endswith("afterwards"), f"G13: the next turn of {who} fails: {result.error}"

    def _check_result(self, who: str, ticket: Ticket) -> None:
        result = quietly(ticket.result)
        assert isinstance(result, TurnResult), f"G13: the caller of {who} got {type(result).__name__}"
        spared = not who.startswith(("victim of model", "victim of tool")) or "compact" in who
        if self.kind == "GreenletExit":  # raised by a hook, it ends that turn
            spared = who in (SIBLING, victim("reader of a turn"))
        if spared:
            assert result.stop_reason == "text_response", f"G13: a turn of {who} failed: {result.error}"
        ends = ("text_response", "error", *(["no_action"] if self.kind == "StopIteration" else []))
        assert result.stop_reason in ends, f"G13: {result}"

    def _read(self, ticket: Ticket, who: str) -> None:
        for _event in ticket.events():
            self.trap.at("reader of a turn", who)

    def _consume(self, rt: Runtime, who: str) -> None:
        for _info, _event in rt.subscribe():
            self.trap.at("subscriber", who)

    # -- beside them -------------------------------------------------------------------------------

    def _late_agent(self, rt: Runtime) -> None:
        raised = quietly(rt.add_agent, AgentConfig(name="late"))
        if "on_build_agent" in self.points:
            assert isinstance(raised, KINDS_RAISED[self.kind]), "on_build_agent's own error is its caller's"
            rt.add_agent(AgentConfig(name="late"))

    def _jobs(self, worker: InlineWorker) -> None:
        """Three jobs in one transaction, of which the first raises, and the first's answer."""

        def job(_db: object) -> int:
            self.trap.at("database job", victim("database job"))
            return 1

        answers: list[BaseException | None] = []
        answered = gevent.event.Event()

        def answer(_value: object, error: BaseException | None) -> None:
            answers.append(error)
            if len(answers) == 3:
                answered.set()
            self.trap.at("database answer", victim("database answer"))

        for _ in range(3):
            worker.submit(job, answer)
        answered.wait()
        assert answers[1:] == [None, None], "G13: a job failed with another one"

    def _neighbour(self, point: str) -> None:
        """An actor that comes to this point, beside one that is asked all the while."""
        sibling, ref = (Neighbour.start(self.trap, who) for who in (SIBLING, victim(point)))
        if point in ("actor told", "actor on_failure", "actor on_death"):
            quietly(ref.tell, "told" if point == "actor told" else "die")
        before = VirtualClock().monotonic()
        answer = quietly(ref.ask, "asked", timeout=9)
        if point == "actor asked":
            contained = not issubclass(KINDS_RAISED[self.kind], Exception)
            wanted = HandlerFailed if contained else KINDS_RAISED[self.kind]
            assert type(answer) is wanted, f"G13: the asker got {type(answer).__name__}"
        quietly(ref.stop, timeout=9)
        assert VirtualClock().monotonic() - before < 9, "G13: an ask is not answered"
        assert sibling.ask("x", timeout=9) == "re: x", "G13: a sibling died"

    def _check_rest(self, rt: Runtime, worker: InlineWorker) -> None:
        wait(5)
        for handle in [each.handle for each in rt.sessions()]:
            states = [row.state for row in rt.turns(handle)]
            assert {*states} <= {"done", "failed"}, f"G2: {states}"
        assert rt.stats().running == rt.stats().queued == 0
        assert rt.conversation_count() == len(rt.sessions()), "G13: a conversation died"
        assert worker.call(verify) == []


def quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The value of a call, or the exception it raised: it is the caller's own."""
    try:
        return function(*args, **options)
    except BaseException as error:
        return error


@contextmanager
def logged_nowhere() -> Iterator[None]:
    """Every record is formatted, as in a host that logs everything, and shown to nobody."""
    root, handler = logging.getLogger(), logging.StreamHandler(io.StringIO())
    before, root.level = root.level, logging.DEBUG
    others, root.handlers = root.handlers, [handler]
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        root.level, root.handlers, logging.raiseExceptions = before, others, raises


def _raised(make: Callable[[], BaseException]) -> type[BaseException]:
    return type(make())


KINDS_RAISED = {kind: _raised(make) for kind, make in KINDS.items()}
AT_ONCE = 9
CASES = len(KINDS) * len(POINTS)


def scenes(seed: int) -> Iterator[Scene]:
    """Every kind at every point, for ever, with other points side by side every time."""
    rng = random.Random(f"scenes {seed}")
    number = seed * 1_000_003
    while True:
        points = rng.sample(POINTS, len(POINTS))
        for start in range(0, len(points), AT_ONCE):
            for kind in KINDS:
                number += 1
                yield Scene(points[start : start + AT_ONCE], kind, number)


def run(count: int, seed: int, _folder: Path) -> int:
    """Raise `count` exceptions, some in each scene."""
    done = 0
    with logged_nowhere():
        for scene in scenes(seed):
            try:
                run_virtual(scene.run, rng=random.Random(scene.seed))
            except BaseException as error:
                again = f"reliability.exceptions.see({scene.points}, {scene.kind!r}, {scene.seed})"
                error.add_note(f"see it again: {again}")
                raise
            done += len(scene.points) - len(scene.trap.points)
            if done >= count:
                break
    return done


def see(points: Sequence[str], kind: str, seed: int) -> None:
    """One scene again."""
    run_virtual(Scene(points, kind, seed).run, rng=random.Random(seed))


CHECKS = (Check("exceptions", (13,), "exceptions", CASES, 50 * CASES, run, chunk=5 * CASES),)
