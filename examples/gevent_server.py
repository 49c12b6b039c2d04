"""A WSGI app on gevent's own server that streams an agent's answers as server-sent events.

You should see two senders being served at once (both are looked up for before either is answered), each get
the answer to its own question, and the server stop by itself.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import json

import gevent
import requests
from gevent.pywsgi import WSGIServer

from palaver import AgentConfig, Done, Reply, Runtime, ScriptedModel, TextDelta, ToolResult


def timetable(town: str) -> str:
    """When the next bus leaves for a town."""
    return f"the bus to {town} leaves at 9:40"


def driver(request):
    """A model without a network: looks up the timetable, then says what it found."""
    last = request.messages[-1]
    if last["role"] == "tool":
        return Reply(f"Certainly: {last['content']}.", delay_s=0.2)
    return Reply(tool_calls=[("timetable", {"town": last["content"]})], delay_s=0.2)


rt = Runtime.open(":memory:", ScriptedModel(driver), tools=[timetable])
rt.add_agent(AgentConfig(name="driver", tools=["timetable"]))


def app(environ, start_response):
    sender = environ["PATH_INFO"].removeprefix("/ask/")
    question = environ["wsgi.input"].read().decode()
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    # If the client goes away, this generator is closed; the turn ends and is kept all the same.
    for event in rt.stream(rt.get_or_create("driver", sender), question):
        if isinstance(event, ToolResult):
            yield sse("looked up", event.output)
        elif isinstance(event, TextDelta):
            yield sse("text", event.text)
        elif isinstance(event, Done):
            yield sse("done", event.result.stop_reason)


def sse(kind, value):
    return f"data: {json.dumps([kind, value])}\n\n".encode()


def client(port, sender, town):
    with requests.post(f"http://127.0.0.1:{port}/ask/{sender}", data=town, stream=True, timeout=10) as answer:
        for line in filter(None, answer.iter_lines()):
            kind, value = json.loads(line.removeprefix(b"data: "))
            print(f"{sender:>5} {kind}: {value}")


with rt:
    server = WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    clients = [gevent.spawn(client, server.server_port, *who) for who in (("alice", "Ely"), ("bob", "Rye"))]
    gevent.joinall(clients, raise_error=True)
    server.stop()
print("stopped")
