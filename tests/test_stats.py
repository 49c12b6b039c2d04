"""What a runtime counts: the same as a pass over everything would, at every moment."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from gevent.event import Event as Signal
from support import CRAB, ManualClock, PuppetModel, Runtimes, opened_runtimes, topic, until  # noqa: F401
from turns_support import HeldModel, counted, let_run, passed_over, runtime, services

from actors.config import Limits
from actors.counts import TURN_SECONDS, Counts, TurnTimes
from actors.events import (
    ActorParked,
    ActorRestarted,
    DeadLettered,
    Expired,
    Incident,
    Overflowed,
    Passivated,
)
from actors.state import ConversationState
from palaver import AgentConfig, MailboxFull, NoActiveTurn, PalaverError, Reply, Runtime, ScriptedModel
from palaver.simulation.loop import VirtualClock, run_virtual
from palaver.stats import Stats, rates
from persistence.inline import InlineWorker
from persistence.sources import Sources, seeded_sources

# -- the counts and a full pass ------------------------------------------------------------------------


def answer(request: Any, rng: random.Random) -> Reply:
    roll = rng.random()
    if roll < 0.1:
        return Reply(error=RuntimeError("no"))
    if roll < 0.6:
        return Reply(tool_calls=[("knock", {})], delay_s=rng.choice((0.5, 3.0)))
    return Reply("yes", delay_s=rng.choice((0.0, 0.5, 3.0, 9.0)))


def knock() -> str:
    """Knock."""
    gevent.sleep(0.5)
    return "come in"


def random_work(rt: Runtime, rng: random.Random, sender: str) -> None:
    """A sender that does whatever there is to do, in any order; what is refused is refused."""
    cids = [rt.get_or_create("crab", sender)]
    for _ in range(40):
        call: Callable[[], Any] = rng.choice(
            [
                *[lambda: rt.submit(rng.choice(cids), "hello")] * 4,
                lambda: cids.append(topic(rt, f"topic {rng.randrange(3)}", sender)),
                lambda: rt.submit(rng.choice(cids), "hello", on_busy="interrupt"),
                lambda: rt.submit(rng.choice(cids), "hello", on_busy=rng.choice(("steer", "reject"))),
                lambda: rt.submit(rng.choice(cids), "again", key=f"key {rng.randrange(4)}"),
                *[lambda: rt.steer(rng.choice(cids), "faster")] * 2,
                lambda: rt.cancel(rng.choice(cids)),
                lambda: rt.compact(rng.choice(cids)),
                lambda: [ticket.cancel() for ticket in rt.tickets(rng.choice(cids))[-1:]],
                lambda: rt.close(rng.choice(cids), mode=rng.choice(("drain", "now"))),
            ]
        )
        with contextlib.suppress(PalaverError):
            call()
        gevent.sleep(rng.choice((0.0, 0.0, 0.0, 0.4, 2.0)))
        assert counted(rt) == passed_over(rt)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])  # that come to every way of ending
def test_counts_equal_a_full_pass_at_every_moment_of_random_work(seed: int) -> None:
    def world() -> None:
        rng, clock = random.Random(seed), VirtualClock()
        worker = InlineWorker(
            ":memory:", schedule=gevent.spawn_later, commit_latency=lambda: rng.choice((0.0, 0.1))
        )
        model = ScriptedModel(lambda request: answer(request, rng), keep_requests=0)
        limits = Limits(queued_per_conversation=3)
        sources = seeded_sources(clock, seed)
        with Runtime.open(
            ":memory:", model, worker=worker, sources=sources, limits=limits, tools=[knock]
        ) as rt:
            rt.add_agent(AgentConfig(name="crab"))
            gevent.joinall(
                [gevent.spawn(random_work, rt, rng, f"sender {n}") for n in range(6)], raise_error=True
            )
            until_quiet(rt)
            stats = rt.stats()
            assert counted(rt) == passed_over(rt)
            assert stats.running == stats.queued == 0
            assert stats.turns_accepted == sum(stats.turns_ended.values()) + stats.steers_applied
            assert stats.turn_seconds.count <= sum(stats.turns_ended.values())
            assert min(stats.turns_ended.values()) > 0
            assert stats.steers_applied > 0

    run_virtual(world, rng=random.Random(seed))


def until_quiet(rt: Runtime) -> None:
    while rt.stats().running or rt.stats().queued:
        gevent.sleep(1.0)


def test_a_turn_that_was_not_stored_is_not_counted_as_accepted(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, limits=Limits(queued_per_conversation=1))
    cid = topic(rt)
    rt.submit(cid, "runs")
    rt.submit(cid, "waits")
    with pytest.raises(MailboxFull):
        rt.submit(cid, "too much")
    with pytest.raises(NoActiveTurn):
        rt.steer(rt.get_or_create("crab", "bob"), "nothing runs")
    assert rt.stats().turns_accepted == 2
    model.asked().answer()
    model.asked().answer()
    until(lambda: rt.stats().queued == rt.stats().running == 0)
    assert rt.stats().turns_ended == {"done": 2, "failed": 0, "cancelled": 0, "closed": 0}


def test_what_an_earlier_process_accepted_is_counted_apart(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    for words in ("one", "two", "three"):
        rt.submit(cid, words)
    model.asked()
    again = runtimes.reopen(rt, ScriptedModel())
    until(lambda: again.stats().turns_ended["done"] == 2)  # "one" ran, and was cancelled
    stats = again.stats()
    assert (stats.turns_accepted, stats.turns_brought_back) == (0, 2)


def test_a_conversation_that_moves_is_counted_where_it_is(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open()
    topic(old)
    old.get_or_create("crab", "bob")
    assert old.transfer_to(new) == 2
    assert sum(old.stats().conversations.values()) == 0
    assert new.stats().conversations["idle"] == 2
    for rt in (old, new):
        assert counted(rt) == passed_over(rt)


# -- the oldest that waits -----------------------------------------------------------------------------


def test_the_oldest_that_waits_is_found_whatever_the_order_in_which_they_came() -> None:
    rng = random.Random(7)
    for _ in range(200):
        counts = Counts()
        held: dict[int, float] = {}
        for turn_id in range(rng.randrange(1, 30)):
            if held and rng.random() < 0.4:
                gone = rng.choice([*held])
                counts.release(gone, "queued")
                del held[gone]
            at = float(turn_id) if rng.random() < 0.9 else rng.uniform(0, 30)
            counts.hold(turn_id, "queued", at)
            held[turn_id] = at
            assert counts.oldest_waiting() == min(held.values(), default=None)


def test_a_long_queue_in_order_is_not_looked_through_for_its_oldest() -> None:
    looked: list[float] = []

    class Times(dict[int, float]):
        def values(self) -> Any:
            for at in super().values():
                looked.append(at)
                yield at

    counts = Counts(waiting=Times())
    for turn_id in range(1_000):
        counts.hold(turn_id, "queued", float(turn_id))
    assert counts.oldest_waiting() == 0.0
    assert looked == [0.0]


# -- the other figures ---------------------------------------------------------------------------------


def test_turn_durations_reach_from_the_beginning_to_the_commit_of_the_end() -> None:
    def world() -> Stats:
        clock = VirtualClock()
        worker = InlineWorker(":memory:", schedule=gevent.spawn_later, commit_latency=lambda: 0.5)
        model = ScriptedModel([Reply("slow", delay_s=50.0)])
        sources = seeded_sources(clock, 1)
        with Runtime.open(":memory:", model, worker=worker, sources=sources) as rt:
            rt.add_agent(CRAB)
            rt.send(topic(rt), "hello")
            return rt.stats()

    took = run_virtual(world).turn_seconds
    assert took.count == 1
    assert 50.0 < took.sum_s <= 51.5
    assert took.counts[TURN_SECONDS.index(60.0)] == 1


def test_a_duration_of_exactly_a_bound_is_within_it() -> None:
    times = TurnTimes()
    for seconds in (0.0, 0.01, 0.011, 3600.0, 3600.1):
        times.add(seconds)
    counts = times.now().counts
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 1, 1, 1)
    assert times.now().sum_s == pytest.approx(7200.121)


def test_calls_of_models_and_tools_are_counted_while_they_are_under_way_and_wait(tmp_path: Path) -> None:
    opened, gate = Signal(), Signal()

    def knock_twice() -> str:
        """Knock."""
        opened.set()
        gate.wait()
        return "come in"

    model = HeldModel()
    limits = Limits(model_calls=1, tool_calls=1)
    with runtime(tmp_path / "a.db", model, tools=[knock_twice], limits=limits) as rt:
        chats = [topic(rt, "work", f"sender {n}") for n in range(3)]
        tickets = [rt.submit(cid, "hello") for cid in chats]
        held = model.next()
        until(lambda: rt.stats().model_calls_waiting == 2)
        assert rt.stats().model_calls == 1
        held.say(tool_calls=[("knock_twice", {}), ("knock_twice", {})])
        opened.wait()
        until(lambda: rt.stats().tool_calls_waiting == 1)
        assert rt.stats().tool_calls == 1
        gate.set()
        for _ in range(3):
            model.next().say("done")
        for ticket in tickets:
            ticket.result()
        stats = rt.stats()
        assert (stats.model_calls, stats.model_calls_waiting) == (0, 0)
        assert (stats.tool_calls, stats.tool_calls_waiting) == (0, 0)


def test_timers_that_have_not_ended_are_counted(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        ids = [rt.after(3_600, cid, "later").id for cid in (topic(rt), rt.get_or_create("crab", "bob"))]
        until(lambda: rt.stats().timers == 2)
        for timer_id in ids:
            assert rt.cancel_timer(timer_id)
        until(lambda: rt.stats().timers == 0)


def test_sizes_of_the_files_are_those_on_the_disk(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.send(topic(rt), "hello")
    stats = rt.stats()
    assert stats.file_bytes == Path(rt.path).stat().st_size > 0
    assert stats.wal_bytes == Path(f"{rt.path}-wal").stat().st_size > 0
    rt.send(topic(rt), "again")
    assert rt.stats().wal_bytes == Path(f"{rt.path}-wal").stat().st_size > stats.wal_bytes


def test_a_runtime_in_memory_has_no_files() -> None:
    with runtime(":memory:") as rt:
        rt.send(topic(rt), "hello")
        assert (rt.stats().file_bytes, rt.stats().wal_bytes) == (0, 0)


def test_uptime_is_of_the_runtime(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(sources=Sources(clock=clock))
    clock.now += 90
    assert rt.stats().uptime_s == 90.0


def test_events_that_a_reader_missed_are_counted(tmp_path: Path) -> None:
    model = ScriptedModel([Reply("a b c d e f g h", chunk_chars=1)])
    with runtime(tmp_path / "a.db", model, limits=Limits(event_buffer=2)) as rt:
        cid = topic(rt)
        behind = rt.subscribe()
        ticket = rt.submit(cid, "hello")
        slow = ticket.events(limit=2)
        ticket.result()
        assert rt.stats().lagged_events > 10
        behind.close()
        assert list(slow)


INCIDENTS: list[tuple[Incident, str]] = [
    (ActorRestarted("memory", "it died"), "restarts"),
    (ActorParked("memory", "it died"), "parked"),
    (Passivated(idle_s=1.0), "passivations"),
    (Expired(idle_s=1.0), "expirations"),
    (Overflowed("queued_total", 1), "overflows"),
    (DeadLettered(1, "it died"), "dead_letters"),
]


def test_there_is_a_figure_for_each_kind_of_incident() -> None:
    assert {type(incident) for incident, _ in INCIDENTS} == set(Incident.__subclasses__())


@pytest.mark.parametrize(("incident", "figure"), INCIDENTS, ids=lambda value: str(value)[:20])
def test_an_incident_is_one_event_one_line_and_one_count(
    incident: Incident, figure: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with runtime(tmp_path / "a.db") as rt, rt.subscribe() as events, caplog.at_level("DEBUG"):
        cid = topic(rt)
        let_run()
        caplog.clear()
        before = rt.stats()
        services(rt).incidents.report(incident, services(rt).directory.conversations[cid])
        assert getattr(rt.stats(), figure) == getattr(before, figure) + 1
        others = {name for _, name in INCIDENTS} - {figure}
        assert all(getattr(rt.stats(), name) == getattr(before, name) for name in others)
        (line,) = caplog.records
        assert (line.agent, line.sender, line.conversation) == ("crab", "alice", cid)  # type: ignore[attr-defined]
        info, event = next(events)
        assert (info.id, event) == (cid, incident)
        rt.send(cid, "hello")
        assert not [event for _, event in drained(events) if isinstance(event, Incident)]


def drained(events: Any) -> list[Any]:
    events.end()
    return list(events)


def test_a_subscriber_that_never_reads_slows_nobody(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db", limits=Limits(event_buffer=4)) as rt, rt.subscribe():
        cid, incidents = topic(rt), services(rt).incidents
        for number in range(50):
            incidents.report(DeadLettered(number, "it died"))
        assert rt.send(cid, "hello").text == "hello"
        assert rt.stats().dead_letters == 50


def test_a_subscriber_that_never_reads_holds_no_more_than_its_buffer(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db", limits=Limits(event_buffer=4)) as rt, rt.subscribe() as unread:
        chats = [topic(rt, f"topic {n}", "is not kept") for n in range(3)]
        for _ in range(5):
            for cid in chats:
                rt.send(cid, "hello")
        for cid in chats:
            rt.close(cid)
        let_run()
        gc.collect()
        states = [each for each in gc.get_objects() if isinstance(each, ConversationState)]
        kept = [state for state in states if state.sender == "is not kept"]
        assert len(kept) <= 1  # the database thread's last batch may be of one
        assert len(drained(unread)) <= 5  # four, and perhaps one that says how many were missed


def test_a_hook_that_waits_does_not_hold_up_who_reports(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Waits:
        def on_event(self, agent: str, cid: int, event: Any) -> None:
            if isinstance(event, Incident):
                heard.append(event)
                gevent.sleep(3_600)

    with runtime(tmp_path / "a.db", hooks=[Waits()]) as rt:
        services(rt).incidents.report(DeadLettered(1, "it died"))
        assert rt.send(topic(rt), "hello").text == "hello"
        assert len(heard) == 1


# -- figures per second --------------------------------------------------------------------------------


def stats_at(uptime_s: float, **changes: Any) -> Stats:
    with runtime(":memory:", checked=False) as rt:
        return attrs.evolve(rt.stats(), uptime_s=uptime_s, commits=0, database_jobs=0, **changes)


def ended(done: int, failed: int = 0) -> dict[str, int]:
    return {"done": done, "failed": failed, "cancelled": 0, "closed": 0}


def test_rates_are_what_came_between_over_the_time_between() -> None:
    before = stats_at(10.0, turns_ended=ended(100))
    after = attrs.evolve(
        before, uptime_s=20.0, turns_ended=ended(140, 10), commits=30, database_jobs=70, turns_accepted=5
    )
    found = rates(before, after)
    assert (found.seconds, found.turns_ended, found.turns_failed) == (10.0, 5.0, 1.0)
    assert (found.commits, found.database_jobs, found.turns_accepted) == (3.0, 7.0, 0.5)


def test_rates_after_a_new_start_are_since_that() -> None:
    before = stats_at(1_000.0, turns_ended=ended(5_000))
    after = attrs.evolve(before, uptime_s=4.0, turns_ended=ended(8), commits=2)
    assert (rates(before, after).turns_ended, rates(before, after).commits) == (2.0, 0.5)


def test_rates_of_one_moment_are_nothing() -> None:
    before = stats_at(10.0, turns_ended=ended(100))
    assert rates(before, before).turns_ended == 0.0
