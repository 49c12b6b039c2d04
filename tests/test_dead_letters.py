"""Messages that were given up can be listed, looked at and tried again, online and offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_lives import Bug, run
from test_passivation import heard, rest, topic
from turns_support import AGENT, deadline, in_file, runtime, services, stored_states

from actors.messages import TurnEnded
from palaver import DeadLetter, DeadLettered, DeadLetterNotFound, Limits, Runtime, ScriptedModel, StorageError
from palaver.commands import palaver
from palaver.copies import export_database, import_database
from persistence import turns
from persistence.dead_letters import dead_letters
from persistence.verify import verify


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


def poisoned(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Bug, DeadLetter]:
    """A conversation that had a message which killed it three times."""
    cid = topic(rt)
    bug = Bug(monkeypatch, TurnEnded, 1_000)
    bug.content = "poison"
    assert rt.submit(cid, "poison", sender="bob").result(timeout=60).stop_reason == "error"
    (letter,) = rt.dead_letters()
    return cid, bug, letter


def test_a_message_that_was_given_up_is_listed_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        incidents = heard(rt)
        cid, _, letter = poisoned(rt, monkeypatch)
        assert (letter.agent, letter.sender, letter.topic) == (AGENT, "alice", "work")
        assert (letter.content, letter.said_by, letter.attempts) == ("poison", "bob", 3)
        assert (letter.retried_as, "given up" in letter.reason) == (None, True)
        assert rt.dead_letter(letter.turn_id) == letter
        assert rt.dead_letters(agent="other") == rt.dead_letters(sender="bob") == []
        assert rt.dead_letters(agent=AGENT, sender="alice") == [letter]
        told = [(who, event) for who, event in incidents if isinstance(event, DeadLettered)]
        assert told == [(cid, DeadLettered(letter.turn_id, letter.reason))]
        assert rt.stats().dead_letters == 1
        with pytest.raises(DeadLetterNotFound):
            rt.dead_letter(999)

    run(body)


def test_a_dead_letter_is_tried_again_once_as_a_new_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid, bug, letter = poisoned(rt, monkeypatch)
        bug.left = 0
        ticket = rt.retry_dead_letter(letter.turn_id)
        assert (ticket.conversation_id, ticket.sender) == (cid, "bob")
        assert ticket.result(timeout=60).text == "heard poison"
        assert rt.dead_letter(letter.turn_id).retried_as == ticket.turn_id
        assert stored_states(rt) == {letter.turn_id: "failed", ticket.turn_id: "done"}
        with pytest.raises(StorageError, match=f"as turn {ticket.turn_id}"):
            rt.retry_dead_letter(letter.turn_id)
        assert services(rt).store.call(verify) == []

    run(body)


def test_one_that_kills_again_is_a_dead_letter_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        _, _, letter = poisoned(rt, monkeypatch)
        rest(10)  # six deaths within five seconds would have the conversation parked
        ticket = rt.retry_dead_letter(letter.turn_id)
        assert ticket.result(timeout=60).stop_reason == "error"
        assert [one.turn_id for one in rt.dead_letters()] == [letter.turn_id, ticket.turn_id]

    run(body)


# -- offline -------------------------------------------------------------------------------------------


def given_up(path: Path) -> int:
    """Leave a file whose one message was begun too often; the turn's id."""
    with runtime(path, ScriptedModel()) as rt:
        ticket = rt.submit(topic(rt), "take down the process")
        ticket.result()

    def begun_too_often(db: Any) -> None:
        db.execute("DROP TRIGGER turns_stay_ended")
        db.execute("UPDATE turns SET state = 'running', attempts = 3, result = NULL, finished_at = NULL")
        db.execute("DELETE FROM entries")
        db.execute("UPDATE sessions SET next_seq = 0")
        db.execute(
            """CREATE TRIGGER turns_stay_ended BEFORE UPDATE ON turns
            WHEN old.state NOT IN ('queued', 'running')
            BEGIN SELECT RAISE(ABORT, 'the turn has ended and cannot change any more'); END"""
        )
        db.commit()

    in_file(path, begun_too_often)
    with runtime(path, ScriptedModel(), limits=Limits(attempts=3)) as rt:
        topic(rt)
        assert [letter.turn_id for letter in rt.dead_letters()] == [ticket.turn_id]
    return ticket.turn_id


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(palaver, [str(argument) for argument in arguments])
    assert not isinstance(result.exception, Exception), result.exception
    return result


def test_the_command_lists_shows_and_retries(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    turn = given_up(path)
    listed = command("dead", "list", "--db", path)
    assert "take down the process" in listed.output
    (fact,) = json.loads(command("dead", "list", "--json", "--db", path).output)
    assert (fact["turn_id"], fact["attempts"]) == (turn, 3)
    shown = command("dead", "show", turn, "--db", path).output
    assert "given up" in shown
    assert "take down the process" in shown
    assert "1 message will be run" in command("dead", "retry", turn, "--db", path).output
    again = command("dead", "retry", turn, "--db", path)
    assert (again.exit_code, "tried again before" in again.output) == (1, True)
    unknown = command("dead", "show", 999, "--db", path)
    assert (unknown.exit_code, "no dead letter" in unknown.output) == (1, True)
    with runtime(path, ScriptedModel()) as rt:
        rt.send(topic(rt), "and now")  # behind what was brought back
        states = stored_states(rt)
        assert [*states.values()] == ["failed", "done", "done"]
        assert rt.dead_letter(turn).retried_as == turn + 1


def test_several_are_retried_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    turn = given_up(path)
    assert command("dead", "retry", turn, 999, "--db", path).exit_code == 1
    assert in_file(path, dead_letters)[0].retried_as is None
    assert in_file(path, turns.unfinished) == []


def test_dead_letters_survive_an_export_and_an_import(tmp_path: Path) -> None:
    path, again = tmp_path / "a.db", tmp_path / "b.db"
    turn = given_up(path)
    command("dead", "retry", turn, "--db", path)
    export_database(path, tmp_path / "text")
    imported = import_database(tmp_path / "text", again)
    assert imported.contents.dead_letters == 1
    assert in_file(again, dead_letters) == in_file(path, dead_letters)
