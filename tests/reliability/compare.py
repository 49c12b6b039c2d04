"""Comparing a real Palaver with the plain one, after every step, and a killed one's file with its commits."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
from attrs import frozen

from palaver import (
    AgentNotRegistered,
    Done,
    ResultTimeout,
    TextDelta,
    TextEnd,
    TextStart,
    UserSteered,
)
from persistence.codec import decode_entry, decode_result
from persistence.records import HistoryEntry, TurnResult, TurnRow
from persistence.verify import verify
from reliability.plain_chat import TITLE, Chat, Compaction, Message, Promise, Turn
from reliability.plain_records import STATES, Note, Part, Place, Result, Row, Session, Store
from reliability.plain_world import World
from reliability.stage import AGENTS, INJECTED, Asked, Life

JOURNAL_EVERY = 5  # steps: reading it takes as long as all the rest

# -- what a call gives -----------------------------------------------------------------------------


def equal(expected: Any, real: Any) -> None:
    assert expected == real, f"expected {expected!r}, not {real!r}"


def same_result(expected: Result, real: TurnResult) -> None:
    seen = (real.stop_reason, real.text, real.steps, real.usage.total_tokens)
    assert seen == (expected.stop, expected.text, expected.steps, expected.tokens), f"{expected} is {real}"
    assert expected.error in (real.error or ""), f"{expected} is {real}"
    assert (real.error is None) == (not expected.error)


def same_note(expected: Note, real: Any) -> None:
    equal(expected, Note(real.kind, real.name, real.content, real.aliases))


def same_notes_in_any_order(expected: Sequence[Note], real: Sequence[Any]) -> None:
    seen = [Note(note.kind, note.name, note.content, note.aliases) for note in real]
    equal(sorted(map(repr, expected)), sorted(map(repr, seen)))


def itself(reply: Promise) -> Promise:
    return reply


def the_end(reply: Promise) -> Promise:
    """The end of the message that was accepted."""
    if not reply.settled or reply.error is not None:
        return reply
    if isinstance(reply.value, Message):
        return reply.value.end
    return Promise(reply.value.result, settled=True)


def ends_in_time(message: Message, reply: Promise) -> None:
    """What a short wait for a message gives."""
    if message.end.error is not None:
        reply.break_(message.end.error)
    elif message.end.settled:
        reply.keep(message.end.value)
    else:
        reply.break_(ResultTimeout)


def summarizes(chat: Chat) -> bool:
    """Whether the conversation waits for a summary."""
    turn = chat.turn
    return isinstance(chat.activity, Compaction) or (turn is not None and turn.phase == "summary")


@frozen
class Open:
    """A call under way."""

    reply: Promise
    call: gevent.Greenlet
    same: Callable[[Any, Any], None]
    then: Callable[[Promise], Promise]


class View:
    """What has been seen of one process after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stored_ids: dict[int, bool] = {}  # of all processes
        self._steps = 0

    def begin(self, life: Life) -> None:
        """A new process."""
        self.life = life
        self.tickets: list[tuple[Message, Chat]] = []  # of messages that have not ended
        self.gone: list[Chat] = []
        self.summaries: list[tuple[Asked, Promise]] = []
        self._open: list[Open] = []
        self._live: list[Chat] = []
        self._cids: dict[int, Chat] = {}
        self._ids: dict[int, Row] = {}
        self._told: dict[int, int] = {}

    def expect(
        self,
        reply: Promise,
        call: gevent.Greenlet,
        same: Callable[[Any, Any], None] = equal,
        then: Callable[[Promise], Promise] = itself,
    ) -> None:
        self._open.append(Open(reply, call, same, then))

    # -- values that only this process can know ----------------------------------------------------

    def same_chat(self, expected: Chat, cid: int) -> None:
        self._learn_chat(expected, cid)
        equal(expected.cid, cid)

    def same_switch(self, expected: tuple[Chat, bool], outcome: Any) -> None:
        self.same_chat(expected[0], outcome.conversation_id)
        equal(expected[1], outcome.resumed)

    def same_compaction(self, expected: tuple[str | None, str | None], outcome: Any) -> None:
        equal(expected, (outcome.archive, outcome.summary))

    def same_ticket(self, expected: Message | Row, ticket: Any) -> None:
        if isinstance(expected, Row):
            assert expected.result is not None
            equal(expected.id, ticket.turn_id)
            same_result(expected.result, ticket.result(timeout=0))
        elif expected.ticket is None:
            self._learn_ticket(expected, ticket)
        else:
            assert expected.ticket is ticket, f"{ticket} is not {expected.ticket}"

    def same_result(self, expected: Result, real: TurnResult) -> None:
        same_result(expected, real)

    def same_events(self, message: Message, expected: Result, events: list[Any]) -> None:
        assert isinstance(events[-1], Done)
        same_result(expected, events[-1].result)
        open_ = False
        for event in events[:-1]:
            assert not isinstance(event, Done)
            if isinstance(event, TextStart | TextDelta | TextEnd):
                assert open_ != isinstance(event, TextStart), events
                open_ = not isinstance(event, TextEnd)
        assert not open_, events
        if message.ticket is not None and message.turn is None:
            equal(message.steered, [event.content for event in events if isinstance(event, UserSteered)])

    def _learn_chat(self, chat: Chat, cid: int) -> None:
        if chat.cid:
            return
        assert cid not in self._cids, f"the id {cid} was used before"
        chat.cid = cid
        self._cids[cid] = chat
        self._live.append(chat)
        if chat.session is not None:
            shown = self.life.rt.conversation(cid)
            handle = "" if shown is None else shown.handle or ""
            if not chat.session.handle:
                others = [s.handle for s in self.world.store.sessions.values()]
                assert handle not in others
                chat.session.handle = handle
            elif shown is not None:
                equal(chat.session.handle, handle)

    def _learn_ticket(self, message: Message, ticket: Any) -> None:
        message.ticket = ticket
        self._learn_id(message.row, ticket.turn_id)
        chat = self._cids[ticket.conversation_id]
        self.tickets.append((message, chat))

    def _learn_id(self, row: Row, id_: int) -> None:
        if not row.id:
            assert id_ not in self._ids, f"two messages have the id {id_}"
            assert id_ not in self.stored_ids, f"the id {id_} was used before"
            row.id = id_
        self._ids[id_] = row
        equal(row.id, id_)

    # -- after every step --------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that is quickly seen."""
        self._steps += 1
        self._check_listing()
        for open_ in [*self._open]:
            self._check_call(open_)
        for chat in self.world.chats:
            self._check_queue(chat)
        for message, chat in [*self.tickets]:
            self._check_ticket(message, chat)
        self._check_told()
        self._check_asked()
        sessions = [*self.world.store.sessions.values()]
        if sessions and self._steps % JOURNAL_EVERY == 0:
            self._check_journal(sessions[self._steps // JOURNAL_EVERY % len(sessions)])

    def _check_listing(self) -> None:
        infos = {info.id: info for info in self.life.rt.list_active()}
        for chat in self.world.chats:
            if not chat.cid:
                self._learn_chat(chat, self._new_cid(chat, infos))
        self.gone += [chat for chat in self._live if chat not in self.world.chats]
        self._live = [chat for chat in self._live if chat in self.world.chats]
        expected = {
            c.cid: (c.agent, c.sender, c.topic, c.title, c.phase, len(c.history), len(c.queue))
            for c in self.world.chats
        }
        seen = {
            i.id: (i.agent, i.sender, i.topic, i.title, i.state, i.message_count, i.queued)
            for i in infos.values()
        }
        equal(expected, seen)

    def _new_cid(self, chat: Chat, infos: dict[int, Any]) -> int:
        like = (chat.agent, chat.sender, chat.topic)
        found = [i.id for i in infos.values() if (i.agent, i.sender, i.topic) == like]
        new = [cid for cid in found if cid not in self._cids]
        assert new, f"no conversation of {like} is live"
        return new[0]

    def _check_call(self, open_: Open) -> None:
        expected = open_.then(open_.reply)
        assert open_.call.ready() == expected.settled, (
            f"a call that must {'have ended' if expected.settled else 'wait'} has "
            f"{'not ended' if expected.settled else f'ended: {open_.call.value}'}: {expected}"
        )
        if not expected.settled:
            return
        self._open.remove(open_)
        value, error = open_.call.value
        if type(error) is not (expected.error or type(None)):
            raise AssertionError(f"the call must give {expected}, not {value!r}, {error!r}") from error
        if error is None:
            open_.same(expected.value, value)

    def _check_queue(self, chat: Chat) -> None:
        tickets = self.life.rt.tickets(chat.cid)
        equal([message.row.text for message in chat.messages], [ticket.content for ticket in tickets])
        for message, ticket in zip(chat.messages, tickets, strict=True):
            if message.ticket is None:
                self._learn_ticket(message, ticket)
            assert message.ticket is ticket
            running = chat.turn is not None and chat.turn.message is message
            equal("running" if running else "queued", ticket.state)
        shown = self.life.rt.conversation(chat.cid)
        assert shown is not None
        equal(tuple(chat.history[-8:]), shown.history[-8:])

    def _check_ticket(self, message: Message, chat: Chat) -> None:
        equal(message.end.settled, message.ticket.done)
        if not message.end.settled:
            return
        self.tickets.remove((message, chat))
        try:
            result = message.ticket.result(timeout=0)
        except Exception as error:
            equal(message.end.error, type(error))
            return
        assert message.end.error is None
        same_result(message.end.value, result)
        last = message if message.turn is None else message.turn
        equal((last.row.id, last.row.id), (message.ticket.turn_id, result.turn_id))
        equal(STATES[message.end.value.stop], message.ticket.state)

    def _check_told(self) -> None:
        """What all subscribers hear: each end once, in order."""
        for cid, chat in self._cids.items():
            before, told = self._told.get(cid, 0), self.life.told.get(cid, [])
            equal(len(chat.told), len(told))
            for (row, expected), result in zip(chat.told[before:], told[before:], strict=True):
                self._learn_id(row, result.turn_id)
                same_result(expected, result)
            self._told[cid] = len(told)

    # -- what models and tools are asked -----------------------------------------------------------

    def asked(self, chat: Chat) -> Asked:
        """The request of the running turn."""
        return self._request(chat, "turn")

    def asked_summary(self, chat: Chat) -> Asked:
        """The request for the summary of the running activity."""
        return self._request(chat, "compact")

    def _request(self, chat: Chat, purpose: str) -> Asked:
        mine = [asked for asked, _ in self.summaries]
        return next(
            asked
            for asked in self.life.model.waiting
            if (asked.request.purpose, asked.request.conversation_id) == (purpose, chat.cid)
            and asked not in mine
        )

    def _check_asked(self) -> None:
        thinking = [c for c in self.world.chats if c.turn is not None and c.turn.phase == "model"]
        expected = [("turn", chat.cid) for chat in thinking]
        expected += [("compact", chat.cid) for chat in self.world.chats if summarizes(chat)]
        expected += [("compact", asked.request.conversation_id) for asked, _ in self.summaries]
        waiting = self.life.model.waiting
        equal(sorted(expected), sorted((a.request.purpose, a.request.conversation_id) for a in waiting))
        for chat in thinking:
            asked = self.asked(chat)
            if not asked.checked:
                asked.checked = True
                assert chat.turn is not None
                self._check_request(chat, chat.turn, asked.request)
        calls = [call.call.id for c in self.world.chats if c.turn is not None for call in c.turn.open_calls]
        equal(sorted(calls), sorted(self.life.tools))

    def _check_request(self, chat: Chat, turn: Turn, request: Any) -> None:
        row = turn.message.row
        equal((row.id, turn.config.name), (request.turn_id, request.agent))
        messages = wire(request.messages)
        equal(1, messages.count(("system", INJECTED)))
        messages.remove(("system", INJECTED))
        prompt = [("system", turn.config.system_prompt)] if turn.config.system_prompt else []
        if row.guest is not None:
            equal(("user", chat.shown[-1].content), messages[-1])
            equal([], request.tools)
        else:
            equal(prompt + [spoken(entry) for entry in chat.shown], messages)

    def summaries_of(self, chat: Chat, reply: Promise) -> None:
        """What a call for a summary gives at once, if it does not wait for a model."""
        if self.world.of(chat, reply):
            if not chat.history:
                reply.keep(None)
            elif chat.agent not in self.world.agents:
                reply.break_(AgentNotRegistered)
        self._summary = reply

    def note_summaries(self, asked: list[Asked]) -> None:
        """What that call has asked."""
        equal(0 if self._summary.settled else 1, len(asked))
        self.summaries += [(one, self._summary) for one in asked]

    # -- what is stored ----------------------------------------------------------------------------

    def _check_journal(self, session: Session) -> None:
        rows = sorted(session.rows, key=lambda row: row.number)
        stored = self.life.rt.turns(session.handle)
        equal([row.text for row in rows], [row.content for row in stored])
        for row, real in zip(rows, stored, strict=True):
            self._check_row(row, real)
        equal(session.entries, self.life.rt.transcript(session.handle))

    def _check_row(self, row: Row, real: TurnRow) -> None:
        self._learn_id(row, real.id)
        self.stored_ids[real.id] = True
        expected = (row.text, row.sender, row.guest, row.key, row.state, row.attempts)
        equal(expected, (real.content, real.sender, real.guest, real.key, real.state, real.attempts))
        if row.result is not None:
            assert real.result is not None
            same_result(row.result, real.result)

    def check_everything(self) -> None:
        """All that is stored, and who is where."""
        rt, world = self.life.rt, self.world
        listed = {s.handle: (s.agent, s.sender, s.topic, s.title, s.archive) for s in rt.sessions()}
        equal({s.handle: (*s.place, s.title, s.archive) for s in world.store.sessions.values()}, listed)
        for session in world.store.sessions.values():
            self._check_journal(session)
        for chat in world.chats:
            shown = rt.conversation(chat.cid)
            assert shown is not None
            equal(tuple(chat.history), shown.history)
        for name in AGENTS:
            for sender in ("ann", "bob"):
                self._check_pair(name, sender)
        left = [s.handle for s in world.unfinished]
        equal(sorted(left), sorted(each.handle for each in rt.unfinished()))
        equal(sorted(world.agents), sorted(config.name for config in rt.agents()))
        store = rt._services.store  # noqa: SLF001 - the file is not to be read by anybody else meanwhile
        equal([], store.call(verify))

    def _check_pair(self, agent: str, sender: str) -> None:
        active = self.world.active(agent, sender)
        equal(None if active is None else active.cid, self.life.rt.conversation_id(agent, sender))
        if agent in self.world.agents:
            notes = self.world.store.memory.get(self.world.scope(agent, sender), [])
            real = self.life.rt.memory.entries(agent, sender)
            equal(notes, [Note(note.kind, note.name, note.content, note.aliases) for note in real])

    # -- the end of a process ----------------------------------------------------------------------

    def check_end(self) -> None:
        """After a shutdown: everybody has heard how it ended."""
        mine = [reply for _, reply in self.summaries]  # they wait for their model, not for the runtime
        for open_ in [*self._open]:
            if open_.reply not in mine:
                self._check_call(open_)
        for message, chat in [*self.tickets]:
            assert message.end.settled
            self._check_ticket(message, chat)

    def ended_tickets(self) -> list[tuple[str, TurnResult]]:
        """Results of topics that somebody has heard in this process."""
        return [
            (chat.session.handle, result)
            for cid, chat in self._cids.items()
            if chat.session is not None
            for result in self.life.told.get(cid, [])
        ]

    def check_stored_results(self, ended: Sequence[tuple[str, TurnResult]]) -> None:
        """What was heard is in the file."""
        for handle, result in ended:
            session = self.world.store.with_handle(handle)
            if session is None:
                continue  # it was deleted since
            row = next((row for row in session.rows if row.id == result.turn_id), None)
            assert row is not None, f"the file does not have the turn of {result}, which was told"
            assert row.result is not None, f"the file has no end of {row}, which was told: {result}"
            same_result(row.result, result)


def spoken(entry: HistoryEntry) -> tuple[str, str | None]:
    """An entry as its model reads it."""
    if entry.agent:
        return "user", f'<from agent="{entry.agent}">\n{entry.content}\n</from>'
    return entry.role, entry.content or (None if entry.tool_calls else "")


def wire(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in messages]


# -- the file of a killed process ------------------------------------------------------------------


def adopt(path: Path, store: Store, acknowledged: dict[Part, int]) -> None:
    """Let the plain store be what the file holds: for each part what was there after one of its commits,
    and none before the acknowledged one."""
    recorded, store.recorded = store.recorded, None
    assert recorded is not None
    with closing(sqlite3.connect(path)) as db:
        for part, copies in recorded.items():
            seen = notes_in(db, part) if len(part) == 2 else image_in(db, part)
            images = [copy.image if isinstance(copy, Session) else copy for copy in copies]
            fitting = [place for place, image in enumerate(images) if image == seen]
            assert fitting, f"{part} is {seen} in the file, none of {images}"
            least = acknowledged.get(part, 0)
            assert fitting[-1] >= least, f"{part} is {seen} in the file; {images[least]} was acknowledged"
            store.restore(part, copies[fitting[-1]])
            if len(part) == 3 and part in store.sessions:
                learn_stored(db, store.sessions[part])


def session_id(db: sqlite3.Connection, place: Place) -> int | None:
    rows = db.execute(
        "SELECT id FROM sessions WHERE agent = ? AND sender = ? AND topic = ?", place
    ).fetchall()
    assert len(rows) <= 1, f"{place} has {len(rows)} sessions"
    return rows[0][0] if rows else None


def image_in(db: sqlite3.Connection, place: Place) -> tuple[object, ...] | None:
    """What the file holds of a session, as `Session.image`."""
    id_ = session_id(db, place)
    if id_ is None:
        return None
    rows = db.execute(
        """SELECT content, sender, guest, key, state, attempts, result FROM turns
            WHERE session_id = ? ORDER BY id""",
        [id_],
    )
    entries = db.execute("SELECT body FROM entries WHERE session_id = ? ORDER BY seq", [id_])
    steers = db.execute(
        "SELECT content, sender FROM steers WHERE session_id = ? AND applied_turn IS NULL ORDER BY id", [id_]
    )
    archive = db.execute("SELECT archive, archive_seq FROM sessions WHERE id = ?", [id_])
    return (
        tuple((*row[:-1], *ending(row[-1])) for row in rows),
        tuple(decode_entry(body) for (body,) in entries),
        tuple(steers),
        *archive.fetchone(),
    )


def ending(body: str | None) -> tuple[str | None, str | None]:
    if body is None:
        return None, None
    result = decode_result(body)
    return result.stop_reason, result.text


def notes_in(db: sqlite3.Connection, scope: Part) -> list[Note]:
    rows = db.execute(
        "SELECT kind, name, content, aliases FROM memory_entries WHERE agent = ? AND scope = ? ORDER BY id",
        scope,
    )
    return [Note(kind, name, content, tuple(json.loads(aliases))) for kind, name, content, aliases in rows]


def learn_stored(db: sqlite3.Connection, session: Session) -> None:
    """Names that only the file knows."""
    id_ = session_id(db, session.place)
    session.handle, title = db.execute("SELECT handle, title FROM sessions WHERE id = ?", [id_]).fetchone()
    assert title in ("", TITLE)
    session.title = title
    ids = db.execute("SELECT id FROM turns WHERE session_id = ? ORDER BY id", [id_]).fetchall()
    for row, (turn,) in zip(sorted(session.rows, key=lambda row: row.number), ids, strict=True):
        assert row.id in (0, turn)
        row.id = turn
