"""What must be in a database after a power loss: all that was acknowledged before it, once, and whole."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from attrs import field, frozen
from sqlite_utils import Database

from crash.disk_log import Ack, Ask, Event
from persistence.records import TERMINAL_STATES
from persistence.verify import verify

NEVER = math.inf
WHOLE_AT_ONCE = (
    "clerk"  # the agent without automatic compaction: a final answer is stored with its turn's end
)


@frozen
class Entry:
    """An entry of a history: the turn that it is of, and its decoded body."""

    turn: int
    body: dict[str, Any]


@frozen
class State:
    """What a database holds, read once.

    `turns` are rows by id, `notes` contents by (agent, scope, name), `entries` by session and in order,
    `steers` by content.
    """

    sessions: dict[str, int]
    agents: dict[int, str]
    deleted: frozenset[str]
    turns: dict[int, dict[str, Any]]
    steers: dict[str, dict[str, Any]]
    entries: dict[int, list[Entry]]
    notes: dict[tuple[str, str, str], str]
    archives: dict[tuple[str, str, str], str]
    markers: frozenset[tuple[str, str]]
    keys: dict[tuple[str, str, str], int]
    problems: tuple[str, ...] = field(default=(), eq=False)

    @property
    def unfinished(self) -> list[str]:
        """Handles of sessions with work to do."""
        busy = {row["session_id"] for row in self.turns.values() if row["state"] not in TERMINAL_STATES}
        busy |= {row["session_id"] for row in self.steers.values() if row["applied_turn"] is None}
        return [handle for handle, session in self.sessions.items() if session in busy]


def read_state(db: Database) -> State:
    """Everything in the database, with all that is wrong in it whatever was acknowledged."""
    turns = _rows(db, "SELECT * FROM turns ORDER BY id")
    steers = _rows(db, "SELECT * FROM steers ORDER BY id")
    entries: dict[int, list[Entry]] = {}
    for session, turn, body in db.execute(
        "SELECT session_id, turn_id, body FROM entries ORDER BY session_id, seq"
    ).fetchall():
        entries.setdefault(session, []).append(Entry(turn, _decoded(body)))
    sessions = db.execute("SELECT handle, id, agent FROM sessions ORDER BY id").fetchall()
    memory = db.execute("SELECT kind, agent, scope, name, content FROM memory_entries ORDER BY id").fetchall()
    state = State(
        sessions={handle: id_ for handle, id_, _ in sessions},
        agents={id_: agent for _, id_, agent in sessions},
        deleted=frozenset(h for (h,) in db.execute("SELECT handle FROM deleted_sessions").fetchall()),
        turns={row["id"]: row for row in turns},
        steers={row["content"]: row for row in steers},
        entries=entries,
        notes={(agent, scope, name): text for kind, agent, scope, name, text in memory if kind == "note"},
        archives={
            (agent, scope, name): text for kind, agent, scope, name, text in memory if kind == "archive"
        },
        markers=frozenset(
            db.execute(
                "SELECT s.handle, c.archive FROM compactions c JOIN sessions s ON s.id = c.session_id"
            ).fetchall()
        ),
        keys={
            (agent, sender, key): turn
            for agent, sender, key, turn in db.execute(
                "SELECT agent, sender, key, turn_id FROM keys"
            ).fetchall()
        },
    )
    said = [row["content"] for row in turns], [row["content"] for row in steers]
    problems = [*verify(db), *_twice(said, entries), *_halves(state)]
    object.__setattr__(state, "problems", tuple(problems))
    return state


@lru_cache(maxsize=10_000)
def _decoded(body: str) -> dict[str, Any]:
    """The JSON of a body; most bodies are in all later states too."""
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def _rows(db: Database, sql: str) -> list[dict[str, Any]]:
    cursor = db.execute(sql)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# -- what no state may show -----------------------------------------------------------------------


def _twice(said: tuple[list[str], list[str]], entries: dict[int, list[Entry]]) -> Iterator[str]:
    """The workload says nothing twice, so nothing may be there twice."""
    heard = [
        each.body.get("content", "")
        for session in entries.values()
        for each in session
        if each.body["role"] == "user"
    ]
    for what, contents in (("turns", said[0]), ("steers", said[1]), ("user entries", heard)):
        for content, count in Counter(contents).items():
            if count > 1:
                yield f"G1: {content[:40]!r} is in {count} {what}"


def _halves(state: State) -> Iterator[str]:
    """Ends of turns, steers and keys of which a part is there and a part is not."""
    for session, entries in state.entries.items():
        of_turn: dict[int, list[Entry]] = {}
        for entry in entries:
            of_turn.setdefault(entry.turn, []).append(entry)
        for turn, own in of_turn.items():
            yield from _half_turn(state, session, turn, own)
    for row in state.turns.values():
        if row["state"] == "done" and row["session_id"] not in state.entries:
            yield f"G3: turn {row['id']} is done, but nothing that was said in it is stored"
        if row["key"] is not None:
            owner = (state.agents[row["session_id"]], row["sender"], row["key"])
            if state.keys.get(owner) != row["id"]:
                yield f"G4: turn {row['id']} was accepted under the key {row['key']!r}, which is not stored"
    for content, row in state.steers.items():
        yield from _half_steer(state, content, row)


def _half_turn(state: State, session: int, turn: int, own: Sequence[Entry]) -> Iterator[str]:
    row = state.turns.get(turn)
    if row is None:
        return  # `verify` has said so
    last = own[-1].body
    answered = last["role"] == "assistant" and not last.get("tool_calls")
    if row["state"] == "done":
        result = _decoded(row["result"])
        if result["stop_reason"] == "text_response" and last.get("content", "") != result.get("text", ""):
            yield f"G3: turn {turn} is done, but its answer is not the last that is stored of it"
        if own[0].body["role"] != "user" or own[0].body.get("content") != row["content"]:
            yield f"G3: turn {turn} is done, but its message is not the first that is stored of it"
    elif row["state"] not in TERMINAL_STATES and answered and state.agents[session] == WHOLE_AT_ONCE:
        yield f"G3: the answer of turn {turn} is stored without its end: the turn is {row['state']}"


def _half_steer(state: State, content: str, row: dict[str, Any]) -> Iterator[str]:
    applied = row["applied_turn"]
    own = [
        entry for entry in state.entries.get(row["session_id"], ()) if entry.body.get("content") == content
    ]
    if applied is None:
        if own:
            yield f"G7: the steer {content[:40]!r} is in history, but not applied"
        return
    if (state.turns.get(applied) or {}).get("content") == content:
        return  # it became a turn
    if [entry.turn for entry in own] != [applied]:
        yield f"G7: the steer {content[:40]!r} is applied to turn {applied}, but not in its history"


# -- what was acknowledged ------------------------------------------------------------------------


@frozen
class Fact:
    """Something that a caller was told at `at`, which is the event's place in the log."""

    at: int
    what: str
    about: Any


@frozen
class Missing:
    """A fact that a state does not show, which is wrong from `since` on, up to `until`: from then on it may
    have been undone because somebody asked for that."""

    since: int
    until: float
    problem: str


class Ledger:
    """All that was asked for and acknowledged in a log, to be compared with states."""

    def __init__(self, log: Sequence[Event]) -> None:
        self.facts = [Fact(at, e.what, e.about) for at, e in enumerate(log) if isinstance(e, Ack)]
        self._deletions: dict[str, int] = {}
        self._notes: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for at, event in enumerate(log):
            if isinstance(event, Ask) and event.what == "delete":
                self._deletions.setdefault(event.about["handle"], at)
            elif isinstance(event, Ask) and event.what == "note":
                about = event.about
                self._notes.setdefault(_note(about), []).append((about["version"], at))
        self._checks: dict[str, Callable[[State, Fact], str | None]] = {
            "session": self._session,
            "message": self._message,
            "steer": self._steer,
            "result": self._result,
            "closed": self._closed,
            "compacted": self._compacted,
            "deleted": self._deleted,
            "drained": self._drained,
        }

    def missing(self, state: State) -> list[Missing]:
        """The facts that `state` does not show, in the order in which they were told."""
        found = []
        for fact in self.facts:
            if fact.what == "note":
                lack = self._lacks_note(state, fact)
            else:
                problem = self._checks[fact.what](state, fact)
                lack = None
                if problem is not None:
                    lack = Missing(fact.at, self._excused(state, fact), f"G1: {problem}")
            if lack is not None:
                found.append(lack)
        return found

    def _excused(self, state: State, fact: Fact) -> float:
        if fact.what in ("deleted", "drained") or fact.about["handle"] not in state.deleted:
            return NEVER
        return self._deletions.get(fact.about["handle"], NEVER)

    def _session(self, state: State, fact: Fact) -> str | None:
        handle = fact.about["handle"]
        return None if handle in state.sessions else f"the session {handle} was opened, and is not there"

    def _message(self, state: State, fact: Fact) -> str | None:
        about = fact.about
        row = state.turns.get(about["turn"])
        if row is None:
            return f"the message {about['content'][:40]!r} was accepted as turn {about['turn']}: no such turn"
        kept = (row["content"], row["key"], row["session_id"])
        if kept != (about["content"], about["key"], state.sessions.get(about["handle"])):
            return f"turn {about['turn']} is not as it was accepted: {kept}"
        return None

    def _steer(self, state: State, fact: Fact) -> str | None:
        content = fact.about["content"]
        row = state.steers.get(content)
        if row is None or row["session_id"] != state.sessions.get(fact.about["handle"]):
            return f"the steer {content[:40]!r} was accepted, and is not there"
        return None

    def _result(self, state: State, fact: Fact) -> str | None:
        about = fact.about
        row = state.turns.get(about["turn"])
        if row is None:
            return f"turn {about['turn']} ended as {about['state']}, and is not there"
        text = _decoded(row["result"] or "{}").get("text", "")
        if (row["state"], text) != (about["state"], about["text"]):
            return (
                f"turn {about['turn']} ended as {about['state']}, but is {row['state']}, or has another text"
            )
        return None

    def _closed(self, state: State, fact: Fact) -> str | None:
        for turn in fact.about["turns"]:
            row = state.turns.get(turn)
            if row is None or row["state"] not in TERMINAL_STATES:
                there = "not there" if row is None else row["state"]
                return f"the conversation of turn {turn} was closed, but the turn is {there}"
        for content in fact.about["steers"]:
            row = state.steers.get(content)
            if row is None or row["applied_turn"] is None:
                return f"the conversation of the steer {content[:40]!r} was closed, but it is pending"
        return None

    def _compacted(self, state: State, fact: Fact) -> str | None:
        about = fact.about
        if (about["handle"], about["archive"]) not in state.markers:
            return f"G9: session {about['handle']} has no marker of its archive {about['archive']}"
        if state.archives.get((about["agent"], about["scope"], about["archive"])) != about["summary"]:
            return f"G9: the archive {about['archive']} is not there, or is another"
        return None

    def _deleted(self, state: State, fact: Fact) -> str | None:
        handle = fact.about["handle"]
        if handle in state.sessions or handle not in state.deleted:
            return f"the session {handle} was deleted, and is there"
        return None

    def _drained(self, state: State, _fact: Fact) -> str | None:
        left = state.unfinished
        return f"G2: all work was awaited at the end, but these sessions have more: {left}" if left else None

    def _lacks_note(self, state: State, fact: Fact) -> Missing | None:
        """A note, or its being forgotten: each change of it has a version; a gone one, `content` None."""
        about = fact.about
        name, version = _note(about), about["version"]
        content = state.notes.get(name)
        if content == about["content"]:
            return None
        later = [
            at
            for number, at in self._notes[name]
            if number > version and (content is None or content.startswith(f"version {number} "))
        ]
        problem = f"G1: {about['name']} was acknowledged in version {version}, but is {content!r:.40}"
        return Missing(fact.at, min(later, default=NEVER), problem)


def _note(about: dict[str, Any]) -> tuple[str, str, str]:
    return about["agent"], about["scope"], about["name"]


def wrong_at(lacks: Sequence[Missing], at: int) -> str | None:
    """What is missing after a power loss before `log[at]`, in a state that lacks these; None if nothing."""
    return next((lack.problem for lack in lacks if lack.since < at <= lack.until), None)
