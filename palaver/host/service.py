"""What a host does for its clients: one function for each operation, on one runtime."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from attrs import field, frozen

import palaver
from actors.errors import ConversationNotFound, InvalidInput
from actors.ticket import Ticket
from palaver.health import live, ready
from palaver.host.errors import ProtocolError
from palaver.host.protocol import VERSION, Request, check_fields
from palaver.host.wire import event_to_wire, plain
from palaver.runtime import Runtime
from palaver.toml.fields import SECONDS, TEXT, WHOLE, Field, suggest

TICKETS_KEPT = 1_024
ITEMS = 100  # rows in one line of a listing


class Part(Protocol):
    """Sends one more line of an answer; waits while the client is slow."""

    def __call__(self, **facts: Any) -> None: ...


Fields = dict[str, Any]
Do = Callable[["Service", Fields, Part], Any]


@frozen
class Operation:
    """What a request may ask for."""

    do: Do
    needs: Mapping[str, Field] = field(factory=dict)
    may: Mapping[str, Field] = field(factory=dict)


OPERATIONS: dict[str, Operation] = {}

# A conversation is named by its id, or by agent and sender and perhaps a topic.
PLACE = {"conversation": WHOLE, "agent": TEXT, "sender": TEXT, "topic": TEXT, "description": TEXT}
MESSAGE = {
    **PLACE,
    "speaker": TEXT,
    "guest": TEXT,
    "on_busy": TEXT,
    "key": TEXT,
    "tool_choice": TEXT,
    "timeout_s": SECONDS,
}
PAIR = {"agent": TEXT, "sender": TEXT}


class Service:
    """The operations of one host.

    Args:
        rt: the runtime.
        instance: names this process, unlike any other: ids of conversations are its own.
    """

    def __init__(self, rt: Runtime, instance: str) -> None:
        self.rt = rt
        self.instance = instance
        self.tickets: OrderedDict[int, Ticket] = OrderedDict()

    def answer(self, request: Request, part: Part) -> Any:
        """Do what was asked; the result, as JSON can hold it. Blocks the calling greenlet.

        Raises:
            PalaverError: as the runtime's method does; ProtocolError, InvalidInput for what is no request.
        """
        operation = OPERATIONS.get(request.op)
        if operation is None:
            raise ProtocolError(f"there is no operation {request.op!r}; {suggest(request.op, OPERATIONS)}")
        check_fields(request.op, request.fields, operation.needs, operation.may)
        given = {name: value for name, value in request.fields.items() if value is not None}
        return operation.do(self, given, part)

    # -- naming a conversation ---------------------------------------------------------------------

    def place(self, fields: Fields) -> int:
        """The conversation that a request names, opened if need be."""
        if (cid := _by_id(fields)) is not None:
            return cid
        if "topic" in fields:
            return self.rt.switch_topic(
                fields["agent"], fields["sender"], fields["topic"], fields.get("description")
            ).conversation_id
        if "description" in fields:
            raise InvalidInput("a description goes with a topic")
        return self.rt.get_or_create(fields["agent"], fields["sender"])

    def live_place(self, fields: Fields) -> int:
        """The conversation that a request names, which must be live."""
        if (cid := _by_id(fields)) is not None:
            return cid
        agent, sender, topic = fields["agent"], fields["sender"], fields.get("topic")
        cid = self.rt.conversation_id(agent, sender, topic=topic)
        if cid is None:
            of = f", topic {topic!r}" if topic is not None else ""
            raise ConversationNotFound(f"no conversation of agent {agent!r}, sender {sender!r}{of} is live")
        return cid

    def keep(self, ticket: Ticket) -> dict[str, Any]:
        """Remember a ticket for `result`; what the client is told of it."""
        self.tickets[ticket.turn_id] = ticket
        self.tickets.move_to_end(ticket.turn_id)
        while len(self.tickets) > TICKETS_KEPT:
            self.tickets.popitem(last=False)
        return about(ticket)

    def ticket(self, turn: int) -> Ticket:
        """A ticket that was handed out before."""
        found = self.tickets.get(turn)
        if found is None:
            raise InvalidInput(
                f"turn {turn} is not among the newest {TICKETS_KEPT:,} that were handed in here since the "
                "host began; send the message again with its key, or look for it with the operation turns"
            )
        return found


def about(ticket: Ticket) -> dict[str, Any]:
    """A ticket, as the socket carries it."""
    return {
        "turn": ticket.turn_id,
        "conversation": ticket.conversation_id,
        "state": ticket.state,
        "content": ticket.content,
    }


def operation(
    name: str, needs: Mapping[str, Field] | None = None, may: Mapping[str, Field] | None = None
) -> Callable[[Do], Do]:
    """Register a function as what an operation does."""

    def register(do: Do) -> Do:
        OPERATIONS[name] = Operation(do, needs or {}, may or {})
        return do

    return register


def _by_id(fields: Fields) -> int | None:
    if "conversation" in fields:
        more = [name for name in ("agent", "sender", "topic", "description") if name in fields]
        if more:
            raise InvalidInput(
                f"name a conversation by its id or by agent and sender, not by both ({more[0]})"
            )
        return int(fields["conversation"])
    for name in PAIR:
        if name not in fields:
            raise InvalidInput(
                "the request names no conversation: it needs conversation (an id), or agent and sender; "
                f"{name} is missing"
            )
    return None


def _call(fields: Fields) -> dict[str, Any]:
    """The keyword arguments of `Runtime.send` that a request gives."""
    names = {"speaker": "sender", "timeout_s": "timeout"}
    every = ("speaker", "guest", "on_busy", "key", "tool_choice", "timeout_s")
    return {names.get(name, name): fields[name] for name in every if name in fields}


def _in_lines(rows: Iterable[Any], part: Part) -> dict[str, int]:
    count, rest = 0, iter(rows)
    while items := [plain(row) for row in islice(rest, ITEMS)]:
        part(items=items)
        count += len(items)
    return {"count": count}


# -- the host ---------------------------------------------------------------------------------------


@operation("hello", may={"protocol": WHOLE})
def _hello(service: Service, fields: Fields, _part: Part) -> Any:
    if fields.get("protocol", VERSION) != VERSION:
        raise ProtocolError(f"this host speaks version {VERSION} of the protocol, not {fields['protocol']}")
    return {
        "protocol": VERSION,
        "palaver": palaver.__version__,
        "instance": service.instance,
        "pid": os.getpid(),
        "database": service.rt.path,
        "agents": [config.name for config in service.rt.agents()],
    }


@operation("stats")
def _stats(service: Service, _fields: Fields, _part: Part) -> Any:
    return plain(service.rt.stats())


@operation("health")
def _health(service: Service, _fields: Fields, _part: Part) -> Any:
    return {"live": plain(live(service.rt)), "ready": plain(ready(service.rt))}


@operation("subscribe", may=PLACE)
def _subscribe(service: Service, fields: Fields, part: Part) -> Any:
    only = service.live_place(fields) if fields else None
    with service.rt.subscribe() as events:
        part(accepted={})
        for info, event in events:
            if only is None or info.id == only:
                part(event=event_to_wire(event), about=plain(info))


# -- turns ------------------------------------------------------------------------------------------


@operation("send", {"content": TEXT}, MESSAGE)
def _send(service: Service, fields: Fields, _part: Part) -> Any:
    return plain(service.rt.send(service.place(fields), fields["content"], **_call(fields)))


@operation("submit", {"content": TEXT}, MESSAGE)
def _submit(service: Service, fields: Fields, _part: Part) -> Any:
    ticket = service.rt.submit(service.place(fields), fields["content"], **_call(fields))
    return service.keep(ticket)


@operation("stream", {"content": TEXT}, MESSAGE)
def _stream(service: Service, fields: Fields, part: Part) -> Any:
    cid = service.place(fields)
    events = service.rt.stream(cid, fields["content"], **_call(fields))
    part(accepted={"conversation": cid})
    _forward(events, part)


@operation("steer", {"content": TEXT}, PLACE)
def _steer(service: Service, fields: Fields, _part: Part) -> Any:
    return service.keep(service.rt.steer(service.live_place(fields), fields["content"]))


@operation("result", {"turn": WHOLE}, {"timeout_s": SECONDS})
def _result(service: Service, fields: Fields, _part: Part) -> Any:
    return plain(service.ticket(fields["turn"]).result(fields.get("timeout_s")))


@operation("events", {"turn": WHOLE})
def _events(service: Service, fields: Fields, part: Part) -> Any:
    events = service.ticket(fields["turn"]).events()
    part(accepted={})
    _forward(events, part)


@operation("cancel", may={**PLACE, "turn": WHOLE})
def _cancel(service: Service, fields: Fields, _part: Part) -> Any:
    turn = fields.pop("turn", None)
    if turn is None:
        return service.rt.cancel(service.live_place(fields))
    if not fields:
        return service.ticket(turn).cancel()
    waiting = service.rt.tickets(service.live_place(fields))
    return any(ticket.turn_id == turn and ticket.cancel() for ticket in waiting)


@operation("tickets", may=PLACE)
def _tickets(service: Service, fields: Fields, part: Part) -> Any:
    tickets = service.rt.tickets(service.live_place(fields))
    return _in_lines([service.keep(ticket) for ticket in tickets], part)


def _forward(events: Iterator[Any], part: Part) -> None:
    try:
        for event in events:
            part(event=event_to_wire(event))
    finally:
        getattr(events, "close", lambda: None)()


# -- conversations ----------------------------------------------------------------------------------


@operation("get_or_create", PAIR)
def _get_or_create(service: Service, fields: Fields, _part: Part) -> Any:
    return {"conversation": service.rt.get_or_create(fields["agent"], fields["sender"])}


@operation("switch_topic", {**PAIR, "topic": TEXT}, {"description": TEXT})
def _switch_topic(service: Service, fields: Fields, _part: Part) -> Any:
    agent, sender, topic = fields["agent"], fields["sender"], fields["topic"]
    return plain(service.rt.switch_topic(agent, sender, topic, fields.get("description")))


@operation("load", {"handle": TEXT})
def _load(service: Service, fields: Fields, _part: Part) -> Any:
    return {"conversation": service.rt.load(fields["handle"])}


@operation("conversation_id", PAIR)
def _conversation_id(service: Service, fields: Fields, _part: Part) -> Any:
    return {"conversation": service.rt.conversation_id(fields["agent"], fields["sender"])}


@operation("conversation", may=PLACE)
def _conversation(service: Service, fields: Fields, part: Part) -> Any:
    snapshot = service.rt.conversation(service.live_place(fields))
    if snapshot is None:
        return None
    facts = plain(snapshot)
    _in_lines(snapshot.history, part)
    del facts["history"]
    return facts


@operation("close", may={**PLACE, "mode": TEXT})
def _close(service: Service, fields: Fields, _part: Part) -> Any:
    mode = fields.pop("mode", "drain")
    return service.rt.close(service.live_place(fields), mode=mode)


@operation("compact", may=PLACE)
def _compact(service: Service, fields: Fields, _part: Part) -> Any:
    return plain(service.rt.compact(service.live_place(fields)))


@operation("list", may=PAIR)
def _list(service: Service, fields: Fields, part: Part) -> Any:
    infos = service.rt.list_active()
    return _in_lines((each for each in infos if _of(each, fields)), part)


def _of(info: Any, fields: Fields) -> bool:
    return all(getattr(info, name) == value for name, value in fields.items())


# -- what is stored ---------------------------------------------------------------------------------


@operation("sessions", may={**PAIR, "topic": TEXT})
def _sessions(service: Service, fields: Fields, part: Part) -> Any:
    return _in_lines(service.rt.sessions(**fields), part)


@operation("transcript", {"handle": TEXT})
def _transcript(service: Service, fields: Fields, part: Part) -> Any:
    return _in_lines(service.rt.transcript(fields["handle"]), part)


@operation("dead_list", may=PAIR)
def _dead_list(service: Service, fields: Fields, part: Part) -> Any:
    return _in_lines(service.rt.dead_letters(**fields), part)


@operation("dead_show", {"turn": WHOLE})
def _dead_show(service: Service, fields: Fields, _part: Part) -> Any:
    return plain(service.rt.dead_letter(fields["turn"]))


@operation("dead_retry", {"turn": WHOLE})
def _dead_retry(service: Service, fields: Fields, _part: Part) -> Any:
    return service.keep(service.rt.retry_dead_letter(fields["turn"]))


@operation("unfinished")
def _unfinished(service: Service, _fields: Fields, part: Part) -> Any:
    return _in_lines(service.rt.unfinished(), part)


@operation("recover", may={"handle": TEXT, "mode": TEXT})
def _recover(service: Service, fields: Fields, _part: Part) -> Any:
    return {"count": service.rt.recover(fields.get("handle"), mode=fields.get("mode", "run"))}


@operation("turns", {"handle": TEXT})
def _turns(service: Service, fields: Fields, part: Part) -> Any:
    return _in_lines(service.rt.turns(fields["handle"]), part)
