"""The driver's books: what was asked of a host over all its lives, and what it acknowledged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, field

from crash.life import scope_of
from crash.picture import Picture, TurnSeen

NEVER = 1 << 60
Pair = tuple[str, str]

# The caller was told that nothing of its request is stored.
REFUSALS = frozenset(
    {"ConversationClosed", "ConversationNotFound", "ConversationBusy", "NoActiveTurn", "KeyReused"}
)
_GONE = {"ConversationClosed", "ConversationNotFound"}
# What each call may raise; anything else is a violation.
ERRORS: dict[str, set[str]] = {
    "switch": {"ConversationClosed"},
    "submit": _GONE | {"ConversationBusy", "KeyReused"},
    "send": _GONE | {"KeyReused"},
    "steer": _GONE | {"NoActiveTurn"},
    "compact": _GONE | {"CompactionFailed"},
    "cancel": _GONE,
    "open": {"DatabaseInUse"},
}


@define(eq=False)
class Op:
    """One call: what was asked, when, and what came back. Times are numbers of events."""

    name: str
    life: str
    do: str
    facts: dict[str, Any]
    begun: int
    floor: int  # the highest turn id that was acknowledged before
    ended: int | None = None  # when it was acknowledged
    over: int = NEVER  # when it could have no effect any more
    ack: dict[str, Any] | None = None

    @property
    def accepted(self) -> bool:
        return self.ack is not None and "error" not in self.ack

    @property
    def refused(self) -> bool:
        return self.ack is not None and self.ack.get("error") in REFUSALS

    @property
    def told_turn(self) -> int | None:
        """The id of the turn that its caller was told; None if it was told of none."""
        return self.ack.get("turn") if self.ack is not None else None

    @property
    def handle(self) -> str:
        return str(self.facts["handle"])

    @property
    def pair(self) -> Pair:
        return self.facts["agent"], self.facts["sender"]

    def gave(self, value: object) -> bool:
        """Whether it returned `value`."""
        return self.accepted and self.ack is not None and self.ack.get("value") is value


@define(eq=False)
class Message:
    """One content, and every call that brought it: contents are unique, but for those with a key."""

    content: str
    key: str | None
    busy: str
    pair: Pair
    ops: list[Op] = field(factory=list)

    @property
    def accepted(self) -> bool:
        return any(op.accepted for op in self.ops)

    @property
    def refused(self) -> bool:
        return all(op.refused for op in self.ops)


@define(eq=False)
class Ledger:
    """Everything that lives said, in order. `problems` holds what cannot be, whatever the file holds."""

    clock: int = 0
    problems: list[str] = field(factory=list)
    ops: dict[str, Op] = field(factory=dict)
    by_kind: dict[str, list[Op]] = field(factory=lambda: defaultdict(list))
    messages: dict[str, Message] = field(factory=dict)
    by_op: dict[str, Message] = field(factory=dict)  # by the first word of the content
    incarnations: dict[tuple[str, int], list[Op]] = field(factory=lambda: defaultdict(list))
    deletes: dict[str, list[Op]] = field(factory=lambda: defaultdict(list))
    handles_of: dict[Pair, dict[str, None]] = field(factory=lambda: defaultdict(dict))
    contents: dict[int, str] = field(factory=dict)  # of acknowledged turns
    results: dict[int, tuple[str, str, int]] = field(factory=dict)  # acknowledged
    seen: dict[int, TurnSeen] = field(factory=dict)  # as last seen in a file
    unfinished: dict[str, list[int]] = field(factory=dict)  # turns by handle, when the present life began
    unapplied: list[str] = field(factory=list)  # contents of steers, when the present life began
    committed: dict[str, None] = field(factory=dict)  # tool calls whose results are stored
    notes: dict[str, str] = field(factory=dict)  # tool calls, and the life that made them last
    may_fail: bool = False  # whether a life was told to end everything unfinished
    failed_at: str | None = None  # the last life that has done so
    poison: bool = False  # whether a message took its process down again and again
    highest: int = 0
    life: str = ""  # that ended last
    recovers: str = ""  # how the present life opened the file
    _of_key: dict[tuple[Pair, str], dict[str, None]] = field(factory=lambda: defaultdict(dict))
    _open: dict[str, list[Op]] = field(factory=lambda: defaultdict(list))
    _closing: dict[str, None] = field(factory=dict)

    def begin(self, recover: str) -> None:
        """A life begins, and is told to recover what the file holds in this way."""
        self.recovers = recover
        self.may_fail = self.may_fail or recover == "fail"  # also if it dies before it says that it is open

    def hear(self, event: dict[str, Any]) -> None:
        """Book one thing that a life said."""
        self.clock += 1
        kind, life = event["e"], event["life"]
        if kind == "begin":
            self._begun(event, life)
        elif kind == "ack":
            self._acknowledged(event)
        elif kind == "open" and event["recover"] == "fail":
            self.failed_at = life
        elif kind == "log" and not self.poison:
            self.problems.append(f"life {life} logged an error: {event['words']}")
        elif kind == "shutdown":
            self._closing[life] = None
        elif kind == "ended":
            self.life = life
            for op in self._open.pop(life, ()):
                op.over = self.clock

    def hear_all(self, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Book what a life says until its end; the last thing, which is how it ended."""
        last: dict[str, Any] = {}
        for last in events:
            self.hear(last)
        return last

    def retries(self) -> list[list[str]]:
        """Messages with a key that a caller would send again: not answered, and some that were."""
        keyed = [m for m in self.messages.values() if m.key is not None and not m.refused]
        chosen = [m for m in keyed if not m.accepted][-20:] + keyed[-10:]
        return [[*m.pair, m.key or "", m.content] for m in chosen]

    def contents_of_keys(self) -> Iterator[tuple[Pair, list[str]]]:
        """For each key, its pair and all content that was sent with it."""
        return ((pair, list(contents)) for (pair, _key), contents in self._of_key.items())

    def book_picture(self, picture: Picture) -> None:
        """Keep what later pictures are compared with."""
        self.seen.update(picture.turns)
        self.unfinished = defaultdict(list)
        for turn in picture.turns.values():
            if not turn.ended:
                self.unfinished[turn.handle].append(turn.id)
        self.unapplied = [steer.content for steer in picture.steers if steer.applied_turn is None]

    def _begun(self, event: dict[str, Any], life: str) -> None:
        facts = {name: value for name, value in event.items() if name not in ("e", "op", "do", "life")}
        op = Op(event["op"], life, event["do"], facts, self.clock, self.highest)
        self.ops[op.name] = op
        self._open[life].append(op)
        self.by_kind[op.do].append(op)
        if "content" in facts:
            self._message(op)
        if "cid" in facts:
            self.incarnations[life, facts["cid"]].append(op)
        if op.do == "delete":
            self.deletes[op.handle].append(op)

    def _message(self, op: Op) -> None:
        facts = op.facts
        new = Message(facts["content"], facts.get("key"), facts["busy"], op.pair)
        message = self.messages.setdefault(new.content, new)
        self.by_op.setdefault(new.content.split()[0], message)
        message.ops.append(op)
        if message.key is not None:
            self._of_key[op.pair, message.key][message.content] = None
        self.handles_of[op.pair][op.handle] = None

    def _acknowledged(self, event: dict[str, Any]) -> None:
        op = self.ops[event["op"]]
        self._open[op.life].remove(op)
        op.ended = op.over = self.clock
        op.ack = {name: value for name, value in event.items() if name not in ("e", "op", "life")}
        if "error" in op.ack:
            self._failed(op, op.ack)
        elif op.do in ("submit", "send") and op.facts["busy"] != "steer":
            self._turn_acknowledged(op, int(op.ack["turn"]))
        if "text" in op.ack:
            self._result_acknowledged(op.ack)
        if op.ack.get("foreign"):
            self.problems.append(f"G1: memory of {op.pair} shows what is of another scope: {op.ack}")

    def _failed(self, op: Op, ack: dict[str, Any]) -> None:
        expected = ERRORS.get(op.do, set())
        if ack["error"] == "RuntimeClosed" and op.life in self._closing:
            return
        if ack["error"] == "StorageError" and self.recovers == "hold" and op.facts.get("key") is not None:
            return  # the key is of a message of a topic that nobody has opened yet
        if ack["error"] not in expected:
            self.problems.append(f"{op.do} {op.name} raised {ack['error']}: {ack['words']}")
        if ack["error"] == "KeyReused" and not self._key_was_used(op):
            self.problems.append(f"G4: the key of {op.name} was never used for other content: {op.facts}")

    def _key_was_used(self, op: Op) -> bool:
        return len(self._of_key[op.pair, op.facts["key"]]) > 1

    def _turn_acknowledged(self, op: Op, turn: int) -> None:
        content = op.facts["content"]
        if self.contents.setdefault(turn, content) != content:
            self.problems.append(f"G11: turn id {turn} is of {self.contents[turn]!r} and of {content!r}")
        if op.facts["key"] is None and turn <= op.floor:
            self.problems.append(f"G5: {op.name} got turn id {turn} after {op.floor} was acknowledged")
        self.highest = max(self.highest, turn)

    def _result_acknowledged(self, ack: dict[str, Any]) -> None:
        told = (ack["text"], ack["stop"], ack["steps"])
        if self.results.setdefault(ack["turn"], told) != told:
            self.problems.append(f"G4: turn {ack['turn']} gave {self.results[ack['turn']]}, then {told}")


def scope_of_op(op: Op) -> str:
    """The scope of memory that a call was about."""
    return scope_of(*op.pair)
