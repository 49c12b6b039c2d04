"""A turn costs the same however much there is: counted, not timed, and shown to notice what grows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import pytest
from cost_support import MESSAGE, Cost, Measure, Meter, assert_flat, measured

from actors.conversation import ConversationActor
from actors.history import LiveHistory, to_wire
from actors.models import encoded
from actors.models.completion import request_body
from actors.models.encoded import to_json
from actors.round import Reader
from palaver import ModelRequest, Runtime, ScriptedModel, Ticket
from persistence import committer

FEW, MANY = 10, 300
LONG = 1_000  # entries
TOGETHER = 20
MOST_IN_FLIGHT = 45  # objects of a turn, its sender's greenlet included, that the collector has to look at


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """Names of files, one after the other."""
    return (tmp_path / f"{number}.db" for number in count())


def turn(rt: Runtime, meter: Meter) -> Cost:
    """A turn of the stored topic, which has had one."""
    cid = rt.switch_topic("agent", "sender 0", "topic").conversation_id
    rt.send(cid, MESSAGE)
    return meter.cost(lambda: rt.send(cid, MESSAGE))


def turns_together(rt: Runtime, meter: Meter) -> Cost:
    """So many senders' turns at once."""
    cids = [
        rt.switch_topic("agent", f"many {number}", "topic", "new").conversation_id
        for number in range(TOGETHER)
    ]

    def send() -> None:
        gevent.joinall([gevent.spawn(rt.send, cid, MESSAGE) for cid in cids], raise_error=True)

    send()
    return meter.cost(send)


def cold_switch(rt: Runtime, meter: Meter) -> Cost:
    """To a stored topic that is not in memory; each call is another sender's."""
    numbers = count(1)
    return meter.cost(lambda: rt.switch_topic("agent", f"sender {next(numbers)}", "topic"))


def listing(rt: Runtime, meter: Meter) -> Cost:
    """The stored sessions of one sender."""
    return meter.cost(lambda: rt.sessions(agent="agent", sender="sender 3"))


def open_and_close(rt: Runtime, meter: Meter) -> Cost:
    """A tmp chat that comes and goes."""
    return meter.cost(lambda: rt.close(rt.get_or_create("agent", "guest")))


def open_another(rt: Runtime, meter: Meter) -> Cost:
    """A tmp chat that stays, and sits idle."""
    numbers = count()
    return meter.cost(lambda: rt.get_or_create("agent", f"new {next(numbers)}"))


def scan_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant: every message, and every tmp chat that is opened, looks at all that lives."""
    for name in ("_check_message", "get_or_create"):
        real = getattr(Runtime, name)

        def scanning(self: Any, *args: Any, real: Any = real) -> Any:
            if any(state.phase == "nowhere" for state in list(self._conversations.values())):
                raise AssertionError
            return real(self, *args)

        monkeypatch.setattr(Runtime, name, scanning)


def without_index(measure: Measure[Cost]) -> Measure[Cost]:
    """Plant: topics are found by reading all sessions."""

    def measure_without(rt: Runtime, meter: Meter) -> Cost:
        meter.db.conn.execute("DROP INDEX sessions_by_topic")
        return measure(rt, meter)

    return measure_without


def with_a_scan(measure: Measure[Cost]) -> Measure[Cost]:
    """Plant: every entry that is stored makes SQLite read all sessions, in a statement of a trigger's."""

    def measure_with(rt: Runtime, meter: Meter) -> Cost:
        meter.db.conn.execute(
            """CREATE TEMP TRIGGER scan AFTER INSERT ON entries
                BEGIN SELECT max(uptime_ms) FROM sessions; END"""
        )
        return measure(rt, meter)

    return measure_with


# -- against live conversations --------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [turn, open_and_close])
def test_what_lives_costs_nobody_else(
    files: Iterator[Path], monkeypatch: pytest.MonkeyPatch, measure: Measure[Cost]
) -> None:
    few, many = (measured(next(files), measure, live=live) for live in (FEW, MANY))
    assert_flat(few, many)
    scan_all(monkeypatch)
    with pytest.raises(AssertionError, match="lines grow"):
        assert_flat(few, measured(next(files), measure, live=MANY))


# -- against history -------------------------------------------------------------------------------------


def test_a_long_history_costs_a_turn_nothing(files: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (measured(next(files), turn, entries=entries) for entries in (FEW, LONG))
    assert_flat(few, many)

    def encode_again(self: LiveHistory, _guest: str, _host: str) -> list[dict[str, Any]]:
        return [to_wire(entry) for entry in self.entries]

    with monkeypatch.context() as planted:
        planted.setattr(LiveHistory, "seen_by", encode_again)
        with pytest.raises(AssertionError, match="lines grow"):
            assert_flat(few, measured(next(files), turn, entries=LONG))
    read = Reader.read

    def listed(self: Reader, model: Any, request: ModelRequest) -> Any:
        assert request.messages
        return read(self, model, request)

    monkeypatch.setattr(Reader, "read", listed)  # plant: the list that a model may ask for is made for each
    with pytest.raises(AssertionError, match="bytes grow"):
        assert_flat(few, measured(next(files), turn, entries=LONG))


def test_a_request_body_costs_no_more_than_the_copy_of_what_was_said_before(
    files: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, sizes = ScriptedModel.stream, [0]

    def answer_a_body(self: ScriptedModel, request: ModelRequest) -> Any:
        sizes[0] = len(request_body(request, {}))
        return answer(self, request)

    monkeypatch.setattr(ScriptedModel, "stream", answer_a_body)
    few, many = (measured(next(files), turn, entries=entries) for entries in (FEW, LONG))
    assert_flat(few, many, allowed_bytes=sizes[0])
    # Plant: nothing that is kept is used.
    monkeypatch.setattr(encoded.Encoded, "first", lambda self, count: to_json(self.messages[:count])[1:-1])
    with pytest.raises(AssertionError, match="bytes grow"):
        assert_flat(few, measured(next(files), turn, entries=LONG), allowed_bytes=sizes[0])


def test_a_turn_keeps_nothing_but_what_was_said(files: Iterator[Path]) -> None:
    few, many = (measured(next(files), turn, entries=entries) for entries in (FEW, LONG))
    assert many.kept < 4_096
    hoarding = measured(next(files), turn, entries=LONG, keep_requests=None)
    with pytest.raises(AssertionError, match="bytes kept grow"):
        assert_flat(few, hoarding, allowed_bytes=1_000_000)


# -- against stored sessions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "planted"),
    [(turn, with_a_scan), (cold_switch, without_index), (listing, without_index)],
)
def test_what_is_stored_costs_nobody_else(
    files: Iterator[Path], measure: Measure[Cost], planted: Any
) -> None:
    few, many = (measured(next(files), measure, stored=stored) for stored in (FEW, MANY))
    assert_flat(few, many, factor=1.3)  # an index of so many has a level more
    with pytest.raises(AssertionError, match=r"(steps|statements) grow"):
        assert_flat(few, measured(next(files), planted(measure), stored=MANY), factor=1.3)


# -- the collector ---------------------------------------------------------------------------------------


def garbage(rt: Runtime, _meter: Meter) -> int:
    """Objects that only the collector of cycles can free, after a few turns."""
    cid = rt.switch_topic("agent", "sender 0", "topic").conversation_id
    rt.send(cid, MESSAGE)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            rt.send(cid, MESSAGE)
        return gc.collect()
    finally:
        gc.enable()


def test_a_turn_leaves_nothing_to_the_collector(
    files: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured(next(files), garbage) == 0
    seen_by = LiveHistory.seen_by

    def cyclic(self: LiveHistory, guest: str, host: str) -> Any:
        cycle: list[Any] = []
        cycle.append(cycle)
        return seen_by(self, guest, host)

    monkeypatch.setattr(LiveHistory, "seen_by", cyclic)
    assert measured(next(files), garbage) == 5


def test_a_turn_on_its_way_to_the_disk_is_few_objects_for_the_collector(
    files: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    commit = committer.Committer._commit  # noqa: SLF001 - the moment when all of a batch are on their way

    def looked_at(self: Any, db: Any) -> None:
        seen.append(len(gc.get_objects(generation=0)))
        commit(self, db)

    def in_flight(rt: Runtime, meter: Meter) -> float:
        turns_together(rt, meter)
        cids = [state.id for state in rt.list_active()]
        gc.collect()
        gc.disable()
        try:
            seen.clear()
            gevent.joinall([gevent.spawn(rt.send, cid, MESSAGE) for cid in cids], raise_error=True)
        finally:
            gc.enable()
        return max(seen) / len(cids)

    monkeypatch.setattr(committer.Committer, "_commit", looked_at)
    most = measured(next(files), in_flight)
    assert most <= MOST_IN_FLIGHT
    kept: list[Any] = []
    init = Ticket.__init__

    def hoarding(self: Ticket, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        kept.extend([[] for _ in range(20)])

    monkeypatch.setattr(Ticket, "__init__", hoarding)
    assert measured(next(files), in_flight) > MOST_IN_FLIGHT


# -- what an idle conversation and a turn may take at all -----------------------------------------------


def test_a_turn_is_one_commit_of_few_statements(files: Iterator[Path]) -> None:
    alone = measured(next(files), turn)
    assert alone.commits == 1
    assert alone.statements <= 6
    assert alone.lines <= 2_250


def test_an_idle_chat_takes_little_memory(files: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(next(files), open_another).kept <= 1_600
    real = ConversationActor.__init__

    def make_all(self: ConversationActor, *args: Any) -> None:
        real(self, *args)
        assert not self._queue  # plant: what an idle one has no use for is made

    monkeypatch.setattr(ConversationActor, "__init__", make_all)
    assert measured(next(files), open_another).kept > 1_600


def test_turns_that_end_together_share_statements_and_commits(
    files: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(cost: Cost) -> None:
        assert cost.commits <= 2
        assert cost.statements <= TOGETHER / 2, f"{cost.statements} statements for {TOGETHER} turns"

    check(measured(next(files), turns_together))
    monkeypatch.setattr(committer, "groups", lambda batch: [[item] for item in batch])
    with pytest.raises(AssertionError, match="statements for"):
        check(measured(next(files), turns_together))
