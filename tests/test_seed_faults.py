"""The 16 faults of the seed that PARITY.md lists. Each test fails on the seed's behaviour."""

from __future__ import annotations

import gc
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attrs
import gevent
import pytest
from sqlite_utils import Database
from support import (
    CRAB,
    ManualClock,
    PuppetModel,
    Runtimes,
    handle_of,
    history_of,
    opened_runtimes,  # noqa: F401 - a fixture
    routers_of,
    run_script,
    texts,
    topic,
    until,
)

from palaver import (
    DescriptionRequired,
    HistoryEntry,
    Limits,
    MailboxFull,
    NoActiveTurn,
    Reply,
    ScriptedModel,
    StorageError,
    TextDelta,
    Tool,
    Usage,
)
from persistence.sources import Sources
from persistence.worker import Committer

LOOK = Tool(lambda: "up", name="look")
STORED = pytest.mark.parametrize("stored", [False, True])


class FailingCommitter(Committer):
    """A committer whose commits fail, as on a disk that gives up, from the moment it is told to."""

    failing = False

    def _commit(self, db: Database) -> None:
        if FailingCommitter.failing:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        super()._commit(db)


@pytest.fixture
def disk() -> Iterator[type[FailingCommitter]]:
    yield FailingCommitter
    FailingCommitter.failing = False


def refuse(runtimes: Runtimes, rt: object, what: str) -> None:
    """Let SQLite itself refuse a statement, say `INSERT ON entries`, from now on."""
    runtimes.sql(
        rt,  # type: ignore[arg-type]
        f"CREATE TRIGGER refused BEFORE {what} BEGIN SELECT RAISE(ABORT, 'refused by the test'); END",
    )


# -- 1: steering is a latest-wins slot -------------------------------------------------------------


@STORED
def test_fault_01_of_two_quick_steers_none_is_lost(runtimes: Runtimes, stored: bool) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    turn = rt.submit(cid, "go")
    asked = model.asked()
    steers = [gevent.spawn(rt.steer, cid, f"steer {n}") for n in range(10)]
    gevent.joinall(steers, raise_error=True)
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer("done")
    assert turn.result().text == "done"
    said = [content for role, content in history_of(rt, cid) if role == "user"]
    assert said == ["go", *(f"steer {n}" for n in range(10))]
    assert {steer.value.result().turn_id for steer in steers} == {turn.turn_id}


@STORED
def test_fault_01_a_steer_during_the_last_model_call_becomes_the_next_turn(
    runtimes: Runtimes, stored: bool
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    first, queued = rt.submit(cid, "go"), rt.submit(cid, "later")
    asked = model.asked()
    steers = [rt.steer(cid, "left"), rt.steer(cid, "right")]
    asked.answer("gone")
    assert first.result().text == "gone"
    for reply in ("left it is", "right it is", "at last"):
        model.asked().answer(reply)
    assert [steer.result().text for steer in steers] == ["left it is", "right it is"]
    assert queued.result().text == "at last"
    assert [content for role, content in history_of(rt, cid) if role == "user"] == [
        "go",
        "left",
        "right",
        "later",
    ]


@pytest.mark.parametrize("end", ["error", "cancel"])
@STORED
def test_fault_01_a_steer_of_a_turn_that_fails_becomes_the_next_turn(
    runtimes: Runtimes, stored: bool, end: str
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    rt.submit(cid, "go")
    asked = model.asked()
    steer = rt.steer(cid, "left")
    if end == "error":
        asked.answer(RuntimeError("no more"))
    else:
        assert rt.cancel(cid) is True
    model.asked().answer("left it is")
    assert steer.result().text == "left it is"


def test_fault_01_a_steer_that_becomes_a_turn_is_stored_as_one(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    rt.submit(cid, "go")
    asked = model.asked()
    steer = rt.steer(cid, "left")
    asked.answer("gone")
    model.asked().answer("left it is")
    result = steer.result()
    assert runtimes.sql(rt, "SELECT content, state FROM turns ORDER BY id") == [
        ("go", "done"),
        ("left", "done"),
    ]
    assert runtimes.sql(rt, "SELECT content, applied_turn FROM steers") == [("left", result.turn_id)]


def test_fault_01_a_turn_by_send_can_be_steered(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = rt.get_or_create("crab", "alice")
    sending = gevent.spawn(rt.send, cid, "go")
    asked = model.asked()
    rt.steer(cid, "left")
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer()
    sending.get()
    assert ("user", "left") in history_of(rt, cid)


# -- 2: entries to store are found by a length that injected entries upset --------------------------


def test_fault_02_every_message_is_stored_whatever_number_of_entries_is_injected(runtimes: Runtimes) -> None:
    class Hook:
        counts = [3, 0, 5, 1, 0]

        def before_run(self, *_args: object) -> list[HistoryEntry]:
            return [HistoryEntry("user", f"injected {n}") for n in range(self.counts.pop(0))]

    rt = runtimes.open(hooks=[Hook()])
    cid = topic(rt)
    said = [f"message {n}" for n in range(5)]
    for text in said:
        rt.send(cid, text)
    stored = texts(rt.transcript(handle_of(rt, cid)))
    assert stored == [pair for text in said for pair in (("user", text), ("assistant", text))]
    assert history_of(rt, cid) == stored


# -- 3: a dropped stream is a turn that is never stored ---------------------------------------------


def test_fault_03_a_turn_whose_stream_is_dropped_is_stored_and_its_steering_ends(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    stream = rt.stream(cid, "go")
    asked = model.asked()
    asked.answer(Reply("let me look", tool_calls=[("look", {})]))
    assert any(isinstance(event, TextDelta) for event in stream)
    del stream
    gc.collect()
    model.asked().answer("done")
    until(lambda: rt.list_active()[0].state == "idle")
    assert texts(rt.transcript(handle_of(rt, cid))) == [
        ("user", "go"),
        ("assistant", "let me look"),
        ("tool", "up"),
        ("assistant", "done"),
    ]
    assert runtimes.sql(rt, "SELECT state FROM turns") == [("done",)]
    with pytest.raises(NoActiveTurn):
        rt.steer(cid, "left")


def test_fault_03_a_turn_whose_caller_is_killed_is_stored(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    caller = gevent.spawn(rt.send, cid, "go")
    asked = model.asked()
    caller.kill()
    asked.answer("done")
    until(lambda: rt.list_active()[0].state == "idle")
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "go"), ("assistant", "done")]


# -- 4: storage errors are thrown away -------------------------------------------------------------


def test_fault_04_a_message_that_cannot_be_stored_is_not_accepted(runtimes: Runtimes) -> None:
    model = ScriptedModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    refuse(runtimes, rt, "INSERT ON turns")
    for call in (rt.submit, rt.send, rt.stream):
        with pytest.raises(StorageError, match="refused by the test"):
            call(cid, "hello")
    # A model may be asked while the message is being stored: its answer is thrown away.
    assert history_of(rt, cid) == []
    runtimes.sql(rt, "DROP TRIGGER refused")
    assert rt.send(cid, "hello").text == "hello"
    assert runtimes.sql(rt, "SELECT content, state FROM turns") == [("hello", "done")]


def test_fault_04_a_turn_whose_end_cannot_be_stored_is_not_acknowledged(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    refuse(runtimes, rt, "INSERT ON entries")
    ticket = rt.submit(cid, "hello")
    stream = rt.stream(cid, "again")
    for _ in range(2):
        model.asked().answer("lost")
    with pytest.raises(StorageError, match="refused by the test"):
        ticket.result()
    with pytest.raises(StorageError, match="refused by the test"):
        list(stream)
    assert history_of(rt, cid) == []
    assert rt.transcript(handle_of(rt, cid)) == []
    runtimes.sql(rt, "DROP TRIGGER refused")
    ticket = rt.submit(cid, "better")
    model.asked().answer("better")
    assert ticket.result().text == "better"
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "better"), ("assistant", "better")]


def test_fault_04_a_step_that_cannot_be_stored_ends_the_turn_with_the_error(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    ticket = rt.submit(cid, "go")
    asked = model.asked()
    refuse(runtimes, rt, 'INSERT ON entries WHEN new.body LIKE \'%"role":"tool"%\'')
    asked.answer(Reply(tool_calls=[("look", {})]))
    result = ticket.result()
    assert result.stop_reason == "error"
    assert "refused by the test" in (result.error or "")
    assert history_of(rt, cid) == texts(rt.transcript(handle_of(rt, cid))) == [("user", "go")]


def test_fault_04_a_steer_that_cannot_be_stored_is_refused_and_not_applied(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, tools=[LOOK])
    cid = topic(rt)
    ticket = rt.submit(cid, "go")
    asked = model.asked()
    refuse(runtimes, rt, "INSERT ON steers")
    with pytest.raises(StorageError, match="refused by the test"):
        rt.steer(cid, "left")
    asked.answer(Reply(tool_calls=[("look", {})]))
    model.asked().answer()
    ticket.result()
    assert ("user", "left") not in history_of(rt, cid)


def test_fault_04_a_topic_that_cannot_be_stored_is_an_error_for_everybody_who_waits(
    runtimes: Runtimes,
) -> None:
    rt = runtimes.open()
    refuse(runtimes, rt, "INSERT ON sessions")
    waiting = [gevent.spawn(topic, rt) for _ in range(10)]
    gevent.joinall(waiting)
    assert [type(one.exception) for one in waiting] == [StorageError] * 10
    assert rt.conversations() == []
    assert routers_of(rt) == {}


def test_fault_04_nothing_is_acknowledged_after_a_commit_that_failed(
    runtimes: Runtimes, disk: type[FailingCommitter]
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, committer=disk)
    cid = topic(rt)
    running = rt.submit(cid, "one")
    asked = model.asked()
    disk.failing = True
    asked.answer("done")
    with pytest.raises(StorageError, match="disk I/O error"):
        running.result()
    disk.failing = False  # what the file holds is not certain: it stays refused
    with pytest.raises(StorageError, match="disk I/O error"):
        rt.submit(cid, "two")
    with pytest.raises(StorageError):
        rt.memory.remember("crab", "alice", "n", "c")
    assert "disk I/O error" in (rt.stats().database_failed or "")


# -- 5: after a compaction in a turn, earlier messages are stored nowhere ---------------------------


def test_fault_05_two_compactions_in_one_turn_lose_no_entry_and_no_archive(runtimes: Runtimes) -> None:
    big, small = Usage(900, 100, 1_000), Usage(5, 5, 10)
    model = ScriptedModel(
        [
            Reply("one", tool_calls=[("look", {})], usage=big),
            Reply("two", tool_calls=[("look", {})], usage=big),
            Reply("three", usage=small),
        ],
        summaries=["summary 1", "summary 2"],
    )
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)], tools=[LOOK])
    cid = topic(rt)
    assert rt.send(cid, "go").text == "three"
    assert texts(rt.transcript(handle_of(rt, cid))) == [
        ("user", "go"),
        ("assistant", "one"),
        ("tool", "up"),
        ("assistant", "two"),
        ("tool", "up"),
        ("assistant", "three"),
    ]
    archives = rt.memory.entries("crab", "alice", "archive")
    assert [(entry.name, entry.content) for entry in archives] == [
        ("work-1", "summary 1"),
        ("work-2", "summary 2"),
    ]
    assert history_of(rt, cid) == [("user", "summary 2"), ("assistant", "three")]
    later = runtimes.reopen(rt)
    assert history_of(later, topic(later)) == [("user", "summary 2"), ("assistant", "three")]


# -- 6: a failed archive write leaves memory compacted and disk not ---------------------------------


def test_fault_06_a_failed_archive_write_changes_neither_memory_nor_disk(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["first", "second"]))
    cid = topic(rt)
    rt.send(cid, "hello")
    refuse(runtimes, rt, "INSERT ON memory_entries WHEN new.kind = 'archive'")
    with pytest.raises(StorageError, match="refused by the test"):
        rt.compact(cid)
    before = [("user", "hello"), ("assistant", "hello")]
    assert history_of(rt, cid) == before
    assert rt.sessions()[0].archive is None
    assert runtimes.sql(rt, "SELECT count(*) FROM compactions") == [(0,)]
    runtimes.sql(rt, "DROP TRIGGER refused")
    later = runtimes.reopen(rt)
    assert history_of(later, topic(later)) == before


def test_fault_06_a_failed_marker_takes_the_archive_with_it(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(summaries=["first", "second"]))
    cid = topic(rt)
    rt.send(cid, "hello")
    refuse(runtimes, rt, "INSERT ON compactions")
    with pytest.raises(StorageError, match="refused by the test"):
        rt.compact(cid)
    assert rt.memory.entries("crab", "alice", "archive") == []
    runtimes.sql(rt, "DROP TRIGGER refused")
    assert rt.compact(cid).summary == "second"
    assert history_of(rt, cid) == [("user", "second")]
    rt.send(cid, "next")
    assert len(rt.transcript(handle_of(rt, cid))) == 4


def test_fault_06_an_automatic_compaction_that_is_not_stored_changes_nothing(runtimes: Runtimes) -> None:
    model = ScriptedModel([Reply("one", tool_calls=[("look", {})], usage=Usage(9, 1, 1_000)), "two"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)], tools=[LOOK])
    cid = topic(rt)
    refuse(runtimes, rt, "INSERT ON memory_entries WHEN new.kind = 'archive'")
    assert rt.send(cid, "go").text == "two"
    whole = [("user", "go"), ("assistant", "one"), ("tool", "up"), ("assistant", "two")]
    assert history_of(rt, cid) == texts(rt.transcript(handle_of(rt, cid))) == whole


# -- 7: compaction after the final answer asks the model again --------------------------------------


@STORED
def test_fault_07_compaction_after_the_final_answer_does_not_ask_again(
    runtimes: Runtimes, stored: bool
) -> None:
    model = ScriptedModel([Reply("the answer", usage=Usage(900, 100, 1_000))], summaries=["in short"])
    rt = runtimes.open(model, agents=[attrs.evolve(CRAB, compact_threshold=500)])
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    result = rt.send(cid, "go")
    assert (result.text, result.stop_reason, result.steps) == ("the answer", "text_response", 1)
    assert [request.purpose for request in model.requests] == ["turn", "compact"]
    assert history_of(rt, cid) == [("user", "in short")]


# -- 8: an id is published before its conversation exists -------------------------------------------


def test_fault_08_whoever_gets_an_id_can_use_it_at_once(runtimes: Runtimes) -> None:
    rt = runtimes.open()

    def race(number: int) -> str:
        cid = rt.get_or_create("crab", f"sender {number % 20}")
        assert rt.conversation(cid) is not None
        return rt.send(cid, f"hello {number}").text

    racers = [gevent.spawn(race, number) for number in range(200)]
    gevent.joinall(racers, raise_error=True)
    assert [racer.value for racer in racers] == [f"hello {number}" for number in range(200)]


def test_fault_08_the_id_of_a_topic_that_is_opening_can_be_used_at_once(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with runtimes.held_database(rt):
        opening = gevent.spawn(topic, rt)
        until(lambda: rt.conversation_id("crab", "alice"))
        cid = rt.get_or_create("crab", "alice")
        assert rt.conversation(cid) is not None
        sending = gevent.spawn(rt.send, cid, "early")
        gevent.idle()
    assert sending.get().text == "early"
    assert opening.get() == cid
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", "early"), ("assistant", "early")]


# -- 9: a failed topic switch leaves no active topic ------------------------------------------------


def test_fault_09_a_failed_switch_leaves_the_topic_before_active(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    work = topic(rt)
    with pytest.raises(DescriptionRequired):
        rt.switch_topic("crab", "alice", "play")
    assert rt.get_or_create("crab", "alice") == work
    refuse(runtimes, rt, "INSERT ON sessions")
    with pytest.raises(StorageError):
        rt.switch_topic("crab", "alice", "play", "fun")
    assert rt.get_or_create("crab", "alice") == work
    assert rt.conversations() == [work]


def test_fault_09_a_failed_switch_does_not_undo_a_switch_made_since(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    topic(rt, "before")
    since = topic(rt, "since")
    topic(rt, "before")
    with runtimes.held_database(rt):
        failing = gevent.spawn(rt.switch_topic, "crab", "alice", "unknown")
        until(lambda: rt.conversation_count() == 3)
        topic(rt, "since")
    with pytest.raises(DescriptionRequired):
        failing.get()
    assert rt.get_or_create("crab", "alice") == since


# -- 10: listings wait, lookups scan ---------------------------------------------------------------


def test_fault_10_listing_does_not_wait_behind_a_turn_nor_behind_the_database(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    rt.submit(cid, "slow")
    model.asked()
    with runtimes.held_database(rt):
        gevent.spawn(rt.submit, cid, "not stored yet")
        gevent.idle()
        assert [info.state for info in rt.list_active()] == ["running"]
        assert rt.conversation_id("crab", "alice") == cid
        snapshot = rt.conversation(cid)
        assert snapshot is not None
        assert snapshot.state == "running"
        assert rt.stats().running == 1


def test_fault_10_finding_a_stored_topic_reads_no_other_session(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.close(topic(rt))
    ran: list[str] = []
    worker = runtimes.worker(rt)
    worker.call(lambda db: db.conn.set_trace_callback(ran.append))
    rt.switch_topic("crab", "alice", "work")
    worker.call(lambda db: db.conn.set_trace_callback(None))
    lookups = [sql for sql in ran if re.match(r"\s*SELECT", sql) and "sessions" in sql]
    assert lookups
    for sql in lookups:
        plan = [str(row[-1]) for row in runtimes.sql(rt, f"EXPLAIN QUERY PLAN {sql}")]
        assert not [step for step in plan if step.startswith("SCAN")], plan


# -- 11: transfer_to forgets the routers -----------------------------------------------------------


def test_fault_11_transfer_to_moves_the_routers_too(runtimes: Runtimes) -> None:
    old, new = runtimes.open(), runtimes.open()
    tmp = old.get_or_create("crab", "alice")
    one, two = topic(old, "one"), topic(old, "two")
    assert old.transfer_to(new) == 3
    assert new.conversation_id("crab", "alice") == two
    assert new.switch_topic("crab", "alice", "one").conversation_id == one
    new.close(one)
    new.close(two)
    assert new.get_or_create("crab", "alice") == tmp


# -- 12: topic entries are shared by all senders ----------------------------------------------------


def test_fault_12_every_sender_has_topics_and_notes_of_their_own(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    rt.memory.remember("crab", "alice", "work", "a note of the same name")
    rt.switch_topic("crab", "alice", "work", "alice's own words")
    rt.switch_topic("crab", "bob", "work", "bob's own words")
    assert [entry.content for entry in rt.memory.search_topics("crab", "alice", "work")] == [
        "alice's own words"
    ]
    assert [entry.content for entry in rt.memory.search_topics("crab", "bob", "work")] == ["bob's own words"]
    assert [entry.content for entry in rt.memory.entries("crab", "alice", "note")] == [
        "a note of the same name"
    ]


# -- 13: uptime counts whole seconds ---------------------------------------------------------------


@STORED
def test_fault_13_turns_shorter_than_a_second_add_to_the_uptime(runtimes: Runtimes, stored: bool) -> None:
    clock = ManualClock()

    def answer(_request: object) -> str:
        clock.now += 0.125
        return "ok"

    rt = runtimes.open(ScriptedModel(answer), sources=Sources(clock=clock))
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    for _ in range(5):
        rt.send(cid, "hello")
    snapshot = rt.conversation(cid)
    assert snapshot is not None
    assert snapshot.uptime_s == 0.625
    if stored:
        assert rt.sessions()[0].uptime_s == 0.625


# -- 14: everything accepted but not finished dies with the process ---------------------------------

_KILLED = """
from gevent import monkey
monkey.patch_all()
import os, sys
from gevent.event import Event
from palaver import AgentConfig, Runtime

class Stuck:
    began = Event()
    def stream(self, request):
        Stuck.began.set()
        Event().wait()
        yield

rt = Runtime.open(sys.argv[1], Stuck())
rt.add_agent(AgentConfig(name="crab"))
cid = rt.switch_topic("crab", "alice", "work", "d").conversation_id
rt.submit(cid, "running", key="k")
Stuck.began.wait()
rt.steer(cid, "a steer")
rt.submit(cid, "queued")
os._exit(9)
"""


def test_fault_14_what_was_accepted_is_in_the_journal_after_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    died = run_script(_KILLED, path)
    assert died.returncode == 9, died.stderr
    conn = sqlite3.connect(path)
    turns = conn.execute("SELECT content, state, key FROM turns ORDER BY id").fetchall()
    assert turns == [("running", "running", "k"), ("queued", "queued", None)]
    assert conn.execute("SELECT content, applied_turn FROM steers").fetchall() == [("a steer", None)]
    conn.close()


# -- 15: queues are unbounded, turns cannot be cancelled --------------------------------------------


@STORED
def test_fault_15_a_queue_is_bounded_and_what_is_refused_is_not_stored(
    runtimes: Runtimes, stored: bool
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, limits=Limits(queued_per_conversation=3))
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    tickets = [rt.submit(cid, "running")]
    asked = model.asked()
    tickets += [rt.submit(cid, f"queued {n}") for n in range(3)]
    for call in (rt.submit, rt.send, rt.stream):
        with pytest.raises(MailboxFull, match="queued_per_conversation"):
            call(cid, "one too many")
    with pytest.raises(MailboxFull):
        rt.steer(cid, "one too many")
    asked.answer()
    for _ in range(3):
        model.asked().answer()
    assert {ticket.result().stop_reason for ticket in tickets} == {"text_response"}
    assert "one too many" not in [content for _, content in history_of(rt, cid)]
    if stored:
        assert runtimes.sql(rt, "SELECT count(*) FROM turns") == [(4,)]
        assert runtimes.sql(rt, "SELECT count(*) FROM steers") == [(0,)]


def test_fault_15_steers_that_wait_count_in_the_bound(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, limits=Limits(queued_per_conversation=3))
    cid = rt.get_or_create("crab", "alice")
    rt.submit(cid, "running")
    model.asked()
    for n in range(3):
        rt.steer(cid, f"steer {n}")
    with pytest.raises(MailboxFull):
        rt.steer(cid, "one too many")
    with pytest.raises(MailboxFull):
        rt.submit(cid, "one too many")


def test_fault_15_a_sender_and_the_whole_runtime_are_bounded(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model, limits=Limits(queued_per_sender=3, queued_total=5))
    alice = [rt.get_or_create("crab", "alice"), *(topic(rt, title) for title in ("one", "two"))]
    tickets = [rt.submit(cid, "hello") for cid in alice]
    with pytest.raises(MailboxFull, match="queued_per_sender"):
        rt.submit(alice[0], "one too many")
    bob, carol = rt.get_or_create("crab", "bob"), rt.get_or_create("crab", "carol")
    tickets += [rt.submit(bob, "hello"), rt.submit(carol, "hello")]
    with pytest.raises(MailboxFull, match="queued_total"):
        rt.submit(carol, "one too many")
    for _ in tickets:
        model.asked().answer()
    for ticket in tickets:
        ticket.result()
    for cid in (*alice, bob):  # what is done counts no more
        tickets.append(rt.submit(cid, "again"))
        model.asked().answer()
        tickets[-1].result()


@STORED
def test_fault_15_a_running_turn_can_be_cancelled_and_its_model_call_is_closed(
    runtimes: Runtimes, stored: bool
) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt) if stored else rt.get_or_create("crab", "alice")
    assert rt.cancel(cid) is False
    running, queued = rt.submit(cid, "one"), rt.submit(cid, "two")
    asked = model.asked()
    assert rt.cancel(cid) is True
    assert asked.closed.is_set()
    assert running.result().stop_reason == "cancelled"
    model.asked().answer("two it is")
    assert queued.result().text == "two it is"


# -- 16: a slug can be empty -----------------------------------------------------------------------


@pytest.mark.parametrize("title", ["!!!", "🦀", "___", "- -"])
def test_fault_16_an_archive_always_has_a_name(runtimes: Runtimes, title: str) -> None:
    rt = runtimes.open()
    cid = topic(rt, title)
    rt.send(cid, "hello")
    assert rt.compact(cid).archive == "topic-1"
