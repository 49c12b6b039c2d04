"""Tools: plain Python functions that the model may call, and the built-in ones for memory.

You should see two tools called at once, a tool that fails (the model reads the error and goes on), an
argument of the wrong type refused before the function is called, and a note that is found again for alice
and not for bob. What a tool raises is logged too: that is the traceback on standard error.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import gevent

from palaver import AgentConfig, Reply, Runtime, ScriptedModel, Tool, ToolContext, ToolResult


def weather(town: str, days: int = 1) -> dict:
    """The weather forecast for a town.

    Args:
        town: Which town.
        days: How many days ahead.
    """
    gevent.sleep(0.02)  # a slow service: other tools and other conversations go on meanwhile
    return {"town": town, "days": days, "forecast": "rain"}


def whoami(call: ToolContext) -> str:
    """Who is asking. The model gives no argument: the runtime fills in `call`."""
    return f"{call.sender}, in conversation {call.conversation_id}"


def open_gate(gate: int) -> str:
    """Open a gate."""
    raise PermissionError(f"gate {gate} is locked")


SCRIPT = [
    Reply(tool_calls=[("weather", {"town": "Ely", "days": 2}), ("whoami", {})]),
    Reply(tool_calls=[("open", {"gate": 7}), ("weather", {"town": "Rye", "days": "two"})]),
    Reply(tool_calls=[("remember", {"name": "umbrella", "content": "It is in the blue bag."})]),
    "Take your umbrella.",
    Reply(tool_calls=[("recall", {"query": "where is the umbrella?"})]),
    "In the blue bag.",
    Reply(tool_calls=[("recall", {"query": "where is the umbrella?"})]),
    "I do not know.",
]

TOOLS = [weather, whoami, Tool(open_gate, name="open")]

with Runtime.open(":memory:", ScriptedModel(SCRIPT), tools=TOOLS) as rt:
    rt.add_agent(AgentConfig(name="guide", tools=["weather", "whoami", "open", "remember", "recall"]))
    for sender, message in (
        ("alice", "What shall I take on my walk?"),
        ("alice", "Where is it?"),
        ("bob", "Where is my umbrella?"),
    ):
        print(f"{sender}: {message}")
        for event in rt.stream(rt.get_or_create("guide", sender), message):
            if isinstance(event, ToolResult):
                print(f"  {event.name}{' failed' if event.is_error else ''} -> {event.output}")
        print(f"  agent: {event.result.text}")  # the last event is Done
    print("notes:", [(note.name, note.content) for note in rt.memory.entries("guide", "alice", kind="note")])
