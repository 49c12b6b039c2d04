"""Replaying recorded dialogues: everything is stored as recorded, and what is not is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import palaver.replay as replay_module
from actors.models.dialogues import Dialogue, expected_entries, read_dialogues, recorded_tools
from actors.tools import Tool
from palaver import AgentConfig, InvalidInput, Runtime, ScriptedModel
from palaver.commands import palaver
from palaver.offline import compare_transcripts, offline, refuse_known_senders, verify_database
from palaver.replay import AGENT, Replay, percentile, replay
from persistence.database import close_database, open_database
from persistence.records import HistoryEntry

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dialogues.jsonl"


def record(name: str, turns: int = 4) -> dict[str, object]:
    call = {"name": "look", "service": "Town", "arguments": {"who": name}, "results": [{"seen": 1}]}
    return {
        "id": name,
        "services": ["Town"],
        "turns": [
            {
                "user": f"{name} asks {n}",
                "calls": [call] if n % 2 else [],
                "assistant": f"answer {n} to {name}",
            }
            for n in range(turns)
        ],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dialogues.jsonl"
    path.write_text("".join(json.dumps(record(f"sender-{n}")) + "\n" for n in range(6)))
    return path


@pytest.fixture
def dialogues(file: Path) -> list[Dialogue]:
    return read_dialogues(file)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared dialogues are not there")
@pytest.mark.parametrize("threshold", [400, 100_000])
def test_shared_dialogues_replay_without_a_difference(threshold: int, tmp_path: Path):
    dialogues = read_dialogues(SHARED)[::15]
    report = replay(dialogues, tmp_path / "agents.db", senders=40, compact_threshold=threshold)
    assert report.problems == report.differences == ()
    assert report.ok
    assert report.turns == sum(len(each.turns) for each in dialogues)
    assert report.tool_calls == sum(len(turn.calls) for each in dialogues for turn in each.turns)
    assert report.compactions == report.archives
    assert (report.compactions > 0) == (threshold == 400)
    assert 0 < report.p50_ms <= report.p99_ms
    assert report.commits < report.turns  # many turns share a commit


def test_one_sender_at_a_time_is_enough(dialogues: list[Dialogue], tmp_path: Path):
    seen: list[int] = []
    report = replay(dialogues, tmp_path / "agents.db", senders=1, on_turn=lambda: seen.append(1))
    assert report.ok
    assert (report.senders, report.turns, len(seen)) == (1, 24, 24)


def test_a_changed_entry_is_found(dialogues: list[Dialogue], tmp_path: Path):
    run = Replay(dialogues, tmp_path / "agents.db")
    run.play(senders=3)
    db = open_database(tmp_path / "agents.db")
    db.execute("UPDATE entries SET body = replace(body, 'answer 2', 'answer 3') WHERE session_id = 2")
    close_database(db)
    report = run.check()
    assert report.problems == ()  # nothing is wrong with the file as such
    (difference,) = report.differences
    assert "'answer 2 to sender-1', is 'answer 3 to sender-1'" in difference
    assert not report.ok


def test_a_lost_session_and_one_too_many_are_found(tmp_path: Path):
    with Runtime.open(tmp_path / "agents.db", ScriptedModel()) as rt:
        rt.add_agent(AgentConfig("crab"))
        for topic in ("boats", "ropes"):
            rt.send(rt.switch_topic("crab", "alice", topic, "about").conversation_id, "hi")
        rt.send(rt.switch_topic("crab", "bob", "boats", "about").conversation_id, "hi")
    said = [HistoryEntry("user", "hi", sender="alice"), HistoryEntry("assistant", "hi")]
    with offline(tmp_path / "agents.db") as db:
        wrong = compare_transcripts(db, "crab", {("alice", "boats"): said, ("alice", "knots"): said})
        right = compare_transcripts(db, "crab", {("alice", "boats"): said, ("alice", "ropes"): said})
    assert wrong.differences == (
        "sender 'alice', topic 'ropes': stored, but not in the input",
        "sender 'alice', topic 'knots': 0 sessions are stored, not 1",
    )
    assert right.differences == ()
    assert (right.sessions, right.entries) == (2, 4)


def test_one_lost_entry_is_not_told_as_many_differences(dialogues: list[Dialogue], tmp_path: Path):
    replay(dialogues, tmp_path / "agents.db")
    wanted = expected_entries(dialogues[0])
    del wanted[1]
    with offline(tmp_path / "agents.db") as db:
        found = compare_transcripts(db, AGENT, {("sender-0", "dialogue sender-0"): wanted})
    assert len(found.differences) == 4
    assert re.search(r"topic 'dialogue sender-0': \d+ more differences$", found.differences[-1])


def test_a_turn_that_fails_is_a_difference_and_the_rest_goes_on(dialogues: list[Dialogue], tmp_path: Path):
    stranger = Dialogue("s" * 201, dialogues[0].turns)  # a sender's name is not that long
    report = replay([stranger, *dialogues], tmp_path / "agents.db")
    assert report.turns == 24
    assert len(report.differences) == 2  # its turn was refused, and its session is not stored
    assert all("s" * 201 in line for line in report.differences)
    assert "InvalidTitle" in report.differences[0] or "InvalidInput" in report.differences[0]


def test_a_replay_of_nothing_is_refused(dialogues: list[Dialogue], tmp_path: Path):
    with pytest.raises(InvalidInput, match="one or more dialogues"):
        replay([], tmp_path / "agents.db")
    with pytest.raises(InvalidInput, match="one or more senders"):
        replay(dialogues, tmp_path / "agents.db", senders=0)
    assert not (tmp_path / "agents.db").exists()


def test_a_file_with_sessions_of_these_senders_is_refused_and_left_alone(
    dialogues: list[Dialogue], tmp_path: Path
):
    path = tmp_path / "agents.db"
    replay(dialogues[:2], path)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="holds 2 sessions of these senders already"):
        replay(dialogues, path)
    assert path.read_bytes() == before
    refuse_known_senders(path, AGENT, ["somebody else"])
    assert replay(dialogues[2:], path).ok  # others may share the file
    assert verify_database(path) == []


@pytest.mark.parametrize(
    ("values", "percent", "result"),
    [
        ([], 50, 0),
        ([7], 50, 7),
        ([7], 99, 7),
        ([3, 1, 2], 50, 2),
        (range(1, 101), 99, 99),
        (range(1, 101), 50, 50),
    ],
)
def test_percentiles_are_values_that_were_seen(values: list[float], percent: float, result: float):
    assert percentile(values, percent) == result


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_what_was_checked(file: Path, tmp_path: Path):
    result = CliRunner().invoke(palaver, ["replay", str(file), "--db", str(tmp_path / "agents.db")])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    names = [line.split("  ")[0] for line in lines[:11]]
    assert names == [
        "dialogues",
        "senders at a time",
        "turns",
        "turns/s",
        "latency p50, ms",
        "latency p99, ms",
        "tool calls",
        "compactions",
        "archives",
        "commits",
        "peak memory, MB",
    ]
    assert len({len(line) for line in lines[:11]}) == 1  # aligned
    assert lines[2].split() == ["turns", "24"]
    assert lines[11:] == ["verify: ok", "transcripts: all 72 entries are as recorded"]


def test_the_command_keeps_nothing_without_a_path_and_prints_json(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(palaver, ["replay", str(file), "--limit", "2", "--json"])
    report = json.loads(result.output)
    assert (report["dialogues"], report["turns"], report["differences"]) == (2, 8, [])
    assert [each.name for each in tmp_path.iterdir()] == ["dialogues.jsonl"]


def test_the_command_exits_1_when_a_stored_transcript_differs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong_tools(dialogues: list[Dialogue]) -> list[Tool]:
        return [Tool(lambda who: "nobody was there", tool.name) for tool in recorded_tools(dialogues)]

    monkeypatch.setattr(replay_module, "recorded_tools", wrong_tools)
    result = CliRunner().invoke(palaver, ["replay", str(file), "--db", str(tmp_path / "agents.db")])
    assert result.exit_code == 1
    assert "verify: ok\ntranscripts: 12 differences\n" in result.output
    assert "is 'nobody was there'" in result.output


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "a"', "line 2 is not JSON"),
        ("[]", "line 2 must be a JSON object"),
        ('{"id": "a", "services": []}', "line 2: the field turns is missing"),
        (json.dumps(record("sender-0")), "two dialogues have the id 'sender-0'"),
    ],
)
def test_a_bad_line_is_named(line: str, words: str, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(record('sender-0'))}\n{line}\n")
    result = CliRunner().invoke(palaver, ["replay", str(path)])
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path):
    for path, words in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        result = CliRunner().invoke(palaver, ["replay", str(path)])
        assert result.exit_code == 1
        assert words in result.output
