"""The registry actor: agents, topic routers, ids, and the directory of live conversations."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

import gevent

from actors.conversation import ConversationActor
from actors.errors import InvalidInput, MailboxFull, RuntimeClosed
from actors.greenlet import LATER, GreenletFuture
from actors.messages import (
    Adopt,
    BeginTransfer,
    BringBack,
    CheckAdoption,
    CloseConversation,
    ConversationOpened,
    ConversationPassive,
    ConversationStopped,
    DeleteSession,
    DescribeRouting,
    EndTransfer,
    FindActive,
    FindConversation,
    GetOrCreate,
    ListPassive,
    LoadSession,
    MakeRoom,
    OpeningFailed,
    PassivationRefused,
    PassiveDeleted,
    PassiveForgotten,
    PassiveFound,
    PassiveStored,
    Proceed,
    PutAgent,
    RefuseNewWork,
    RemoveAgent,
    Restart,
    SessionLookedUp,
    Sweep,
    SwitchTopic,
    Unpark,
    Wake,
)
from actors.registry_core import Pair, Revival, Waiter
from actors.registry_lives import RegistryLives
from actors.storage import notify
from actors.topics import TopicRouter
from actors.transfer import MovedConversation
from persistence.errors import DatabaseFailed, RecordError, StorageError
from persistence.records import UnfinishedSession

MOST_OPENING = 100  # conversations, from which on no more are brought back
BRING_BACK_AGAIN_S = 5.0


class RegistryActor(RegistryLives):
    """Serializes routing, reservations, opening and closing. No handler ever waits.

    Ids start at 1, only grow, and are never given twice, whatever fails.
    """

    _retry: gevent.Greenlet | None = None

    def on_start(self) -> None:
        """Go on where an earlier registry, if there was one, ended."""
        for state in [state for state in self._conversations.values() if state.fate is not None]:
            self._settle_fate(state)
        self._sweep_later()

    def on_death(self, reason: BaseException | None) -> None:
        if self._retry is not None:
            self._retry.kill(block=False)
        super().on_death(reason)

    def on_receive(self, message: Any) -> Any:
        match message:
            case GetOrCreate():
                return self._get_or_create(message)
            case SwitchTopic():
                return self._switch_topic(Waiter(message, GreenletFuture()))
            case LoadSession():
                return self._load(Waiter(message, GreenletFuture()))
            case Wake():
                return self._wake(Waiter(message, GreenletFuture()))
            case CloseConversation():
                return self._close(Waiter(message, GreenletFuture()))
            case ConversationOpened():
                self._opened_again(message)
                return self._bring_back()
            case OpeningFailed():
                self._opening_failed(message)
                return self._bring_back()
            case ConversationStopped():
                self._stopped(message)
                return self._bring_back()
            case ConversationPassive():
                return self._passive(message)
            case PassivationRefused():
                return self._stays(message)
            case PassiveStored():
                return self._passive_stored(message)
            case PassiveFound():
                return self._found(message)
            case PassiveForgotten():
                return self._passive_forgotten(message)
            case PassiveDeleted():
                return self._passive_deleted(message)
            case SessionLookedUp():
                return self._looked_up(message)
            case Restart():
                return self._restart(message)
            case Unpark():
                return self._unpark(message.conversation_id)
            case Sweep():
                return self._sweep()
            case MakeRoom():
                return self._relieve()
            case DeleteSession():
                return self._delete(Waiter(message, GreenletFuture()))
            case FindConversation():
                return self._find(message)
            case FindActive():
                return self._find_active((message.agent, message.sender))
            case ListPassive():
                return self._list_passive(message)
            case PutAgent():
                return self._put_agent(message)
            case BringBack():
                return self._bring_back_again()
            case RemoveAgent():
                return self._services.agents.remove(message.name, ephemeral=message.ephemeral)
            case RefuseNewWork():
                return self._refuse_new_work()
            case BeginTransfer():
                return self._begin_transfer()
            case EndTransfer():
                return self._end_transfer(message.moved)
            case DescribeRouting():
                return self._describe()
            case CheckAdoption():
                return self._check_adoption(message)
            case Adopt():
                return self._adopt(message)
            case _:
                raise TypeError(f"the registry does not understand {message!r}")

    def answer_at_once(self, message: Any) -> Any:
        return self._at_once(message.agent, message.sender) if type(message) is GetOrCreate else LATER

    def _again(self, waiter: Waiter) -> None:
        request = waiter.request
        try:
            match request:
                case GetOrCreate():
                    waiter.reply.set(self._get_or_create(request, waiter))
                case SwitchTopic():
                    self._switch_topic(waiter)
                case DeleteSession():
                    self._delete(waiter)
                case CloseConversation():
                    self._close(waiter)
                case Wake():
                    self._wake(waiter)
                case LoadSession():
                    self._load(waiter)
        except Exception as error:
            waiter.fail(error)

    def _refuse_new_work(self) -> dict[int, Any]:
        self._refusal = RuntimeClosed("the runtime is shutting down and opens nothing new")
        for state in list(self._conversations.values()):
            if isinstance(state.fate, BaseException) and state.phase != "parked":
                self._bury(state, state.fate)
        return self._refs()

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
                self._revive_left(session)

    def _revive_left(self, session: UnfinishedSession) -> None:
        waiter = Revival(
            LoadSession(session.handle), GreenletFuture(), session=session, put_off=self._bring_back_later
        )
        try:
            self._load_known(waiter, session)
        except MailboxFull as full:
            waiter.fail(full)

    def _bring_back_later(self, session: UnfinishedSession, error: BaseException) -> None:
        """A topic with unfinished work could not be opened: once more, unless that is in vain."""
        if isinstance(error, DatabaseFailed | RecordError):
            return
        if not isinstance(error, StorageError | MailboxFull):
            return
        self._services.put_off.append(session)
        if self._retry is None or self._retry.dead:
            self._retry = gevent.spawn_later(BRING_BACK_AGAIN_S, notify, self.actor_ref, BringBack())

    def _bring_back_again(self) -> None:
        for session in self._services.put_off:
            self._services.left_undone.setdefault(session.agent, deque()).append(session)
        self._services.put_off.clear()
        self._bring_back()

    # -- moving to another runtime -----------------------------------------------------------------

    def _describe(self) -> tuple[dict[Pair, TopicRouter], int]:
        return {pair: _copy(router) for pair, router in self._routers.items()}, self._directory.next_id

    def _begin_transfer(self) -> dict[int, Any]:
        self._check_open()
        if self._opening or self._closing or self._leaving or self._parting:
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
        self._directory.next_id = max(self._directory.next_id, message.next_id)

    def _adopt_one(self, moved: MovedConversation) -> None:
        moved.state.idle_since = self._services.clock.monotonic()
        self._directory.enter(moved.state)
        if moved.state.handle is not None:
            self._handles[moved.state.handle] = moved.state.id
        ConversationActor.start(self._services, moved.state, moved).tell(Proceed())


def _copy(router: TopicRouter) -> TopicRouter:
    return TopicRouter(router.tmp, router.active, dict(router.by_title))
