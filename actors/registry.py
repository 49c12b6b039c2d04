"""The registry actor: agents, topic routers, ids, and the directory of live conversations."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from itertools import islice
from typing import Any

import gevent
import pykka
from attrs import define, field

from actors.conversation import ConversationActor
from actors.errors import (
    ConversationClosed,
    DescriptionRequired,
    InvalidInput,
    RuntimeClosed,
)
from actors.greenlet import GreenletActor, GreenletFuture
from actors.messages import (
    Adopt,
    BeginTransfer,
    BringBack,
    CheckAdoption,
    Close,
    CloseConversation,
    CloseMode,
    ConversationOpened,
    ConversationStopped,
    DeleteSession,
    DescribeRouting,
    EndTransfer,
    GetOrCreate,
    LoadSession,
    OpeningFailed,
    OpenSession,
    Proceed,
    PutAgent,
    RefuseNewWork,
    RemoveAgent,
    SessionLookedUp,
    SwitchTopic,
)
from actors.services import Services
from actors.state import ConversationState, SwitchOutcome
from actors.storage import notify, settle
from actors.supervisor import ChildDied
from actors.topics import TopicRouter
from actors.transfer import MovedConversation
from persistence import sessions
from persistence.errors import DatabaseFailed, RecordError, SessionNotFound, StorageError
from persistence.records import SessionSummary, UnfinishedSession

logger = logging.getLogger("palaver.registry")

Pair = tuple[str, str]
MOST_OPENING = 100  # conversations, from which on no more are brought back
BRING_BACK_AGAIN_S = 5.0


@define(eq=False)
class Waiter:
    """Somebody who waits for a topic to open (or to have closed): the request, and its reply."""

    request: SwitchTopic | LoadSession | DeleteSession
    reply: GreenletFuture[Any]


@define(eq=False)
class Revival(Waiter):
    """Nobody waits: what `session` has left undone is to go on."""

    session: UnfinishedSession


@define(eq=False)
class Opening:
    """A conversation that has its id but not its session yet. `previous` was the active title before."""

    pair: Pair
    title: str
    previous: str | None
    waiters: list[Waiter]
    routed: bool = True


@define(eq=False)
class Closing:
    """A conversation that is on its way out. Requests for its topic wait until it is gone."""

    reply: GreenletFuture[bool]
    others: list[GreenletFuture[bool]] = field(factory=list)
    waiters: list[Waiter] = field(factory=list)


class RegistryActor(GreenletActor):
    """Serializes routing, reservations, opening and closing. No handler ever waits.

    Ids start at 1, only grow, and are never given twice, whatever fails.
    """

    def __init__(self, services: Services, supervisor: pykka.ActorRef[Any]) -> None:
        super().__init__()
        self._services = services
        self._supervisor = supervisor
        self._conversations = services.directory.conversations
        self._next_id = 1
        self._routers = services.directory.routers
        self._handles: dict[str, int] = {}
        self._opening: dict[int, Opening] = {}
        self._closing: dict[int, Closing] = {}
        self._closing_topics: dict[tuple[Pair, str], list[int]] = {}
        self._refusal: RuntimeClosed | None = None
        self._asking: list[Waiter] = []  # whose session is being looked for
        self._put_off: list[UnfinishedSession] = []  # could not be opened; `_retry` waits with them
        self._retry: gevent.Greenlet | None = None

    def on_death(self, reason: BaseException | None) -> None:
        if self._retry is not None:
            self._retry.kill(block=False)
        gone = RuntimeClosed("the runtime was shut down meanwhile; open a new one")
        left = [*self._asking, *(w for opening in self._opening.values() for w in opening.waiters)]
        for closing in self._closing.values():
            left += closing.waiters
            for reply in (closing.reply, *closing.others):
                reply.fail(gone)
        for waiter in left:
            waiter.reply.fail(gone)
        if reason is not None:
            notify(self._supervisor, ChildDied("registry", reason))

    def on_receive(self, message: Any) -> Any:
        match message:
            case GetOrCreate():
                return self._get_or_create(message)
            case SwitchTopic():
                return self._switch_topic(Waiter(message, GreenletFuture()))
            case LoadSession():
                return self._load(Waiter(message, GreenletFuture()))
            case CloseConversation():
                return self._close(message.conversation_id, message.mode)
            case ConversationOpened():
                return self._opened(message)
            case OpeningFailed():
                return self._opening_failed(message)
            case ConversationStopped():
                return self._stopped(message)
            case SessionLookedUp():
                return self._looked_up(message)
            case DeleteSession():
                return self._delete(Waiter(message, GreenletFuture()))
            case PutAgent():
                return self._put_agent(message)
            case BringBack():
                return self._bring_back_again()
            case RemoveAgent():
                return self._services.agents.remove(message.name, ephemeral=message.ephemeral)
            case RefuseNewWork():
                self._refusal = RuntimeClosed("the runtime is shutting down and opens nothing new")
                return self._refs()
            case BeginTransfer():
                return self._begin_transfer()
            case EndTransfer():
                return self._end_transfer(message.moved)
            case DescribeRouting():
                return {pair: _copy(router) for pair, router in self._routers.items()}, self._next_id
            case CheckAdoption():
                return self._check_adoption(message)
            case Adopt():
                return self._adopt(message)
            case _:
                raise TypeError(f"the registry does not understand {message!r}")

    # -- agents, and what was left undone ----------------------------------------------------------

    def _put_agent(self, message: PutAgent) -> None:
        self._services.agents.put(message.config, replace=message.replace, ephemeral=message.ephemeral)
        self._bring_back()

    def _bring_back(self) -> None:
        """Open sessions that an earlier process left with unfinished work, a few at a time, so that others
        come in between; each that is open, or failed, makes room for the next."""
        if self._refusal is not None:
            return
        find, left = self._services.agents.find, self._services.left_undone
        for agent in [agent for agent, sessions_left in left.items() if sessions_left and find(agent)]:
            room = MOST_OPENING - len(self._opening)
            can_run = (session for session in left[agent] if all(find(guest) for guest in session.guests))
            for session in list(islice(can_run, max(0, room))):
                left[agent].remove(session)
                self._load_known(Revival(LoadSession(session.handle), GreenletFuture(), session), session)

    def _bring_back_later(self, session: UnfinishedSession, error: BaseException) -> None:
        """A topic with unfinished work could not be opened: once more, unless that is in vain."""
        if not isinstance(error, StorageError) or isinstance(error, DatabaseFailed | RecordError):
            return
        self._put_off.append(session)
        if self._retry is None or self._retry.dead:
            self._retry = gevent.spawn_later(BRING_BACK_AGAIN_S, notify, self.actor_ref, BringBack())

    def _bring_back_again(self) -> None:
        for session in self._put_off:
            self._services.left_undone.setdefault(session.agent, deque()).append(session)
        self._put_off.clear()
        self._bring_back()

    # -- routing -----------------------------------------------------------------------------------

    def _get_or_create(self, message: GetOrCreate) -> int:
        self._check_open()
        self._services.agents.get(message.agent)
        router = self._router((message.agent, message.sender))
        current = router.current()
        if current is None:
            current = router.tmp = self._start(message.agent, message.sender, None).id
        return current

    def _switch_topic(self, waiter: Waiter) -> GreenletFuture[Any]:
        request = waiter.request
        assert isinstance(request, SwitchTopic)
        self._check_open()
        agent = self._services.agents.get(request.agent)
        pair = (request.agent, request.sender)
        closing = self._closing_of(pair, request.title)
        if closing is not None:
            closing.waiters.append(waiter)
            return waiter.reply
        router = self._router(pair)
        live = router.by_title.get(request.title)
        if live is None:
            self._open(waiter, pair, request.title, None, request.description, agent.config.scope(pair[1]))
        elif live in self._opening:
            router.active = request.title
            self._opening[live].waiters.append(waiter)
        else:
            router.active = request.title
            waiter.reply.set(SwitchOutcome(live, True))
        return waiter.reply

    def _open(
        self,
        waiter: Waiter,
        pair: Pair,
        title: str,
        handle: str | None,
        description: str | None,
        scope: str,
    ) -> None:
        """Reserve an id and start its conversation in one go: whoever asks next gets the same one."""
        state = self._start(*pair, title)
        router = self._router(pair)
        opening = Opening(pair, title, router.active, [waiter])
        if isinstance(waiter.request, SwitchTopic):
            router.reserve(title, state.id)
        elif title not in router.by_title:
            router.by_title[title] = state.id  # loading a session does not switch to it
        else:
            opening.routed = False  # an older session of a title whose newest one is live
        self._opening[state.id] = opening
        if handle is not None:
            state.handle = handle
            self._handles[handle] = state.id
        assert state.ref is not None
        state.ref.tell(OpenSession(handle, description, scope))

    def _start(self, agent: str, sender: str, topic: str | None) -> ConversationState:
        state = ConversationState(self._next_id, agent, sender, topic, self._services.clock.monotonic())
        self._next_id += 1
        ConversationActor.start(self._services, state)
        self._services.directory.enter(state)
        return state

    def _opened(self, notice: ConversationOpened) -> None:
        opening = self._opening.pop(notice.conversation_id)
        self._handles[notice.handle] = notice.conversation_id
        for waiter in opening.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._again(waiter)
            elif notice.conversation_id in self._closing:
                error = ConversationClosed(f"the topic {opening.title!r} was closed while it opened")
                waiter.reply.fail(error)
            elif isinstance(waiter.request, SwitchTopic):
                # A topic that this very opening created is new to everybody who waited for it.
                waiter.reply.set(SwitchOutcome(notice.conversation_id, notice.resumed))
            else:
                self._again(waiter)
        self._bring_back()

    def _opening_failed(self, notice: OpeningFailed) -> None:
        opening = self._opening.pop(notice.conversation_id)
        if not isinstance(notice.error, DescriptionRequired):
            logger.error(
                "the topic %r of %s could not be opened: %s", opening.title, opening.pair, notice.error
            )
        router = self._router(opening.pair)
        router.roll_back(opening.title, notice.conversation_id, opening.previous)
        self._forget(notice.conversation_id)
        for waiter in opening.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
                continue
            if isinstance(waiter, Revival):
                self._bring_back_later(waiter.session, notice.error)
                continue
            described = isinstance(waiter.request, SwitchTopic) and waiter.request.description is not None
            if isinstance(notice.error, DescriptionRequired) and described:
                self._again(waiter)  # the one who came first had no description, this one has
            else:
                waiter.reply.fail(notice.error)
        self._end_closing(notice.conversation_id)
        self._bring_back()

    def _again(self, waiter: Waiter) -> None:
        """Take a request that had to wait as if it came now."""
        try:
            if isinstance(waiter.request, SwitchTopic):
                self._switch_topic(waiter)
            elif isinstance(waiter.request, DeleteSession):
                self._delete(waiter)
            else:
                self._load(waiter)
        except Exception as error:
            waiter.reply.fail(error)

    # -- loading -----------------------------------------------------------------------------------

    def _load(self, waiter: Waiter) -> GreenletFuture[Any]:
        self._check_open()
        request = waiter.request
        assert isinstance(request, LoadSession)
        live = self._handles.get(request.handle)
        if live is not None and live in self._closing:
            self._closing[live].waiters.append(waiter)
        elif live is not None and live in self._opening:
            self._opening[live].waiters.append(waiter)
        elif live is not None:
            waiter.reply.set(live)
        else:
            self._look_up(waiter, request.handle)
        return waiter.reply

    def _look_up(self, waiter: Waiter, handle: str) -> None:
        ref = self.actor_ref
        self._asking.append(waiter)
        self._services.store.submit(
            partial(sessions.find_session, handle=handle),
            lambda found, error: notify(ref, SessionLookedUp(handle, found, error, waiter)),
        )

    def _looked_up(self, notice: SessionLookedUp) -> None:
        waiter: Waiter = notice.request
        self._asking.remove(waiter)
        if notice.error is not None:
            waiter.reply.fail(notice.error)
        elif isinstance(waiter.request, DeleteSession):
            self._delete_known(waiter, notice.summary)
        elif notice.summary is None:
            waiter.reply.fail(SessionNotFound(f"no stored session has the handle {notice.handle!r}"))
        else:
            try:
                self._load_known(waiter, notice.summary)
            except Exception as error:
                waiter.reply.fail(error)

    def _load_known(self, waiter: Waiter, summary: SessionSummary | UnfinishedSession) -> None:
        self._check_open()
        agent = self._services.agents.get(summary.agent)
        pair = (summary.agent, summary.sender)
        live = self._router(pair).by_title.get(summary.topic)
        closing = self._closing_of(pair, summary.topic)
        if summary.handle in self._handles:
            self._load(waiter)
        elif closing is not None:
            closing.waiters.append(waiter)
        elif live is not None and live in self._opening:
            self._opening[live].waiters.append(waiter)  # perhaps this very session: known once it is open
        else:
            self._open(waiter, pair, summary.topic, summary.handle, None, agent.config.scope(summary.sender))

    # -- deleting ----------------------------------------------------------------------------------

    def _delete(self, waiter: Waiter) -> GreenletFuture[Any]:
        """Delete a session for good: its conversation is cancelled and gone before, and whoever opens the
        topic meanwhile waits, or comes behind in the database thread's order, and finds none."""
        self._check_open()
        request = waiter.request
        assert isinstance(request, DeleteSession)
        live = self._handles.get(request.handle)
        if live is None:
            self._look_up(waiter, request.handle)
        elif request.unchanged_since is not None:
            waiter.reply.set(False)
        elif live in self._opening:
            self._opening[live].waiters.append(waiter)
        else:
            self._close(live, "now")
            self._closing[live].waiters.insert(0, waiter)
        return waiter.reply

    def _delete_known(self, waiter: Waiter, summary: SessionSummary | None) -> None:
        request = waiter.request
        assert isinstance(request, DeleteSession)
        if summary is None:
            waiter.reply.set(False)
            return
        pair = (summary.agent, summary.sender)
        live = self._router(pair).by_title.get(summary.topic)
        closing = self._closing_of(pair, summary.topic)
        if request.handle in self._handles:
            self._delete(waiter)
        elif request.unchanged_since is not None and (closing is not None or live in self._opening):
            waiter.reply.set(False)
        elif closing is not None:
            closing.waiters.insert(0, waiter)
        elif live is not None and live in self._opening:
            self._opening[live].waiters.append(waiter)
        else:
            self._delete_now(waiter)

    def _delete_now(self, waiter: Waiter) -> None:
        request = waiter.request
        assert isinstance(request, DeleteSession)
        job = partial(
            sessions.delete_session,
            handle=request.handle,
            at=self._services.clock.wall(),
            unchanged_since=request.unchanged_since,
        )
        self._services.store.submit(job, partial(settle, waiter.reply))

    # -- closing -----------------------------------------------------------------------------------

    def _close(self, conversation_id: int, mode: CloseMode) -> GreenletFuture[bool]:
        reply: GreenletFuture[bool] = GreenletFuture()
        state = self._conversations.get(conversation_id)
        if state is None:
            reply.set(False)
            return reply
        closing = self._closing.get(conversation_id)
        if closing is not None:
            closing.others.append(reply)
        else:
            self._closing[conversation_id] = Closing(reply)
            if state.topic is not None:
                key = (state.agent, state.sender), state.topic
                self._closing_topics.setdefault(key, []).append(conversation_id)
            self._drop_route(state)
        assert state.ref is not None
        notify(state.ref, Close(mode))
        return reply

    def _stopped(self, notice: ConversationStopped) -> None:
        if notice.error is not None:
            logger.error("conversation %s died: %s", notice.conversation_id, notice.error)
        opening = self._opening.pop(notice.conversation_id, None)
        self._forget(notice.conversation_id)
        for waiter in opening.waiters if opening is not None else ():
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
            else:
                waiter.reply.fail(notice.error or ConversationClosed("the conversation was closed"))
        self._end_closing(notice.conversation_id, unstored=notice.unstored)
        if opening is not None:
            self._bring_back()

    def _end_closing(self, conversation_id: int, *, unstored: bool = False) -> None:
        """The conversation is gone: answer who closed it, and whoever waits for its topic."""
        closing = self._closing.pop(conversation_id, None)
        if closing is None:
            return
        if unstored:
            closing.reply.fail(
                StorageError(
                    f"conversation {conversation_id} is gone, but the end of its turns could not be stored: "
                    "they go on when the topic is opened again; close it then"
                )
            )
        else:
            closing.reply.set(True)
        for other in closing.others:
            other.set(False)
        for waiter in closing.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
            else:
                self._again(waiter)

    def _forget(self, conversation_id: int) -> None:
        state = self._services.directory.leave(conversation_id)
        if state is None:
            return
        self._drop_route(state)
        if state.handle is not None and self._handles.get(state.handle) == conversation_id:
            del self._handles[state.handle]
        if state.topic is not None:
            key = (state.agent, state.sender), state.topic
            closing = self._closing_topics.get(key, [])
            if conversation_id in closing:
                closing.remove(conversation_id)
            if not closing:
                self._closing_topics.pop(key, None)

    def _drop_route(self, state: ConversationState) -> None:
        pair = (state.agent, state.sender)
        router = self._routers.get(pair)
        if router is not None:
            router.drop(state.id)
            if router.empty:
                del self._routers[pair]

    def _closing_of(self, pair: Pair, title: str) -> Closing | None:
        closing = self._closing_topics.get((pair, title))
        return self._closing[closing[-1]] if closing else None

    # -- moving to another runtime -----------------------------------------------------------------

    def _begin_transfer(self) -> dict[int, Any]:
        self._check_open()
        if self._opening or self._closing:
            raise RuntimeClosed("conversations are opening or closing; transfer when they are done")
        self._refusal = RuntimeClosed("the runtime is being transferred and opens nothing new")
        return self._refs()

    def _end_transfer(self, moved: tuple[int, ...]) -> None:
        self._refusal = None
        for conversation_id in moved:
            self._forget(conversation_id)

    def _check_adoption(self, message: CheckAdoption) -> None:
        self._check_open()
        for agent in message.agents:
            self._services.agents.get(agent)
        taken = [conversation_id for conversation_id in message.ids if conversation_id in self._conversations]
        if taken:
            raise InvalidInput(
                f"the other runtime has live conversations with the same ids ({taken[0]}, ...); "
                "transfer to one that has opened none of its own"
            )

    def _adopt(self, message: Adopt) -> None:
        for moved in message.conversations:
            self._adopt_one(moved)
        for pair, router in message.routers.items():
            mine = self._router(pair)
            mine.by_title.update(router.by_title)
            mine.tmp = router.tmp if router.tmp is not None else mine.tmp
            mine.active = router.active if router.active is not None else mine.active
        self._next_id = max(self._next_id, message.next_id)

    def _adopt_one(self, moved: MovedConversation) -> None:
        self._services.directory.enter(moved.state)
        if moved.state.handle is not None:
            self._handles[moved.state.handle] = moved.state.id
        ConversationActor.start(self._services, moved.state, moved).tell(Proceed())

    # -- small things ------------------------------------------------------------------------------

    def _router(self, pair: Pair) -> TopicRouter:
        return self._routers.setdefault(pair, TopicRouter())

    def _refs(self) -> dict[int, Any]:
        return {conversation_id: state.ref for conversation_id, state in self._conversations.items()}

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal


def _copy(router: TopicRouter) -> TopicRouter:
    return TopicRouter(router.tmp, router.active, dict(router.by_title))
