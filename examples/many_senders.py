"""A thousand senders talk to one agent at once, each in a topic of its own, stored in a real file.

You should see that all 5,000 turns were answered, in what time, and that the database committed far fewer
times than that: turns that end together share one commit.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import sys
import tempfile
import time
from pathlib import Path

import gevent

from palaver import AgentConfig, Runtime, ScriptedModel

SENDERS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
TURNS = 5


def talk(rt, number):
    """One sender: a topic, and turns in a closed loop. Returns how many were answered as expected."""
    sender = f"sender-{number}"
    topic = rt.switch_topic("echo", sender, "small talk", description="Whatever comes to mind.")
    answered = 0
    for turn in range(TURNS):
        words = f"{sender} says number {turn}"
        result = rt.send(topic.conversation_id, words)  # returns when the turn is committed
        answered += result.text == words
    return answered


# Without a script the model echoes; with keep_requests=0 it does not remember what it was asked.
model = ScriptedModel(keep_requests=0)
with tempfile.TemporaryDirectory() as folder, Runtime.open(Path(folder, "many.db"), model) as rt:
    rt.add_agent(AgentConfig(name="echo"))
    began = time.perf_counter()
    senders = [gevent.spawn(talk, rt, number) for number in range(SENDERS)]
    answered = sum(greenlet.get() for greenlet in senders)
    seconds = time.perf_counter() - began
    stats = rt.stats()

rate = answered / seconds
print(f"{SENDERS:,} senders, {answered:,} turns answered in {seconds:.1f} s: {rate:,.0f} turns/s")
print(f"{stats.commits:,} commits, up to {stats.largest_batch:,} jobs in one")
