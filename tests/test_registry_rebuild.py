"""A registry that dies is started again with all that lives: routes, ids, what opens, closes and rests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from test_lives import PLAIN, Bug, look, model
from test_passivation import rest, topic, virtually
from turns_support import AGENT, deadline, services, stored_states

from actors.messages import TurnEnded, Unpark
from actors.registry import RegistryActor
from palaver import ConversationNotFound, Limits, PalaverError, Runtime


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


@pytest.fixture(autouse=True)
def _registry_that_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = RegistryActor.on_receive

    def receive(actor: Any, message: Any) -> Any:
        if isinstance(message, Unpark) and message.conversation_id == -1:
            raise RuntimeError("a planted bug")
        return handle(actor, message)

    monkeypatch.setattr(RegistryActor, "on_receive", receive)


def kill_registry(rt: Runtime) -> None:
    registry = services(rt).registry
    assert registry is not None
    registry.tell(Unpark(-1))


def again(call: Any) -> Any:
    """What a caller does whom a dying registry told to ask again."""
    for _ in range(20):
        try:
            return call()
        except PalaverError as error:
            if "again" not in str(error):
                raise
            gevent.sleep(0.1)
    raise AssertionError("asked in vain")


def run(body: Any, **options: Any) -> None:
    virtually(body, model(), tools=[look], agent=PLAIN, **options)


def test_routes_ids_and_active_topics_are_those_from_before() -> None:
    def body(rt: Runtime) -> None:
        chat = rt.get_or_create(AGENT, "bob")
        first, second = topic(rt, "first"), topic(rt, "second")
        rt.switch_topic(AGENT, "alice", "first")
        rt.send(second, "hello")
        kill_registry(rt)
        assert rt.get_or_create(AGENT, "bob") == chat
        assert rt.get_or_create(AGENT, "alice") == first
        assert rt.switch_topic(AGENT, "alice", "second").conversation_id == second
        assert topic(rt, "third") == second + 1
        assert rt.load(rt.sessions(topic="second")[0].handle) == second
        assert rt.close(second) is True
        assert rt.close(second) is False
        assert services(rt).incidents.counts["ActorRestarted"] == 1

    run(body)


def test_passive_conversations_are_found_by_the_next_registry() -> None:
    def body(rt: Runtime) -> None:
        first, second = topic(rt, "first"), topic(rt, "second")
        rt.send(first, "hello")
        rest()
        kill_registry(rt)
        assert rt.get_or_create(AGENT, "alice") == second
        assert rt.send(first, "again").conversation_id == first
        kill_registry(rt)
        rest()
        assert rt.conversations() == []
        assert rt.send(second, "hello").conversation_id == second

    run(body)


def test_turns_go_on_while_there_is_no_registry() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        tickets = [rt.submit(cid, text) for text in ("work", "two")]
        kill_registry(rt)
        assert [ticket.result(timeout=60).text for ticket in tickets] == ["heard work", "heard two"]
        assert {*stored_states(rt).values()} == {"done"}

    run(body)


def test_a_conversation_that_dies_with_the_registry_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        Bug(monkeypatch, TurnEnded, 1)
        ticket = rt.submit(cid, "hello")
        gevent.sleep(0.0095)  # virtual: just before the model answers
        kill_registry(rt)
        assert ticket.result(timeout=60).text == "heard hello"

    run(body)


def test_a_close_that_meets_a_dying_registry_is_answered_true() -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        ticket = rt.submit(cid, "work")
        closing = gevent.spawn(rt.close, cid)
        gevent.sleep(0.001)  # virtual: the turn runs on, and the close waits for it
        kill_registry(rt)
        assert closing.get() is True
        assert ticket.result().stop_reason == "text_response"
        assert rt.close(cid) is False

    run(body)


def test_a_registry_that_is_started_again_refuses_what_the_one_before_refused() -> None:
    def body(rt: Runtime) -> None:
        rt.submit(topic(rt), "work")
        down = gevent.spawn(rt.shutdown)
        gevent.sleep(0.001)  # virtual: it drains
        kill_registry(rt)
        gevent.sleep(0.001)
        assert services(rt).directory.refusal is not None
        down.get()

    run(body, checked=False)


@pytest.mark.parametrize("seed", range(6))
def test_at_any_moment_of_opening_resting_and_closing_nobody_is_left_alone(seed: int) -> None:
    """Callers do all of it while the registry dies now and then; then everything is as it must be."""

    def body(rt: Runtime) -> None:
        rng = random.Random(seed)

        def caller(sender: str) -> None:
            for number in range(8):
                cid = again(lambda: topic(rt, "work", sender))
                try:
                    end = again(lambda cid=cid, n=number: rt.send(cid, f"{n}", key=f"{n}"))
                except ConversationNotFound:
                    continue  # it was closed by the other caller of this sender
                assert end.text == f"heard {number}" or end.stop_reason == "closed"
                if rng.random() < 0.3:
                    again(lambda cid=cid: rt.close(cid))
                gevent.sleep(rng.choice((0.0, 0.01, 0.2, 0.5)))

        def killer() -> None:
            for _ in range(4):
                gevent.sleep(rng.choice((0.005, 0.5, 2.0)))
                kill_registry(rt)
                gevent.sleep(2.0)

        greenlets = [gevent.spawn(caller, f"s{number % 4}") for number in range(6)]
        greenlets.append(gevent.spawn(killer))
        gevent.joinall(greenlets, raise_error=True)
        assert {*stored_states(rt).values()} <= {"done", "closed", "cancelled"}
        routers = services(rt).directory.routers
        live = set(rt.conversations())
        for router in routers.values():
            assert router.tmp in (None, *live)
        for session in rt.sessions():
            cid = rt.load(session.handle)
            assert rt.send(cid, "last").text == "heard last"

    run(body, order=seed, limits=Limits(passivate_after_s=0.1))
