"""One order: many callers in many conversations on a real database thread, and what the file, the tickets,
the events and the model say of the order in which it all happened.

Every conversation has several callers, each with a sender's name of its own. They send and wait, submit
ahead, stream, ask guests, steer and interrupt. Afterwards each conversation's transcript must be one order
that fits everybody: its turns are blocks, first in first out for what was queued, interrupts before what came
after them; whoever saw one message end before it sent another finds them in that order; the ends that a
subscriber saw, and the turns that the model was asked, came in the same one. And the model never worked for
two turns of a conversation at once.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from attrs import define, field

from palaver import (
    AgentConfig,
    Chunk,
    Done,
    Lagged,
    Limits,
    MailboxFull,
    ModelRequest,
    NoActiveTurn,
    Runtime,
    Ticket,
    ToolCallDelta,
    TurnResult,
)
from persistence.database import close_database, open_database
from persistence.verify import verify
from reliability.check import Check
from reliability.stage import quiet

AGENT, GUEST = "crab", "owl"
CALLERS = 4  # of each conversation
MESSAGES = 12  # of each caller; a few of them enter other turns as steers
MOST_CONVERSATIONS = 250
AHEAD = 3  # messages that a caller has under way at most
PATIENCE_S = 300.0
KINDS = ("submit",) * 9 + ("send", "send", "stream", "guest", "steer", "steer", "interrupt")
JUMPERS = ("interrupt", "steer")
LIMITS = Limits(event_buffer=10_000_000)


@define(eq=False)
class Sent:
    """One message, and what its caller knows; `called`, `accepted` and `ended` are moments of the run."""

    words: str
    kind: str
    sender: str
    called: int
    accepted: int | None = None
    ended: int | None = None
    ticket: Ticket | None = None
    result: TurnResult | None = None


class Watcher:
    """A model that answers at once, or after a few turns of the hub, and notes for whom it works."""

    def __init__(self, seed: int, moments: Iterator[int]) -> None:
        self._rng = random.Random(f"model {seed}")
        self._moments = moments
        self.at_work: dict[int, int] = {}
        self.asked: dict[int, dict[int, int]] = {}  # conversation -> its turns in order, and when they began
        self.wrong: list[str] = []

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        cid, turn = request.conversation_id, request.turn_id
        if cid in self.at_work:
            self.wrong.append(f"G6: turns {self.at_work[cid]} and {turn} run at once in conversation {cid}")
        turns = self.asked.setdefault(cid, {})
        if turn in turns and next(reversed(turns)) != turn:
            self.wrong.append(f"G6: turn {turn} goes on in conversation {cid} after another has begun")
        turns.setdefault(turn, next(self._moments))
        self.at_work[cid] = turn
        try:
            yield from self._answer(request)
        finally:
            del self.at_work[cid]

    def _answer(self, request: ModelRequest) -> Iterator[Chunk]:
        chance = self._rng.random()
        last = request.messages[-1]
        for _ in range(int(chance * 12) if chance > 0.8 else 0):
            gevent.sleep(0)
        if chance < 0.2 and last["role"] == "user" and request.tools:
            call = ToolCallDelta(0, f"c{request.turn_id}", "look", "{}")
            yield Chunk(tool_calls=(call,), finish_reason="tool_calls")
        else:
            yield Chunk("re: " + str(last["content"])[:60], finish_reason="stop")


def look() -> str:
    for _ in range(8):
        gevent.sleep(0)
    return "seen"


class Load:
    """The callers of one run, and what they and a subscriber saw."""

    def __init__(self, rt: Runtime, conversations: int, seed: int, moments: Iterator[int]) -> None:
        self._rt = rt
        self._seed = seed
        self._moments = moments
        self.sent: dict[int, list[Sent]] = {}
        self.ends: dict[int, list[TurnResult]] = {}
        self.lagged = False
        self._events = rt.subscribe()
        self._conversations = conversations

    def run(self) -> None:
        listening = gevent.spawn(self._listen)
        callers = [
            gevent.spawn(self._talk, conversation, number)
            for conversation in range(self._conversations)
            for number in range(CALLERS)
        ]
        gevent.joinall(callers, raise_error=True)
        self._events.end()
        listening.get()

    def _listen(self) -> None:
        for info, event in self._events:
            if isinstance(event, Done):
                self.ends.setdefault(info.id, []).append(event.result)
            elif isinstance(event, Lagged):
                self.lagged = True

    def _talk(self, conversation: int, number: int) -> None:
        rng = random.Random(f"{self._seed} {conversation} {number}")
        cid = self._rt.switch_topic(AGENT, f"user {conversation}", "work", "d").conversation_id
        sender = f"caller {number}"
        mine = self.sent.setdefault(cid, [])
        ahead: list[Sent] = []
        for message in range(MESSAGES):
            kind = rng.choice(KINDS)
            sent = Sent(f"{kind} {message} of {sender}", kind, sender, next(self._moments))
            if self._call(cid, sent):
                mine.append(sent)
                if sent.result is None:
                    ahead.append(sent)
            while len(ahead) > rng.randrange(AHEAD + 1):
                self._wait(ahead.pop(0))
        for sent in ahead:
            self._wait(sent)

    def _call(self, cid: int, sent: Sent) -> bool:
        """Whether the message was taken."""
        rt, words, sender = self._rt, sent.words, sent.sender
        try:
            if sent.kind == "send":
                self._ended(sent, rt.send(cid, words, sender=sender))
            elif sent.kind == "stream":
                *_, done = rt.stream(cid, words, sender=sender)
                self._ended(sent, done.result)
            elif sent.kind == "steer":
                sent.ticket = rt.steer(cid, words)
            elif sent.kind == "interrupt":
                sent.ticket = rt.submit(cid, words, sender=sender, on_busy="interrupt")
            else:
                guest = GUEST if sent.kind == "guest" else None
                sent.ticket = rt.submit(cid, words, sender=sender, guest=guest)
        except (NoActiveTurn, MailboxFull):
            return False
        sent.accepted = next(self._moments)
        return True

    def _wait(self, sent: Sent) -> None:
        assert sent.ticket is not None
        self._ended(sent, sent.ticket.result())

    def _ended(self, sent: Sent, result: TurnResult) -> None:
        sent.result, sent.ended = result, next(self._moments)


# -- what must fit ---------------------------------------------------------------------------------


@define(eq=False)
class Block:
    """What a transcript has of one turn: its user entries, the message and steers, in order."""

    turn: int
    said: list[str] = field(factory=list)


class Transcript:
    """One conversation as the file has it."""

    def __init__(self, rows: Iterable[tuple[int, str, str]], steers: dict[str, int]) -> None:
        self.steers = steers  # their ids, by their words
        self.blocks: list[Block] = []
        self.broken: list[int] = []
        seen: dict[int, bool] = {}
        for turn, role, content in rows:
            if not self.blocks or self.blocks[-1].turn != turn:
                if turn in seen:
                    self.broken.append(turn)
                seen[turn] = True
                self.blocks.append(Block(turn))
            if role == "user":
                self.blocks[-1].said.append(content)

    @property
    def turns(self) -> list[int]:
        return [block.turn for block in self.blocks]


class Checked:
    """A conversation's transcript against what was seen of it."""

    def __init__(self, cid: int, transcript: Transcript, load: Load, model: Watcher) -> None:
        self.cid, self.transcript = cid, transcript
        self.sent = {sent.words: sent for sent in load.sent[cid]}
        self.ends = load.ends.get(cid, [])
        self.asked = model.asked.get(cid, {})

    def problems(self) -> Iterator[str]:
        where = f"conversation {self.cid}: "
        for check in (self._blocks, self._messages, self._queue, self._first, self._real_time, self._seen):
            for problem in check():
                yield f"G5: {where}{problem}"

    def _blocks(self) -> Iterator[str]:
        for turn in self.transcript.broken:
            yield f"the entries of turn {turn} are not in one place"

    def _messages(self) -> Iterator[str]:
        """Each message is there once, as its own turn or as a steer in the turn that its ticket names."""
        said = Counter(words for block in self.transcript.blocks for words in block.said)
        sent = Counter(self.sent.keys())
        if said != sent:
            yield f"the transcript has {said - sent}, which was not accepted, and not {sent - said}"
        for block in self.transcript.blocks:
            for words in block.said:
                sent = self.sent.get(words)
                if sent is not None and sent.result is not None and sent.result.turn_id != block.turn:
                    yield f"{words!r} is in turn {block.turn}, its result is of {sent.result.turn_id}"
            steers = [self.transcript.steers.get(words, 0) for words in block.said[1:]]
            if 0 in steers or steers != sorted(steers):
                yield f"turn {block.turn} has {block.said}, with the steers {steers}"

    def _turns(self) -> Iterator[tuple[int, Sent]]:
        """Each turn, and the message that it answers."""
        for block in self.transcript.blocks:
            if block.said and block.said[0] in self.sent:
                yield block.turn, self.sent[block.said[0]]

    def _queue(self) -> Iterator[str]:
        """First in, first out for what was queued; nothing runs before an interrupt that came before it. Turn
        ids are given in the order of the calls."""
        last: dict[str, int] = {}
        for turn, sent in self._turns():
            kind = sent.kind if sent.kind in JUMPERS else "queued"
            ahead = max(last.get(kind, 0), last.get("queued", 0))
            if turn < ahead and kind != "steer":
                yield f"turn {turn} ({sent.words!r}) ran after turn {ahead}"
            last[kind] = max(turn, last.get(kind, 0))

    def _first(self) -> Iterator[str]:
        """What interrupts, or steered too late, goes before what had not begun when it was accepted. One turn
        may be beginning, which is a commit, when a steer proves to be late."""
        turns = [*self._turns()]
        for place, (_, jumper) in enumerate(turns):
            if jumper.kind in JUMPERS and jumper.accepted is not None:
                overtaken = [
                    turn
                    for turn, sent in self._before(turns[:place], jumper.accepted)
                    if sent.kind not in JUMPERS
                ]
                if len(overtaken) > (jumper.kind == "steer"):
                    yield f"{jumper.words!r} was accepted before turns {overtaken} began, and ran after them"

    def _before(self, turns: Sequence[tuple[int, Sent]], moment: int) -> Iterator[tuple[int, Sent]]:
        """The last of these turns, as far as their model was asked after the moment."""
        for turn, sent in reversed(turns):
            if turn in self.asked and self.asked[turn] <= moment:
                return
            if turn in self.asked:
                yield turn, sent

    def _real_time(self) -> Iterator[str]:
        """Who saw a message end before it sent another one finds them in that order."""
        latest, of = 0, ""
        for _, sent in self._turns():
            if sent.ended is not None and sent.ended < latest:
                yield f"{sent.words!r} had ended when {of!r} was called, but comes after it"
            if sent.called > latest:
                latest, of = sent.called, sent.words

    def _seen(self) -> Iterator[str]:
        turns = self.transcript.turns
        ends = [result.turn_id for result in self.ends]
        if ends != turns:
            yield f"a subscriber saw the ends {ends}, the transcript is {turns}"
        asked = [turn for turn in turns if turn in self.asked]
        if asked != [*self.asked]:
            yield f"the model was asked for {[*self.asked]}, the transcript is {turns}"


def transcripts(path: Path) -> dict[str, Transcript]:
    """All transcripts of a closed file, by the sender of their conversation."""
    with closing(sqlite3.connect(path)) as db:
        rows: dict[int, list[tuple[int, str, str]]] = {}
        for session, turn, role, content in db.execute(
            """SELECT session_id, turn_id, json_extract(body, '$.role'), json_extract(body, '$.content')
                FROM entries ORDER BY session_id, seq"""
        ):
            rows.setdefault(session, []).append((turn, role, content))
        steers: dict[int, dict[str, int]] = {}
        for session, words, id_ in db.execute("SELECT session_id, content, id FROM steers"):
            steers.setdefault(session, {})[words] = id_
        sessions = db.execute("SELECT id, sender FROM sessions").fetchall()
    return {sender: Transcript(rows.get(id_, []), steers.get(id_, {})) for id_, sender in sessions}


def played(path: Path, conversations: int, seed: int) -> tuple[Load, Watcher, dict[int, str]]:
    """A run on a new file; the sender of each conversation."""
    moments = count(1)
    model = Watcher(seed, moments)
    hangs = AssertionError(f"G2: somebody waits for ever (seed {seed})")
    with (
        gevent.Timeout(PATIENCE_S, hangs),
        Runtime.open(path, model, tools=[look], limits=LIMITS) as rt,
    ):
        for name in (AGENT, GUEST):
            rt.add_agent(AgentConfig(name=name, auto_title=False, compact_threshold=None))
        load = Load(rt, conversations, seed, moments)
        load.run()
        senders = {info.id: info.sender for info in rt.list_active()}
    return load, model, senders


def run(turns: int, seed: int, folder: Path) -> int:
    """At least so many turns, in runs of some hundred conversations."""
    done = number = 0
    with quiet():
        while done < turns:
            conversations = max(1, min(MOST_CONVERSATIONS, (turns - done) // (CALLERS * MESSAGES) + 1))
            done += one(folder / f"{number}.db", conversations, seed * 1_000 + number)
            number += 1
    return done


def one(path: Path, conversations: int, seed: int) -> int:
    """One run; the turns that it took."""
    load, model, senders = played(path, conversations, seed)
    problems = [*model.wrong]
    if load.lagged:
        problems.append("the subscriber lagged: no order can be seen")
    stored = transcripts(path)
    for cid, sender in senders.items():
        problems += Checked(cid, stored[sender], load, model).problems()
    problems += verified(path)
    path.unlink()
    assert not problems, f"seed {seed}, {conversations} conversations:\n" + "\n".join(problems[:8])
    return sum(len(transcript.blocks) for transcript in stored.values())


def verified(path: Path) -> Sequence[str]:
    db: Any = open_database(path, create=False)
    try:
        return verify(db)
    finally:
        close_database(db)


CHECKS = (Check("order", (5, 6), "turns", quick=10_000, long=500_000, run=run, chunk=25_000),)
