"""Timers: messages that come later, exactly once, whatever happens before; on virtual time."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from failing import FOR_GOOD, ONCE, FailingStatements, Kind, Point
from reliability.stage import in_memory, quiet
from timers_support import (
    CRAB,
    DAY,
    HOUR,
    JumpingClock,
    at,
    came,
    handle_of,
    messages_in,
    on_virtual_time,
    opened,
    said,
    topic,
    wait,
)
from turns_support import AGENT, deadline, in_file, services

from actors.timers import TimerActor
from palaver import (
    AgentConfig,
    ConversationClosed,
    ConversationNotFound,
    InvalidInput,
    KeyReused,
    Limits,
    MailboxFull,
    Overflowed,
    Reply,
    Runtime,
    ScriptedModel,
    TimerInfo,
)
from palaver.simulation.loop import EPOCH
from persistence import timers as stored

TWO = (CRAB, AgentConfig(name="owl", auto_title=False))


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


# -- what a timer does ---------------------------------------------------------------------------------


def test_a_message_comes_when_it_is_due_as_if_it_were_submitted_then() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        handle = handle_of(rt, cid)
        timer = rt.after(HOUR, cid, "time to go")
        assert timer.conversation_id == cid
        wait(HOUR - 1)
        assert rt.turns(handle) == []
        wait(2)
        assert came(rt, handle) == [("time to go", HOUR)]
        assert [row.state for row in rt.turns(handle)] == ["done"]
        assert said(rt, cid) == ["time to go"]
        assert rt.timers() == []
        assert not timer.cancel()

    on_virtual_time(body)


def test_a_timer_says_who_speaks() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.after(1, cid, "hello", sender="the clock")
        rt.after(2, cid, "hello again")
        wait(3)
        shown = rt.conversation(cid)
        assert shown is not None
        assert [e.sender for e in shown.history if e.role == "user"] == ["the clock", "alice"]

    on_virtual_time(body)


def test_a_timer_comes_again_and_again_until_it_is_cancelled() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        handle = handle_of(rt, cid)
        timer = rt.every(100, cid, "tick", first_after=7)
        wait(350)
        assert came(rt, handle) == [("tick", 7), ("tick", 107), ("tick", 207), ("tick", 307)]
        assert timer.cancel()
        assert not timer.cancel()
        wait(DAY)
        assert len(rt.turns(handle)) == 4

    on_virtual_time(body)


def test_a_tmp_chat_has_timers_for_as_long_as_it_lives() -> None:
    def body(rt: Runtime) -> None:
        chat = rt.get_or_create(AGENT, "bob")
        rt.after(5, chat, "once")
        every = rt.every(10, chat, "tick")
        gone = rt.every(10, chat, "never")
        assert gone.cancel()
        assert not gone.cancel()
        wait(25)
        assert said(rt, chat) == ["once", "tick", "tick"]
        assert [(timer.id, timer.handle, timer.conversation_id) for timer in rt.timers(chat)] == [
            (every.id, None, chat)
        ]
        rt.close(chat)
        assert rt.timers() == []
        assert not every.cancel()
        again = rt.get_or_create(AGENT, "bob")
        wait(HOUR)
        assert said(rt, again) == []
        assert services(rt).timers.pending == 0
        assert services(rt).timers.chats == {}

    on_virtual_time(body)


def test_a_message_that_comes_while_a_turn_runs_waits_for_its_end() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.after(10, cid, "from the timer")
        long = rt.submit(cid, "a long turn")
        wait(20)
        assert [ticket.content for ticket in rt.tickets(cid)] == ["a long turn", "from the timer"]
        long.result()
        wait(60)
        assert said(rt, cid) == ["a long turn", "from the timer"]

    on_virtual_time(body, model=ScriptedModel(lambda _request: Reply("done", delay_s=50)))


def test_what_is_due_at_one_time_comes_in_the_order_in_which_it_was_set() -> None:
    def body(rt: Runtime) -> None:
        cid, chat = topic(rt), rt.get_or_create(AGENT, "bob")
        for number in range(20):
            rt.after(100, cid, f"{number}")
            rt.after(100, chat, f"{number}")
        wait(200)
        assert said(rt, cid) == [f"{number}" for number in range(20)]
        assert sorted(said(rt, chat)) == sorted(said(rt, cid))

    on_virtual_time(body)


def test_timers_are_listed_by_when_they_are_due() -> None:
    def body(rt: Runtime) -> None:
        one, two = topic(rt, "one"), topic(rt, "two")
        late = rt.after(300, one, "late")
        soon = rt.every(50, two, "soon", sender="x")
        chat = rt.after(100, rt.get_or_create(AGENT, "bob"), "chat")
        rt.after(200, one, "keyed", key="k")
        assert [timer.content for timer in rt.timers()] == ["soon", "chat", "keyed", "late"]
        assert [timer.content for timer in rt.timers(one)] == ["keyed", "late"]
        (found,) = rt.timers(two)
        assert found == TimerInfo(
            id=soon.id,
            agent=AGENT,
            sender="alice",
            topic="two",
            handle=handle_of(rt, two),
            said_by="x",
            content="soon",
            due_at=soon.due_at,
            every_s=50,
            created_at=soon.due_at - 50,
            conversation_id=two,
        )
        rt.close(one)
        assert [(t.id, t.conversation_id) for t in rt.timers()][-1] == (late.id, None)
        with pytest.raises(ConversationNotFound):
            rt.timers(one)
        assert services(rt).timers.pending == 4
        assert rt.cancel_timer(chat.id)

    on_virtual_time(body)


def test_what_makes_no_sense_is_refused() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        for seconds in (-1, float("nan"), float("inf"), "5", True, None):
            with pytest.raises(InvalidInput, match="seconds"):
                rt.after(seconds, cid, "x")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="seconds"):
            rt.every(0, cid, "x")
        with pytest.raises(InvalidInput, match="first_after"):
            rt.every(1, cid, "x", first_after=-1)
        with pytest.raises(InvalidInput, match="message"):
            rt.after(1, cid, "")
        with pytest.raises(InvalidInput, match="timer"):
            rt.cancel_timer("1")  # type: ignore[arg-type]
        with pytest.raises(ConversationNotFound):
            rt.after(1, 99, "x")
        assert not rt.cancel_timer(99)
        assert not rt.cancel_timer(-99)
        assert rt.timers() == []

    on_virtual_time(body)


def test_a_closed_topic_takes_no_timer_and_an_opening_one_does() -> None:
    def body(rt: Runtime) -> None:
        opening = gevent.spawn(topic, rt)
        gevent.sleep(0)
        cid = rt.get_or_create(AGENT, "alice")  # reserved already
        timer = rt.after(10, cid, "early")
        assert cid == opening.get()
        assert [found.id for found in rt.timers(cid)] == [timer.id]
        running = rt.submit(cid, "a long turn")
        closing = gevent.spawn(rt.close, cid)
        wait(1)
        with pytest.raises(ConversationClosed):
            rt.after(10, cid, "late")
        assert closing.get()
        assert running.state == "done"
        assert [found.content for found in rt.timers()] == ["early"]

    on_virtual_time(body, model=ScriptedModel(lambda _request: Reply("done", delay_s=5)))


# -- bounds and keys -----------------------------------------------------------------------------------


def test_a_conversation_has_so_many_timers_and_no_more() -> None:
    def body(rt: Runtime) -> None:
        events = rt.subscribe()
        for cid in (topic(rt), rt.get_or_create(AGENT, "bob")):
            timers = [rt.after(10, cid, f"{number}") for number in range(3)]
            with pytest.raises(MailboxFull, match=r"3 timers.*timers_per_conversation"):
                rt.after(10, cid, "one too many")
            assert timers[0].cancel()
            rt.after(10, cid, "in its place")
        wait(20)
        events.close()
        assert [event for _, event in events if isinstance(event, Overflowed)] == [
            Overflowed("timers_per_conversation", 3)
        ] * 2

    on_virtual_time(body, limits=Limits(timers_per_conversation=3))


def test_one_key_is_one_timer_and_one_message() -> None:
    def body(rt: Runtime) -> None:
        for cid in (topic(rt), rt.get_or_create(AGENT, "bob")):
            timer = rt.after(100, cid, "pay", key="bill")
            assert rt.after(500, cid, "pay", key="bill") == timer
            with pytest.raises(KeyReused):
                rt.after(100, cid, "pay more", key="bill")
            assert len(rt.timers(cid)) == 1
            wait(200)
            result = rt.send(cid, "pay", key="bill")
            assert said(rt, cid) == ["pay"]
            again = rt.after(100, cid, "pay", key="bill")  # a caller who has not heard of the first one
            wait(200)
            assert not again.cancel()
            assert said(rt, cid) == ["pay"]
            assert rt.send(cid, "pay", key="bill") == result
        with pytest.raises(KeyReused):
            rt.after(1, topic(rt), "another", key="bill")

    on_virtual_time(body)


def test_a_timer_whose_key_another_message_takes_meanwhile_ends(caplog: pytest.LogCaptureFixture) -> None:
    def body(rt: Runtime) -> None:
        for cid in (topic(rt), rt.get_or_create(AGENT, "bob")):
            rt.after(100, cid, "pay", key="bill")
            rt.send(cid, "do not pay", key="bill")
            wait(200)
            assert said(rt, cid) == ["do not pay"]
            assert rt.timers(cid) == []
        assert services(rt).timers.pending == 0

    on_virtual_time(body)
    assert caplog.text.count("a timer's message did not come") == 2


def test_a_refused_message_is_offered_again_and_those_behind_it_wait() -> None:
    def body(rt: Runtime) -> None:
        for cid in (topic(rt), rt.get_or_create(AGENT, "bob")):
            began = at(rt)
            running, waiting = rt.submit(cid, "runs"), rt.submit(cid, "waits")
            rt.after(1, cid, "first")
            rt.after(2, cid, "second")
            rt.every(3, cid, "third")
            wait(50)
            assert said(rt, cid) == []
            assert len(rt.timers(cid)) == 3
            running.result()
            waiting.result()
            wait(1_000 - (at(rt) - began))
            assert said(rt, cid)[:5] == ["runs", "waits", "first", "second", "third"]
            for timer in rt.timers(cid):
                rt.cancel_timer(timer.id)

    model = ScriptedModel(lambda _request: Reply("done", delay_s=100))
    on_virtual_time(body, model=model, limits=Limits(queued_per_conversation=1))


# -- restarts ------------------------------------------------------------------------------------------


def test_timers_survive_a_kill_and_fire_once_the_agent_is_there_the_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"

    def first(rt: Runtime) -> dict[str, str]:
        handles = {}
        for sender, seconds in (("bob", 200), ("alice", 100), ("carol", 300)):
            cid = topic(rt, sender=sender)
            rt.after(seconds, cid, f"to {sender}")
            rt.after(seconds + DAY, cid, "the next day")
            handles[sender] = handle_of(rt, cid)
        return handles

    handles = on_virtual_time(first, path, killed=True)

    def second(rt: Runtime) -> None:
        wait(HOUR)
        assert rt.conversation_count() == 0
        assert len(rt.timers()) == 6
        rt.add_agent(CRAB)
        wait(5)
        messages = sorted((row.id, row.content) for each in handles.values() for row in rt.turns(each))
        assert [content for _, content in messages] == ["to alice", "to bob", "to carol"]
        assert [info.state for info in rt.list_active()] == ["idle"] * 3
        wait(DAY)
        assert [len(rt.turns(handle)) for handle in handles.values()] == [2, 2, 2]
        assert services(rt).timers.pending == 0

    on_virtual_time(second, path, agents=(), later=HOUR)


def test_missed_periods_are_one_message_and_the_phase_stays(tmp_path: Path) -> None:
    path = tmp_path / "down.db"

    def first(rt: Runtime) -> str:
        cid = topic(rt)
        rt.every(100, cid, "tick", first_after=30)
        wait(150)
        return handle_of(rt, cid)

    handle = on_virtual_time(first, path)

    def second(rt: Runtime) -> None:
        wait(300)
        assert came(rt, handle) == [
            ("tick", 30),
            ("tick", 130),
            ("tick", 5_000),
            ("tick", 5_030),
            ("tick", 5_130),
            ("tick", 5_230),
        ]

    on_virtual_time(second, path, later=5_000)


def test_a_timer_opens_its_closed_topic_again() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        handle = handle_of(rt, cid)
        rt.after(50, cid, "wake up")
        rt.close(cid)
        wait(100)
        assert [info.topic for info in rt.list_active()] == ["work"]
        assert came(rt, handle) == [("wake up", 50)]

    on_virtual_time(body)


def test_a_topic_that_left_memory_comes_back_under_its_id() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.after(HOUR, cid, "one")
        rt.after(2 * HOUR, cid, "two")
        wait(100)
        assert rt.conversation_count() == 0
        assert [(timer.content, timer.conversation_id) for timer in rt.timers(cid)] == [
            ("one", cid),
            ("two", cid),
        ]
        assert rt.timers() == rt.timers(cid)
        wait(HOUR)
        assert rt.conversation_count() == 0
        assert said(rt, cid) == ["one"]
        rt.after(10, cid, "asleep")  # wakes it
        wait(2 * HOUR)
        assert said(rt, cid) == ["one", "asleep", "two"]
        assert services(rt).incidents.counts["Passivated"] >= 3

    on_virtual_time(body, limits=Limits(passivate_after_s=20))


def test_a_tmp_chat_that_has_a_timer_does_not_expire() -> None:
    def body(rt: Runtime) -> None:
        chat = rt.get_or_create(AGENT, "bob")
        rt.after(DAY, chat, "still there?")
        wait(DAY + 10)
        assert said(rt, chat) == ["still there?"]
        wait(HOUR)
        assert rt.conversation_count() == 0

    on_virtual_time(body, limits=Limits(tmp_expires_s=100))


def test_a_timer_actor_that_dies_is_replaced_by_one_that_knows_all_timers() -> None:
    def body(rt: Runtime) -> None:
        cid, chat = topic(rt), rt.get_or_create(AGENT, "bob")
        for each in (cid, chat):
            rt.after(100, each, "once")
            rt.every(60, each, "again", first_after=70)
        gone = rt.after(90, cid, "never")
        kill_timer_actor(rt)
        wait(1)
        assert services(rt).timers.pending == 5
        assert gone.cancel()
        late = rt.after(110, cid, "late")
        kill_timer_actor(rt)
        wait(150)
        assert said(rt, cid) == ["again", "once", "late", "again"]
        assert said(rt, chat) == ["again", "once", "again"]
        assert not late.cancel()
        assert services(rt).incidents.counts["ActorRestarted"] == 2
        assert services(rt).timers.pending == 2

    on_virtual_time(body)


def kill_timer_actor(rt: Runtime) -> None:
    actor = services(rt).timers.actor
    assert actor is not None
    actor.tell("nonsense")


def test_a_conversation_that_dies_keeps_its_timers_and_answers_who_sets_one() -> None:
    def body(rt: Runtime) -> None:
        cid, chat = topic(rt), rt.get_or_create(AGENT, "bob")
        for each in (cid, chat):
            rt.after(100, each, "comes")
            ref = services(rt).directory.conversations[each].ref
            assert ref is not None
            ref.tell("nonsense")
            setting = gevent.spawn(rt.after, 200, each, "perhaps")
            setting.join(50)
            assert setting.ready()
            wait(200)
            assert said(rt, each)[0] == "comes"

    on_virtual_time(body)


def test_a_deleted_session_takes_its_timers_along() -> None:
    def body(rt: Runtime) -> None:
        cid, other = topic(rt), topic(rt, "other")
        handle = handle_of(rt, cid)
        timer = rt.after(50, cid, "never")
        rt.after(60, other, "comes")
        assert rt.delete_session(handle)
        assert [found.content for found in rt.timers()] == ["comes"]
        assert not timer.cancel()
        wait(1)
        assert services(rt).timers.pending == 1
        again = topic(rt)
        wait(100)
        assert (said(rt, again), said(rt, other)) == ([], ["comes"])

    on_virtual_time(body)


def test_an_agent_that_is_gone_keeps_its_timers_waiting() -> None:
    def body(rt: Runtime) -> None:
        cid, others = topic(rt), topic(rt, agent="owl")
        handle = handle_of(rt, cid)
        rt.every(100, cid, "tick")
        rt.after(150, others, "hoo")
        rt.remove_agent(AGENT)
        wait(1_000)
        assert (rt.turns(handle), said(rt, others)) == ([], ["hoo"])
        rt.add_agent(CRAB)
        wait(150)
        assert came(rt, handle) == [("tick", 1_000), ("tick", 1_100)]

    on_virtual_time(body, agents=TWO)


def test_overdue_timers_are_held_until_they_are_recovered(tmp_path: Path) -> None:
    path = tmp_path / "held.db"

    def first(rt: Runtime) -> list[str]:
        handles = []
        for sender in ("alice", "bob"):
            cid = topic(rt, sender=sender)
            rt.every(100, cid, "tick")
            rt.after(5_000, cid, "later")
            handles.append(handle_of(rt, cid))
        return handles

    one, two = on_virtual_time(first, path)

    def second(rt: Runtime) -> None:
        wait(500)
        assert [(timer.content, timer.held) for timer in rt.timers()] == [
            ("tick", True),
            ("tick", True),
            ("later", False),
            ("later", False),
        ]
        assert (rt.turns(one), rt.turns(two)) == ([], [])
        assert rt.recover(one) == 0
        wait(250)
        assert came(rt, one) == [("tick", 1_500), ("tick", 1_600), ("tick", 1_700)]
        assert rt.turns(two) == []
        (held,) = [timer for timer in rt.timers() if timer.held]
        assert held.handle == two
        rt.recover(mode="fail")
        wait(50)
        assert rt.turns(two) == []
        assert rt.recover() == 0
        wait(20)
        assert came(rt, two) == [("tick", 1_800)]
        assert services(rt).timers.pending == 4

    on_virtual_time(second, path, later=1_000, recover="hold", killed=True)

    def third(rt: Runtime) -> None:
        wait(10)
        assert came(rt, two)[1:] == [("tick", 3_000)]

    on_virtual_time(third, path, later=3_000, recover="fail")


def test_a_cancelled_timer_that_is_held_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "held.db"

    def first(rt: Runtime) -> int:
        return rt.after(100, topic(rt), "never").id

    timer_id = on_virtual_time(first, path)

    def second(rt: Runtime) -> None:
        wait(1)
        assert rt.cancel_timer(timer_id)
        wait(1)
        assert services(rt).timers.pending == 0
        rt.recover()
        wait(HOUR)
        assert [len(rt.turns(session.handle)) for session in rt.sessions()] == [0]

    on_virtual_time(second, path, later=DAY, recover="hold")


def test_a_wall_clock_that_jumps_is_noticed_within_a_minute() -> None:
    def body(rt: Runtime) -> None:
        clock = services(rt).clock
        assert isinstance(clock, JumpingClock)
        cid = topic(rt)
        rt.after(DAY, cid, "tomorrow")
        rt.after(2 * DAY, cid, "the day after")
        wait(100)
        clock.ahead += DAY  # as after a sleep of the machine
        wait(61)
        assert said(rt, cid) == ["tomorrow"]
        clock.ahead -= DAY
        wait(DAY)
        assert said(rt, cid) == ["tomorrow"]
        wait(DAY)
        assert said(rt, cid) == ["tomorrow", "the day after"]

    on_virtual_time(body)


def test_nothing_fires_while_the_runtime_shuts_down(tmp_path: Path) -> None:
    path = tmp_path / "shut.db"

    def first(rt: Runtime) -> str:
        cid = topic(rt)
        rt.every(10, cid, "tick", first_after=5)
        chat = rt.get_or_create(AGENT, "bob")
        rt.every(10, chat, "tick", first_after=5)
        rt.submit(cid, "a long turn")
        rt.submit(chat, "a long turn")
        handle = handle_of(rt, cid)
        rt.shutdown(drain=500)
        return handle

    model = ScriptedModel(lambda _request: Reply("done", delay_s=100))

    def shut(rt: Runtime) -> str:
        handle = first(rt)
        assert at(rt) == 100
        return handle

    handle = on_virtual_time(shut, path, model, killed=True)
    assert messages_in(path, handle) == ["a long turn"]
    (timer,) = in_file(path, stored.list_timers)
    assert timer.content == "tick"


# -- exactly once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*ONCE, *FOR_GOOD])
def test_each_statement_of_a_firing_may_fail_and_the_message_comes_once(kind: Kind, tmp_path: Path) -> None:
    """Once, or for good, after which the file is opened by another process. Keyed or not, once or again."""

    def set_them(rt: Runtime) -> None:
        cid = topic(rt)
        rt.after(10, cid, "once")
        rt.after(20, cid, "keyed", key="k")
        rt.every(1_000, cid, "again", first_after=30)

    with quiet(), in_memory(tmp_path) as folder:
        on_virtual_time(set_them, folder / "set.db")
        count = _fire_all(folder, None)
        assert count > 20
        for number in range(count):
            _fire_all(folder, Point(number, kind))


def _fire_all(folder: Path, point: Point | None) -> int:
    """Let three timers fire, with a disk that fails at a point; how many statements that takes."""
    path = Path(shutil.copy(folder / "set.db", folder / "fires.db"))
    disk = FailingStatements(path, point)

    def fire_them(rt: Runtime) -> str:
        handle = rt.sessions()[0].handle
        disk.armed = True
        wait(900)
        disk.armed = False
        return handle

    handle = on_virtual_time(fire_them, path, later=5, committer=disk, killed=True)
    assert (disk.hit is None) == (point is None)
    if disk.failed is not None:
        on_virtual_time(lambda _rt: wait(100), path, later=905)
    assert messages_in(path, handle) == ["once", "keyed", "again"]
    assert [(timer.content, timer.due_at - EPOCH) for timer in in_file(path, stored.list_timers)] == [
        ("again", 1_030)
    ]
    for left in folder.glob("fires.db*"):
        left.unlink()
    return len(disk.statements)


def test_two_who_fire_the_same_timers_let_each_message_come_once() -> None:
    """As after the timer actor died and was started again while its timers were firing."""

    def body(rt: Runtime) -> None:
        cid, chat = topic(rt), rt.get_or_create(AGENT, "bob")
        for number in range(30):
            rt.after(100, cid, f"{number}")
            rt.after(100, chat, f"{number}")
        rt.every(100, cid, "tick")
        rt.every(100, chat, "tick")
        twin = TimerActor.start(services(rt))
        wait(350)
        for each in (cid, chat):
            messages = said(rt, each)
            assert sorted(messages) == sorted([*map(str, range(30)), "tick", "tick", "tick"])
        twin.stop(timeout=1)

    on_virtual_time(body)


def test_a_cancel_that_returned_true_is_kept_however_late_it_comes() -> None:
    """At each moment around the time at which it is due, with a database that takes its time."""

    def body(rt: Runtime) -> None:
        for number in range(40):
            cid = topic(rt, f"topic {number}")
            timer = rt.after(1, cid, "perhaps")
            wait(0.98 + number / 1_000)
            cancelled = timer.cancel()
            wait(1)
            assert said(rt, cid) == ([] if cancelled else ["perhaps"])

    on_virtual_time(body, latency=0.005)


def test_ten_thousand_timers_are_one_alarm(tmp_path: Path) -> None:
    path = tmp_path / "many.db"
    many = 10_000

    def first(rt: Runtime) -> None:
        topic(rt)

    on_virtual_time(first, path)

    def fill(db: object) -> None:
        db.execute(  # type: ignore[attr-defined]
            """INSERT INTO timers (session_id, said_by, content, due_at, created_at)
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
                SELECT 1, '', 'x', 2000000000.0 + i, 0 FROM n""",
            [many],
        )
        db.conn.commit()  # type: ignore[attr-defined]

    in_file(path, fill)

    def greenlets() -> int:
        gc.collect()  # what other tests have left goes now, and not between two counts
        return sum(isinstance(each, gevent.Greenlet) for each in gc.get_objects())

    def second(rt: Runtime) -> int:
        wait(10)
        assert services(rt).timers.pending == many
        return greenlets()

    def nothing(_rt: Runtime) -> int:
        wait(10)
        return greenlets()

    assert on_virtual_time(second, path) <= on_virtual_time(nothing) + 1


# -- moving --------------------------------------------------------------------------------------------


def test_timers_move_with_their_conversations() -> None:
    def body(rt: Runtime) -> None:
        cid, chat = topic(rt), rt.get_or_create(AGENT, "bob")
        stays = topic(rt, "stays")
        rt.after(100, cid, "comes", key="k")
        rt.every(100, chat, "chat")
        rt.after(100, stays, "stays")
        rt.close(stays)
        moved, _ = opened()
        moved.add_agent(CRAB)
        assert rt.transfer_to(moved) == 2
        assert [timer.content for timer in rt.timers()] == ["stays"]
        assert sorted(timer.content for timer in moved.timers()) == ["chat", "comes"]
        wait(250)
        assert said(moved, cid) == ["comes"]
        assert said(moved, chat) == ["chat", "chat"]
        assert services(rt).timers.pending == 0
        assert services(moved).timers.pending == 1
        moved.shutdown()

    on_virtual_time(body)
