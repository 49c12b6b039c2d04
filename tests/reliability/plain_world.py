"""The plain model of Palaver, third part: agents, routes, memory, and one process after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from attrs import define, field, frozen

from palaver import (
    AgentConfig,
    AgentExists,
    AgentNotRegistered,
    ConversationNotFound,
    DescriptionRequired,
    RuntimeClosed,
    SessionNotFound,
)
from reliability.plain_chat import Chat, Message, Promise
from reliability.plain_records import Note, Place, Result, Row, Session, Store

Pair = tuple[str, str]


@define(eq=False)
class Router:
    """Where a pair's next message goes."""

    tmp: Chat | None = None
    active: Chat | None = None
    topics: dict[str, Chat] = field(factory=dict)

    def drop(self, chat: Chat) -> None:
        if self.tmp is chat:
            self.tmp = None
        if self.active is chat:
            self.active = None
        if chat.topic is not None and self.topics.get(chat.topic) is chat:
            del self.topics[chat.topic]


@frozen
class Left:
    """A session whose work the last process did not end, and the agents that it needs."""

    place: Place
    handle: str
    agents: tuple[str, ...]


@define(eq=False)
class World:
    """Everything that a Palaver knows, and what each call must give."""

    clock: Callable[[], float]
    store: Store = field(factory=Store)
    agents: dict[str, AgentConfig] = field(factory=dict)
    chats: list[Chat] = field(factory=list)  # live ones, in the order in which they came
    routers: dict[Pair, Router] = field(factory=dict)
    archives: dict[tuple[str, str, str], int] = field(factory=dict)
    left_undone: list[Left] = field(factory=list)
    closing: dict[Place, Chat] = field(factory=dict)
    made: list[Chat] | None = None  # topics that are new, while those who waited are answered
    down: bool = False
    _numbers: count[int] = field(factory=lambda: count(1))

    # -- what conversations need -------------------------------------------------------------------

    def number(self) -> int:
        return next(self._numbers)

    def wall(self) -> float:
        return self.clock()

    def accepted(self, sender: str | None = None) -> int:
        """How many messages, of all or of one sender's conversations, are accepted and have not ended."""
        return sum(len(chat.messages) for chat in self.chats if sender in (None, chat.sender))

    def live_message(self, row: Row) -> Message | None:
        return next((m for chat in self.chats for m in chat.messages if m.row is row), None)

    def archive_name(self, agent: str, scope: str, topic: str) -> str:
        series = (agent, scope, slug(topic))
        if series not in self.archives:
            notes = self.store.memory.get((agent, scope), [])
            self.archives[series] = max((numbered(n, series[2]) for n in notes), default=0)
        self.archives[series] += 1
        return f"{series[2]}-{self.archives[series]}"

    def archived(self, session: Session, name: str, summary: str) -> None:
        self.store.memory.setdefault(session.memory, []).append(Note("archive", name, summary))
        self.store.commit(session.place, session.memory)

    def gone(self, chat: Chat) -> None:
        """A conversation has closed: answer who closed it, then take what waited for that."""
        self.chats.remove(chat)
        if chat.session is not None:
            self.closing.pop(chat.session.place, None)
        for place, reply in enumerate(chat.closers):
            reply.keep(place == 0)
        self.made = []  # what these make is new to all of them
        for again in [*chat.deleters, *chat.waiters]:
            again()
        self.made = None

    # -- agents ------------------------------------------------------------------------------------

    def put_agent(self, config: AgentConfig, reply: Promise, *, replace: bool) -> None:
        if config.name in self.agents and not replace:
            return reply.break_(AgentExists)
        self.agents[config.name] = config
        reply.keep(None)
        return self.bring_back()

    def bring_back(self) -> None:
        """Open the topics that an earlier process left with unfinished work, where all who are to answer are
        registered."""
        ready = [left for left in self.left_undone if all(agent in self.agents for agent in left.agents)]
        self.left_undone = [left for left in self.left_undone if left not in ready]
        for left in ready:
            session = self.store.sessions.get(left.place)
            if session is not None and session.handle == left.handle and self._live(session) is None:
                self._open(session)

    def remove_agent(self, name: str, reply: Promise) -> None:
        reply.keep(self.agents.pop(name, None) is not None)

    # -- routing -----------------------------------------------------------------------------------

    def get_or_create(self, agent: str, sender: str, reply: Promise) -> None:
        if agent not in self.agents:
            return reply.break_(AgentNotRegistered)
        router = self.routers.setdefault((agent, sender), Router())
        if router.active is None and router.tmp is None:
            router.tmp = Chat(self, agent, sender, None)
            self.chats.append(router.tmp)
        return reply.keep(router.active or router.tmp)

    def active(self, agent: str, sender: str) -> Chat | None:
        router = self.routers.get((agent, sender))
        return None if router is None else router.active or router.tmp

    def switch(self, place: Place, description: str | None, reply: Promise) -> None:
        agent, sender, topic = place
        if self.down:
            return reply.break_(RuntimeClosed)
        if agent not in self.agents:
            return reply.break_(AgentNotRegistered)
        if place in self.closing:
            self.closing[place].waiters.append(partial(self.switch, place, description, reply))
            return None
        router = self.routers.setdefault((agent, sender), Router())
        live, session = router.topics.get(topic), self.store.sessions.get(place)
        if live is None and session is None and description is None:
            return reply.break_(DescriptionRequired)
        if live is not None and live in (self.made or ()):
            router.active = live
            return reply.keep((live, False))
        if live is not None:
            router.active = live
        elif session is not None:
            router.active = live = self._open(session)
        else:
            router.active = live = self._make(place, str(description))
            if self.made is not None:
                self.made.append(live)
            return reply.keep((live, False))
        return reply.keep((live, True))

    def _make(self, place: Place, description: str) -> Chat:
        agent, sender, topic = place
        session = Session(agent, sender, topic, self.agents[agent].scope(sender))
        self.store.sessions[place] = session
        notes = self.store.memory.setdefault(session.memory, [])
        if not any((note.kind, note.name) == ("topic", topic) for note in notes):
            notes.append(Note("topic", topic, description))
        self.store.commit(place, session.memory)
        return self._open(session)

    def _open(self, session: Session) -> Chat:
        chat = Chat(self, session.agent, session.sender, session.topic, session)
        self.chats.append(chat)
        self.routers.setdefault((chat.agent, chat.sender), Router()).topics[session.topic] = chat
        chat.bring_back()
        return chat

    def _live(self, session: Session) -> Chat | None:
        return next((chat for chat in self.chats if chat.session is session), None)

    def load(self, handle: str, reply: Promise) -> None:
        session = self.store.with_handle(handle)
        if self.down:
            return reply.break_(RuntimeClosed)
        if session is None:
            return reply.break_(SessionNotFound)
        live = self._live(session)
        if session.place in self.closing:
            self.closing[session.place].waiters.append(partial(self.load, handle, reply))
        elif live is not None:
            reply.keep(live)
        elif session.agent not in self.agents:
            reply.break_(AgentNotRegistered)
        else:
            reply.keep(self._open(session))
        return None

    def close(self, chat: Chat, mode: str, reply: Promise) -> None:
        if chat not in self.chats:
            return reply.keep(False)
        self._leave(chat)
        return chat.close(mode, reply)

    def _leave(self, chat: Chat) -> None:
        if chat.session is not None:
            self.closing[chat.session.place] = chat
        self.routers[chat.agent, chat.sender].drop(chat)

    def delete(self, handle: str, reply: Promise) -> None:
        session = self.store.with_handle(handle)
        if session is None:
            return reply.keep(False)
        live = self._live(session)
        if live is None:
            return self._delete_now(session, reply)
        live.deleters.append(partial(self._delete_now, session, reply))
        self._leave(live)
        return live.shut("now")

    def _delete_now(self, session: Session, reply: Promise) -> None:
        there = self.store.sessions.get(session.place) is session
        if there:
            del self.store.sessions[session.place]
            self.store.commit(session.place)
        return reply.keep(there)

    def of(self, chat: Chat, reply: Promise) -> bool:
        """Whether the conversation lives; if not, the call fails."""
        if chat not in self.chats:
            reply.break_(ConversationNotFound)
        return chat in self.chats

    # -- memory ------------------------------------------------------------------------------------

    def scope(self, agent: str, sender: str) -> tuple[str, str]:
        return agent, self.agents[agent].scope(sender)

    def remember(self, agent: str, sender: str, note: Note, reply: Promise) -> None:
        if agent not in self.agents:
            return reply.break_(AgentNotRegistered)
        scope = self.scope(agent, sender)
        notes = self.store.memory.setdefault(scope, [])
        same = [place for place, n in enumerate(notes) if (n.kind, n.name) == ("note", note.name)]
        if same:
            notes[same[0]] = note
        else:
            notes.append(note)
        self.store.commit(scope)
        return reply.keep(note)

    def forget(self, agent: str, sender: str, name: str, reply: Promise) -> None:
        if agent not in self.agents:
            return reply.break_(AgentNotRegistered)
        scope = self.scope(agent, sender)
        notes = self.store.memory.get(scope, [])
        left = [note for note in notes if (note.kind, note.name) != ("note", name)]
        self.store.memory[scope] = left
        self.store.commit(scope)
        return reply.keep(len(left) < len(notes))

    def recall(self, agent: str, sender: str, words: Sequence[str], kind: str | None, reply: Promise) -> None:
        """What has all the words, or else any of them; in no order."""
        if agent not in self.agents:
            return reply.break_(AgentNotRegistered)
        notes = self.store.memory.get(self.scope(agent, sender), [])
        notes = [note for note in notes if kind in (None, note.kind)]
        found = [note for note in notes if all(word in note.words for word in words)]
        return reply.keep(found or [note for note in notes if any(word in note.words for word in words)])

    # -- one process after the other ---------------------------------------------------------------

    def shut_down(self) -> None:
        """A shutdown that drains nothing."""
        self.down = True
        for chat in [*self.chats]:
            chat.suspend()
        self._forget()

    def crash(self) -> None:
        """The process is gone; nobody hears anything."""
        self._forget()

    def _forget(self) -> None:
        for each in (self.chats, self.routers, self.archives, self.closing, self.agents):
            each.clear()  # type: ignore[attr-defined]  # lists and dicts

    def boot(self, mode: str, agents: Sequence[AgentConfig]) -> None:
        """A new process opens the file, and registers these agents without waiting for anything."""
        self.down = False
        left = [s for s in self.store.sessions.values() if s.unfinished or s.waiting_steers]
        self.left_undone = [left_of(session) for session in left] if mode == "run" else []
        if mode == "fail":
            for session in left:
                self.give_up(session)
        self.agents.update({config.name: config for config in agents})
        self.bring_back()

    def give_up(self, session: Session) -> None:
        """End what is left of a session that is not live, without running it."""
        session.take_up_steers()
        for row in session.unfinished:
            row.end(Result("error", error="given up"))
        self.store.commit(session.place)

    @property
    def unfinished(self) -> list[Session]:
        """Sessions that are not live and have unfinished work."""
        left = [s for s in self.store.sessions.values() if s.unfinished or s.waiting_steers]
        return [session for session in left if self._live(session) is None]

    def recover(self, handle: str | None, mode: str, reply: Promise) -> None:
        left = self.unfinished
        if handle is not None and self.store.with_handle(handle) is None:
            return reply.break_(SessionNotFound)
        if handle is not None:
            left = [session for session in left if session.handle == handle]
            if mode == "run" and left and left[0].agent not in self.agents:
                return reply.break_(AgentNotRegistered)
        elif mode == "run":
            left = [session for session in left if session.agent in self.agents]
        for session in left:
            if mode == "run":
                self._open(session)
            else:
                self.give_up(session)
        return reply.keep(len(left))


def left_of(session: Session) -> Left:
    guests = [row.guest for row in session.unfinished if row.guest is not None]
    return Left(session.place, session.handle, (session.agent, *guests))


def slug(topic: str) -> str:
    return re.sub("[^a-z0-9]+", "-", topic.lower()).strip("-")


def numbered(note: Note, series: str) -> int:
    """The number of an archive of this series, or 0."""
    name, _, number = note.name.rpartition("-")
    return int(number) if note.kind == "archive" and name == series else 0
