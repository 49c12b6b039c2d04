"""Replies that take no wait: made in the asker's greenlet, and nothing else is different."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import greenlet
import pykka
import pytest
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event
from gevent.threadpool import ThreadPool
from turns_support import AGENT, let_run, runtime

from actors.errors import AgentNotRegistered, HandlerFailed, WrongThread
from actors.greenlet import AT_ONCE, LATER, Deadlock, GreenletActor, release_idle_workers
from actors.messages import BeginTransfer, EndTransfer, Sweep
from actors.workers import workers_here
from palaver import Limits, MailboxFull, Runtime, RuntimeClosed

LONG = 5.0


class Quick(GreenletActor):
    """Does what the message says, at once or not, and writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[object] = []
        self.dead: list[BaseException | None] = []

    def on_receive(self, message: Any) -> Any:
        self.log.append(message)
        return message(self) if callable(message) else f"re: {message}"

    def answer_at_once(self, message: Any) -> Any:
        return LATER if message is LATER else self.on_receive(message)

    def on_death(self, reason: BaseException | None) -> None:
        self.dead.append(reason)


@pytest.fixture
def quick() -> Iterator[Any]:
    ref = Quick.start()
    workers_here().at_once = 0
    yield ref
    ref.stop(timeout=LONG)


@contextmanager
def no_switch() -> Iterator[None]:
    """Whoever switches greenlets within fails."""
    switches: list[str] = []
    before = greenlet.settrace(lambda event, _greenlets: switches.append(event))
    try:
        yield
    finally:
        greenlet.settrace(before)
    assert not switches


def actor_of(ref: Any) -> Quick:
    actor: Quick = ref.actor_inbox.actor
    return actor


def test_an_actor_at_rest_replies_in_the_askers_greenlet_without_a_switch(quick: Any) -> None:
    quick.ask("a worker for the pool")
    with no_switch():
        assert quick.ask_at_once("x") == "re: x"
        assert quick.ask_at_once(lambda _self: gevent.getcurrent()) is gevent.getcurrent()


def test_an_actor_that_does_not_say_otherwise_is_to_be_asked(quick: Any) -> None:
    class Plain(GreenletActor):
        def on_receive(self, message: Any) -> Any:
            return message

    plain = Plain.start()
    assert plain.ask_at_once("x") is LATER  # type: ignore[attr-defined]  # pykka's type of a ref
    assert quick.ask_at_once(LATER) is LATER
    assert plain.ask("x", timeout=LONG) == "x"
    assert quick.ask("x", timeout=LONG) == "re: x"


def test_no_message_is_overtaken(quick: Any) -> None:
    quick.tell("first")
    assert quick.ask_at_once("second") is LATER
    quick.ask("third", timeout=LONG)
    assert actor_of(quick).log == ["first", "third"]


def test_one_message_at_a_time_even_when_a_handler_waits(quick: Any) -> None:
    gate = Event()
    waiting = quick.ask(lambda _self: gate.wait(), block=False)
    let_run()
    assert quick.ask_at_once("x") is LATER
    gate.set()
    assert waiting.get(timeout=LONG)
    assert quick.ask_at_once("x") == "re: x"


def test_one_that_waits_against_its_word_still_is_busy_and_what_comes_meanwhile_follows(quick: Any) -> None:
    gate = Event()
    slow = gevent.spawn(quick.ask_at_once, lambda _self: gate.wait())
    let_run()
    assert quick.ask_at_once("x") is LATER
    quick.tell("y")
    let_run()
    assert len(actor_of(quick).log) == 1
    gate.set()
    assert slow.get(timeout=LONG)
    let_run()
    assert actor_of(quick).log[1:] == ["y"]
    assert quick.ask_at_once("z") == "re: z"


def test_what_it_tells_itself_comes_next_and_asking_itself_is_refused(quick: Any) -> None:
    quick.ask_at_once(lambda self: self.actor_ref.tell("to myself"))
    assert quick.ask_at_once("x") is LATER
    let_run()
    assert actor_of(quick).log[1:] == ["to myself"]
    assert quick.ask_at_once(lambda self: self.actor_ref.ask_at_once("me")) is LATER
    with pytest.raises(Deadlock, match="itself"):
        quick.ask_at_once(lambda self: self.actor_ref.ask("me"))


@pytest.mark.parametrize(
    ("error", "comes_as"),
    [(ValueError("no"), ValueError), (gevent.Timeout(1), HandlerFailed), (SystemExit(3), HandlerFailed)],
)
def test_trap_01_any_exception_goes_to_the_asker_and_the_actor_lives(
    quick: Any, error: BaseException, comes_as: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def raise_it(_self: Quick) -> None:
        raise error

    caplog.set_level("INFO", "pykka")
    with pytest.raises(comes_as) as caught:
        quick.ask_at_once(raise_it)
    assert error in (caught.value, caught.value.__cause__)
    assert "Exception returned from Quick" in caplog.text
    assert quick.ask_at_once("x") == "re: x"


def test_who_asks_on_and_on_gives_way_to_others(quick: Any) -> None:
    quick.tell("a worker for the pool")
    let_run()
    turns: list[int] = []
    other = gevent.spawn(lambda: turns.append(len(actor_of(quick).log)))
    with no_switch():
        for number in range(AT_ONCE):
            quick.ask_at_once(number)
    assert not other.dead
    quick.ask_at_once("one more")
    assert other.dead
    assert turns == [AT_ONCE + 1]


def test_an_actor_that_died_while_the_asker_gave_way_is_not_asked(quick: Any) -> None:
    for number in range(AT_ONCE):
        quick.ask_at_once(number)
    gevent.spawn(quick.ask_at_once, lambda self: self.actor_stopped.set())
    assert quick.ask_at_once("x") is LATER
    with pytest.raises(pykka.ActorDeadError):
        quick.ask("x", timeout=LONG)


def test_a_kill_that_is_on_its_way_finds_all_or_nothing_done(quick: Any) -> None:
    done: list[str] = []

    def ask() -> None:
        gevent.getcurrent().kill(block=False)
        quick.ask_at_once("x")
        done.append("went on")
        gevent.sleep(LONG)
        done.append("lived on")

    gevent.spawn(ask).join()
    assert actor_of(quick).log == ["x"]
    assert done == ["went on"]


def test_an_actor_that_sets_its_flag_has_ended_when_the_asker_goes_on(quick: Any) -> None:
    actor = actor_of(quick)
    quick.ask_at_once(lambda self: self.actor_stopped.set())
    assert actor.dead == [None]
    assert not quick.is_alive()
    assert quick.ask_at_once("x") is LATER


def test_an_actor_whose_flag_somebody_else_has_set_handles_nothing_more(quick: Any) -> None:
    actor = actor_of(quick)
    quick.actor_stopped.set()
    assert quick.ask_at_once("x") is LATER
    assert actor.log == []


def test_neither_the_hub_nor_another_thread_gets_a_reply_at_once(quick: Any) -> None:
    in_hub: list[object] = []
    gevent.get_hub().loop.run_callback(lambda: in_hub.append(quick.ask_at_once("x")))
    let_run()

    def intrude() -> tuple[object, object]:
        reply = quick.ask_at_once("x")
        with pytest.raises(WrongThread):
            quick.ask("x")
        return reply, get_hub_if_exists()

    pool = ThreadPool(1)
    try:
        in_thread = pool.apply(intrude)
    finally:
        pool.kill()
    assert in_hub == [LATER]
    assert in_thread == (LATER, None)  # and no hub is left there
    assert actor_of(quick).log == []


def test_the_pool_has_its_worker_back(quick: Any) -> None:
    release_idle_workers()
    for _ in range(3):
        quick.ask_at_once("x")
    assert release_idle_workers() == 1


# -- the registry ----------------------------------------------------------------------------------------


@contextmanager
def ready(**limits: Any) -> Iterator[Runtime]:
    """A runtime whose registry has opened a chat, and has its timer."""
    with runtime(":memory:", limits=Limits(**limits)) as rt:
        rt.get_or_create(AGENT, "first")
        workers_here().at_once = 0
        yield rt


def test_a_chat_is_opened_and_found_without_a_switch_of_greenlets() -> None:
    with ready() as rt:
        with no_switch():
            opened = rt.get_or_create(AGENT, "second")
            assert rt.get_or_create(AGENT, "second") == opened
        assert rt.send(opened, "hello").text == "hello"


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda rt: rt.get_or_create("nobody", "first"), AgentNotRegistered),
        (lambda rt: rt.get_or_create(AGENT, "third"), MailboxFull),
    ],
)
def test_what_is_refused_is_refused_as_ever(ask: Callable[[Runtime], int], error: type[Exception]) -> None:
    with ready(live_conversations=2) as rt:
        rt.get_or_create(AGENT, "second")
        with pytest.raises(error):
            ask(rt)
        assert rt.conversation_count() == 2


def test_nothing_is_opened_or_found_while_the_conversations_move() -> None:
    with ready() as rt:
        registry = rt._services.registry  # noqa: SLF001 - what is tested
        assert registry is not None
        registry.ask(BeginTransfer(), timeout=LONG)
        for sender in ("first", "second"):
            with pytest.raises(RuntimeClosed, match="transfer"):
                rt.get_or_create(AGENT, sender)
        registry.ask(EndTransfer(()), timeout=LONG)
        assert rt.get_or_create(AGENT, "first") == rt.conversation_id(AGENT, "first")


def test_what_the_registry_was_told_before_comes_before() -> None:
    with ready() as rt:
        registry = rt._services.registry  # noqa: SLF001 - what is tested
        assert registry is not None
        first = rt.conversation_id(AGENT, "first")
        assert first is not None
        closing = gevent.spawn(rt.close, first)
        registry.tell(Sweep())
        gevent.sleep(0)
        assert rt.get_or_create(AGENT, "first") != first
        assert closing.get(timeout=LONG)
