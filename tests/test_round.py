"""One model round: chunks become events and one whole answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelError
from actors.events import (
    Event,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCallsBegin,
)
from actors.models.base import Chunk, ModelRequest, ToolCallDelta
from actors.round import Round, run_round
from persistence.records import ToolCall, Usage

REQUEST = ModelRequest("m", [{"role": "user", "content": "hello"}], turn_id=7)
STOP = Chunk(finish_reason="stop")


class Said:
    """A model that says these chunks, or raises."""

    def __init__(self, *pieces: Chunk | BaseException) -> None:
        self.pieces = pieces
        self.closed = False

    def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed = True


def run(*pieces: Chunk | BaseException) -> Round:
    return run_round(Said(*pieces), REQUEST, None)


def calls(*deltas: ToolCallDelta) -> Chunk:
    return Chunk(tool_calls=deltas)


def test_pieces_make_one_answer() -> None:
    answer = run(
        Chunk(reasoning="hm "),
        Chunk(reasoning="hm"),
        Chunk("hel"),
        Chunk("lo"),
        Chunk(finish_reason="stop", usage=Usage(1, 2, 3)),
    )
    assert answer == Round("hello", "hm hm", (), "stop", Usage(1, 2, 3))
    assert not answer.said_nothing


def test_the_last_finish_reason_and_usage_count() -> None:
    answer = run(Chunk("a", finish_reason="length", usage=Usage(1)), Chunk(usage=Usage(2)), STOP)
    assert (answer.finish_reason, answer.usage) == ("stop", Usage(2))


def test_tool_calls_are_put_together_by_index_in_its_order() -> None:
    answer = run(
        calls(ToolCallDelta(1, "b", "second", '{"x":')),
        calls(ToolCallDelta(0, "a", "first")),
        calls(ToolCallDelta(1, arguments=" 1}"), ToolCallDelta(0, arguments="{}")),
        Chunk(finish_reason="tool_calls"),
    )
    assert answer.calls == (ToolCall("a", "first", "{}"), ToolCall("b", "second", '{"x": 1}'))


def test_names_and_ids_that_are_repeated_in_every_piece_are_taken_once() -> None:
    piece = ToolCallDelta(0, "a", "look", "{")
    answer = run(calls(piece), calls(ToolCallDelta(0, "a", "look", "}")), STOP)
    assert answer.calls == (ToolCall("a", "look", "{}"),)


def test_calls_without_an_id_or_with_a_taken_one_get_ids_of_their_own() -> None:
    answer = run(
        calls(
            ToolCallDelta(0, None, "one"), ToolCallDelta(1, "same", "two"), ToolCallDelta(2, "same", "three")
        ),
        STOP,
    )
    ids = [call.id for call in answer.calls]
    assert len(set(ids)) == 3
    assert all(ids)
    assert ids[1] == "same"


@pytest.mark.parametrize(
    "said", [Chunk("half"), Chunk(reasoning="hm"), calls(ToolCallDelta(0, "a", "look", "{"))]
)
def test_trap_28_an_end_without_a_finish_reason_is_an_error(said: Chunk) -> None:
    with pytest.raises(ModelError, match="without a finish reason"):
        run(said)


@pytest.mark.parametrize("pieces", [(), (STOP,), (Chunk(),), (Chunk(reasoning="hm"), STOP)])
def test_trap_28_an_empty_round_says_nothing(pieces: tuple[Chunk, ...]) -> None:
    assert run(*pieces).said_nothing


@pytest.mark.parametrize("error", [RuntimeError("broken"), GeneratorExit(), KeyboardInterrupt()])
def test_what_the_model_raises_is_raised_and_its_stream_closed(error: BaseException) -> None:
    model = Said(Chunk("half"), error)
    with pytest.raises(type(error)):
        run_round(model, REQUEST, None)
    assert model.closed


def test_the_stream_is_closed_when_a_listener_fails() -> None:
    model = Said(Chunk("half"), STOP)

    def fail(_event: Event) -> None:
        raise RuntimeError("no ears")

    with pytest.raises(RuntimeError, match="no ears"):
        run_round(model, REQUEST, fail)
    assert model.closed


def test_an_iterator_without_close_is_fine() -> None:
    class Plain:
        def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
            return iter([Chunk("hello", finish_reason="stop")])

    assert run_round(Plain(), REQUEST, None).text == "hello"


def heard(*pieces: Chunk | BaseException) -> list[Event]:
    events: list[Event] = []
    with contextlib.suppress(ModelError, RuntimeError):
        run_round(Said(*pieces), REQUEST, events.append)
    return events


def test_one_segment_is_open_at_a_time() -> None:
    assert heard(
        Chunk(reasoning="a"),
        Chunk(text="b"),
        Chunk("c"),
        Chunk("e", reasoning="d"),
        calls(ToolCallDelta(0, "x", "look")),
        calls(ToolCallDelta(1, "y", "listen")),
        STOP,
    ) == [
        ThinkingStart(),
        ThinkingDelta("a"),
        ThinkingEnd(),
        TextStart(),
        TextDelta("b"),
        TextDelta("c"),
        TextEnd(),
        ThinkingStart(),
        ThinkingDelta("d"),
        ThinkingEnd(),
        TextStart(),
        TextDelta("e"),
        TextEnd(),
        ToolCallsBegin("look"),
    ]


@pytest.mark.parametrize("end", [(), (RuntimeError("broken"),)])
def test_a_segment_is_ended_however_the_round_ends(end: tuple[BaseException, ...]) -> None:
    assert heard(Chunk("a"), *end) == [TextStart(), TextDelta("a"), TextEnd()]
    assert heard(Chunk(reasoning="a"), *end) == [ThinkingStart(), ThinkingDelta("a"), ThinkingEnd()]


def test_nothing_is_announced_for_an_empty_round() -> None:
    assert heard(Chunk(), STOP) == []


def test_everything_is_mended_and_events_show_what_is_kept() -> None:
    pieces = [Chunk("a\x00", reasoning="\ud800"), calls(ToolCallDelta(0, "i\x00", "n\ud800", '"\x00"')), STOP]
    answer = run(*pieces)
    assert (answer.text, answer.reasoning) == ("a\ufffd", "\ufffd")
    assert answer.calls == (ToolCall("i\ufffd", "n\ufffd", '"\ufffd"'),)
    events = heard(*pieces)
    assert TextDelta("a\ufffd") in events
    assert ThinkingDelta("\ufffd") in events
    assert ToolCallsBegin("n\ufffd") in events


_chunks = st.lists(
    st.builds(
        Chunk,
        text=st.text(max_size=3),
        reasoning=st.text(max_size=3),
        tool_calls=st.lists(
            st.builds(ToolCallDelta, st.integers(0, 2), st.none() | st.text(max_size=2), st.just("look")),
            max_size=2,
        ),
    ),
    max_size=10,
)


@given(_chunks, st.sampled_from([STOP, RuntimeError("broken"), None]))
def test_deltas_are_always_inside_their_segment(
    pieces: Iterable[Chunk], end: Chunk | RuntimeError | None
) -> None:
    events = heard(*pieces, *([] if end is None else [end]))
    segments = {TextStart: (TextDelta, TextEnd), ThinkingStart: (ThinkingDelta, ThinkingEnd)}
    inside: tuple[type[Event], type[Event]] | None = None
    for event in events:
        if inside is None:
            assert not isinstance(event, TextDelta | TextEnd | ThinkingDelta | ThinkingEnd)
            inside = segments.get(type(event))  # type: ignore[arg-type]
        elif isinstance(event, inside[1]):
            inside = None
        else:
            assert isinstance(event, inside[0])
    assert inside is None
