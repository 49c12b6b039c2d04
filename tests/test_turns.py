"""The life of one turn: its order, its steers, every way in which it can be ended, and who it harms."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pykka
import pytest
from gevent.event import Event as Signal
from gevent.monkey import get_original
from turns_support import (
    AGENT,
    HeldModel,
    assert_memory_is_disk,
    deadline,
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
    Chunk,
    CompactionFailed,
    CompactionSkipped,
    ConversationClosed,
    Done,
    Event,
    HistoryEntry,
    Lagged,
    Limits,
    ModelError,
    ModelRequest,
    NoActiveTurn,
    Reply,
    ResultTimeout,
    Runtime,
    ScriptedModel,
    StorageError,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallsComplete,
    ToolContext,
    ToolResult,
    UserSteered,
)
from persistence.worker import Committer, DatabaseWorker

TWO_CALLS = Reply(tool_calls=[("first", {}), ("second", {})])


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(20):
        yield


@pytest.fixture(params=[True, False], ids=["topic", "tmp"])
def stored(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def conversation(rt: Runtime, stored: bool = True, sender: str = "alice") -> int:
    if stored:
        return rt.switch_topic(AGENT, sender, "auth", "d").conversation_id
    return rt.get_or_create(AGENT, sender)


def history(rt: Runtime, cid: int) -> list[HistoryEntry]:
    shown = rt.conversation(cid)
    assert shown is not None
    return list(shown.history)


def assert_tool_calls_answered(entries: list[HistoryEntry]) -> None:
    """Every call is followed by its result, in call order."""
    for place, entry in enumerate(entries):
        answers = entries[place + 1 : place + 1 + len(entry.tool_calls)]
        assert [answer.tool_call_id for answer in answers] == [call.id for call in entry.tool_calls]


# -- tools ---------------------------------------------------------------------------------------------


class TwoTools:
    """Two tools that end when the test says so."""

    def __init__(self) -> None:
        self.may_end = {"first": Signal(), "second": Signal()}
        self.begun = {"first": Signal(), "second": Signal()}

    def _run(self, name: str) -> str:
        self.begun[name].set()
        self.may_end[name].wait()
        return f"{name} result"

    def first(self) -> str:
        return self._run("first")

    def second(self) -> str:
        return self._run("second")

    @property
    def both(self) -> list[Callable[[], str]]:
        return [self.first, self.second]


def test_results_are_announced_as_they_complete_and_enter_history_in_call_order(stored: bool) -> None:
    tools = TwoTools()
    with runtime(":memory:", ScriptedModel([TWO_CALLS, "done"]), tools=tools.both) as rt:
        cid = conversation(rt, stored)
        events = rt.stream(cid, "go")
        tools.begun["first"].wait()
        tools.begun["second"].wait()  # both run at once
        tools.may_end["second"].set()
        let_run()
        tools.may_end["first"].set()
        seen = list(events)
        announced = [event.name for event in seen if isinstance(event, ToolResult)]
        assert announced == ["second", "first"]
        names = [type(event).__name__ for event in seen]
        assert names.index("ToolCallsBegin") < names.index("ToolCallsStart") < names.index("ToolResult")
        assert names.index("ToolCallsComplete") > max(i for i, n in enumerate(names) if n == "ToolResult")
        entries = history(rt, cid)
        assert [entry.role for entry in entries] == ["user", "assistant", "tool", "tool", "assistant"]
        assert [entry.name for entry in entries[2:4]] == ["first", "second"]
        assert said(entries, "tool") == ["first result", "second result"]
        assert [call.id for call in entries[1].tool_calls] == [entry.tool_call_id for entry in entries[2:4]]


def test_the_model_reads_the_results_in_call_order_with_its_own_ids() -> None:
    model = ScriptedModel([TWO_CALLS, "done"])
    with runtime(":memory:", model, tools=[first, second]) as rt:
        rt.send(conversation(rt), "go")
        asked = model.requests[1].messages
        assert [message["role"] for message in asked] == ["user", "assistant", "tool", "tool"]
        ids = [call["id"] for call in asked[1]["tool_calls"]]
        assert [message["tool_call_id"] for message in asked[2:]] == ids
        assert len(set(ids)) == 2


def first() -> str:
    return "1"


def second() -> str:
    return "2"


@pytest.mark.parametrize("ids", [("", ""), ("same", "same"), ("a", ""), ("", "b")])
def test_missing_and_repeated_call_ids_are_made_distinct(ids: tuple[str, str]) -> None:
    calls = [ToolCall(ids[0], "first", "{}"), ToolCall(ids[1], "second", "{}")]
    model = ScriptedModel([Reply(tool_calls=calls), Reply(tool_calls=calls), "done"])
    with runtime(":memory:", model, tools=[first, second]) as rt:
        cid = conversation(rt)
        assert rt.send(cid, "go").text == "done"
        entries = history(rt, cid)
        assert_tool_calls_answered(entries)
        for step in (entries[1:4], entries[4:7]):
            found = [call.id for call in step[0].tool_calls]
            assert len(set(found)) == 2
            assert all(found)
            assert [entry.content for entry in step[1:]] == ["1", "2"]


def test_a_huge_tool_output_is_cut_and_says_so() -> None:
    def huge() -> str:
        return "x" * 5_000_000

    model = ScriptedModel([Reply(tool_calls=[("huge", {})]), "done"])
    with runtime(":memory:", model, tools=[huge], limits=Limits(tool_output_chars=1_000)) as rt:
        cid = conversation(rt)
        rt.send(cid, "go")
        (output,) = said(history(rt, cid), "tool")
        assert output.startswith("x" * 1_000)
        assert "4,999,000 characters left out" in output
        assert len(output) < 1_100
        assert model.requests[1].messages[-1]["content"] == output


@pytest.mark.parametrize("choice", ["required", "first"])
def test_a_forced_tool_choice_is_forced_once(choice: str) -> None:
    model = ScriptedModel([Reply(tool_calls=[("first", {})]), Reply(tool_calls=[("first", {})]), "done"])
    with runtime(":memory:", model, tools=[first]) as rt:
        rt.send(conversation(rt), "go", tool_choice=choice)
        assert [request.tool_choice for request in model.requests] == [choice, "auto", "auto"]


def test_tool_choice_none_holds_for_the_whole_turn_and_the_next_one_has_the_agents_own() -> None:
    model = ScriptedModel([Reply(tool_calls=[("first", {})]), "done", "again"])
    with runtime(":memory:", model, tools=[first]) as rt:
        cid = conversation(rt)
        rt.send(cid, "go", tool_choice="none")
        rt.send(cid, "go on")
        assert [request.tool_choice for request in model.requests] == ["none", "none", "auto"]


def test_max_iterations_ends_a_turn_that_never_stops_calling() -> None:
    model = ScriptedModel(lambda _request: Reply("still", tool_calls=[("first", {})]))
    config = AgentConfig(name=AGENT, max_iterations=3)
    with runtime(":memory:", model, config, tools=[first]) as rt:
        cid = conversation(rt)
        result = rt.send(cid, "go")
        assert (result.stop_reason, result.steps, result.text) == ("max_iterations", 3, "still")
        assert_tool_calls_answered(history(rt, cid))
        assert_memory_is_disk(rt)


def test_a_round_that_says_nothing_adds_nothing() -> None:
    with runtime(":memory:", ScriptedModel([Reply(""), "second"])) as rt:
        cid = conversation(rt)
        assert rt.send(cid, "one").stop_reason == "no_action"
        assert said(history(rt, cid)) == ["one"]
        assert rt.send(cid, "two").text == "second"
        assert [entry.role for entry in history(rt, cid)] == ["user", "user", "assistant"]


# -- cancel --------------------------------------------------------------------------------------------


class MidStream:
    """A model that says a word and then waits; it notes that its stream was closed."""

    def __init__(self) -> None:
        self.said = Signal()
        self.closed = Signal()

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.messages[-1]["content"] != "wait":
            yield Chunk("fine", finish_reason="stop")
            return
        try:
            yield Chunk("half a sen")
            self.said.set()
            Signal().wait()
        finally:
            self.closed.set()


def test_a_cancel_during_the_stream_closes_it_and_keeps_nothing_of_that_round(stored: bool) -> None:
    model = MidStream()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        ticket = rt.submit(cid, "wait")
        model.said.wait()
        assert rt.cancel(cid) is True
        assert model.closed.is_set()
        result = ticket.result()
        assert (result.stop_reason, result.text, ticket.state) == ("cancelled", "", "cancelled")
        assert [(e.role, e.content) for e in history(rt, cid)] == [("user", "wait")]
        assert rt.send(cid, "next").text == "fine"
        assert_memory_is_disk(rt)


def test_a_cancel_during_tools_keeps_the_results_that_were_there(stored: bool) -> None:
    tools = TwoTools()
    model = ScriptedModel([Reply(tool_calls=[("first", {})]), TWO_CALLS, "after"])
    with runtime(":memory:", model, tools=tools.both) as rt:
        cid = conversation(rt, stored)
        tools.may_end["first"].set()
        ticket = rt.submit(cid, "go")
        tools.begun["second"].wait()
        let_run()
        assert rt.cancel(cid) is True
        result = ticket.result()
        assert (result.stop_reason, result.steps) == ("cancelled", 2)
        entries = history(rt, cid)
        assert_tool_calls_answered(entries)
        outputs = said(entries, "tool")
        assert outputs[:2] == ["first result", "first result"]
        assert "interrupted" in outputs[2]
        assert rt.send(cid, "next").text == "after"
        assert_memory_is_disk(rt)


def test_a_cancel_before_the_turn_has_begun_runs_nothing() -> None:
    model = ScriptedModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored=False)
        # Both messages are in the mailbox before the turn's greenlet gets to run.
        result, cancelled = race([partial(rt.send, cid, "never asked"), partial(rt.cancel, cid)])
        assert (result.stop_reason, cancelled) == ("cancelled", True)
        assert model.requests == []
        assert rt.send(cid, "next").text == "next"


def test_a_cancel_of_a_queued_turn_leaves_the_others_in_their_order(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        tickets = [rt.submit(cid, f"m{number}") for number in range(4)]
        held = model.next()
        assert tickets[2].cancel() is True
        assert tickets[2].cancel() is False
        assert tickets[2].result().stop_reason == "cancelled"
        held.say("a0")
        model.next().say("a1")
        model.next().say("a3")
        assert [result.text for result in settled(tickets)] == ["a0", "a1", "", "a3"]
        assert said(history(rt, cid)) == ["m0", "m1", "m3"]
        assert rt.cancel(cid) is False


class HoldsUp:
    """A hook that waits at one kind of event."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reached = Signal()

    def on_event(self, _agent: str, _cid: int, event: Event) -> None:
        if type(event).__name__ == self._name and not self.reached.is_set():
            self.reached.set()
            Signal().wait()


@pytest.mark.parametrize(
    "name", ["TextStart", "ToolCallsBegin", "ToolCallsStart", "ToolResult", "ToolCallsComplete"]
)
def test_a_cancel_while_a_hook_holds_the_turn_up_leaves_a_valid_history(name: str, stored: bool) -> None:
    hook = HoldsUp(name)
    with runtime(
        ":memory:", ScriptedModel([TWO_CALLS, "done", "after"]), tools=[first, second], hooks=[hook]
    ) as rt:
        cid = conversation(rt, stored)
        ticket = rt.submit(cid, "go")
        hook.reached.wait()
        assert rt.cancel(cid) is True
        assert ticket.result().stop_reason == "cancelled"
        assert_tool_calls_answered(history(rt, cid))
        assert_memory_is_disk(rt)
        assert rt.send(cid, "next").text in ("done", "after")


@pytest.mark.parametrize("yields", range(6))
def test_a_cancel_in_the_instant_in_which_the_tools_end_keeps_a_result_for_each_call(
    yields: int, stored: bool
) -> None:
    tools = TwoTools()
    with runtime(":memory:", ScriptedModel([TWO_CALLS, "done", "after"]), tools=tools.both) as rt:
        cid = conversation(rt, stored)
        ticket = rt.submit(cid, "go")
        tools.begun["second"].wait()
        tools.may_end["first"].set()
        tools.may_end["second"].set()
        let_run(yields)
        cancelled = ticket.cancel()
        assert cancelled == (ticket.result().stop_reason == "cancelled")
        assert_tool_calls_answered(history(rt, cid))
        assert_memory_is_disk(rt)
        assert rt.send(cid, "next").text in ("done", "after")


class GatedCommitter(Committer):
    """A committer whose next commit waits, in the database thread, until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.closed = False
        self.entered = get_original("_thread", "allocate_lock")()
        self.gate = get_original("_thread", "allocate_lock")()
        self.entered.acquire()

    def hold(self) -> None:
        self.gate.acquire()
        self.closed = True

    def let_go(self) -> None:
        self.closed = False
        self.gate.release()

    def wait_entered(self) -> None:
        """Wait, in a greenlet, until a commit stands at the gate."""
        while not self.entered.acquire(False):
            gevent.sleep(0)

    def _commit(self, db: Any) -> None:
        if self.closed:
            self.entered.release()
            self.gate.acquire()
            self.gate.release()
        super()._commit(db)


def gated(path: Path) -> tuple[GatedCommitter, DatabaseWorker]:
    committer = GatedCommitter(path)
    return committer, DatabaseWorker(path, notify=bell(), committer=committer)


def test_a_cancel_during_the_commit_of_a_step_keeps_memory_and_disk_equal(tmp_path: Path) -> None:
    committer, worker = gated(tmp_path / "a.db")
    may_end = Signal()

    def wait() -> str:
        may_end.wait()
        return "result"

    model = ScriptedModel([Reply(tool_calls=[("wait", {})]), "done"])
    with runtime(tmp_path / "a.db", model, tools=[wait], worker=worker) as rt:
        cid = conversation(rt)
        ticket = rt.submit(cid, "go")
        let_run()
        committer.hold()
        may_end.set()
        committer.wait_entered()
        cancelling = gevent.spawn(rt.cancel, cid)
        let_run()
        assert not cancelling.ready(), "the cancel did not wait for its clean-up"
        committer.let_go()
        assert cancelling.get() is True
        assert ticket.result().stop_reason == "cancelled"
        assert len(model.requests) == 1
        assert [entry.role for entry in history(rt, cid)] == ["user", "assistant", "tool"]
        assert said(history(rt, cid), "tool") == ["result"]
        assert_memory_is_disk(rt)
        assert rt.send(cid, "next").text == "done"


def test_a_message_is_not_accepted_before_its_commit_and_its_turn_changes_nothing(tmp_path: Path) -> None:
    committer, worker = gated(tmp_path / "a.db")
    model = HeldModel()
    called: list[str] = []

    def note() -> str:
        called.append("note")
        return "noted"

    with runtime(tmp_path / "a.db", model, worker=worker, tools=[note]) as rt:
        cid = conversation(rt)
        committer.hold()
        accepting = gevent.spawn(rt.submit, cid, "go")
        committer.wait_entered()
        model.next().say(tool_calls=[("note", {})])  # a model may be asked meanwhile
        let_run()
        assert not accepting.ready()
        assert called == []
        assert rt.conversation(cid).history == ()  # type: ignore[union-attr]
        committer.let_go()
        ticket = accepting.get()
        model.next().say("done")
        assert ticket.result().text == "done"
        assert called == ["note"]


def test_an_interrupt_behind_a_keyed_message_that_is_being_stored_cancels_that_when_it_runs(
    tmp_path: Path,
) -> None:
    committer, worker = gated(tmp_path / "a.db")
    model = HeldModel()
    with runtime(tmp_path / "a.db", model, worker=worker) as rt:
        cid = conversation(rt)
        committer.hold()
        first = gevent.spawn(rt.submit, cid, "one", key="k")
        committer.wait_entered()
        second = gevent.spawn(rt.submit, cid, "two", on_busy="interrupt")
        let_run()
        committer.let_go()
        second.get()
        assert first.get().result().stop_reason == "cancelled"
        while (held := model.next()).killed:
            pass
        held.say("fine")
        assert second.get().result().text == "fine"
        assert list(stored_states(rt).values()) == ["cancelled", "done"]


def _add(a: int, b: int) -> int:
    return a + b


def test_a_turn_that_is_cancelled_while_its_message_is_stored_keeps_calls_and_results_together(
    tmp_path: Path,
) -> None:
    committer, worker = gated(tmp_path / "a.db")
    model = HeldModel()
    with runtime(tmp_path / "a.db", model, worker=worker, tools=[_add]) as rt:
        cid = conversation(rt)
        committer.hold()
        accepting = gevent.spawn(rt.submit, cid, "go")
        committer.wait_entered()
        model.next().say(tool_calls=[("_add", {"a": 1, "b": 2})])
        let_run()
        cancelling = gevent.spawn(rt.cancel, cid)
        let_run()
        committer.let_go()
        assert cancelling.get() is True
        assert accepting.get().result().stop_reason == "cancelled"
        assert [entry.role for entry in rt.conversation(cid).history] == ["user", "assistant", "tool"]  # type: ignore[union-attr]


def test_a_result_is_not_given_before_its_commit(tmp_path: Path) -> None:
    committer, worker = gated(tmp_path / "a.db")
    model = HeldModel()
    with runtime(tmp_path / "a.db", model, worker=worker) as rt:
        cid = conversation(rt)
        ticket = rt.submit(cid, "go")
        events = ticket.events()
        held = model.next()
        committer.hold()
        held.say("done")
        committer.wait_entered()
        let_run()
        assert not ticket.done
        with pytest.raises(ResultTimeout):
            ticket.result(timeout=0)
        assert history(rt, cid) == []
        committer.let_go()
        assert ticket.result().text == "done"
        assert isinstance(list(events)[-1], Done)


def test_a_cancel_while_only_the_compaction_is_left_keeps_the_answer() -> None:
    asked = Signal()

    class Slow(ScriptedModel):
        def stream(self, request: ModelRequest) -> Iterator[Chunk]:
            if request.purpose == "compact":
                asked.set()
                Signal().wait()
            yield from super().stream(request)

    config = AgentConfig(name=AGENT, compact_threshold=1)
    with runtime(":memory:", Slow(), config) as rt:
        cid = conversation(rt)
        ticket = rt.submit(cid, "a long enough message")
        asked.wait()
        rt.cancel(cid)
        assert ticket.result().text == "a long enough message"
        assert ticket.result().stop_reason == "text_response"
        assert len(history(rt, cid)) == 2
        assert rt.memory.entries(AGENT, "alice", "archive") == []
        assert_memory_is_disk(rt)


def test_a_cancel_of_a_requested_compaction_says_so_and_changes_nothing() -> None:
    asked = Signal()

    class Slow(ScriptedModel):
        def stream(self, request: ModelRequest) -> Iterator[Chunk]:
            if request.purpose == "compact":
                asked.set()
                Signal().wait()
            yield from super().stream(request)

    with runtime(":memory:", Slow()) as rt:
        cid = conversation(rt)
        rt.send(cid, "hello")
        compacting = gevent.spawn(race, [partial(rt.compact, cid)])
        asked.wait()
        assert rt.cancel(cid) is False, "a compaction is no turn"
        (outcome,) = compacting.get()
        assert isinstance(outcome, CompactionFailed)
        assert said(history(rt, cid)) == ["hello"]
        assert rt.send(cid, "again").text == "again"


# -- tools that refuse ---------------------------------------------------------------------------------


def test_a_tool_that_swallows_its_kill_and_returns_is_a_result_and_the_turn_is_cancelled() -> None:
    begun = Signal()

    def stubborn() -> str:
        begun.set()
        try:
            Signal().wait()
        except gevent.GreenletExit:
            let_run(3)
        return "I am still here"

    model = ScriptedModel([Reply(tool_calls=[("stubborn", {})]), "after"])
    with runtime(":memory:", model, tools=[stubborn]) as rt:
        cid = conversation(rt)
        ticket = rt.submit(cid, "go")
        begun.wait()
        assert rt.cancel(cid) is True
        assert ticket.result().stop_reason == "cancelled"
        assert_tool_calls_answered(history(rt, cid))
        assert rt.send(cid, "next").text == "after"


def test_a_tool_that_refuses_to_die_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.tool_calls.CLEAN_UP_S", 0.01)
    begun, end = Signal(), Signal()

    def immortal() -> str:
        begun.set()
        while not end.is_set():
            try:
                end.wait()
            except gevent.GreenletExit:
                continue
        return "too late"

    model = ScriptedModel([Reply(tool_calls=[("immortal", {}), ("first", {})]), "after"])
    with runtime(":memory:", model, tools=[immortal, first]) as rt:
        everything = rt.subscribe()
        cid = conversation(rt)
        ticket = rt.submit(cid, "go")
        begun.wait()
        let_run()
        assert rt.cancel(cid) is True
        assert (ticket.result().stop_reason, ticket.result().error) == ("cancelled", None)
        assert_tool_calls_answered(history(rt, cid))
        assert rt.send(cid, "next").text == "after"
        assert rt.close(cid) is True
        end.set()
        let_run()
        everything.end()
        seen = [event for _, event in everything]
        late = [event for event in seen if isinstance(event, ToolResult) and event.name == "immortal"]
        assert late == [], "something was said of a turn that had ended"


# -- exceptions of every kind --------------------------------------------------------------------------


class OwnBase(BaseException):
    """Not even an Exception."""


class Unprintable(Exception):
    """Its message cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


KINDS: list[Callable[[], BaseException]] = [
    partial(ValueError, "boom"),
    partial(RecursionError, "boom"),
    partial(MemoryError, "boom"),
    partial(StopIteration, "boom"),
    partial(pykka.Timeout, "boom"),
    partial(StorageError, "boom"),
    partial(gevent.Timeout, 7),
    partial(gevent.GreenletExit, "boom"),
    partial(SystemExit, "boom"),
    partial(KeyboardInterrupt, "boom"),
    partial(GeneratorExit, "boom"),
    partial(OwnBase, "boom"),
    Unprintable,
    partial(ValueError, "with a \x00 and a \ud800"),
]
NAMES = [*(kind().__class__.__name__ for kind in KINDS[:-1]), "unstorable text"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


class Raises:
    """A model that raises where it is told to: when asked, or after a word. Anything else it echoes."""

    def __init__(self, kind: Callable[[], BaseException]) -> None:
        self._kind = kind

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        content = request.messages[-1]["content"]
        if content == "at once":
            raise self._kind()
        return _Chunks(self._kind if content == "midway" else None, str(content))


class _Chunks(Iterator[Chunk]):
    """An iterator that is no generator, so that it can raise StopIteration and GeneratorExit as they are."""

    def __init__(self, kind: Callable[[], BaseException] | None, content: str) -> None:
        self._kind = kind
        self._left = [Chunk(content), Chunk(finish_reason="stop")]

    def __next__(self) -> Chunk:
        if self._kind is not None and len(self._left) == 1:
            raise self._kind()
        if not self._left:
            raise StopIteration
        return self._left.pop(0)


@every_kind
@pytest.mark.parametrize("when", ["at once", "midway"])
def test_whatever_a_model_raises_is_an_error_result_and_harms_nobody_else(
    kind: Callable[[], BaseException], when: str
) -> None:
    with runtime(":memory:", Raises(kind)) as rt:
        cids = [conversation(rt, True), conversation(rt, False, "bob")]
        sibling = conversation(rt, True, "carol")
        calls = [partial(rt.send, cid, when) for cid in cids]
        *results, other = race([*calls, partial(rt.send, sibling, "fine")])
        assert [result.stop_reason for result in results] == ["error", "error"]
        assert all(result.error for result in results)
        assert other.text == "fine"
        for cid in cids:
            assert [(e.role, e.content) for e in history(rt, cid)] == [("user", when)]
            assert rt.send(cid, "next").text == "next"
        assert_memory_is_disk(rt)


@every_kind
def test_whatever_a_tool_raises_is_a_result_that_the_model_can_read(
    kind: Callable[[], BaseException],
) -> None:
    def bad() -> str:
        raise kind()

    calls = Reply(tool_calls=[("first", {}), ("bad", {}), ("second", {})])
    with runtime(":memory:", ScriptedModel([calls, "done", "next"]), tools=[first, bad, second]) as rt:
        cid = conversation(rt)
        seen = list(rt.stream(cid, "go"))
        assert isinstance(seen[-1], Done)
        assert seen[-1].result.text == "done"
        outputs = said(history(rt, cid), "tool")
        assert (outputs[0], outputs[2]) == ("1", "2")
        assert outputs[1].startswith("error: ")
        results = {event.name: event.is_error for event in seen if isinstance(event, ToolResult)}
        assert results == {"first": False, "bad": True, "second": False}
        assert_tool_calls_answered(history(rt, cid))
        assert rt.send(cid, "again").text == "next"


class BadHook:
    """A hook that raises in one of its places."""

    def __init__(self, place: str, kind: Callable[[], BaseException]) -> None:
        self._kind = kind
        if place == "on_event(Done)":
            self.on_event = self._raise_at_done
        else:
            setattr(self, place, self._raise)

    def _raise(self, *_args: object) -> None:
        raise self._kind()

    def _raise_at_done(self, _agent: str, _cid: int, event: Event) -> None:
        if isinstance(event, Done):
            raise self._kind()


@every_kind
@pytest.mark.parametrize("place", ["before_run", "preprocess", "on_event", "on_event(Done)"])
def test_whatever_a_hook_raises_changes_nothing(kind: Callable[[], BaseException], place: str) -> None:
    if isinstance(kind(), gevent.GreenletExit) and place != "on_event(Done)":
        pytest.skip("inside a turn that is how a cancel looks, and a cancel passes")
    with runtime(":memory:", hooks=[BadHook(place, kind)]) as rt:
        for cid in (conversation(rt, True), conversation(rt, False, "bob")):
            assert rt.send(cid, "one").text == "one"
            let_run(3)
            assert rt.send(cid, "two").text == "two"


@every_kind
def test_whatever_a_model_raises_for_a_title_or_a_summary_ends_there(
    kind: Callable[[], BaseException],
) -> None:
    class Bad(ScriptedModel):
        def stream(self, request: ModelRequest) -> Iterator[Chunk]:
            if request.purpose != "turn":
                raise kind()
            return super().stream(request)

    config = AgentConfig(name=AGENT, model="m", compact_threshold=1)
    with runtime(":memory:", Bad(), config) as rt:
        cid = conversation(rt)
        seen = list(rt.stream(cid, "a message"))
        assert seen[-1].result.text == "a message"
        assert any(isinstance(event, CompactionSkipped) for event in seen)
        let_run()
        (outcome,) = race([partial(rt.compact, cid)])
        assert isinstance(outcome, CompactionFailed)
        assert said(history(rt, cid), "assistant") == ["a message"]
        assert rt.send(cid, "again").text == "again"
        assert rt.conversation(cid).title == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "chunks",
    [
        None,
        7,
        [None],
        ["text"],
        [Chunk(text=7)],  # type: ignore[arg-type]
        [Chunk(text="x", usage="much", finish_reason="stop")],  # type: ignore[arg-type]
        [Chunk(text="cut off")],
        [Chunk(reasoning="only thought")],
    ],
    ids=repr,
)
def test_what_is_no_stream_of_chunks_is_an_error_result(chunks: Any) -> None:
    class Odd:
        def stream(self, request: ModelRequest) -> Any:
            if request.messages[-1]["content"] == "odd":
                return chunks if not isinstance(chunks, list) else iter(chunks)
            return iter([Chunk("fine", finish_reason="stop")])

    with runtime(":memory:", Odd()) as rt:
        cid = conversation(rt)
        assert rt.send(cid, "odd").stop_reason == "error"
        assert rt.send(cid, "even").text == "fine"
        assert said(history(rt, cid), "assistant") == ["fine"]


def test_a_turn_of_an_agent_that_was_removed_fails_and_works_again_when_it_is_back() -> None:
    with runtime(":memory:") as rt:
        cid = conversation(rt)
        rt.remove_agent(AGENT)
        result = rt.send(cid, "hello?")
        assert result.stop_reason == "error"
        assert AGENT in (result.error or "")
        rt.add_agent(AgentConfig(name=AGENT))
        assert rt.send(cid, "hello!").text == "hello!"
        assert said(history(rt, cid)) == ["hello?", "hello!"]


# -- steering ------------------------------------------------------------------------------------------


def test_steers_at_several_boundaries_enter_in_order_each_once(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model, tools=[first]) as rt:
        cid = conversation(rt, stored)
        events = rt.stream(cid, "begin")
        expected = ["begin"]
        for step in range(3):
            held = model.next()
            assert said_to(held.request) == expected
            steers = [rt.steer(cid, f"s{step}.{number}") for number in range(3)]
            expected += [f"s{step}.{number}" for number in range(3)]
            held.say(tool_calls=[("first", {})])
        held = model.next()
        assert said_to(held.request) == expected
        held.say("done")
        seen = list(events)
        assert [event.content for event in seen if isinstance(event, UserSteered)] == expected[1:]
        assert {result.text for result in settled(steers)} == {"done"}
        entries = history(rt, cid)
        assert said(entries) == expected
        assert {entry.sender for entry in entries if entry.role == "user"} == {"alice"}
        assert_tool_calls_answered(entries)
        assert_memory_is_disk(rt)


def said_to(request: ModelRequest) -> list[str]:
    return [message["content"] for message in request.messages if message["role"] == "user"]


def test_steers_during_the_last_model_call_become_the_next_turns_in_order(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        begun = rt.submit(cid, "begin")
        held = model.next()
        queued = rt.submit(cid, "queued before the steers")
        steers = [rt.steer(cid, f"s{number}") for number in range(3)]
        held.say("no more steps")
        for number in range(4):
            model.next().say(f"answer {number}")
        texts = [result.text for result in settled([begun, *steers, queued])]
        assert texts == ["no more steps", "answer 0", "answer 1", "answer 2", "answer 3"]
        assert len({result.turn_id for result in settled([begun, *steers, queued])}) == 5
        assert said(history(rt, cid)) == ["begin", "s0", "s1", "s2", "queued before the steers"]


def test_steers_left_over_by_a_turn_of_a_left_over_steer_keep_the_order_of_acceptance(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        tickets = [rt.submit(cid, "begin")]
        held = model.next()
        tickets += [rt.steer(cid, "s1"), rt.steer(cid, "s2")]
        held.say("no step")
        held = model.next()  # s1 runs as a turn, s2 waits
        tickets += [rt.steer(cid, "s3")]
        held.say("no step either")
        model.next().say("third")
        model.next().say("fourth")
        settled(tickets)
        assert said(history(rt, cid)) == ["begin", "s1", "s2", "s3"]


def test_a_steer_of_a_turn_that_fails_or_is_cancelled_is_the_next_turn(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        for number, end in enumerate(("fail", "cancel")):
            ticket = rt.submit(cid, f"begin {number}")
            held = model.next()
            steer = rt.steer(cid, f"steer {number}")
            if end == "fail":
                held.fail(ValueError("no"))
            else:
                rt.cancel(cid)
            model.next().say(f"took {number}")
            assert ticket.state == ("failed" if end == "fail" else "cancelled")
            assert steer.result().text == f"took {number}"
        assert said(history(rt, cid)) == ["begin 0", "steer 0", "begin 1", "steer 1"]


def test_an_interrupting_message_runs_before_what_the_interrupted_turn_left_over(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        begun = rt.submit(cid, "begin")
        held = model.next()
        queued = rt.submit(cid, "queued")
        steers = [rt.steer(cid, "s0"), rt.steer(cid, "s1")]
        urgent = rt.submit(cid, "urgent", on_busy="interrupt")
        for text in ("u", "s0", "s1", "q"):
            model.next().say(text)
        results = settled([begun, urgent, *steers, queued])
        assert [result.text for result in results] == ["", "u", "s0", "s1", "q"]
        assert results[0].stop_reason == "cancelled"
        assert held.killed
        assert said(history(rt, cid)) == ["begin", "urgent", "s0", "s1", "queued"]


def test_queued_turns_run_in_the_order_of_acceptance(stored: bool) -> None:
    with runtime(":memory:") as rt:
        cid = conversation(rt, stored)
        tickets = [rt.submit(cid, f"m{number}") for number in range(50)]
        assert [result.text for result in settled(tickets)] == [f"m{number}" for number in range(50)]
        assert said(history(rt, cid)) == [f"m{number}" for number in range(50)]


def test_there_is_nothing_to_steer_between_turns_or_during_a_compaction(stored: bool) -> None:
    asked, go = Signal(), Signal()

    class Slow(ScriptedModel):
        def stream(self, request: ModelRequest) -> Iterator[Chunk]:
            if request.purpose == "compact":
                asked.set()
                go.wait()
            yield from super().stream(request)

    with runtime(":memory:", Slow()) as rt:
        cid = conversation(rt, stored)
        with pytest.raises(NoActiveTurn):
            rt.steer(cid, "too early")
        rt.send(cid, "hello")
        with pytest.raises(NoActiveTurn):
            rt.steer(cid, "too late")
        compacting = gevent.spawn(rt.compact, cid)
        asked.wait()
        with pytest.raises(NoActiveTurn):
            rt.steer(cid, "not a turn")
        go.set()
        assert compacting.get().summary
        assert "too" not in " ".join(said(history(rt, cid))[1:])


def test_on_busy_steer_steers_a_running_turn_and_runs_when_there_is_none(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model, tools=[first]) as rt:
        cid = conversation(rt, stored)
        idle = rt.submit(cid, "runs by itself", on_busy="steer")
        held = model.next()
        steer = rt.submit(cid, "steers", on_busy="steer")
        held.say(tool_calls=[("first", {})])
        model.next().say("done")
        assert idle.result() == steer.result()
        assert said(history(rt, cid)) == ["runs by itself", "steers"]


# -- calling back into the runtime ---------------------------------------------------------------------


class Back:
    """Tools that call the runtime that runs them."""

    def __init__(self) -> None:
        self.rt: Runtime | None = None
        self.results: list[Any] = []

    def call_back(self, what: str, call: ToolContext) -> str:
        """Do one thing with the runtime."""
        assert self.rt is not None
        rt, own = self.rt, call.conversation_id
        other = rt.get_or_create(AGENT, "other")
        actions: dict[str, Callable[[], Any]] = {
            "send to another": lambda: rt.send(other, "hi").text,
            "reject": lambda: rt.send(own, "hi", on_busy="reject"),
            "enqueue": lambda: rt.send(own, "hi"),
            "submit": lambda: rt.submit(own, "hi").state,
            "steer": lambda: rt.steer(own, "steered by my tool").state,
            "cancel": lambda: rt.cancel(own),
            "close now": lambda: rt.close(own, mode="now"),
            "close drain": lambda: rt.close(own),
            "compact": lambda: rt.compact(own),
            "shutdown": rt.shutdown,
            "look": lambda: [info.state for info in rt.list_active() if info.id == own],
            "summarize": lambda: rt.summarize(own) or "nothing yet",
        }
        try:
            value = actions[what]()
        except BaseException as error:
            self.results.append(error)
            raise
        self.results.append(value)
        return str(value)


def calling_back(what: str) -> tuple[Back, ScriptedModel]:
    def say(request: ModelRequest) -> Reply:
        last = request.messages[-1]
        if last["content"] == "go":
            return Reply(tool_calls=[("call_back", {"what": what})])
        return Reply("done" if last["role"] == "tool" else "heard")

    return Back(), ScriptedModel(say)


@pytest.mark.parametrize(
    ("what", "output"),
    [
        ("send to another", "heard"),
        ("reject", "error: ConversationBusy"),
        ("enqueue", "error: Deadlock"),
        ("close drain", "error: Deadlock"),
        ("compact", "error: Deadlock"),
        ("shutdown", "error: Deadlock"),
        ("submit", "queued"),
        ("look", "['running']"),
        ("summarize", "nothing yet"),
    ],
)
def test_a_tool_may_call_its_runtime_and_never_waits_for_itself(what: str, output: str, stored: bool) -> None:
    back, model = calling_back(what)
    with runtime(":memory:", model, tools=[back.call_back]) as rt:
        back.rt = rt
        cid = conversation(rt, stored)
        assert rt.send(cid, "go").text == "done"
        (told,) = said(history(rt, cid), "tool")
        assert told.startswith(output)
        assert rt.send(cid, "still works").text == "heard"
        sent = ["hi"] if what == "submit" else []  # what was refused is not sent all the same
        assert said(history(rt, cid)) == ["go", *sent, "still works"]


def test_a_tool_may_steer_its_own_turn(stored: bool) -> None:
    back, model = calling_back("steer")
    with runtime(":memory:", model, tools=[back.call_back]) as rt:
        back.rt = rt
        cid = conversation(rt, stored)
        assert rt.send(cid, "go").text == "heard"
        assert said(history(rt, cid)) == ["go", "steered by my tool"]


def test_a_tool_that_cancels_its_own_turn_ends_it(stored: bool) -> None:
    back, model = calling_back("cancel")
    with runtime(":memory:", model, tools=[back.call_back]) as rt:
        back.rt = rt
        cid = conversation(rt, stored)
        assert rt.send(cid, "go").stop_reason == "cancelled"
        assert [type(each) for each in back.results] == [gevent.GreenletExit]
        assert_tool_calls_answered(history(rt, cid))
        assert rt.send(cid, "still works").text == "heard"


def test_a_tool_that_closes_its_own_conversation_now_ends_both(stored: bool) -> None:
    back, model = calling_back("close now")
    with runtime(":memory:", model, tools=[back.call_back]) as rt:
        back.rt = rt
        cid = conversation(rt, stored)
        ticket = rt.submit(cid, "go")
        queued = rt.submit(cid, "never runs")
        assert ticket.result().stop_reason == "cancelled"
        assert queued.result().stop_reason == "closed"
        while rt.conversation(cid) is not None:
            gevent.sleep(0)
        assert rt.close(cid) is False


class CallsBack:
    """A hook that uses the runtime wherever it is called."""

    def __init__(self) -> None:
        self.rt: Runtime | None = None
        self.looked: list[str] = []
        self.echoed: list[Any] = []

    def before_run(self, agent: str, cid: int, _history: Any) -> list[HistoryEntry]:
        assert self.rt is not None
        self.looked.append(next(info.state for info in self.rt.list_active() if info.id == cid))
        notes = self.rt.memory.recall(agent, "alice", "notes")
        return [HistoryEntry("system", f"{len(notes)} notes")]

    def preprocess(self, _agent: str, content: str) -> str | None:
        assert self.rt is not None
        return f"{content} ({self.rt.conversation_count()} live)" if content == "one" else None

    def on_event(self, _agent: str, cid: int, event: Event) -> None:
        assert self.rt is not None
        if isinstance(event, Done) and not event.result.text.startswith("echo"):
            self.echoed.append(self.rt.send(cid, f"echo of {event.result.text}"))


def test_hooks_may_call_the_runtime_even_to_send_when_a_turn_is_done(stored: bool) -> None:
    hook = CallsBack()
    model = ScriptedModel(lambda request: said_to(request)[-1])
    with runtime(":memory:", model, hooks=[hook]) as rt:
        hook.rt = rt
        cid = conversation(rt, stored)
        assert rt.send(cid, "one").text == "one (1 live)"
        while not hook.echoed:
            gevent.sleep(0)
        assert hook.echoed[0].text == "echo of one (1 live)"
        assert hook.looked == ["running", "running"]
        assert said(history(rt, cid)) == ["one (1 live)", "echo of one (1 live)"]
        assert {"role": "system", "content": "0 notes"} in model.requests[0].messages
        assert_memory_is_disk(rt)


# -- guests, counts, callers ---------------------------------------------------------------------------


def test_a_guest_answers_once_in_text_only_and_is_shown_as_another() -> None:
    config = AgentConfig(name="guest", system_prompt="You are the guest.")
    model = ScriptedModel([Reply("from the guest", tool_calls=[("first", {})]), "own answer", "guest again"])
    with runtime(":memory:", model, AgentConfig(name=AGENT), config, tools=[first]) as rt:
        cid = conversation(rt)
        result = rt.send(cid, "hello guest", guest="guest")
        assert (result.text, result.steps, result.stop_reason) == ("from the guest", 1, "text_response")
        rt.send(cid, "hello crab")
        rt.send(cid, "guest once more", guest="guest")
        asked = model.requests
        assert asked[0].tools == []
        assert asked[0].messages[0] == {"role": "system", "content": "You are the guest."}
        assert {"role": "user", "content": '<from agent="guest">\nfrom the guest\n</from>'} in asked[
            1
        ].messages
        assert {"role": "assistant", "content": "from the guest"} in asked[2].messages
        assert [e.agent for e in history(rt, cid) if e.role == "assistant"] == ["guest", "", "guest"]
        assert_memory_is_disk(rt)


def test_message_count_counts_live_entries(stored: bool) -> None:
    with runtime(":memory:", ScriptedModel([TWO_CALLS, "done", "more"]), tools=[first, second]) as rt:
        cid = conversation(rt, stored)

        def counted() -> int:
            return next(info.message_count for info in rt.list_active() if info.id == cid)

        assert counted() == 0
        rt.send(cid, "one")
        assert counted() == len(history(rt, cid)) == 5
        rt.send(cid, "two")
        assert counted() == 7
        rt.compact(cid)
        assert counted() == 1


@pytest.mark.parametrize("how", ["send", "submit", "stream"])
def test_a_caller_that_is_killed_changes_nothing(how: str, stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)

        def wait() -> None:
            if how == "send":
                rt.send(cid, "go")
            elif how == "submit":
                rt.submit(cid, "go").result()
            else:
                list(rt.stream(cid, "go"))

        caller = gevent.spawn(wait)
        held = model.next()
        caller.kill()
        held.say("nobody listens")
        after = rt.submit(cid, "next")
        model.next().say("and on")
        assert after.result().text == "and on"
        assert said(history(rt, cid), "assistant") == ["nobody listens", "and on"]
        if stored:
            assert set(stored_states(rt).values()) == {"done"}
            assert_memory_is_disk(rt)


def test_a_result_timeout_leaves_the_turn_running() -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt)
        with pytest.raises(ResultTimeout):
            rt.send(cid, "go", timeout=0.01)
        model.next().say("in my own time")
        rt_done = rt.submit(cid, "next")
        model.next().say("next")
        rt_done.result()
        assert said(history(rt, cid), "assistant") == ["in my own time", "next"]


def test_a_stream_that_nobody_reads_is_bounded_and_says_that_it_lagged() -> None:
    model = ScriptedModel([Reply("x" * 1_000, chunk_chars=1)])
    with runtime(":memory:", model, limits=Limits(event_buffer=20)) as rt:
        cid = conversation(rt)
        ticket_events = rt.stream(cid, "go")
        while rt.conversation(cid).state != "idle":  # type: ignore[union-attr]
            gevent.sleep(0)
        seen = list(ticket_events)
        assert len(seen) <= 24
        assert any(isinstance(event, Lagged) and event.missed > 900 for event in seen)
        assert isinstance(seen[-1], Done)
        assert len(seen[-1].result.text) == 1_000
        deltas = [event for event in seen if isinstance(event, TextDelta)]
        assert len(deltas) < 25
        assert not any(isinstance(event, ToolCallsComplete) for event in seen)


# -- ends of everything --------------------------------------------------------------------------------


def test_a_close_now_during_a_turn_ends_it_and_the_queue_and_runs_nothing_more(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model) as rt:
        cid = conversation(rt, stored)
        tickets = [rt.submit(cid, f"m{number}") for number in range(3)]
        held = model.next()
        steer = rt.steer(cid, "left over")
        assert rt.close(cid, mode="now") is True
        assert held.killed
        assert kinds(settled(tickets)) == {"cancelled": 1, "closed": 2}
        assert steer.result().stop_reason == "closed"
        let_run()
        assert model.idle
        (late,) = race([partial(rt.send, cid, "late")])
        assert isinstance(late, Exception)
        if stored:
            assert sorted(stored_states(rt).values()) == ["cancelled", "closed", "closed", "closed"]


def test_a_draining_close_lets_the_running_turn_finish_all_its_steps(stored: bool) -> None:
    model = HeldModel()
    with runtime(":memory:", model, tools=[first]) as rt:
        cid = conversation(rt, stored)
        running = rt.submit(cid, "running")
        queued = rt.submit(cid, "queued")
        held = model.next()
        closing = gevent.spawn(rt.close, cid)
        let_run()
        with pytest.raises(ConversationClosed):
            rt.send(cid, "late")
        with pytest.raises(ConversationClosed):
            rt.steer(cid, "late")
        assert queued.result().stop_reason == "closed"
        held.say(tool_calls=[("first", {})])
        assert not closing.ready()
        model.next().say("finished")
        assert closing.get() is True
        assert running.result().text == "finished"


def test_a_shutdown_whose_caller_is_killed_goes_on(tmp_path: Path) -> None:
    model = HeldModel()
    path = tmp_path / "a.db"
    rt = Runtime.open(path, model)
    rt.add_agent(AgentConfig(name=AGENT))
    ticket = rt.submit(conversation(rt), "go")
    held = model.next()
    stopping = gevent.spawn(rt.shutdown)
    let_run()
    stopping.kill()
    held.say("done")
    rt.shutdown()
    assert ticket.result().text == "done"
    with runtime(path) as again:
        assert [session.entry_count for session in again.sessions()] == [2]


def test_a_callers_own_timeout_ends_its_wait_and_nothing_else() -> None:
    asked = Signal()

    class Slow(ScriptedModel):
        def stream(self, request: ModelRequest) -> Iterator[Chunk]:
            if request.purpose == "compact" and not asked.is_set():
                asked.set()
                Signal().wait()
            yield from super().stream(request)

    with runtime(":memory:", Slow()) as rt:
        cid = conversation(rt)
        rt.send(cid, "hello")
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            rt.summarize(cid)
        assert asked.is_set()
        assert rt.summarize(cid)
        assert said(history(rt, cid)) == ["hello"]
        assert services(rt).directory.tickets == {}


def replying(request: ModelRequest) -> Reply:
    """What was asked for: a failure, or the call of a tool by its name; and then an answer."""
    last = request.messages[-1]
    if last["role"] == "tool" or last["content"] == "hello":
        return Reply("done")
    if last["content"] == "fail":
        raise ModelError("the endpoint is down")
    return Reply(tool_calls=[(last["content"], {})])


def plain(rt: Runtime, cid: int) -> None:
    rt.send(cid, "hello")


def with_tools(rt: Runtime, cid: int) -> None:
    assert rt.send(cid, "nap").text == "done"


def that_fails(rt: Runtime, cid: int) -> None:
    assert rt.send(cid, "fail").stop_reason == "error"


def cancelled_in_a_tool(rt: Runtime, cid: int) -> None:
    ticket = rt.submit(cid, "cancel")  # the tool does
    assert ticket.result().stop_reason == "cancelled"


def summarized(rt: Runtime, cid: int) -> None:
    assert rt.summarize(cid)


@pytest.mark.parametrize("turn", [plain, with_tools, that_fails, cancelled_in_a_tool, summarized])
def test_a_turn_leaves_nothing_for_the_collector_of_cycles(
    turn: Callable[[Runtime, int], None], tmp_path: Path
) -> None:
    def nap() -> str:
        return "slept"

    def cancel(call: ToolContext) -> None:
        assert call.conversation_id == cid
        rt.cancel(cid)

    gc.freeze()  # what other tests have left takes seconds to look through
    with runtime(
        tmp_path / "a.db", ScriptedModel(replying, keep_requests=0), tools=[Tool(nap), Tool(cancel)]
    ) as rt:
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        rt.send(cid, "hello")  # the first turn asks for a title too
        let_run()
        turn(rt, cid)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            turn(rt, cid)
            let_run()
            gc.collect()
            left = [type(found) for found in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.unfreeze()
            gc.enable()
    ours = ("actors.", "persistence.", "palaver.")
    assert [kind for kind in left if kind.__module__.startswith(ours)] == []
