"""A conversation whose actor dies is started again from what is stored, and whoever waits gets an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from test_passivation import heard, rest, topic, virtually
from turns_support import AGENT, deadline, services, stored_states

from actors.conversation import ConversationActor
from actors.messages import (
    ClosedTurnsStored,
    HistoryCompacted,
    SessionReady,
    Steer,
    SteerJournalled,
    StepStored,
    Submit,
    TurnEnded,
    TurnJournalled,
    TurnStored,
)
from actors.registry_lives import PARKED_S
from palaver import (
    ActorParked,
    ActorRestarted,
    AgentConfig,
    ConversationParked,
    HandlerFailed,
    Limits,
    NoActiveTurn,
    Reply,
    Runtime,
    RuntimeClosed,
    ScriptedModel,
    Ticket,
    TurnResult,
)

BUG = RuntimeError("a planted bug")


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


class Bug:
    """Makes conversations die of messages of one class, so many times: before or (`late`) after they are
    handled."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kind: type,
        times: int,
        late: bool = False,
        error: BaseException = BUG,
    ) -> None:
        self.left = times
        self.deaths = 0
        self.content: str | None = None  # only of messages that are about this content
        handle = ConversationActor.on_receive

        def receive(actor: Any, message: Any) -> Any:
            if not isinstance(message, kind) or not self.left or not self._is_about(message):
                return handle(actor, message)
            self.left -= 1
            self.deaths += 1
            if late:
                handle(actor, message)
            actor._handled = message  # noqa: SLF001 - as the real on_receive has it
            raise error

        monkeypatch.setattr(ConversationActor, "on_receive", receive)

    def _is_about(self, message: Any) -> bool:
        if self.content is None:
            return True
        ticket = getattr(message, "ticket", None)
        if isinstance(message, TurnEnded):
            ticket = message.turn.ticket
        if isinstance(message, TurnStored):
            ticket = message.ended.turn.ticket
        return ticket is not None and ticket.content == self.content


def model() -> ScriptedModel:
    """Calls a tool when it is told to work, and echoes everything else."""

    def answer(request: Any) -> Reply:
        last = request.messages[-1]
        if last["role"] == "user" and last["content"].startswith("work"):
            return Reply(tool_calls=[("look", {})], delay_s=0.01)
        said = [m["content"] for m in request.messages if m["role"] == "user"]
        return Reply(f"heard {said[-1]}", delay_s=0.01)

    return ScriptedModel(answer)


def look() -> str:
    """Look around."""
    gevent.sleep(0.01)
    return "all is well"


PLAIN = AgentConfig(AGENT, auto_title=False)


def run(body: Any, **options: Any) -> None:
    virtually(body, model(), tools=[look], agent=PLAIN, **options)


# -- dying once ----------------------------------------------------------------------------------------

DEATHS = [
    (kind, late)
    for kind in (Submit, TurnJournalled, StepStored, TurnEnded, TurnStored, Steer, SteerJournalled)
    for late in (False, True)
]


@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize(("kind", "late"), DEATHS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("durable", [True, False], ids=["topic", "chat"])
def test_a_death_at_any_message_changes_no_result(
    monkeypatch: pytest.MonkeyPatch, kind: type, late: bool, durable: bool, order: int | None
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt) if durable else rt.get_or_create(AGENT, "alice")
        other = topic(rt, "other", "bob")
        rt.send(cid, "before")
        bug = Bug(monkeypatch, kind, 1, late)
        tickets = [rt.submit(cid, text) for text in ("work", "two", "three")]
        steer = None
        with contextlib.suppress(HandlerFailed, NoActiveTurn):  # where the steer, or its turn, met the death
            steer = rt.steer(cid, "steered")
        assert rt.send(other, "hello").text == "heard hello"
        ends = [ticket.result(timeout=60) for ticket in tickets]
        assert [end.text for end in ends] in (
            ["heard work", "heard two", "heard three"],
            ["heard steered", "heard two", "heard three"],
        )
        if steer is not None:
            assert steer.result(timeout=60).stop_reason == "text_response"
        assert rt.send(cid, "after").text == "heard after"
        if bug.deaths:
            assert services(rt).incidents.counts["ActorRestarted"] == bug.deaths
        shown = rt.conversation(cid)
        assert shown is not None
        said = [entry.content for entry in shown.history if entry.role == "user"]
        wanted = ["before", "work", "steered", "two", "three", "after"]
        assert [text for text in wanted if text in said] == said
        if durable:
            assert {*stored_states(rt).values()} == {"done"}

    run(body, order=order)


def test_what_waited_for_an_opening_that_dies_is_answered() -> None:
    """Its id is known while it opens, to whoever asks for the pair; there is no next life."""

    def body(rt: Runtime) -> None:
        opening = gevent.spawn(topic, rt)
        gevent.sleep(0.5)
        cid = rt.get_or_create(AGENT, "alice")
        waiting = [opening, gevent.spawn(rt.submit, cid, "hello")]
        gevent.sleep(0)
        services(rt).directory.conversations[cid].ref.tell(object())
        gevent.joinall(waiting, timeout=60)
        assert [type(greenlet.exception) for greenlet in waiting] == [HandlerFailed, HandlerFailed]
        assert rt.conversations() == []
        assert rt.send(topic(rt), "again").text == "heard again"

    run(body, latency=lambda: 1.0)


@pytest.mark.parametrize(
    "error", [gevent.GreenletExit(), gevent.Timeout(), KeyboardInterrupt(), SystemExit(1)]
)
def test_what_is_no_exception_is_a_death_like_any_other(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        Bug(monkeypatch, TurnEnded, 1, error=error)
        assert rt.send(cid, "work").text == "heard work"
        assert services(rt).incidents.counts["ActorRestarted"] == 1

    run(body)


def test_idempotency_keys_hold_through_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        Bug(monkeypatch, TurnJournalled, 1)
        tickets: list[Any] = []

        def submit() -> None:
            tickets.append(rt.submit(cid, "pay", key="bill"))

        gevent.joinall([gevent.spawn(submit) for _ in range(3)], raise_error=True)
        assert len({ticket.result(timeout=60).turn_id for ticket in tickets}) == 1
        assert list(stored_states(rt).values()) == ["done"]

    run(body)


def test_a_dead_compaction_is_told_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        rt.send(cid, "one")
        Bug(monkeypatch, HistoryCompacted, 1)
        with pytest.raises(HandlerFailed):
            rt.compact(cid)
        rest(1)
        assert rt.compact(cid).archive is not None
        assert rt.send(cid, "two").text == "heard two"

    run(body)


# -- dying again and again -----------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False], ids=["topic", "chat"])
def test_a_message_that_kills_its_conversation_each_time_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt) if durable else rt.get_or_create(AGENT, "alice")
        bug = Bug(monkeypatch, TurnEnded, 1_000)
        bug.content = "poison"
        poison, fine = rt.submit(cid, "poison"), rt.submit(cid, "fine")
        end = poison.result(timeout=60)
        assert (end.stop_reason, "given up" in str(end.error)) == ("error", True)
        assert fine.result(timeout=60).text == "heard fine"
        assert bug.deaths == 3
        if durable:
            assert [*stored_states(rt).values()] == ["failed", "done"]

    run(body)


def test_a_message_that_kills_before_it_is_accepted_is_refused_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        bug = Bug(monkeypatch, Submit, 1_000)
        bug.content = "poison"
        with pytest.raises(HandlerFailed):
            rt.submit(cid, "poison")
        assert bug.deaths == 3
        assert rt.send(cid, "fine").text == "heard fine"
        assert [*stored_states(rt).values()] == ["done"]

    run(body)


def parked(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Ticket, Bug]:
    cid = topic(rt)
    rt.send(cid, "before")
    Bug(monkeypatch, TurnEnded, 1)
    bug = Bug(monkeypatch, SessionReady, 1_000)
    ticket = rt.submit(cid, "waits")
    with pytest.raises(ConversationParked, match="planted bug"):
        ticket.result(timeout=60)
    return cid, ticket, bug


def test_one_that_keeps_dying_is_parked_with_its_error_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        incidents = heard(rt)
        clock = services(rt).clock
        began, other = clock.monotonic(), topic(rt, "other")
        cid, _, bug = parked(rt, monkeypatch)
        assert bug.deaths == 3  # the first death was another; three restarts
        assert clock.monotonic() - began < 5
        shown = rt.conversation(cid)
        assert shown is not None
        assert (shown.state, "planted bug" in str(shown.error)) == ("parked", True)
        with pytest.raises(ConversationParked):
            rt.send(cid, "are you there?")
        assert rt.get_or_create(AGENT, "alice") == cid
        assert rt.send(other, "hello").text == "heard hello"
        told = [event for who, event in incidents if who == cid]
        assert [type(event) for event in told] == [ActorRestarted] * 3 + [ActorParked]
        delays = [event.delay_s for event in told if isinstance(event, ActorRestarted)]
        assert delays == sorted(delays)
        assert delays[0] < delays[-1]
        bug.left = 0
        assert rt.unpark(cid) is True
        assert rt.unpark(cid) is False
        assert rt.send(cid, "after").text == "heard after"
        assert {*stored_states(rt).values()} == {"done"}  # what waited has run first

    run(body)


def test_a_parked_conversation_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid, _, bug = parked(rt, monkeypatch)
        bug.left = 0
        rest(PARKED_S + 10)
        assert {*stored_states(rt).values()} == {"done"}
        assert rt.send(cid, "after").text == "heard after"

    run(body, limits=Limits())


def test_a_parked_conversation_can_be_closed_and_its_topic_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(rt: Runtime) -> None:
        cid, _, bug = parked(rt, monkeypatch)
        bug.left = 0
        assert rt.close(cid) is True
        assert rt.close(cid) is False
        again = topic(rt)
        assert again != cid
        assert rt.send(again, "after").text == "heard after"

    run(body)


# -- dying while others want something of it -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_close_that_meets_a_death_closes_all_the_same(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        tickets = [rt.submit(cid, "work"), rt.submit(cid, "two")]
        Bug(monkeypatch, ClosedTurnsStored, 1)
        assert rt.close(cid, mode=mode) is True
        ends = [ticket.result(timeout=60).stop_reason for ticket in tickets]
        assert ends[1] == "closed"
        assert rt.conversation_count() == 0
        assert not {"queued", "running"} & {*stored_states(rt).values()}

    run(body)


def test_a_shutdown_that_meets_a_death_answers_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        Bug(monkeypatch, TurnEnded, 1)
        ticket = rt.submit(cid, "hello")
        waiting = gevent.spawn(lambda: _error_of(ticket))
        gevent.sleep(0.02)  # virtual: the model has answered, the conversation is dead
        rt.shutdown()
        assert isinstance(waiting.get(), RuntimeClosed)

    run(body, checked=False)


def _error_of(ticket: Ticket) -> TurnResult | BaseException:
    try:
        return ticket.result(timeout=60)
    except Exception as error:
        return error


def test_a_deletion_that_meets_a_death_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(rt: Runtime) -> None:
        cid = topic(rt)
        ticket = rt.submit(cid, "work")
        handle = rt.sessions()[0].handle
        Bug(monkeypatch, TurnEnded, 1)
        assert rt.delete_session(handle) is True
        assert isinstance(_error_of(ticket), TurnResult | Exception)
        assert rt.sessions() == []
        assert rt.conversation_count() == 0

    run(body)
