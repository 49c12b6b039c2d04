"""The simulated worlds of `reliability.seeds`: the same seed is the same world, and a broken one is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reliability.seeds import SPAN, live, run
from reliability.twice import told_twice

from actors.conversation import ConversationActor
from actors.events import Done, Lagged, TextDelta, TextEnd, TextStart, ToolCallsStart, ToolResult
from palaver import ToolCall, TurnResult
from palaver.simulation.checks.eventorder import EventOrder

NUMBERS = (1, 2, 3, 4, 5)
DIGESTS = f"""
from gevent import monkey; monkey.patch_all()
import hashlib, sys
from pathlib import Path
from reliability.seeds import live
for world in live({NUMBERS}, Path(sys.argv[1])):
    print(len(world.trace), hashlib.sha256(repr(world.trace).encode()).hexdigest())
"""


def test_a_seed_is_the_same_world_in_every_process(tmp_path: Path) -> None:
    first, second = told_twice(DIGESTS, tmp_path)
    assert len(first) == len({*first}) == len(NUMBERS)
    assert first == second


def test_the_worlds_meet_everything_that_can_happen(tmp_path: Path) -> None:
    """Otherwise they would show nothing."""
    said = {
        f"{who.rstrip('0123456789')} {what.split(' ')[0].rstrip(':')}"
        for world in live(range(100, 140), tmp_path)
        for _, who, what in world.trace
    }
    calls = {what for what in said if what.startswith("c ")}
    assert len(calls) == 23, sorted(calls)
    assert {f"world {what}" for what in ("crashes", "shuts", "disk", "heals", "rests")} <= said
    assert "model begins" in said
    assert {"tool cancel", "tool close"} & said


def test_a_broken_product_is_seen_and_seen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_ended = ConversationActor._turn_ended  # noqa: SLF001 - the bug is planted here

    def forgets_steers(self: Any, ended: Any) -> None:
        ended.turn.steers.clear()
        turn_ended(self, ended)

    monkeypatch.setattr(ConversationActor, "_turn_ended", forgets_steers)
    with pytest.raises(AssertionError) as first:
        run(50, 1, tmp_path)
    report = str(first.value)
    number = int(report.rpartition(" ")[2])
    assert report.startswith("G")
    assert SPAN <= number < SPAN + 50
    assert f"in world {number}, life " in report
    assert report.endswith(f"--part seeds 1 {number}")
    with pytest.raises(AssertionError) as again:
        run(1, number, tmp_path)
    assert str(again.value) == report


CALL = ToolCall("k1", "work", "{}")
DONE = Done(TurnResult("", "text_response", steps=1))
ENDED_UNRUN = Done(TurnResult("", "closed"))
WRONG: dict[str, list[Any]] = {
    "a piece without a start": [TextDelta("a")],
    "two starts": [TextStart(), TextStart()],
    "an end without a start": [TextEnd()],
    "a turn that ends in a segment": [TextStart(), TextDelta("a"), DONE],
    "the second piece where the first was lost": [TextStart(), TextDelta("b")],
    "a piece after the end": [TextStart(), TextDelta("a"), TextEnd(), TextDelta("a")],
    "a result of no call": [ToolCallsStart((CALL,)), ToolResult("k2", "work", "done")],
    "a result twice": [ToolCallsStart((CALL,)), *[ToolResult("k1", "work", "done")] * 2],
}
RIGHT: dict[str, list[Any]] = {
    "a segment": [TextStart(), TextDelta("a"), TextDelta("b"), TextEnd(), DONE],
    "a segment that lost its end": [TextStart(), Lagged(1), TextStart(), TextDelta("a"), TextEnd()],
    "another turn's end in a segment": [TextStart(), ENDED_UNRUN, TextDelta("a"), TextEnd()],
    "a result": [ToolCallsStart((CALL,)), ToolResult("k1", "work", "done"), DONE],
}


@pytest.mark.parametrize("events", WRONG.values(), ids=WRONG)
def test_a_wrong_order_of_events_is_said(events: list[Any]) -> None:
    order = EventOrder("a")
    assert [order.take(event) for event in events][-1]


@pytest.mark.parametrize("events", RIGHT.values(), ids=RIGHT)
def test_a_right_order_of_events_is_not_complained_of(events: list[Any]) -> None:
    order = EventOrder("a")
    assert [order.take(event) for event in events] == [""] * len(events)
