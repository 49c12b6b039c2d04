"""ScriptedModel: the embedded default, and what tests and simulations are written with."""

from __future__ import annotations

import gevent
import pytest
from attrs import evolve

from actors.errors import InvalidConfig, ModelError
from actors.models.base import Chunk, Model, ModelRequest, ToolCallDelta
from actors.models.scripted import Reply, ScriptedModel
from persistence.records import ToolCall, Usage


def request(*texts: str, **fields: object) -> ModelRequest:
    """A request whose messages are user texts, after a system prompt."""
    messages = [{"role": "system", "content": "be brief"}]
    messages += [{"role": "user", "content": text} for text in texts]
    return ModelRequest("m", messages, **fields)


def said(model: ScriptedModel, *texts: str, **fields: object) -> str:
    return "".join(chunk.text for chunk in model.stream(request(*texts, **fields)))


def test_it_is_a_model():
    assert isinstance(ScriptedModel(), Model)


def test_without_a_script_the_last_user_message_is_echoed():
    model = ScriptedModel()
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "an answer"},
        {"role": "tool", "tool_call_id": "c", "content": "a result"},
    ]
    chunks = list(model.stream(ModelRequest("m", messages)))
    assert chunks == [Chunk("second", finish_reason="stop")]


def test_an_echo_reads_content_that_is_a_list_of_parts():
    parts = [{"type": "text", "text": "one "}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    chunks = list(ScriptedModel().stream(ModelRequest("m", [{"role": "user", "content": parts}])))
    assert "".join(chunk.text for chunk in chunks) == "one two"


def test_an_echo_without_a_user_message_says_nothing():
    assert list(ScriptedModel().stream(request())) == [Chunk(finish_reason="stop")]


def test_replies_of_a_list_are_taken_in_order_and_then_used_up():
    model = ScriptedModel(["one", Reply("two")])
    assert [said(model, "x"), said(model, "x")] == ["one", "two"]
    with pytest.raises(ModelError, match="used up: all its 2 replies"):
        said(model, "x")


def test_a_function_of_the_request_gives_the_reply():
    model = ScriptedModel(lambda asked: f"{asked.sender} says {asked.messages[-1]['content']}")
    assert said(model, "hi", sender="ann") == "ann says hi"


def test_a_function_that_gives_no_reply_is_a_model_error():
    with pytest.raises(ModelError, match="gave None"):
        said(ScriptedModel(lambda _request: None), "x")


@pytest.mark.parametrize("error", [ValueError("boom"), ValueError, KeyboardInterrupt("boom")])
def test_an_exception_for_a_reply_is_raised(error):
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        said(ScriptedModel([error]), "x")


def test_a_function_may_raise_by_itself():
    def fail(_request: ModelRequest) -> str:
        raise LookupError("nothing here")

    with pytest.raises(LookupError):
        said(ScriptedModel(fail), "x")


def test_reasoning_text_and_calls_stream_in_that_order_in_chunks():
    reply = Reply("abcdef", "xyz", [("f", {"a": 1}), ("g", {})], Usage(1, 2, 3), chunk_chars=4)
    chunks = list(ScriptedModel([reply]).stream(request("x")))
    assert [chunk.reasoning for chunk in chunks if chunk.reasoning] == ["xyz"]
    assert [chunk.text for chunk in chunks if chunk.text] == ["abcd", "ef"]
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert deltas == [
        ToolCallDelta(0, "call_1", "f"),
        ToolCallDelta(0, arguments='{"a"'),
        ToolCallDelta(0, arguments=": 1}"),
        ToolCallDelta(1, "call_2", "g"),
        ToolCallDelta(1, arguments="{}"),
    ]
    kinds = ["r" if c.reasoning else "t" if c.text else "c" if c.tool_calls else "end" for c in chunks]
    assert kinds == ["r", "t", "t", "c", "c", "c", "c", "c", "end"]
    assert chunks[-1] == Chunk(finish_reason="tool_calls", usage=Usage(1, 2, 3))
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


@pytest.mark.parametrize("size", [0, None, -1, 200])
def test_text_in_one_chunk_is_one_chunk_in_all(size):
    model = ScriptedModel([Reply("x" * 200, usage=Usage(1), chunk_chars=size)])
    assert list(model.stream(request("x"))) == [Chunk("x" * 200, finish_reason="stop", usage=Usage(1))]


def test_calls_in_one_chunk_are_one_delta_each():
    model = ScriptedModel([Reply("hm", tool_calls=[("f", {"a": "é"})], chunk_chars=0)])
    deltas = [delta for chunk in model.stream(request("x")) for delta in chunk.tool_calls]
    assert deltas == [ToolCallDelta(0, "call_1", "f", '{"a": "é"}')]


def test_call_ids_are_unique_over_all_requests_of_a_model():
    model = ScriptedModel([Reply(tool_calls=[("f", {}), ("f", {})]), Reply(tool_calls=[("f", {})])])
    ids = [d.id for _ in range(2) for c in model.stream(request("x")) for d in c.tool_calls if d.id]
    assert ids == ["call_1", "call_2", "call_3"]


def test_a_call_record_keeps_its_id_and_its_argument_text_even_if_it_is_no_json():
    model = ScriptedModel([Reply(tool_calls=[ToolCall("mine", "f", "{oops")], chunk_chars=0)])
    deltas = [delta for chunk in model.stream(request("x")) for delta in chunk.tool_calls]
    assert deltas == [ToolCallDelta(0, "mine", "f", "{oops")]


def test_a_delay_waits_before_the_first_chunk_with_the_sleep_it_was_given():
    waited: list[float] = []
    model = ScriptedModel([Reply("hi", delay_s=2.5), "ho"], sleep=waited.append)
    stream = model.stream(request("x"))
    assert waited == []
    assert next(stream).text == "hi"
    assert waited == [2.5]
    said(model, "x")
    assert waited == [2.5]


def test_a_delay_leaves_other_greenlets_running():
    model = ScriptedModel([Reply("slow", delay_s=0.001), "quick"])
    order: list[str] = []
    slow = gevent.spawn(lambda: order.append(said(model, "x")))
    gevent.sleep(0)
    order.append(said(model, "x"))
    slow.join(5)
    assert order == ["quick", "slow"]


def test_an_error_after_part_of_the_text_comes_after_that_text():
    model = ScriptedModel([Reply("part", error=ModelError("cut off"))])
    stream = model.stream(request("x"))
    assert next(stream) == Chunk("part")
    with pytest.raises(ModelError, match="cut off"):
        next(stream)


def test_no_finish_reason_is_a_stream_that_was_cut():
    model = ScriptedModel([Reply("x" * 20, finish_reason=None), Reply("y", finish_reason=None)])
    assert [chunk.finish_reason for chunk in model.stream(request("x"))] == [None, None]
    assert [chunk.finish_reason for chunk in model.stream(request("x"))] == [None]


def test_a_finish_reason_of_ones_own_is_passed_on():
    assert list(ScriptedModel([Reply("a", finish_reason="length")]).stream(request("x"))) == [
        Chunk("a", finish_reason="length")
    ]


def test_summaries_and_titles_take_nothing_from_the_script():
    model = ScriptedModel(["only one"])
    summary = said(model, "the red bicycle", purpose="compact")
    assert summary.startswith("Summary of 1 messages: user: the red bicycle")
    assert said(model, "please mend my old red bicycle now", purpose="title") == (
        "please mend my old red bicycle"
    )
    assert said(model, "x") == "only one"


def test_a_function_is_not_asked_for_summaries_and_titles():
    model = ScriptedModel(lambda _request: pytest.fail("asked"))
    assert said(model, "hello", purpose="compact")
    assert said(model, "hello", purpose="title")


@pytest.mark.parametrize("text", ["hello", "good morning", "a b c d e f g h", "", "don't re-use it, please!"])
def test_a_plain_title_has_three_to_six_words(text):
    assert 3 <= len(said(ScriptedModel(), text, purpose="title").split()) <= 6


def test_a_plain_summary_is_never_empty_and_stays_short():
    assert said(ScriptedModel(), purpose="compact")
    assert next(ScriptedModel().stream(ModelRequest("m", [], purpose="compact"))).text
    assert len(said(ScriptedModel(), *(["word " * 10_000] * 500), purpose="compact")) < 1_000


def test_given_summaries_and_titles_come_first_and_plain_ones_after():
    model = ScriptedModel(summaries=["S", ModelError("no summary")], titles=[Reply("T")])
    assert said(model, "x", purpose="compact") == "S"
    with pytest.raises(ModelError, match="no summary"):
        said(model, "x", purpose="compact")
    assert said(model, "x", purpose="compact").startswith("Summary of")
    assert said(model, "x", purpose="title") == "T"
    assert said(model, "ann and bob", purpose="title") == "ann and bob"


def test_requests_are_kept_as_they_were_asked():
    model = ScriptedModel()
    asked = request("one", tools=[{"type": "function"}], sender="ann", turn_id=7, purpose="turn")
    list(model.stream(asked))
    before = evolve(asked, messages=list(asked.messages))
    asked.messages.append({"role": "user", "content": "later"})
    assert model.requests == [before]


def test_no_more_requests_are_kept_than_asked_for():
    newest, none = ScriptedModel(keep_requests=2), ScriptedModel(keep_requests=0)
    for text in "abc":
        said(newest, text)
        said(none, text)
    assert [kept.messages[-1]["content"] for kept in newest.requests] == ["b", "c"]
    assert none.requests == []


def test_a_clock_tells_when_it_was_asked():
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 1.0
            return self.now

        wall = monotonic

    model = ScriptedModel(clock=Clock(), keep_requests=2)
    for text in "abc":
        said(model, text)
    assert model.times == [2.0, 3.0]


def test_two_models_of_one_script_say_the_same():
    script = ["a", Reply("b", tool_calls=[("f", {"x": 1})])]
    first, second = ScriptedModel(script), ScriptedModel(script)
    for _ in script:
        assert list(first.stream(request("q"))) == list(second.stream(request("q")))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ScriptedModel("hello"), "the script must be a list"),
        (lambda: ScriptedModel([1]), "the script holds 1"),
        (lambda: ScriptedModel(summaries=[None]), "summaries"),
        (lambda: ScriptedModel(titles="T"), "titles"),
        (lambda: ScriptedModel(7), "the script"),
        (lambda: ScriptedModel(keep_requests=-1), "keep_requests"),
        (lambda: Reply(1), "text"),
        (lambda: Reply(reasoning=None), "reasoning"),
        (lambda: Reply(tool_calls=["f"]), "tool_calls"),
        (lambda: Reply(tool_calls=[("f", "{}")]), "tool_calls"),
        (lambda: Reply(tool_calls=[("f", {"a": object()})]), "tool_calls"),
        (lambda: Reply(delay_s=-1), "delay_s"),
        (lambda: Reply(delay_s=float("nan")), "delay_s"),
        (lambda: Reply(chunk_chars="4"), "chunk_chars"),
        (lambda: Reply(usage={}), "usage"),
        (lambda: Reply(error="x"), "error"),
        (lambda: Reply(finish_reason=3), "finish_reason"),
    ],
)
def test_what_is_no_reply_is_refused_by_name(make, names):
    with pytest.raises(InvalidConfig, match=names):
        make()
