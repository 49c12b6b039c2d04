"""A host's socket: the protocol, its bounds, and clients that vanish or do not read."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from host_support import Hosts, served_hosts, short_folder
from support import PuppetModel, Runtimes, opened_runtimes, run_script, until
from test_dead_letters import given_up

from actors.events import Event as AnyEvent
from palaver import (
    CompactOutcome,
    ConversationBusy,
    ConversationNotFound,
    DeadLetterNotFound,
    DescriptionRequired,
    Done,
    HostClient,
    HostInUse,
    HostUnreachable,
    InvalidInput,
    KeyReused,
    Lagged,
    Limits,
    MailboxFull,
    NoActiveTurn,
    Place,
    ProtocolError,
    Reply,
    ResultTimeout,
    RuntimeClosed,
    ScriptedModel,
    StorageError,
    TextDelta,
    ToolCall,
    ToolCallsStart,
    TurnResult,
    Usage,
    UserSteered,
)
from palaver.health import Health
from palaver.host.errors import from_wire, to_wire
from palaver.host.protocol import ID_CHARS
from palaver.host.server import Server
from palaver.host.service import Service
from palaver.host.sockets import listen_at
from palaver.host.wire import event_from_wire, event_to_wire, plain, record

__all__ = ["opened_runtimes", "served_hosts", "short_folder"]

ALICE = {"agent": "crab", "sender": "alice"}
WORK = {**ALICE, "topic": "work", "description": "about work"}
HERE = Place("crab", "alice", "work", "about work")


# -- one request ------------------------------------------------------------------------------------


def test_a_script_needs_one_request(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open()))
    raw.say({"id": 7, "op": "send", **WORK, "content": "h\u00e9llo \U0001f980"})
    answer = raw.hear()
    assert (answer["id"], answer["ok"]) == (7, True)
    assert answer["result"]["text"] == "h\u00e9llo \U0001f980"
    assert answer["result"]["stop_reason"] == "text_response"


def test_an_answer_has_the_id_of_its_request_whatever_that_is(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open()))
    for name in (None, 1.5, "x", [1, {"a": None}], {"b": []}, True):
        raw.say({"id": name, "op": "health"})
        assert raw.hear()["id"] == name
    raw.say(b'{"op": "health"}')
    assert raw.hear()["id"] is None


def test_answers_come_as_they_are_ready(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    raw = hosts.raw(hosts.serve(runtimes.open(puppet)))
    raw.say({"id": "slow", "op": "send", **WORK, "content": "hello"})
    asked = puppet.asked()
    assert raw.ask("health")["result"]["ready"]["ok"] is True
    asked.answer()
    assert raw.hear()["id"] == "slow"


def test_messages_of_one_connection_are_accepted_in_the_order_of_their_lines(
    runtimes: Runtimes, hosts: Hosts
) -> None:
    rt = runtimes.open()
    raw = hosts.raw(hosts.serve(rt))
    said = [f"message {number}" for number in range(60)]
    raw.say(*({"id": text, "op": "send", **WORK, "content": text} for text in said))
    assert [raw.hear()["id"] for _ in said] == said
    (session,) = rt.sessions()
    assert [entry.content for entry in rt.transcript(session.handle) if entry.role == "user"] == said


def test_a_submit_is_answered_after_its_commit_and_not_before(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    cid = rt.switch_topic("crab", "alice", "work", "about work").conversation_id
    raw = hosts.raw(hosts.serve(rt))
    with runtimes.held_database(rt):
        raw.say({"id": "submit", "op": "submit", "conversation": cid, "content": "keep this"})
        for _ in range(5):  # anything that needs no commit is answered meanwhile
            assert raw.ask("stats")["id"] == "stats"
    assert raw.hear()["id"] == "submit"


def test_a_stream_says_accepted_then_events_then_that_it_is_over(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open(ScriptedModel([Reply("two pieces", chunk_chars=5)]))))
    lines = raw.all_of("stream", **WORK, content="go")
    assert [list(line)[1] for line in (lines[0], lines[-1])] == ["accepted", "ok"]
    types = [line["event"]["type"] for line in lines[1:-1]]
    assert types == ["TextStart", "TextDelta", "TextDelta", "TextEnd", "ContextUsage", "Done"]
    assert lines[-2]["event"]["result"]["text"] == "two pieces"


def test_a_stream_that_is_refused_is_one_error(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open()))
    (line,) = raw.all_of("stream", conversation=99, content="go")
    assert line["error"]["type"] == "ConversationNotFound"


def test_long_listings_come_in_several_lines(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    server = hosts.serve(rt)
    for number in range(230):
        rt.get_or_create("crab", f"sender {number}")
    lines = hosts.raw(server).all_of("list")
    assert [len(line.get("items", ())) for line in lines] == [100, 100, 30, 0]
    assert lines[-1]["result"] == {"count": 230}
    assert [each.sender for each in hosts.client(server).list_active()] == [f"sender {n}" for n in range(230)]
    assert len(hosts.client(server).list_active(sender="sender 3")) == 1


def test_a_client_that_sends_no_more_still_gets_its_answers(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    server = hosts.serve(runtimes.open(puppet))
    raw = hosts.raw(server)
    raw.sock.sendall(json.dumps({"id": 1, "op": "send", **WORK, "content": "x"}).encode())  # and no line end
    raw.sock.shutdown(socket.SHUT_WR)
    puppet.asked().answer("at last")
    assert raw.hear()["result"]["text"] == "at last"
    with pytest.raises(EOFError):
        raw.hear()
    until(lambda: len(server) == 0)


# -- what is no request -----------------------------------------------------------------------------

NO_REQUESTS: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b"hello", "ProtocolError", "this is not JSON"),
    "no UTF-8": (b'"\xff"', "ProtocolError", "this is not JSON"),
    "not a number": (b'{"id": NaN, "op": "stats"}', "ProtocolError", "this is not JSON: NaN"),
    "no object": (b"[1]", "ProtocolError", "a line must be one JSON object, not list"),
    "deep": (b"[" * 100_000, "ProtocolError", "this is not JSON"),
    "huge number": (b'{"op": ' + b"9" * 5_000 + b"}", "ProtocolError", "this is not JSON"),
    "no op": (b'{"id": 3}', "ProtocolError", 'a request needs an "op"'),
    "op of another kind": (b'{"op": {"a": 1}}', "ProtocolError", 'a request needs an "op"'),
    "unknown op": (b'{"op": "sned"}', "ProtocolError", "there is no operation 'sned'; did you mean 'send'?"),
    "private": (b'{"op": "__class__"}', "ProtocolError", "there is no operation"),
    "long id": (
        b'{"op": "stats", "id": "' + b"x" * ID_CHARS + b'"}',
        "ProtocolError",
        "an id may have up to",
    ),
    "missing field": (b'{"op": "send"}', "InvalidInput", "send needs the field 'content': text"),
    "unknown field": (
        b'{"op": "stats", "cotent": 1}',
        "InvalidInput",
        "stats has no field 'cotent'; known are: none",
    ),
    "near field": (b'{"op": "load", "handel": "x"}', "InvalidInput", "did you mean 'handle'?"),
    "wrong kind": (b'{"op": "load", "handle": 3}', "InvalidInput", "load: handle must be text, not 3"),
    "flag": (b'{"op": "close", "conversation": true}', "InvalidInput", "must be a whole number, not true"),
    "no place": (b'{"op": "send", "content": "x"}', "InvalidInput", "names no conversation"),
    "half a place": (
        b'{"op": "send", "content": "x", "agent": "crab"}',
        "InvalidInput",
        "sender is missing",
    ),
    "two places": (
        b'{"op": "send", "content": "x", "conversation": 1, "sender": "alice"}',
        "InvalidInput",
        "not by both (sender)",
    ),
    "description": (
        b'{"op": "send", "content": "x", "agent": "crab", "sender": "alice", "description": "y"}',
        "InvalidInput",
        "a description goes with a topic",
    ),
    "empty": (b'{"op": "send", "content": "", "agent": "crab", "sender": "a"}', "InvalidInput", "empty"),
    "too much": (
        b'{"op": "send", "content": "' + b"x" * 600 + b'", "agent": "crab", "sender": "a"}',
        "InvalidInput",
        "at most 500 are taken",
    ),
    "busy": (
        b'{"op": "send", "content": "x", "agent": "crab", "sender": "a", "on_busy": "wait"}',
        "InvalidInput",
        "on_busy must be one of enqueue, reject, interrupt, steer",
    ),
    "version": (b'{"op": "hello", "protocol": 2}', "ProtocolError", "this host speaks version 1"),
    "turn": (b'{"op": "result", "turn": 5}', "InvalidInput", "turn 5 is not among the newest"),
}


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_what_is_no_request_is_one_clear_error_and_the_connection_goes_on(
    name: str, runtimes: Runtimes, hosts: Hosts
) -> None:
    line, kind, words = NO_REQUESTS[name]
    raw = hosts.raw(hosts.serve(runtimes.open(limits=Limits(content_chars=500))))
    raw.say(line)
    answer = raw.hear()
    assert answer["ok"] is False
    assert answer["error"]["type"] == kind
    assert words in answer["error"]["message"]
    assert answer["error"]["retryable"] is False
    assert raw.ask("health")["ok"] is True


def test_blank_lines_are_passed_over(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open()))
    raw.say(b"", b"  ", b"\r")
    assert raw.ask("health")["id"] == "health"


def test_a_request_may_come_in_any_pieces(runtimes: Runtimes, hosts: Hosts) -> None:
    raw = hosts.raw(hosts.serve(runtimes.open()))
    for byte in b'{"id":1,"op":"health"}\n{"id":2,"op":"health"}\n':
        raw.sock.sendall(bytes([byte]))
        gevent.sleep(0)
    assert [raw.hear()["id"], raw.hear()["id"]] == [1, 2]


def test_a_line_that_is_too_long_is_told_and_ends_the_connection(runtimes: Runtimes, hosts: Hosts) -> None:
    server = hosts.serve(runtimes.open(), line_bytes=1_000)
    for line in (b"x" * 5_000, b"x" * 1_001 + b"\n"):
        raw = hosts.raw(server)
        raw.sock.sendall(line)
        error = raw.hear()["error"]
        assert (error["type"], error["message"][:32]) == ("ProtocolError", "a line may have up to 1,000 byte")
        with pytest.raises(EOFError):
            raw.hear()
    raw = hosts.raw(server)
    raw.say(b" " * 974 + b'{"id":1,"op":"health"}    ')
    assert raw.hear()["ok"] is True


def test_a_failure_that_nobody_foresaw_is_logged_and_answered(
    runtimes: Runtimes, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rt = runtimes.open()
    raw = hosts.raw(hosts.serve(rt))
    monkeypatch.setattr(rt, "stats", lambda: 1 / 0)
    error = raw.ask("stats")["error"]
    assert (error["type"], error["retryable"]) == ("HandlerFailed", False)
    assert "ZeroDivisionError" in error["message"]
    assert "a request failed: op=stats" in caplog.text
    assert raw.ask("hello")["ok"] is True


# -- bounds -----------------------------------------------------------------------------------------


def test_requests_without_an_answer_are_bounded(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    raw = hosts.raw(hosts.serve(runtimes.open(puppet), requests=2))
    for number in (1, 2, 3):
        raw.say({"id": number, "op": "send", **WORK, "content": "x"})
    refused = raw.hear()
    assert (refused["id"], refused["error"]["type"], refused["error"]["retryable"]) == (
        3,
        "MailboxFull",
        True,
    )
    puppet.asked().answer()
    assert raw.hear()["id"] == 1
    assert raw.ask("health")["ok"] is True
    puppet.asked().answer()


def test_connections_are_bounded_and_one_too_many_is_told_so(runtimes: Runtimes, hosts: Hosts) -> None:
    server = hosts.serve(runtimes.open(), connections=2)
    first, second = hosts.raw(server), hosts.raw(server)
    assert [first.ask("health")["ok"], second.ask("health")["ok"]] == [True, True]
    third = hosts.raw(server)
    assert third.hear()["error"]["type"] == "MailboxFull"
    with pytest.raises(EOFError):
        third.hear()
    first.close()
    until(lambda: len(server) == 1)
    assert hosts.raw(server).ask("health")["ok"] is True


def test_a_slow_reader_is_told_that_it_lagged_and_the_turn_goes_on(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet, limits=Limits(event_buffer=8))
    server = hosts.serve(rt)
    client = hosts.client(server)
    events = client.stream(HERE, "go")
    asked = puppet.asked()
    piece = "x" * 20_000
    reply = Reply(piece * 200, chunk_chars=len(piece))
    asked.answer(reply)
    # The turn is over before its reader has begun, whose socket holds a few pieces only.
    until(lambda: not rt.stats().running)
    read = [*events]
    assert any(isinstance(event, Lagged) for event in read)
    assert sum(isinstance(event, TextDelta) for event in read) < 100
    assert isinstance(read[-1], Done)
    assert read[-1].result.text == piece * 200


def test_a_client_that_never_reads_loses_its_connection_and_nothing_else(
    runtimes: Runtimes, hosts: Hosts
) -> None:
    rt = runtimes.open(ScriptedModel([Reply("y" * 900_000, chunk_chars=0)] * 3))
    server = hosts.serve(rt, slow_s=0.05)
    deaf = hosts.raw(server)
    deaf.say(*({"id": n, "op": "send", **WORK, "content": "x"} for n in range(3)))
    until(lambda: len(server) == 1)
    until(lambda: len(server) == 0)
    (session,) = rt.sessions()
    until(lambda: all(turn.state == "done" for turn in rt.turns(session.handle)))
    assert len(rt.turns(session.handle)) == 3
    assert hosts.raw(server).ask("health")["ok"] is True


def test_a_client_that_goes_away_changes_nothing_for_its_turns(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet)
    server = hosts.serve(rt)
    for op in ("send", "stream"):
        raw = hosts.raw(server)
        raw.say({"id": 1, "op": op, **WORK, "content": f"by {op}"})
        if op == "send":
            asked = puppet.asked()
        else:
            assert "accepted" in raw.hear()
        raw.close()
    until(lambda: len(server) == 0)
    asked.answer("one")
    puppet.asked().answer("two")
    (session,) = rt.sessions()
    until(lambda: rt.stats().running == 0)
    assert [turn.state for turn in rt.turns(session.handle)] == ["done", "done"]
    assert rt.stats().subscribers == 0


def test_a_subscriber_that_goes_away_is_forgotten(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    server = hosts.serve(rt)
    raw = hosts.raw(server)
    assert "accepted" in raw.ask("subscribe")
    assert rt.stats().subscribers == 1
    raw.close()
    until(lambda: rt.stats().subscribers == 0)
    half = hosts.raw(server)
    half.say({"op": "subscribe"})
    assert "accepted" in half.hear()
    half.sock.shutdown(socket.SHUT_WR)
    half.close()
    until(lambda: rt.stats().subscribers == 0)


# -- the socket -------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_alone_from_the_first_moment(folder: Path) -> None:
    path = str(folder / "s.sock")
    before = os.umask(0)
    try:
        sock = listen_at(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert os.umask(0) == 0  # as it was
    finally:
        os.umask(before)
    sock.close()


def test_the_socket_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not(folder: Path) -> None:
    path = str(folder / "s.sock")
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    server = Server(path)
    with pytest.raises(HostInUse, match="another process listens on"):
        Server(path)
    assert server.path == path
    server.stop()
    assert not os.path.exists(path)


def test_what_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("text")
    with pytest.raises(HostInUse, match="is there and is no socket"):
        Server(str(path))
    assert path.read_text() == "text"
    with pytest.raises(HostInUse, match=r"no socket can be made at .* No such file or directory"):
        Server(str(folder / "missing" / "s.sock"))
    with pytest.raises(HostInUse, match="too long for a socket: 107 bytes"):
        Server(str(folder / ("x" * 100)))


def test_a_server_takes_away_its_own_socket_only(folder: Path) -> None:
    path = str(folder / "s.sock")
    server = Server(path)
    os.unlink(path)
    other = listen_at(path)
    server.stop()
    assert os.path.exists(path)
    other.close()


# -- the client -------------------------------------------------------------------------------------


def test_the_client_has_the_calls_of_the_runtime(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    client = hosts.client(hosts.serve(rt))
    assert client.hello()["agents"] == ["crab"]
    assert client.health() == {"live": Health(True), "ready": Health(True)}
    cid = client.get_or_create("crab", "alice")
    assert client.conversation_id("crab", "alice") == cid
    outcome = client.switch_topic("crab", "alice", "work", "about work")
    assert outcome == rt.switch_topic("crab", "alice", "work") or outcome.conversation_id != cid
    work = outcome.conversation_id
    assert client.send(work, "hello", sender="bob").text == "hello"
    assert [type(event).__name__ for event in client.stream(work, "go on")][-1] == "Done"
    ticket = client.submit(work, "later")
    assert ticket.result().text == "later"
    assert isinstance([*ticket.events()][-1], Done)
    assert ticket.cancel() is False
    assert (ticket.conversation_id, ticket.content) == (work, "later")
    (session,) = client.sessions("crab", "alice", "work")
    assert client.sessions() == rt.sessions()
    assert client.transcript(session.handle) == rt.transcript(session.handle)
    assert client.turns(session.handle) == rt.turns(session.handle)
    assert client.conversation(work).history == rt.conversation(work).history  # type: ignore[union-attr]
    assert client.load(session.handle) == work
    assert [info.id for info in client.list_active()] == [cid, work]
    assert client.tickets(work) == []
    assert client.cancel(work) is False
    compacted = client.compact(work)
    assert isinstance(compacted, CompactOutcome)
    assert compacted.archive == "work-1"
    assert client.close(work) is True
    assert client.close(work) is False
    assert client.conversation(work) is None
    steady = {"uptime_s": 0.0, "rss_bytes": 0}
    assert attrs.evolve(client.stats(), **steady) == attrs.evolve(rt.stats(), **steady)


def test_errors_are_raised_as_the_classes_that_the_host_raised(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet, limits=Limits(queued_per_conversation=1))
    client = hosts.client(hosts.serve(rt))
    with pytest.raises(DescriptionRequired):
        client.switch_topic("crab", "alice", "new")
    with pytest.raises(InvalidInput):
        client.get_or_create("crab", "")
    with pytest.raises(ConversationNotFound):
        client.send(99, "x")
    with pytest.raises(ConversationNotFound, match="topic 'work' is live"):
        client.cancel(HERE)
    running = client.submit(HERE, "x", key="k")
    asked = puppet.asked()
    with pytest.raises(KeyReused):
        client.submit(HERE, "y", key="k")
    with pytest.raises(ConversationBusy):
        client.send(HERE, "x", on_busy="reject")
    with pytest.raises(ResultTimeout):
        running.result(timeout=0.001)
    client.submit(HERE, "x")
    with pytest.raises(MailboxFull, match="queued_per_conversation"):
        client.submit(HERE, "x")
    asked.answer()
    puppet.asked().answer()
    until(lambda: not rt.stats().running)
    with pytest.raises(NoActiveTurn):
        client.steer(HERE, "x")


def test_steering_and_cancelling_over_the_socket(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    client = hosts.client(hosts.serve(runtimes.open(puppet)))
    events = client.stream(HERE, "go")
    asked = puppet.asked()
    steer = client.steer(HERE, "left")
    queued = client.submit(HERE, "next")
    assert [ticket.content for ticket in client.tickets(HERE)] == ["go", "left", "next"]
    asked.answer(Reply(tool_calls=[("recall", {"query": "x"})]))
    puppet.asked()
    assert client.cancel(HERE) is True
    read = [*events]
    assert UserSteered("left") in read
    assert isinstance(read[-1], Done)
    assert read[-1].result.stop_reason == "cancelled"
    assert steer.result().turn_id == read[-1].result.turn_id
    puppet.asked()
    assert queued.cancel() is True
    assert queued.result().stop_reason == "cancelled"


def test_every_event_is_seen_over_the_socket(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    client = hosts.client(hosts.serve(rt))
    seen = client.subscribe()
    client.send(HERE, "hello")
    info, event = next(seen)
    assert (info.agent, info.sender, info.topic) == ("crab", "alice", "work")
    while not isinstance(event, Done):
        _, event = next(seen)
    assert event.result.text == "hello"


def test_a_key_gives_the_stored_result_to_the_next_client(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open(ScriptedModel(["once"]))
    server = hosts.serve(rt)
    first = hosts.client(server).send(HERE, "hello", key="k")
    rt = runtimes.reopen(rt)
    again = hosts.client(hosts.serve(rt)).send(HERE, "hello", key="k")
    assert (again.text, again.turn_id) == ("once", first.turn_id)


def test_dead_letters_are_seen_and_tried_again_over_the_socket(
    folder: Path, runtimes: Runtimes, hosts: Hosts
) -> None:
    turn = given_up(folder / "a.db")
    rt = runtimes.open(path=folder / "a.db")
    client = hosts.client(hosts.serve(rt))
    assert client.dead_letters() == rt.dead_letters()
    assert client.dead_letters(sender="nobody") == []
    assert client.dead_letter(turn).content == "take down the process"
    with pytest.raises(DeadLetterNotFound):
        client.dead_letter(999)
    assert client.retry_dead_letter(turn).result().text == "take down the process"
    assert client.dead_letter(turn).retried_as == turn + 1
    assert client.unfinished() == []
    assert client.recover() == 0


def test_a_connection_is_used_again(runtimes: Runtimes, hosts: Hosts) -> None:
    server = hosts.serve(runtimes.open())
    client = hosts.client(server)
    for _ in range(5):
        client.send(HERE, "x")
        [*client.stream(HERE, "y")]
    assert len(server) == 1


def test_a_stream_that_is_let_go_gives_its_connection_up(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet)
    server = hosts.serve(rt)
    client = hosts.client(server)
    client.stream(HERE, "never read")
    puppet.asked().answer()
    until(lambda: len(server) == 0)
    assert client.health()["live"].ok


def test_many_calls_at_once_have_a_connection_each(runtimes: Runtimes, hosts: Hosts) -> None:
    rt = runtimes.open()
    client = hosts.client(hosts.serve(rt))
    calls = [gevent.spawn(client.send, Place("crab", f"s{n}"), f"hello {n}") for n in range(40)]
    gevent.joinall(calls)
    assert [call.value.text for call in calls] == [f"hello {n}" for n in range(40)]


def test_where_no_host_is_there_is_an_error_that_says_so(folder: Path) -> None:
    client = HostClient(folder / "none.sock")
    with pytest.raises(HostUnreachable, match=r"no host listens on .*none\.sock"):
        client.stats()


def test_a_host_that_goes_is_an_error_and_the_next_one_is_found(runtimes: Runtimes, hosts: Hosts) -> None:
    puppet = PuppetModel()
    rt = runtimes.open(puppet)
    server = hosts.serve(rt)
    client = hosts.client(server)
    cid = client.switch_topic("crab", "alice", "work", "about work").conversation_id
    waiting = gevent.spawn(_error_of, client.send, cid, "hello")
    puppet.asked()
    server.stop(0)
    assert isinstance(waiting.get(), HostUnreachable)
    again = Server(server.path)
    again.start(Service(rt, "another process"))
    with pytest.raises(ConversationNotFound, match="the host was started again"):
        client.send(cid, "hello")
    assert client.switch_topic("crab", "alice", "work").conversation_id == cid
    again.stop(0)


def _error_of(function: Any, *args: Any) -> Exception | None:
    try:
        function(*args)
    except Exception as error:
        return error
    return None


def test_the_client_works_in_a_process_that_is_not_patched(runtimes: Runtimes, hosts: Hosts) -> None:
    server = hosts.serve(runtimes.open())
    code = """
import sys
from palaver import HostClient, Place
client = HostClient(sys.argv[1])
place = Place("crab", "alice", "work", "about work")
print(client.send(place, "hello").text, [type(e).__name__ for e in client.stream(place, "x")][-1])
print(client.stats().commits > 0)
"""
    ran = run_script(code, server.path)
    assert ran.stdout.split("\n")[:2] == ["hello Done", "True"], ran.stderr


# -- records on the wire ----------------------------------------------------------------------------


def test_records_and_events_come_back_equal() -> None:
    result = TurnResult("t", "error", error="e", usage=Usage(1, 2, 3), model="m", turn_id=4)
    assert record(TurnResult, json.loads(json.dumps(plain(result)))) == result
    events: list[AnyEvent] = [
        ToolCallsStart((ToolCall("1", "a", "{}"), ToolCall("2", "b"))),
        Done(result),
        Lagged(3),
    ]
    for event in events:
        assert event_from_wire(json.loads(json.dumps(event_to_wire(event)))) == event


def test_a_newer_host_may_say_more_and_an_unknown_event_is_passed_over() -> None:
    fields = {**plain(TurnResult("t", "text_response")), "mood": "fine"}
    assert record(TurnResult, fields) == TurnResult("t", "text_response")
    assert event_from_wire({"type": "TextSung", "text": "la"}) is None


@pytest.mark.parametrize("fields", [{}, {"text": "t"}, {"text": 3, "stop_reason": "error"}, [], None])
def test_a_record_of_another_shape_is_an_error(fields: object) -> None:
    with pytest.raises(ProtocolError):
        record(TurnResult, fields)
    with pytest.raises(ProtocolError):
        event_from_wire({"type": "Done", "result": fields})


def test_errors_keep_their_class_and_say_whether_to_try_again() -> None:
    class Ours(MailboxFull):
        """A program's own."""

    for error, kind, retryable in (
        (MailboxFull("x"), MailboxFull, True),
        (Ours("x"), MailboxFull, True),
        (StorageError("the disk is full"), StorageError, True),
        (RuntimeClosed("x"), RuntimeClosed, True),
        (InvalidInput("x"), InvalidInput, False),
        (KeyReused("x"), KeyReused, False),
    ):
        wire = to_wire(error)
        assert (type(from_wire(wire)), wire["retryable"]) == (kind, retryable)
