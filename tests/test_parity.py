"""Every row of PARITY.md: what the seed can do, this runtime can do too. Tests are named after the rows."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

import attrs
import gevent
import pytest
from support import (
    CRAB,
    ManualClock,
    PuppetModel,
    Runtimes,
    handle_of,
    history_of,
    opened_runtimes,  # noqa: F401 - a fixture
    routers_of,
    texts,
    topic,
    until,
)

from palaver import (
    AgentConfig,
    AgentNotRegistered,
    ConversationClosed,
    ConversationNotFound,
    DescriptionRequired,
    HistoryEntry,
    InvalidTitle,
    ModelRequest,
    NoActiveTurn,
    Reply,
    Runtime,
    ScriptedModel,
    SessionNotFound,
    Ticket,
    Tool,
    UserSteered,
    looking,
)
from persistence.sources import Sources

# -- ids -------------------------------------------------------------------------------------------


def test_next_conversation_id_starts_at_1_and_is_never_reused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    assert [rt.get_or_create("crab", name) for name in "abc"] == [1, 2, 3]
    rt.close(3)
    assert rt.get_or_create("crab", "c") == 4


def test_next_conversation_id_is_not_reused_after_a_failed_reservation(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with runtimes.held_database(rt):
        failing = gevent.spawn(rt.switch_topic, "crab", "alice", "unknown")
        until(rt.conversations)
        reserved = rt.conversations()
    with pytest.raises(DescriptionRequired):
        failing.get()
    assert reserved == [1]
    assert rt.conversations() == []
    assert rt.get_or_create("crab", "alice") == 2


def test_next_conversation_id_goes_on_after_transfer_to(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open()
    for name in "abcde":
        old.close(old.get_or_create("crab", name))
    old.transfer_to(new)
    assert new.get_or_create("crab", "f") == 6


# -- get_or_create_conversation --------------------------------------------------------------------


def test_get_or_create_refuses_an_unregistered_agent(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(AgentNotRegistered, match=r"'whale'.*'crab'"):
        rt.get_or_create("whale", "alice")
    assert rt.conversation_count() == 0
    assert routers_of(rt) == {}


def test_get_or_create_gives_the_active_topic_first_else_the_tmp_chat(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    tmp = rt.get_or_create("crab", "alice")
    assert rt.get_or_create("crab", "alice") == tmp
    work = topic(rt)
    assert rt.get_or_create("crab", "alice") == work != tmp
    assert rt.get_or_create("crab", "bob") not in (tmp, work)
    rt.close(work)
    assert rt.get_or_create("crab", "alice") == tmp


def test_get_or_create_gives_1000_racing_greenlets_one_id_and_one_actor(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    racers = [gevent.spawn(rt.get_or_create, "crab", "alice") for _ in range(1_000)]
    gevent.joinall(racers, raise_error=True)
    assert {racer.value for racer in racers} == {1}
    assert rt.conversations() == [1]
    assert rt.get_or_create("crab", "bob") == 2


# -- load ------------------------------------------------------------------------------------------


def test_load_brings_back_archive_and_live_entries_title_uptime_and_handle(runtimes: Runtimes) -> None:
    clock = ManualClock()

    def answer(_request: object) -> str:
        clock.now += 1.5
        return "ok"

    titled = attrs.evolve(CRAB, auto_title=True)
    model = ScriptedModel(answer, titles=["A fine title"], summaries=["what was said"])
    rt = runtimes.open(model, agents=[titled], sources=Sources(clock=clock))
    cid = topic(rt)
    rt.send(cid, "one")
    until(lambda: rt.list_active()[0].title)
    rt.compact(cid)
    rt.send(cid, "two")
    before = rt.conversation(cid)
    assert before is not None
    later = runtimes.reopen(rt, agents=[titled], sources=Sources(clock=clock))
    after = later.conversation(later.load(before.handle or ""))
    assert after is not None
    assert texts(after.history) == [("user", "what was said"), ("user", "two"), ("assistant", "ok")]
    assert (after.handle, after.title, after.uptime_s) == (before.handle, "A fine title", 3.0)
    assert (after.agent, after.sender, after.topic, after.state) == ("crab", "alice", "work", "idle")


def test_load_continues_the_transcript_where_it_ended(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "one")
    handle = handle_of(rt, cid)
    later = runtimes.reopen(rt)
    later.send(later.load(handle), "two")
    assert [entry.content for entry in later.transcript(handle)] == ["one", "one", "two", "two"]


def test_load_of_an_unknown_handle_and_of_an_unregistered_agent_differ(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    handle = handle_of(rt, topic(rt))
    later = runtimes.reopen(rt, agents=())
    with pytest.raises(SessionNotFound, match="nothing-here"):
        later.load("nothing-here")
    with pytest.raises(AgentNotRegistered, match="'crab'"):
        later.load(handle)
    assert later.conversation_count() == 0


def test_load_does_not_open_a_live_session_twice(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    assert rt.load(handle_of(rt, cid)) == cid
    assert rt.conversation_count() == 1


def test_load_by_100_racing_greenlets_opens_the_session_once(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    handle = handle_of(rt, topic(rt))
    later = runtimes.reopen(rt)
    racers = [gevent.spawn(later.load, handle) for _ in range(100)]
    racers += [gevent.spawn(topic, later) for _ in range(100)]
    gevent.joinall(racers, raise_error=True)
    assert len({racer.value for racer in racers}) == 1
    assert later.conversation_count() == 1


def test_load_does_not_switch_the_senders_topic(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    handle = handle_of(rt, topic(rt, "old"))
    later = runtimes.reopen(rt)
    active = topic(later, "new")
    loaded = later.load(handle)
    assert later.get_or_create("crab", "alice") == active
    assert later.switch_topic("crab", "alice", "old").conversation_id == loaded


# -- list_active -----------------------------------------------------------------------------------


def test_list_active_shows_agent_sender_topic_title_count_age_and_state(runtimes: Runtimes) -> None:
    clock = ManualClock()
    model = PuppetModel()
    titled = attrs.evolve(CRAB, auto_title=True)
    rt = runtimes.open(model, agents=[titled], sources=Sources(clock=clock))
    tmp = rt.get_or_create("crab", "alice")
    clock.now += 7
    work = topic(rt, "work", "bob")
    first = rt.submit(work, "please help me now")
    model.asked().answer()
    first.result()
    until(lambda: rt.list_active()[1].title)
    rt.submit(work, "again")
    rt.submit(work, "and again")
    model.asked()
    one, two = rt.list_active()
    assert (one.id, one.agent, one.sender, one.topic, one.title) == (tmp, "crab", "alice", None, "")
    assert (one.state, one.message_count, one.queued, one.alive_s) == ("idle", 0, 0, 7.0)
    assert (two.id, two.agent, two.sender, two.topic, two.title) == (
        work,
        "crab",
        "bob",
        "work",
        "please help me now",
    )
    assert (two.state, two.message_count, two.queued, two.alive_s) == ("running", 2, 1, 0.0)


def test_list_active_answers_while_every_conversation_is_mid_turn(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    ids = [rt.get_or_create("crab", f"sender {n}") for n in range(50)] + [topic(rt)]
    tickets = [rt.submit(cid, "hello") for cid in ids]
    waiting = [model.asked() for _ in ids]
    assert [info.state for info in rt.list_active()] == ["running"] * len(ids)
    assert [info.id for info in rt.list_active()] == rt.conversations() == ids
    assert not any(ticket.done for ticket in tickets)
    for asked in waiting:
        asked.answer()
    assert {ticket.result().stop_reason for ticket in tickets} == {"text_response"}
    assert [info.state for info in rt.list_active()] == ["idle"] * len(ids)


def test_list_active_answers_while_a_conversation_is_opening(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with runtimes.held_database(rt):
        opening = gevent.spawn(topic, rt)
        until(rt.conversations)
        assert [info.state for info in rt.list_active()] == ["opening"]
    assert opening.get() == 1
    assert [info.state for info in rt.list_active()] == ["idle"]


def crowded(rt: Runtime, monkeypatch: pytest.MonkeyPatch, *, parts: int) -> list[int]:
    """The ids of so many conversations that a listing has so many parts."""
    monkeypatch.setattr(looking, "LISTING_BURST", 5)
    return [rt.get_or_create("crab", f"sender {n}") for n in range(5 * parts)]


def test_list_active_lets_timers_run_between_the_parts_of_a_long_listing(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = runtimes.open()
    ids = crowded(rt, monkeypatch, parts=40)
    runs: list[None] = []
    timer = gevent.get_hub().loop.timer(0, 1e-6)
    timer.start(runs.append, None)
    try:
        assert [info.id for info in rt.list_active()] == ids
    finally:
        timer.close()
    assert len(runs) >= 30  # all parts are fewer callbacks than gevent runs before it looks at timers


def test_list_active_of_few_lets_nothing_run_meanwhile(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = runtimes.open()
    ids = crowded(rt, monkeypatch, parts=1)
    closing = gevent.spawn(rt.close, ids[0])
    assert [info.id for info in rt.list_active()] == ids
    assert closing.get() is True


def test_a_long_list_active_has_once_and_in_order_what_lives_throughout(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = runtimes.open()
    ids = crowded(rt, monkeypatch, parts=3)
    ways: list[int] = []

    def change() -> None:
        """Between two parts: close one of those before and one of those behind, and open another."""
        ways.append(len(ways))
        rt.close(ids[5 * len(ways) - 1])
        rt.close(ids[5 * len(ways)])
        rt.get_or_create("crab", f"new {len(ways)}")

    monkeypatch.setattr(looking, "_give_way", change)
    listed = [info.id for info in rt.list_active()]
    assert ways == [0, 1]
    assert listed == [cid for cid in ids if cid not in (ids[5], ids[10])]


# -- close -----------------------------------------------------------------------------------------


def test_close_drops_the_tmp_pointer_and_the_empty_router(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = rt.get_or_create("crab", "alice")
    assert rt.close(cid) is True
    assert rt.conversation_id("crab", "alice") is None
    assert rt.conversation(cid) is None
    assert routers_of(rt) == {}


def test_close_drops_the_title_and_active_pointers_but_not_the_tmp_chat(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    tmp, work = rt.get_or_create("crab", "alice"), topic(rt)
    rt.close(work)
    assert rt.conversation_id("crab", "alice") == tmp
    assert list(routers_of(rt)) == [("crab", "alice")]
    outcome = rt.switch_topic("crab", "alice", "work")
    assert outcome.resumed
    assert outcome.conversation_id not in (tmp, work)


def test_close_of_a_topic_that_is_not_active_leaves_the_active_one(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    first, second = topic(rt, "first"), topic(rt, "second")
    rt.close(first)
    assert rt.conversation_id("crab", "alice") == second


def test_close_twice_gives_false_and_so_does_an_unknown_id(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    assert [rt.close(cid), rt.close(cid), rt.close(77)] == [True, False, False]


def test_close_by_many_at_once_is_true_for_one(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    racers = [gevent.spawn(rt.close, cid) for _ in range(50)]
    gevent.joinall(racers, raise_error=True)
    assert sorted(racer.value for racer in racers) == [False] * 49 + [True]


@pytest.mark.parametrize("stored", [False, True])
def test_close_starts_nothing_after_it_and_queued_turns_end_closed(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    running, *queued = [rt.submit(cid, text) for text in ("one", "two", "three")]
    asked = model.asked()
    closing = gevent.spawn(rt.close, cid)
    assert [ticket.result().stop_reason for ticket in queued] == ["closed", "closed"]
    with pytest.raises((ConversationClosed, ConversationNotFound)):
        rt.send(cid, "too late")
    with pytest.raises((ConversationClosed, ConversationNotFound)):
        rt.steer(cid, "too late")
    assert not running.done
    asked.answer("done")
    assert closing.get() is True
    assert running.result().text == "done"
    assert len(model.requests) == 1
    assert [ticket.state for ticket in (running, *queued)] == ["done", "closed", "closed"]


def test_close_now_cancels_the_running_turn_and_stores_that(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    ticket = rt.submit(cid, "one")
    asked = model.asked()
    assert rt.close(cid, mode="now") is True
    assert asked.closed.is_set()
    assert ticket.result().stop_reason == "cancelled"
    assert runtimes.sql(rt, "SELECT state FROM turns") == [("cancelled",)]


def test_close_now_hurries_a_close_that_drains(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = rt.get_or_create("crab", "alice")
    ticket = rt.submit(cid, "one")
    model.asked()
    draining = gevent.spawn(rt.close, cid)
    until(lambda: rt.list_active()[0].state == "closing")
    assert rt.close(cid, mode="now") is False
    assert draining.get() is True
    assert ticket.state == "cancelled"


def test_close_makes_whoever_wants_the_topic_again_wait_until_it_is_stored(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    rt.submit(cid, "one")
    asked = model.asked()
    closing = gevent.spawn(rt.close, cid)
    until(lambda: rt.list_active()[0].state == "closing")
    again = gevent.spawn(rt.switch_topic, "crab", "alice", "work")
    gevent.idle()
    assert not again.ready()
    asked.answer("done")
    outcome = again.get()
    assert closing.get() is True
    assert outcome.conversation_id != cid
    assert history_of(rt, outcome.conversation_id) == [("user", "one"), ("assistant", "done")]


# -- steer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_steer_without_a_running_turn_is_an_error(runtimes: Runtimes, stored: bool) -> None:
    rt = runtimes.open()
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    with pytest.raises(NoActiveTurn, match="no running turn"):
        rt.steer(cid, "left")
    rt.send(cid, "hello")
    with pytest.raises(NoActiveTurn):
        rt.steer(cid, "left")
    with pytest.raises(ConversationNotFound):
        rt.steer(99, "left")


def _by_send(rt: Runtime, cid: int) -> Callable[[], object]:
    sent = gevent.spawn(rt.send, cid, "go")
    return sent.get


def _by_submit(rt: Runtime, cid: int) -> Callable[[], object]:
    ticket = rt.submit(cid, "go")
    return ticket.result


def _by_stream(rt: Runtime, cid: int) -> Callable[[], object]:
    stream = rt.stream(cid, "go")
    return lambda: list(stream)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("start", [_by_send, _by_submit, _by_stream])
def test_steer_works_for_send_stream_and_submit_turns_alike(
    runtimes: Runtimes, stored: bool, start: Callable[[Runtime, int], Callable[[], object]]
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[Tool(lambda: "up", name="look")])
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    finish = start(rt, cid)
    first = model.asked()
    steer = rt.steer(cid, "to the left")
    first.answer(Reply(tool_calls=[("look", {})]))
    second = model.asked()
    assert second.request.messages[-1] == {"role": "user", "content": "to the left"}
    second.answer("turned")
    finish()
    assert steer.result().text == "turned"
    assert history_of(rt, cid) == [
        ("user", "go"),
        ("assistant", ""),
        ("tool", "up"),
        ("user", "to the left"),
        ("assistant", "turned"),
    ]


def test_steer_shows_an_event_for_each(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[Tool(lambda: "up", name="look")])
    cid = rt.get_or_create("crab", "alice")
    stream = rt.stream(cid, "go")
    asked = model.asked()
    for word in ("left", "right"):
        rt.steer(cid, word)
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer()
    assert [event.content for event in stream if isinstance(event, UserSteered)] == ["left", "right"]


# -- conversation, conversations, conversation_count, conversation_id ------------------------------


def test_conversation_is_an_immutable_snapshot(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "one")
    before = rt.conversation(cid)
    assert before is not None
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.title = "mine"  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.history[0].content = "mine"  # type: ignore[misc]
    assert isinstance(before.history, tuple)
    rt.send(cid, "two")
    rt.compact(cid)
    assert texts(before.history) == [("user", "one"), ("assistant", "one")]


def test_conversation_of_an_unknown_id_is_none(runtimes: Runtimes) -> None:
    assert runtimes.open().conversation(1) is None


def test_conversation_answers_in_the_middle_of_a_turn(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = rt.get_or_create("crab", "alice")
    rt.submit(cid, "hello")
    model.asked()
    snapshot = rt.conversation(cid)
    assert snapshot is not None
    assert (snapshot.state, snapshot.history) == ("running", ())


def test_conversations_and_conversation_count_are_all_live_ones(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    ids = [rt.get_or_create("crab", "alice"), topic(rt, "one"), topic(rt, "two"), topic(rt, "one", "bob")]
    assert rt.conversations() == ids
    assert rt.conversation_count() == 4
    rt.close(ids[1])
    assert rt.conversations() == [ids[0], *ids[2:]]
    assert rt.conversation_count() == 3


def test_conversation_id_is_the_active_one_and_makes_nothing(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    assert rt.conversation_id("crab", "alice") is None
    assert rt.conversation_id("whale", "alice") is None
    assert rt.conversation_count() == 0
    tmp = rt.get_or_create("crab", "alice")
    assert rt.conversation_id("crab", "alice") == tmp
    one, two = topic(rt, "one"), topic(rt, "two")
    assert rt.conversation_id("crab", "alice") == two
    rt.switch_topic("crab", "alice", "one")
    assert rt.conversation_id("crab", "alice") == one


def test_conversation_id_takes_as_long_among_5000_conversations_as_among_10(runtimes: Runtimes) -> None:
    rt = runtimes.open()

    def best_time() -> float:
        times = []
        for _ in range(5):
            began = time.thread_time()  # a busy machine is no reason to fail
            for _ in range(200):
                rt.conversation_id("crab", "sender 9")
            times.append(time.thread_time() - began)
        return min(times)

    for number in range(10):
        rt.get_or_create("crab", f"sender {number}")
    few = best_time()
    for number in range(10, 5_000):
        rt.get_or_create("crab", f"sender {number}")
    assert best_time() < 20 * few  # a scan would be 500 times as much


# -- acquire_slot ----------------------------------------------------------------------------------


def test_acquire_slot_every_id_reaches_the_conversation_of_its_agent_sender_and_topic(
    runtimes: Runtimes,
) -> None:
    rt = runtimes.open(agents=[CRAB, attrs.evolve(CRAB, name="whale")])
    ids = {
        (agent, sender, title): topic(rt, title, sender, agent)
        for agent in ("crab", "whale")
        for sender in ("alice", "bob")
        for title in ("one", "two")
    }
    for place, cid in ids.items():
        rt.send(cid, " ".join(place))
    for place, cid in ids.items():
        snapshot = rt.conversation(cid)
        assert snapshot is not None
        assert (snapshot.agent, snapshot.sender, snapshot.topic) == place
        assert [entry.content for entry in snapshot.history] == [" ".join(place)] * 2


# -- compact ---------------------------------------------------------------------------------------


def test_compact_summarize_changes_nothing(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["in short"]))
    cid = topic(rt)
    rt.send(cid, "hello")
    before = rt.conversation(cid)
    assert rt.summarize(cid) == "in short"
    after = rt.conversation(cid)
    assert before is not None
    assert after is not None
    assert after.history == before.history
    assert rt.sessions()[0].archive is None
    assert rt.memory.entries("crab", "alice", "archive") == []


def test_compact_of_an_empty_history_is_none(runtimes: Runtimes) -> None:
    model = ScriptedModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    assert rt.summarize(cid) is None
    outcome = rt.compact(cid)
    assert (outcome.archive, outcome.summary) == (None, None)
    assert model.requests == []


def test_compact_applied_leaves_the_summary_and_keeps_the_transcript(runtimes: Runtimes) -> None:
    model = ScriptedModel(summaries=["in short"])
    rt = runtimes.open(model)
    cid = topic(rt, "Auth refactor!")
    rt.send(cid, "hello")
    outcome = rt.compact(cid)
    assert (outcome.archive, outcome.summary) == ("auth-refactor-1", "in short")
    assert history_of(rt, cid) == [("user", "in short")]
    rt.send(cid, "next")
    assert [m["content"] for m in model.requests[-1].messages] == [CRAB.system_prompt, "in short", "next"]
    assert texts(rt.transcript(handle_of(rt, cid))) == [
        ("user", "hello"),
        ("assistant", "hello"),
        ("user", "next"),
        ("assistant", "next"),
    ]
    [archive] = rt.memory.entries("crab", "alice", "archive")
    assert (archive.name, archive.content) == ("auth-refactor-1", "in short")


def test_compact_of_a_tmp_chat_stores_no_archive(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["in short"]))
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "hello")
    assert rt.compact(cid).archive is None
    assert history_of(rt, cid) == [("user", "in short")]
    assert rt.memory.entries("crab", "alice") == []


def test_compact_includes_the_agents_prompt_and_cuts_tool_results_for_the_summary_only(
    runtimes: Runtimes,
) -> None:
    model = ScriptedModel([Reply(tool_calls=[("read", {})]), "done"])
    rt = runtimes.open(model, tools=[Tool(lambda: "x" * 3_000, name="read")])
    cid = topic(rt)
    rt.send(cid, "read it")
    rt.summarize(cid)
    request = model.requests[-1]
    assert request.purpose == "compact"
    assert request.messages[0] == {"role": "system", "content": CRAB.system_prompt}
    [shown] = [m["content"] for m in request.messages if m["role"] == "tool"]
    assert shown.startswith("x" * 1_024)
    assert shown.count("x") < 1_100
    assert "x" * 3_000 in [entry.content for entry in rt.transcript(handle_of(rt, cid))]
    assert "x" * 3_000 in [content for _, content in history_of(rt, cid)]


def test_compact_tool_max_len_is_the_agents(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply(tool_calls=[("read", {})]), "done"])
    agent = attrs.evolve(CRAB, compact_tool_max_len=10)
    rt = runtimes.open(model, agents=[agent], tools=[Tool(lambda: "x" * 1_000, name="read")])
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "read it")
    rt.summarize(cid)
    [shown] = [m["content"] for m in model.requests[-1].messages if m["role"] == "tool"]
    assert shown.startswith("x" * 10)
    assert shown.count("x") < 20


# -- transfer_to -----------------------------------------------------------------------------------


def test_transfer_to_moves_conversations_routers_queued_turns_and_memory(runtimes: Runtimes) -> None:
    model = PuppetModel()
    old, new = runtimes.open(model), runtimes.open()
    tmp = old.get_or_create("crab", "alice")
    gevent.spawn(old.send, tmp, "tmp talk")
    model.asked().answer("tmp answer")
    work = topic(old)
    old.memory.remember("crab", "alice", "colour", "blue")
    handle = handle_of(old, work)
    running, queued = old.submit(work, "one"), old.submit(work, "two")
    asked = model.asked()
    moving = gevent.spawn(old.transfer_to, new)
    gevent.idle()
    assert not moving.ready()
    asked.answer("first")
    assert moving.get() == 2
    assert running.result().text == "first"
    assert queued.result().text == "two"
    assert old.conversations() == []
    assert new.conversations() == [tmp, work]
    assert history_of(new, tmp) == [("user", "tmp talk"), ("assistant", "tmp answer")]
    assert new.get_or_create("crab", "alice") == work
    new.send(work, "three")
    assert [entry.content for entry in new.transcript(handle)] == [
        "one",
        "first",
        "two",
        "two",
        "three",
        "three",
    ]
    assert [entry.name for entry in new.memory.entries("crab", "alice")] == ["work", "colour"]
    assert old.sessions() == []
    assert new.get_or_create("crab", "bob") == 3


# -- resumed_history -------------------------------------------------------------------------------


def test_resumed_history_shows_a_placeholder_and_warns_when_the_archive_is_missing(
    runtimes: Runtimes, caplog: pytest.LogCaptureFixture
) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    rt.send(cid, "hello")
    rt.compact(cid)
    rt.send(cid, "next")
    rt.shutdown()
    with sqlite3.connect(rt.path) as conn:
        conn.execute("DELETE FROM memory_entries WHERE kind = 'archive'")
    conn.close()
    model = ScriptedModel()
    later = runtimes.open(model, path=rt.path)
    with caplog.at_level(logging.WARNING, "palaver"):
        resumed = topic(later)
    assert history_of(later, resumed)[0] == ("user", "[archived context unavailable: work-1]")
    assert "work-1" in caplog.text
    later.send(resumed, "still there?")
    assert model.requests[0].messages[1]["content"] == "[archived context unavailable: work-1]"


# -- write_archive ---------------------------------------------------------------------------------


def test_write_archive_counts_on_and_older_archives_stay_searchable(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["about lobsters", "about oysters"]))
    cid = topic(rt)
    names = []
    for text in ("one", "two"):
        rt.send(cid, text)
        names.append(rt.compact(cid).archive)
    assert names == ["work-1", "work-2"]
    [found] = rt.memory.recall("crab", "alice", "lobsters")
    assert (found.name, found.kind, found.content) == ("work-1", "archive", "about lobsters")


def test_write_archive_counts_canonical_numbers_only(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    topic(rt)
    rt.shutdown()
    with sqlite3.connect(rt.path) as conn:
        for name in ("work-7", "work-02", "work-+11", "work-12x", "work-hard-40", "workshop-50"):
            conn.execute(
                "INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)"
                " VALUES ('crab', 'alice', 'archive', ?, 'old', 1.0)",
                (name,),
            )
    conn.close()
    later = runtimes.open(path=rt.path)
    cid = topic(later)
    later.send(cid, "hello")
    assert later.compact(cid).archive == "work-8"


def test_write_archive_gives_64_compactions_of_one_slug_64_names(runtimes: Runtimes) -> None:
    shared = attrs.evolve(CRAB, memory_scope="agent")
    rt = runtimes.open(agents=[shared])
    ids = [topic(rt, "Same topic", f"sender {n}") for n in range(64)]
    for ticket in [rt.submit(cid, "hello") for cid in ids]:
        ticket.result()
    racers = [gevent.spawn(rt.compact, cid) for cid in ids]
    gevent.joinall(racers, raise_error=True)
    assert {racer.value.archive for racer in racers} == {f"same-topic-{n}" for n in range(1, 65)}


# -- ensure_handle ---------------------------------------------------------------------------------


def test_ensure_handle_only_topic_conversations_are_stored(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    tmp = rt.get_or_create("crab", "alice")
    rt.send(tmp, "hello")
    snapshot = rt.conversation(tmp)
    assert snapshot is not None
    assert snapshot.handle is None
    assert rt.sessions() == []
    handle = handle_of(rt, topic(rt))
    [session] = rt.sessions()
    assert (session.handle, session.topic, session.sender) == (handle, "work", "alice")


def test_ensure_handle_a_tmp_chat_touches_no_storage(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    rt.sessions()  # behind what opening left to the database's thread, the reading of timers
    before = rt.stats().database_jobs
    cid = rt.get_or_create("crab", "alice")
    ticket = rt.submit(cid, "hello", key="k")
    asked = model.asked()
    rt.steer(cid, "more")
    asked.answer(Reply(tool_calls=[("nothing", {})]))
    model.asked().answer()
    ticket.result()
    rt.compact(cid)
    rt.close(cid)
    assert rt.stats().database_jobs == before


# -- finalize_run, persist_messages ----------------------------------------------------------------


def test_finalize_run_stores_the_turn_its_uptime_and_asks_for_a_title(runtimes: Runtimes) -> None:
    clock = ManualClock()

    def answer(_request: object) -> str:
        clock.now += 0.25
        return "ok"

    rt = runtimes.open(
        ScriptedModel(answer, titles=["Crabs at work"]),
        agents=[attrs.evolve(CRAB, auto_title=True)],
        sources=Sources(clock=clock),
    )
    cid = topic(rt)
    result = rt.send(cid, "hello")
    until(lambda: rt.list_active()[0].title)
    [session] = rt.sessions()
    assert (session.uptime_s, session.title, session.entry_count) == (0.25, "Crabs at work", 2)
    assert runtimes.sql(rt, "SELECT id, state, content FROM turns") == [(result.turn_id, "done", "hello")]


def test_persist_messages_never_stores_injected_entries(runtimes: Runtimes) -> None:
    class Hook:
        def before_run(self, *_args: object) -> list[HistoryEntry]:
            return [HistoryEntry("system", "secret of the day")]

    model = ScriptedModel()
    rt = runtimes.open(model, hooks=[Hook()])
    cid = topic(rt)
    rt.send(cid, "hello")
    rt.send(cid, "again")
    assert "secret of the day" in [m["content"] for m in model.requests[1].messages]
    assert [m["content"] for m in model.requests[1].messages].count("secret of the day") == 1
    assert "secret of the day" not in [content for _, content in history_of(rt, cid)]
    assert runtimes.sql(rt, "SELECT count(*) FROM entries WHERE body LIKE '%secret%'") == [(0,)]
    assert len(rt.transcript(handle_of(rt, cid))) == 4


# -- spawn_title_generation ------------------------------------------------------------------------


def test_spawn_title_generation_asks_with_the_first_200_characters_of_each(runtimes: Runtimes) -> None:
    model = ScriptedModel(["b" * 500], titles=['  "Letters of the alphabet"\n'])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, auto_title=True)])
    cid = rt.get_or_create("crab", "alice")
    rt.send(cid, "a" * 500)
    until(lambda: rt.list_active()[0].title)
    assert rt.list_active()[0].title == "Letters of the alphabet"
    request = model.requests[-1]
    said = "".join(str(message["content"]) for message in request.messages)
    assert request.purpose == "title"
    assert "a" * 200 in said
    assert "a" * 201 not in said
    assert "b" * 200 in said
    assert "b" * 201 not in said


# -- stream_to, send_to, guest_stream_to -----------------------------------------------------------


def test_send_to_stream_to_and_guest_stream_to(runtimes: Runtimes) -> None:
    whale = AgentConfig(name="whale", model="w", system_prompt="You are a whale.", auto_title=False)
    model = ScriptedModel(lambda request: f"I am {request.agent}")
    rt = runtimes.open(model, agents=[CRAB, whale])
    cid = topic(rt)
    assert rt.send(cid, "one").text == "I am crab"
    assert list(rt.stream(cid, "two"))[-1].result.text == "I am crab"  # type: ignore[attr-defined]
    assert list(rt.stream(cid, "three", guest="whale"))[-1].result.text == "I am whale"  # type: ignore[attr-defined]
    assert [entry.agent for entry in rt.transcript(handle_of(rt, cid))] == ["", "", "", "", "", "whale"]


# -- switch_topic ----------------------------------------------------------------------------------


def test_switch_topic_needs_a_description_for_a_new_title_only(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    for description in (None, "", "  \n"):
        with pytest.raises(DescriptionRequired, match="work"):
            rt.switch_topic("crab", "alice", "work", description)
    assert rt.sessions() == []
    new = rt.switch_topic("crab", "alice", "work", "what we do")
    assert not new.resumed
    again = rt.switch_topic("crab", "alice", "work")
    assert (again.conversation_id, again.resumed) == (new.conversation_id, True)
    other = rt.switch_topic("crab", "alice", "Work", "titles are exact")
    assert not other.resumed


def test_switch_topic_of_an_unregistered_agent_or_a_bad_title_is_refused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(AgentNotRegistered):
        rt.switch_topic("whale", "alice", "work", "d")
    with pytest.raises(InvalidTitle):
        rt.switch_topic("crab", "alice", " ", "d")


def test_switch_topic_writes_the_description_to_memory_once(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.switch_topic("crab", "alice", "work", "the first words")
    rt.switch_topic("crab", "alice", "work", "other words")
    later = runtimes.reopen(rt)
    later.switch_topic("crab", "alice", "work", "words of tomorrow")
    [entry] = later.memory.entries("crab", "alice")
    assert (entry.kind, entry.name, entry.content) == ("topic", "work", "the first words")


def test_switch_topic_resumes_the_latest_stored_session_of_the_title(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.send(topic(rt), "the older one")
    rt.shutdown()
    with sqlite3.connect(rt.path) as conn:
        conn.execute(
            "INSERT INTO sessions (handle, agent, sender, topic, scope, created_at, updated_at)"
            " VALUES ('newest', 'crab', 'alice', 'work', 'alice', 2.0, 2.0)"
        )
    conn.close()
    later = runtimes.open(path=rt.path)
    outcome = later.switch_topic("crab", "alice", "work")
    assert outcome.resumed
    assert handle_of(later, outcome.conversation_id) == "newest"


def test_switch_topic_by_1000_racing_greenlets_opens_one(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    racers = [gevent.spawn(topic, rt) for _ in range(1_000)]
    gevent.joinall(racers, raise_error=True)
    assert len({racer.value for racer in racers}) == 1
    assert rt.conversation_count() == 1
    assert len(rt.sessions()) == 1


def test_switch_topic_with_and_without_description_at_once_helps_both(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with runtimes.held_database(rt):
        bare = gevent.spawn(rt.switch_topic, "crab", "alice", "work")
        until(rt.conversations)
        described = gevent.spawn(rt.switch_topic, "crab", "alice", "work", "what we do")
        gevent.idle()
    with pytest.raises(DescriptionRequired):
        bare.get()
    outcome = described.get()
    assert rt.conversation_id("crab", "alice") == outcome.conversation_id
    assert rt.conversations() == [outcome.conversation_id]


def test_switch_topic_keeps_each_topics_history_apart(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    for title in ("one", "two"):
        topic(rt, title)
        rt.send(rt.get_or_create("crab", "alice"), f"about {title}")
    assert history_of(rt, topic(rt, "one")) == [("user", "about one"), ("assistant", "about one")]
    assert history_of(rt, topic(rt, "two")) == [("user", "about two"), ("assistant", "about two")]


# -- the model's own tools -------------------------------------------------------------------------


class Caller:
    """A model whose turns make one tool call, the one that it is told to."""

    def __init__(self) -> None:
        self.next: tuple[str, dict[str, object]] = ("", {})
        self.model = ScriptedModel(self._reply)

    def _reply(self, request: ModelRequest) -> Reply:
        if request.messages[-1]["role"] == "tool":
            return Reply("done")
        return Reply(tool_calls=[self.next])

    def call(self, rt: Runtime, cid: int, tool: str, /, **arguments: object) -> str:
        """What the model gets to read when it calls a tool in a turn of `cid`."""
        self.next = (tool, arguments)
        rt.send(cid, f"call {tool}")
        return str(self.model.requests[-1].messages[-1]["content"])


def test_models_tools_are_offered_to_every_agent(runtimes: Runtimes) -> None:
    model = ScriptedModel()
    rt = runtimes.open(model)
    rt.send(rt.get_or_create("crab", "alice"), "hello")
    schemas = {tool["function"]["name"]: tool["function"] for tool in model.requests[0].tools}
    assert sorted(schemas) == ["forget", "recall", "remember", "search_topics", "switch_topic"]
    offered = {name: list(s["parameters"]["properties"]) for name, s in schemas.items()}
    assert offered["search_topics"] == ["query", "limit"]
    assert offered["switch_topic"] == ["title", "description"]
    assert offered["recall"] == ["query", "limit"]
    assert offered["remember"] == ["name", "content", "aliases"]
    assert offered["forget"] == ["name"]
    assert all(schema["description"] for schema in schemas.values())


def test_models_remember_recall_and_forget_work_on_notes(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    cid = rt.get_or_create("crab", "alice")
    caller.call(rt, cid, "remember", name="colour", content="likes blue", aliases=["hue"])
    [note] = rt.memory.entries("crab", "alice", "note")
    assert (note.name, note.content, note.aliases) == ("colour", "likes blue", ("hue",))
    assert "likes blue" in caller.call(rt, cid, "recall", query="hue")
    caller.call(rt, cid, "forget", name="colour")
    assert rt.memory.entries("crab", "alice") == []
    assert "likes blue" not in caller.call(rt, cid, "recall", query="hue")
    assert "no note" in caller.call(rt, cid, "forget", name="colour")


def test_models_recall_reads_all_kinds_and_forget_reaches_notes_only(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    cid = topic(rt, "lobster")
    rt.send(cid, "hello")
    rt.compact(cid)
    rt.memory.remember("crab", "alice", "a note", "lobster too")
    found = caller.call(rt, cid, "recall", query="lobster", limit=10)
    assert all(f'"{kind}"' in found for kind in ("topic", "archive", "note"))
    for name in ("lobster", "lobster-1"):
        assert "no note" in caller.call(rt, cid, "forget", name=name)
    assert len(rt.memory.entries("crab", "alice")) == 3


def test_models_remember_does_not_touch_a_topic_of_the_same_name(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    cid = topic(rt, "work")
    caller.call(rt, cid, "remember", name="work", content="a note")
    kinds = {entry.kind: entry.content for entry in rt.memory.entries("crab", "alice")}
    assert kinds == {"topic": "about work", "note": "a note"}


def test_models_search_topics_and_switch_topic_route_the_next_message(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    tmp = rt.get_or_create("crab", "alice")
    created = caller.call(rt, tmp, "switch_topic", title="tax return", description="forms of 2024")
    assert '"resumed": false' in created or '"resumed":false' in created
    tax = rt.get_or_create("crab", "alice")
    assert tax != tmp
    found = caller.call(rt, tmp, "search_topics", query="forms")
    assert "tax return" in found
    assert "forms of 2024" in found
    rt.close(tax)
    caller.call(rt, tmp, "switch_topic", title="tax return")
    resumed = rt.get_or_create("crab", "alice")
    assert resumed not in (tmp, tax)
    assert rt.list_active()[-1].topic == "tax return"


def test_models_switch_topic_without_a_description_reads_what_is_missing(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    tmp = rt.get_or_create("crab", "alice")
    read = caller.call(rt, tmp, "switch_topic", title="unheard of")
    assert read.startswith("error:")
    assert "description" in read
    assert rt.get_or_create("crab", "alice") == tmp


def test_models_tools_are_scoped_to_the_turns_agent_and_sender(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model, agents=[CRAB, attrs.evolve(CRAB, name="whale")])
    of_bob, of_whale = rt.get_or_create("crab", "bob"), rt.get_or_create("whale", "alice")
    rt.memory.remember("crab", "alice", "colour", "alice likes blue")
    rt.switch_topic("crab", "alice", "private", "alice's own blue")
    for cid in (of_bob, of_whale):
        assert "alice" not in caller.call(rt, cid, "recall", query="alice blue")
        assert "private" not in caller.call(rt, cid, "search_topics", query="private blue")
        caller.call(rt, cid, "forget", name="colour")
        caller.call(rt, cid, "remember", name="colour", content="red")
        assert caller.call(rt, cid, "switch_topic", title="private").startswith("error:")
    assert rt.memory.recall("crab", "alice", "colour")[0].content == "alice likes blue"
    assert rt.memory.recall("crab", "bob", "colour")[0].content == "red"
    assert rt.memory.recall("whale", "alice", "colour")[0].content == "red"


def test_models_tools_take_no_scope_as_an_argument(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model)
    cid = rt.get_or_create("crab", "bob")
    for spoofed in (
        {"sender": "alice"},
        {"agent": "whale"},
        {"scope": "alice"},
        {"call": {"sender": "alice"}},
    ):
        read = caller.call(rt, cid, "remember", name="colour", content="red", **spoofed)
        assert read.startswith("error:")
    assert rt.memory.entries("crab", "alice") == []
    assert rt.memory.entries("crab", "bob") == []


def test_models_tools_share_memory_where_the_agent_says_so(runtimes: Runtimes) -> None:
    caller = Caller()
    rt = runtimes.open(caller.model, agents=[attrs.evolve(CRAB, memory_scope="agent")])
    caller.call(rt, rt.get_or_create("crab", "alice"), "remember", name="colour", content="blue")
    assert "blue" in caller.call(rt, rt.get_or_create("crab", "bob"), "recall", query="colour")


def test_ticket_of_a_steer_takes_on_the_turn_that_it_went_into(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[Tool(lambda: "up", name="look")])
    cid = topic(rt)
    turn: Ticket = rt.submit(cid, "go")
    asked = model.asked()
    steer = rt.steer(cid, "left")
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer()
    assert steer.result() == turn.result()
    assert steer.turn_id == turn.turn_id
    assert runtimes.sql(rt, "SELECT content, turn_id, applied_turn FROM steers") == [
        ("left", turn.turn_id, turn.turn_id)
    ]
