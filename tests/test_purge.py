"""Deleting what is old: never what is live or unfinished, and nobody waits long."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from support import (
    ManualClock,
    PuppetModel,
    Runtimes,
    handle_of,
    opened_runtimes,  # noqa: F401 - a fixture
    topic,
)

from palaver import AgentConfig, InvalidInput, Runtime, RuntimeClosed, ScriptedModel
from palaver.offline import offline, verify_database
from persistence.retention import sessions_older_than, unfinished_older_than
from persistence.sources import Sources

DAY = 86_400.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def stored(rt: Runtime, clock: ManualClock, ages: dict[str, float], **who: str) -> dict[str, str]:
    """Sessions of these titles that changed so many seconds ago, closed; title -> handle."""
    now, handles = clock.now, {}
    for title, age in ages.items():
        clock.now = now - age
        cid = topic(rt, title, **who)
        rt.send(cid, f"about {title}")
        handles[title] = handle_of(rt, cid)
        rt.close(cid)
    clock.now = now
    return handles


def titles(rt: Runtime) -> list[str]:
    return sorted(session.topic for session in rt.sessions())


def test_what_is_older_goes_and_the_rest_stays(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock))
    stored(
        rt, clock, {"new": 0, "a day": DAY, "a month": 30 * DAY, "older": 30 * DAY + 1, "oldest": 99 * DAY}
    )
    assert rt.purge_sessions(30 * DAY) == 2
    assert titles(rt) == ["a day", "a month", "new"]
    assert rt.purge_sessions(30 * DAY) == 0
    assert rt.purge_sessions(1) == 2
    rt.shutdown()
    assert verify_database(rt.path) == []


def test_only_an_agents_or_a_senders_sessions_go(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock), agents=[AgentConfig("crab"), AgentConfig("fish")])
    for agent in ("crab", "fish"):
        for sender in ("alice", "bob"):
            stored(rt, clock, {f"{agent} {sender}": DAY}, agent=agent, sender=sender)
    assert rt.purge_sessions(1, agent="crab", sender="alice") == 1
    assert rt.purge_sessions(1, sender="bob") == 2
    assert titles(rt) == ["fish alice"]
    assert rt.purge_sessions(1, agent="crab") == 0


def test_a_live_conversation_stays_however_old_it_is(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock))
    stored(rt, clock, {"live": DAY, "gone": DAY})
    cid = topic(rt, "live")
    assert rt.purge_sessions(1) == 1
    assert titles(rt) == ["live"]
    assert rt.send(cid, "still here").text == "still here"
    assert len(rt.transcript(handle_of(rt, cid))) == 4


def test_a_session_that_is_being_opened_stays_or_is_opened_anew(
    runtimes: Runtimes, clock: ManualClock
) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock))
    names = [f"topic {number}" for number in range(60)]
    stored(rt, clock, dict.fromkeys(names, DAY))
    purging = gevent.spawn(rt.purge_sessions, 1)
    opening = [gevent.spawn(rt.switch_topic, "crab", "alice", name, "again") for name in names[::2]]
    purged = purging.get()
    for switched in opening:
        outcome = switched.get()
        assert rt.send(outcome.conversation_id, "hello").text == "hello"
    assert purged >= 30
    assert titles(rt) == sorted(names[::2])
    rt.shutdown()
    assert verify_database(rt.path) == []


def test_unfinished_messages_keep_their_session(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    model = PuppetModel()
    rt = runtimes.open(model, sources=Sources(clock=clock))
    cids = [topic(rt, title) for title in ("turn", "steer", "done")]
    rt.submit(cids[0], "never answered")
    asked = [model.asked()]
    rt.submit(cids[1], "answered")
    asked.append(model.asked())
    rt.steer(cids[1], "never applied")
    done = rt.submit(cids[2], "answered")
    model.asked().answer()
    done.result()
    # A copy is what a killed process leaves: nothing of these turns ends in it.
    copy = Path(rt.path).with_name("killed.db")
    rt.backup(copy)
    with offline(copy) as db:
        db.execute(
            'UPDATE turns SET state = \'done\', result = \'{"v":1,"stop_reason":"no_action"}\', '
            "finished_at = 1 WHERE content = 'answered' AND state = 'running'"
        )
        db.conn.commit()
        before = clock.now + 1
        assert [old.topic for old in sessions_older_than(db, before)] == ["done"]
        assert unfinished_older_than(db, before) == 2
        assert unfinished_older_than(db, before, agent="crab", sender="alice") == 2
        assert unfinished_older_than(db, before, sender="bob") == 0
    clock.now += DAY
    later = runtimes.open(path=copy, sources=Sources(clock=clock), recover="hold")
    assert later.purge_sessions(1) == 1
    assert titles(later) == ["steer", "turn"]
    for each in asked:
        each.answer()


def test_archives_and_topics_stay_and_ids_are_not_given_again(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock))
    cid = topic(rt, "boats")
    last = rt.send(cid, "hello").turn_id
    rt.compact(cid)
    rt.close(cid)
    clock.now += DAY
    assert rt.purge_sessions(1) == 1
    assert sorted(entry.kind for entry in rt.memory.entries("crab", "alice")) == ["archive", "topic"]
    again = runtimes.reopen(rt, sources=Sources(clock=clock))
    assert again.send(topic(again, "new"), "hello").turn_id > last


def test_commits_go_on_during_a_long_purge(runtimes: Runtimes, clock: ManualClock) -> None:
    clock.now = 100 * DAY
    rt = runtimes.open(sources=Sources(clock=clock))
    stored(rt, clock, {f"topic {number}": DAY for number in range(150)})
    cid = topic(rt, "live")
    purging = gevent.spawn(rt.purge_sessions, 1)
    left: list[int] = []
    while not purging.ready():
        rt.send(cid, "meanwhile")
        left.append(runtimes.sql(rt, "SELECT count(*) FROM sessions")[0][0])
    assert purging.get() == 150
    assert len({*left}) > 3, "turns were stored between its steps"
    assert left == sorted(left, reverse=True)


def test_a_purge_reads_each_session_once_and_in_order(tmp_path: Path, clock: ManualClock) -> None:
    with Runtime.open(tmp_path / "a.db", ScriptedModel(), sources=Sources(clock=clock)) as rt:
        rt.add_agent(AgentConfig("crab", auto_title=False))
        for number in range(7):
            rt.send(topic(rt, f"topic {number}"), "hello")
    with offline(tmp_path / "a.db") as db:
        first = sessions_older_than(db, clock.now + 1, at_most=3)
        rest = sessions_older_than(db, clock.now + 1, after=first[-1].id)
        assert [old.topic for old in first + rest] == [f"topic {number}" for number in range(7)]
        assert sessions_older_than(db, clock.now) == []


@pytest.mark.parametrize("age", [-1, float("nan"), "30d", None, True])
def test_an_age_that_makes_no_sense_is_refused(runtimes: Runtimes, age: object) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput, match="older_than_s"):
        rt.purge_sessions(age)  # type: ignore[arg-type]


def test_a_filter_that_makes_no_sense_is_refused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput):
        rt.purge_sessions(1, agent="")
    with pytest.raises(InvalidInput):
        rt.purge_sessions(1, sender=17)  # type: ignore[arg-type]
    rt.shutdown()
    with pytest.raises(RuntimeClosed):
        rt.purge_sessions(1)
