"""Talking to a host from another process, with the calls of `Runtime`."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from attrs import frozen

from actors.errors import ConversationNotFound
from actors.events import Done, Event
from actors.state import CompactOutcome, ConversationInfo, ConversationSnapshot, SwitchOutcome
from actors.ticket import OnBusy
from palaver.health import Health
from palaver.host.errors import HostUnreachable, from_wire
from palaver.host.protocol import VERSION, decode, encode
from palaver.host.wire import event_from_wire, record
from palaver.stats import Stats
from persistence.dead_letters import DeadLetter
from persistence.records import HistoryEntry, SessionSummary, TurnResult, TurnRow, UnfinishedSession

PIECE = 65_536
KEPT = 16  # idle connections


@frozen
class Place:
    """A conversation by name, in place of its id: so that one request is enough, also after a restart.

    Args:
        agent, sender: the pair.
        topic: makes this the pair's active topic; None is the one that is active, or the tmp chat.
        description: what a new topic is about.
    """

    agent: str
    sender: str
    topic: str | None = None
    description: str | None = None


class HostClient:
    """The calls of `Runtime`, over a host's socket. Arguments, results and errors are the same.

    A call blocks the calling greenlet where gevent has patched the process, else the calling thread; any
    number of them may call at once. Each call that is under way has a connection of its own.

    Args:
        path: the host's socket.
        connect_timeout_s: seconds for a connection to be made.
        answer_timeout_s: seconds in which the host must say something; None waits for as long as it takes,
            which a turn may need.

    Raises:
        HostUnreachable: by any call, when no host is there or the connection is lost. The next call connects
            again.
        ProtocolError: by any call, when what is there does not speak this version of the protocol.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._idle: deque[_Line] = deque()
        self._instance: str | None = None

    def __enter__(self) -> HostClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close_connections()

    def close_connections(self) -> None:
        """Close idle connections; a later call makes new ones."""
        while self._idle:
            self._idle.pop().close()

    # -- the host ----------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Who the host is: `protocol`, `palaver` (its version), `instance`, `pid`, `database`, `agents`."""
        return dict(self._ask("hello", protocol=VERSION))

    def stats(self) -> Stats:
        """As `Runtime.stats`."""
        return record(Stats, self._ask("stats"))

    def health(self) -> dict[str, Health]:
        """What `palaver.health.live` and `ready` say of the host, under "live" and "ready"."""
        return {name: record(Health, found) for name, found in self._ask("health").items()}

    def subscribe(self) -> Iterator[tuple[ConversationInfo, Event]]:
        """As `Runtime.subscribe`."""
        answers = self._open("subscribe", {})
        return _pairs(answers)

    # -- turns -------------------------------------------------------------------------------------

    def send(
        self,
        cid: int | Place,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> TurnResult:
        """As `Runtime.send`. With a `key`, a call that ended in `HostUnreachable` can be made again, against
        the next host too, and gives the first one's result."""
        fields = _message(cid, content, sender, guest, on_busy, key, tool_choice, timeout)
        return record(TurnResult, self._ask("send", **fields))

    def submit(
        self,
        cid: int | Place,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> HostTicket:
        """As `Runtime.submit`: returns once the message is accepted."""
        fields = _message(cid, content, sender, guest, on_busy, key, tool_choice, timeout)
        return HostTicket(self, self._ask("submit", **fields))

    def stream(
        self,
        cid: int | Place,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """As `Runtime.stream`: the message is accepted when this returns."""
        fields = _message(cid, content, sender, guest, on_busy, key, tool_choice, timeout)
        return _events(self._open("stream", fields))

    def steer(self, cid: int | Place, content: str) -> HostTicket:
        """As `Runtime.steer`."""
        return HostTicket(self, self._ask("steer", **_place(cid), content=content))

    def tickets(self, cid: int | Place) -> list[HostTicket]:
        """As `Runtime.tickets`."""
        return [HostTicket(self, each) for each in self._rows("tickets", **_place(cid))]

    def cancel(self, cid: int | Place) -> bool:
        """As `Runtime.cancel`."""
        return bool(self._ask("cancel", **_place(cid)))

    # -- conversations -----------------------------------------------------------------------------

    def get_or_create(self, agent: str, sender: str) -> int:
        """As `Runtime.get_or_create`. The id is one of this process of the host."""
        return int(self._ask("get_or_create", agent=agent, sender=sender)["conversation"])

    def switch_topic(
        self, agent: str, sender: str, title: str, description: str | None = None
    ) -> SwitchOutcome:
        """As `Runtime.switch_topic`."""
        place = Place(agent, sender, title, description)
        return record(SwitchOutcome, self._ask("switch_topic", **_place(place)))

    def load(self, handle: str) -> int:
        """As `Runtime.load`."""
        return int(self._ask("load", handle=handle)["conversation"])

    def close(self, cid: int | Place, *, mode: Literal["drain", "now"] = "drain") -> bool:
        """As `Runtime.close`."""
        return bool(self._ask("close", **_place(cid), mode=mode))

    def compact(self, cid: int | Place) -> CompactOutcome:
        """As `Runtime.compact`."""
        return record(CompactOutcome, self._ask("compact", **_place(cid)))

    def list_active(self, agent: str | None = None, sender: str | None = None) -> list[ConversationInfo]:
        """As `Runtime.list_active`, filtered by what is given."""
        return [record(ConversationInfo, each) for each in self._rows("list", agent=agent, sender=sender)]

    def conversation(self, cid: int | Place) -> ConversationSnapshot | None:
        """As `Runtime.conversation`."""
        rows: list[Any] = []
        facts = self._ask("conversation", rows, **_place(cid))
        return None if facts is None else record(ConversationSnapshot, {**facts, "history": rows})

    def conversation_id(self, agent: str, sender: str) -> int | None:
        """As `Runtime.conversation_id`."""
        found = self._ask("conversation_id", agent=agent, sender=sender)["conversation"]
        return None if found is None else int(found)

    # -- what is stored ----------------------------------------------------------------------------

    def sessions(
        self, agent: str | None = None, sender: str | None = None, topic: str | None = None
    ) -> list[SessionSummary]:
        """As `Runtime.sessions`."""
        rows = self._rows("sessions", agent=agent, sender=sender, topic=topic)
        return [record(SessionSummary, each) for each in rows]

    def transcript(self, handle: str) -> list[HistoryEntry]:
        """As `Runtime.transcript`."""
        return [record(HistoryEntry, each) for each in self._rows("transcript", handle=handle)]

    def turns(self, handle: str) -> list[TurnRow]:
        """As `Runtime.turns`."""
        return [record(TurnRow, each) for each in self._rows("turns", handle=handle)]

    def dead_letters(self, agent: str | None = None, sender: str | None = None) -> list[DeadLetter]:
        """As `Runtime.dead_letters`."""
        return [record(DeadLetter, each) for each in self._rows("dead_list", agent=agent, sender=sender)]

    def dead_letter(self, turn_id: int) -> DeadLetter:
        """As `Runtime.dead_letter`."""
        return record(DeadLetter, self._ask("dead_show", turn=turn_id))

    def retry_dead_letter(self, turn_id: int) -> HostTicket:
        """As `Runtime.retry_dead_letter`."""
        return HostTicket(self, self._ask("dead_retry", turn=turn_id))

    def unfinished(self) -> list[UnfinishedSession]:
        """As `Runtime.unfinished`."""
        return [record(UnfinishedSession, each) for each in self._rows("unfinished")]

    def recover(self, handle: str | None = None, *, mode: Literal["run", "fail"] = "run") -> int:
        """As `Runtime.recover`."""
        return int(self._ask("recover", handle=handle, mode=mode)["count"])

    # -- asking ------------------------------------------------------------------------------------

    def _rows(self, op: str, **fields: Any) -> list[Any]:
        rows: list[Any] = []
        self._ask(op, rows, **fields)
        return rows

    def _ask(self, op: str, rows: list[Any] | None = None, **fields: Any) -> Any:
        answers = _Answers(self, self._request(op, fields))
        for facts in answers:
            if rows is not None:
                rows.extend(facts.get("items", ()))
        return answers.result

    def _open(self, op: str, fields: dict[str, Any]) -> _Answers:
        """Answers of which the first, that the request is accepted, has come."""
        answers = _Answers(self, self._request(op, fields))
        next(answers, None)
        return answers

    def _request(self, op: str, fields: dict[str, Any]) -> _Line:
        line = self._connection("conversation" in fields)
        line.write(
            {"id": None, "op": op, **{name: each for name, each in fields.items() if each is not None}}
        )
        return line

    def _connection(self, names_an_id: bool) -> _Line:
        while self._idle:
            line = self._idle.pop()
            if line.alive():
                return line
            line.close()
        line = _Line(self.path, self._connect_timeout_s, self._answer_timeout_s)
        line.write({"op": "hello", "protocol": VERSION})
        answer = line.read()
        if answer.get("ok") is not True:
            line.close()
            raise from_wire(answer.get("error"))
        instance = str(answer["result"]["instance"])
        known, self._instance = self._instance, instance
        if names_an_id and known not in (None, instance):
            line.close()
            raise ConversationNotFound(
                "the host was started again, and ids of conversations are its process's own; get the id again"
            )
        return line

    def _give_back(self, line: _Line) -> None:
        if len(self._idle) < KEPT:
            self._idle.append(line)
        else:
            line.close()


class HostTicket:
    """A message that a host has accepted. `state` is what it was when the host last said so.

    The host knows the newest 1,024 tickets that it gave out, until it is started again.
    """

    def __init__(self, client: HostClient, facts: dict[str, Any]) -> None:
        self._client = client
        self.turn_id = int(facts["turn"])
        self.conversation_id = int(facts["conversation"])
        self.state = str(facts["state"])
        self.content = str(facts["content"])

    def __repr__(self) -> str:
        return f"<HostTicket turn={self.turn_id} conversation={self.conversation_id} {self.state}>"

    def result(self, timeout: float | None = None) -> TurnResult:
        """As `Ticket.result`."""
        return record(TurnResult, self._client._ask("result", turn=self.turn_id, timeout_s=timeout))  # noqa: SLF001

    def cancel(self) -> bool:
        """As `Ticket.cancel`."""
        return bool(self._client._ask("cancel", turn=self.turn_id))  # noqa: SLF001

    def events(self) -> Iterator[Event]:
        """As `Ticket.events`."""
        return _events(self._client._open("events", {"turn": self.turn_id}))  # noqa: SLF001


class _Line:
    """One connection."""

    def __init__(self, path: str, connect_timeout_s: float, answer_timeout_s: float | None) -> None:
        self._path = path
        self._timeout = answer_timeout_s
        self._received = b""
        self._lines: deque[bytes] = deque()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(connect_timeout_s)
            self._sock.connect(path)
            self._sock.settimeout(answer_timeout_s)
        except OSError as error:
            self._sock.close()
            raise HostUnreachable(f"no host listens on {path!r}: {error.strerror or error}") from error

    def alive(self) -> bool:
        """Whether the host has not closed it meanwhile."""
        try:
            self._sock.setblocking(False)
            try:
                self._sock.recv(1, socket.MSG_PEEK)
            finally:
                self._sock.settimeout(self._timeout)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def write(self, facts: dict[str, Any]) -> None:
        try:
            self._sock.sendall(encode(facts))
        except OSError as error:
            raise self._lost(error) from error

    def read(self) -> dict[str, Any]:
        while not self._lines:
            try:
                piece = self._sock.recv(PIECE)
            except OSError as error:
                raise self._lost(error) from error
            if not piece:
                raise self._lost(None)
            *whole, self._received = (self._received + piece).split(b"\n")
            self._lines += whole
        return decode(self._lines.popleft())

    def close(self) -> None:
        self._sock.close()

    def _lost(self, error: OSError | None) -> HostUnreachable:
        self.close()
        why = f" ({error.strerror or error})" if error is not None else ""
        return HostUnreachable(
            f"the connection to the host at {self._path!r} was lost{why} before the answer came; what was "
            "asked may have happened or not. A message with a key can be sent again"
        )


class _Answers(Iterator[dict[str, Any]]):
    """The lines of one request's answer before its last one; `result` is what that said."""

    def __init__(self, client: HostClient, line: _Line) -> None:
        self._client = client
        self._line: _Line | None = line
        self.result: Any = None

    def __next__(self) -> dict[str, Any]:
        if self._line is None:
            raise StopIteration
        try:
            facts = self._line.read()
        except BaseException:
            self.close()
            raise
        if "ok" not in facts:
            return facts
        line, self._line = self._line, None
        self._client._give_back(line)  # noqa: SLF001 - the client's own part
        if facts["ok"] is not True:
            raise from_wire(facts.get("error"))
        self.result = facts.get("result")
        raise StopIteration

    def close(self) -> None:
        """Read no further; the connection goes with it."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def __del__(self) -> None:
        self.close()


def _events(answers: _Answers) -> Iterator[Event]:
    try:
        for facts in answers:
            event = event_from_wire(facts.get("event"))
            if event is not None:
                yield event
                if isinstance(event, Done):
                    # The last line says no more than this, and reading it frees the connection.
                    next(answers, None)
    finally:
        answers.close()


def _pairs(answers: _Answers) -> Iterator[tuple[ConversationInfo, Event]]:
    try:
        for facts in answers:
            event = event_from_wire(facts.get("event"))
            if event is not None:
                yield record(ConversationInfo, facts.get("about")), event
    finally:
        answers.close()


def _place(cid: int | Place) -> dict[str, Any]:
    if isinstance(cid, Place):
        return {"agent": cid.agent, "sender": cid.sender, "topic": cid.topic, "description": cid.description}
    return {"conversation": cid}


def _message(
    cid: int | Place,
    content: str,
    sender: str,
    guest: str | None,
    on_busy: str,
    key: str | None,
    tool_choice: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    return {
        **_place(cid),
        "content": content,
        "speaker": sender or None,
        "guest": guest,
        "on_busy": on_busy,
        "key": key,
        "tool_choice": tool_choice,
        "timeout_s": timeout,
    }
