"""Stored bodies: what is written is read back equal, and nothing else is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence.codec import decode_entries, decode_entry, decode_result, encode_entry, encode_result
from persistence.errors import RecordError, StorageError
from persistence.records import HistoryEntry, ToolCall, TurnResult, Usage

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
calls = st.builds(ToolCall, id=texts, name=texts, arguments=texts)
entries = st.builds(
    HistoryEntry,
    role=st.sampled_from(["user", "assistant", "tool", "system"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=3),
    tool_call_id=texts,
    name=texts,
    reasoning=texts,
    agent=texts,
    sender=texts,
)
counts = st.integers(0, 2**40)
results = st.builds(
    TurnResult,
    text=texts,
    stop_reason=st.sampled_from(["text_response", "max_iterations", "no_action", "error", "closed"]),
    error=st.none() | texts,
    steps=counts,
    usage=st.builds(Usage, counts, counts, counts, counts, counts),
    model=texts,
    conversation_id=counts,
    turn_id=counts,
    retryable=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(entry=entries)
def test_entries_are_read_back_equal(entry: HistoryEntry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@settings(max_examples=100, deadline=None)
@given(result=results)
def test_results_are_read_back_equal(result: TurnResult) -> None:
    assert decode_result(encode_result(result)) == result


@settings(max_examples=30, deadline=None)
@given(several=st.lists(entries, max_size=8))
def test_many_bodies_are_read_as_each_of_them(several: list[HistoryEntry]) -> None:
    assert decode_entries([encode_entry(each) for each in several]) == several


def test_bodies_are_one_line_of_plain_versioned_json_without_empty_fields() -> None:
    body = encode_entry(HistoryEntry("user", 'né "quoted"\nline\x00'))
    assert json.loads(body) == {"v": 1, "role": "user", "content": 'né "quoted"\nline\x00'}
    assert "\n" not in body
    assert "né" in body
    assert json.loads(encode_result(TurnResult("", "closed"))) == {"v": 1, "stop_reason": "closed"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        "[]",
        "null",
        '"text"',
        '{"role":"user"}',
        '{"v":2,"role":"user"}',
        '{"v":"1","role":"user"}',
        '{"v":true,"role":"user"}',
        '{"v":1}',
        '{"v":1,"role":"robot"}',
        '{"v":1,"role":["user"]}',
        '{"v":1,"role":"user","content":5}',
        '{"v":1,"role":"user","content":null}',
        '{"v":1,"role":"user","sender":5}',
        '{"v":1,"role":"user","colour":"red"}',
        '{"v":1,"role":"assistant","tool_calls":5}',
        '{"v":1,"role":"assistant","tool_calls":["x"]}',
        '{"v":1,"role":"assistant","tool_calls":[{"id":"1"}]}',
        '{"v":1,"role":"assistant","tool_calls":[{"id":1,"name":"f"}]}',
        '{"v":1,"role":"user"},{"v":1,"role":"user"}',
    ],
)
def test_an_entry_of_another_version_or_shape_is_an_error(body: str) -> None:
    with pytest.raises(RecordError):
        decode_entry(body)
    with pytest.raises(RecordError):
        decode_entries(['{"v":1,"role":"user"}', body])


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[1]",
        '{"stop_reason":"closed"}',
        '{"v":3,"stop_reason":"closed"}',
        '{"v":1}',
        '{"v":1,"stop_reason":"bored"}',
        '{"v":1,"stop_reason":["closed"]}',
        '{"v":1,"stop_reason":"closed","steps":"many"}',
        '{"v":1,"stop_reason":"closed","steps":true}',
        '{"v":1,"stop_reason":"closed","usage":[]}',
        '{"v":1,"stop_reason":"closed","usage":{"sheep":1}}',
        '{"v":1,"stop_reason":"closed","usage":{"total_tokens":1.5}}',
        '{"v":1,"stop_reason":"closed","mood":"good"}',
        '{"v":1,"stop_reason":"closed","text":null}',
        '{"v":1,"stop_reason":"error","retryable":1}',
        '{"v":1,"stop_reason":"error","retryable":null}',
    ],
)
def test_a_result_of_another_version_or_shape_is_an_error(body: str) -> None:
    with pytest.raises(RecordError):
        decode_result(body)


def test_a_result_that_was_stored_without_a_word_on_sending_again_is_not_retryable() -> None:
    body = '{"v":1,"stop_reason":"error","error":"the endpoint is down","turn_id":7}'
    assert decode_result(body) == TurnResult("", "error", "the endpoint is down", turn_id=7, retryable=False)


def test_an_unreadable_body_is_a_storage_error_and_says_what_is_wrong() -> None:
    with pytest.raises(StorageError, match="version 9"):
        decode_entry('{"v":9,"role":"user"}')
