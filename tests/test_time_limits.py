"""Time limits, bounds on calls, and `Retry-After`: what takes too long ends, and the conversation goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from model_server import Exchange, ModelServer, says, status, streams
from test_virtual_runtime import on_virtual_time, wait
from turns_support import AGENT, deadline, race, runtime, said, services

from palaver import (
    AgentConfig,
    Chunk,
    CompactionFailed,
    Done,
    Limits,
    ModelError,
    ModelRequest,
    OpenAIModel,
    Overflowed,
    Reply,
    Runtime,
    ScriptedModel,
    TextDelta,
    TextEnd,
    TextStart,
    ToolResult,
    TurnResult,
)
from palaver.copies import import_database
from palaver.simulation.loop import current_loop

HOUR = 3_600.0


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline():
        yield


def now() -> float:
    return current_loop().now()


def topic(rt: Runtime, sender: str = "alice", agent: str = AGENT) -> int:
    return rt.switch_topic(agent, sender, "auth", "d").conversation_id


def figures(rt: Runtime) -> tuple[int, int, int, int]:
    """Model calls under way and waiting, tool calls under way and waiting."""
    models, tools = services(rt).model_calls, services(rt).tool_calls
    return models.running, models.waiting, tools.running, tools.waiting


def check_at_rest(rt: Runtime) -> None:
    limits = (services(rt).turn_time, services(rt).round_time, services(rt).tool_time)
    assert figures(rt) == (0, 0, 0, 0)
    assert [len(limit) for limit in limits] == [0, 0, 0]


def stalls_once(seconds: float = HOUR) -> ScriptedModel:
    """A model whose first answer takes long, and whose others take no time."""
    delays = iter((seconds,))
    return ScriptedModel(
        lambda request: Reply(f"re: {request.messages[-1]['content']}", delay_s=next(delays, 0.0)), sleep=wait
    )


class Stubborn:
    """A model that refuses to end: it says "a", and goes on for an hour whatever happens; then it answers at
    once. Titles come at once."""

    def __init__(self, purpose: str = "turn") -> None:
        self.ended = Signal()
        self._purpose = purpose
        self._begun = False

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.purpose == self._purpose and not self._begun:
            self._begun = True
            yield Chunk("a")
            stubborn_wait(HOUR)
            self.ended.set()
            yield Chunk("b")
        yield Chunk("done", finish_reason="stop")


def stubborn_wait(seconds: float) -> None:
    end = now() + seconds
    while now() < end:
        try:
            wait(end - now())
        except BaseException:
            continue


# -- model rounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("open_conversation", [topic, lambda rt: rt.get_or_create(AGENT, "alice")])
def test_a_stalled_round_ends_its_turn_which_can_be_sent_again(
    open_conversation: Callable[[Runtime], int],
) -> None:
    def body(rt: Runtime) -> None:
        cid = open_conversation(rt)
        tickets = [rt.submit(cid, text) for text in ("one", "two")]
        result = tickets[0].result()
        assert now() == pytest.approx(100.0)
        assert (result.stop_reason, result.retryable) == ("error", True)
        assert result.error == (
            "the model gave no whole answer within 100 s (Limits.model_round_s); nothing of it is kept, and "
            "the message can be sent again"
        )
        assert tickets[1].result().text == "re: two"
        assert rt.send(cid, "one").text == "re: one"
        assert now() == pytest.approx(100.0)
        check_at_rest(rt)

    on_virtual_time(body, stalls_once(), limits=Limits(model_round_s=100.0))


def test_a_round_that_is_not_late_is_not_disturbed() -> None:
    def body(rt: Runtime) -> None:
        assert rt.send(topic(rt), "hello").text == "re: hello"
        check_at_rest(rt)

    on_virtual_time(body, stalls_once(99.0), limits=Limits(model_round_s=100.0, turn_s=101.0))


def test_each_round_has_a_time_of_its_own() -> None:
    def body(rt: Runtime) -> None:
        assert rt.send(topic(rt), "hello").text == "done"
        assert now() == pytest.approx(180.0)

    replies = [Reply(tool_calls=[("nap", {})], delay_s=90.0), Reply("done", delay_s=90.0)]
    on_virtual_time(body, ScriptedModel(replies, sleep=wait), limits=Limits(model_round_s=100.0), tools=[nap])


def nap() -> str:
    return "slept"


def test_a_model_that_refuses_to_end_is_left_behind_and_its_place_given_back() -> None:
    model = Stubborn()

    def body(rt: Runtime) -> None:
        cid, events = topic(rt), []
        stream = rt.stream(cid, "one")
        queued = rt.submit(cid, "two")
        events += stream
        assert now() == pytest.approx(105.0)
        result = events[-1].result
        assert (result.stop_reason, result.retryable) == ("error", True)
        assert "100 s (Limits.model_round_s)" in result.error
        assert [type(e) for e in events] == [TextStart, TextDelta, TextEnd, Done]
        assert queued.result().text == "done"
        assert now() == pytest.approx(105.0)
        check_at_rest(rt)
        model.ended.wait()
        wait(1.0)
        assert said(rt.transcript(rt.sessions()[0].handle), "assistant") == ["done"]
        check_at_rest(rt)

    on_virtual_time(body, model, limits=Limits(model_round_s=100.0, model_calls=1))


def test_a_model_that_refuses_to_be_cancelled_is_left_behind() -> None:
    model = Stubborn()

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        ticket = rt.submit(cid, "one")
        wait(10.0)
        assert rt.cancel(cid)
        assert now() == pytest.approx(15.0)
        assert ticket.result().stop_reason == "cancelled"
        assert rt.send(cid, "two").text == "done"
        model.ended.wait()
        wait(1.0)
        assert said(rt.transcript(rt.sessions()[0].handle)) == ["one", "two"]
        check_at_rest(rt)

    on_virtual_time(body, model, limits=Limits(model_calls=1))


def test_what_a_model_makes_of_being_stopped_is_still_a_matter_of_time() -> None:
    class Converts:
        def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
            try:
                wait(HOUR)
            except BaseException as error:
                raise ValueError("something broke") from error
            yield Chunk("late", finish_reason="stop")

    class Recovers:
        def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
            try:
                wait(HOUR)
            except BaseException:
                yield Chunk("half an answer", finish_reason="stop")

    def body(rt: Runtime) -> None:
        result = rt.send(rt.get_or_create(AGENT, "alice"), "hello")
        assert (result.text, result.stop_reason, result.retryable) == ("", "error", True)
        assert "Limits.model_round_s" in (result.error or "")
        check_at_rest(rt)

    for model in (Converts(), Recovers()):
        on_virtual_time(body, model, limits=Limits(model_round_s=100.0))


def test_a_stalled_summary_fails_the_compaction_and_frees_the_conversation() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        for compact in (rt.compact, rt.summarize):
            began = now()
            with pytest.raises(CompactionFailed, match=r"100 s \(Limits.model_round_s\)"):
                compact(cid)
            assert now() - began == pytest.approx(100.0)
        assert rt.send(cid, "two").text == "two"
        check_at_rest(rt)

    slow = [Reply("late", delay_s=HOUR)] * 2
    model = ScriptedModel(summaries=slow, sleep=wait)
    on_virtual_time(body, model, limits=Limits(model_round_s=100.0))


def test_a_summary_whose_model_refuses_to_end_frees_the_conversation_too() -> None:
    model = Stubborn("compact")

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        compacting = gevent.spawn(race, [lambda: rt.compact(cid)])
        wait(1.0)
        queued = rt.submit(cid, "two")
        assert queued.result().text == "done"
        assert now() == pytest.approx(105.0)
        assert isinstance(compacting.get()[0], CompactionFailed)
        check_at_rest(rt)
        model.ended.wait()

    on_virtual_time(body, model, limits=Limits(model_round_s=100.0, model_calls=1))


def test_a_stalled_title_gives_its_place_back() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        wait(1.0)
        assert figures(rt)[0] == 1
        wait(100.0)
        check_at_rest(rt)
        assert rt.send(cid, "two").text == "two"
        wait(1.0)
        assert rt.sessions()[0].title == "Some good title"

    model = ScriptedModel(titles=[Reply("late", delay_s=HOUR), "Some good title"], sleep=wait)
    agent = AgentConfig(name=AGENT, model="m")
    on_virtual_time(body, model, agent, limits=Limits(model_round_s=100.0))


# -- turns -----------------------------------------------------------------------------------------


def test_a_turn_that_takes_too_long_ends_with_its_completed_steps() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        queued = [rt.submit(cid, text) for text in ("one", "two")]
        result = queued[0].result()
        assert now() == pytest.approx(100.0)
        assert (result.stop_reason, result.steps, result.retryable) == ("error", 2, True)
        assert result.error == (
            "the turn took longer than 100 s (Limits.turn_s) and was stopped; its completed steps are kept, "
            "and the message can be sent again"
        )
        assert queued[1].result().text == "done"
        transcript = rt.transcript(rt.sessions()[0].handle)
        assert [entry.role for entry in transcript] == [
            "user",
            *["assistant", "tool"] * 2,
            "user",
            "assistant",
        ]
        check_at_rest(rt)

    replies = [Reply(tool_calls=[("nap", {})], delay_s=45.0)] * 2 + [Reply("late", delay_s=45.0), "done"]
    limits = Limits(turn_s=100.0)
    on_virtual_time(body, ScriptedModel(replies, sleep=wait), limits=limits, tools=[nap])


def test_a_turn_that_is_late_while_tools_run_interrupts_them() -> None:
    ended = []

    def work() -> str:
        try:
            wait(HOUR)
        finally:
            ended.append(now())
        return "late"

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        result = rt.send(cid, "one")
        assert (result.stop_reason, ended) == ("error", [100.0])
        assert "Limits.turn_s" in (result.error or "")
        assert rt.send(cid, "two").text == "done"
        check_at_rest(rt)

    model = ScriptedModel([Reply(tool_calls=[("work", {})]), "done"])
    on_virtual_time(body, model, limits=Limits(turn_s=100.0), tools=[work])


def test_a_turn_is_not_late_twice_and_a_cancel_that_comes_later_says_so() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        ticket = rt.submit(cid, "one")
        wait(102.0)  # late at 100, and left behind at 105
        assert ticket.cancel() is False
        assert ticket.result().stop_reason == "error"
        assert now() == pytest.approx(105.0)
        assert rt.send(cid, "two").text == "done"

    on_virtual_time(body, Stubborn(), limits=Limits(turn_s=100.0))


def test_waiting_for_a_model_counts_for_the_turn_and_not_for_the_round() -> None:
    def body(rt: Runtime) -> None:
        cids = [topic(rt, sender) for sender in ("ann", "bob", "cat", "dan")]
        results = race([lambda cid=cid: rt.send(cid, "hello") for cid in cids])
        assert [result.stop_reason for result in results] == ["text_response"] * 3 + ["error"]
        assert "Limits.turn_s" in results[3].error
        assert results[3].retryable
        assert now() == pytest.approx(270.5)
        check_at_rest(rt)
        assert rt.send(cids[3], "hello").text == "hi"

    model = ScriptedModel(lambda _request: Reply("hi", delay_s=90.0), sleep=wait)
    on_virtual_time(body, model, limits=Limits(model_calls=1, model_round_s=100.0, turn_s=270.5))


# -- tools -----------------------------------------------------------------------------------------


def test_a_stalled_tool_is_an_error_that_the_model_reads_and_the_turn_goes_on() -> None:
    def slow(call: Any) -> str:
        wait(HOUR)
        return "late"

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        events = [*rt.stream(cid, "one")]
        assert now() == pytest.approx(100.0)
        results = [event for event in events if isinstance(event, ToolResult)]
        assert [(r.name, r.output, r.is_error) for r in results] == [
            ("nap", "slept", False),
            ("slow", "error: slow took longer than 100 s (Limits.tool_call_s) and was stopped", True),
        ]
        assert events[-1].result.text == "done"
        shown = said(rt.transcript(rt.sessions()[0].handle), "tool")
        assert shown == [results[1].output, "slept"]
        check_at_rest(rt)

    model = ScriptedModel([Reply(tool_calls=[("slow", {}), ("nap", {})]), "done"])
    on_virtual_time(body, model, limits=Limits(tool_call_s=100.0), tools=[slow, nap])


def test_a_tool_that_refuses_to_end_is_left_behind_and_its_place_given_back() -> None:
    ended = Signal()

    def immortal() -> str:
        stubborn_wait(HOUR)
        ended.set()
        return "late"

    def body(rt: Runtime) -> None:
        cid = topic(rt)
        assert rt.send(cid, "one").text == "done"
        assert now() == pytest.approx(105.0)
        check_at_rest(rt)
        ended.wait()
        wait(1.0)
        assert len(said(rt.transcript(rt.sessions()[0].handle), "tool")) == 1

    model = ScriptedModel([Reply(tool_calls=[("immortal", {})]), "done"])
    on_virtual_time(body, model, limits=Limits(tool_call_s=100.0, tool_calls=1), tools=[immortal])


def test_tools_of_all_conversations_together_keep_to_their_bound_and_senders_take_turns() -> None:
    at_work, most, order = [0], [0], []

    def work(call: Any) -> str:
        order.append(call.sender)
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        wait(10.0)
        at_work[0] -= 1
        return "worked"

    def body(rt: Runtime) -> None:
        results = race([lambda s=s: rt.send(topic(rt, s), "go") for s in ("ann", "bob")])
        assert [result.text for result in results] == ["done", "done"]
        assert most == [2]
        assert now() == pytest.approx(50.0)
        assert order == ["ann", "ann", *["ann", "bob"] * 3, "bob", "bob"]
        check_at_rest(rt)

    def answer(request: ModelRequest) -> Reply:
        if request.messages[-1]["role"] == "tool":
            return Reply("done")
        return Reply(tool_calls=[("work", {})] * 5)

    limits = Limits(tool_calls=2, tool_call_s=11.0)
    on_virtual_time(body, ScriptedModel(answer), limits=limits, tools=[work])


def test_a_turn_that_is_cancelled_while_its_calls_wait_keeps_no_place() -> None:
    def work() -> str:
        wait(HOUR)
        return "worked"

    def body(rt: Runtime) -> None:
        cids = [topic(rt, sender) for sender in ("ann", "bob", "cat")]
        tickets = [rt.submit(cid, "go") for cid in cids]
        wait(1.0)
        assert figures(rt) == (0, 0, 1, 2)
        assert tickets[1].cancel()
        assert figures(rt) == (0, 0, 1, 1)
        assert tickets[0].cancel()
        assert figures(rt) == (0, 0, 1, 0)
        assert tickets[2].cancel()
        check_at_rest(rt)

    model = ScriptedModel([Reply(tool_calls=[("work", {})])] * 3)
    on_virtual_time(body, model, limits=Limits(tool_calls=1), tools=[work])


def test_a_turn_that_is_cancelled_while_it_waits_for_a_model_keeps_no_place() -> None:
    def body(rt: Runtime) -> None:
        cids = [topic(rt, sender) for sender in ("ann", "bob", "cat")]
        tickets = [rt.submit(cid, "go") for cid in cids]
        wait(1.0)
        assert figures(rt) == (1, 2, 0, 0)
        assert tickets[1].cancel()
        assert figures(rt) == (1, 1, 0, 0)
        assert [tickets[n].result().text for n in (0, 2)] == ["hi", "hi"]
        assert now() == pytest.approx(20.0)
        check_at_rest(rt)

    model = ScriptedModel(lambda _request: Reply("hi", delay_s=10.0), sleep=wait)
    on_virtual_time(body, model, limits=Limits(model_calls=1))


def test_an_output_that_is_cut_is_an_incident() -> None:
    def body(rt: Runtime) -> None:
        heard = rt.subscribe()
        rt.send(topic(rt), "go")
        seen = []
        while not seen or not isinstance(seen[-1][1], Done):
            seen.append(next(heard))
        told = [(info.sender, event) for info, event in seen if isinstance(event, Overflowed)]
        assert told == [("alice", Overflowed("tool_output_chars", 4))]

    model = ScriptedModel([Reply(tool_calls=[("nap", {}), ("nap", {"x": 1})]), "done"])
    on_virtual_time(body, model, limits=Limits(tool_output_chars=4), tools=[nap])


# -- what may be sent again ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ModelError("no such model"), False),
        (ModelError("overloaded", retryable=True), True),
        (ConnectionResetError("by peer"), True),
        (TimeoutError("timed out"), True),
        (ValueError("a bug"), False),
    ],
    ids=str,
)
def test_a_result_says_whether_the_message_can_be_sent_again(error: Exception, retryable: bool) -> None:
    def body(rt: Runtime) -> None:
        result = rt.send(topic(rt), "hello")
        assert (result.stop_reason, result.retryable) == ("error", retryable)
        (row,) = rt.turns(rt.sessions()[0].handle)
        assert row.result == result

    on_virtual_time(body, ScriptedModel([error]))


def test_that_a_message_can_be_sent_again_is_exported_and_imported(tmp_path: Path) -> None:
    model = ScriptedModel([ModelError("overloaded", retryable=True), "hi"])
    with runtime(tmp_path / "a.db", model) as rt:
        cid = topic(rt)
        results = [rt.send(cid, "hello") for _ in range(2)]
        handle = rt.sessions()[0].handle
        rt.export(tmp_path / "text")
    import_database(tmp_path / "text", tmp_path / "b.db")
    with runtime(tmp_path / "b.db") as again:
        imported = [row.result for row in again.turns(handle)]
    assert imported == results
    assert [result.retryable for result in results] == [True, False]


# -- Retry-After -----------------------------------------------------------------------------------


def test_a_model_that_is_to_be_left_alone_keeps_its_own_calls_waiting_and_no_others() -> None:
    def busy(_request: ModelRequest) -> Reply | Exception:
        if now() < 1.0:
            return ModelError("429", retryable=True, retry_after_s=30.0)
        return Reply(f"at {now():.0f}")

    def body(rt: Runtime) -> None:
        rt.add_agent(AgentConfig(name="owl", model="other"))
        first = rt.send(topic(rt), "hello")
        assert (first.stop_reason, first.retryable) == ("error", True)
        cids = [topic(rt, "bob"), topic(rt, "cat"), topic(rt, "bob", "owl")]
        results = race([lambda cid=cid: rt.send(cid, "hello") for cid in cids])
        assert [result.text for result in results] == ["at 30", "at 30", "at 0"]
        assert services(rt).model_calls.paused_s == pytest.approx(30.0)

    models = {"busy": ScriptedModel(busy), "other": ScriptedModel(lambda _request: f"at {now():.0f}")}
    on_virtual_time(body, models, AgentConfig(name=AGENT, model="busy", auto_title=False))


class Patient:
    """A model that was told to come back in 50 s: once, by its first request."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self._told = False

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        self.asked.append((now(), request.sender))
        if not self._told:
            self._told = True
            assert request.pause is not None
            request.pause(50.0)
            self.asked.append((now(), request.sender))
        wait(10.0)
        yield Chunk("hi", finish_reason="stop")


def test_a_call_that_pauses_gives_its_place_to_other_models_and_none_of_its_own_runs_into_it() -> None:
    patient = Patient()

    def body(rt: Runtime) -> None:
        rt.add_agent(AgentConfig(name="owl", model="other", auto_title=False))
        cids = [topic(rt, "ann"), topic(rt, "bob"), topic(rt, "cat", "owl")]
        tickets = [rt.submit(cid, "hello") for cid in cids]
        assert tickets[2].result().text == "quick"
        assert now() == pytest.approx(1.0)
        assert [ticket.result().text for ticket in tickets] == ["hi", "hi", "quick"]
        assert patient.asked == [(0.0, "ann"), (50.0, "ann"), (60.0, "bob")]
        check_at_rest(rt)

    quick = ScriptedModel(lambda _request: Reply("quick", delay_s=1.0), sleep=wait)
    agent = AgentConfig(name=AGENT, model="busy", auto_title=False)
    limits = Limits(model_calls=1, model_round_s=15.0)
    on_virtual_time(body, {"busy": patient, "other": quick}, agent, limits=limits)


def test_a_call_that_is_cancelled_in_its_pause_has_no_place_to_give_back() -> None:
    patient = Patient()

    def body(rt: Runtime) -> None:
        ann, bob = (rt.submit(topic(rt, sender), "hello") for sender in ("ann", "bob"))
        wait(20.0)
        assert figures(rt) == (0, 2, 0, 0)
        assert ann.cancel()
        assert figures(rt) == (0, 1, 0, 0)
        assert bob.result().text == "hi"
        assert now() == pytest.approx(60.0)
        check_at_rest(rt)

    on_virtual_time(body, patient, limits=Limits(model_calls=1))


BUSY_S = 0.3


@pytest.mark.parametrize("code", [429, 503])
def test_one_call_runs_into_a_busy_endpoint_and_the_others_wait_until_it_said(code: int) -> None:
    began: list[float] = []
    refused: list[int] = []
    clock = gevent.get_hub().loop

    def respond(exchange: Exchange) -> None:
        clock.update_now()
        began.append(clock.now())
        if clock.now() < began[0] + BUSY_S:
            refused.append(code)
            status(code, "busy", Retry_After=str(BUSY_S))(exchange)
        else:
            streams(says("hello"))(exchange)

    with ModelServer(default=respond) as server:
        model = OpenAIModel(server.url, rng=NoJitter())
        with runtime(":memory:", model, checked=False, limits=Limits(model_calls=2)) as rt:
            cids = [rt.get_or_create(AGENT, f"s{number}") for number in range(8)]
            assert rt.send(cids[0], "hello").text == "hello"
            results: list[TurnResult] = race([lambda cid=cid: rt.send(cid, "hello") for cid in cids])
            assert [result.text for result in results] == ["hello"] * 8
            assert services(rt).model_calls.paused_s == pytest.approx(BUSY_S)
        model.close()
    assert refused == [code]
    assert len(began) == 10


def test_what_an_endpoint_asks_for_last_is_heeded_too() -> None:
    answers = [status(429, "busy", Retry_After="40")] * 2
    with ModelServer(*answers, default=streams(says("hello"))) as server:
        model = OpenAIModel(server.url, total_timeout_s=5)
        with runtime(":memory:", model, checked=False) as rt:
            result = rt.send(rt.get_or_create(AGENT, "ann"), "hello")
            assert (result.stop_reason, result.retryable) == ("error", True)
            assert services(rt).model_calls.paused_s == pytest.approx(5.0)
            waiting = rt.submit(rt.get_or_create(AGENT, "bob"), "hello")
            gevent.idle()
            assert figures(rt)[:2] == (0, 1)
            assert waiting.cancel()
        model.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "retryable"),
    [
        (status(429, "busy"), True),
        (status(500, "ill"), True),
        (status(400, "bad request"), False),
        (status(401, "who are you"), False),
        (streams(b'data: {"choices": [{"delta": {"content": "cut"}}]}\n\n'), True),
    ],
    ids=["429", "500", "400", "401", "cut"],
)
def test_what_is_left_after_retries_says_whether_it_can_be_sent_again(answer: Any, retryable: bool) -> None:
    with ModelServer(default=answer) as server:
        model = OpenAIModel(server.url, retries=0)
        with runtime(":memory:", model, checked=False) as rt:
            result = rt.send(rt.get_or_create(AGENT, "ann"), "hello")
            assert (result.stop_reason, result.retryable) == ("error", retryable)
        model.close()


def test_an_endpoint_that_is_not_there_can_be_asked_again() -> None:
    with ModelServer() as server:
        nowhere = server.url
    model = OpenAIModel(nowhere, retries=0)
    with runtime(":memory:", model, checked=False) as rt:
        assert rt.send(rt.get_or_create(AGENT, "ann"), "hello").retryable
    model.close()


class NoJitter:
    def random(self) -> float:
        return 0.0


def test_requests_that_wait_for_a_connection_take_turns_too() -> None:
    served: list[str] = []
    all_there = Signal()

    def respond(exchange: Exchange) -> None:
        all_there.wait()
        served.append(exchange.asked.json["messages"][-1]["content"])
        streams(says("hello"))(exchange)

    with ModelServer(default=respond) as server:
        model = OpenAIModel(server.url, max_concurrent=1)
        with runtime(":memory:", model, checked=False) as rt:
            flood = [rt.switch_topic(AGENT, "ann", f"t{n}", "d").conversation_id for n in range(6)]
            tickets = [rt.submit(cid, "ann") for cid in flood]
            tickets.append(rt.submit(rt.get_or_create(AGENT, "bob"), "bob"))
            all_there.set()
            gevent.joinall([gevent.spawn(ticket.result) for ticket in tickets])
        model.close()
    assert served.index("bob") <= 2
