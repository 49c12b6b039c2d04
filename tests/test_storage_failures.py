"""Every database write failing once, or for good: nothing is acknowledged that is not stored."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from support import until
from turns_support import (
    AGENT,
    HeldModel,
    all_states,
    assert_at_rest,
    assert_memory_is_disk,
    assert_sound,
    deadline,
    in_file,
    kinds,
    let_run,
    race,
    runtime,
    said,
    services,
    settled,
    stored_states,
)

from actors.bell import bell
from palaver import (
    AgentConfig,
    AskTimeout,
    CompactionSkipped,
    ConversationClosed,
    ConversationNotFound,
    Limits,
    MailboxFull,
    NoActiveTurn,
    Reply,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
    StorageError,
    Ticket,
    TurnResult,
)
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence import memories, sessions, turns
from persistence.committer import Committer, Item
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from persistence.worker import DatabaseWorker
from persistence.writes import WriteSet

WRITING = (sessions.store_compaction, sessions.set_title, memories.remember, turns.accept_keyed)


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


def disk_full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def io_error() -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


class FailingCommitter(Committer):
    """A committer whose commit fails while the chosen work is in the batch: once, or for good."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.writes = 0  # how many pieces of work that write came by
        self.failed_at: list[int] = []
        self._choose: Callable[[int, Any], bool] | None = None
        self._error = disk_full
        self._numbers: dict[Item, int] = {}
        self._batch: Sequence[Item] = ()

    def fail_once(self, which: Callable[[Any], bool]) -> None:
        """Let the next work that `which` is true of fail, alone."""
        self._choose = lambda _number, work: which(work)

    def fail_number(self, number: int) -> None:
        """Let the write of this number fail, alone."""
        self._choose = lambda found, _work: found == number

    def fail_from(self, number: int) -> None:
        """Let every commit from this write on fail as a broken disk does."""
        self._error = io_error
        self._choose = lambda found, _work: found >= number

    def _run(self, batch: Sequence[Item]) -> None:
        for item in batch:
            if item not in self._numbers and writes(item.work):
                self._numbers[item] = self.writes
                self.writes += 1
        self._batch = batch
        super()._run(batch)

    def _commit(self, db: Any) -> None:
        chosen = [i for i in self._batch if i in self._numbers and self._chosen(self._numbers[i], i.work)]
        if chosen:
            self.failed_at.append(self._numbers[chosen[0]])
            if len(self._batch) == 1 and self._error is disk_full:
                self._choose = None
            raise self._error()
        super()._commit(db)

    def _chosen(self, number: int, work: Any) -> bool:
        return self._choose is not None and self._choose(number, work)


def writes(work: Any) -> bool:
    """Whether a piece of database work changes anything."""
    return isinstance(work, WriteSet) or is_job(work, *WRITING) or opens(work)


def opens(work: Any) -> bool:
    """Whether this finds or makes the session of a topic."""
    return isinstance(work, partial) and {"topic", "description"} <= set(work.keywords)


def is_job(work: Any, *functions: Callable[..., Any]) -> bool:
    return isinstance(work, partial) and work.func in functions


def accepts(work: Any) -> bool:
    return isinstance(work, WriteSet) and bool(work.new_turns) and not work.turn_updates


def takes_message(work: Any) -> bool:
    """Accepts one, and may store the end of its turn too, if that was as quick."""
    return isinstance(work, WriteSet) and bool(work.new_turns)


def accepts_steer(work: Any) -> bool:
    return isinstance(work, WriteSet) and bool(work.new_steers)


def starts(work: Any) -> bool:
    return isinstance(work, WriteSet) and any(update.state == "running" for update in work.turn_updates)


def stores_step(work: Any) -> bool:
    return isinstance(work, WriteSet) and bool(work.entries) and not work.turn_updates


def ends(work: Any) -> bool:
    return isinstance(work, WriteSet) and any(update.result is not None for update in work.turn_updates)


def opened(path: Path, model: Any = None, *agents: AgentConfig, **options: Any) -> Any:
    """(runtime context, its committer), on the database thread."""
    committer = FailingCommitter(path)
    worker = DatabaseWorker(path, notify=bell(), committer=committer)
    return runtime(path, model, *agents, worker=worker, **options), committer


def topic(rt: Runtime, title: str = "auth") -> tuple[int, str]:
    cid = rt.switch_topic(AGENT, "alice", title, "d").conversation_id
    return cid, rt.conversation(cid).handle  # type: ignore[union-attr,return-value]


def count() -> str:
    return "counted"


# -- each kind of write, once --------------------------------------------------------------------------


def test_a_message_that_could_not_be_stored_is_refused_and_the_others_run(tmp_path: Path) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        cid, handle = topic(rt)
        rt.send(cid, "before")
        committer.fail_once(lambda work: accepts(work) and work.new_turns[0].content == "lost")
        calls = [partial(rt.send, cid, text) for text in ("one", "lost", "two")]
        outcomes = race(calls)
        assert kinds(outcomes) == {"text_response": 2, "StorageError": 1}
        assert isinstance(outcomes[1], StorageError)
        assert said(rt.transcript(handle)) == ["before", "one", "two"]
        assert set(stored_states(rt).values()) == {"done"}
        assert rt.send(cid, "lost").text == "lost"
        assert_memory_is_disk(rt)


def test_a_submit_that_could_not_be_stored_raises_and_leaves_no_turn(tmp_path: Path) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        cid, _ = topic(rt)
        for call in (rt.submit, rt.stream, rt.send):
            committer.fail_once(takes_message)
            with pytest.raises(StorageError, match="room"):
                call(cid, "lost")
            committer.fail_once(lambda work: is_job(work, turns.accept_keyed))
            with pytest.raises(StorageError):
                call(cid, "lost", key="k")
        assert stored_states(rt) == {}
        assert rt.send(cid, "lost", key="k").text == "lost"


def test_a_steer_that_could_not_be_stored_is_refused_and_the_turn_goes_on(tmp_path: Path) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model, tools=[count])
    with opening as rt:
        cid, handle = topic(rt)
        ticket = rt.submit(cid, "begin")
        held = model.next()
        committer.fail_once(accepts_steer)
        with pytest.raises(StorageError):
            rt.steer(cid, "lost")
        kept = rt.steer(cid, "kept")
        held.say(tool_calls=[("count", {})])
        model.next().say("done")
        assert ticket.result() == kept.result()
        assert said(rt.transcript(handle)) == ["begin", "kept"]
        assert_memory_is_disk(rt)


def test_a_step_that_could_not_be_stored_ends_its_turn_and_is_nowhere(tmp_path: Path) -> None:
    model = ScriptedModel(
        [Reply(tool_calls=[("count", {})]), Reply(tool_calls=[("count", {})]), "next", "never asked"]
    )
    opening, committer = opened(tmp_path / "a.db", model, tools=[count])
    with opening as rt:
        cid, handle = topic(rt)
        committer.fail_once(lambda work: stores_step(work) and len(work.entries) == 2)  # the second step
        result = rt.send(cid, "go")
        assert result.stop_reason == "error"
        assert "room" in (result.error or "")
        roles = [entry.role for entry in rt.transcript(handle)]
        assert roles == ["user", "assistant", "tool"], "the first step stays, the second is nowhere"
        assert_memory_is_disk(rt)
        assert rt.send(cid, "go on").text == "next"
        assert len(model.requests) == 3
        assert [m["role"] for m in model.requests[2].messages] == ["user", "assistant", "tool", "user"]


def test_the_message_of_a_turn_whose_first_step_is_lost_is_kept(tmp_path: Path) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model, tools=[count])
    with opening as rt:
        cid, handle = topic(rt)
        ticket = rt.submit(cid, "go")
        held = model.next()
        held.say(tool_calls=[("count", {})])
        held = model.next()
        committer.fail_once(stores_step)
        steer = rt.steer(cid, "steered")
        held.say(tool_calls=[("count", {})])
        model_next = gevent.spawn(model.next)
        assert ticket.result().stop_reason == "error"
        model_next.kill()
        if not steer.done:
            model.next().say("took the steer")
        steer.result()
        assert said(rt.transcript(handle)) == ["go", "steered"]
        assert_memory_is_disk(rt)


def test_an_end_that_could_not_be_stored_is_no_result(tmp_path: Path) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model)
    with opening as rt:
        cid, handle = topic(rt)
        answer(rt, cid, model, "before")
        committer.fail_once(ends)
        ticket = rt.submit(cid, "lost")
        model.next().say("lost")
        events = ticket.events()
        with pytest.raises(StorageError):
            ticket.result()
        with pytest.raises(StorageError):
            list(events)
        assert ticket.state == "failed"
        assert said(rt.transcript(handle)) == ["before"]
        assert_memory_is_disk(rt)
        assert answer(rt, cid, model, "after").text == "after"
        assert said(rt.transcript(handle), "assistant") == ["before", "after"]


def answer(rt: Runtime, cid: int, model: HeldModel, text: str) -> TurnResult:
    """The result of a turn that takes a while, and says what it was sent."""
    ticket = rt.submit(cid, text)
    model.next().say(text)
    return ticket.result()


def test_a_turn_that_ends_while_it_is_being_stored_is_stored_with_its_message_or_not_at_all(
    tmp_path: Path,
) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        cid, handle = topic(rt)
        rt.send(cid, "before")
        written = committer.writes
        for call in (rt.submit, rt.stream, rt.send):
            committer.fail_once(ends)
            with pytest.raises(StorageError, match="room"):
                call(cid, "lost")
        assert committer.writes == written + 3
        assert [*stored_states(rt).values()] == ["done"]
        assert said(rt.transcript(handle)) == ["before"]
        assert rt.tickets(cid) == []
        assert_memory_is_disk(rt)
        assert rt.send(cid, "after").text == "after"


def test_steers_left_over_by_an_end_that_could_not_be_stored_hear_of_it(tmp_path: Path) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model)
    with opening as rt:
        cid, _ = topic(rt)
        ticket = rt.submit(cid, "begin")
        held = model.next()
        steers = [rt.steer(cid, "s0"), rt.steer(cid, "s1")]
        queued = rt.submit(cid, "queued")
        committer.fail_once(ends)
        held.say("lost")
        model.next().say("fine")
        assert kinds(settled([ticket, *steers])) == {"StorageError": 3}
        assert queued.result().text == "fine"
        assert_memory_is_disk(rt)


def test_a_queued_turn_whose_beginning_cannot_be_stored_fails_before_a_model_is_asked(tmp_path: Path) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model)
    with opening as rt:
        cid, _ = topic(rt)
        tickets = [rt.submit(cid, content) for content in ("one", "two", "three")]
        committer.fail_once(starts)
        model.next().say("1")
        model.next().say("3")
        assert [result.stop_reason for result in settled(tickets)] == [
            "text_response",
            "error",
            "text_response",
        ]
        assert committer.failed_at
        assert model.idle
        assert list(stored_states(rt).values()) == ["done", "failed", "done"]


def test_a_requested_compaction_that_could_not_be_stored_changes_nothing(tmp_path: Path) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        cid, handle = topic(rt)
        rt.send(cid, "hello")
        before = rt.conversation(cid).history  # type: ignore[union-attr]
        committer.fail_once(lambda work: is_job(work, sessions.store_compaction))
        with pytest.raises(StorageError):
            rt.compact(cid)
        assert rt.conversation(cid).history == before  # type: ignore[union-attr]
        assert rt.memory.entries(AGENT, "alice", "archive") == []
        assert rt.sessions()[0].archive is None
        outcome = rt.compact(cid)
        assert outcome.archive is not None
        assert rt.sessions()[0].archive == outcome.archive
        assert said(rt.transcript(handle)) == ["hello"]
        assert_memory_is_disk(rt)


def test_an_automatic_compaction_that_could_not_be_stored_is_skipped_and_the_answer_stays(
    tmp_path: Path,
) -> None:
    config = AgentConfig(name=AGENT, compact_threshold=1)
    opening, committer = opened(tmp_path / "a.db", None, config)
    with opening as rt:
        cid, _ = topic(rt)
        committer.fail_once(lambda work: is_job(work, sessions.store_compaction))
        seen = list(rt.stream(cid, "a long message"))
        assert any(isinstance(event, CompactionSkipped) for event in seen)
        assert seen[-1].result.text == "a long message"  # type: ignore[attr-defined]
        assert len(rt.conversation(cid).history) == 2  # type: ignore[union-attr]
        assert_memory_is_disk(rt)
        rt.send(cid, "another long message")
        assert len(rt.conversation(cid).history) == 1  # type: ignore[union-attr]
        assert_memory_is_disk(rt)


def test_a_topic_that_could_not_be_stored_fails_all_who_wait_and_the_one_before_stays(tmp_path: Path) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        before, _ = topic(rt, "before")
        committer.fail_once(opens)
        outcomes = race([partial(rt.switch_topic, AGENT, "alice", "new", "d")] * 20)
        assert kinds(outcomes) == {"StorageError": 20}
        assert rt.conversation_id(AGENT, "alice") == before
        assert rt.conversations() == [before]
        assert rt.memory.entries(AGENT, "alice", "topic")[0].name == "before"
        cid, _ = topic(rt, "new")
        assert rt.send(cid, "hello").text == "hello"
        assert len(rt.sessions()) == 2


def test_a_note_that_could_not_be_stored_is_not_remembered(tmp_path: Path) -> None:
    opening, committer = opened(tmp_path / "a.db")
    with opening as rt:
        committer.fail_once(lambda work: is_job(work, memories.remember))
        with pytest.raises(StorageError):
            rt.memory.remember(AGENT, "alice", "shoe size", "43")
        assert rt.memory.entries(AGENT, "alice") == []
        rt.memory.remember(AGENT, "alice", "shoe size", "44")
        assert [entry.content for entry in rt.memory.recall(AGENT, "alice", "shoe")] == ["44"]


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_close_whose_writes_fail_still_ends(tmp_path: Path, mode: str) -> None:
    model = HeldModel()
    opening, committer = opened(tmp_path / "a.db", model)
    with opening as rt:
        cid, handle = topic(rt)
        tickets = [rt.submit(cid, "runs"), rt.submit(cid, "waits")]
        held = model.next()
        committer.fail_once(ends)  # the queued turn's, which the close ends
        closing = gevent.spawn(rt.close, cid, mode=mode)
        let_run()
        held.say("done")
        assert closing.get() is True
        assert isinstance(settled(tickets)[1], StorageError)
        again = rt.load(handle)
        model_next = gevent.spawn(model.next)
        ticket = rt.submit(again, "after")
        while not ticket.done:
            if model_next.ready():
                model_next.get().say("fine")
                model_next = gevent.spawn(model.next)
            gevent.sleep(0)
        model_next.kill()
        assert ticket.result().text == "fine"


# -- every write of a workload, one after the other, on virtual time ------------------------------------


class Workload:
    """A little of everything, tolerant of storage errors; it keeps what it was told."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self.tickets: list[Ticket] = []
        self.outcomes: list[Any] = []

    def run(self) -> None:
        rt = self.rt
        self._open()
        self._keep(lambda: rt.submit(self._cid(), "one"))
        wait(0.5)
        self._keep(lambda: rt.steer(self._cid(), "steered"))
        self._keep(lambda: rt.submit(self._cid(), "two"))
        self._settle()
        self._try(lambda: rt.compact(self._cid()))
        self._keep(lambda: rt.submit(self._cid(), "slow, cancelled", key="k"))
        wait(0.5)
        self._try(lambda: rt.cancel(self._cid()))
        self._keep(lambda: rt.submit(self._cid(), "slow, steered to the end"))
        wait(0.5)
        self._keep(lambda: rt.steer(self._cid(), "left over"))
        self._keep(lambda: rt.submit(self._cid(), "urgent", on_busy="interrupt"))
        self._try(lambda: rt.memory.remember(AGENT, "alice", "note", "text"))
        wait(20)
        self._keep(lambda: rt.submit(self._cid(), "slow, the last before the close"))
        self._keep(lambda: rt.submit(self._cid(), "never runs"))
        self._try(lambda: rt.close(self._cid()))
        self._open()
        self._keep(lambda: rt.submit(self._cid(), "again"))
        self._settle()

    def _open(self) -> None:
        self._try(lambda: self.rt.switch_topic(AGENT, "alice", "auth", "d"))

    def _cid(self) -> int:
        return self.rt.get_or_create(AGENT, "alice")

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            outcome = call()
        except (StorageError, ConversationClosed, ConversationNotFound, NoActiveTurn) as error:
            outcome = error
        self.outcomes.append(outcome)
        return outcome

    def _keep(self, call: Callable[[], Ticket]) -> None:
        ticket = self._try(call)
        if isinstance(ticket, Ticket):
            self.tickets.append(ticket)

    def _settle(self) -> None:
        for ticket in self.tickets:
            self._try(ticket.result)


def wait(seconds: float) -> None:
    Signal().wait(seconds)


def work() -> str:
    wait(1)
    return "worked"


def answers(request: Any) -> Reply:
    last = request.messages[-1]
    if last["role"] == "user" and last["content"] == "one":
        return Reply(tool_calls=[("work", {})])
    slow = str(last["content"]).startswith("slow")
    return Reply(f"re: {last['content']}", delay_s=5.0 if slow else 0.0)


def simulated(
    arm: Callable[[FailingCommitter], None],
    path: Path | str,
    check: Callable[[Workload], None],
    seed: int = 0,
) -> FailingCommitter:
    """Run the workload with a committer that `arm` has told where to fail."""
    committer = FailingCommitter(path)
    arm(committer)

    def schedule(seconds: float, function: Callable[[], None]) -> None:
        gevent.spawn_later(seconds, function)

    def body() -> None:
        worker = InlineWorker(path, schedule=schedule, commit_latency=lambda: 0.01, committer=committer)
        model = ScriptedModel(answers, sleep=wait, keep_requests=0)
        sources = seeded_sources(VirtualClock(), seed)
        rt = Runtime.open(path, model, sources=sources, worker=worker, tools=[work])
        rt.add_agent(AgentConfig(name=AGENT))
        load = Workload(rt)
        load.run()
        check(load)
        rt.shutdown()

    run_virtual(body, rng=random.Random(seed) if seed else None)
    return committer


def nothing_is_false(load: Workload) -> None:
    """What was answered is stored; what is stored and what is live are the same; it all works again."""
    rt = load.rt
    for ticket in load.tickets:
        assert ticket.done
    assert_at_rest(rt)
    assert_memory_is_disk(rt)
    states = stored_states(rt)
    topic_ids = {s.id for s in services(rt).directory.conversations.values() if s.topic is not None}
    contents: list[str] = [e.content for s in rt.sessions() for e in rt.transcript(s.handle)]
    for ticket in load.tickets:
        outcome = load.outcomes and settled([ticket])[0]
        if isinstance(outcome, TurnResult) and outcome.turn_id in states:
            assert states[outcome.turn_id] == ticket.state
            if outcome.stop_reason == "text_response":
                assert outcome.text in contents
                assert ticket.content in contents
        else:
            assert isinstance(outcome, TurnResult | StorageError)
    assert len(topic_ids) <= 1
    assert rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id == rt.get_or_create(AGENT, "alice")
    assert rt.send(rt.get_or_create(AGENT, "alice"), "it works").text == "re: it works"
    assert_at_rest(rt)
    assert_memory_is_disk(rt)


def all_is_well(load: Workload) -> None:
    nothing_is_false(load)
    errors = [outcome for outcome in load.outcomes if isinstance(outcome, Exception)]
    assert errors == []
    assert {ticket.state for ticket in load.tickets} == {"done", "cancelled", "closed"}


def number_of_writes() -> int:
    return simulated(lambda _committer: None, ":memory:", all_is_well).writes


def test_each_write_of_a_workload_may_fail_once() -> None:
    total = number_of_writes()
    assert total > 25
    for number in range(total - 2):  # the last ones are the check's own
        committer = simulated(partial(_fail_number, number), ":memory:", nothing_is_false, seed=number)
        assert committer.failed_at, number


def _fail_number(number: int, committer: FailingCommitter) -> None:
    committer.fail_number(number)


def test_a_disk_that_breaks_at_any_write_ends_all_waits_and_keeps_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    for number in range(0, number_of_writes() - 2, 2):
        path = tmp_path / f"{number}.db"
        told: dict[int, str] = {}

        def check(load: Workload, told: dict[int, str] = told) -> None:
            for ticket in load.tickets:
                assert ticket.done
            told.update(
                {
                    outcome.turn_id: outcome.text
                    for outcome in settled(load.tickets)
                    if isinstance(outcome, TurnResult) and outcome.stop_reason == "text_response"
                }
            )
            assert load.rt.stats().database_failed
            with pytest.raises(StorageError):
                load.rt.sessions()
            with pytest.raises(StorageError):
                load.rt.switch_topic(AGENT, "alice", "another", "d")

        def arm(committer: FailingCommitter, number: int = number) -> None:
            committer.fail_from(number)

        simulated(arm, path, check)
        assert_sound(path)
        states = in_file(path, all_states)
        contents = [
            entry.content
            for session in in_file(path, sessions.list_sessions)
            for entry in in_file(path, partial(sessions.transcript, handle=session.handle))
        ]
        for turn_id, text in told.items():
            if turn_id in states:  # not a tmp chat's
                assert states[turn_id] == "done"
                assert text in contents


# -- on the database thread ----------------------------------------------------------------------------


def test_after_a_broken_disk_every_call_says_so_and_the_runtime_stops(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    committer = FailingCommitter(path)
    rt = Runtime.open(path, ScriptedModel(), worker=DatabaseWorker(path, notify=bell(), committer=committer))
    rt.add_agent(AgentConfig(name=AGENT))
    cid, handle = topic(rt)
    assert rt.send(cid, "kept").text == "kept"
    committer.fail_from(committer.writes)
    calls: list[Callable[[], Any]] = [partial(rt.send, cid, f"m{n}") for n in range(50)]
    calls += [partial(rt.submit, cid, "m"), partial(rt.stream, cid, "m"), partial(rt.compact, cid)]
    calls += [partial(rt.transcript, handle), rt.sessions, partial(rt.load, "unknown")]
    calls += [partial(rt.memory.recall, AGENT, "alice", "kept")]
    calls += [partial(rt.switch_topic, AGENT, "alice", "new", "d")]
    race(calls)
    outcomes = race(calls)
    assert [outcome for outcome in outcomes if not isinstance(outcome, StorageError)] == []
    assert said(rt.conversation(cid).history) == ["kept"]  # type: ignore[union-attr]
    tmp = rt.get_or_create(AGENT, "bob")
    assert rt.send(tmp, "a tmp chat needs no disk").text == "a tmp chat needs no disk"
    assert rt.stats().database_failed is not None
    assert rt.close(tmp) is True
    with contextlib.suppress(StorageError):  # where the end of an accepted turn is missing in the file
        assert rt.close(cid) is True
    rt.shutdown(drain=1)
    with pytest.raises(RuntimeClosed):
        rt.get_or_create(AGENT, "alice")
    with runtime(path) as again:
        assert said(again.transcript(handle)) == ["kept"]
        cid = again.load(handle)
        assert again.send(cid, "and on").text == "and on"


@pytest.mark.parametrize("drain", [0.0, 5.0])
def test_a_shutdown_with_a_broken_disk_and_turns_under_way_ends(tmp_path: Path, drain: float) -> None:
    path, model = tmp_path / "a.db", HeldModel()
    committer = FailingCommitter(path)
    rt = Runtime.open(path, model, worker=DatabaseWorker(path, notify=bell(), committer=committer))
    rt.add_agent(AgentConfig(name=AGENT))
    cid, _handle = topic(rt)
    tickets = [rt.submit(cid, f"m{number}") for number in range(5)]
    held = model.next()
    committer.fail_from(committer.writes)
    stopping = gevent.spawn(rt.shutdown, drain)
    let_run()
    held.say("cannot be stored")
    answering = gevent.spawn(_answer_all, model)
    stopping.get()
    answering.kill()
    assert all(isinstance(outcome, StorageError | RuntimeClosed) for outcome in settled(tickets))
    assert_sound(path)


def _answer_all(model: HeldModel) -> None:
    while True:
        model.next().say("cannot be stored")


def test_a_full_disk_refuses_acknowledges_nothing_false_and_works_again_with_room(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with runtime(path) as rt:
        cid, handle = topic(rt)
        assert rt.send(cid, "before").text == "before"
        limit_pages(rt, extra=120)
        outcomes = race([partial(rt.send, cid, f"{n} " + "x" * 3_000) for n in range(60)])
        assert set(kinds(outcomes)) == {"text_response", "StorageError"}
        assert_memory_is_disk(rt)
        transcript = rt.transcript(handle)  # reads go on
        assert said(transcript, "assistant")[1:] == [o.text for o in outcomes if isinstance(o, TurnResult)]
        tmp = rt.get_or_create(AGENT, "bob")
        assert rt.send(tmp, "needs no disk").text == "needs no disk"
        assert rt.memory.recall(AGENT, "alice", "nothing") == []
        limit_pages(rt, extra=1_000_000)
        assert rt.send(cid, "after " + "x" * 3_000).stop_reason == "text_response"
        assert rt.compact(cid).archive == "auth-1"
        assert_memory_is_disk(rt)
    with runtime(path) as rt:
        assert len(rt.transcript(handle)) == len(transcript) + 2


def limit_pages(rt: Runtime, extra: int) -> None:
    """Let the file grow by so many pages and no more."""

    def job(db: Any) -> None:
        ((pages,),) = db.execute("PRAGMA page_count").fetchall()
        db.execute(f"PRAGMA max_page_count = {pages + extra}").fetchall()

    services(rt).store.call(job)


def test_a_database_backlog_over_its_bound_is_an_error_and_passes(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db", limits=Limits(database_backlog=5)) as rt:
        cids = [rt.switch_topic(AGENT, f"s{n}", "auth", "d").conversation_id for n in range(40)]
        outcomes = race([partial(rt.send, cid, "hello") for cid in cids])
        assert set(kinds(outcomes)) <= {"text_response", "BacklogFull", "StorageError"}
        assert not any(isinstance(outcome, MailboxFull | AskTimeout) for outcome in outcomes)
        until(lambda: rt.stats().database_waiting == 0)  # all may have been refused before the thread came
        for cid in cids:
            assert rt.send(cid, "again").text == "again"
        assert_memory_is_disk(rt)
