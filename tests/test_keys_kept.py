"""How long an idempotency key stands for its message, and what is left of old ones."""

from __future__ import annotations

import pytest
from support import ManualClock, Runtimes, opened_runtimes, topic
from turns_support import HeldModel

from palaver import InvalidConfig, KeyReused, Limits
from persistence.sources import Sources

__all__ = ["opened_runtimes"]

DAY_S = 86_400.0


def keys(runtimes: Runtimes, rt: object) -> list[str]:
    found = runtimes.sql(rt, "SELECT key FROM keys ORDER BY created_at")  # type: ignore[arg-type]
    return [key for (key,) in found]


def test_a_key_stands_for_its_message_for_a_day(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(sources=Sources(clock=clock))
    cid = topic(rt)
    first = rt.send(cid, "hello", key="k")
    clock.now += DAY_S
    assert rt.send(cid, "hello", key="k").turn_id == first.turn_id
    with pytest.raises(KeyReused):
        rt.send(cid, "other", key="k")
    clock.now += 1
    assert rt.send(cid, "other", key="k").turn_id > first.turn_id


def test_how_long_keys_are_kept_is_a_limit(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(sources=Sources(clock=clock), limits=Limits(keys_kept_s=10))
    cid = topic(rt)
    first = rt.send(cid, "hello", key="k")
    clock.now += 11
    assert rt.send(cid, "hello", key="k").turn_id > first.turn_id
    with pytest.raises(InvalidConfig, match="keys_kept_s"):
        Limits(keys_kept_s=0)


def test_a_key_is_kept_for_as_long_as_its_turn_has_not_ended(runtimes: Runtimes) -> None:
    clock, model = ManualClock(), HeldModel()
    rt = runtimes.open(model, sources=Sources(clock=clock))
    cid = topic(rt)
    ticket = rt.submit(cid, "slow", key="k")
    held = model.next()
    clock.now += 10 * DAY_S
    assert rt.submit(cid, "slow", key="k") is ticket
    held.say("done")
    assert ticket.result().text == "done"


def test_old_keys_are_forgotten_in_passing(runtimes: Runtimes) -> None:
    clock = ManualClock()
    rt = runtimes.open(sources=Sources(clock=clock))
    cid = topic(rt)
    for number in range(6):
        rt.send(cid, "hello", key=f"old {number}")
        clock.now += 1
    clock.now += DAY_S
    for number in range(3):
        rt.send(cid, "hello", key=f"new {number}")
    assert keys(runtimes, rt) == ["new 0", "new 1", "new 2"]


def test_a_key_belongs_to_one_agent_and_sender(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    results = [rt.send(topic(rt, sender=sender), f"I am {sender}", key="k") for sender in ("alice", "bob")]
    assert [result.text for result in results] == ["I am alice", "I am bob"]
