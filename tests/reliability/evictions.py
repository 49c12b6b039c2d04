"""Conversations that are told to leave memory at every step of their life: nothing is lost, and none leaves
that runs, queues, is steered or is read.

Each world has fifty topics, each with a caller of its own, on virtual time, in a seeded order of greenlets.
A saboteur tells all that is live to leave, again and again, at random moments.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gevent
from attrs import define, field

from actors.directory import Directory
from actors.messages import Passivate
from actors.storage import notify
from palaver import AgentConfig, Done, Limits, NoActiveTurn, Passivated, Reply, Runtime, ScriptedModel, Ticket
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from persistence.verify import verify
from reliability.check import Check
from reliability.stage import quiet

AGENT = "crab"
TOPICS = 50  # of one world
ACTS = ("send", "send", "submit", "steer", "stream", "compact", "look", "cancel")
PATIENCE_S = 600.0


@define
class Topic:
    """One conversation: what its caller was told."""

    sender: str
    cid: int = 0
    sent: list[str] = field(factory=list)
    tickets: list[Ticket] = field(factory=list)
    steers: list[Ticket] = field(factory=list)


def run(count: int, seed: int, folder: Path) -> int:
    """Let at least `count` conversations live, fifty to a world; the number of those that did."""
    del folder
    done = left = 0
    with quiet():
        while done < count:
            number = seed * 1_000_000 + done
            order = random.Random(f"order {number}")
            try:
                left += run_virtual(_world, number, rng=order)
            except Exception as error:
                again = f"python tests/reliability --part evictions {count} {seed}"
                raise AssertionError(f"G15: in world {number}: {error!r} (again: {again})") from error
            done += TOPICS
    assert left > done // 2, (
        f"only {left} times a conversation left memory, of {done}: the check shows nothing"
    )
    return done


def _world(number: int) -> int:
    rng = random.Random(f"evictions {number}")
    latency = rng.choice((0.0, 0.001, 0.01))
    worker = InlineWorker(
        ":memory:", schedule=gevent.spawn_later, commit_latency=lambda: latency * rng.random()
    )
    limits = Limits(
        passivate_after_s=rng.choice((0.05, 1.0, 100.0)), live_conversations=rng.choice((1_000, 1_000, 60))
    )
    model = ScriptedModel(lambda request: Reply(_answer(request), delay_s=rng.choice((0.0, 0.01, 0.1))))
    rt = Runtime.open(
        ":memory:", model, worker=worker, limits=limits, sources=seeded_sources(VirtualClock(), number)
    )
    rt.add_agent(AgentConfig(AGENT, auto_title=False))
    watcher, saboteur = gevent.spawn(_watch, rt), gevent.spawn(_sabotage, rt, rng)
    topics = [Topic(f"sender {number}") for number in range(TOPICS)]
    callers = [gevent.spawn(_call, rt, topic, random.Random(f"{number} {topic.sender}")) for topic in topics]
    gevent.joinall(callers, raise_error=True)
    saboteur.kill()
    for topic in topics:
        _check(rt, topic)
    problems = worker.call(verify)
    assert not problems, f"verify: {problems}"
    left = rt.stats().passivations
    rt.shutdown()
    watcher.get()
    return left


def _answer(request: Any) -> str:
    return f"heard {request.messages[-1]['content']}"


def _directory(rt: Runtime) -> Directory:
    return rt._services.directory  # noqa: SLF001 - no public call makes a conversation leave


def _sabotage(rt: Runtime, rng: random.Random) -> None:
    """Tell everybody to leave, at moments of every kind."""
    while True:
        gevent.sleep(rng.choice((0.0, 0.001, 0.005, 0.02, 0.1, 0.2)))
        for state in [*_directory(rt).conversations.values()]:
            if state.ref is not None and rng.random() < 0.3:
                notify(state.ref, Passivate())


def _watch(rt: Runtime) -> None:
    """Nobody leaves in whom something waits or runs, or who is read."""
    directory = _directory(rt)
    for info, event in rt.subscribe():
        if isinstance(event, Passivated):
            assert not directory.watched(info.id), f"{info} left, and somebody reads it"
            assert info.queued == 0, f"{info} left with messages that wait"


def _call(rt: Runtime, topic: Topic, rng: random.Random) -> None:
    topic.cid = rt.switch_topic(AGENT, topic.sender, "work", "what is done").conversation_id
    for number in range(rng.randint(2, 5)):
        _act(rt, topic, rng.choice(ACTS), f"{topic.sender} {number}")
        gevent.sleep(rng.choice((0.0, 0.0, 0.001, 0.03, 0.2)))
        assert rt.get_or_create(AGENT, topic.sender) == topic.cid, "the route of a topic changed"


def _act(rt: Runtime, topic: Topic, what: str, text: str) -> None:
    cid = topic.cid
    if what == "send":
        topic.sent.append(text)
        result = rt.send(cid, text, timeout=PATIENCE_S)
        assert (result.conversation_id, result.text) == (cid, f"heard {text}"), f"{text}: {result}"
    elif what in ("submit", "cancel"):
        topic.sent.append(text)
        topic.tickets.append(rt.submit(cid, text))
        if what == "cancel":
            rt.cancel(cid)
    elif what == "steer":
        try:
            topic.steers.append(rt.steer(cid, f"steer {text}"))
        except NoActiveTurn:
            return
    elif what == "stream":
        topic.sent.append(text)
        events = [*rt.stream(cid, text)]
        assert isinstance(events[-1], Done), f"{text}: {events}"
    elif what == "compact":
        rt.compact(cid)
    else:
        assert rt.conversation(cid) is not None, f"conversation {cid} is not to be found"


def _check(rt: Runtime, topic: Topic) -> None:
    """Every message has its end, and is in the transcript once, in order."""
    for ticket in (*topic.tickets, *topic.steers):
        stop = ticket.result(timeout=PATIENCE_S).stop_reason
        assert stop in ("text_response", "cancelled"), f"{ticket}: {stop}"
    (session,) = rt.sessions(agent=AGENT, sender=topic.sender)
    said = [entry.content for entry in rt.transcript(session.handle) if entry.role == "user"]
    own = [text for text in said if not text.startswith("steer ")]
    assert own == topic.sent, f"{topic.sender} sent {topic.sent}, and {own} is stored"
    steered = [text for text in said if text.startswith("steer ")]
    assert len(steered) == len({*steered}) <= len(topic.steers), f"{steered} is stored"


CHECKS = (
    Check(
        name="evictions",
        guarantees=(15,),
        unit="conversations",
        quick=2_000,
        long=50_000,
        run=run,
    ),
)
