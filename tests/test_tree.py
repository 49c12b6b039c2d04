"""The tree of a runtime: its own actors are restarted, users' actors with them, and what cannot be mended
ends the runtime visibly."""

from __future__ import annotations

from typing import Any

import gevent
import pykka
import pytest
from support import CRAB, Runtimes, handle_of, opened_runtimes, topic, until
from turns_support import HeldModel, let_run, services

from actors.memory import MemoryActor
from actors.messages import NameArchive
from actors.registry import RegistryActor
from palaver import (
    ActorParked,
    ActorRestarted,
    Budget,
    ChildSpec,
    ChildStatus,
    GreenletActor,
    GreenletFuture,
    InvalidInput,
    Runtime,
    RuntimeClosed,
    RuntimeFailed,
    ScriptedModel,
    Supervisor,
)
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources

__all__ = ["opened_runtimes"]

LONG_S = 10.0


def kill(ref: Any) -> None:
    """Let an actor of ours die, of what it does not understand."""
    ref.tell(object())
    let_run(3)
    assert not ref.is_alive()


def memory(rt: Runtime) -> Any:
    return services(rt).memory


# -- the memory actor ------------------------------------------------------------------------------


def test_a_dead_memory_actor_is_restarted_and_calls_go_on(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "tea", "green")
    kill(memory(rt))
    assert [entry.content for entry in rt.memory.recall("crab", "alice", "tea")] == ["green"]
    assert memory(rt).is_alive()
    assert rt.stats().restarts == 1


def test_the_tools_of_a_turn_reach_the_next_memory_actor(runtimes: Runtimes) -> None:
    model = HeldModel()
    rt = runtimes.open(model)
    ticket = rt.submit(topic(rt), "remember this")
    kill(memory(rt))
    model.next().say(tool_calls=[("remember", {"name": "tea", "content": "green"})])
    model.next().say("done")
    assert ticket.result(LONG_S).text == "done"
    assert [entry.content for entry in rt.memory.entries("crab", "alice", "note")] == ["green"]


def test_a_compaction_that_waits_for_its_name_gets_it_from_the_next_memory_actor(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "hello")
    with runtimes.held_database(rt):
        compacting = gevent.spawn(rt.compact, cid)
        until(lambda: memory(rt).actor_inbox.actor._counters)  # noqa: SLF001 - it asks the database now
        kill(memory(rt))
    assert compacting.get(timeout=LONG_S).archive == "work-1"
    assert rt.compact(cid).archive == "work-2"


def test_a_name_that_was_given_is_not_given_again_by_the_next_memory_actor(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    topic(rt)
    request = NameArchive("crab", "alice", "work")
    names = [memory(rt).ask(request).get(timeout=LONG_S) for _ in range(2)]
    kill(memory(rt))
    names.append(memory(rt).ask(request, timeout=LONG_S).get(timeout=LONG_S))
    assert names == ["work-1", "work-2", "work-3"]


def test_the_archives_of_the_file_count_for_the_next_memory_actor(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "hello")
    assert rt.compact(cid).archive == "work-1"
    rt = runtimes.reopen(rt)
    cid = topic(rt)
    kill(memory(rt))
    rt.send(cid, "hello")
    assert rt.compact(cid).archive == "work-2"


# -- the registry ----------------------------------------------------------------------------------


def test_a_dead_registry_is_restarted_and_calls_go_on(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    kill(services(rt).registry)
    assert rt.send(cid, "hello").text == "hello"
    assert rt.switch_topic("crab", "bob", "work", "d").conversation_id != cid
    assert rt.get_or_create("crab", "carol") > 0
    assert rt.stats().restarts == 1


def test_a_dead_conversation_is_reported_to_the_next_registry(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    handle = handle_of(rt, cid)
    state = services(rt).directory.conversations[cid]
    assert state.ref is not None
    kill(services(rt).registry)
    kill(state.ref)
    again = rt.load(handle)
    assert rt.send(again, "and on").text == "and on"


# -- what cannot be mended -------------------------------------------------------------------------


def broken(*_args: object) -> None:
    raise OSError("no memory left")


def break_for_good(monkeypatch: pytest.MonkeyPatch, rt: Runtime, actor: type, ref: Any) -> None:
    """Its next constructors fail, and it dies."""
    monkeypatch.setattr(actor, "__init__", broken)
    kill(ref)


@pytest.mark.parametrize("actor", [MemoryActor, RegistryActor])
def test_a_runtime_whose_own_actor_keeps_dying_fails_visibly(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch, actor: type
) -> None:
    told: list[Any] = []
    rt = runtimes.open(on_failure=told.append)
    cid = topic(rt)
    rt.send(cid, "before")
    parts = services(rt)
    name, ref = ("memory", parts.memory) if actor is MemoryActor else ("registry", parts.registry)
    break_for_good(monkeypatch, rt, actor, ref)
    until(lambda: told)
    (error,) = told
    assert isinstance(error, RuntimeFailed)
    assert f"the actor '{name}' died once more after 3 restarts within 5 s" in str(error)
    assert "no memory left" in str(error)
    for call in (
        lambda: rt.send(cid, "after"),
        lambda: rt.get_or_create("crab", "bob"),
        lambda: rt.memory.recall("crab", "alice", "tea"),
        rt.supervised,
        rt.sessions,
    ):
        with pytest.raises(RuntimeFailed, match="End the process"):
            call()
    monkeypatch.undo()
    rt = runtimes.reopen(rt)
    assert [turn.content for turn in rt.turns(rt.sessions()[0].handle)] == ["before"]


def test_a_runtime_that_fails_says_so_before_its_actors_have_stopped(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, gate = list[Any](), GreenletFuture[None]()
    rt = runtimes.open(on_failure=told.append)
    stuck = rt.supervise(ChildSpec("stuck", Stuck.start))
    stuck.tell(gate)
    break_for_good(monkeypatch, rt, MemoryActor, memory(rt))
    asking = gevent.spawn(pytest.raises, RuntimeFailed, rt.memory.recall, "crab", "alice", "tea")
    until(lambda: told)
    assert stuck.is_alive()
    asking.get(timeout=LONG_S)
    with pytest.raises(RuntimeFailed):
        rt.memory.recall("crab", "alice", "tea")
    gate.set()


def test_turns_that_run_when_the_runtime_fails_still_end_and_are_stored(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = HeldModel(), list[Any]()
    rt = runtimes.open(model, on_failure=told.append)
    ticket = rt.submit(topic(rt), "hello")
    held = model.next()
    break_for_good(monkeypatch, rt, MemoryActor, memory(rt))
    until(lambda: told)
    shutting = gevent.spawn(rt.shutdown)
    let_run()
    held.say("good bye")
    shutting.get(timeout=LONG_S)
    assert ticket.result(LONG_S).text == "good bye"
    monkeypatch.undo()
    rt = runtimes.open(path=rt.path)
    assert [turn.state for turn in rt.turns(rt.sessions()[0].handle)] == ["done"]


def test_a_runtime_whose_actors_cannot_be_started_is_not_opened(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegistryActor, "__init__", broken)
    path = runtimes.directory / "agents.db"
    with pytest.raises(OSError, match="no memory left"):
        runtimes.open(path=path)
    monkeypatch.undo()
    assert runtimes.open(path=path).agents() == [CRAB]


# -- actors of the user's own ----------------------------------------------------------------------


class Stuck(GreenletActor):
    """Waits for what it is told."""

    def on_receive(self, message: Any) -> Any:
        return message.get()


class Counter(GreenletActor):
    def __init__(self, log: list[str] | None = None, name: str = "counter") -> None:
        super().__init__()
        self.count, self.name = 0, name
        self.log: list[str] = [] if log is None else log

    def on_receive(self, message: Any) -> Any:
        self.count += message
        return self.count

    def on_stop(self) -> None:
        self.log.append(self.name)


def test_a_supervised_actors_ref_stays_good_and_its_state_can_be_seen(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    events = rt.subscribe()
    counter = rt.supervise(ChildSpec("counter", Counter.start))
    assert counter.ask(2, timeout=LONG_S) == 2
    assert rt.supervised() == [ChildStatus("counter", "running")]
    counter.tell("no number")
    assert counter.ask(3, timeout=LONG_S) in (3, 5)  # before it came to it, or in its next life
    assert counter.ask(1, timeout=LONG_S) > 0
    until(lambda: rt.stats().restarts)
    (status,) = rt.supervised()
    assert (status.state, status.restarts) == ("running", 1)
    assert status.last_error is not None
    assert status.last_error.startswith("TypeError")
    info, event = next(iter(events))
    assert info.id == 0
    assert isinstance(event, ActorRestarted)
    assert event.actor == "counter"
    assert rt.unsupervise("counter") is True
    assert rt.unsupervise("counter") is False
    assert rt.supervised() == []
    with pytest.raises(pykka.ActorDeadError):
        counter.ask(1, timeout=LONG_S)


def test_a_users_actor_that_keeps_crashing_is_parked_and_the_runtime_goes_on(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    events = rt.subscribe()
    wild = rt.supervise(ChildSpec("wild", Counter.start, budget=Budget(restarts=0)))
    calm = rt.supervise(ChildSpec("calm", Counter.start))
    wild.tell("no number")
    until(lambda: rt.supervised()[0].state == "parked")
    assert rt.supervised()[1] == ChildStatus("calm", "running")
    assert calm.ask(1, timeout=LONG_S) == 1
    assert rt.send(topic(rt), "hello").text == "hello"
    _, event = next(iter(events))
    assert isinstance(event, ActorParked)
    assert event.actor == "wild"
    assert event.reason.startswith("TypeError")
    rt.unsupervise("wild")
    assert rt.supervise(ChildSpec("wild", Counter.start)).ask(1, timeout=LONG_S) == 1


def test_users_actors_are_stopped_last_come_first_when_the_runtime_shuts_down(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    log: list[str] = []
    for name in ("a", "b", "c"):
        rt.supervise(ChildSpec(name, lambda name=name: Counter.start(log, name)))  # type: ignore[misc]
    rt.shutdown()
    assert log == ["c", "b", "a"]
    with pytest.raises(RuntimeClosed):
        rt.supervise(ChildSpec("d", Counter.start))


def test_what_cannot_be_supervised_is_refused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput, match="ChildSpec"):
        rt.supervise(Counter)  # type: ignore[arg-type]
    rt.supervise(ChildSpec("counter", Counter.start))
    with pytest.raises(InvalidInput, match="'counter' is there already"):
        rt.supervise(ChildSpec("counter", Counter.start))
    with pytest.raises(OSError, match="no memory left"):
        rt.supervise(ChildSpec("broken", broken))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        rt.unsupervise("")
    assert [status.name for status in rt.supervised()] == ["counter"]


def test_an_actor_that_escalates_begins_anew_with_all_users_actors_and_at_last_ends_the_runtime() -> None:
    def run() -> None:
        clock, told = VirtualClock(), list[Any]()
        worker = InlineWorker(":memory:", schedule=gevent.spawn_later)
        rt = Runtime.open(
            ":memory:",
            ScriptedModel(),
            worker=worker,
            sources=seeded_sources(clock, 1),
            on_failure=told.append,
        )
        log: list[str] = []
        vital = ChildSpec("vital", Counter.start, when_spent="escalate", budget=Budget(restarts=0))
        ref = rt.supervise(vital)
        other = rt.supervise(ChildSpec("other", lambda: Counter.start(log, "other")))
        other.ask(1, timeout=LONG_S)
        for deaths in range(1, 4):
            ref.tell("no number")
            gevent.sleep(0.5)
            assert [status.state for status in rt.supervised()] == ["running", "running"]
            assert log == ["other"] * deaths
            assert services(rt).incidents.counts["ActorRestarted"] == deaths
            assert ref.ask(1, timeout=LONG_S) == 1
        ref.tell("no number")
        gevent.sleep(0.5)
        assert "'vital' died once more" in str(told[0])
        with pytest.raises(pykka.ActorDeadError, match="does nothing any more"):
            other.ask(1, timeout=LONG_S)
        rt.shutdown()

    run_virtual(run)


def test_a_users_supervisor_takes_clock_and_reports_from_the_runtime() -> None:
    def run() -> list[Any]:
        clock = VirtualClock()
        worker = InlineWorker(":memory:", schedule=gevent.spawn_later)
        rt = Runtime.open(":memory:", ScriptedModel(), worker=worker, sources=seeded_sources(clock, 1))
        refs: list[Any] = []

        def start() -> Any:
            refs.append(Counter.start())
            return refs[-1]

        rt.supervise(ChildSpec("pool", lambda: Supervisor.launch([ChildSpec("one", start)])))
        for _ in range(20):
            refs[-1].tell("no number")
            gevent.sleep(2.0)  # of virtual time: three in five seconds at most
        counts = services(rt).incidents.counts
        rt.shutdown()
        return [len(refs), dict(counts)]

    assert run_virtual(run) == [21, {"ActorRestarted": 20}]
