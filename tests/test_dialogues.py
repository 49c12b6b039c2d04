"""Recorded dialogues as a model and its tools: a replay tells what was lost, doubled or reordered."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from actors.errors import InvalidInput, ModelError
from actors.history import to_wire
from actors.models.base import Message, Model, ModelRequest
from actors.models.dialogues import (
    ACKNOWLEDGED,
    Dialogue,
    RecordedModel,
    compare,
    expected_entries,
    read_dialogues,
    recorded_tools,
)
from actors.round import Round, run_round
from actors.tools import ToolContext, ToolRegistry, dispatch
from persistence.records import HistoryEntry

REAL = Path(os.environ.get("PALAVER_DIALOGUES", Path(__file__).parents[2] / "shared/data/dialogues.jsonl"))

BOOK = {
    "name": "Book",
    "service": "Tables",
    "arguments": {"city": "Zürich", "seats": "2"},
    "results": [{"ok": 1}],
}
FIND = {"name": "Find", "service": "Tables", "arguments": {"city": "Zürich"}, "results": []}


def turn(user: str, assistant: str, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"user": user, "calls": list(calls), "assistant": assistant}


RECORD = {
    "id": "d1",
    "services": ["Tables"],
    "turns": [
        turn("A table, please.", "Which city?"),
        turn("Zürich, for 2.", "It is booked.", FIND, BOOK),
        turn("Yes.", "Anything else?"),
        turn("Yes.", "Once more, then.", {**BOOK, "results": [{"ok": 2}]}),
        turn("No.", "Goodbye."),
    ],
}


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue.from_record(RECORD)


class Player:
    """A conversation with a recorded model, in as few lines as that takes."""

    def __init__(
        self, dialogues: Sequence[Dialogue], sender: str, model: RecordedModel | None = None
    ) -> None:
        self.model = model or RecordedModel(dialogues, chunk_chars=0)
        self.tools = ToolRegistry(recorded_tools(dialogues))
        self.sender = sender
        self.entries: list[HistoryEntry] = []
        self.wire: list[Message] = [{"role": "system", "content": "be kind"}]

    def add(self, entry: HistoryEntry) -> None:
        self.entries.append(entry)
        self.wire.append(to_wire(entry))

    def hear(self, text: str) -> None:
        self.add(HistoryEntry("user", text, sender=self.sender))

    def ask(self) -> Round:
        return run_round(self.model, ModelRequest("m", self.wire, sender=self.sender), None)

    def step(self) -> Round:
        """One model round, and the calls that it asks for."""
        answer = self.ask()
        self.add(HistoryEntry("assistant", answer.text, tool_calls=answer.calls))
        for call in answer.calls:
            context = ToolContext("a", self.sender, 1, 1, call.id)
            outcome = dispatch(self.tools, call.name, call.arguments, context)
            self.add(HistoryEntry("tool", outcome.output, tool_call_id=call.id, name=call.name))
        return answer

    def say(self, text: str) -> str:
        self.hear(text)
        while True:
            answer = self.step()
            if not answer.calls:
                return answer.text


# -- a whole replay ----------------------------------------------------------------------------------------


def test_a_replay_gives_the_recorded_calls_results_and_answers(dialogue):
    player = Player([dialogue], "d1")
    assert isinstance(player.model, Model)
    assert [player.say(t.user) for t in dialogue.turns] == [t.assistant for t in dialogue.turns]
    assert compare(expected_entries(dialogue), player.entries) == []


def test_what_must_be_stored_is_known_to_the_letter(dialogue):
    entries = expected_entries(dialogue)
    assert [entry.role for entry in entries[:7]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert entries[2] == HistoryEntry("user", "Zürich, for 2.", sender="d1")
    assert [(c.id, c.name, c.arguments) for c in entries[3].tool_calls] == [
        ("call_1_0", "Find", '{"city": "Zürich"}'),
        ("call_1_1", "Book", '{"city": "Zürich", "seats": "2"}'),
    ]
    assert entries[5] == HistoryEntry("tool", '[{"ok": 1}]', tool_call_id="call_1_1", name="Book")


def test_every_real_dialogue_replays_to_the_letter():
    if not REAL.exists():
        pytest.skip(f"no recorded dialogues at {REAL}; name a file of them in PALAVER_DIALOGUES")
    dialogues = read_dialogues(REAL)
    model = RecordedModel(dialogues, chunk_chars=0)
    tools = ToolRegistry(recorded_tools(dialogues))
    for dialogue in dialogues[::5]:
        player = Player([], dialogue.id, model)
        player.tools = tools
        for recorded in dialogue.turns:
            player.say(recorded.user)
        assert compare(expected_entries(dialogue), player.entries) == []


def test_dialogues_do_not_disturb_each_other(dialogue):
    other = evolve(dialogue, id="d2")
    model = RecordedModel([dialogue, other])
    players = [Player([dialogue, other], sender, model) for sender in ("d1", "d2")]
    for recorded in dialogue.turns:
        for player in players:
            assert player.say(recorded.user) == recorded.assistant
    for player, recorded in zip(players, (dialogue, other), strict=True):
        assert compare(expected_entries(recorded), player.entries) == []


def test_text_streams_in_chunks_after_the_delay_that_was_asked_for(dialogue):
    waited: list[float] = []
    model = RecordedModel(
        [dialogue], delay_s=lambda asked: len(asked.messages), chunk_chars=5, sleep=waited.append
    )
    request = ModelRequest("m", [{"role": "user", "content": "A table, please."}], sender="d1")
    assert [chunk.text for chunk in model.stream(request)] == ["Which", " city", "?", ""]
    assert waited == [1]


# -- what is not as recorded -------------------------------------------------------------------------------


def test_a_lost_message_is_noticed(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    with pytest.raises(ModelError, match=r"turn 1: expected the user text 'Zürich, for 2.'; got \['Yes.'\]"):
        player.say("Yes.")


def test_a_wrong_first_message_is_noticed(dialogue):
    with pytest.raises(ModelError, match=r"turn 0: expected the user text 'A table, please\.'"):
        Player([dialogue], "d1").say("Hello?")


def test_a_history_that_lost_the_users_message_is_noticed(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    with pytest.raises(ModelError, match="turn 1"):
        player.ask()


def test_a_message_after_the_last_turn_is_noticed(dialogue):
    player = Player([dialogue], "d1")
    for recorded in dialogue.turns:
        player.say(recorded.user)
    with pytest.raises(ModelError, match="all turns were answered"):
        player.say("Hello?")


def test_an_unknown_sender_is_told(dialogue):
    with pytest.raises(ModelError, match="no dialogue of the sender 'eve'"):
        Player([dialogue], "eve").say("A table, please.")


def test_one_text_in_two_turns_is_two_turns(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    player.say("Zürich, for 2.")
    assert [player.say("Yes."), player.say("Yes.")] == ["Anything else?", "Once more, then."]


# -- steers, compaction, turns that run again --------------------------------------------------------------


def test_a_steer_within_a_turn_changes_nothing_of_the_recording(dialogue):
    player = Player([dialogue], "d1")
    player.hear("A table, please.")
    player.hear("And quickly.")
    assert player.step().text == "Which city?"
    player.hear("Zürich, for 2.")
    assert player.step().calls
    player.hear("By the window.")
    assert player.step().text == "It is booked."
    assert player.say("Yes.") == "Anything else?"


def test_a_steer_that_became_a_turn_of_its_own_is_acknowledged_if_it_was_allowed(dialogue):
    player = Player([dialogue], "d1")
    player.model.allow("d1", "By the window.")
    assert player.say("A table, please.") == "Which city?"
    assert player.say("By the window.") == ACKNOWLEDGED
    assert player.say("Zürich, for 2.") == "It is booked."
    with pytest.raises(ModelError, match="By the door"):
        player.say("By the door.")


def test_an_allowed_steer_within_a_turn_does_not_stop_it(dialogue):
    player = Player([dialogue], "d1")
    player.model.allow("d1", "By the window.")
    player.say("A table, please.")
    player.hear("Zürich, for 2.")
    player.step()
    player.hear("By the window.")
    assert player.step().text == "It is booked."


def test_after_a_compaction_within_a_turn_the_answer_comes_unchecked(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    player.hear("Zürich, for 2.")
    player.step()
    player.wire = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a summary"}]
    assert player.step().text == "It is booked."
    player.wire = [{"role": "user", "content": "another summary"}]
    assert player.say("Yes.") == "Anything else?"


def test_a_turn_that_runs_again_gets_the_same_again(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    player.hear("Zürich, for 2.")
    first = player.ask()
    assert player.ask() == first
    player.step()
    assert player.ask().text == "It is booked."
    assert player.ask().text == "It is booked."
    assert player.say("Zürich, for 2.") == "It is booked."
    assert player.entries[-2].content == '[{"ok": 1}]'
    assert player.say("Yes.") == "Anything else?"


def test_a_new_model_goes_on_where_it_is_told_to(dialogue):
    player = Player([dialogue], "d1")
    player.say("A table, please.")
    player.model = RecordedModel([dialogue])
    player.model.seek("d1", 1)
    player.hear("Zürich, for 2.")
    player.step()
    player.model = RecordedModel([dialogue])  # recovered after the committed step
    player.model.seek("d1", 1)
    assert player.step().text == "It is booked."
    player.model.seek("d1", 5)
    with pytest.raises(ModelError, match="all turns were answered"):
        player.say("more")
    with pytest.raises(InvalidInput, match="there is no turn 6"):
        player.model.seek("d1", 6)


def test_summaries_and_titles_move_nothing(dialogue):
    player = Player([dialogue], "d1")
    messages = [{"role": "user", "content": "A table, please."}]
    for purpose in ("compact", "title"):
        request = ModelRequest("m", messages, purpose=purpose, sender="d1")
        assert "table" in run_round(player.model, request, None).text
    assert player.say("A table, please.") == "Which city?"


# -- tools -------------------------------------------------------------------------------------------------


def context(call_id: str, sender: str = "d1") -> ToolContext:
    return ToolContext("a", sender, 1, 1, call_id)


def test_there_is_one_tool_for_each_name_in_order_of_first_use(dialogue):
    assert [tool.name for tool in recorded_tools([dialogue, evolve(dialogue, id="d2")])] == ["Find", "Book"]


def test_a_repeated_call_gets_results_in_recorded_order_and_then_the_last(dialogue):
    tools = ToolRegistry(recorded_tools([dialogue]))
    arguments = '{"seats": "2", "city": "Zürich"}'
    outputs = [dispatch(tools, "Book", arguments, context(f"x{n}")).output for n in range(3)]
    assert outputs == ['[{"ok": 1}]', '[{"ok": 2}]', '[{"ok": 2}]']


def test_a_call_with_a_recorded_id_gets_its_own_result_however_often(dialogue):
    tools = ToolRegistry(recorded_tools([dialogue]))
    arguments = json.dumps(BOOK["arguments"])
    for call_id, ok in (("call_3_0", 2), ("call_1_1", 1), ("call_1_1", 1)):
        assert dispatch(tools, "Book", arguments, context(call_id)).output == f'[{{"ok": {ok}}}]'


@pytest.mark.parametrize(("arguments", "sender"), [('{"city": "Bern"}', "d1"), ('{"city": "Zürich"}', "d2")])
def test_a_call_that_was_not_recorded_is_an_error_result(dialogue, arguments, sender):
    outcome = dispatch(ToolRegistry(recorded_tools([dialogue])), "Find", arguments, context("x", sender))
    assert outcome.is_error
    assert "no call of Find" in outcome.output


# -- comparing ---------------------------------------------------------------------------------------------


def test_differences_are_told_entry_by_entry(dialogue):
    expected = expected_entries(dialogue)
    stored = [*expected]
    stored[1] = evolve(stored[1], content="Which town?")
    stored[2] = evolve(stored[2], sender="eve")
    assert compare(expected, stored) == [
        "entry 1: content should be 'Which city?', is 'Which town?'",
        "entry 2: sender should be 'd1', is 'eve'",
    ]
    assert compare(expected, expected[:-1])[0].startswith(
        f"entry {len(expected) - 1}: missing: HistoryEntry("
    )
    assert compare(expected, [*expected, expected[0]])[0].startswith(f"entry {len(expected)}: not expected")
    assert len(compare(expected, [])) == len(expected)


# -- reading -----------------------------------------------------------------------------------------------


def test_a_file_is_read_line_by_line_and_blank_lines_are_passed_over(tmp_path, dialogue):
    path = tmp_path / "d.jsonl"
    other = {**RECORD, "id": "d2"}
    path.write_text(f"{json.dumps(RECORD)}\n\n{json.dumps(other, ensure_ascii=False)}", "utf-8")
    assert read_dialogues(path) == [dialogue, evolve(dialogue, id="d2")]
    assert read_dialogues(str(path))[0].turns[1].calls[0].results == []


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def with_turn(turn_: Any) -> dict[str, Any]:
    return {**RECORD, "turns": [turn("a", "b"), turn_]}


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (without(RECORD, "id"), "line 2: the field id is missing"),
        ({**RECORD, "id": ""}, "line 2: id is empty"),
        ({**RECORD, "id": 7}, "line 2: id must be a str, not int"),
        ({**RECORD, "services": [1]}, "line 2: services must be"),
        ({**RECORD, "turns": []}, "line 2: turns is empty"),
        ({**RECORD, "turns": {}}, "line 2: turns must be a list"),
        (with_turn(None), "line 2, turn 1 must be a JSON object"),
        (with_turn(without(turn("a", "b"), "user")), "line 2, turn 1: the field user is missing"),
        (with_turn(turn("a", " ")), "line 2, turn 1: assistant is empty"),
        (with_turn(turn("a\0", "b")), "line 2, turn 1: user has a NUL"),
        (with_turn(turn("a", "b", [])), "line 2, turn 1, call 0 must be a JSON object"),
        (with_turn(turn("a", "b", BOOK, without(BOOK, "results"))), "turn 1, call 1: the field results"),
        (with_turn(turn("a", "b", {**BOOK, "arguments": []})), "call 0: arguments must be a dict"),
        (with_turn(turn("a", "b", {**BOOK, "arguments": {"call": 1}})), 'no argument can be named "call"'),
        ([], "line 2 must be a JSON object, not list"),
        ("", "line 2 must be a JSON object, not str"),
    ],
)
def test_a_line_that_is_no_dialogue_is_named(tmp_path, record, names):
    path = tmp_path / "d.jsonl"
    path.write_text(f"{json.dumps({**RECORD, 'id': 'first'})}\n{json.dumps(record)}\n")
    with pytest.raises(InvalidInput) as caught:
        read_dialogues(path)
    assert names in str(caught.value)
    assert "d.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\n{oops\n", "line 2 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'"\xff"\n', "line 1 is not UTF-8"),
        (f"{json.dumps(RECORD)}\n{json.dumps(RECORD)}\n".encode(), "two dialogues have the id 'd1'"),
    ],
)
def test_a_file_that_holds_no_dialogues_is_named(tmp_path, content, names):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=names):
        read_dialogues(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        read_dialogues(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="directory"):
        read_dialogues(tmp_path)


def test_two_dialogues_of_one_id_make_no_model(dialogue):
    with pytest.raises(InvalidInput, match="two dialogues have the id 'd1'"):
        RecordedModel([dialogue, dialogue])
