"""A host as its users run it: in a process, talked to from terminals, killed, started again, told to stop."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.queue import Queue
from host_support import short_folder
from support import Runtimes, opened_runtimes
from terminal import Child, children_without_monitor

from palaver import Done, HostClient, HostUnreachable, Place, RuntimeClosed, TextDelta

__all__ = ["children_without_monitor", "opened_runtimes", "short_folder"]

PATIENCE_S = 60  # a machine that is busy with other things takes a while to start a few processes

CONFIG = """\
database = "agents.db"
socket = "host.sock"

[models.puppet]
kind = "puppet_of_the_test:Puppet"
options = { path = "strings.sock" }

[agents.clerk]
auto_title = false
"""

MODEL = '''
import gc, json, os, socket
from palaver import Chunk


class Puppet:
    """Says what somebody at the other end of a socket says."""

    def __init__(self, path):
        self.path = os.path.join(os.path.dirname(__file__), path)

    def stream(self, request):
        if request.messages[-1]["content"] == "how is the collector?":
            told = [gc.get_threshold(), gc.get_freeze_count() > 10_000]
            yield Chunk(json.dumps(told), finish_reason="stop")
            return
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            texts = [message["content"] for message in request.messages]
            sock.sendall(json.dumps(texts).encode() + b"\\n")
            for line in sock.makefile():
                yield Chunk(json.loads(line))
        yield Chunk(finish_reason="stop")
'''

BOATS = Place("clerk", "alice", "boats", "what floats")


class Asked:
    """A request of the host's model, which waits for its answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        with sock.makefile() as lines:
            self.texts: list[str] = json.loads(lines.readline())

    def say(self, text: str) -> None:
        self._sock.sendall(json.dumps(text).encode() + b"\n")

    def answer(self, text: str) -> None:
        self.say(text)
        self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()


class Stage:
    """A folder with a configuration, the strings of its model, and what was started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "host.toml").write_text(CONFIG)
        (folder / "puppet_of_the_test.py").write_text(MODEL)
        self._strings = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._strings.bind(str(folder / "strings.sock"))
        self._strings.listen(16)
        self._asked = Queue()
        self._reading = gevent.spawn(self._read)
        self._children: list[Child] = []

    def _read(self) -> None:
        while True:
            sock, _ = self._strings.accept()
            self._asked.put(Asked(sock))

    def asked(self) -> Asked:
        found: Asked = self._asked.get()
        return found

    def host(self, *options: object, serving: bool = True) -> Child:
        """A host that has begun to serve."""
        child = self._start("host", self.folder / "host.toml", *options)
        if serving:
            child.expect("serving")
        return child

    def chat(self, sender: str) -> Child:
        """A terminal with a prompt."""
        child = self._start("chat", "--host", self.folder / "host.sock", "--sender", sender)
        child.expect(f"{sender}> ")
        return child

    def client(self) -> HostClient:
        return HostClient(self.folder / "host.sock")

    def _start(self, *arguments: object) -> Child:
        self._children.append(child := Child(*arguments))
        return child

    def close(self) -> None:
        self._reading.kill()
        self._strings.close()
        for child in self._children:
            child.end()


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    with gevent.Timeout(PATIENCE_S):
        stage = Stage(folder)
        yield stage
        stage.close()


def test_two_terminals_a_kill_a_start_and_the_conversation_goes_on(stage: Stage) -> None:
    host, alice, bob = stage.host(), stage.chat("alice"), stage.chat("bob")
    alice.type("/topic boats: what floats\n")
    alice.expect("new topic 'boats'")
    alice.expect("alice (boats)> ")
    alice.type("first\n")
    bob.type("hello\n")
    by_text = {asked.texts[-1]: asked for asked in (stage.asked(), stage.asked())}
    by_text["first"].say("half of it, ")
    alice.expect("half of it, ")
    by_text["hello"].answer("good day")
    bob.expect("good day")
    by_text["first"].answer("and all")
    alice.expect("and all")
    alice.expect("alice (boats)> ")
    alice.type("second\n")
    assert stage.asked().texts == ["first", "half of it, and all", "second"]
    waiting = stage.client().submit(BOATS, "third", key="k")
    assert waiting.state == "queued"
    host.signal(signal.SIGKILL)
    assert host.finish()[0] == -signal.SIGKILL
    alice.expect("error: the connection to the host")
    alice.expect("[no host]> ")

    host = stage.host()  # the socket of the dead one is still there
    for question, answer in (("second", "two"), ("third", "three")):
        asked = stage.asked()
        assert asked.texts[-1] == question
        asked.answer(answer)
    again = stage.client().send(BOATS, "third", key="k")
    assert (again.text, again.turn_id) == ("three", waiting.turn_id)
    alice.type("fourth\n")
    asked = stage.asked()
    assert asked.texts == [
        *("first", "half of it, and all", "second", "two", "third", "three", "fourth"),
    ]
    asked.answer("four")
    alice.expect("four")
    alice.expect("alice (boats)> ")
    alice.type("/list\n")
    alice.expect("idle          8")
    bob.type("who is there?\n")
    stage.asked().answer("the same, I hope")
    bob.expect("the same, I hope")
    for terminal in (alice, bob):
        terminal.type("/quit\n")
        assert terminal.finish()[0] == 0
    host.signal(signal.SIGTERM)
    assert host.finish()[0] == 0


def test_the_collector_of_a_host_looks_seldom_and_not_at_what_was_there_before_its_clients(
    stage: Stage,
) -> None:
    stage.host()
    told = stage.client().send(BOATS, "how is the collector?").text
    assert json.loads(told) == [[2_500, 1, 15_000], True]


def test_sigterm_drains_a_long_answer_and_the_next_host_takes_over(stage: Stage) -> None:
    host = stage.host()
    client = stage.client()
    events = client.stream(BOATS, "a long story")
    asked = stage.asked()
    queued = client.submit(BOATS, "and then?")
    waiting = gevent.spawn(queued.result)
    asked.say("once upon a time")
    refused = stage.host(serving=False)
    status, words = refused.finish()
    assert status == 1
    assert "agents.db' is in use by process" in words
    following = stage.host("--wait-for-database", "60", serving=False)
    host.signal(signal.SIGTERM)
    host.expect("stopping")
    with pytest.raises(RuntimeClosed, match="the host is stopping"):
        client.send(BOATS, "more")
    assert client.health()["ready"].ok is False
    asked.answer(", the end")
    stage.asked().answer("nothing more")
    read = [*events]
    assert (
        "".join(event.text for event in read if isinstance(event, TextDelta)) == "once upon a time, the end"
    )
    assert isinstance(read[-1], Done)
    assert waiting.get().text == "nothing more"
    assert host.finish()[0] == 0
    following.expect("serving")
    assert [turn.state for turn in _turns(client)] == ["done", "done"]
    following.signal(signal.SIGINT)
    assert following.finish()[0] == 0
    assert not (stage.folder / "host.sock").exists()
    with pytest.raises(HostUnreachable):
        client.stats()


def test_a_second_signal_cancels_what_runs_and_keeps_what_waits(stage: Stage, runtimes: Runtimes) -> None:
    host = stage.host("--drain", "1000")
    client = stage.client()
    running = client.submit(BOATS, "a story without an end")
    stage.asked().say("once")
    queued = client.submit(BOATS, "and then?")
    ending = gevent.spawn(running.result)
    host.signal(signal.SIGTERM)
    host.expect("stopping: drain_s=1000.0")
    host.signal(signal.SIGTERM)
    assert host.finish()[0] == 0
    assert ending.get().stop_reason == "cancelled"
    rt = runtimes.open(path=stage.folder / "agents.db", recover="hold")
    (session,) = rt.sessions()
    states = {turn.id: turn.state for turn in rt.turns(session.handle)}
    assert states == {running.turn_id: "cancelled", queued.turn_id: "queued"}


def _turns(client: HostClient) -> list[object]:
    (session,) = client.sessions()
    return [*client.turns(session.handle)]
