"""Bounded event streams: a slow reader is told that it lagged, and segments stay whole."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.events import (
    ContextUsage,
    Done,
    Event,
    Lagged,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
)
from actors.feed import EventStream
from persistence.errors import StorageError
from persistence.records import TurnResult

DONE = Done(TurnResult("x", "text_response"))
SEGMENT: list[Event] = [TextStart(), *(TextDelta(str(n)) for n in range(8)), TextEnd()]
TURN: list[Event] = [*SEGMENT, ContextUsage(1), DONE]


def alone(_source: Hashable, event: Event) -> Event:
    return event


def stream_of(limit: int) -> EventStream[Event]:
    return EventStream(limit, alone)


def push(stream: EventStream[Event], events: Iterable[Event], source: Hashable = None) -> None:
    for event in events:
        stream.push(source, event)


def buffered(stream: EventStream[Event]) -> list[Event]:
    """What can be read now."""
    stream.end()
    return list(stream)


def paired(events: Iterable[Event]) -> bool:
    """Whether deltas come only between a start and an end; `Lagged` and `Done` end a segment."""
    inside: type[Event] | None = None
    for event in events:
        if isinstance(event, TextStart | ThinkingStart):
            if inside is not None:
                return False
            inside = TextDelta if isinstance(event, TextStart) else ThinkingDelta
        elif isinstance(event, TextDelta | ThinkingDelta):
            if type(event) is not inside:
                return False
        elif isinstance(event, TextEnd | ThinkingEnd):
            if inside is None:
                return False
            inside = None
        elif isinstance(event, Lagged | Done):
            inside = None
    return True


def test_events_are_read_in_order() -> None:
    stream = stream_of(100)
    push(stream, TURN)
    assert buffered(stream) == TURN


def test_a_reader_waits_for_the_next_event_and_blocks_nobody() -> None:
    stream = stream_of(100)
    reader = gevent.spawn(list, stream)
    gevent.idle()
    assert not reader.ready()
    push(stream, TURN)
    stream.end()
    assert reader.get() == TURN


def test_an_end_with_an_error_raises_it_after_what_is_buffered() -> None:
    stream = stream_of(100)
    push(stream, SEGMENT)
    stream.end(StorageError("no room"))
    assert [next(stream) for _ in SEGMENT] == SEGMENT
    with pytest.raises(StorageError, match="no room"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_reader_that_falls_behind_is_told_how_much_it_missed() -> None:
    stream = stream_of(4)
    push(stream, [ContextUsage(n) for n in range(10)])
    assert [next(stream) for _ in range(4)] == [ContextUsage(n) for n in range(4)]
    push(stream, [ContextUsage(10)])
    assert buffered(stream) == [Lagged(6), ContextUsage(10)]


def test_dropping_goes_on_until_half_of_the_buffer_is_read() -> None:
    stream = stream_of(4)
    push(stream, [ContextUsage(n) for n in range(5)])
    next(stream)
    push(stream, [ContextUsage(5)])
    next(stream)
    push(stream, [ContextUsage(6)])
    next(stream)
    push(stream, [ContextUsage(7)])
    assert buffered(stream) == [ContextUsage(3), Lagged(3), ContextUsage(7)]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_smallest_buffers_recover_too(limit: int) -> None:
    stream = stream_of(limit)
    push(stream, [ContextUsage(n) for n in range(9)])
    for _ in range(limit):
        next(stream)
    push(stream, [ContextUsage(9)])
    assert buffered(stream) == [Lagged(9 - limit), ContextUsage(9)]


@pytest.mark.parametrize("limit", range(1, 14))
def test_done_always_arrives_and_every_event_is_counted(limit: int) -> None:
    stream = stream_of(limit)
    push(stream, TURN)
    events = buffered(stream)
    assert events[-1] == DONE
    missed = sum(event.missed for event in events if isinstance(event, Lagged))
    assert missed + sum(not isinstance(event, Lagged) for event in events) == len(TURN)
    assert paired(events)


def test_a_segment_that_lost_a_piece_gives_no_further_piece() -> None:
    stream = stream_of(4)
    push(stream, SEGMENT[:6])
    read = [next(stream) for _ in range(4)]
    push(stream, SEGMENT[6:])  # there is room again, but this segment is broken
    push(stream, SEGMENT[:3])
    read += buffered(stream)
    assert read == [*SEGMENT[:4], Lagged(6), *SEGMENT[:3]]


def test_of_two_sources_only_the_broken_one_is_silent() -> None:
    seen = EventStream[tuple[Hashable, Event]](8, lambda source, event: (source, event))
    seen.push("a", TextStart())
    for n in range(7):
        seen.push("b", ContextUsage(n))
    seen.push("a", TextDelta("lost"))
    read = [next(seen) for _ in range(8)]
    seen.push("b", TextStart())
    seen.push("a", TextDelta("also lost"))
    seen.push("b", TextDelta("whole"))
    seen.end()
    read += list(seen)
    assert [event for source, event in read if source == "a"] == [TextStart()]
    of_b = [event for source, event in read if source == "b" and not isinstance(event, Lagged)]
    assert of_b[-2:] == [TextStart(), TextDelta("whole")]
    assert sum(event.missed for _, event in read if isinstance(event, Lagged)) == 2


def test_a_reader_that_joins_midway_gets_no_part_of_the_segment_that_runs() -> None:
    stream = stream_of(100)
    stream.join_midway(None)
    push(stream, [TextDelta("lost"), TextEnd(), ContextUsage(1), *SEGMENT, DONE])
    assert buffered(stream) == [Lagged(2), ContextUsage(1), *SEGMENT, DONE]


def test_a_reader_that_joins_between_segments_misses_nothing() -> None:
    stream = stream_of(100)
    stream.join_midway(None)
    push(stream, [*SEGMENT, ContextUsage(1), *SEGMENT, DONE])
    assert buffered(stream) == [*SEGMENT, ContextUsage(1), *SEGMENT, DONE]


def test_a_segment_that_never_ends_does_not_break_the_next_turn() -> None:
    stream = stream_of(4)
    push(stream, SEGMENT[:6])
    read = [next(stream) for _ in range(4)]
    push(stream, [DONE])
    read += [next(stream), next(stream)]
    push(stream, SEGMENT[:3])
    assert [*read, *buffered(stream)] == [*SEGMENT[:4], Lagged(2), DONE, *SEGMENT[:3]]


def test_closing_calls_back_once_ends_the_iteration_and_drops_what_follows() -> None:
    closed: list[EventStream[Event]] = []
    stream = EventStream(10, alone, closed.append)
    push(stream, [ContextUsage(1)])
    reader = gevent.spawn(list, stream)
    gevent.idle()
    stream.close()
    stream.close()
    push(stream, [ContextUsage(2)])
    stream.end()
    assert reader.get() == [ContextUsage(1)]
    assert closed == [stream]
    assert list(stream) == []


def test_a_stream_is_a_context_manager_that_closes_it() -> None:
    closed: list[EventStream[Event]] = []
    with EventStream(10, alone, closed.append) as stream:
        assert not stream.closed
    assert stream.closed
    assert closed == [stream]


_turns = st.lists(
    st.sampled_from(
        [
            SEGMENT,
            [ThinkingStart(), ThinkingDelta("a"), ThinkingDelta("b"), ThinkingEnd()],
            SEGMENT[:4],  # broken off
            [ContextUsage(1)],
            [DONE],
        ]
    ),
    max_size=8,
)


@given(limit=st.integers(1, 12), turns=_turns, reads=st.lists(st.integers(0, 5), max_size=60))
def test_whatever_is_read_when_segments_stay_paired_and_nothing_is_uncounted(
    limit: int, turns: list[list[Event]], reads: list[int]
) -> None:
    turns = [[*turn, DONE] if turn == SEGMENT[:4] else turn for turn in turns]
    stream, read = stream_of(limit), list[Event]()
    events = [event for turn in turns for event in turn]
    for number, event in enumerate(events):
        stream.push(None, event)
        for _ in range(reads[number % len(reads)] if reads else 0):
            with gevent.Timeout(0, False):  # only what is there
                read.append(next(stream))
    read += buffered(stream)
    assert paired(read)
    assert sum(isinstance(event, Done) for event in read) == sum(isinstance(e, Done) for e in events)
    shown = sum(not isinstance(event, Lagged) for event in read)
    told = sum(event.missed for event in read if isinstance(event, Lagged))
    assert shown + told <= len(events)
    if events and isinstance(events[-1], Done):
        assert read[-1] == DONE
        assert shown + told == len(events)
