"""The core of the registry actor: what it holds, how it is rebuilt, reserving ids, forgetting."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
from attrs import define, field

from actors.conversation import ConversationActor
from actors.errors import RuntimeClosed
from actors.greenlet import GreenletActor, GreenletFuture
from actors.lasting import IncarnationDied
from actors.messages import (
    CloseConversation,
    CloseMode,
    DeleteSession,
    GetOrCreate,
    LoadSession,
    MakeRoom,
    SwitchTopic,
    Wake,
)
from actors.services import Services
from actors.state import ConversationState
from actors.storage import notify
from actors.topics import TopicRouter
from persistence import dormant
from persistence.dormant import Dormant
from persistence.records import UnfinishedSession

logger = logging.getLogger("palaver.registry")

Pair = tuple[str, str]


@define(eq=False)
class Waiter:
    """Somebody who waits for a topic to open (or to have closed): the request, and its reply.

    `found` is what the database said of passive conversations, once it was asked.
    """

    request: GetOrCreate | SwitchTopic | LoadSession | DeleteSession | CloseConversation | Wake
    reply: GreenletFuture[Any]
    found: Sequence[Dormant] | None = None

    def fail(self, error: BaseException) -> None:
        """There is no answer but this error."""
        self.reply.fail(error)
        if isinstance(self.request, Wake):
            for message in self.request.messages:
                message.fail(error)


@define(eq=False)
class Revival(Waiter):
    """Nobody waits: what `session` has left undone is to go on."""

    session: UnfinishedSession = field(kw_only=True)
    put_off: Callable[[UnfinishedSession, BaseException], None] = field(kw_only=True)

    def fail(self, error: BaseException) -> None:
        """It could not be brought back, for now."""
        self.put_off(self.session, error)


@define(eq=False)
class Opening:
    """A conversation that has its id but not its session yet. `previous` was the active title before.

    `known` if it has been live before in this process, so that its id stays good when this fails.
    """

    pair: Pair
    title: str
    previous: str | None
    waiters: list[Waiter]
    known: bool = False


@define(eq=False)
class Closing:
    """A conversation that is on its way out. Requests for its topic wait until it is gone."""

    reply: GreenletFuture[bool]
    mode: CloseMode = "drain"
    unclaimed: bool = False  # whoever began it asked a registry that died, and asks again
    others: list[GreenletFuture[bool]] = field(factory=list)
    waiters: list[Waiter] = field(factory=list)


class RegistryCore(GreenletActor):
    """What the parts of the registry share. All that must outlive it is in the directory: a registry that is
    started again finds the living conversations there, with their routes and the next id.
    """

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self._directory = services.directory
        self._conversations = services.directory.conversations
        self._routers = services.directory.routers
        self._handles: dict[str, int] = {}
        self._opening: dict[int, Opening] = {}
        self._closing: dict[int, Closing] = {}
        self._closed_unclaimed: dict[int, bool] = {}  # whoever closed these has not asked again yet
        self._closing_topics: dict[tuple[Pair, str], list[int]] = {}
        self._asking: list[Waiter] = []  # whose answer the database has to give first
        self._leaving: dict[int, ConversationState] = {}  # asked to leave memory
        self._parting: dict[int, ConversationState] = {}  # have left; where to find them is being stored
        self._forgotten: Counter[int] = Counter()  # are being struck off the passive ones
        self._unstruck: dict[int, bool] = {}  # could not be, and are tried again
        self._deaths: dict[int, list[float]] = {}
        self._parked: dict[int, gevent.Greenlet] = {}  # and what will start them again
        self._sweeper: Any = None
        self._room_wanted = False
        self._directory.on_crowded = self._want_room
        self._rebuild()

    def on_death(self, reason: BaseException | None) -> None:
        if self._sweeper is not None:
            self._sweeper.close()
        for timer in self._parked.values():
            timer.kill(block=False)
        gone: Exception = RuntimeClosed("the runtime was shut down meanwhile; open a new one")
        if reason is not None:
            gone = IncarnationDied(f"the registry actor failed ({reason!r}) and is started again; ask again")
        left = [*self._asking, *(w for opening in self._opening.values() for w in opening.waiters)]
        for closing in self._closing.values():
            left += closing.waiters
            for reply in (closing.reply, *closing.others):
                reply.fail(gone)
        for waiter in left:
            waiter.fail(gone)

    # -- after an earlier registry's death ---------------------------------------------------------

    def _rebuild(self) -> None:
        """Take over what lives: routes, handles, what was opening or closing. Who waited has been told."""
        before = dict(self._routers)
        self._routers.clear()
        for state in self._conversations.values():
            pair = (state.agent, state.sender)
            if state.handle is not None:
                self._handles[state.handle] = state.id
            if state.phase == "closing":
                self._closing[state.id] = Closing(GreenletFuture(), unclaimed=True)
                self._note_closing(state)
                continue
            self._route(state)
            if state.phase == "opening" and state.fate is None:
                known = state.handle is not None
                self._opening[state.id] = Opening(pair, state.topic or "", None, [], known=known)
        for pair, router in self._routers.items():
            old = before.get(pair, TopicRouter())
            passive = {t: c for t, c in old.by_title.items() if c not in self._conversations}
            router.by_title = {**passive, **router.by_title}
            router.active = old.active if old.active in router.by_title else None

    def _route(self, state: ConversationState) -> None:
        router = self._router((state.agent, state.sender))
        if state.topic is None:
            router.tmp = state.id
        else:
            router.by_title.setdefault(state.topic, state.id)

    def _want_room(self) -> None:
        if not self._room_wanted:
            self._room_wanted = True
            notify(self.actor_ref, MakeRoom())

    # -- conversations -----------------------------------------------------------------------------

    def _start(self, agent: str, sender: str, topic: str | None) -> ConversationState:
        directory = self._directory
        state = ConversationState(directory.next_id, agent, sender, topic, self._services.clock.monotonic())
        directory.next_id += 1
        ConversationActor.start(self._services, state)
        directory.enter(state)
        return state

    def _forget(self, conversation_id: int) -> None:
        state = self._directory.leave(conversation_id)
        if state is None:
            return
        self._drop_route(state)
        self._unlist(state)

    def _unlist(self, state: ConversationState) -> None:
        """It is not live any more; where its next message goes is another matter."""
        self._deaths.pop(state.id, None)
        if state.handle is not None and self._handles.get(state.handle) == state.id:
            del self._handles[state.handle]
        if state.topic is None:
            return
        key = (state.agent, state.sender), state.topic
        closing = self._closing_topics.get(key, [])
        if state.id in closing:
            closing.remove(state.id)
        if not closing:
            self._closing_topics.pop(key, None)

    def _drop_route(self, state: ConversationState) -> None:
        pair = (state.agent, state.sender)
        router = self._routers.get(pair)
        if router is not None:
            router.drop(state.id)
            self._tidy(pair)

    def _tidy(self, pair: Pair) -> None:
        """Keep no router in which nothing lives; what is passive is found in the database."""
        router = self._routers.get(pair)
        if router is None or router.tmp is not None:
            return
        if not any(conversation_id in self._conversations for conversation_id in router.by_title.values()):
            if router.by_title:
                self._note_active(pair, router.active)
            del self._routers[pair]

    def _note_active(self, pair: Pair, title: str | None) -> None:
        job = partial(dormant.activate, agent=pair[0], sender=pair[1], topic=title)
        self._services.store.submit(job)

    def _note_closing(self, state: ConversationState) -> None:
        if state.topic is not None:
            key = (state.agent, state.sender), state.topic
            self._closing_topics.setdefault(key, []).append(state.id)

    def _closing_of(self, pair: Pair, title: str) -> Closing | None:
        closing = self._closing_topics.get((pair, title))
        return self._closing[closing[-1]] if closing else None

    # -- small things ------------------------------------------------------------------------------

    @abstractmethod
    def _again(self, waiter: Waiter) -> None:
        """Take a request that had to wait as if it came now."""

    def _router(self, pair: Pair) -> TopicRouter:
        return self._routers.setdefault(pair, TopicRouter())

    def _refs(self) -> dict[int, Any]:
        return {
            conversation_id: state.ref
            for conversation_id, state in self._conversations.items()
            if state.fate is None
        }

    @property
    def _refusal(self) -> RuntimeClosed | None:
        """Why nothing opens or closes any more; it outlives this registry."""
        return self._directory.refusal

    @_refusal.setter
    def _refusal(self, refusal: RuntimeClosed | None) -> None:
        self._directory.refusal = refusal

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal
