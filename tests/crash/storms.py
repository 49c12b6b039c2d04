"""Lives that do one thing by the score: the same keys again and again, archives of one slug."""

from __future__ import annotations

import random

import gevent

from crash.calls import Place, compact, enter, send
from crash.life import Life
from crash.mind import message


def send_storm(life: Life) -> None:
    """Send what the order lists: [agent, sender, topic, key, content], each by the next free greenlet."""
    sends = iter(life.order["sends"])
    places: dict[tuple[str, str, str], Place] = {}

    def work() -> None:
        for agent, sender, topic, key, content in sends:
            place = places.get((agent, sender, topic)) or enter(life, agent, sender, topic)
            if place is not None:
                places[agent, sender, topic] = place
                send(life, place, life.next_op(), content, key)

    gevent.joinall([gevent.spawn(work) for _ in range(life.order["senders"])], raise_error=True)


def make_archives(life: Life) -> None:
    """Every conversation says something and compacts, again and again; titles differ, slugs do not."""

    def work(number: int) -> None:
        rng = random.Random(f"{life.order['seed']} {life.name} {number}")
        place = enter(life, "hive", f"sender {number}", f"Plan {'!' * (number % 3)}".strip())
        for _ in range(life.order["acts"]):
            assert place is not None
            if rng.random() < 0.2 or not place.resumed:
                op = life.next_op()
                send(life, place, op, message(op), None)
                place.resumed = True
            compact(life, place)

    greenlets = [gevent.spawn(work, number) for number in range(life.order["senders"])]
    gevent.joinall(greenlets, raise_error=True)
