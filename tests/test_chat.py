"""`palaver chat`: answers stream, lines steer, and the prompt goes on or leaves as it should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from click.testing import CliRunner
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from support import PATIENCE_S
from terminal import Child, children_without_monitor, close

from palaver import AgentConfig, ModelRequest, Reply, Runtime, ScriptedModel, Tool
from palaver.commands import palaver
from palaver.commands.lines import read_lines
from palaver.commands.prompt import Prompt
from persistence.errors import StorageError

__all__ = ["children_without_monitor"]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with gevent.Timeout(PATIENCE_S):
        yield


def until(true: Callable[[], bool]) -> None:
    while not true():
        gevent.sleep(0)


class Session:
    """A prompt on a pipe, in a greenlet of its own."""

    def __init__(self, rt: Runtime, *, steers: bool) -> None:
        self._read, self._write = os.pipe()
        self.prompt = Prompt(rt, "crab", "alice", fd=self._read, steers=steers, interactive=False)
        self._running = gevent.spawn(self.prompt.run)

    def type(self, text: str) -> None:
        os.write(self._write, text.encode())

    def end(self) -> None:
        close(self._write)

    def wait(self) -> None:
        self._running.get()
        close(self._read)


@pytest.fixture
def open_runtime() -> Iterator[Callable[..., Runtime]]:
    opened: list[Runtime] = []

    def open_one(model: ScriptedModel, **options: object) -> Runtime:
        rt = Runtime.open(":memory:", model, **options)  # type: ignore[arg-type]
        opened.append(rt)
        rt.add_agent(AgentConfig("crab", auto_title=False))
        return rt

    yield open_one
    for rt in opened:
        rt.shutdown(drain=0)


class Held:
    """A model whose first answer waits until it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = Event(), Event()
        self.model = ScriptedModel(self._answer)

    def _answer(self, request: ModelRequest) -> str:
        if not self.asked.is_set():
            self.asked.set()
            self.go.wait()
        return f"heard {request.messages[-1]['content']}"


def converse(rt: Runtime, lines: str, capsys: pytest.CaptureFixture[str]) -> tuple[Prompt, str, str]:
    session = Session(rt, steers=False)
    session.type(lines)
    session.end()
    session.wait()
    captured = capsys.readouterr()
    return session.prompt, captured.out, captured.err


# -- lines ------------------------------------------------------------------------------------------------


def lines_of(content: bytes) -> list[str]:
    read, write = os.pipe()
    os.write(write, content)
    close(write)
    try:
        return list(read_lines(read))
    finally:
        close(read)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"dos\r\n\nlast without an end", ["dos", "", "last without an end"]),
        ("\u00e9\u4f60".encode() + b"\xff\n", ["\u00e9\u4f60\ufffd"]),
    ],
)
def test_lines_come_without_their_ends(content: bytes, lines: list[str]):
    assert lines_of(content) == lines


def test_a_line_that_comes_in_pieces_is_one_line():
    read, write = os.pipe()
    reading = gevent.spawn(lambda: list(read_lines(read)))
    for piece in (b"a ", b"li", "n\u00e9".encode()[:2], "n\u00e9".encode()[2:], b"\n"):
        os.write(write, piece)
        gevent.sleep(0)
    close(write)
    assert reading.get() == ["a lin\u00e9"]
    close(read)


def test_reading_lets_other_greenlets_run():
    read, write = os.pipe()
    reading = gevent.spawn(lambda: list(read_lines(read)))
    ran: list[int] = []
    gevent.spawn(ran.append, 1).join()
    assert ran
    assert not reading.ready()
    close(write)
    reading.join()
    close(read)


def test_a_file_is_read_too(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 100_000 + b"\nend")
    with path.open("rb") as file:
        assert [len(line) for line in read_lines(file.fileno())] == [100_000, 3]


# -- turns ------------------------------------------------------------------------------------------------


def test_each_line_of_a_pipe_gets_an_answer_in_order(open_runtime, capsys):
    prompt, out, err = converse(open_runtime(ScriptedModel()), "one\n\n  \ntwo\nthree", capsys)
    assert (out, err, prompt.failed) == ("one\ntwo\nthree\n", "", False)


def test_a_line_typed_while_tools_run_steers_the_turn(open_runtime, capsys):
    entered, go = Event(), Event()

    def look(where: str) -> str:
        entered.set()
        go.wait()
        return f"a {where}"

    model = ScriptedModel([Reply(tool_calls=[("look", {"where": "harbour"})]), "a small harbour"])
    rt = open_runtime(model, tools=[Tool(look)])
    session = Session(rt, steers=True)
    session.type("what do you see?\n")
    entered.wait()
    session.type("in two words\n")
    until(lambda: rt.stats().queued == 1)
    go.set()
    session.end()
    session.wait()
    assert capsys.readouterr().out.splitlines() == [
        '  [look {"where": "harbour"}]',
        "  [look: a harbour]",
        "  [steered: in two words]",
        "a small harbour",
    ]
    assert model.requests[1].messages[-1] == {"role": "user", "content": "in two words"}
    history = rt.conversation(rt.get_or_create("crab", "alice")).history
    assert [entry.role for entry in history] == ["user", "assistant", "tool", "user", "assistant"]


def test_a_line_that_comes_too_late_to_steer_is_the_next_message(open_runtime, capsys):
    held = Held()
    rt = open_runtime(held.model)
    session = Session(rt, steers=True)
    session.type("one\n")
    held.asked.wait()
    session.type("two\nthree\n")
    until(lambda: rt.stats().queued == 2)
    held.go.set()
    session.end()
    session.wait()
    assert capsys.readouterr().out == "heard one\nheard two\nheard three\n"


def test_without_steering_lines_wait_for_their_turn(open_runtime, capsys):
    held = Held()
    rt = open_runtime(held.model)
    session = Session(rt, steers=False)
    session.type("one\n")
    held.asked.wait()
    session.type("two\n")
    for _ in range(20):
        gevent.sleep(0)
    assert rt.stats().queued == 0
    held.go.set()
    session.end()
    session.wait()
    assert capsys.readouterr().out == "heard one\nheard two\n"


def test_the_end_of_the_input_leaves_after_the_running_turn(open_runtime, capsys):
    held = Held()
    session = Session(open_runtime(held.model), steers=True)
    session.type("one\n")
    held.asked.wait()
    session.end()
    gevent.sleep(0)
    held.go.set()
    session.wait()
    assert capsys.readouterr().out == "heard one\n"


def test_a_command_typed_while_the_agent_answers_waits(open_runtime, capsys):
    held = Held()
    session = Session(open_runtime(held.model), steers=True)
    session.type("one\n")
    held.asked.wait()
    session.type("/close\n/quit\nnever\n")
    gevent.sleep(0)
    held.go.set()
    session.wait()
    session.end()
    assert capsys.readouterr().out == "heard one\n  [closed]\n"


def test_a_turn_that_fails_is_shown_and_the_prompt_goes_on(open_runtime, capsys):
    model = ScriptedModel(
        [RuntimeError("the line is\ndead"), Reply("thinking...", error=OSError("cut")), "fine"]
    )
    prompt, out, err = converse(open_runtime(model), "one\ntwo\nthree\n", capsys)
    assert out == "thinking...\nfine\n"
    first, second = err.splitlines()
    assert first.startswith("error: ")
    assert "the line is dead" in first
    assert "cut" in second
    assert prompt.failed


def test_a_message_that_is_refused_is_shown_and_the_prompt_goes_on(open_runtime, capsys):
    prompt, out, err = converse(open_runtime(ScriptedModel()), "a\x00b\nfine\n", capsys)
    assert out == "fine\n"
    assert "NUL" in err
    assert prompt.failed


def test_reasoning_and_turns_without_an_answer_are_shown(open_runtime, capsys):
    model = ScriptedModel([Reply("yes", reasoning="let me see"), Reply()])
    _, out, _ = converse(open_runtime(model), "one\ntwo\n", capsys)
    assert out == "let me see\nyes\n  [no answer]\n"


def test_what_a_model_says_cannot_steer_the_terminal(open_runtime, capsys):
    _, out, _ = converse(open_runtime(ScriptedModel(["\x1b[2Jboo"])), "one\n", capsys)
    assert out == "\ufffd[2Jboo\n"


def test_a_broken_runtime_is_an_error_not_a_traceback(open_runtime, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Runtime, "stream", broken)
    prompt, out, err = converse(open_runtime(ScriptedModel()), "one\n", capsys)
    assert (out, err, prompt.failed) == ("", "error: the disk is full\n", True)


# -- commands ---------------------------------------------------------------------------------------------


def test_topics_are_opened_listed_compacted_and_closed(open_runtime, capsys):
    lines = """\
/topic boats: what floats
hello
/compact
/topic
/topic ropes
/close
/topic boats
/list
/close
/close
/compact
/nonsense
"""
    _, out, err = converse(open_runtime(ScriptedModel()), lines, capsys)
    assert out.splitlines() == [
        "  [new topic 'boats', 0 messages]",
        "hello",
        "  [history compacted, archived as boats-1]",
        "  [closed 'boats'; /topic boats opens it again]",
        "  [back in 'boats', 1 message]",
        "   TOPIC  TITLE  STATE  MESSAGES",
        "*  boats         idle          1",
        "  [closed 'boats'; /topic boats opens it again]",
        "  [no conversation is open]",
        "  [nothing to compact]",
    ]
    assert err.splitlines() == [
        "error: /topic needs a title: /topic TITLE[: DESCRIPTION]",
        "error: the topic 'ropes' is new; say what it is about: /topic ropes: DESCRIPTION",
        "error: there is no command /nonsense; /help lists them",
    ]


def test_list_shows_live_and_stored_conversations_of_this_sender_alone(open_runtime, capsys):
    rt = open_runtime(ScriptedModel())
    rt.send(rt.get_or_create("crab", "somebody else"), "hi")
    lines = "/list\nhello\n/topic boats: what floats\nhi\n/close\n/list\n"
    _, out, _ = converse(rt, lines, capsys)
    first, *_, header, live, stored = out.splitlines()
    assert first == "no conversations"
    assert header.split() == ["TOPIC", "TITLE", "STATE", "MESSAGES"]
    assert live.split() == ["*", "(no", "topic)", "idle", "2"]
    assert stored.split() == ["boats", "stored", "2"]


def test_help_and_quit(open_runtime, capsys):
    _, out, _ = converse(open_runtime(ScriptedModel()), "/help\n/quit\nnever said\n", capsys)
    for command in ("/topic", "/list", "/compact", "/close", "/help", "/quit"):
        assert re.search(rf"^{command} ", out, re.MULTILINE)
    assert "never said" not in out


# -- the command, in a process of its own --------------------------------------------------------------------


def event_stream(*pieces: str, then: Event | None = None) -> Iterator[bytes]:
    """An answer of an endpoint; it stalls after its text while `then` is not set."""
    for piece in pieces:
        yield (
            b"data: "
            + json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}).encode()
            + b"\n\n"
        )
    if then is not None:
        then.wait()
    yield b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Endpoint:
    """A loopback server that answers each request with the next of `answers`, then with titles."""

    def __init__(self, *answers: Iterator[bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, object]]] = []
        self.server = WSGIServer(("127.0.0.1", 0), self._answer, log=None)
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def _answer(self, environ: dict[str, object], start_response: Callable[..., object]) -> Iterator[bytes]:
        body = json.loads(environ["wsgi.input"].read())  # type: ignore[attr-defined]
        self.requests.append((str(environ.get("HTTP_AUTHORIZATION")), body))
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return self.answers.pop(0) if self.answers else event_stream("a title for that")


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    started: list[Endpoint] = []

    def start(*answers: Iterator[bytes]) -> Endpoint:
        started.append(Endpoint(*answers))
        return started[-1]

    yield start
    for each in started:
        each.server.stop(timeout=0)


def test_at_a_terminal_there_is_a_prompt_and_ctrl_d_leaves(tmp_path: Path):
    child = Child("chat", "--db", tmp_path / "agents.db", "--sender", "alice")
    child.expect("alice> ")
    child.type("/topic boats: what floats\n")
    child.expect("new topic 'boats'")
    child.expect("alice (boats)> ")
    child.type("h\u00e9llo\n")
    child.expect("h\u00e9llo\r\n")  # the terminal's echo
    child.expect("h\u00e9llo\r\n")  # the model's
    child.expect("alice (boats)> ")
    child.type("\x04")
    status, rest = child.finish()
    assert status == 0
    assert "Traceback" not in rest
    done = CliRunner().invoke(palaver, ["verify", str(tmp_path / "agents.db")])
    assert done.output.startswith("ok: 1 session, 1 turn, 2 entries")


def test_at_the_prompt_ctrl_c_leaves_with_130_and_a_whole_file(tmp_path: Path):
    child = Child("chat", "--db", tmp_path / "agents.db")
    child.expect("me> ")
    child.type("half a line\x03")
    status, rest = child.finish()
    assert status == 130
    assert rest.endswith("interrupted\r\n")
    assert "Traceback" not in rest
    assert CliRunner().invoke(palaver, ["verify", str(tmp_path / "agents.db")]).exit_code == 0


def test_ctrl_c_cancels_the_running_turn_and_the_prompt_comes_back(tmp_path: Path, endpoint):
    never = Event()
    server = endpoint(event_stream("working on", then=never), event_stream("a second ", "answer"))
    child = Child("chat", "--db", tmp_path / "agents.db", "--base-url", server.url, "--model", "m")
    child.expect("me> ")
    child.type("first\n")
    child.expect("working on")
    child.type("\x03")
    child.expect("[cancelled]")
    child.expect("me> ")
    child.type("second\n")
    child.expect("a second answer")
    child.expect("me> ")
    child.type("/quit\n")
    status, _ = child.finish()
    assert status == 0
    never.set()


def test_a_pipe_talks_to_an_endpoint_with_the_key_from_the_environment(tmp_path: Path, endpoint):
    server = endpoint(event_stream("good ", "morning"))
    arguments = ["chat", "--db", str(tmp_path / "a.db"), "--base-url", server.url, "--model", "some-model"]
    done = subprocess.run(
        [sys.executable, "-m", "palaver", *arguments, "--system", "be kind"],
        cwd=ROOT,
        input="hello\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PALAVER_API_KEY": "s3cret"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "good morning\n", "")
    key, body = server.requests[0]
    assert key == "Bearer s3cret"
    assert body["model"] == "some-model"
    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
    ]


def test_an_endpoint_that_is_not_there_fails_the_pipe_with_1(tmp_path: Path):
    arguments = [
        "chat",
        "--db",
        str(tmp_path / "a.db"),
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--model",
        "m",
    ]
    code = """
import sys
from gevent import monkey
monkey.patch_all()
import palaver.commands.chat
from palaver import OpenAIModel
sys.modules["palaver.commands.chat"].OpenAIModel = lambda url, key: OpenAIModel(url, key, retries=0)
from palaver.commands import palaver
palaver(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        input="hello\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--base-url", "http://127.0.0.1:9"], ["--model", "m"]])
def test_half_an_endpoint_is_a_usage_error(options: list[str], tmp_path: Path):
    result = CliRunner().invoke(palaver, ["chat", "--db", str(tmp_path / "a.db"), *options])
    assert result.exit_code == 2
    assert "--base-url and --model go together" in result.output


def test_an_agent_that_cannot_be_is_an_error(tmp_path: Path):
    result = CliRunner().invoke(palaver, ["chat", "--db", str(tmp_path / "a.db"), "--agent", " "])
    assert result.exit_code == 1
    assert result.output.startswith("Error: name is empty")
    assert not (tmp_path / "a.db").exists()
