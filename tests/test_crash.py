"""The harness that kills hosts: it notices what a host loses, and nothing of it outlives its driver."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from crash import audit_ends
from crash.audit import audit
from crash.driver import TESTS, Driver, Kill
from crash.evidence import Evidence
from crash.ledger import Ledger, scope_of_op
from crash.picture import EntrySeen, MarkerSeen, Picture, SteerSeen, TurnSeen
from crash.series import Series

from persistence.records import HistoryEntry

SEED = "planted"
MIXED = {"senders": 12, "acts": 30, "delays": [0, 5, 20, 50, 200]}


@pytest.fixture(name="driver", scope="module")
def one_driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


def test_answers_that_leave_before_the_commit_are_noticed(driver: Driver, tmp_path: Path) -> None:
    series = Series(driver, tmp_path, SEED, "hasty", hasty=True, **MIXED)

    def live_and_die() -> None:
        for number in range(100):  # as many as it takes, which is few
            series.live("mix", point=["commit", 1 + number % 19, 0])

    with pytest.raises(AssertionError, match=r"G\d+: "):
        live_and_die()


def test_everything_ends_when_the_driver_is_killed(tmp_path: Path) -> None:
    paths = {"path": str(tmp_path / "host.db"), "notes": str(tmp_path / "notes")}
    order = {"life": "1", "mode": "hold", "seed": 1, **paths}
    code = f"""
from gevent import monkey; monkey.patch_all()
from crash.driver import Driver
driver = Driver()
driver.begin({order!r})
while driver.hear()["e"] != "idle": pass
print("idle", flush=True)
driver.hear()
"""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"idle\n"
    process.send_signal(signal.SIGKILL)
    # The zygote and the life have the same standard error: its end is the end of all three.
    assert process.stderr.read() == b""
    process.wait()


# -- what the audit notices -------------------------------------------------------------------------


@pytest.fixture(name="lived", scope="module")
def a_series_that_lived(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """Some lives with a bit of everything, all of it done in the end."""
    series = Series(driver, tmp_path_factory.mktemp("lived"), SEED, "lived", **MIXED)
    while not _has_everything(series):
        series.live("mix", Kill(150))
    series.live("drain", drained=True)
    return series


def _has_everything(series: Series) -> bool:
    """Whether there is something of each kind that the tests below damage, and its caller knows of it."""
    picture = series.picture
    steered = any(steer.applied_turn not in (None, steer.id) for steer in picture.steers)
    said = [picture.turns[seen.turn_id] for entries in picture.transcripts.values() for seen in entries[6:]]
    done = any(turn.state == "done" for turn in said)
    return steered and done and _told_note(series) and _told_archive(series)


def _told_note(series: Series) -> bool:
    """Whether there is a note that was acknowledged, with nobody about to write it again or to forget it."""
    writes = [*series.ledger.by_kind["remember"], *series.ledger.by_kind["forget"]]
    unsure = [(op.pair[0], scope_of_op(op), op.facts["name"]) for op in writes if not op.accepted]
    notes = [(agent, scope, name) for agent, scope, kind, name in series.picture.memory if kind == "note"]
    return any(note not in unsure for note in notes)


def _told_archive(series: Series) -> bool:
    """Whether a caller was told of an archive whose session is still there."""
    compacted = [
        op for op in series.ledger.by_kind["compact"] if op.accepted and op.ack and op.ack["archive"]
    ]
    return any(series.picture.markers.get(op.handle) for op in compacted)


def turn_of(picture: Picture, state: str = "done") -> int:
    """A turn that its caller knows the result of, and that took steps."""
    return next(
        id_
        for id_, turn in picture.turns.items()
        if turn.state == state and any(seen.turn_id == id_ for seen in picture.transcripts[turn.handle][6:])
    )


def lose_a_turn(picture: Picture) -> None:
    del picture.turns[turn_of(picture)]


def double_a_turn(picture: Picture) -> None:
    picture.turns[10_000] = evolve(picture.turns[turn_of(picture)], id=10_000)


def give_an_id_again(picture: Picture) -> None:
    first, second = list(picture.turns)[:2]
    picture.turns[first] = evolve(picture.turns[second], id=first)


def end_twice(picture: Picture) -> None:
    id_ = turn_of(picture)
    picture.turns[id_] = evolve(picture.turns[id_], state="cancelled")


def run_two(picture: Picture) -> None:
    for id_ in [id_ for id_, turn in picture.turns.items() if turn.handle == next(iter(picture.sessions))][
        :2
    ]:
        picture.turns[id_] = evolve(picture.turns[id_], state="running")


def leave_one_undone(picture: Picture) -> None:
    id_ = turn_of(picture)
    picture.turns[id_] = evolve(picture.turns[id_], state="queued", result=None)


def change_a_result(picture: Picture) -> None:
    id_ = turn_of(picture)
    result = picture.turns[id_].result
    assert result is not None
    picture.turns[id_] = evolve(picture.turns[id_], result=evolve(result, text="re nothing"))


def say_it_twice(picture: Picture) -> None:
    entries = picture.transcripts[picture.turns[turn_of(picture)].handle]
    entries.append(entries[0])


def forget_what_was_said(picture: Picture) -> None:
    id_ = turn_of(picture)
    entries = picture.transcripts[picture.turns[id_].handle]
    entries[:] = [seen for seen in entries if seen.turn_id != id_]


def swap_two_turns(picture: Picture) -> None:
    for entries in picture.transcripts.values():
        ids = list(dict.fromkeys(seen.turn_id for seen in entries))
        if len(ids) > 3:
            entries.sort(key=lambda seen: -ids.index(seen.turn_id))


def store_what_was_injected(picture: Picture) -> None:
    entries = picture.transcripts[picture.turns[turn_of(picture)].handle]
    entries.append(EntrySeen(entries[-1].turn_id, HistoryEntry("user", "shown, never stored")))


def lose_a_steer(picture: Picture) -> None:
    steer = next(steer for steer in picture.steers if steer.applied_turn != steer.id)
    picture.steers.remove(steer)


def apply_a_steer_twice(picture: Picture) -> None:
    steer = next(steer for steer in picture.steers if steer.applied_turn != steer.id)
    picture.steers.append(SteerSeen(20_000, steer.handle, steer.turn_id, steer.content, steer.applied_turn))


def leave_a_steer(picture: Picture) -> None:
    steer = next(steer for steer in picture.steers if steer.applied_turn != steer.id)
    picture.steers[picture.steers.index(steer)] = evolve(steer, applied_turn=None)


def cut_an_archive(picture: Picture) -> None:
    markers = next(markers for markers in picture.markers.values() if markers)
    markers[0] = MarkerSeen(markers[0].seq - 1, markers[0].archive, markers[0].scope, markers[0].content)


def lose_a_marker(picture: Picture) -> None:
    for markers in picture.markers.values():
        markers.clear()


def lose_a_note(picture: Picture) -> None:
    for name in [name for name in picture.memory if name[2] == "note"]:
        del picture.memory[name]


def lose_a_session(picture: Picture) -> None:
    del picture.sessions[next(iter(picture.sessions))]


def bring_a_session_back(picture: Picture) -> None:
    picture.deleted.append(next(iter(picture.sessions)))


@pytest.mark.parametrize(
    ("damage", "guarantee"),
    [
        (lose_a_turn, "G1: .* acknowledged and is not stored"),
        (double_a_turn, "G1: .* is stored as turn"),
        (give_an_id_again, "G11: turn id"),
        (end_twice, "G2: turn .* had ended as"),
        (run_two, "G6: 2 turns"),
        (leave_one_undone, "G2: turn .* is queued at the end"),
        (change_a_result, "G4: turn .* gave its caller"),
        (say_it_twice, "G3: "),
        (forget_what_was_said, "G1: .* not in the transcript"),
        (swap_two_turns, "G5: .* ran before"),
        (store_what_was_injected, "G1: .* nobody ever sent it"),
        (lose_a_steer, "G1: .* acknowledged and is not stored"),
        (apply_a_steer_twice, "G7: .* two steers"),
        (leave_a_steer, "G7: .* applied to nothing"),
        (cut_an_archive, "G9: .* is not of its first"),
        (lose_a_marker, "G9: .* has no marker"),
        (lose_a_note, "G1: the note"),
        (lose_a_session, "G1: the session .* is not there"),
        (bring_a_session_back, "G1: .* is there and deleted"),
    ],
)
def test_the_audit_notices(lived: Series, damage: Callable[[Picture], None], guarantee: str) -> None:
    picture = lived.picture
    damaged = Picture(
        dict(picture.sessions),
        dict(picture.turns),
        list(picture.steers),
        {handle: list(entries) for handle, entries in picture.transcripts.items()},
        {handle: list(markers) for handle, markers in picture.markers.items()},
        dict(picture.memory),
        list(picture.deleted),
    )
    damage(damaged)
    with pytest.raises(AssertionError) as noticed:
        audit(Evidence(lived.ledger, damaged, [], drained=True), most=1_000)
    assert re.search(guarantee, str(noticed.value)), str(noticed.value)[:2_000]


def test_a_committed_tool_call_that_is_made_again_is_noticed(lived: Series) -> None:
    what = next(iter(lived.ledger.committed))
    with pytest.raises(AssertionError, match="G20: the tool call"):
        audit(Evidence(lived.ledger, lived.picture, [("9", what)], drained=True))


# -- what the audit must not take for a loss --------------------------------------------------------


def test_a_keyed_message_may_come_anew_after_a_close_when_its_first_turn_was_deleted() -> None:
    _check_close(told=1)


def test_a_keyed_message_that_is_left_undone_by_a_close_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"G8: 1\.2 has closed plan a, and turn 2 '1.1 t0 d0' is queued"):
        _check_close(told=2)


def _check_close(told: int) -> None:
    """A message with a key is in a topic's queue as turn 2, behind a close; its call before the close was
    told turn `told`."""
    ledger = Ledger()
    place = {"cid": 1, "handle": "plan a", "agent": "solo", "sender": "ann", "life": "1"}
    message = {"content": "1.1 t0 d0", "key": "key 1", "busy": "enqueue"}
    ledger.hear({"e": "begin", "op": "1.1", "do": "submit", **message, **place})
    ledger.hear({"e": "ack", "op": "1.1", "turn": told, "life": "1"})
    ledger.hear({"e": "begin", "op": "1.2", "do": "close", **place})
    ledger.hear({"e": "ack", "op": "1.2", "value": True, "life": "1"})
    turn = TurnSeen(2, "plan a", "solo", "ann", "1.1 t0 d0", "queued", 0, "key 1", None)
    (closes, *_) = audit_ends.CHECKS
    problems = closes(Evidence(ledger, Picture(turns={2: turn}), [], drained=False))
    assert [*problems] == []
