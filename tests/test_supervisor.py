"""Supervisors with real actors on virtual time: every way of dying, every strategy, nesting, stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

import gevent
import pykka
import pytest
from gevent.event import Event as Signal
from turns_support import deadline

from actors.children import Book, ChildEnded, ListChildren, RemoveChild, StartChild
from actors.lasting import IncarnationDied
from actors.policy import RESTARTS, STRATEGIES, Restart, Strategy
from actors.steps import Surroundings
from palaver import (
    ActorParked,
    ActorRestarted,
    AskTimeout,
    Budget,
    ChildSpec,
    ChildStatus,
    GreenletActor,
    InvalidConfig,
    InvalidInput,
    RestartsSpent,
    Supervisor,
)
from palaver.simulation.loop import VirtualClock, run_virtual

T = TypeVar("T")
LONG_S = 1_000.0


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


class Boom(Exception):
    pass


class OwnBase(BaseException):
    pass


def boom(_actor: Any) -> None:
    raise Boom("it went wrong")


class Worker(GreenletActor):
    """Runs what it is told or asked, and writes down when it starts and stops."""

    def __init__(self, family: Family, name: str) -> None:
        super().__init__()
        self.family, self.name = family, name
        family.note(f"start {name}")

    def on_start(self) -> None:
        faults = self.family.faults_on_start.get(self.name)
        if faults:
            raise faults.pop(0)

    def on_receive(self, message: Any) -> Any:
        return message(self) if callable(message) else message

    def on_stop(self) -> None:
        on_stop = self.family.on_stop.get(self.name)
        if on_stop is not None:
            on_stop(self)
        self.family.note(f"stop {self.name}")


class Family:
    """A supervisor and its workers, and what happened to them, when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.began = self.clock.monotonic()
        self.log: list[tuple[float, str]] = []
        self.reports: list[Any] = []
        self.faults: dict[str, list[BaseException]] = {}  # raised by the next constructors
        self.faults_on_start: dict[str, list[BaseException]] = {}
        self.on_stop: dict[str, Callable[[Any], None]] = {}
        self.blocked: dict[str, Signal] = {}  # what the next starts wait for
        self.supervisor: Any = None

    @property
    def now(self) -> float:
        return round(self.clock.monotonic() - self.began, 6)

    def note(self, what: str) -> None:
        self.log.append((self.now, what))

    def said(self) -> list[str]:
        """What was written down since the last look."""
        said = [what for _, what in self.log]
        self.log.clear()
        return said

    def spec(self, name: str, **options: Any) -> ChildSpec:
        def start() -> Any:
            if name in self.blocked:
                self.note(f"begin {name}")
                try:
                    self.blocked[name].wait()
                finally:
                    self.note(f"end {name}")
            if self.faults.get(name):
                self.note(f"fail {name}")
                raise self.faults[name].pop(0)
            return Worker.start(self, name)

        return ChildSpec(name, start, **options)

    @property
    def around(self) -> Surroundings:
        return Surroundings(self.clock, self.reports.append)

    def launch(self, *specs: ChildSpec | str, **options: Any) -> Any:
        children = [self.spec(spec) if isinstance(spec, str) else spec for spec in specs]
        self.supervisor = Supervisor.launch(children, around=self.around, **options)
        return self.supervisor

    def add(self, spec: ChildSpec | str) -> Any:
        spec = self.spec(spec) if isinstance(spec, str) else spec
        return self.supervisor.ask(StartChild(spec)).get(timeout=LONG_S)

    def remove(self, name: str) -> Any:
        return self.supervisor.ask(RemoveChild(name))

    def statuses(self) -> list[ChildStatus]:
        return self.supervisor.ask(ListChildren())  # type: ignore[no-any-return]  # pykka's ask has no types

    def status(self, name: str) -> ChildStatus:
        return next(status for status in self.statuses() if status.name == name)

    def states(self) -> dict[str, str]:
        return {status.name: status.state for status in self.statuses()}

    def ref(self, name: str) -> Any:
        """The lasting ref of a child."""
        return self.child(name).lasting

    def child(self, name: str) -> Any:
        return self.supervisor.actor_inbox.actor._children[name]  # noqa: SLF001 - static children have no other way

    def kill(self, name: str) -> None:
        self.ref(name).tell(boom)


def on_virtual_time(body: Callable[[Family], T]) -> T:
    def run() -> T:
        family = Family()
        value = body(family)
        if family.supervisor is not None:
            family.supervisor.stop()
        return value

    return run_virtual(run)


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)


# -- every way of dying, every strategy ------------------------------------------------------------


def die_of_a_handler(family: Family) -> None:
    family.kill("b")


def die_of_what_is_no_exception(family: Family) -> None:
    def fail(_actor: Any) -> None:
        raise OwnBase

    family.ref("b").tell(fail)


def die_with_its_greenlet(family: Family) -> None:
    family.ref("b").tell(lambda _actor: wait(LONG_S))
    wait(0.001)
    worker = family.child("b").ref.actor_inbox.worker
    gevent.get_hub().loop.run_callback(worker.throw)


def die_at_its_start(family: Family) -> None:
    family.faults_on_start["b"] = [Boom("on_start")]
    family.kill("b")  # and again when it comes back


def die_in_the_constructor(family: Family) -> None:
    family.faults["b"] = [Boom("constructor")]
    family.kill("b")


def die_in_on_stop(family: Family) -> None:
    def fail(_actor: Any) -> None:
        del family.on_stop["b"]
        raise Boom("on_stop")

    family.on_stop["b"] = fail
    family.ref("b").stop(block=False)


def stop_by_itself(family: Family) -> None:
    family.ref("b").tell(lambda actor: actor.stop())


def be_stopped(family: Family) -> None:
    family.ref("b").stop()


# The way, whether it is an error, and what becomes of an actor that is restarted (else of one that is not).
WAYS: dict[Callable[[Family], None], tuple[bool, list[str], list[str]]] = {
    die_of_a_handler: (True, ["start b"], []),
    die_of_what_is_no_exception: (True, ["start b"], []),
    die_with_its_greenlet: (True, ["start b"], []),
    die_in_on_stop: (True, ["start b"], []),
    stop_by_itself: (False, ["stop b", "start b"], ["stop b"]),
    be_stopped: (False, ["stop b", "start b"], ["stop b"]),
}
RESTARTED = {"permanent": (True, True), "transient": (False, True), "temporary": (False, False)}


def with_siblings(strategy: Strategy, of_b: list[str]) -> list[str]:
    *before, start = of_b
    if strategy == "one-for-one":
        return of_b
    if strategy == "rest-for-one":
        return [*before, "stop c", start, "start c"]
    return [*before, "stop c", "stop a", "start a", start, "start c"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_end_has_the_consequences_of_the_table(
    strategy: Strategy, restart: Restart, way: Callable[[Family], None]
) -> None:
    is_error, if_restarted, if_not = WAYS[way]
    restarted = RESTARTED[restart][is_error]

    def body(family: Family) -> None:
        family.launch("a", family.spec("b", restart=restart), "c", strategy=strategy)
        assert family.said() == ["start a", "start b", "start c"]
        way(family)
        wait(2.0)
        assert family.said() == (with_siblings(strategy, if_restarted) if restarted else if_not)
        b = {"permanent": "running", "transient": "running" if restarted else "stopped"}.get(restart)
        assert family.states() == {"a": "running", **({"b": b} if b else {}), "c": "running"}
        expected = {"one-for-one": ["b"], "rest-for-one": ["b", "c"], "one-for-all": ["a", "b", "c"]}
        assert [report.actor for report in family.reports] == (expected[strategy] if restarted else [])

    on_virtual_time(body)


@pytest.mark.parametrize("way", [die_at_its_start, die_in_the_constructor], ids=lambda way: way.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restart_that_fails_is_one_more_death(strategy: Strategy, way: Callable[[Family], None]) -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", "c", strategy=strategy)
        way(family)
        wait(2.0)
        assert set(family.states().values()) == {"running"}
        assert [time for time, what in family.log if what == "start b"][-1] == 0.15  # 0.05 s, then 0.1 s
        status = family.status("b")
        assert status.last_error in ("Boom: constructor", "Boom: on_start")
        assert family.ref("b").ask("alive") == "alive"

    on_virtual_time(body)


# -- budgets ---------------------------------------------------------------------------------------


def crash_whenever_it_runs(family: Family, name: str, seconds: float, look_s: float = 0.001) -> None:
    """Kill a child as soon as it is up, for so long."""
    until = family.now + seconds
    while family.now < until and family.status(name).state != "parked":
        if family.status(name).state == "running":
            family.kill(name)
        wait(look_s)


def starts_of(family: Family, name: str) -> list[float]:
    return [time for time, what in family.log if what == f"start {name}"]


def test_an_actor_that_keeps_crashing_is_restarted_three_times_and_parked_and_nobody_else_notices() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", "c")
        before = family.child("a").ref, family.child("c").ref
        crash_whenever_it_runs(family, "b", 60.0)
        starts = starts_of(family, "b")
        gaps = [round(after - before, 2) for before, after in pairwise(starts)]
        assert gaps == [0.05, 0.1, 0.2]
        wait(100.0)
        assert starts_of(family, "b") == starts
        assert family.status("b") == ChildStatus("b", "parked", 3, "Boom: it went wrong")
        assert (family.child("a").ref, family.child("c").ref) == before
        assert family.states() == {"a": "running", "b": "parked", "c": "running"}
        assert [type(report) for report in family.reports] == [ActorRestarted] * 3 + [ActorParked]
        assert [report.attempt for report in family.reports[:3]] == [1, 2, 3]
        assert [report.delay_s for report in family.reports[:3]] == [0.05, 0.1, 0.2]
        assert family.reports[3] == ActorParked("b", "Boom: it went wrong")
        with pytest.raises(pykka.ActorDeadError, match=r"'b'.*parked.*it went wrong"):
            family.ref("b").ask("anybody?", timeout=1)
        with pytest.raises(pykka.ActorDeadError, match="parked"):
            family.ref("b").tell("anybody?")

    on_virtual_time(body)


def test_an_actor_that_crashes_now_and_then_is_restarted_for_ever() -> None:
    def body(family: Family) -> None:
        family.launch("a")
        for _ in range(30):
            family.kill("a")
            wait(1.7)  # three in five seconds, never a fourth
        assert family.status("a") == ChildStatus("a", "running", 30, "Boom: it went wrong")
        assert len(family.child("a").unit.times) <= 3

    on_virtual_time(body)


def test_a_childs_own_budget_counts_instead_of_its_supervisors() -> None:
    def body(family: Family) -> None:
        own = Budget(restarts=6, period_s=100.0, first_delay_s=1.0, factor=3.0, delay_cap_s=10.0)
        family.launch(family.spec("a", budget=own), "b", budget=Budget(restarts=1))
        crash_whenever_it_runs(family, "a", 90.0, look_s=0.1)
        starts = starts_of(family, "a")
        gaps = [round(after - before) for before, after in pairwise(starts)]
        assert gaps == [1, 3, 9, 10, 10, 10]
        crash_whenever_it_runs(family, "b", 10.0)
        assert len(starts_of(family, "b")) == 2
        assert family.states() == {"a": "parked", "b": "parked"}

    on_virtual_time(body)


@pytest.mark.parametrize("strategy", ["one-for-all", "rest-for-one"])
def test_children_that_are_restarted_together_are_parked_together(strategy: Strategy) -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", "c", strategy=strategy)
        for name in ("b", "c", "b", "c"):  # one budget for all
            family.kill(name)
            wait(0.5)
        parked = {"one-for-all": ["a", "b", "c"], "rest-for-one": ["c"]}[strategy]
        states = family.states()
        assert [name for name in states if states[name] == "parked"] == parked
        assert [report.actor for report in family.reports if isinstance(report, ActorParked)] == parked

    on_virtual_time(body)


# -- escalation and nesting ------------------------------------------------------------------------


def test_a_supervisor_that_may_not_park_a_child_stops_the_others_and_dies_of_the_reason() -> None:
    def body(family: Family) -> None:
        family.launch("a", family.spec("b", when_spent="escalate"), "c", budget=Budget(restarts=0))
        ends: list[Any] = []
        family.supervisor.watch(ends.append)
        family.kill("b")
        wait(0.001)
        (end,) = ends
        assert isinstance(end, RestartsSpent)
        assert "the actor 'b' died once more after 0 restarts within 5 s, of Boom: it went wrong" in str(end)
        assert isinstance(end.__cause__, Boom)
        assert family.said() == ["start a", "start b", "start c", "stop c", "stop a"]

    on_virtual_time(body)


def nested(family: Family) -> ChildSpec:
    children = [family.spec("x", when_spent="escalate"), family.spec("y")]
    return ChildSpec("pool", lambda: Supervisor.launch(children), stop_timeout_s=None)


def inner(family: Family) -> Any:
    return family.child("pool").ref.actor_inbox.actor._children  # noqa: SLF001 - see Family.child


def test_a_supervisor_of_supervisors_restarts_the_one_that_gave_up() -> None:
    def body(family: Family) -> None:
        family.launch("a", nested(family), "z")
        assert family.said() == ["start a", "start x", "start y", "start z"]
        for _ in range(4):
            inner(family)["x"].lasting.tell(boom)
            wait(0.5)
        assert family.said() == ["start x"] * 3 + ["stop y", "start x", "start y"]
        assert [report.actor for report in family.reports] == ["pool/x"] * 3 + ["pool"]
        assert "'pool/x' died once more" in family.reports[-1].reason
        assert family.status("pool").restarts == 1
        wait(0.5)
        inner(family)["x"].lasting.tell(boom)  # its budget is a new one
        wait(0.5)
        assert family.said() == ["start x"]

    on_virtual_time(body)


def test_a_nested_supervisors_children_are_stopped_in_their_place() -> None:
    def body(family: Family) -> None:
        family.launch("a", nested(family), "z")
        family.said()
        family.supervisor.stop()
        assert family.said() == ["stop z", "stop y", "stop x", "stop a"]

    on_virtual_time(body)


def test_a_supervisor_that_is_killed_leaves_no_orphans() -> None:
    def body(family: Family) -> None:
        family.launch(nested(family))
        family.said()
        family.child("pool").ref.tell("what it does not understand")
        wait(1.0)
        assert family.said() == ["stop y", "stop x", "start x", "start y"]

    on_virtual_time(body)


def test_launch_says_why_a_supervisor_did_not_come_up() -> None:
    def body(family: Family) -> None:
        family.faults["b"] = [Boom("no port")] * 10
        with pytest.raises(pykka.ActorDeadError, match="no port") as caught:
            family.launch("a", family.spec("b", when_spent="escalate"))
        assert isinstance(caught.value.__cause__, RestartsSpent)
        assert family.said() == ["start a"] + ["fail b"] * 4 + ["stop a"]
        assert family.now == 0.35

    on_virtual_time(body)


# -- order, and time limits ------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_children_start_one_after_the_other_and_stop_in_reverse(strategy: Strategy) -> None:
    def body(family: Family) -> None:
        family.blocked["b"] = Signal()
        gevent.spawn_later(5.0, family.blocked["b"].set)
        family.on_stop["b"] = lambda _actor: wait(3.0)
        family.launch("a", "b", "c", strategy=strategy)
        family.supervisor.stop()
        log = [(time, what) for time, what in family.log if what[0] == "s"]
        assert log == [
            (0, "start a"),
            (5, "start b"),
            (5, "start c"),
            (5, "stop c"),
            (8, "stop b"),
            (8, "stop a"),
        ]

    on_virtual_time(body)


def test_a_child_that_does_not_stop_in_time_is_given_up_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def body(family: Family) -> None:
        family.launch("a", family.spec("b", stop_timeout_s=4.0), "c")
        family.ref("b").tell(lambda _actor: wait(LONG_S))
        family.supervisor.stop()
        assert family.now == 4.0
        assert family.said() == ["start a", "start b", "start c", "stop c", "stop a"]

    with caplog.at_level(logging.ERROR):
        on_virtual_time(body)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "palaver.supervisor"]
    assert line == "an actor did not stop within 4 s and is given up: actor=b"


def test_a_restart_does_not_wait_longer_for_a_sibling_than_its_time_limit() -> None:
    def body(family: Family) -> None:
        family.launch("a", family.spec("b", stop_timeout_s=4.0), strategy="one-for-all")
        old = family.child("b").ref
        old.tell(lambda _actor: wait(20.0))
        family.kill("a")
        wait(5.0)
        assert [(time, what) for time, what in family.log[2:]] == [(4.0, "start a"), (4.0, "start b")]
        wait(20.0)
        assert not old.is_alive()  # it stopped in the end, and that was not news
        assert family.states() == {"a": "running", "b": "running"}
        assert family.status("b").restarts == 1

    on_virtual_time(body)


def test_a_start_that_takes_too_long_is_a_failed_start() -> None:
    def body(family: Family) -> None:
        family.launch("a", family.spec("b", start_timeout_s=7.0))
        family.blocked["b"] = Signal()
        family.kill("b")
        wait(7.06)
        assert family.status("b") == ChildStatus(
            "b", "restarting", 0, "AskTimeout: b did not start within 7 s"
        )
        del family.blocked["b"]
        wait(1.0)
        assert family.status("b").state == "running"
        family.blocked["c"] = Signal()
        with pytest.raises(AskTimeout, match="c did not start within 2 s"):
            family.add(family.spec("c", start_timeout_s=2))
        assert set(family.states()) == {"a", "b"}

    on_virtual_time(body)


# -- while something else is under way -------------------------------------------------------------


def test_a_child_that_dies_while_others_are_stopped_is_started_once() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", "c", "d", strategy="one-for-all")
        family.said()
        family.on_stop["d"] = lambda _actor: (family.kill("b"), wait(1.0))  # type: ignore[func-returns-value]
        family.kill("a")
        wait(3.0)
        assert family.said() == ["stop d", "stop c", "start a", "start b", "start c", "start d"]
        assert [status.restarts for status in family.statuses()] == [1, 1, 1, 1]
        assert len(family.child("a").unit.times) == 1

    on_virtual_time(body)


def test_a_child_that_dies_while_a_later_one_starts_takes_that_one_along() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", "c", strategy="rest-for-one")
        family.said()
        family.blocked["b"] = Signal()
        family.kill("b")
        wait(0.06)
        family.kill("a")
        wait(1.0)
        family.blocked.pop("b").set()
        wait(1.0)
        expected = ["stop c", "begin b", "end b", "start b", "stop b", "start a", "start b", "start c"]
        assert family.said() == expected
        assert [status.restarts for status in family.statuses()] == [1, 1, 1]
        assert [(report.actor, report.attempt) for report in family.reports] == [("a", 2), ("b", 2), ("c", 2)]

    on_virtual_time(body)


def test_a_supervisor_answers_while_a_child_starts_and_others_are_restarted_meanwhile() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b")
        family.blocked["a"] = Signal()
        family.kill("a")
        wait(1.0)
        family.kill("b")
        before = family.now
        assert family.states() == {"a": "restarting", "b": "running"}  # it has not heard of b yet
        assert family.now == before
        wait(1.0)
        assert family.states() == {"a": "restarting", "b": "running"}
        assert starts_of(family, "b") == [0.0, 1.05]
        family.blocked.pop("a").set()
        wait(0.1)
        assert family.states() == {"a": "running", "b": "running"}

    on_virtual_time(body)


def test_a_restart_that_waits_when_the_supervisor_stops_is_given_up() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b", budget=Budget(first_delay_s=10.0, delay_cap_s=10.0))
        family.said()
        family.kill("b")
        wait(1.0)
        asking = gevent.spawn(pytest.raises, pykka.ActorDeadError, family.ref("b").ask, "waits")
        wait(1.0)
        family.supervisor.stop()
        wait(100.0)
        assert family.said() == ["stop a"]
        assert "has ended" in str(asking.get().value)

    on_virtual_time(body)


def test_a_start_that_is_under_way_when_the_supervisor_stops_is_given_up() -> None:
    def body(family: Family) -> None:
        family.launch("a", "b")
        family.said()
        family.blocked["b"] = Signal()
        family.kill("b")
        wait(1.0)
        family.supervisor.stop()
        assert family.said() == ["begin b", "end b", "stop a"]
        assert family.now == 1.0

    on_virtual_time(body)


def test_a_start_that_cannot_be_given_up_ends_with_its_actor_stopped() -> None:
    def body(family: Family) -> None:
        began = Signal()

        def start() -> Any:
            try:
                began.set()
                wait(LONG_S)
            except gevent.GreenletExit:
                wait(2.0)  # it will not be told
            return Worker.start(family, "b")

        family.launch("a")
        adding = gevent.spawn(family.add, ChildSpec("b", start, start_timeout_s=None))
        began.wait()
        family.supervisor.stop()
        assert family.said() == ["start a", "start b", "stop b", "stop a"]
        with pytest.raises(pykka.ActorDeadError):
            adding.get()

    on_virtual_time(body)


# -- children come and go --------------------------------------------------------------------------


def test_a_first_start_that_its_supervisor_did_not_live_to_see_can_be_asked_for_again() -> None:
    def body(family: Family) -> None:
        book = Book()
        family.supervisor = Supervisor.start(around=family.around, book=book)
        family.add("a")
        family.blocked["b"] = Signal()
        adding = gevent.spawn(pytest.raises, IncarnationDied, family.add, "b")
        wait(1.0)
        family.supervisor.tell("what it does not understand")
        adding.get()
        family.supervisor = Supervisor.start(around=family.around, book=book)
        family.blocked.clear()
        assert family.add("b").ask("hello") == "hello"
        assert family.states() == {"a": "running", "b": "running"}

    on_virtual_time(body)


def test_a_child_that_cannot_be_started_at_first_is_not_kept() -> None:
    def body(family: Family) -> None:
        family.launch("a")
        family.faults["b"] = [Boom("no such file")]
        with pytest.raises(Boom, match="no such file"):
            family.add("b")
        assert family.states() == {"a": "running"}
        assert family.add("b").ask("hello") == "hello"
        with pytest.raises(InvalidInput, match="'b' is there already"):
            family.add("b")

    on_virtual_time(body)


def test_removing_a_child_works_in_each_of_its_states() -> None:
    def body(family: Family) -> None:
        family.launch("running", "restarting", "starting", "parked", budget=Budget(restarts=2))
        crash_whenever_it_runs(family, "parked", 10.0)
        family.blocked["starting"] = Signal()
        family.kill("starting")
        wait(0.06)
        family.kill("restarting")
        wait(0.001)
        assert [*family.states().values()] == ["running", "restarting", "restarting", "parked"]
        family.said()
        first, second = family.remove("running"), family.remove("running")
        assert first.get(timeout=LONG_S) is True
        assert second.get(timeout=LONG_S) is False
        assert family.remove("restarting").get(timeout=LONG_S) is True
        assert family.remove("parked").get(timeout=LONG_S) is True
        removing = family.remove("starting")
        family.blocked.pop("starting").set()
        assert removing.get(timeout=LONG_S) is True
        assert family.remove("unknown").get(timeout=LONG_S) is False
        wait(100.0)
        assert family.statuses() == []
        assert family.said() == ["stop running", "end starting", "start starting", "stop starting"]

    on_virtual_time(body)


def test_the_end_of_a_removed_childs_last_incarnation_is_not_taken_for_its_namesakes() -> None:
    def body(family: Family) -> None:
        family.launch(family.spec("a", stop_timeout_s=1.0))
        old = family.child("a").ref
        old.tell(lambda _actor: wait(10.0))
        assert family.remove("a").get(timeout=LONG_S) is True
        family.add("a")
        wait(20.0)
        assert not old.is_alive()
        assert family.status("a") == ChildStatus("a", "running")

    on_virtual_time(body)


def test_a_temporary_child_is_forgotten_when_it_has_ended() -> None:
    def body(family: Family) -> None:
        family.launch()
        ref = family.add(family.spec("once", restart="temporary"))
        family.kill("once")
        wait(1.0)
        assert family.statuses() == []
        with pytest.raises(pykka.ActorDeadError, match="has ended"):
            ref.ask("anybody?")
        assert family.add(family.spec("once", restart="temporary")).ask("again") == "again"

    on_virtual_time(body)


def test_an_actor_that_died_before_its_start_returned_is_seen_to_be_dead() -> None:
    def body(family: Family) -> None:
        def start() -> Any:
            ref = Worker.start(family, "a")
            wait(1.0)
            return ref

        family.faults_on_start["a"] = [Boom("early"), Boom("early")]
        family.launch(ChildSpec("a", start))
        wait(5.0)
        assert family.said() == ["start a"] * 3
        status = family.status("a")
        assert status.state == "running"
        assert status.last_error is not None
        assert "Boom('early')" in status.last_error

    on_virtual_time(body)


NONSENSE: dict[str, Callable[[Family], object]] = {
    "strategy must be one of": lambda family: Supervisor([], strategy="one-for-two"),  # type: ignore[arg-type]
    "budget must be a Budget": lambda family: Supervisor([], budget=3),  # type: ignore[arg-type]
    "described by a ChildSpec": lambda family: Supervisor([Worker]),  # type: ignore[list-item]
    "'a' is there already": lambda family: Supervisor([family.spec("a"), family.spec("a")]),
    "one together": lambda family: Supervisor([family.spec("a", budget=Budget())], strategy="one-for-all"),
    "restart must be one of": lambda family: family.spec("a", restart="often"),
    "name": lambda family: family.spec(""),
    "start must be a function": lambda family: ChildSpec("a", "Worker"),  # type: ignore[arg-type]
    "budget must be": lambda family: family.spec("a", budget="large"),
    "when_spent must be": lambda family: family.spec("a", when_spent="despair"),
    "stop_timeout_s must be": lambda family: family.spec("a", stop_timeout_s=0),
    "start_timeout_s must be": lambda family: family.spec("a", start_timeout_s=True),
}


@pytest.mark.parametrize("words", NONSENSE)
def test_what_makes_no_sense_is_refused_by_name(words: str) -> None:
    def body(family: Family) -> None:
        with pytest.raises(InvalidInput, match=words):
            NONSENSE[words](family)

    on_virtual_time(body)


def test_a_start_that_returns_no_ref_of_ours_is_refused() -> None:
    def body(family: Family) -> None:
        family.launch()
        with pytest.raises(
            InvalidConfig, match=r"start of a must return the ref of a GreenletActor, not 'me'"
        ):
            family.add(ChildSpec("a", lambda: "me"))  # type: ignore[arg-type,return-value]

    on_virtual_time(body)


def test_a_notice_of_an_earlier_incarnation_changes_nothing() -> None:
    def body(family: Family) -> None:
        family.launch("a")
        family.supervisor.tell(ChildEnded("a", family.child("a").number - 1, Boom("late")))
        family.supervisor.tell(ChildEnded("gone", 1, Boom("late")))
        assert family.statuses() == [ChildStatus("a", "running")]

    on_virtual_time(body)


# -- storms ----------------------------------------------------------------------------------------


def test_in_a_storm_each_of_many_children_keeps_to_its_budget_and_the_quiet_ones_go_on() -> None:
    def body(family: Family) -> None:
        stormy = [f"s{number}" for number in range(100)]
        quiet = [f"q{number}" for number in range(20)]
        family.launch(*stormy, *quiet)
        until = family.now + 30.0
        while family.now < until:
            for status in family.statuses():
                if status.state == "running" and status.name in stormy:
                    family.kill(status.name)
            wait(0.05)
        for name in stormy:
            starts = starts_of(family, name)
            assert len(starts) == 4
            assert family.status(name).state == "parked"
        for name in quiet:
            assert family.status(name) == ChildStatus(name, "running")
            assert len(starts_of(family, name)) == 1

    on_virtual_time(body)
