"""The whole runtime on virtual time: random workloads by seed, the invariants that hold in all, and waits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gevent
import pytest
from gevent.event import Event as Signal
from turns_support import (
    AGENT,
    assert_at_rest,
    assert_memory_is_disk,
    deadline,
    kinds,
    race,
    said,
    stored_states,
)

from palaver import (
    AgentConfig,
    CompactionFailed,
    ConversationClosed,
    ConversationNotFound,
    DescriptionRequired,
    Done,
    Limits,
    ModelRequest,
    NoActiveTurn,
    Reply,
    ResultTimeout,
    Runtime,
    ScriptedModel,
    Ticket,
    TurnResult,
    looking,
)
from palaver.simulation.loop import VirtualClock, current_loop, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources

T = TypeVar("T")
HOUR = 3_600.0
PATIENT = Limits(model_round_s=24 * HOUR, tool_call_s=24 * HOUR, turn_s=240 * HOUR)
SEEDS = range(65, 95)  # 65 and 90 once stored a tool call without its result


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


def schedule(seconds: float, function: Callable[[], None]) -> None:
    gevent.spawn_later(seconds, function)


def on_virtual_time(
    body: Callable[[Runtime], T],
    model: Any = None,
    *agents: AgentConfig,
    seed: int = 0,
    order: int | None = None,
    commit_latency: Callable[[], float] = lambda: 0.0,
    **options: Any,
) -> T:
    """Run `body(rt)` in a simulation with an in-memory database; the runtime must be at rest at its end.

    `seed` is for ids and random numbers of the runtime, `order` for the order of runnable callbacks.
    """

    def run() -> T:
        worker = InlineWorker(":memory:", schedule=schedule, commit_latency=commit_latency)
        sources = seeded_sources(VirtualClock(), seed)
        settings = {"limits": PATIENT, **options}
        rt = Runtime.open(":memory:", model or ScriptedModel(), sources=sources, worker=worker, **settings)
        for agent in agents or (AgentConfig(name=AGENT),):
            rt.add_agent(agent)
        value = body(rt)
        assert_at_rest(rt)
        assert_memory_is_disk(rt)
        rt.shutdown()
        return value

    return run_virtual(run, rng=None if order is None else random.Random(order))


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)


def conversation(rt: Runtime) -> int:
    return rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id


@pytest.mark.parametrize("order", [None, 1])
def test_a_long_listing_takes_no_virtual_time(order: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LISTING_BURST", 5)

    def body(rt: Runtime) -> None:
        ids = [rt.get_or_create(AGENT, f"sender {n}") for n in range(50)]
        waiting = gevent.spawn(wait, 1e-9)
        assert [info.id for info in rt.list_active()] == ids
        assert current_loop().now() == 0.0
        waiting.join()

    on_virtual_time(body, order=order)


# -- a random workload ---------------------------------------------------------------------------------


class Watcher:
    """A scripted model and tool with random delays; they note what must never happen."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"model {seed}")
        self.at_work: dict[int, tuple[int, int]] = {}  # conversation -> (turn, calls under way)
        self.closed: dict[int, bool] = {}
        self.wrong: list[str] = []
        self.model = ScriptedModel(self._answer, keep_requests=0, sleep=wait)

    def _answer(self, request: ModelRequest) -> Reply | Exception:
        self.note(request.conversation_id, request.turn_id)
        self._check_answered(request)
        last = request.messages[-1]
        chance = self._rng.random()
        delay = self._rng.choice((0.0, 0.0, 0.5, 2.0, 30.0))
        if chance < 0.05:
            return ValueError("the endpoint is ill")
        if chance < 0.35 and last["role"] == "user":
            calls = [("work", {"seconds": self._rng.choice((0.0, 1.0, 5.0))}) for _ in range(2)]
            return Reply("", tool_calls=calls, delay_s=delay)
        text = next(m["content"] for m in reversed(request.messages) if m["role"] == "user")
        return Reply(f"re: {text[:40]} #{request.turn_id}", delay_s=delay)

    def _check_answered(self, request: ModelRequest) -> None:
        """Every tool call that the model is shown has its result right behind it."""
        for place, message in enumerate(request.messages):
            asked = [call["id"] for call in message.get("tool_calls", ())]
            told = [m.get("tool_call_id") for m in request.messages[place + 1 : place + 1 + len(asked)]]
            if asked != told:
                self.wrong.append(f"turn {request.turn_id} was shown calls {asked} answered by {told}")

    def note(self, cid: int, turn_id: int) -> None:
        turn, calls = self.at_work.get(cid, (turn_id, 0))
        if calls and turn != turn_id:
            self.wrong.append(f"turns {turn} and {turn_id} of conversation {cid} run at once")
        if cid in self.closed:
            self.wrong.append(f"turn {turn_id} asked its model after conversation {cid} was closed")

    def work(self, seconds: float, call: Any) -> str:
        """Take some time."""
        cid, turn_id = call.conversation_id, call.turn_id
        self.note(cid, turn_id)
        self.at_work[cid] = (turn_id, self.at_work.get(cid, (0, 0))[1] + 1)
        try:
            wait(seconds)
        finally:
            self.at_work[cid] = (turn_id, self.at_work[cid][1] - 1)
        return "worked"


EXPECTED = (
    ConversationClosed,
    ConversationNotFound,
    NoActiveTurn,
    DescriptionRequired,
    CompactionFailed,
)


class Client:
    """One caller: it does random things, one after the other, and keeps every ticket that it got."""

    def __init__(self, rt: Runtime, watcher: Watcher, name: str, rng: random.Random) -> None:
        self._rt = rt
        self._watcher = watcher
        self._rng = rng
        self.name = name
        self.sender = rng.choice(("alice", "bob"))
        self.tickets: dict[str, Ticket] = {}
        self.plain: list[str] = []
        self._cid = 0

    def run(self, steps: int) -> None:
        self._switch("first")
        for number in range(steps):
            wait(self._rng.choice((0.0, 0.0, 0.1, 1.0, 7.0)))
            try:
                self._step(f"{self.name}.{number}")
            except EXPECTED:
                self._switch(f"after {number}")

    def _switch(self, _why: str) -> None:
        title = self._rng.choice(("auth", "billing", None))
        try:
            if title is None:
                self._cid = self._rt.get_or_create(AGENT, self.sender)
            else:
                self._cid = self._rt.switch_topic(AGENT, self.sender, title, "d").conversation_id
        except ConversationClosed:  # it was closed while it opened
            self._cid = self._rt.get_or_create(AGENT, self.sender)

    def _step(self, content: str) -> None:
        rt, chance = self._rt, self._rng.random()
        if chance < 0.4:
            self.plain.append(content)
            self.tickets[content] = rt.submit(self._cid, content)
        elif chance < 0.5:
            self.tickets[content] = rt.submit(self._cid, content, on_busy="interrupt")
        elif chance < 0.6:
            self.tickets[content] = rt.submit(self._cid, content, on_busy="steer")
        elif chance < 0.7:
            self.tickets[content] = rt.steer(self._cid, content)
        elif chance < 0.76:
            rt.cancel(self._cid)
        elif chance < 0.82 and self.tickets:
            self._rng.choice([*self.tickets.values()]).cancel()
        elif chance < 0.88:
            rt.compact(self._cid)
        elif chance < 0.92:
            cid = self._cid
            rt.close(cid, mode=self._rng.choice(("drain", "now")))
            self._watcher.closed[cid] = True
            self._switch("closed")
        else:
            self._switch("wish")


class Run:
    """One simulated workload, and everything that was seen of it."""

    def __init__(self, seed: int, order: int | None) -> None:
        self.trace: list[tuple[float, int, str]] = []
        self.answers: dict[int, list[str]] = {}
        self.results: dict[str, TurnResult] = {}
        self.states: dict[str, str] = {}
        self._seed = seed
        self._watcher = watcher = Watcher(seed)
        latency = random.Random(f"disk {seed}")
        on_virtual_time(
            self._body,
            watcher.model,
            AgentConfig(name=AGENT, compact_threshold=400),
            seed=seed,
            order=order,
            tools=[watcher.work],
            commit_latency=lambda: latency.choice((0.0, 0.001, 0.02, 0.5)),
        )

    def _body(self, rt: Runtime) -> None:
        events = rt.subscribe()
        listening = gevent.spawn(self._listen, events)
        rng = random.Random(f"work {self._seed}")
        clients = [Client(rt, self._watcher, f"c{n}", random.Random(rng.getrandbits(64))) for n in range(5)]
        failures = [o for o in race([lambda c=client: c.run(14) for client in clients]) if o is not None]
        assert failures == []
        for client in clients:
            for content, ticket in client.tickets.items():
                self.results[content] = ticket.result(timeout=2 * HOUR)
                self.states[content] = ticket.state
        events.end()
        listening.join()
        self._check(rt, clients)

    def _listen(self, events: Any) -> None:
        loop = current_loop()
        for info, event in events:
            word = type(event).__name__
            if isinstance(event, Done):
                word = f"{event.result.turn_id} {event.result.stop_reason} {event.result.text}"
                if event.result.stop_reason == "text_response":
                    self.answers.setdefault(info.id, []).append(event.result.text)
            self.trace.append((loop.now(), info.id, word))

    def _check(self, rt: Runtime, clients: list[Client]) -> None:
        assert self._watcher.wrong == []
        stops = {"done": "text_response", "failed": "error", "cancelled": "cancelled", "closed": "closed"}
        for content, result in self.results.items():
            assert stops[self.states[content]] == result.stop_reason, content
        stored = stored_states(rt)
        assert set(stored.values()) <= set(stops), "an accepted turn has no end on disk"
        for content, result in self.results.items():
            assert stored.get(result.turn_id, self.states[content]) == self.states[content]
        for session in rt.sessions():
            transcript = rt.transcript(session.handle)
            users = said(transcript)
            assert len(users) == len(set(users)), "a message entered the transcript twice"
            for client in clients:
                mine = [text for text in users if text in client.plain]
                assert mine == [text for text in client.plain if text in mine], "not first in, first out"
            self._check_answers(transcript)

    def _check_answers(self, transcript: list[Any]) -> None:
        """The stored answers are the results of the session's lives, in the order they were given."""
        answers = [
            entry.content for entry in transcript if entry.role == "assistant" and not entry.tool_calls
        ]
        told = [answer for _, given in sorted(self.answers.items()) for answer in given if answer in answers]
        assert answers == told


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in (1, 2):
        traces = [Run(seed, order=seed).trace for _ in range(2)]
        assert traces[0] == traces[1]
        assert len(traces[0]) > 100


def test_another_order_of_the_same_workload_is_another_trace() -> None:
    traces = {tuple(Run(3, order=order).trace) for order in range(5)}
    assert len(traces) == 5


@pytest.mark.parametrize("seeds", [SEEDS[at : at + 10] for at in range(0, 30, 10)], ids=str)
def test_the_invariants_hold_whatever_the_seed(seeds: range) -> None:
    ended: dict[str, int] = {}
    for seed in seeds:
        run = Run(seed, order=seed if seed % 5 else None)
        for state in run.states.values():
            ended[state] = ended.get(state, 0) + 1
    assert set(ended) == {"done", "failed", "cancelled", "closed"}, "the workload is too tame"
    assert sum(ended.values()) > 20 * len(seeds)


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    code = "\n".join(
        (
            "from gevent import monkey; monkey.patch_all()",
            "import hashlib, test_virtual_runtime",
            "trace = repr(test_virtual_runtime.Run(5, order=5).trace)",
            "print(hashlib.sha256(trace.encode()).hexdigest())",
        )
    )
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parent)))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    digests = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(digests) == 1


# -- time ----------------------------------------------------------------------------------------------


def test_an_hour_of_a_slow_model_costs_no_real_time_and_counts_as_uptime() -> None:
    def body(rt: Runtime) -> None:
        cid, began = conversation(rt), current_loop().now()
        assert rt.send(cid, "hello").text == "slow"
        assert current_loop().now() - began == pytest.approx(HOUR)
        shown = rt.conversation(cid)
        assert shown is not None
        assert shown.uptime_s == pytest.approx(HOUR)
        assert shown.alive_s == pytest.approx(HOUR)
        assert rt.sessions()[0].uptime_s == pytest.approx(HOUR)

    on_virtual_time(body, ScriptedModel([Reply("slow", delay_s=HOUR)], sleep=wait))


def test_a_result_timeout_comes_on_time_and_the_turn_goes_on() -> None:
    def body(rt: Runtime) -> None:
        cid, loop = conversation(rt), current_loop()
        with pytest.raises(ResultTimeout):
            rt.send(cid, "hello", timeout=10)
        assert loop.now() == pytest.approx(10)
        ticket = rt.submit(cid, "next")
        wait(50)
        assert rt.stats().oldest_waiting_s == pytest.approx(50)
        assert rt.stats().running == rt.stats().queued == 1
        assert ticket.result().text == "next"
        assert loop.now() == pytest.approx(2 * HOUR)
        assert said(rt.transcript(rt.sessions()[0].handle), "assistant") == ["hello", "next"]

    model = ScriptedModel(lambda r: Reply(r.messages[-1]["content"], delay_s=HOUR), sleep=wait)
    on_virtual_time(body, model)


def test_two_thousand_senders_wait_side_by_side() -> None:
    def body(rt: Runtime) -> None:
        ids = [rt.get_or_create(AGENT, f"s{number}") for number in range(2_000)]
        results = race([lambda cid=cid: rt.send(cid, "hello") for cid in ids])
        assert kinds(results) == {"text_response": 2_000}
        assert current_loop().now() == pytest.approx(HOUR)

    model = ScriptedModel(lambda _request: Reply("hi", delay_s=HOUR), keep_requests=0, sleep=wait)
    on_virtual_time(body, model)


def test_acceptance_waits_for_the_commit_and_many_share_one() -> None:
    def body(rt: Runtime) -> None:
        cids = [rt.switch_topic(AGENT, f"s{n}", "auth", "d").conversation_id for n in range(20)]
        commits, began = rt.stats().commits, current_loop().now()
        tickets = race([lambda cid=cid: rt.submit(cid, "hello") for cid in cids])
        assert current_loop().now() - began == pytest.approx(0.25)
        assert rt.stats().commits - commits <= 2
        assert kinds(ticket.result() for ticket in tickets) == {"text_response": 20}

    on_virtual_time(body, commit_latency=lambda: 0.25)


def test_a_shutdown_cancels_what_still_runs_when_the_time_is_over() -> None:
    def body() -> None:
        worker = InlineWorker(":memory:", schedule=schedule)
        sources = seeded_sources(VirtualClock(), 1)
        model = ScriptedModel(lambda r: Reply("late", delay_s=float(r.messages[-1]["content"])), sleep=wait)
        rt = Runtime.open(":memory:", model, sources=sources, worker=worker)
        rt.add_agent(AgentConfig(name=AGENT))
        quick = rt.submit(rt.get_or_create(AGENT, "quick"), "5")
        slow = rt.submit(rt.get_or_create(AGENT, "slow"), str(HOUR))
        rt.shutdown(drain=30)
        assert current_loop().now() == pytest.approx(30)
        assert (quick.state, slow.state) == ("done", "cancelled")

    run_virtual(body)


def test_a_tool_that_refuses_to_die_holds_a_cancel_up_for_five_seconds() -> None:
    def immortal() -> str:
        while True:
            try:
                wait(HOUR)
            except gevent.GreenletExit:
                continue
            return "too late"

    def body(rt: Runtime) -> None:
        cid, loop = conversation(rt), current_loop()
        ticket = rt.submit(cid, "go")
        wait(10)
        assert rt.cancel(cid) is True
        assert 10 <= loop.now() <= 16
        assert ticket.result().stop_reason == "cancelled"
        assert rt.send(cid, "next").text == "after"
        wait(2 * HOUR)

    model = ScriptedModel([Reply(tool_calls=[("immortal", {})]), "after"], sleep=wait)
    on_virtual_time(body, model, tools=[immortal])


def test_a_switch_to_a_topic_that_drains_waits_until_it_is_gone() -> None:
    def body(rt: Runtime) -> None:
        cid, loop = conversation(rt), current_loop()
        ticket = rt.submit(cid, "hello")
        closing = gevent.spawn(rt.close, cid)
        wait(10)
        assert rt.conversation(cid).state == "closing"  # type: ignore[union-attr]
        again = rt.switch_topic(AGENT, "alice", "auth")
        assert loop.now() == pytest.approx(HOUR)
        assert (ticket.state, closing.get()) == ("done", True)
        assert again.resumed
        assert again.conversation_id != cid
        assert said(rt.conversation(again.conversation_id).history) == ["hello"]  # type: ignore[union-attr]

    on_virtual_time(body, ScriptedModel([Reply("slow", delay_s=HOUR)], sleep=wait))
