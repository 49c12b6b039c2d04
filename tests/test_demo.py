"""The demonstration proves what it says, and says so when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from actors.models.dialogues import read_dialogues
from palaver import InvalidInput, Runtime
from palaver.commands import palaver
from palaver.demo import CLOSES, STEERS, SWITCHES, demo_dialogues, run_demo
from palaver.offline import offline, verify_database
from persistence import sessions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dialogues.jsonl"


def test_the_demo_does_all_that_it_is_there_to_show(tmp_path: Path):
    path = tmp_path / "demo.db"
    seen: list[int] = []
    report = run_demo(path, on_turn=lambda: seen.append(1))
    assert report.problems == report.differences == ()
    assert report.ok
    dialogues = demo_dialogues()
    assert report.senders == len(dialogues) == 24
    assert report.topics == 27  # three senders have two
    assert report.turns == len(seen) == sum(len(each.turns) for each in dialogues)
    assert report.steers == len(STEERS) == 5
    assert report.closes == len(CLOSES) == 4
    assert report.compactions == report.archives > 10
    assert report.running_at_stop > 10
    assert report.seconds < 20
    assert verify_database(path) == []
    with offline(path) as db:
        topics = {each.topic for each in sessions.list_sessions(db, sender="ana")}
    assert topics == {"ferry", "allotment"}


def test_the_script_names_turns_that_there_are():
    turns = {each.id: each.turns for each in demo_dialogues()}
    for sender, number in (*SWITCHES, *CLOSES):
        assert 0 < number < len(turns[sender])
    for sender, number in STEERS:
        assert turns[sender][number].calls  # the tools are what a steer comes in between


def test_the_command_ends_with_one_line_that_says_what_was_proved():
    result = CliRunner().invoke(palaver, ["demo"])
    assert result.exit_code == 0, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("proved: 24 senders, 27 topics, 117 turns, 63 tool calls, 5 steers, 4 closes, ")
    assert "nothing was lost, doubled or out of order in 365 entries, and the file is whole" in line


def test_a_kept_file_is_not_used_twice(tmp_path: Path):
    path = tmp_path / "demo.db"
    assert CliRunner().invoke(palaver, ["demo", "--db", str(path)]).exit_code == 0
    again = CliRunner().invoke(palaver, ["demo", "--db", str(path)])
    assert again.exit_code == 1
    assert "holds 27 sessions of these senders already" in again.output
    with pytest.raises(InvalidInput):
        run_demo(path)


def test_a_steer_that_is_lost_makes_the_demo_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Runtime, "steer", lambda *_: None)
    result = CliRunner().invoke(palaver, ["demo"])
    assert result.exit_code == 1
    *lines, last = result.output.splitlines()
    assert last.startswith("failed: ")
    for (sender, _), text in STEERS.items():
        assert any(f"sender {sender!r}" in line and text in line for line in lines)


def test_a_topic_that_does_not_come_back_makes_the_demo_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    switch_topic = Runtime.switch_topic

    def forgetful(rt: Runtime, agent: str, sender: str, title: str, about: str | None = None) -> object:
        return switch_topic(rt, agent, sender, title if about else f"{title} again", about or "new")

    monkeypatch.setattr(Runtime, "switch_topic", forgetful)
    report = run_demo(tmp_path / "demo.db")
    assert not report.ok
    assert "sender 'ana', turn 4: topic 'ferry' was opened anew" in report.differences
    assert "sender 'ana', topic 'ferry again': stored, but not in the input" in report.differences


@pytest.mark.skipif(not SHARED.exists(), reason="the shared dialogues are not there")
def test_the_demo_has_sentences_of_its_own():
    def said(path_or_none: Path | None) -> set[str]:
        dialogues = read_dialogues(path_or_none) if path_or_none else demo_dialogues()
        texts = (text for each in dialogues for turn in each.turns for text in (turn.user, turn.assistant))
        return {text for text in texts if len(text) > 40}

    assert not said(None) & said(SHARED)
