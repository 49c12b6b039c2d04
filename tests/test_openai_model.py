"""OpenAIModel against a real HTTP server on loopback that behaves, stalls, cuts and lies."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from model_server import Exchange, ModelServer, cut, drops, part, says, sse, stalls, status, streams
from support import PATIENCE_S, PROCESS_S

from actors.errors import InvalidConfig, ModelError, NotPatched
from actors.models.base import Chunk, Model, ModelRequest, ToolCallDelta
from actors.models.openai import OpenAIModel
from actors.models.retry import back_off, retry_after
from actors.models.sse import SseParser
from persistence.records import Usage

KEY = "sk-very-secret-0123456789"
ASKED = ModelRequest("m1", [{"role": "user", "content": "hi"}])


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(default=streams(says("hello"))) as running:
        yield running


@pytest.fixture
def connect(server: ModelServer) -> Iterator[Any]:
    """Makes models of the server that do not wait between attempts."""
    models: list[OpenAIModel] = []

    def make(**arguments: Any) -> OpenAIModel:
        arguments = {"api_key": KEY, "rng": NoJitter(), "total_timeout_s": 20, **arguments}
        models.append(OpenAIModel(arguments.pop("base_url", server.url), **arguments))
        return models[-1]

    with gevent.Timeout(PATIENCE_S):
        yield make
    for model in models:
        model.close()


def text_of(chunks: Any) -> str:
    return "".join(chunk.text for chunk in chunks)


def fails(model: OpenAIModel, request: ModelRequest = ASKED) -> str:
    """The message of the ModelError that the request ends with."""
    with pytest.raises(ModelError) as caught:
        list(model.stream(request))
    return str(caught.value)


def until(condition: Any) -> None:
    """Let other greenlets run until the condition holds."""
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.idle()


# -- good answers ------------------------------------------------------------------------------------------


def test_it_is_a_model(connect):
    assert isinstance(connect(), Model)


def test_text_arrives_in_pieces_and_ends_with_the_finish_reason(server, connect):
    server.answers.append(streams(sse(part(role="assistant"), part("hel"), part("lo"), part(finish="stop"))))
    assert list(connect().stream(ASKED)) == [Chunk("hel"), Chunk("lo"), Chunk(finish_reason="stop")]


def test_a_piece_is_passed_on_as_soon_as_it_is_there(server, connect):
    server.answers.append(stalls(sse(part("early"), done=False)))
    stream = connect().stream(ASKED)
    assert next(stream) == Chunk("early")
    stream.close()


def test_the_request_says_what_was_asked(server, connect):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [{"role": "system", "content": "è 🙂"}, {"role": "user", "content": "x"}]
    model = connect(headers={"X-Team": "blue"}, extra={"temperature": 0, "reasoning_effort": "high"})
    list(model.stream(ModelRequest("gpt-x", messages, tools, tool_choice="f", thinking=True)))
    asked = server.requests[0]
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["x-team"] == "blue"
    assert asked.json == {
        "model": "gpt-x",
        "messages": messages,
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "temperature": 0,
        "reasoning_effort": "high",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_choice_is_sent_with_tools_and_left_out_without(server, connect, choice):
    model = connect()
    list(model.stream(ModelRequest("m", [], [{"type": "function"}], tool_choice=choice)))
    list(model.stream(ModelRequest("", [], tool_choice=choice)))
    assert server.requests[0].json["tool_choice"] == choice
    assert not {"tools", "tool_choice", "model", "reasoning_effort"} & server.requests[1].json.keys()


def test_thinking_asks_for_medium_effort(server, connect):
    list(connect().stream(ModelRequest("m", [], thinking=True)))
    assert server.requests[0].json["reasoning_effort"] == "medium"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_kept_apart_from_text(server, connect, name):
    server.answers.append(streams(sse(part(**{name: "hm"}), part("so"), part(finish="stop"))))
    chunks = list(connect().stream(ASKED))
    assert chunks[:2] == [Chunk(reasoning="hm"), Chunk("so")]


def test_a_refusal_is_text(server, connect):
    server.answers.append(streams(sse(part(content=None, refusal="no"), part(finish="stop"))))
    assert text_of(connect().stream(ASKED)) == "no"


def test_usage_comes_with_its_details(server, connect):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    body = sse(part("a"), part(finish="stop"), {"choices": [], "usage": usage})
    server.answers += [streams(body), streams(sse(part("a", "stop"), {"usage": {"prompt_tokens": 2}}))]
    model = connect()
    assert list(model.stream(ASKED))[-1] == Chunk(finish_reason="stop", usage=Usage(10, 5, 15, 8, 3))
    assert list(model.stream(ASKED))[-1].usage == Usage(2, 0, 2)


def test_an_unknown_finish_reason_is_passed_on(server, connect):
    server.answers.append(streams(sse(part("a"), part(finish="solar_flare"))))
    assert list(connect().stream(ASKED))[-1].finish_reason == "solar_flare"


def call(index: int | None, call_id: str | None, name: str | None, arguments: Any = "") -> dict[str, Any]:
    delta = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in delta.items() if value is not None}


def joined(chunks: Any) -> dict[int, tuple[str, str, str]]:
    """Tool calls by index, put together as a turn does it."""
    calls: dict[int, list[str]] = {}
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        found = calls.setdefault(delta.index, ["", "", ""])
        found[0] = found[0] or delta.id or ""
        found[1] = found[1] or delta.name or ""
        found[2] += delta.arguments
    return {index: (c[0], c[1], c[2]) for index, c in sorted(calls.items())}


TWO_CALLS = {0: ("a", "f", '{"x":1}'), 1: ("b", "g", '{"y":2}')}


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param(
            [
                [call(0, "a", "f")],
                [call(1, "b", "g")],
                [call(0, None, None, '{"x"')],
                [call(1, None, None, '{"y":2}')],
                [call(0, None, None, ":1}")],
            ],
            id="interleaved",
        ),
        pytest.param([[call(0, "a", "f", '{"x":1}'), call(1, "b", "g", '{"y":2}')]], id="whole"),
        pytest.param(
            [
                [call(None, "a", "f", '{"x"')],
                [call(None, None, None, ":1}")],
                [call(None, "b", "g", '{"y":2}')],
            ],
            id="no-index",
        ),
        pytest.param(
            [
                [call(0, "a", "f", '{"x"')],
                [call(0, "a", None, ":1}")],
                [call(0, "b", "g", '{"y"')],
                [call(0, None, None, ":2}")],
            ],
            id="one-index-for-all",
        ),
        pytest.param([[call(0, "a", "f", '{"x":1}')], [call(1, "b", "g", {"y": 2})]], id="object"),
    ],
)
def test_tool_calls_are_told_apart(server, connect, deltas):
    parts = [part(tool_calls=delta) for delta in deltas]
    server.answers.append(streams(sse(*parts, part(finish="tool_calls"))))
    chunks = list(connect().stream(ASKED))
    found = joined(chunks)
    assert {i: (c[0], c[1], json.loads(c[2])) for i, c in found.items()} == {
        i: (c[0], c[1], json.loads(c[2])) for i, c in TWO_CALLS.items()
    }
    assert chunks[-1].finish_reason == "tool_calls"


def test_a_plain_json_completion_is_an_answer_too(server, connect):
    message = {"content": "hello", "tool_calls": [call(None, "a", "f", "{}"), call(None, "b", "g", "{}")]}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"total_tokens": 7},
    }
    server.answers.append(status(200, body))
    assert list(connect().stream(ASKED)) == [
        Chunk("hello", tool_calls=(ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, "b", "g", "{}"))),
        Chunk(finish_reason="stop", usage=Usage(total_tokens=7)),
    ]


def test_a_json_completion_after_blank_lines_that_keep_the_connection_alive_is_read(server, connect):
    body = json.dumps({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}).encode()
    server.answers.append(streams(b"\n", b"\n", body[:9], body[9:]))
    assert text_of(connect().stream(ASKED)) == "ok"


def test_a_body_without_length_or_chunks_is_streamed(server, connect):
    server.answers.append(cut(says("until the end"), chunked=False))
    assert text_of(connect().stream(ASKED)) == "until the end"


def test_a_compressed_stream_is_read(server, connect):
    def respond(exchange: Exchange) -> None:
        packer = zlib.compressobj(wbits=31)
        exchange.head(Content_Encoding="gzip")
        for data in (sse(part("small "), done=False), sse(part("parts", "stop"))):
            exchange.piece(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))
        exchange.piece(packer.flush())
        exchange.end()

    server.answers.append(respond)
    assert text_of(connect().stream(ASKED)) == "small parts"


def test_a_stream_that_stays_open_after_done_is_not_waited_for(server, connect):
    server.answers.append(stalls(says("bye")))
    assert text_of(connect().stream(ASKED)) == "bye"
    assert server.hung_up.wait(PATIENCE_S)


def test_a_break_after_the_finish_reason_takes_nothing_away(server, connect):
    server.answers += [
        cut(sse(part("a", "stop"), done=False)),
        cut(sse(part("b", "stop"), done=False), reset=True),
    ]
    model = connect()
    assert list(model.stream(ASKED)) == [Chunk("a"), Chunk(finish_reason="stop")]
    assert list(model.stream(ASKED)) == [Chunk("b"), Chunk(finish_reason="stop")]
    assert len(server.requests) == 2


def test_halves_of_characters_and_nul_in_an_answer_become_storable(server, connect):
    server.answers.append(
        streams(b'data: {"choices":[{"delta":{"content":"a\\ud83db\\u0000"}}]}\n\n', says(""))
    )
    assert text_of(connect().stream(ASKED)) == "a\ufffdb\ufffd"


# -- split anywhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_stream_split_at_any_byte_says_the_same(server, connect, newline):
    objects = [{"choices": [{"delta": {"content": text}}]} for text in ("é🙂", "ok")]
    body = b": hello" + newline.encode() + sse(*objects, part(finish="stop"), newline=newline)
    server.answers += [streams(body[:at], body[at:]) for at in range(len(body) + 1)]
    model = connect()
    for _ in range(len(body) + 1):
        assert [chunk.text for chunk in model.stream(ASKED)] == ["é🙂", "ok", ""]
    assert not server.answers
    assert server.connections == 1


def test_a_stream_of_single_bytes_says_the_same(server, connect):
    server.answers.append(streams(*(bytes([byte]) for byte in says("é🙂 ok"))))
    assert text_of(connect().stream(ASKED)) == "é🙂 ok"


def parsed(pieces: list[bytes]) -> list[str]:
    parser = SseParser()
    return [data for piece in pieces for data in parser.feed(piece)] + parser.finish()


@given(
    st.lists(st.sampled_from(["data: é🙂", "data:x", "data", "\n", "\r\n", "\r", ": c", "id: 1", "da", " "])),
    st.data(),
)
def test_events_do_not_depend_on_how_they_are_cut(tokens, data):
    whole = "".join(tokens).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert parsed(pieces) == parsed([whole])


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_line_end_that_is_split_is_one_line_end(newline):
    whole = newline.join(["data: a", "data: é", "", "data: c", "", ""]).encode()
    for at in range(len(whole) + 1):
        assert parsed([whole[:at], whole[at:]]) == ["a\né", "c"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:a\n\ndata:  b\n\n", ["a", " b"]),
        (b"event: x\nid: 1\n\n: comment\n\ndata: a\n\n", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", ["a", "b", "c"]),
        (b"data: never ended", ["never ended"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_event_streams_are_read_as_their_specification_says(stream, events):
    assert parsed([stream]) == events


def test_a_line_or_an_event_over_the_bound_is_refused():
    line, event = SseParser(100), SseParser(100)
    line.feed(b"data: " + b"x" * 94)
    with pytest.raises(ModelError, match="over 100 bytes"):
        line.feed(b"x")
    event.feed(b"data:" + b"x" * 50 + b"\ndata:" + b"x" * 50 + b"\n")
    with pytest.raises(ModelError, match="over 100 bytes"):
        event.feed(b"data:x\n")
    assert event.feed(b"") == []


# -- cut, broken and lying streams -------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_trap_28_a_stream_that_is_cut_after_text_is_an_error_and_not_tried_again(
    server, connect, reset, chunked
):
    server.answers.append(cut(sse(part("half an ans"), done=False), reset=reset, chunked=chunked))
    stream = connect().stream(ASKED)
    assert next(stream) == Chunk("half an ans")
    with pytest.raises(ModelError, match=r"finish reason|connection broke"):
        next(stream)
    assert len(server.requests) == 1


def test_done_without_a_finish_reason_is_an_error(server, connect):
    server.answers.append(streams(sse(part("a"))))
    assert "without a finish reason" in fails(connect())


@pytest.mark.parametrize(
    "answer", [cut(), cut(reset=True), cut(sse(part(role="assistant"), done=False)), drops]
)
def test_a_connection_that_breaks_before_anything_was_said_is_tried_again(server, connect, answer):
    server.answers += [answer, answer]
    assert text_of(connect().stream(ASKED)) == "hello"
    assert len(server.requests) == 3


@pytest.mark.parametrize("said", [part("x"), part(reasoning="x"), part(tool_calls=[call(0, "a", "f")])])
def test_nothing_is_tried_again_once_something_was_passed_on(server, connect, said):
    server.answers.append(cut(sse(said, done=False)))
    fails(connect())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        "{not json",
        "[]",
        "7",
        "null",
        '{"choices": 3}',
        '{"choices": [null]}',
        '{"choices": [{"delta": {"content": 5}}]}',
        '{"choices": [{"delta": "text"}]}',
        '{"choices": [{"delta": {"tool_calls": [{"index": "one"}]}}]}',
        '{"choices": [{"delta": {"tool_calls": [{"function": {"name": ["f"]}}]}}]}',
        '{"choices": [{"delta": {"tool_calls": 1}}]}',
        '{"usage": {"prompt_tokens": "many"}}',
        '{"usage": {"prompt_tokens": Infinity}}',
        '{"usage": 5}',
        "[" * 100_000,
    ],
)
def test_what_is_no_completion_is_a_model_error(server, connect, data):
    server.answers.append(streams(sse(data, part("a", "stop"))))
    assert "sent" in fails(connect(retries=0))


def test_invalid_json_within_an_answer_is_an_error_and_not_tried_again(server, connect):
    server.answers.append(streams(sse(part("a"), '{"choices": [{"del', part(finish="stop"))))
    assert "not JSON" in fails(connect())
    assert len(server.requests) == 1


def test_an_error_inside_the_stream_is_told(server, connect):
    error = {"error": {"message": "context too long", "type": "invalid_request_error", "code": "too_long"}}
    server.answers.append(streams(sse(error)))
    assert "invalid_request_error: context too long" in fails(connect())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "error", [{"message": "busy", "code": 503}, {"message": "oops", "type": "server_error"}]
)
def test_a_passing_error_inside_the_stream_is_tried_again(server, connect, error):
    server.answers.append(streams(sse({"error": error})))
    assert text_of(connect().stream(ASKED)) == "hello"


@pytest.mark.parametrize("body", ["", "<html>welcome</html>"])
def test_a_good_status_without_an_answer_is_an_error_that_names_the_content_type(server, connect, body):
    server.answers.append(status(200, body))
    assert "text/plain" in fails(connect(retries=0))


def test_a_chunk_that_comes_twice_is_passed_on_twice(server, connect):
    server.answers.append(streams(sse(part("a"), part("a"), part(finish="stop"), part(finish="stop"))))
    assert text_of(connect().stream(ASKED)) == "aa"


@pytest.mark.parametrize("events", [1, 200])
def test_an_answer_of_ten_megabytes_is_read(server, connect, events):
    size = 10_000_000 // events
    body = sse(*[part("x" * size)] * events, part(finish="stop"))
    server.answers.append(streams(*(body[at : at + 100_000] for at in range(0, len(body), 100_000))))
    assert len(text_of(connect().stream(ASKED))) == 10_000_000


def test_a_line_without_end_is_refused(server, connect):
    def respond(exchange: Exchange) -> None:
        exchange.head()
        exchange.piece(b"data: ")
        for _ in range(400):
            exchange.piece(b"x" * 100_000)
        exchange.end()

    server.answers.append(respond)
    assert "16,777,216 bytes" in fails(connect())


# -- HTTP errors and retries -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": {"message": "no such key", "type": "auth_error"}}, "401 Status: auth_error: no such key"),
        ({"error": "plain words"}, "plain words"),
        ({"detail": "from a framework"}, "from a framework"),
        ({"message": "top level"}, "top level"),
        ({"error": {"code": 7}}, '{"code": 7}'),
        ("<html>\n gateway  says\tno", "<html> gateway says no"),
        ("", "the endpoint answered 401 Status"),
        ("y" * 300_000, "y" * 500 + "..."),
    ],
)
def test_an_http_error_is_told_in_words_and_not_tried_again(server, connect, body, told):
    server.answers.append(status(401, body))
    message = fails(connect())
    assert told in message
    assert len(message) < 700
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_a_request_that_cannot_succeed_is_sent_once(server, connect, code):
    server.answers.append(status(code, "no"))
    assert f"answered {code}" in fails(connect())
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 529])
def test_a_request_that_may_succeed_later_is_sent_again(server, connect, code):
    server.answers.append(status(code, "later"))
    assert text_of(connect().stream(ASKED)) == "hello"
    assert server.requests[0] == server.requests[1]


def test_retries_are_bounded_and_counted_in_the_error(server, connect):
    server.default = status(500, {"error": {"message": "boom"}})
    message = fails(connect(retries=2))
    assert "500 Status: boom" in message
    assert "attempt 3 of 3" in message
    assert len(server.requests) == 3


def test_retry_after_is_waited_for(server, connect):
    server.answers += [status(429, "slow down", Retry_After="7"), status(503, "x", Retry_After="0.5")]
    waited: list[float] = []
    assert text_of(connect(sleep=waited.append).stream(ASKED)) == "hello"
    assert waited == [7.0, 0.5]


def test_retry_after_as_a_date_is_waited_for(server, connect):
    class Clock:
        def monotonic(self) -> float:
            return 5.0

        def wall(self) -> float:
            return 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT

    server.answers.append(status(429, "", Retry_After="Wed, 21 Oct 2015 07:28:09 GMT"))
    waited: list[float] = []
    list(connect(sleep=waited.append, clock=Clock()).stream(ASKED))
    assert waited == [9.0]


def test_a_retry_after_beyond_the_total_time_ends_at_once(server, connect):
    server.answers.append(status(429, "slow down", Retry_After="3600"))
    waited: list[float] = []
    message = fails(connect(sleep=waited.append))
    assert "slow down" in message
    assert "3600.0 s" in message
    assert (waited, len(server.requests)) == ([], 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 1.5 ", 1.5),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("²", None),
        ("Thu, 01 Jan 1970 00:01:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:01:50 -0000", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, 100.0) == seconds


def test_back_off_doubles_up_to_a_bound_and_is_spread_evenly():
    class Top(random.Random):
        def random(self) -> float:
            return 1.0

    assert [back_off(n, None, Top()) for n in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert back_off(10_000, None, Top()) == 8.0
    assert back_off(2, 30.0, NoJitter()) == 30.0
    waits = [back_off(0, None, random.Random(seed)) for seed in range(50)]
    assert len(set(waits)) > 40
    assert all(0 <= wait < 0.5 for wait in waits)


def test_an_endpoint_that_is_not_there_is_named(connect):
    with ModelServer() as gone:
        url = gone.url
    waited: list[float] = []
    message = fails(connect(base_url=url, sleep=waited.append))
    assert url in message
    assert "refused" in message
    assert len(waited) == 3


def test_a_redirect_is_an_error_and_the_key_goes_nowhere_else(server, connect):
    with ModelServer(default=streams(says("stolen"))) as other:
        server.answers.append(status(307, "moved", Location=other.url))
        assert "answered 307" in fails(connect())
        assert other.requests == []


# -- deadlines ---------------------------------------------------------------------------------------------


def test_an_endpoint_that_never_answers_is_given_up(server, connect):
    server.answers.append(stalls(head=False))
    assert "idle_timeout_s" in fails(connect(idle_timeout_s=0.05, retries=0))
    assert server.hung_up.wait(PATIENCE_S)


def test_a_stream_that_stalls_is_given_up_and_not_tried_again(server, connect):
    server.answers.append(stalls(sse(part("a"), done=False)))
    assert "said nothing for 0.05 s (idle_timeout_s)" in fails(connect(idle_timeout_s=0.05))
    assert server.hung_up.wait(PATIENCE_S)
    assert len(server.requests) == 1


def test_a_stall_before_anything_was_said_is_tried_again(server, connect):
    server.answers += [stalls(head=False), stalls()]
    assert text_of(connect(idle_timeout_s=0.2).stream(ASKED)) == "hello"


def drip(exchange: Exchange) -> None:
    """Say something all the time, and never anything that matters."""
    exchange.head()
    try:
        while True:
            exchange.piece(b": still here\n\n")
            gevent.idle()
    except OSError:
        exchange.keep_alive = False
        exchange.server.hung_up.set()


def test_an_endless_drip_ends_with_the_total_time(server, connect):
    server.answers.append(drip)
    assert "total_timeout_s" in fails(connect(total_timeout_s=0.5))
    assert server.hung_up.wait(PATIENCE_S)


@pytest.mark.parametrize("head", [False, True])
def test_trap_27_the_total_time_covers_a_stall_and_its_slot_is_free_again(server, connect, head):
    server.answers.append(stalls(head=head))
    model = connect(total_timeout_s=0.5, max_concurrent=1)
    assert "0.5 s (total_timeout_s)" in fails(model)
    assert server.hung_up.wait(PATIENCE_S)
    assert text_of(connect().stream(ASKED)) == "hello"
    server.answers.append(stalls(head=head))
    assert "total_timeout_s" in fails(model)


def test_an_error_body_that_stalls_is_told_by_its_status(server, connect):
    def respond(exchange: Exchange) -> None:
        exchange.head(403, "application/json")
        exchange.piece(b'{"error": "for')
        exchange.wait_for_hang_up()

    server.answers.append(respond)
    message = fails(connect(idle_timeout_s=0.05))
    assert "answered 403" in message
    assert server.hung_up.wait(PATIENCE_S)


def test_no_alarm_goes_off_while_the_consumer_has_a_chunk(server, connect):
    server.answers.append(streams(sse(part("a"), done=False), sse(part("b", "stop"))))
    stream = connect(total_timeout_s=0.2).stream(ASKED)
    assert next(stream) == Chunk("a")
    gevent.get_hub().loop.update_now()
    alarm = gevent.Timeout.start_new(0.25)
    with pytest.raises(gevent.Timeout) as caught:
        gevent.event.Event().wait()
    assert caught.value is alarm
    with pytest.raises(ModelError, match="total_timeout_s"):
        list(stream)


# -- slots and clean-up ------------------------------------------------------------------------------------


def test_no_more_requests_are_under_way_than_allowed(server, connect):
    release = gevent.event.Event()

    def respond(exchange: Exchange) -> None:
        release.wait()
        streams(says("ok"))(exchange)

    server.default = respond
    model = connect(max_concurrent=3)
    asking = [gevent.spawn(lambda: text_of(model.stream(ASKED))) for _ in range(10)]
    until(lambda: server.at_once == 3)
    for _ in range(20):
        gevent.idle()
    assert server.at_once == 3
    release.set()
    gevent.joinall(asking, timeout=PATIENCE_S)
    assert [greenlet.value for greenlet in asking] == ["ok"] * 10
    assert server.most_at_once == 3
    assert server.connections == 3


def test_waiting_for_a_slot_counts_towards_the_total_time(server, connect):
    server.answers.append(stalls(sse(part("a"), done=False)))
    model = connect(max_concurrent=1, total_timeout_s=0.4)
    holder = model.stream(ASKED)
    next(holder)
    assert "all 1 requests that may be under way (max_concurrent) were busy for 0.4 s" in fails(model)
    assert len(server.requests) == 1
    holder.close()
    assert text_of(model.stream(ASKED)) == "hello"


def test_a_killed_greenlet_closes_its_connection_and_frees_its_slot(server, connect):
    for answer in (stalls(), stalls(head=False), stalls(sse(part("a"), done=False))):
        server.answers.append(answer)
        server.hung_up.clear()
        model = connect(max_concurrent=1)
        asking = gevent.spawn(lambda model=model: list(model.stream(ASKED)))
        until(lambda: server.at_once == 1)
        asking.kill()
        assert isinstance(asking.value, gevent.GreenletExit)
        assert server.hung_up.wait(PATIENCE_S)
        assert text_of(model.stream(ASKED)) == "hello"


def test_a_killed_waiter_takes_no_slot(server, connect):
    server.answers.append(stalls())
    model = connect(max_concurrent=1)
    first = gevent.spawn(lambda: list(model.stream(ASKED)))
    until(lambda: server.at_once == 1)
    waiter = gevent.spawn(lambda: list(model.stream(ASKED)))
    gevent.idle()
    waiter.kill()
    first.kill()
    assert text_of(model.stream(ASKED)) == "hello"


def test_a_closed_iterator_closes_its_connection_and_frees_its_slot(server, connect):
    server.answers.append(stalls(sse(part("a"), done=False)))
    model = connect(max_concurrent=1)
    stream = model.stream(ASKED)
    next(stream)
    stream.close()
    assert server.hung_up.wait(PATIENCE_S)
    assert text_of(model.stream(ASKED)) == "hello"


@pytest.mark.parametrize("code", [200, 400])
def test_trap_27_a_response_is_closed_even_if_somebody_still_holds_it(server, connect, monkeypatch, code):
    held: list[requests.Response] = []
    send = requests.Session.send

    def keep(*arguments: Any, **options: Any) -> requests.Response:
        held.append(send(*arguments, **options))
        return held[-1]

    def respond(exchange: Exchange) -> None:
        exchange.head(code)
        exchange.piece(sse(part("a"), done=False) + b":" * 100_000)
        exchange.wait_for_hang_up()

    monkeypatch.setattr(requests.Session, "send", keep)
    server.answers.append(respond)
    stream = connect().stream(ASKED)
    if code == 200:
        next(stream)
        stream.close()
    else:
        with pytest.raises(ModelError):
            next(stream)
    assert server.hung_up.wait(PATIENCE_S)
    assert len(held) == 1


def test_a_timeout_of_the_callers_own_comes_out_as_it_is_and_frees_the_slot(server, connect):
    server.answers.append(stalls())
    model = connect(max_concurrent=1)
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as alarm:
        list(model.stream(ASKED))
    assert caught.value is alarm
    assert server.hung_up.wait(PATIENCE_S)
    assert text_of(model.stream(ASKED)) == "hello"


def test_trap_27_connections_are_kept_for_as_many_requests_as_may_be_under_way(server, connect):
    model = connect(max_concurrent=20)
    for _ in range(3):
        asking = [gevent.spawn(lambda: text_of(model.stream(ASKED))) for _ in range(20)]
        gevent.joinall(asking, timeout=PATIENCE_S)
        assert [greenlet.value for greenlet in asking] == ["hello"] * 20
    assert server.connections <= 20


def test_a_kept_connection_that_the_endpoint_has_closed_costs_nothing(server, connect):
    def closes(exchange: Exchange) -> None:
        streams(says("one"))(exchange)
        exchange.close()

    server.answers.append(closes)
    model = connect()
    assert [text_of(model.stream(ASKED)) for _ in range(2)] == ["one", "hello"]


def test_a_closed_model_refuses_to_be_asked(connect):
    model = connect()
    model.close()
    assert "closed" in fails(model)


# -- secrets -----------------------------------------------------------------------------------------------


def everything_about(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)


@pytest.mark.parametrize(
    "answer",
    [
        status(401, {"error": {"message": f"wrong key {KEY}"}}),
        status(400, f"you sent Bearer {KEY}, and other-secret-value"),
        streams(sse({"error": f"{KEY} is blocked"})),
        streams(sse(f"not json {KEY}")),
        streams(sse({"usage": {"prompt_tokens": KEY}})),
        drops,
    ],
)
def test_no_error_shows_a_secret(server, connect, answer):
    server.default = answer
    model = connect(headers={"X-Api-Token": "other-secret-value"}, retries=1)
    with pytest.raises(ModelError) as caught:
        list(model.stream(ASKED))
    for secret in (KEY, "other-secret-value"):
        assert secret not in everything_about(caught.value)
        assert secret not in repr(model)
        assert secret not in str(vars(model))


@pytest.mark.parametrize("key", ["has space", "line\nbreak", "", "ключ", 7])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key):
    with pytest.raises(InvalidConfig) as caught:
        OpenAIModel("http://127.0.0.1/v1", key)
    assert "api_key" in str(caught.value)
    assert not key or str(key) not in str(caught.value)


def test_credentials_of_a_netrc_file_are_not_used(server, connect, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    list(connect().stream(ASKED))
    list(connect(api_key=None).stream(ASKED))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in server.requests[1].headers


def test_cookies_are_not_kept(server, connect):
    def respond(exchange: Exchange) -> None:
        exchange.head(Set_Cookie="session=abc; Path=/")
        exchange.piece(says("x"))
        exchange.end()

    server.answers.append(respond)
    model = connect()
    list(model.stream(ASKED))
    list(model.stream(ASKED))
    assert "cookie" not in server.requests[1].headers


# -- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "arguments", "names"),
    [
        ("localhost:8000/v1", {}, "base_url"),
        ("ftp://host/v1", {}, "base_url"),
        ("https://", {}, "base_url"),
        ("https://host:99999/v1", {}, "base_url"),
        ("https://me:pw@host/v1", {}, "base_url"),
        ("https://host/v1?x=1", {}, "base_url"),
        (None, {}, "base_url"),
        ("http://h/v1", {"max_concurrent": 0}, "max_concurrent"),
        ("http://h/v1", {"max_concurrent": True}, "max_concurrent"),
        ("http://h/v1", {"retries": -1}, "retries"),
        ("http://h/v1", {"idle_timeout_s": 0}, "idle_timeout_s"),
        ("http://h/v1", {"connect_timeout_s": None}, "connect_timeout_s"),
        ("http://h/v1", {"total_timeout_s": float("nan")}, "total_timeout_s"),
        ("http://h/v1", {"headers": {"A": "b\r\nC: d"}}, "headers"),
        ("http://h/v1", {"headers": {"A": 1}}, "headers"),
        ("http://h/v1", {"extra": {"stream": False}}, "stream"),
        ("http://h/v1", {"extra": {"x": object()}}, "extra"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(url, arguments, names):
    with pytest.raises(InvalidConfig, match=names) as caught:
        OpenAIModel(url, **arguments)
    assert "pw" not in str(caught.value)


def test_a_slash_at_the_end_of_the_url_does_not_matter(server, connect):
    list(connect(base_url=f"{server.url}/").stream(ASKED))
    assert server.requests[0].path == "/v1/chat/completions"


def test_a_process_that_gevent_has_not_patched_is_refused():
    root = Path(__file__).parent.parent
    program = (
        "from actors.models.openai import OpenAIModel\n"
        "try:\n    OpenAIModel('http://127.0.0.1/v1')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
        check=True,
    )
    assert done.stdout.startswith(NotPatched.__name__)
    assert "monkey.patch_all()" in done.stdout
