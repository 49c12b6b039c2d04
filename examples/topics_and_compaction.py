"""Topics, compaction, archives and memory, over two lives of one database file.

You should see that each topic has a history of its own; that compaction shortens what the model is shown and
nothing else; that the archive is found by its words; and that a second Runtime on the file, after the first
has gone, resumes the topic with the summary and what followed, while the transcript is still whole.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import tempfile
from pathlib import Path

from palaver import AgentConfig, DescriptionRequired, Runtime, ScriptedModel

GARDENER = AgentConfig(name="gardener", system_prompt="You help with the garden.")
SUMMARY = "Alice grows broad beans and leeks in two beds; the beans go in first."


def show(title, entries):
    print(f"{title}:")
    for entry in entries:
        print(f"  {entry.role}: {entry.content}")


def first_life(path):
    with Runtime.open(path, ScriptedModel(summaries=[SUMMARY])) as rt:
        rt.add_agent(GARDENER)
        try:
            rt.switch_topic("gardener", "alice", "Vegetable beds")
        except DescriptionRequired as error:
            print("refused:", error)
        beds = rt.switch_topic("gardener", "alice", "Vegetable beds", description="What grows in which bed.")
        rt.send(beds.conversation_id, "Broad beans in the first bed.")
        rt.send(beds.conversation_id, "Leeks in the second.")

        rt.switch_topic("gardener", "alice", "Pond", description="Digging a pond.")
        rt.send(rt.get_or_create("gardener", "alice"), "How deep?")  # goes to the active topic: the pond

        back = rt.switch_topic("gardener", "alice", "Vegetable beds")
        print("the same conversation:", back.conversation_id == beds.conversation_id)
        outcome = rt.compact(back.conversation_id)
        print("archive:", outcome.archive)
        rt.send(back.conversation_id, "And garlic between them.")
        show("what the model is shown", rt.conversation(back.conversation_id).history)
        found = rt.memory.recall("gardener", "alice", "leeks")
        print("recalled:", [(entry.kind, entry.name) for entry in found])
        print("topics on water:", [e.name for e in rt.memory.search_topics("gardener", "alice", "digging")])


def second_life(path):
    with Runtime.open(path, ScriptedModel()) as rt:
        rt.add_agent(GARDENER)
        beds = rt.switch_topic("gardener", "alice", "Vegetable beds")
        print("resumed:", beds.resumed)
        conversation = rt.conversation(beds.conversation_id)
        show("what the model is shown", conversation.history)
        show("the whole transcript", rt.transcript(conversation.handle))


with tempfile.TemporaryDirectory() as folder:
    first_life(Path(folder, "garden.db"))
    print("-- the program has stopped, and starts again")
    second_life(Path(folder, "garden.db"))
