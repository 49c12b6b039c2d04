"""A host that runs until it is told to stop: SIGTERM or SIGINT, a drain, and a resume at the next start.

    python agent_host.py agents.db              # 20 turns, then it stops by itself
    python agent_host.py agents.db --turns 0    # until a signal comes; start it again: it goes on

You should see how many turns the file held at the start, and at the end how many this process answered and
how many the file holds now. Nothing that was answered is missing at the next start.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import argparse
import signal

import gevent
from gevent.event import Event

from palaver import AgentConfig, Reply, Runtime, RuntimeClosed, ScriptedModel

AGENT = "clerk"


def clerk(request):
    """A model without a network: its answer shows how much of the conversation it was given."""
    return Reply(f"noted, as number {sum(m['role'] == 'user' for m in request.messages)}", delay_s=0.01)


def visitor(rt, sender, turns):
    """Stands for the outside world (an HTTP server, a queue): sends messages while they are taken."""
    topic = rt.switch_topic(AGENT, sender, "reports", description="Reports, one after the other.")
    answered = 0
    while turns == 0 or answered < turns:
        try:
            rt.send(topic.conversation_id, f"report of {sender}")
        except RuntimeClosed:  # the host shuts down; what was accepted before has been answered
            break
        answered += 1
    return answered


def stored_turns(rt):
    entries = [entry for session in rt.sessions(agent=AGENT) for entry in rt.transcript(session.handle)]
    return sum(entry.role == "assistant" for entry in entries)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--turns", type=int, default=10, help="turns of each of the two senders; 0: no end")
    options = parser.parse_args()
    stop = Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(signum, stop.set)  # not signal.signal: its handlers may not block
    with Runtime.open(options.path, ScriptedModel(clerk, keep_requests=0)) as rt:
        rt.add_agent(AgentConfig(name=AGENT, compact_threshold=None))
        print(f"{stored_turns(rt)} turns were stored; serving", flush=True)
        visitors = [gevent.spawn(visitor, rt, sender, options.turns) for sender in ("ann", "ben")]
        gevent.spawn(gevent.joinall, visitors).link(lambda _done: stop.set())
        stop.wait()
        rt.shutdown(drain=10)  # refuses new work, lets accepted turns end, commits, closes the file
    answered = sum(greenlet.get() for greenlet in visitors)
    with Runtime.open(options.path, ScriptedModel()) as rt:
        print(f"answered {answered} turns; {stored_turns(rt)} are stored")


main()
