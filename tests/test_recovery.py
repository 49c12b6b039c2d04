"""What a killed process accepted and did not end: it goes on where it was."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from palaver import AgentConfig, ModelRequest, Reply, Runtime, ScriptedModel
from persistence.database import close_database, open_database
from persistence.verify import verify

ROOT = Path(__file__).parent.parent

PRELUDE = """
from gevent import monkey
monkey.patch_all()
import os, sys
import gevent.event
from palaver import AgentConfig, Reply, Runtime, ScriptedModel

inside = gevent.event.Event()

def add(a: int, b: int) -> int:
    return a + b

def hang() -> str:
    inside.set()
    gevent.event.Event().wait(60)
    return "never"

def open_topic(script, **config):
    rt = Runtime.open(sys.argv[1], ScriptedModel(script), tools=[add, hang])
    rt.add_agent(AgentConfig(name="crab", **config))
    return rt, rt.switch_topic("crab", "alice", "topic", "about it").conversation_id
"""


def die_after(path: Path, what: str) -> None:
    """Run `what` in a process of its own, which must end itself by `os._exit(9)`."""
    code = PRELUDE + textwrap.dedent(what)
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr


def check_file(path: Path) -> list[tuple[int, str, int]]:
    """The turns as (id, state, attempts), of a file that must be sound."""
    db = open_database(path, create=False)
    try:
        assert verify(db) == []
        return list(db.execute("SELECT id, state, attempts FROM turns ORDER BY id"))
    finally:
        close_database(db)


def test_a_killed_turn_goes_on_after_its_last_committed_step_and_the_rest_follows_in_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "killed.db"
    die_after(
        path,
        """
        replies = [Reply(tool_calls=[("add", {"a": 1, "b": 2})]), Reply(tool_calls=[("hang", {})])]
        rt, cid = open_topic(replies)
        rt.submit(cid, "first", key="k1")
        inside.wait()
        rt.steer(cid, "steer 1")
        rt.steer(cid, "steer 2")
        rt.submit(cid, "second")
        rt.submit(cid, "third", key="k3")
        os._exit(9)
        """,
    )
    called: list[int] = []

    def add(a: int, b: int) -> int:
        called.append(a)
        return a + b

    model = ScriptedModel(lambda request: f"re {request.messages[-1]['content']}")
    with Runtime.open(path, model, tools=[add]) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        cid = rt.switch_topic("crab", "alice", "topic").conversation_id
        assert rt.send(cid, "third", key="k3").text == "re third"
        assert rt.send(cid, "first", key="k1").text == "re 3"
        snapshot = rt.conversation(cid)
        assert snapshot is not None
        assert [(e.role, e.content) for e in snapshot.history] == [
            ("user", "first"),
            ("assistant", ""),
            ("tool", "3"),
            ("assistant", "re 3"),
            ("user", "steer 1"),
            ("assistant", "re steer 1"),
            ("user", "steer 2"),
            ("assistant", "re steer 2"),
            ("user", "second"),
            ("assistant", "re second"),
            ("user", "third"),
            ("assistant", "re third"),
        ]
        assert called == []  # the committed step's tool is not called again
        assert tuple(rt.transcript(snapshot.handle or "")) == snapshot.history
    turns = check_file(path)
    assert [state for _, state, _ in turns] == ["done"] * 5
    assert turns[0] == (1, "done", 2)  # begun twice


def test_an_answer_that_was_stored_without_its_end_is_not_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "answered.db"
    die_after(
        path,
        """
        class Dying(ScriptedModel):
            def stream(self, request):
                if request.purpose == "compact":
                    os._exit(9)  # after the answer's step, before the turn's end
                return super().stream(request)

        ScriptedModel = Dying
        rt, cid = open_topic(["the answer"], compact_threshold=1)
        rt.send(cid, "a question", key="k")
        """,
    )
    asked: list[ModelRequest] = []

    def script(request: ModelRequest) -> str:
        asked.append(request)
        return "another answer"

    with Runtime.open(path, ScriptedModel(script)) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        cid = rt.switch_topic("crab", "alice", "topic").conversation_id
        result = rt.send(cid, "a question", key="k")
        assert (result.text, result.stop_reason) == ("the answer", "text_response")
        assert asked == []
    assert [state for _, state, _ in check_file(path)] == ["done"]


def test_a_shutdown_without_drain_cancels_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "shut.db"
    die_after(
        path,
        """
        rt, cid = open_topic([Reply(tool_calls=[("hang", {})])])
        running = rt.submit(cid, "running")
        inside.wait()
        rt.submit(cid, "waiting")
        rt.shutdown(drain=0)
        assert running.state == "cancelled", running
        os._exit(9)
        """,
    )
    assert [state for _, state, _ in check_file(path)] == ["cancelled", "queued"]
    with Runtime.open(path, ScriptedModel()) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        handle = rt.sessions()[0].handle
        cid = rt.load(handle)
        assert rt.send(cid, "new").text == "new"  # behind what waited
        said = [entry.content for entry in rt.transcript(handle) if entry.role == "assistant"]
        assert said[-2:] == ["waiting", "new"]
    assert [state for _, state, _ in check_file(path)] == ["cancelled", "done", "done"]


def test_opening_again_and_again_without_time_to_run_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "again.db"
    die_after(
        path,
        """
        rt, cid = open_topic([Reply(tool_calls=[("hang", {})])])
        rt.submit(cid, "one")
        inside.wait()
        rt.submit(cid, "two")
        os._exit(9)
        """,
    )
    die_after(
        path,
        """
        rt, cid = open_topic([Reply(tool_calls=[("hang", {})])])
        inside.wait()
        os._exit(9)
        """,
    )
    with Runtime.open(path, ScriptedModel([Reply("one is done"), Reply("two is done")])) as rt:
        rt.add_agent(AgentConfig(name="crab"))
        cid = rt.switch_topic("crab", "alice", "topic").conversation_id
        rt.compact(cid)  # in the conversation's order: behind both
        entries = rt.transcript(rt.sessions()[0].handle)
    assert [entry.content for entry in entries] == ["one", "one is done", "two", "two is done"]
    assert [(id_, state) for id_, state, _ in check_file(path)] == [(1, "done"), (2, "done")]
