"""Refs that follow restarts: what is kept for the next incarnation, and what is not asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pykka
import pytest
from support import in_thread
from turns_support import deadline, let_run

from actors.lasting import IncarnationDied, LastingRef, ask_until_answered
from palaver import GreenletActor, GreenletFuture, WrongThread

SOON_S = 0.001
LONG_S = 10.0


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(20):
        yield


class Echo(GreenletActor):
    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.seen.append(message)
        return f"{self.words}: {message}"


def boom(_actor: Any) -> None:
    raise ValueError("boom")


def started(words: str) -> Any:
    return Echo.start(words)


def lasting() -> tuple[Any, LastingRef[Any]]:
    first = started("first")
    return first, LastingRef("echo", first)


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def kill(ref: Any) -> None:
    ref.tell(boom)
    let_run(3)
    assert not ref.is_alive()


def test_it_is_as_good_as_the_ref_of_the_actor_that_lives() -> None:
    first, ref = lasting()
    assert ref.ask("hello", timeout=LONG_S) == "first: hello"
    kill(first)
    assert not ref.is_alive()
    ref.follow(started("second"))
    assert ref.is_alive()
    assert ref.ask("hello", timeout=LONG_S) == "second: hello"
    assert ref.proxy().words.get(timeout=LONG_S) == "second"
    assert str(ref) == "the actor 'echo'"
    assert ref.stop(timeout=LONG_S) is True
    assert ref.stop() is False
    assert ref.stop(block=False).get() is False


def test_messages_wait_for_the_next_incarnation_in_their_order() -> None:
    first, ref = lasting()
    kill(first)
    ref.tell(1)
    asked = ref.ask(2, block=False)
    asking = gevent.spawn(ref.ask, 3)
    ref.tell(4)
    let_run()
    second = started("second")
    ref.follow(second)
    assert asked.get(timeout=LONG_S) == "second: 2"
    assert asking.get(timeout=LONG_S) == "second: 3"
    assert second.ask(lambda actor: actor.seen) == [1, 2, 4, 3]


def test_askers_wait_no_longer_than_they_said() -> None:
    first, ref = lasting()
    kill(first)
    with pytest.raises(pykka.Timeout):
        ref.ask("late", timeout=SOON_S)
    second = started("second")
    ref.follow(second)
    assert second.ask(lambda actor: actor.seen) == []


def test_what_was_not_handled_is_asked_again_and_what_was_is_not() -> None:
    first, ref = lasting()
    gate: GreenletFuture[None] = GreenletFuture()
    handled: list[str] = []

    def note(_actor: Any) -> str:
        handled.append("note")
        return "noted"

    def die(_actor: Any) -> None:
        gate.get()
        raise ValueError

    first.tell(die)
    asking = gevent.spawn(ref.ask, note)
    let_run()
    gate.set()
    let_run()
    ref.follow(started("second"))
    assert asking.get(timeout=LONG_S) == "noted"
    assert handled == ["note"]


def test_a_handlers_own_dead_actor_is_its_answer_and_no_reason_to_ask_again() -> None:
    _, ref = lasting()
    other = started("other")
    other.stop()
    handled: list[str] = []

    def ask_the_dead(_actor: Any) -> Any:
        handled.append("asked")
        return other.ask("anybody?", timeout=LONG_S)

    with pytest.raises(pykka.ActorDeadError):
        ref.ask(ask_the_dead, timeout=LONG_S)
    assert handled == ["asked"]


def test_once_it_is_over_everybody_hears_why() -> None:
    first, ref = lasting()
    kill(first)
    ref.tell("lost")
    asked = ref.ask(1, block=False)
    asking = gevent.spawn(outcome, ref.ask, 2)
    let_run()
    ref.end("it is parked")
    answers = [
        outcome(asked.get),
        asking.get(timeout=LONG_S),
        outcome(ref.ask, 3),
        outcome(ref.ask(4, block=False).get),
        outcome(ref.tell, 5),
    ]
    assert answers == ["ActorDeadError: the actor 'echo': it is parked"] * 5
    ref.follow(started("again"))
    assert ref.ask("hello") == "again: hello"


def test_another_thread_is_refused_in_between_too() -> None:
    first, ref = lasting()
    kill(first)
    for call in (ref.tell, ref.ask):
        with pytest.raises(WrongThread):
            in_thread(call, "from elsewhere")


def test_an_answer_that_an_incarnation_took_with_it_is_asked_for_again() -> None:
    first, ref = lasting()
    owed: GreenletFuture[str] = GreenletFuture()

    def owe(actor: Any) -> Any:
        return owed if actor.words == "first" else "answered"

    asking = gevent.spawn(ask_until_answered, ref, owe, timeout=LONG_S, waits=True)
    let_run()
    kill(first)
    owed.fail(IncarnationDied("died"))
    let_run()
    ref.follow(started("second"))
    assert asking.get(timeout=LONG_S) == "answered"


def test_an_actor_that_owes_an_answer_too_long_is_not_waited_for() -> None:
    _, ref = lasting()
    with pytest.raises(pykka.Timeout):
        ask_until_answered(ref, lambda _actor: GreenletFuture(), timeout=SOON_S, waits=False)
