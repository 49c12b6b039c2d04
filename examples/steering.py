"""Steering a running turn, interrupting it, and what happens to a steer that comes too late.

You should see two steers that reach the turn while its tool runs, both, in order, before the model is asked
again; a turn that is cancelled by an urgent message, its finished step kept; and an error that says what to
do where there is no turn to steer. Events give the order here, nothing waits for a clock.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

from gevent.event import Event

from palaver import AgentConfig, NoActiveTurn, Reply, Runtime, ScriptedModel, ToolCallsStart, UserSteered

measured = Event()


def measure(what: str) -> str:
    """Measure something. Takes as long as the user needs to have second thoughts."""
    measured.wait()
    measured.clear()
    return f"the {what} is 42 cm wide"


def wait_for_delivery() -> str:
    """Wait for a delivery that never comes."""
    Event().wait()


SCRIPT = [
    Reply(tool_calls=[("measure", {"what": "shelf"})]),
    "The shelf is 16.5 inches wide; I ordered it in oak.",
    Reply(tool_calls=[("measure", {"what": "door"})]),
    Reply(tool_calls=[("wait_for_delivery", {})]),
    "The wet paint sign is up.",
]

with Runtime.open(":memory:", ScriptedModel(SCRIPT), tools=[measure, wait_for_delivery]) as rt:
    rt.add_agent(AgentConfig(name="joiner"))
    cid = rt.get_or_create("joiner", "alice")

    for event in rt.stream(cid, "Order me a shelf."):
        if isinstance(event, ToolCallsStart):  # the tool runs now: the turn is in the middle
            rt.steer(cid, "In inches, please.")
            rt.steer(cid, "And in oak.")
            measured.set()
        elif isinstance(event, UserSteered):
            print("steered:", event.content)
    print("answer:", event.result.text)

    try:
        rt.steer(cid, "Or rather in beech.")
    except NoActiveTurn as error:
        print("too late:", error)

    slow = rt.submit(cid, "Now the door.")
    for event in slow.events():
        if isinstance(event, ToolCallsStart) and event.calls[0].name == "measure":
            measured.set()
        elif isinstance(event, ToolCallsStart):  # it waits for the delivery
            urgent = rt.send(cid, "Leave it! Put up a wet paint sign.", on_busy="interrupt")
            print("urgent:", urgent.text)
    print("interrupted turn:", slow.result().stop_reason)
    for entry in rt.conversation(cid).history[-7:]:
        print(f"  {entry.role:>9}: {entry.content or [call.name for call in entry.tool_calls]}")
