"""Properties of the pure parts: text, slugs, routing, the work queue, rounds, and history in wire form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlite_utils import Database

from actors.greenlet import GreenletFuture
from actors.history import LiveHistory, interrupted_results, resumed, to_wire, tool_result
from actors.round import Round, run_round
from actors.text import check_text, check_title, cut_text, mend_text, slug
from actors.ticket import Ticket
from actors.topics import TopicRouter
from actors.workqueue import CompactionWork, Work, WorkQueue
from palaver import (
    Chunk,
    Event,
    HistoryEntry,
    InvalidInput,
    InvalidTitle,
    ModelRequest,
    TextDelta,
    TextEnd,
    TextStart,
    ThinkingDelta,
    ThinkingEnd,
    ThinkingStart,
    ToolCall,
    ToolCallDelta,
    ToolCallsBegin,
    Usage,
)
from persistence.database import open_database
from persistence.memories import canonical_number, highest_archive

settings.register_profile(
    "quick", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
quick = settings(settings.get_profile("quick"))

any_text = st.text(alphabet=st.characters(exclude_categories=()), max_size=60)  # surrogates and NUL included
a_title = st.text(alphabet="aZ09 -_.!\u00e9\u00df\u0130\u4e2d\u0301", min_size=1, max_size=20)


# -- text ----------------------------------------------------------------------------------------------


@quick
@given(any_text)
def test_mended_text_can_be_stored_and_sent_and_keeps_its_length(text: str) -> None:
    mended = mend_text(text)
    assert check_text(mended, what="it", empty=True) == mended
    mended.encode()
    assert "\x00" not in mended
    assert len(mended) == len(text)
    assert mend_text(mended) == mended
    assert all(new in (old, "\ufffd") for new, old in zip(mended, text, strict=True))


@quick
@given(any_text, any_text)
def test_mending_does_not_depend_on_how_text_is_cut(one: str, two: str) -> None:
    assert mend_text(one) + mend_text(two) == mend_text(one + two)


@quick
@given(any_text)
def test_what_is_not_refused_is_left_as_it_is_and_the_rest_names_the_place(text: str) -> None:
    try:
        assert check_text(text, what="it") == text == mend_text(text)
    except InvalidInput as error:
        found = re.search(r"position (\d+)", str(error))
        if found is None:
            assert not text.strip()
        else:
            assert text[: int(found[1])] == mend_text(text)[: int(found[1])]
            assert mend_text(text) != text


@quick
@given(st.text(max_size=300), st.integers(min_value=1, max_value=50))
def test_cut_text_is_a_beginning_and_says_how_much_is_missing(text: str, most: int) -> None:
    cut = cut_text(text, most)
    if len(text) <= most:
        assert cut == text
    else:
        assert cut.startswith(text[:most])
        assert f"{len(text) - most:,} characters" in cut[most:]


@quick
@given(any_text)
def test_a_title_that_is_taken_is_one_line_without_space_around_it(text: str) -> None:
    try:
        title = check_title(text)
    except InvalidTitle:
        return
    assert title == title.strip() == check_title(title)
    assert 0 < len(title) <= 200
    assert len(title.splitlines()) == 1 or not title.isprintable()


# -- slugs and archive names ---------------------------------------------------------------------------


@quick
@given(any_text)
def test_a_slug_is_lower_case_words_joined_by_single_dashes_and_never_empty(text: str) -> None:
    made = slug(text)
    assert made
    assert all(word and word.isalnum() for word in made.split("-"))
    assert made == made.lower()
    assert slug(made) == made
    assert slug(f"  {text}!") == made


@quick
@given(
    st.lists(
        st.tuples(a_title, st.sampled_from(["1", "2", "7", "02", "+1", "1x", "", "-3", "10"])), max_size=12
    )
)
def test_the_next_archive_number_is_one_more_than_the_highest_canonical_one(
    names: list[tuple[str, str]],
) -> None:
    db = archives({f"{slug(title)}-{number}" for title, number in names})
    for title in {title for title, _ in names}:
        expected = max(
            (
                canonical_number(f"{slug(other)}-{number}"[len(slug(title)) + 1 :])
                for other, number in names
                if f"{slug(other)}-{number}".startswith(f"{slug(title)}-")
            ),
            default=0,
        )
        assert highest_archive(db, agent="a", scope="s", slug=slug(title)) == expected


def archives(names: set[str]) -> Database:
    """A memory database with archives of these names."""
    db = open_database(":memory:")
    for name in sorted(names):
        db.execute(
            "INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)"
            " VALUES ('a', 's', 'archive', ?, 'c', 0)",
            [name],
        )
    return db


@quick
@given(st.text(alphabet="0123456789+- x\u0661", max_size=6))
def test_a_number_is_canonical_when_python_writes_it_the_same_way(text: str) -> None:
    number = canonical_number(text)
    assert number >= 0
    assert (number > 0) == (text.isascii() and text.isdigit() and int(text) > 0 and str(int(text)) == text)
    assert number == 0 or str(number) == text


# -- routing -------------------------------------------------------------------------------------------


class RouterMachine(RuleBasedStateMachine):
    """`TopicRouter` against two plain facts: which conversations live, and the titles in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.router = TopicRouter()
        self.ids = itertools.count(1)
        self.live: dict[int, str | None] = {}
        self.active: str | None = None
        self.opening: list[tuple[str, int, str | None]] = []

    def _of(self, title: str) -> int | None:
        return next((cid for cid, of in self.live.items() if of == title), None)

    @rule(title=st.sampled_from("abc"))
    def switch(self, title: str) -> None:
        """Use a title: the live conversation, or a new one that is opening."""
        if self._of(title) is None:
            cid = next(self.ids)
            previous = self.router.reserve(title, cid)
            assert previous == self.active
            self.opening.append((title, cid, previous))
            self.live[cid] = title
        else:
            self.router.active = title
        self.active = title

    @precondition(lambda self: self.opening)
    @rule(data=st.data(), fails=st.booleans())
    def opened(self, data: Any, fails: bool) -> None:
        """An opening ends, well or not."""
        opening = data.draw(st.sampled_from(self.opening))
        self.opening.remove(opening)
        title, cid, previous = opening
        if not fails:
            return
        self.router.roll_back(title, cid, previous)
        if self.live.pop(cid, None) is not None and self.active == title:
            self.active = previous if previous is not None and self._of(previous) is not None else None

    @precondition(lambda self: self.router.tmp is None)
    @rule()
    def open_tmp(self) -> None:
        """Start the chat without a topic."""
        self.router.tmp = next(self.ids)
        self.live[self.router.tmp] = None

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        """Close a conversation."""
        cid = data.draw(st.sampled_from(sorted(self.live)))
        title = self.live.pop(cid)
        self.router.drop(cid)
        if title is not None and title == self.active:
            self.active = None

    @invariant()
    def routes_to_what_lives(self) -> None:
        tmp = next((cid for cid, title in self.live.items() if title is None), None)
        expected = self._of(self.active) if self.active is not None else tmp
        assert self.router.current() == expected
        assert self.router.by_title == {title: cid for cid, title in self.live.items() if title is not None}
        assert self.router.empty == (not self.live)


TestTopicRouterAgainstAModel = RouterMachine.TestCase
TestTopicRouterAgainstAModel.settings = settings(quick, max_examples=60, stateful_step_count=30)


# -- the work queue ------------------------------------------------------------------------------------

_numbers = itertools.count(1)


def ticket(
    on_busy: Any = "enqueue", *, steer: bool = False, accepted: bool = True, called: int = 0
) -> Ticket:
    """A ticket with an id of its own; of two steers, the one with the smaller `called` has the smaller id."""
    made = Ticket(called * 1_000_000 + next(_numbers), 1, "x", on_busy=on_busy)
    made.from_steer = steer
    if accepted:
        made.accept()
    return made


class QueueMachine(RuleBasedStateMachine):
    """Interrupts come first; then steers, in the order of their calls; then others."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue()
        self.added: list[Work] = []  # everything that waits, in the order in which it came
        self.waiting: list[Ticket] = []  # not accepted yet

    @rule(accepted=st.booleans())
    def enqueue(self, accepted: bool) -> None:
        made = ticket(accepted=accepted)
        self.queue.append(made)
        self._add(made)

    @rule(accepted=st.booleans())
    def interrupt(self, accepted: bool) -> None:
        made = ticket("interrupt", accepted=accepted)
        self.queue.put_first(made)
        self._add(made)

    @rule(calls=st.sets(st.integers(0, 99), min_size=1, max_size=3))
    def leave_over(self, calls: set[int]) -> None:
        """A turn ends before its steers, which may have been called for before others that wait."""
        steers = [ticket(steer=True, called=called) for called in sorted(calls)]
        for steer in steers:
            self.queue.put_steer(steer)
            self._add(steer)

    @rule(accepted=st.booleans(), called=st.integers(0, 99))
    def late_steer(self, accepted: bool, called: int) -> None:
        made = ticket(steer=True, accepted=accepted, called=called)
        self.queue.put_steer(made)
        self._add(made)

    @rule()
    def compaction(self) -> None:
        work = CompactionWork(GreenletFuture())
        self.queue.append(work)
        self._add(work)

    def _add(self, work: Work) -> None:
        self.added.append(work)
        if isinstance(work, Ticket) and not work.durable:
            self.waiting.append(work)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), refused=st.booleans())
    def answer(self, data: Any, refused: bool) -> None:
        """The acceptance of a message is committed, or has failed."""
        made = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(made)
        if refused:
            self.queue.remove(made)
            self.added.remove(made)
        else:
            made.accept()

    @rule()
    def take_next(self) -> None:
        order = self._expected()
        work = self.queue.next()
        if not order or order[0] in self.waiting:
            assert work is None
        else:
            assert work is order[0]
            self.added.remove(work)

    @rule()
    def take_compactions(self) -> None:
        taken = self.queue.take_compactions()
        assert taken == [work for work in self._expected() if isinstance(work, CompactionWork)]
        self.added = [work for work in self.added if isinstance(work, Ticket)]

    @rule()
    def take_accepted(self) -> None:
        taken = self.queue.take_accepted(lambda each: each.from_steer)
        expected = [w for w in self._expected() if isinstance(w, Ticket) and w.durable and w.from_steer]
        assert taken == expected
        self.added = [work for work in self.added if work not in taken]

    def _expected(self) -> list[Work]:
        urgent = [w for w in self.added if isinstance(w, Ticket) and w.on_busy == "interrupt"]
        steers = [w for w in self.added if isinstance(w, Ticket) and w.from_steer]
        steers.sort(key=lambda steer: steer.turn_id)
        rest = [w for w in self.added if w not in urgent and w not in steers]
        return [*urgent, *steers, *rest]

    @invariant()
    def is_in_order(self) -> None:
        assert list(self.queue) == self._expected()
        assert len(self.queue) == len(self.added)


TestWorkQueueAgainstAModel = QueueMachine.TestCase
TestWorkQueueAgainstAModel.settings = settings(quick, max_examples=60, stateful_step_count=30)


# -- rounds --------------------------------------------------------------------------------------------


class Fixed:
    """A model that streams these chunks."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._chunks = chunks

    def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
        return iter(self._chunks)


def cut(text: str, data: Any) -> list[str]:
    """The text in pieces, some of them empty."""
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])]


call_ids = st.one_of(
    st.none(), st.sampled_from(["", "a", "b", "call_1_1_1", "\ud800", "\x00"]), st.text(max_size=4)
)
a_call = st.tuples(call_ids, st.one_of(st.none(), st.text(max_size=6)), any_text)


@quick
@given(reasoning=any_text, text=any_text, calls=st.lists(a_call, max_size=4), data=st.data())
def test_any_chunking_of_an_answer_is_the_same_answer(
    reasoning: str, text: str, calls: list[tuple[str | None, str | None, str]], data: Any
) -> None:
    chunks = [Chunk(reasoning=piece) for piece in cut(reasoning, data)]
    chunks += [Chunk(text=piece) for piece in cut(text, data)]
    lanes = []
    for index, (id_, name, arguments) in enumerate(calls):
        pieces = cut(arguments, data)
        lane = [ToolCallDelta(index, id_, name, pieces[0])]
        lanes.append([*lane, *(ToolCallDelta(index, arguments=piece) for piece in pieces[1:])])
    while any(lanes):  # the deltas of several calls may come in turns
        lane = data.draw(st.sampled_from([lane for lane in lanes if lane]))
        chunks.append(Chunk(tool_calls=(lane.pop(0),)))
    if data.draw(st.booleans()):
        chunks = data.draw(merged(chunks))
    usage = Usage(1, 2, 3)
    chunks.append(Chunk(finish_reason="stop", usage=usage))

    events: list[Event] = []
    request = ModelRequest("m", [{"role": "user", "content": "?"}], turn_id=1)
    answer = run_round(Fixed(chunks), request, events.append)

    assert (answer.text, answer.reasoning) == (mend_text(text), mend_text(reasoning))
    assert (answer.finish_reason, answer.usage) == ("stop", usage)
    assert [call.name for call in answer.calls] == [mend_text(name or "") for _, name, _ in calls]
    assert [call.arguments for call in answer.calls] == [mend_text(arguments) for *_, arguments in calls]
    ids = [call.id for call in answer.calls]
    assert len(set(ids)) == len(ids)
    assert all(id_ == mend_text(id_) and id_ for id_ in ids)
    assert run_round(Fixed(chunks), request, None) == answer
    assert_nested(events, answer)


@st.composite
def merged(draw: Any, chunks: list[Chunk]) -> list[Chunk]:
    """The same chunks, some neighbours in one; within a chunk reasoning comes before text before calls."""
    made: list[Chunk] = []
    for chunk in chunks:
        last = made[-1] if made else None
        if last is not None and not _runs_back(last, chunk) and draw(st.booleans()):
            made[-1] = Chunk(
                text=last.text + chunk.text,
                reasoning=last.reasoning + chunk.reasoning,
                tool_calls=last.tool_calls + chunk.tool_calls,
            )
        else:
            made.append(chunk)
    return made


def _runs_back(last: Chunk, chunk: Chunk) -> bool:
    return bool(last.tool_calls and (chunk.text or chunk.reasoning)) or bool(last.text and chunk.reasoning)


pieces = st.one_of(
    st.builds(Chunk, text=st.text(max_size=3)),
    st.builds(Chunk, reasoning=st.text(max_size=3)),
    st.builds(Chunk, text=st.text(max_size=3), reasoning=st.text(max_size=3)),
    st.builds(
        Chunk, tool_calls=st.builds(lambda i: (ToolCallDelta(i, f"c{i}", "n", "{}"),), st.integers(0, 3))
    ),
)


@quick
@given(st.lists(pieces, max_size=15))
def test_segments_are_always_whole_and_one_at_a_time_in_whatever_order_the_model_talks(
    chunks: list[Chunk],
) -> None:
    events: list[Event] = []
    request = ModelRequest("m", [])
    answer = run_round(Fixed([*chunks, Chunk(finish_reason="stop")]), request, events.append)
    assert answer.text == mend_text("".join(chunk.text for chunk in chunks))
    assert answer.reasoning == mend_text("".join(chunk.reasoning for chunk in chunks))
    assert_nested(events, answer)


class Breaks(Exception):
    """The stream broke."""


@quick
@given(st.lists(pieces, max_size=10))
def test_segments_are_whole_even_where_the_stream_breaks(chunks: list[Chunk]) -> None:
    class Broken:
        def stream(self, _request: ModelRequest) -> Iterator[Chunk]:
            yield from chunks
            raise Breaks

    events: list[Event] = []
    with pytest.raises(Breaks):
        run_round(Broken(), ModelRequest("m", []), events.append)
    assert_nested(events, None)


def assert_nested(events: list[Event], answer: Round | None) -> None:
    """Deltas lie between the start and the end of their kind, and one segment is open at a time."""
    kinds = {TextStart: (TextDelta, TextEnd), ThinkingStart: (ThinkingDelta, ThinkingEnd)}
    inside: tuple[type[Event], type[Event]] | None = None
    filled = False
    texts: dict[type[Event], str] = {TextDelta: "", ThinkingDelta: ""}
    begun = 0
    for event in events:
        if type(event) in kinds:
            assert inside is None
            inside, filled = kinds[type(event)], False
        elif isinstance(event, TextDelta | ThinkingDelta):
            assert inside is not None
            assert type(event) is inside[0]
            assert event.text
            texts[type(event)] += event.text
            filled = True
        elif isinstance(event, TextEnd | ThinkingEnd):
            assert inside is not None
            assert type(event) is inside[1]
            assert filled, "an empty segment"
            inside = None
        else:
            assert isinstance(event, ToolCallsBegin)
            assert inside is None
            begun += 1
    assert inside is None
    if answer is not None:
        assert texts == {TextDelta: answer.text, ThinkingDelta: answer.reasoning}
        assert begun == bool(answer.calls)


# -- history -------------------------------------------------------------------------------------------

call_lists = st.lists(st.builds(ToolCall, st.uuids().map(str), st.just("tool"), st.just("{}")), max_size=4)


@st.composite
def steps(draw: Any) -> list[HistoryEntry]:
    """What a turn adds: a user entry, steps whose calls have all, some or no results, an answer."""
    entries = [HistoryEntry("user", draw(st.text(max_size=5)), sender="s")]
    for _ in range(draw(st.integers(0, 3))):
        calls = draw(call_lists)
        if not calls:
            entries.append(HistoryEntry("user", "steer", sender="s"))
            continue
        entries.append(HistoryEntry("assistant", draw(st.text(max_size=3)), tool_calls=calls))
        results = [tool_result(call, "r") if draw(st.booleans()) else None for call in calls]
        entries += interrupted_results(calls, results)
    if draw(st.booleans()):
        agent = draw(st.sampled_from(["", "guest"]))
        entries.append(HistoryEntry("assistant", draw(st.text(max_size=5)), agent=agent))
    return entries


@quick
@given(st.lists(st.one_of(steps(), st.just("summary")), max_size=6), st.sampled_from(["", "guest", "other"]))
def test_every_call_in_a_wire_history_has_its_result_right_behind_it(turns: list[Any], viewer: str) -> None:
    history = LiveHistory()
    for turn in turns:
        if turn == "summary":
            before = history.entries, list(history.entries)
            history.replace(HistoryEntry("user", "a summary"))
            assert before[0] == before[1], "whoever held the entries lost some"
        else:
            history.extend(turn)
    for wire in (
        history.seen_by(viewer, "host"),
        [to_wire(e) for e in resumed("a", "archived", history.entries)],
    ):
        for place, message in enumerate(wire):
            asked = [call["id"] for call in message.get("tool_calls", ())]
            answers = wire[place + 1 : place + 1 + len(asked)]
            assert [answer.get("tool_call_id") for answer in answers] == asked
            assert message["role"] != "tool" or place > 0
    assert history.seen_by("", "host") == [to_wire(entry) for entry in history.entries]
    for message in history.seen_by("guest", "host"):  # who has no tools is shown no calls
        assert message["role"] != "tool"
        assert "tool_calls" not in message


@quick
@given(steps())
def test_a_guests_words_are_its_own_and_a_user_message_to_everybody_else(entries: list[HistoryEntry]) -> None:
    for entry in entries:
        own, other = to_wire(entry, "guest"), to_wire(entry, "")
        if entry.agent == "guest":
            assert own == {"role": "assistant", "content": entry.content}
            assert other == {"role": "user", "content": f'<from agent="guest">\n{entry.content}\n</from>'}
        else:
            assert own == other
