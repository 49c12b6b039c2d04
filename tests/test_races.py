"""Races: hundreds of greenlets on one conversation, on a real file, under gevent's blocking monitor."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from turns_support import (
    AGENT,
    HeldModel,
    all_states,
    assert_memory_is_disk,
    deadline,
    exchanges,
    in_file,
    kind,
    kinds,
    let_run,
    never_blocks_the_hub,
    race,
    runtime,
    said,
    settled,
    stored_states,
)

from palaver import (
    AgentConfig,
    CompactOutcome,
    ConversationClosed,
    ConversationNotFound,
    DescriptionRequired,
    Limits,
    MailboxFull,
    ModelRequest,
    NoActiveTurn,
    Reply,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
    SwitchOutcome,
    Ticket,
    TurnResult,
)
from persistence import sessions

ROOMY = Limits(queued_per_conversation=5_000, queued_per_sender=5_000)
GONE = (ConversationClosed, ConversationNotFound)


def topic(rt: Runtime, sender: str = "alice", title: str = "auth") -> tuple[int, str]:
    """The id and handle of a topic of the sender's."""
    cid = rt.switch_topic(AGENT, sender, title, description="d").conversation_id
    shown = rt.conversation(cid)
    assert shown is not None
    assert shown.handle is not None
    return cid, shown.handle


def conversation(rt: Runtime, stored: bool) -> int:
    """A conversation of alice's: a topic's or a tmp chat."""
    return topic(rt)[0] if stored else rt.get_or_create(AGENT, "alice")


@pytest.fixture(params=[True, False], ids=["topic", "tmp"])
def stored(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def _must_end() -> Any:
    with deadline(60):
        yield


# -- opening -------------------------------------------------------------------------------------------


@never_blocks_the_hub
def test_a_thousand_get_or_create_of_one_pair_give_one_id_and_one_actor(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        ids = race([partial(rt.get_or_create, AGENT, "alice")] * 1_000, seed=1)
        assert set(ids) == {1}
        assert rt.conversations() == [1]
        assert rt.get_or_create(AGENT, "bob") == 2
        assert rt.send(1, "one actor").text == "one actor"


@never_blocks_the_hub
def test_a_thousand_get_or_create_of_many_pairs_waste_no_id(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        senders = [f"s{number % 50}" for number in range(1_000)]
        ids = race([partial(rt.get_or_create, AGENT, sender) for sender in senders], seed=2)
        assert sorted(set(ids)) == list(range(1, 51)) == rt.conversations()
        assert len(set(zip(senders, ids, strict=True))) == 50


@never_blocks_the_hub
def test_a_thousand_switches_to_one_new_title_make_one_session(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        outcomes = race([partial(rt.switch_topic, AGENT, "alice", "auth", "about tokens")] * 1_000, seed=3)
        (cid,) = {outcome.conversation_id for outcome in outcomes}
        assert rt.conversations() == [cid]
        assert rt.conversation_id(AGENT, "alice") == cid
        (session,) = rt.sessions()
        assert session.topic == "auth"
        (entry,) = rt.memory.entries(AGENT, "alice", "topic")
        assert (entry.name, entry.content) == ("auth", "about tokens")
        assert rt.send(cid, "hello").text == "hello"


@never_blocks_the_hub
def test_a_switch_without_a_description_never_breaks_the_ones_that_have_one(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        for title in ("one", "two", "three"):
            descriptions = [None if number % 3 else f"d{number}" for number in range(400)]
            calls = [partial(rt.switch_topic, AGENT, "alice", title, text) for text in descriptions]
            outcomes = race(calls, seed=len(title))
            joined = {o.conversation_id for o in outcomes if isinstance(o, SwitchOutcome)}
            assert len(joined) == 1
            for text, outcome in zip(descriptions, outcomes, strict=True):
                assert isinstance(outcome, SwitchOutcome) or (
                    text is None and isinstance(outcome, DescriptionRequired)
                )
            assert [session.topic for session in rt.sessions(topic=title)] == [title]
            assert rt.conversation_id(AGENT, "alice") in joined
        assert rt.conversation_count() == 3


@never_blocks_the_hub
def test_failed_switches_leave_the_topic_before_active_and_no_id_is_reused(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        before, _ = topic(rt, title="known")
        outcomes = race([partial(rt.switch_topic, AGENT, "alice", "unknown")] * 500, seed=4)
        assert kinds(outcomes) == {"DescriptionRequired": 500}
        assert rt.conversations() == [before]
        assert rt.conversation_id(AGENT, "alice") == before
        after = rt.switch_topic(AGENT, "alice", "unknown", "d").conversation_id
        assert after > before + 1
        assert len(rt.sessions()) == 2


@never_blocks_the_hub
def test_load_and_switch_of_one_stored_session_at_once_bring_one_conversation_to_life(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        cid, handle = topic(rt)
        rt.send(cid, "remember me")
        for seed in range(5):
            assert rt.close(cid)
            calls: list[Any] = [partial(rt.load, handle), partial(rt.switch_topic, AGENT, "alice", "auth")]
            outcomes = race(calls * 100, seed=seed)
            ids = {o.conversation_id if isinstance(o, SwitchOutcome) else o for o in outcomes}
            assert ids == set(rt.conversations()) == {max(ids)}
            assert all(outcome.resumed for outcome in outcomes if isinstance(outcome, SwitchOutcome))
            assert rt.load(handle) == max(ids) > cid
            cid = max(ids)
            shown = rt.conversation(cid)
            assert shown is not None
            assert said(shown.history) == ["remember me"]


class OneAtATime(ScriptedModel):
    """An echo that notes when two turns of one sender run at the same time."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self.running: dict[str, int] = {}
        self.overlaps = 0

    def _say(self, request: ModelRequest) -> str:
        self.overlaps += self.running.get(request.sender, 0)
        self.running[request.sender] = 1
        try:
            gevent.sleep(0)
        finally:
            self.running[request.sender] = 0
        return str(request.messages[-1]["content"])


@never_blocks_the_hub
def test_close_and_reopen_of_one_topic_never_make_two_live_actors_of_one_session(tmp_path: Path) -> None:
    model = OneAtATime()
    with runtime(tmp_path / "a.db", model, limits=ROOMY) as rt:
        cid, handle = topic(rt)
        rng = random.Random(5)
        ids = [cid]

        def live() -> None:
            handles = [rt.conversation(each).handle for each in rt.conversations()]  # type: ignore[union-attr]
            assert handles.count(handle) <= 1

        def step(number: int, action: str) -> Any:
            if action == "close":
                return rt.close(ids[-1], mode="now" if number % 2 else "drain")
            if action == "send":
                return rt.send(ids[-1], f"m{number}")
            found = rt.load(handle) if action == "load" else None
            found = found or rt.switch_topic(AGENT, "alice", "auth").conversation_id
            ids.append(found)
            live()
            return found

        actions = [rng.choice(("close", "send", "load", "switch")) for _ in range(600)]
        outcomes = race([partial(step, *each) for each in enumerate(actions)], seed=6)
        live()
        allowed = {"bool", "int", "text_response", "closed", "cancelled"}
        assert set(kinds(outcomes)) <= allowed | {error.__name__ for error in GONE}
        assert model.overlaps == 0
        if handle not in {rt.conversation(each).handle for each in rt.conversations()}:  # type: ignore[union-attr]
            rt.load(handle)
        assert_memory_is_disk(rt)
        results = [o for o in outcomes if isinstance(o, TurnResult) and o.stop_reason == "text_response"]
        transcript = said(rt.transcript(handle), "assistant")
        assert sorted(transcript) == sorted(result.text for result in results)


# -- closing -------------------------------------------------------------------------------------------


def close_against_sends(folder: Path, mode: str, is_topic: bool, seed: int, number: int) -> None:
    model = ScriptedModel()
    with runtime(folder / f"{mode}{is_topic}{seed}.db", model, limits=ROOMY) as rt:
        cid = conversation(rt, is_topic)
        handle = rt.conversation(cid).handle  # type: ignore[union-attr]
        asked_at_close: list[int] = []

        def close() -> bool:
            closed = rt.close(cid, mode=mode)  # type: ignore[arg-type]
            asked_at_close.append(len(model.requests))
            return closed

        calls: list[Any] = [partial(rt.send, cid, f"m{n}") for n in range(number)]
        outcomes = race([*calls, close, close, close], seed=seed)
        sends, closes = outcomes[:number], outcomes[number:]

        assert sorted(closes) == [False, False, True]
        assert rt.close(cid) is False
        allowed = {"text_response", "closed", "cancelled", *(error.__name__ for error in GONE)}
        assert set(kinds(sends)) <= allowed
        let_run()
        assert set(asked_at_close) == {len(model.requests)}, "something ran after a close had returned"
        assert rt.conversation(cid) is None
        if handle is None:
            return
        results = [outcome for outcome in sends if isinstance(outcome, TurnResult)]
        transcript = rt.transcript(handle)
        cancelled = {f"m{n}" for n, o in enumerate(sends) if kind(o) == "cancelled"}
        assert [e.content for e in transcript if e.content not in cancelled] == exchanges(results)
        states = stored_states(rt)
        assert sorted(states) == sorted(result.turn_id for result in results)
        ends = {"text_response": "done", "closed": "closed", "cancelled": "cancelled"}
        assert states == {result.turn_id: ends[result.stop_reason] for result in results}


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_close_against_a_thousand_sends_leaves_none_without_an_answer(
    tmp_path: Path, mode: str, stored: bool
) -> None:
    @never_blocks_the_hub
    def run(folder: Path) -> None:
        for seed, number in enumerate((1_000, 100, 100)):
            close_against_sends(folder, mode, stored, seed, number)

    run(tmp_path)


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_close_while_a_turn_ends_gives_leftover_steers_one_end_in_memory_and_on_disk(
    tmp_path: Path, mode: str
) -> None:
    model = HeldModel()
    with runtime(tmp_path / "a.db", model) as rt:
        for yields in range(12):
            cid, handle = topic(rt, title=f"t{yields}")
            ticket = rt.submit(cid, "begin")
            held = model.next()
            steers = [rt.steer(cid, f"steer {number}") for number in range(3)]
            held.say("end")
            for _ in range(yields):
                gevent.sleep(0)
            closing = gevent.spawn(rt.close, cid, mode=mode)
            while not closing.ready():
                if not model.idle:
                    model.next().say("went on")
                gevent.sleep(0)
            tickets = [ticket, *steers]
            assert "Error" not in "".join(kinds(settled(tickets)))
            states = stored_states(rt)
            assert {each.turn_id: each.state for each in tickets} == {
                each.turn_id: states[each.turn_id] for each in tickets
            }
            assert said(rt.transcript(handle))[0] == "begin"


@never_blocks_the_hub
def test_a_cancel_that_races_with_the_end_of_its_turn_says_what_happened(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db", ScriptedModel(_yielding_echo)) as rt:
        outcomes: list[tuple[bool, str, str]] = []
        for is_topic in (False, True):  # once the topic is open, the pair's conversation is the topic's
            cid = conversation(rt, is_topic)
            for yields in range(40):
                ticket = rt.submit(cid, f"m{yields}")
                for _ in range(yields % 20):
                    gevent.sleep(0)
                cancelled = ticket.cancel()
                result = ticket.result()
                outcomes.append((cancelled, result.stop_reason, ticket.state))
        assert set(outcomes) <= {(True, "cancelled", "cancelled"), (False, "text_response", "done")}
        assert len(set(outcomes)) == 2, "the race was won by one side every time"
        assert rt.send(cid, "again").text == "again"


def _yielding_echo(request: ModelRequest) -> str:
    for _ in range(8):
        gevent.sleep(0)
    return str(request.messages[-1]["content"])


# -- compaction ----------------------------------------------------------------------------------------


@never_blocks_the_hub
def test_compactions_among_sends_lose_nothing(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db", limits=ROOMY) as rt:
        cid, handle = topic(rt, title="Auth!")
        calls: list[Any] = [partial(rt.send, cid, f"m{number}") for number in range(400)]
        calls += [partial(rt.compact, cid)] * 25
        outcomes = race(calls, seed=7)
        results, compactions = outcomes[:400], outcomes[400:]

        assert kinds(results) == {"text_response": 400}
        names = [c.archive for c in compactions if isinstance(c, CompactOutcome) and c.archive]
        assert len(names) == len(set(names)) >= 20
        assert set(names) == {f"auth-{number}" for number in range(1, len(names) + 1)}
        transcript = rt.transcript(handle)
        assert [entry.content for entry in transcript] == exchanges(results)
        archives = {entry.name: entry.content for entry in rt.memory.entries(AGENT, "alice", "archive")}
        assert archives == {c.archive: c.summary for c in compactions if c.archive}

        newest = rt.sessions()[0].archive
        shown = rt.conversation(cid)
        assert newest is not None
        assert shown is not None
        live = shown.history[1:]
        assert shown.history[0].content == archives[newest]
        assert tuple(transcript[len(transcript) - len(live) :]) == live
        assert_memory_is_disk(rt)


@never_blocks_the_hub
def test_automatic_and_requested_compactions_at_once_lose_nothing(tmp_path: Path) -> None:
    config = AgentConfig(name=AGENT, compact_threshold=60)
    with runtime(tmp_path / "a.db", None, config, limits=ROOMY) as rt:
        cid, handle = topic(rt)
        calls: list[Any] = [partial(rt.send, cid, f"message number {number}") for number in range(150)]
        outcomes = race([*calls, *[partial(rt.compact, cid)] * 15], seed=8)
        assert kinds(outcomes) == {"text_response": 150, "CompactOutcome": 15}
        assert [entry.content for entry in rt.transcript(handle)] == exchanges(outcomes[:150])
        archives = rt.memory.entries(AGENT, "alice", "archive")
        assert len(archives) > 15
        assert_memory_is_disk(rt)


def word(number: int, life: int) -> str:
    """A word of its own for each conversation and life."""
    return f"w{chr(97 + number // 26)}{chr(97 + number % 26)}{'xy'[life]}"


@never_blocks_the_hub
def test_sixty_four_conversations_of_one_slug_compact_at_once_under_64_names(tmp_path: Path) -> None:
    config = AgentConfig(name=AGENT, memory_scope="agent")
    titles = ["Auth refactor!", "auth  refactor", "AUTH-REFACTOR", "auth/refactor?"]
    path = tmp_path / "a.db"
    for life in range(2):
        with runtime(path, None, config) as rt:
            cids = [topic(rt, f"s{n}", titles[n % 4])[0] for n in range(64)]
            race([partial(rt.send, cid, f"secret {word(n, life)}") for n, cid in enumerate(cids)])
            outcomes = race([partial(rt.compact, cid) for cid in cids], seed=life)
            first = 1 + 64 * life
            assert {o.archive for o in outcomes} == {
                f"auth-refactor-{number}" for number in range(first, first + 64)
            }
            archives = {e.name: e.content for e in rt.memory.entries(AGENT, "any", "archive")}
            assert len(archives) == 64 * (life + 1)
            for number, outcome in enumerate(outcomes):
                (session,) = rt.sessions(sender=f"s{number}")
                assert session.archive == outcome.archive
                assert archives[outcome.archive] == outcome.summary
                assert word(number, life) in outcome.summary
                (found,) = rt.memory.recall(AGENT, "any", f"secret {word(number, life)}", limit=1)
                assert found.name == outcome.archive


# -- steering and interrupting -------------------------------------------------------------------------


def count(number: int) -> str:
    """A tool that gives its argument back."""
    return str(number)


def calls_tools_for_a_while(request: ModelRequest) -> Reply:
    gevent.sleep(0)
    rounds = 0
    for message in reversed(request.messages):
        if message["role"] == "user":
            break
        rounds += message["role"] == "tool"
    if rounds < 3:
        return Reply(tool_calls=[("count", {"number": rounds})])
    return Reply("done")


def test_every_one_of_a_thousand_steers_is_applied_once_or_becomes_a_turn(
    tmp_path: Path, stored: bool
) -> None:
    @never_blocks_the_hub
    def run(folder: Path) -> None:
        model = ScriptedModel(calls_tools_for_a_while, keep_requests=0)
        limits = Limits(queued_per_conversation=2_000, queued_per_sender=2_000)
        config = AgentConfig(name=AGENT, compact_threshold=None, max_iterations=200)
        with runtime(folder / f"{stored}.db", model, config, tools=[count], limits=limits) as rt:
            cid = conversation(rt, stored)
            taken: list[Ticket] = []
            refused: list[str] = []

            def steer(steerer: int) -> None:
                for number in range(20):
                    content = f"s{steerer}.{number}"
                    try:
                        taken.append(rt.steer(cid, content))
                    except NoActiveTurn:
                        refused.append(content)
                        taken.append(rt.submit(cid, content))
                    gevent.sleep(0)

            race([partial(rt.send, cid, "begin"), *(partial(steer, n) for n in range(50))], seed=9)
            results = settled(taken)
            assert kinds(results) == {"text_response": 1_000}
            shown = rt.conversation(cid)
            assert shown is not None
            users = said(shown.history)
            expected = ["begin", *(f"s{s}.{n}" for s in range(50) for n in range(20))]
            assert sorted(users) == sorted(expected), "a steer was lost, or came twice"
            assert len(refused) < 900
            if shown.handle is not None:
                assert rt.transcript(shown.handle) == list(shown.history)
                assert set(stored_states(rt).values()) == {"done"}
                assert {result.turn_id for result in results} <= set(stored_states(rt))

    run(tmp_path)


def test_a_storm_of_interrupts_gives_every_message_one_end(tmp_path: Path, stored: bool) -> None:
    @never_blocks_the_hub
    def run(folder: Path) -> None:
        model = ScriptedModel(calls_tools_for_a_while, keep_requests=0)
        with runtime(folder / f"{stored}.db", model, tools=[count], limits=ROOMY) as rt:
            cid = conversation(rt, stored)

            def caller(number: int) -> list[TurnResult]:
                rng = random.Random(number)
                return [
                    rt.send(cid, f"m{number * 5 + n}", on_busy=rng.choice(("interrupt", "enqueue")))
                    for n in range(5)
                ]

            callers = race([partial(caller, number) for number in range(60)], seed=10)
            results = [result for mine in callers for result in mine]
            assert set(kinds(results)) == {"text_response", "cancelled"}
            assert len({result.turn_id for result in results}) == 300
            shown = rt.conversation(cid)
            assert shown is not None
            users = said(shown.history)
            assert len(users) == len(set(users)), "a message entered history twice"
            answered = {f"m{n}" for n, result in enumerate(results) if result.stop_reason == "text_response"}
            assert answered <= set(users)
            if shown.handle is not None:
                assert rt.transcript(shown.handle) == list(shown.history)
            assert rt.send(cid, "after the storm").text == "done"

    run(tmp_path)


# -- bounds --------------------------------------------------------------------------------------------


@never_blocks_the_hub
def test_a_flood_is_refused_stores_nothing_and_afterwards_everything_works(tmp_path: Path) -> None:
    go = Signal()

    def wait(request: ModelRequest) -> str:
        go.wait()
        return str(request.messages[-1]["content"])

    limits = Limits(queued_per_conversation=10, queued_per_sender=25, queued_total=40)
    with runtime(tmp_path / "a.db", ScriptedModel(wait), limits=limits) as rt:
        cids = [topic(rt, sender, title)[0] for sender in ("alice", "bob") for title in ("a", "b", "c", "d")]
        for _ in range(2):
            go.clear()
            calls = [partial(rt.submit, cids[n % 8], f"m{n}") for n in range(500)]
            outcomes = race(calls, seed=11)
            tickets = [each for each in outcomes if isinstance(each, Ticket)]
            assert kinds(outcomes) == {"Ticket": 40, "MailboxFull": 460}
            states = stored_states(rt)
            assert {ticket.turn_id for ticket in tickets} <= set(states)
            assert sum(state in ("queued", "running") for state in states.values()) == 40
            for refused in outcomes:
                assert not isinstance(refused, MailboxFull) or "limits.queued_" in str(refused)
            go.set()
            assert kinds(settled(tickets)) == {"text_response": 40}
            assert rt.stats().queued == rt.stats().running == 0
        assert len(stored_states(rt)) == 80
        assert rt.send(cids[0], "after the flood").text == "after the flood"


@never_blocks_the_hub
def test_each_bound_counts_back_down_when_turns_are_cancelled_or_closed(tmp_path: Path) -> None:
    model = HeldModel()
    limits = Limits(queued_per_conversation=5, queued_per_sender=6)
    with runtime(tmp_path / "a.db", model, limits=limits) as rt:
        for _ in range(5):
            cid, _handle = topic(rt)
            tickets = [rt.submit(cid, "runs")]
            model.next()
            tickets += [rt.submit(cid, f"q{n}") for n in range(5)]
            with pytest.raises(MailboxFull, match="queued_per_conversation"):
                rt.submit(cid, "too many")
            assert race([tickets[5].cancel, tickets[3].cancel]) == [True, True]
            tickets.append(rt.steer(cid, "a steer waits too"))
            other = rt.switch_topic(AGENT, "alice", "other", "d").conversation_id
            tickets.append(rt.submit(other, "the sixth"))
            with pytest.raises(MailboxFull, match="queued_per_sender"):
                rt.submit(other, "the seventh")
            assert race([partial(rt.close, each, mode="now") for each in (cid, other)]) == [True, True]
            assert set(kinds(settled(tickets))) == {"closed", "cancelled"}
            while not model.idle:
                model.next()


# -- shutting down -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [30.0, 0.0])
def test_a_shutdown_against_sends_answers_all_and_the_file_says_the_same(
    tmp_path: Path, drain: float
) -> None:
    @never_blocks_the_hub
    def run(folder: Path) -> None:
        for seed in range(3):
            path = folder / f"{drain}{seed}.db"
            rt = Runtime.open(path, ScriptedModel(), limits=ROOMY)
            rt.add_agent(AgentConfig(name=AGENT))
            handles = {}
            cids = []
            for number in range(10):
                cid, handles[cid] = topic(rt, f"s{number}")
                cids.append(cid)
            calls: list[Any] = [partial(rt.send, cids[n % 10], f"m{n}") for n in range(300)]
            calls += [partial(rt.shutdown, drain)] * 3
            outcomes = race(calls, seed=seed)
            assert outcomes[300:] == [None, None, None]
            with pytest.raises(RuntimeClosed):
                rt.send(cids[0], "too late")
            _assert_file_says(path, handles, outcomes[:300], drain)

    run(tmp_path)


def _assert_file_says(path: Path, handles: dict[int, str], outcomes: list[Any], drain: float) -> None:
    results = [outcome for outcome in outcomes if isinstance(outcome, TurnResult)]
    allowed = {"text_response", "RuntimeClosed"} | ({"cancelled"} if drain == 0 else set())
    assert set(kinds(outcomes)) <= allowed
    states = in_file(path, all_states)
    ends = {"text_response": "done", "cancelled": "cancelled"}
    told = {result.turn_id: ends[result.stop_reason] for result in results}
    assert told == {turn: state for turn, state in states.items() if state in ("done", "cancelled")}
    waiting = [turn for turn, state in states.items() if state in ("queued", "running")]
    assert len(told) + len(waiting) == len(states)
    assert not waiting or drain == 0
    for cid, handle in handles.items():
        transcript = in_file(path, partial(sessions.transcript, handle=handle))
        mine = [result for result in results if result.conversation_id == cid]
        cancelled = sum(result.stop_reason == "cancelled" for result in mine)
        assert said(transcript, "assistant") == exchanges(mine)[::2]
        assert len(said(transcript)) == len(said(transcript, "assistant")) + cancelled
