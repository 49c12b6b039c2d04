"""Full and broken disks under a workload: nothing is acknowledged that is not stored, and nothing hangs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from attrs import define, field
from gevent.event import Event as Signal

from palaver import (
    AgentConfig,
    ConversationClosed,
    ConversationNotFound,
    DatabaseFailed,
    ModelRequest,
    NoActiveTurn,
    Reply,
    Runtime,
    ScriptedModel,
    StorageError,
    Ticket,
    TurnResult,
)
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.database import close_database, open_database
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources
from persistence.verify import verify
from reliability.broken_disk import FATAL, KINDS, BrokenDisk
from reliability.check import Check

AGENT = "crab"
SENDERS = 8
ACTIONS = 6
LATEST = 30  # the commit from which on the disk fails at the latest; a workload has some more
PATIENCE_S = 600.0
ENDED = ("done", "failed", "cancelled", "closed")


@define
class Ledger:
    """What the callers were told. Messages and notes are told apart by their contents."""

    tickets: dict[str, Ticket] = field(factory=dict)
    steers: dict[str, Ticket] = field(factory=dict)
    refused: dict[str, str] = field(factory=dict)
    uncertain: dict[str, str] = field(factory=dict)
    notes: dict[tuple[str, str], str] = field(factory=dict)
    archives: list[tuple[str, str]] = field(factory=list)
    unclosed: bool = False

    def missed(self, what: str, error: StorageError) -> None:
        """A call for `what` failed: it is not stored, or nobody can know."""
        fatal = isinstance(error, DatabaseFailed)
        (self.uncertain if fatal else self.refused)[what] = str(error)


class Point:
    """One workload with one failure in it."""

    def __init__(self, seed: int, kind: str, folder: Path) -> None:
        self.seed = seed
        self.kind = kind
        self.rng = random.Random(f"disk {seed}")
        self.path = folder / f"disk-{seed}.db"
        self.ledger = Ledger()
        self.failures: list[DatabaseFailed] = []
        self.disk = BrokenDisk(self.path, kind, self.rng.randrange(3, LATEST), self.rng)

    def run(self) -> bool:
        """Whether the disk failed at all."""
        with gevent.Timeout(PATIENCE_S, AssertionError("G16: somebody waits for ever")):
            with self._opened(self.disk) as rt:
                tellers = [gevent.spawn(self._talk, rt, f"sender {n}") for n in range(SENDERS)]
                gevent.joinall(tellers, raise_error=True)
                self._check_open(rt)
            self._check_closed(after_restart=False)
            with self._opened(None) as rt:
                wait(PATIENCE_S / 10)
                assert rt.unfinished() == [], f"G2: {rt.unfinished()} are left"
            self._check_closed(after_restart=True)
        return bool(self.disk.hit)

    def _opened(self, disk: BrokenDisk | None) -> Runtime:
        latency = random.Random(f"latency {self.seed}").uniform
        worker = InlineWorker(
            self.path,
            schedule=gevent.spawn_later,
            commit_latency=lambda: latency(0.05, 0.5),
            committer=disk,
        )
        rt = Runtime.open(
            self.path,
            ScriptedModel(self._reply, sleep=wait, keep_requests=0),
            tools=[look],
            worker=worker,
            sources=seeded_sources(VirtualClock(), self.seed),
            on_failure=self.failures.append,
        )
        rt.add_agent(AgentConfig(name=AGENT, model="m", compact_threshold=2_000))
        return rt

    def _reply(self, request: ModelRequest) -> Reply:
        last = request.messages[-1]
        delay = self.rng.random()
        if last["role"] == "user" and self.rng.random() < 0.4:
            return Reply(tool_calls=[("look", {"chars": self.rng.randrange(6_000)})], delay_s=delay)
        words = next(m["content"] for m in reversed(request.messages) if m["role"] == "user")
        return Reply(f"re: {words[:40]}", delay_s=delay)

    # -- the workload ------------------------------------------------------------------------------

    def _talk(self, rt: Runtime, sender: str) -> None:
        rng = random.Random(f"{self.seed} {sender}")
        actions: list[Callable[..., None]] = [self._submit] * 6 + [self._send] * 4
        actions += [self._steer] * 3 + [self._remember, self._compact, self._read, self._close]
        cid: int | None = None
        for number in range(ACTIONS):
            if cid is None or rng.random() < 0.15:
                cid = self._topic(rt, sender, rng.randrange(3)) or cid
            if cid is not None:
                words = f"{sender}, {number}: " + "x" * rng.randrange(4_000)
                try:
                    rng.choice(actions)(rt, cid, words, sender)
                except (ConversationClosed, ConversationNotFound, NoActiveTurn):
                    cid = None
            wait(rng.random())

    def _topic(self, rt: Runtime, sender: str, number: int) -> int | None:
        try:
            return rt.switch_topic(AGENT, sender, f"topic {number}", "about it").conversation_id
        except StorageError:
            return None

    def _submit(self, rt: Runtime, cid: int, words: str, _sender: str) -> None:
        key = words[:20] if len(words) % 2 else None
        try:
            self.ledger.tickets[words] = rt.submit(cid, words, key=key)
        except StorageError as error:
            self.ledger.missed(words, error)

    def _send(self, rt: Runtime, cid: int, words: str, sender: str) -> None:
        self._submit(rt, cid, words, sender)
        if words in self.ledger.tickets:
            outcome(self.ledger.tickets[words])

    def _steer(self, rt: Runtime, cid: int, words: str, _sender: str) -> None:
        try:
            self.ledger.steers[words] = rt.steer(cid, words)
        except StorageError as error:
            self.ledger.missed(words, error)

    def _remember(self, rt: Runtime, _cid: int, words: str, sender: str) -> None:
        try:
            rt.memory.remember(AGENT, sender, words[:20], words)
        except StorageError as error:
            self.ledger.missed(words, error)
        else:
            self.ledger.notes[sender, words[:20]] = words

    def _compact(self, rt: Runtime, cid: int, _words: str, sender: str) -> None:
        try:
            done = rt.compact(cid)
        except StorageError:
            return
        if done.archive is not None:
            self.ledger.archives.append((sender, done.archive))

    def _close(self, rt: Runtime, cid: int, _words: str, _sender: str) -> None:
        try:
            rt.close(cid)
        except StorageError:
            self.ledger.unclosed = True

    def _read(self, rt: Runtime, _cid: int, _words: str, sender: str) -> None:
        if self.kind in FATAL:
            return
        for summary in rt.sessions(AGENT, sender):  # reads go on, whatever has no room
            rt.transcript(summary.handle)
            rt.turns(summary.handle)
        rt.memory.entries(AGENT, sender)

    # -- what must be true -------------------------------------------------------------------------

    def _check_open(self, rt: Runtime) -> None:
        for sender in range(SENDERS):
            self._read(rt, 0, "", f"sender {sender}")
        for ticket in (*self.ledger.tickets.values(), *self.ledger.steers.values()):
            outcome(ticket)  # everybody is answered
        if self.kind in FATAL:
            self._check_refusals(rt)
            return
        assert not self.failures, f"G16: a full disk is taken for a broken one: {self.failures}"
        self.disk.heal()
        for cid in rt.conversations():
            words = f"there is room again, {cid}"
            self.ledger.tickets[words] = rt.submit(cid, words)
            assert self.ledger.tickets[words].result().stop_reason == "text_response"
        cid = rt.switch_topic(AGENT, "late", "topic", "about it").conversation_id
        assert rt.send(cid, "a new one, too").stop_reason == "text_response"

    def _check_refusals(self, rt: Runtime) -> None:
        """After a failure nothing is acknowledged any more, and nothing can be read that may not be there."""
        if not self.disk.hit:
            return
        assert [type(error) for error in self.failures] == [DatabaseFailed], "G16: the host is not told, once"
        assert repr(str(self.path)) in str(self.failures[0])
        calls: list[Callable[[], object]] = [
            lambda: rt.switch_topic(AGENT, "late", "topic", "about it"),
            lambda: rt.memory.remember(AGENT, "late", "note", "words"),
            rt.sessions,
            *(lambda cid=cid: rt.submit(cid, "too late") for cid in rt.conversations()),
        ]
        for call in calls:
            try:
                value = call()
            except DatabaseFailed:
                continue
            raise AssertionError(f"G16: {value!r} is given although the database has failed")

    def _check_closed(self, *, after_restart: bool) -> None:
        db = open_database(self.path, create=False)
        try:
            problems = verify(db)
            assert problems == [], f"G3: {problems[:5]}"
            turns = db.execute("SELECT content, state, result, id FROM turns").fetchall()
            said = db.execute("SELECT turn_id, json_extract(body, '$.role'), body FROM entries").fetchall()
            steers = [row[0] for row in db.execute("SELECT content FROM steers").fetchall()]
            notes = db.execute("SELECT scope, kind, name, content FROM memory_entries").fetchall()
        finally:
            close_database(db)
        self._check_messages(turns, steers, after_restart)
        self._check_results(turns, [(turn, role, body) for turn, role, body in said])
        self._check_memory(notes)

    def _check_messages(self, turns: list[Any], steers: list[str], after_restart: bool) -> None:
        ledger = self.ledger
        stored = [content for content, *_ in turns]
        for words in ledger.tickets:
            assert stored.count(words) == 1, (
                f"G1: {words[:40]!r} is acknowledged, and {stored.count(words)} times there"
            )
        for words in ledger.steers:
            assert words in steers or words in stored, (
                f"G1: the steer {words[:40]!r} is acknowledged and not there"
            )
        states = {content: state for content, state, *_ in turns}
        for words, error in ledger.refused.items():
            # A steer whose turn ended before it was stored is two writes: refused at the second, it is kept
            # as a turn that failed.
            kept = states.get(words) == "failed" if words in steers else words not in stored
            assert kept, f"G16: {words[:40]!r} is stored, and was refused: {error}"
        assert len({*stored}) == len(stored), "G1: a message is there twice"
        if after_restart:
            open_ones = [content[:40] for content, state, *_ in turns if state not in ENDED]
            assert open_ones == [], f"G2: {open_ones} have not ended"

    def _check_results(self, turns: list[Any], said: list[tuple[int, str, str]]) -> None:
        rows = {content: (state, id_) for content, state, _, id_ in turns}
        for words, ticket in self.ledger.tickets.items():
            state, id_ = rows[words]
            told = outcome(ticket)
            if isinstance(told, TurnResult):
                assert state == ticket.state, (
                    f"G2: {words[:40]!r} was {ticket.state}, and is {state} in the file"
                )
            elif self.kind not in FATAL and not self.ledger.unclosed:
                assert state == "failed", f"G16: the end of {words[:40]!r} was not stored, and it is {state}"
            if isinstance(told, TurnResult) and told.stop_reason == "text_response":
                bodies = [(role, body) for turn, role, body in said if turn == id_]
                assert sum(words in body for role, body in bodies if role == "user") == 1, "G3: half a turn"
                assert told.text in bodies[-1][1], "G3: a turn without its answer"

    def _check_memory(self, stored: list[tuple[str, str, str, str]]) -> None:
        notes = {(scope, name): content for scope, kind, name, content in stored if kind == "note"}
        for key, words in self.ledger.notes.items():
            assert notes.get(key) == words, f"G1: the note {key} is acknowledged and not there"
        archives = [(scope, name) for scope, kind, name, _ in stored if kind == "archive"]
        for archive in self.ledger.archives:
            assert archives.count(archive) == 1, f"G9: the archive {archive} is acknowledged and not there"
        for words in self.ledger.refused:
            assert words not in notes.values(), f"G16: the note {words[:40]!r} was refused and is there"


def outcome(ticket: Ticket) -> TurnResult | Exception:
    """What a ticket ends with."""
    try:
        return ticket.result()
    except Exception as error:
        return error


def look(chars: int) -> str:
    """Look at something large."""
    return "y" * chars


def wait(seconds: float) -> None:
    """Let virtual time pass."""
    Signal().wait(seconds)


def run(count: int, seed: int, folder: Path) -> int:
    """Make the disk of `count` workloads fail, in all ways by turns."""
    done = number = 0
    while done < count:
        one = seed * 1_000_003 + number
        kind = KINDS[done % len(KINDS)]
        point = Point(one, kind, folder)
        try:
            done += run_virtual(point.run, rng=random.Random(one))
        except BaseException as error:
            error.add_note(f"disk: {kind}, see it again: reliability.disks.see({one}, {kind!r}, Path(...))")
            raise
        number += 1
        for file in folder.glob("disk-*"):
            file.unlink()
        assert number < 10 * count + 20, "too few workloads come to where their disk fails"
    return done


def see(seed: int, kind: str, folder: Path) -> None:
    """One point again; its file is left in `folder`."""
    run_virtual(Point(seed, kind, folder).run, rng=random.Random(seed))


CHECKS = (Check("full-disk", (1, 2, 3, 9, 16), "points", 20, 400, run, chunk=50),)
