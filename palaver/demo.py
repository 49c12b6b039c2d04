"""The demonstration: concurrent senders steer, switch topics, close and resume; then the file is checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import islice

import gevent
from attrs import field, frozen
from gevent.event import Event

from actors.config import AgentConfig
from actors.models.dialogues import (
    Dialogue,
    RecordedModel,
    expected_entries,
    read_dialogues,
    recorded_tools,
)
from actors.ticket import Ticket
from actors.tools import Tool, ToolContext
from palaver.offline import compare_transcripts, inspect, offline, refuse_known_senders
from palaver.running import running
from palaver.runtime import Runtime
from persistence.errors import PalaverError
from persistence.records import HistoryEntry
from persistence.sources import Clock, SystemClock

AGENT = "helper"
PROMPT = "You help people of a small harbour town with everyday things. Answer in a sentence or two."
COMPACT_THRESHOLD = 120  # tokens, estimated: a few exchanges
THINKING_S = 0.03  # how long the embedded model takes for an answer, so that turns overlap
PATIENCE_S = 15.0

# (sender, turn) -> what the sender says while the tools of that turn run.
STEERS: Mapping[tuple[str, int], str] = {
    ("chiara", 1): "Without the cream, please.",
    ("farid", 3): "We also need ten music stands.",
    ("mei", 3): "And no nuts in it, please.",
    ("sven", 0): "There and back, I mean.",
    ("wren", 4): "Have it brought to the back door, please.",
}
# (sender, turn) -> the topic that the sender switches to before that turn.
SWITCHES: Mapping[tuple[str, int], str] = {
    ("ana", 2): "allotment",
    ("ana", 4): "ferry",
    ("jonas", 2): "letters",
    ("jonas", 4): "choir",
    ("priya", 2): "kitchen",
    ("priya", 4): "chess",
}
# (sender, turn): the conversation is closed before that turn, and opened again from the file.
CLOSES: Sequence[tuple[str, int]] = (("bilal", 1), ("dmitri", 1), ("greta", 2), ("omar", 4))


@frozen
class DemoReport:
    """What the demonstration did, and everything that is not as it should be."""

    senders: int
    topics: int
    turns: int
    entries: int
    tool_calls: int
    steers: int
    closes: int
    compactions: int
    archives: int
    running_at_stop: int
    seconds: float
    problems: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems and not self.differences


def demo_dialogues() -> list[Dialogue]:
    """The dialogues that ship with Palaver; each sender's tools and answers are recorded with it."""
    with resources.as_file(resources.files("palaver.data") / "demo.jsonl") as path:
        return read_dialogues(path)


def run_demo(
    path: str | os.PathLike[str],
    *,
    on_turn: Callable[[], object] = lambda: None,
    clock: Clock | None = None,
) -> DemoReport:
    """Let all senders of `demo_dialogues` talk at once, with a stop and a resume in the middle; then check.

    Blocks the calling greenlet, and its thread while the file is checked. However it ends, the file is
    closed.

    Args:
        path: the database; made if it is missing.
        on_turn: called after each turn.
        clock: the machine's if None.

    Raises:
        InvalidInput: the file holds sessions of these senders already.
        StorageError: the file cannot be opened.
    """
    clock = clock or SystemClock()
    dialogues = demo_dialogues()
    refuse_known_senders(path, AGENT, [dialogue.id for dialogue in dialogues])
    parts = [_Part(dialogue, on_turn) for dialogue in dialogues]
    began = clock.monotonic()
    running_at_stop = _first_host(path, parts)
    _second_host(path, parts)
    seconds = clock.monotonic() - began
    with offline(path) as db:
        problems = inspect(db).problems
        stored = compare_transcripts(db, AGENT, _expected(parts))
    return DemoReport(
        senders=len(parts),
        topics=stored.sessions,
        turns=sum(part.done for part in parts),
        entries=stored.entries,
        tool_calls=stored.tool_calls,
        steers=sum(part.steers for part in parts),
        closes=sum(part.closes for part in parts),
        compactions=stored.compactions,
        archives=stored.archives,
        running_at_stop=running_at_stop,
        seconds=seconds,
        problems=problems,
        differences=(*(line for part in parts for line in part.differences), *stored.differences),
    )


def _first_host(path: str | os.PathLike[str], parts: Sequence[_Part]) -> int:
    """Half of every dialogue. Stopped while its last turns run; how many those were."""
    with running(_open(path, parts)) as rt:
        _all(parts, lambda part: part.talk(rt, range(part.half - 1)))
        tickets = _all(parts, lambda part: part.say(rt, part.half - 1))
        stats = rt.stats()
        rt.shutdown()
    for part, ticket in zip(parts, tickets, strict=True):
        part.hear(part.half - 1, ticket)
    return stats.running + stats.queued


def _second_host(path: str | os.PathLike[str], parts: Sequence[_Part]) -> None:
    """The other half, in a new runtime that knows only what is in the file."""
    for part in parts:
        part.forget()
    with running(_open(path, parts)) as rt:
        _all(parts, lambda part: part.talk(rt, range(part.half, len(part.dialogue.turns))))


def _open(path: str | os.PathLike[str], parts: Sequence[_Part]) -> Runtime:
    dialogues = [part.dialogue for part in parts]
    model = RecordedModel(dialogues, delay_s=THINKING_S)
    for part in parts:
        model.seek(part.dialogue.id, part.next)
    gates = {part.dialogue.id: part.gate for part in parts}
    rt = Runtime.open(path, model, tools=[_gated(tool, gates) for tool in recorded_tools(dialogues)])
    rt.add_agent(AgentConfig(AGENT, AGENT, PROMPT, compact_threshold=COMPACT_THRESHOLD))
    return rt


def _all(parts: Sequence[_Part], do: Callable[[_Part], Ticket | None]) -> list[Ticket | None]:
    """What `do` returns for each part, all at the same time."""
    greenlets = [gevent.spawn(do, part) for part in parts]
    try:
        return [greenlet.get() for greenlet in greenlets]
    finally:
        gevent.killall(greenlets)


@frozen
class _Gate:
    """Holds the tools of a turn until its sender has steered it."""

    entered: Event = field(factory=Event)
    open: Event = field(factory=Event)


def _gated(tool: Tool, gates: Mapping[str, _Gate]) -> Tool:
    def give(call: ToolContext, **arguments: object) -> object:
        gates[call.sender].entered.set()
        gates[call.sender].open.wait(PATIENCE_S)
        return tool.function(call=call, **arguments)

    return Tool(give, tool.name, tool.description, tool.parameters)


class _Part:
    """One sender's part of the demonstration, and what was noted of it."""

    def __init__(self, dialogue: Dialogue, on_turn: Callable[[], object]) -> None:
        self.dialogue = dialogue
        self.half = (len(dialogue.turns) + 1) // 2
        self.gate = _Gate()
        self.gate.open.set()
        self.next = 0
        self.done = self.steers = self.closes = 0
        self.differences: list[str] = []
        self._on_turn = on_turn
        self._topics = _topics(dialogue)
        self._begun: list[str] = []
        self._cid: int | None = None

    def talk(self, rt: Runtime, turns: range) -> None:
        """Go through these turns, one after the other."""
        for number in turns:
            self.hear(number, self.say(rt, number))

    def say(self, rt: Runtime, number: int) -> Ticket | None:
        """Begin a turn, and steer it if that is in the script. The turn's ticket; None if that failed."""
        self.next = number + 1
        try:
            cid = self._conversation(rt, number)
            steer = STEERS.get((self.dialogue.id, number))
            if steer is None:
                return rt.submit(cid, self.dialogue.turns[number].user)
            return self._say_and_steer(rt, cid, number, steer)
        except PalaverError as error:
            self._differ(number, f"{type(error).__name__}: {error}")
            return None

    def hear(self, number: int, ticket: Ticket | None) -> None:
        """Wait for the answer, and check it."""
        if ticket is None:
            return
        try:
            result = ticket.result(PATIENCE_S)
        except PalaverError as error:
            self._differ(number, f"{type(error).__name__}: {error}")
            return
        self.done += 1
        self._on_turn()
        wanted = self.dialogue.turns[number].assistant
        if (result.stop_reason, result.text) != ("text_response", wanted):
            said = result.error or f"{result.stop_reason}, {result.text!r}"
            self._differ(number, f"should answer {wanted!r}, gave {said}")

    def forget(self) -> None:
        """The runtime is gone, and its conversations' ids with it."""
        self._cid = None

    def _say_and_steer(self, rt: Runtime, cid: int, number: int, steer: str) -> Ticket:
        self.gate.open.clear()
        self.gate.entered.clear()
        try:
            ticket = rt.submit(cid, self.dialogue.turns[number].user)
            if self.gate.entered.wait(PATIENCE_S):
                rt.steer(cid, steer)
                self.steers += 1
        finally:
            self.gate.open.set()
        return ticket

    def _conversation(self, rt: Runtime, number: int) -> int:
        """The conversation to speak in: opened, closed and switched as the script says."""
        where = (self.dialogue.id, number)
        if where in CLOSES and self._cid is not None:
            self.closes += rt.close(self._cid)
            self._cid = None
        if self._cid is None or where in SWITCHES:
            title, known = self._topics[number], self._topics[number] in self._begun
            about = None if known else self.dialogue.turns[number].user
            outcome = rt.switch_topic(AGENT, self.dialogue.id, title, about)
            if outcome.resumed != known:
                self._differ(number, f"topic {title!r} was {'opened anew' if known else 'there before'}")
            self._begun.append(title)
            self._cid = outcome.conversation_id
        return self._cid

    def _differ(self, number: int, words: str) -> None:
        self.differences.append(f"sender {self.dialogue.id!r}, turn {number}: {words}")

    def transcripts(self) -> dict[tuple[str, str], list[HistoryEntry]]:
        """What must be stored: the sender's topics with their entries."""
        found: dict[tuple[str, str], list[HistoryEntry]] = {}
        recorded = iter(expected_entries(self.dialogue))
        for number, turn in enumerate(self.dialogue.turns):
            entries = [*islice(recorded, 3 + len(turn.calls) if turn.calls else 2)]
            steer = STEERS.get((self.dialogue.id, number))
            if steer is not None:
                entries.insert(-1, HistoryEntry("user", steer, sender=self.dialogue.id))
            found.setdefault((self.dialogue.id, self._topics[number]), []).extend(entries)
        return found


def _topics(dialogue: Dialogue) -> list[str]:
    """The topic of each turn: the first service's, until the script switches."""
    topics: list[str] = []
    title = dialogue.services[0].lower()
    for number in range(len(dialogue.turns)):
        title = SWITCHES.get((dialogue.id, number), title)
        topics.append(title)
    return topics


def _expected(parts: Sequence[_Part]) -> dict[tuple[str, str], list[HistoryEntry]]:
    return {key: entries for part in parts for key, entries in part.transcripts().items()}
