"""Idle conversations leave memory and come back under their id; nobody notices, and nothing is lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent
import pytest
from turns_support import (
    AGENT,
    assert_at_rest,
    assert_memory_is_disk,
    counted,
    deadline,
    passed_over,
    race,
    services,
)

from palaver import (
    AgentConfig,
    ConversationNotFound,
    Expired,
    Incident,
    Limits,
    MailboxFull,
    NoActiveTurn,
    Overflowed,
    Passivated,
    Reply,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
    SessionNotFound,
)
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.errors import StorageError
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources

T = TypeVar("T")
IDLE_S = 60.0
LIMITS = Limits(passivate_after_s=IDLE_S, tmp_expires_s=IDLE_S)


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


def schedule(seconds: float, function: Callable[[], None]) -> None:
    gevent.spawn_later(seconds, function)


def virtually(
    body: Callable[[Runtime], T],
    model: Any = None,
    *,
    order: int | None = None,
    limits: Limits = LIMITS,
    latency: Callable[[], float] = lambda: 0.001,
    agent: AgentConfig | None = None,
    checked: bool = True,
    **options: Any,
) -> T:
    """Run `body(rt)` on virtual time; the runtime must be at rest at its end."""

    def run() -> T:
        worker = InlineWorker(":memory:", schedule=schedule, commit_latency=latency)
        sources = seeded_sources(VirtualClock(), 0)
        rt = Runtime.open(
            ":memory:", model or ScriptedModel(), worker=worker, sources=sources, limits=limits, **options
        )
        rt.add_agent(agent or AgentConfig(AGENT))
        value = body(rt)
        if checked:
            assert_at_rest(rt)
            assert_memory_is_disk(rt)
        rt.shutdown()
        return value

    return run_virtual(run, rng=None if order is None else random.Random(order))


def topic(rt: Runtime, title: str = "work", sender: str = "alice") -> int:
    return rt.switch_topic(AGENT, sender, title, description="it").conversation_id


def heard(rt: Runtime) -> list[tuple[int, Incident]]:
    """Collects the incidents of a runtime, in a greenlet of its own."""
    found: list[tuple[int, Incident]] = []

    def follow() -> None:
        for info, event in rt.subscribe():
            if isinstance(event, Incident):
                found.append((info.id, event))

    gevent.spawn(follow)
    gevent.sleep(0)
    return found


def rest(seconds: float = 3 * IDLE_S) -> None:
    """Let virtual time pass."""
    gevent.sleep(seconds)


# -- leaving and coming back ---------------------------------------------------------------------------


def test_an_idle_topic_leaves_memory_and_its_next_message_brings_it_back_under_its_id() -> None:
    def body(rt: Runtime) -> None:
        incidents = heard(rt)
        cid = topic(rt)
        rt.send(cid, "one")
        rest()
        assert rt.conversations() == []
        assert services(rt).directory.passive == 1
        result = rt.send(cid, "two")
        assert (result.text, result.conversation_id) == ("two", cid)
        shown = rt.conversation(cid)
        assert shown is not None
        assert [entry.content for entry in shown.history] == ["one", "one", "two", "two"]
        assert [(who, type(what)) for who, what in incidents] == [(cid, Passivated)]
        assert services(rt).incidents.counts["Passivated"] == 1
        assert services(rt).directory.passive == 0

    virtually(body)


def test_the_pair_of_a_passive_topic_gets_it_back_and_no_new_chat_while_others_rest_in_memory() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rest(0.7 * IDLE_S)
        rt.get_or_create(AGENT, "bob")  # and so a sweep is to come when the topic has left
        rest(0.7 * IDLE_S)
        assert services(rt).directory.passive == 1
        assert rt.conversation_count() == 1
        assert rt.get_or_create(AGENT, "alice") == cid

    virtually(body)


def test_a_message_within_the_time_keeps_a_conversation_in_memory() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        for _ in range(5):
            rt.send(cid, "still here")
            rest(IDLE_S * 0.9)
        assert rt.conversations() == [cid]

    virtually(body)


def test_what_callers_see_of_a_passive_conversation_is_what_they_saw_before() -> None:
    def body(rt: Runtime) -> None:
        first, second = topic(rt, "first"), topic(rt, "second")
        rt.send(second, "hello")
        before = rt.conversation(second)
        rest()
        assert rt.conversations() == []
        after = rt.conversation(second)
        assert before is not None
        assert after is not None
        assert (after.history, after.handle, after.topic, after.state) == (
            before.history,
            before.handle,
            "second",
            "idle",
        )
        assert rt.conversations() == []  # looking does not bring it back
        assert rt.conversation_id(AGENT, "alice") == second
        assert rt.get_or_create(AGENT, "alice") == second
        assert rt.switch_topic(AGENT, "alice", "first").conversation_id == first
        assert rt.conversation_id(AGENT, "alice") == first
        rest()
        assert rt.get_or_create(AGENT, "alice") == first
        assert rt.tickets(first) == []
        with pytest.raises(NoActiveTurn):
            rt.steer(second, "faster")
        assert rt.cancel(second) is False

    virtually(body)


def test_loading_its_session_gives_a_passive_conversation_its_old_id() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        handle = rt.sessions()[0].handle
        rest()
        assert rt.load(handle) == cid
        assert rt.conversations() == [cid]

    virtually(body)


def test_an_older_session_of_a_title_does_not_take_its_route() -> None:
    def body(rt: Runtime) -> None:
        old = topic(rt)
        rt.send(old, "old")
        handle = rt.sessions()[0].handle
        rt.close(old)
        worker = services(rt).store
        worker.call(lambda db: db.execute("UPDATE sessions SET topic = 'other'") and None)
        new = topic(rt)
        worker.call(lambda db: db.execute("UPDATE sessions SET topic = 'work'") and None)
        again = rt.load(handle)
        rest()
        assert rt.conversations() == []
        assert rt.get_or_create(AGENT, "alice") == new
        assert rt.send(again, "x").conversation_id == again
        assert rt.send(new, "y").conversation_id == new

    virtually(body)


def test_closing_a_passive_conversation_closes_it_once() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        rest()
        assert rt.close(cid) is True
        assert rt.close(cid) is False
        with pytest.raises(ConversationNotFound):
            rt.send(cid, "are you there?")
        chat = rt.get_or_create(AGENT, "alice")
        assert chat not in (cid, None)
        resumed = rt.switch_topic(AGENT, "alice", "work")
        assert resumed.resumed
        assert resumed.conversation_id not in (cid, chat)

    virtually(body)


def test_a_deleted_session_is_not_brought_back_by_its_old_id() -> None:
    def body(rt: Runtime) -> None:
        cid, other = topic(rt), topic(rt, "other")
        rt.send(cid, "hello")
        handle = next(s.handle for s in rt.sessions() if s.topic == "work")
        rest()
        assert rt.delete_session(handle) is True
        assert services(rt).directory.passive == 1
        with pytest.raises(ConversationNotFound):
            rt.send(cid, "are you there?")
        with pytest.raises(SessionNotFound):
            rt.load(handle)
        assert rt.send(other, "hello").text == "hello"

    virtually(body)


@pytest.mark.parametrize(("after_s", "answer"), [(0.5, "RuntimeClosed"), (1.5, "True")])
def test_who_deletes_a_passive_session_is_answered_though_the_runtime_shuts_down(
    after_s: float, answer: str
) -> None:
    """First its conversation is looked up, then the session is deleted, each with a commit of a second."""
    answers: list[str] = []

    def delete(rt: Runtime, handle: str) -> None:
        try:
            answers.append(repr(rt.delete_session(handle)))
        except RuntimeClosed as closed:
            answers.append(type(closed).__name__)

    def body(rt: Runtime) -> None:
        topic(rt)
        handle = rt.sessions()[0].handle
        rest()
        assert services(rt).directory.passive == 1
        deleting = gevent.spawn(delete, rt, handle)
        gevent.sleep(after_s)
        rt.shutdown(drain=0)
        deleting.join(timeout=60.0)
        assert answers == [answer]

    virtually(body, latency=lambda: 1.0, checked=False)


@pytest.mark.parametrize(("passive", "after_s"), [(False, 1.25), (True, 0.5)])
def test_a_switch_that_waits_with_the_loading_of_a_deleted_session_opens_the_topic_anew(
    passive: bool, after_s: float
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        handle = rt.sessions()[0].handle
        if passive:
            rest()
        else:
            rt.close(cid)
        deleting, loading = gevent.spawn(rt.delete_session, handle), gevent.spawn(rt.load, handle)
        gevent.sleep(after_s)
        switching = gevent.spawn(rt.switch_topic, AGENT, "alice", "work", description="again")
        gevent.joinall([deleting, loading, switching], timeout=60.0)
        assert deleting.value is True
        assert isinstance(loading.exception, SessionNotFound)
        assert switching.value.resumed is False
        assert rt.send(switching.value.conversation_id, "hello").text == "hello"
        assert rt.sessions()[0].handle != handle

    virtually(body, latency=lambda: 1.0)


def test_purging_takes_what_is_passive_and_old() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        rest(10 * IDLE_S)
        live = topic(rt, "live")
        rt.send(live, "hello")
        assert rt.purge_sessions(5 * IDLE_S) == 1
        assert [session.topic for session in rt.sessions()] == ["live"]
        assert services(rt).directory.passive == 0

    virtually(body)


def test_a_transfer_takes_passive_conversations_along() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        rest()
        other = Runtime.open(
            ":memory:",
            ScriptedModel(),
            worker=InlineWorker(":memory:", schedule=schedule),
            sources=seeded_sources(VirtualClock(), 1),
        )
        other.add_agent(AgentConfig(AGENT))
        assert rt.transfer_to(other) == 1
        assert other.send(cid, "again").conversation_id == cid
        other.shutdown()

    virtually(body)


def test_an_idle_tmp_chat_expires_with_an_event() -> None:
    def body(rt: Runtime) -> None:
        incidents = heard(rt)
        chat = rt.get_or_create(AGENT, "alice")
        rt.send(chat, "hello")
        rest()
        with pytest.raises(ConversationNotFound):
            rt.send(chat, "still there?")
        assert [(who, type(what)) for who, what in incidents] == [(chat, Expired)]
        assert rt.get_or_create(AGENT, "alice") == chat + 1

    virtually(body)


# -- who stays -----------------------------------------------------------------------------------------


def test_a_conversation_that_runs_queues_or_is_steered_stays() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        tickets = [rt.submit(cid, f"{number}") for number in range(3)]
        rest(IDLE_S)
        assert rt.conversations() == [cid]
        steer = rt.steer(cid, "and this")
        rest(IDLE_S)
        assert rt.conversations() == [cid]
        assert [ticket.result().stop_reason for ticket in (*tickets, steer)] == ["text_response"] * 4
        assert services(rt).incidents.counts["Passivated"] == 0

    virtually(body, ScriptedModel(lambda request: Reply("done", delay_s=10 * IDLE_S)))


def test_a_conversation_that_somebody_reads_stays_until_they_stop() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        stream = rt.subscribe(cid)
        rest()
        assert rt.conversations() == [cid]
        stream.close()
        rest()
        assert rt.conversations() == []

    virtually(body)


def test_a_subscription_to_one_conversation_gives_its_events_alone() -> None:
    def body(rt: Runtime) -> None:
        one, two = topic(rt, "one"), topic(rt, "two")
        with rt.subscribe(one) as stream:
            rt.send(two, "not this")
            rt.send(one, "this")
            seen = []
            for info, event in stream:
                seen.append(info.id)
                if type(event).__name__ == "Done":
                    break
        assert set(seen) == {one}

    virtually(body)


# -- bounds --------------------------------------------------------------------------------------------


def test_the_bound_of_live_conversations_sends_away_the_one_that_rested_longest() -> None:
    def body(rt: Runtime) -> None:
        ids = [topic(rt, f"t{number}") for number in range(3)]
        rt.send(ids[0], "I was busy last")
        fourth = topic(rt, "t3")
        rest(1)
        assert rt.conversations() == [ids[0], ids[2], fourth]
        assert rt.send(ids[1], "back").conversation_id == ids[1]

    virtually(body, limits=Limits(live_conversations=3))


def test_over_the_bound_with_nothing_idle_the_caller_is_told_and_nothing_is_opened() -> None:
    def body(rt: Runtime) -> None:
        incidents = heard(rt)
        ticket = rt.submit(topic(rt, "busy"), "work")
        chat = rt.get_or_create(AGENT, "bob")
        with pytest.raises(MailboxFull, match="live_conversations"):
            rt.get_or_create(AGENT, "carol")
        with pytest.raises(MailboxFull, match="live_conversations"):
            topic(rt, "one more")
        assert rt.conversation_count() == 2
        assert rt.conversation_id(AGENT, "carol") is None
        assert [event for _, event in incidents] == [Overflowed("live_conversations", 2)] * 2
        ticket.result()
        rt.close(chat)
        assert topic(rt, "one more") > 0

    virtually(body, ScriptedModel(lambda _r: Reply("x", delay_s=1)), limits=Limits(live_conversations=2))


def test_histories_over_their_bound_make_idle_topics_leave() -> None:
    def body(rt: Runtime) -> None:
        ids = [topic(rt, f"t{number}") for number in range(10)]
        for cid in ids:
            rt.send(cid, "x" * 10_000)
            rest(1)
        directory = services(rt).directory
        assert directory.history_bytes <= 60_000
        assert 1 <= len(rt.conversations()) <= 3
        for cid in ids:
            assert rt.send(cid, "y").conversation_id == cid
            rest(1)
            assert directory.history_bytes <= 60_000

    virtually(body, limits=Limits(history_bytes=60_000))


def test_the_counts_of_the_directory_are_those_of_a_full_pass() -> None:
    def body(rt: Runtime) -> None:
        rng = random.Random(7)
        ids = [topic(rt, f"t{number % 3}", f"s{number}") for number in range(30)]
        ids += [rt.get_or_create(AGENT, f"c{number}") for number in range(5)]
        for number in range(200):
            cid = rng.choice(ids)
            try:
                rt.send(cid, "x" * (number + 1))
            except ConversationNotFound:
                ids.remove(cid)
            if rng.random() < 0.05:
                rt.close(cid)
            rest(rng.choice((0.1, 3)))
            directory = services(rt).directory
            states = [*directory.conversations.values()]
            assert directory.history_bytes == sum(state.history.bytes for state in states)
            assert counted(rt) == passed_over(rt)

    virtually(body, limits=Limits(live_conversations=12, tmp_expires_s=40, passivate_after_s=30))


# -- races ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_messages_at_any_moment_of_leaving_reach_one_conversation_in_order(seed: int) -> None:
    """Evicted at each step of its life: two senders of one topic talk on, whatever leaves in between."""

    def body(rt: Runtime) -> None:
        rng = random.Random(seed)
        cid = topic(rt)
        sent = itertools.count()
        told: list[str] = []

        def talk() -> None:
            for _ in range(25):
                text = f"{next(sent)}"
                told.append(rt.send(cid, text).text)
                gevent.sleep(rng.choice((0.0, 0.1, 0.101, 0.102, 0.2, 0.201, 0.202, 0.5)))

        def look() -> None:
            for _ in range(40):
                gevent.sleep(rng.choice((0.05, 0.1, 0.101)))
                assert rt.get_or_create(AGENT, "alice") == cid
                assert rt.conversation(cid) is not None

        race([talk, talk, look])
        (session,) = rt.sessions()
        whole = [entry.content for entry in rt.transcript(session.handle) if entry.role == "user"]
        assert sorted(whole, key=int) == [f"{number}" for number in range(50)]
        assert [turn.content for turn in rt.turns(session.handle)] == whole
        assert sorted(told, key=int) == sorted(whole, key=int)
        assert services(rt).incidents.counts["Passivated"] > 3

    virtually(
        body,
        order=seed,
        limits=Limits(passivate_after_s=0.1),
        latency=lambda: 0.001,
        agent=AgentConfig(AGENT, auto_title=False),
    )


def test_many_conversations_through_a_small_budget() -> None:
    def body(rt: Runtime) -> None:
        ids = []
        for number in range(120):
            ids.append(topic(rt, "work", f"sender {number}"))
            rt.send(ids[-1], f"I am {number}")
        assert rt.conversation_count() <= 21
        order = [*range(120)]
        random.Random(1).shuffle(order)
        for number in order:
            assert rt.get_or_create(AGENT, f"sender {number}") == ids[number]
            assert rt.send(ids[number], "again").conversation_id == ids[number]
        assert len(services(rt).directory.routers) <= 21
        for session in rt.sessions():
            assert len(rt.transcript(session.handle)) == 4

    virtually(body, limits=Limits(live_conversations=20))


def test_a_conversation_that_cannot_be_woken_stays_passive_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from persistence import sessions

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        rest()
        real = sessions.load_session

        def fails(*_args: Any, **_kwargs: Any) -> Any:
            raise StorageError("not now")

        monkeypatch.setattr(sessions, "load_session", fails)
        with pytest.raises(StorageError, match="not now"):
            rt.send(cid, "two")
        monkeypatch.setattr(sessions, "load_session", real)
        rest(1)
        assert rt.send(cid, "three").conversation_id == cid
        assert services(rt).directory.passive == 0

    virtually(body)


def fails_to_forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The disk is full for whatever is to be struck off the passive conversations, until this is called."""
    from persistence import dormant

    real = dormant.forget

    def fails(*_args: Any, **_kwargs: Any) -> Any:
        raise StorageError("the disk is full")

    monkeypatch.setattr(dormant, "forget", fails)
    return lambda: monkeypatch.setattr(dormant, "forget", real)


def test_a_closed_conversation_stays_closed_where_it_could_not_be_struck_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "hello")
        rest()
        there_is_room = fails_to_forget(monkeypatch)
        assert rt.close(cid) is True
        rest(1)
        assert rt.close(cid) is False
        with pytest.raises(ConversationNotFound):
            rt.send(cid, "are you there?")
        resumed = rt.switch_topic(AGENT, "alice", "work")
        assert resumed.resumed
        assert resumed.conversation_id != cid
        there_is_room()
        rest()
        assert services(rt).directory.passive == 1  # the new one, which rests by now
        assert rt.conversation(cid) is None
        assert rt.conversation_id(AGENT, "alice") == resumed.conversation_id

    virtually(body)


def test_what_could_not_be_struck_off_when_it_woke_is_found_when_it_has_left_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        rest()
        there_is_room = fails_to_forget(monkeypatch)
        assert rt.send(cid, "two").conversation_id == cid
        rest()
        assert rt.conversation_id(AGENT, "alice") == cid
        assert rt.send(cid, "three").conversation_id == cid
        there_is_room()
        rest()
        assert services(rt).directory.passive == 1
        assert rt.send(cid, "four").conversation_id == cid
        assert rt.switch_topic(AGENT, "alice", "work").conversation_id == cid
        rest(1)
        assert services(rt).directory.passive == 0

    virtually(body)
