"""Which conversation a request is for: routing by pair and topic, opening, loading."""

from __future__ import annotations

import logging
from typing import Any

from actors.errors import ConversationClosed, DescriptionRequired
from actors.greenlet import LATER, GreenletFuture
from actors.logs import log
from actors.messages import (
    ConversationOpened,
    DeleteSession,
    GetOrCreate,
    LoadSession,
    OpeningFailed,
    OpenSession,
    SessionLookedUp,
    SwitchTopic,
    Wake,
)
from actors.registry_closing import RegistryClosing
from actors.registry_core import Opening, Pair, Waiter
from actors.state import SwitchOutcome
from actors.topics import TopicRouter
from persistence.errors import SessionNotFound
from persistence.records import SessionSummary, UnfinishedSession

logger = logging.getLogger("palaver.registry")


class RegistryRouting(RegistryClosing):
    """The part of the registry that finds and opens conversations."""

    # -- pairs and topics --------------------------------------------------------------------------

    def _at_once(self, agent: str, sender: str) -> Any:
        """The pair's conversation, as it takes no wait and nobody has to leave or be refused; else LATER."""
        directory = self._directory
        if directory.refusal is not None or self._services.agents.find(agent) is None:
            return LATER
        pair = (agent, sender)
        router = self._routers.get(pair)
        if router is not None:
            current = router.current()
            if current is not None:
                return current
        elif directory.passive:
            return LATER
        if not self._has_room:
            return LATER
        conversation_id = self._start(agent, sender, None).id
        if router is None:
            self._routers[pair] = TopicRouter(conversation_id)
        else:
            router.tmp = conversation_id
        return conversation_id

    def _get_or_create(self, request: GetOrCreate, waiter: Waiter | None = None) -> int | GreenletFuture[int]:
        self._check_open()
        self._services.agents.get(request.agent)
        pair = (request.agent, request.sender)
        if waiter is None and not self._at_home(pair):
            waiter = Waiter(request, GreenletFuture())
            self._ask_for_pair(waiter, pair)
            return waiter.reply
        router = self._router(pair)
        current = router.current()
        if current is None:
            current = router.tmp = self._open_chat(pair)
        return current

    def _open_chat(self, pair: Pair) -> int:
        try:
            self._make_room()
            return self._start(*pair, None).id
        except BaseException:
            self._tidy(pair)
            raise

    def _switch_topic(self, waiter: Waiter) -> GreenletFuture[Any]:
        request = waiter.request
        assert isinstance(request, SwitchTopic)
        self._check_open()
        agent = self._services.agents.get(request.agent)
        pair = (request.agent, request.sender)
        if not self._at_home(pair) and waiter.found is None:
            self._ask_for_pair(waiter, pair)
            return waiter.reply
        closing = self._closing_of(pair, request.title)
        if closing is not None:
            closing.waiters.append(waiter)
            return waiter.reply
        live = self._router(pair).by_title.get(request.title)
        if live is None:
            self._open(waiter, pair, request.title, None, request.description, agent.config.scope(pair[1]))
        elif live in self._opening:
            self._router(pair).active = request.title
            self._opening[live].waiters.append(waiter)
        else:
            self._router(pair).active = request.title  # one that is passive is woken by its next message
            waiter.reply.set(SwitchOutcome(live, True))
        return waiter.reply

    # -- opening -----------------------------------------------------------------------------------

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
        try:
            self._make_room()
        except BaseException:
            self._tidy(pair)
            raise
        state = self._start(*pair, title)
        router = self._router(pair)
        opening = Opening(pair, title, router.active, [waiter])
        if isinstance(waiter.request, SwitchTopic):
            router.reserve(title, state.id)
        else:  # loading a session does not switch to it, nor is an older session of a title routed to
            router.by_title.setdefault(title, state.id)
        self._opening[state.id] = opening
        if handle is not None:
            state.handle = handle
            self._handles[handle] = state.id
        assert state.ref is not None
        state.ref.tell(OpenSession(handle, description, scope))

    def _opened(self, notice: ConversationOpened) -> None:
        opening = self._opening.pop(notice.conversation_id, None)
        state = self._conversations.get(notice.conversation_id)
        if opening is None or state is None:
            return
        self._handles[notice.handle] = notice.conversation_id
        if opening.known:
            self._forget_passive(notice.conversation_id)
        for waiter in opening.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._again(waiter)
            elif notice.conversation_id in self._closing:
                waiter.fail(ConversationClosed(f"the topic {opening.title!r} was closed while it opened"))
            elif isinstance(waiter.request, SwitchTopic):
                # A topic that this very opening created is new to everybody who waited for it.
                waiter.reply.set(SwitchOutcome(notice.conversation_id, notice.resumed))
            elif isinstance(waiter.request, Wake):
                self._answer_wake(waiter, state)
            else:
                self._again(waiter)

    def _give_up_opening(self, notice: OpeningFailed) -> None:
        """The conversation could not be opened: as if it had not been asked for."""
        opening = self._opening.pop(notice.conversation_id)
        if not isinstance(notice.error, DescriptionRequired):
            agent, sender = opening.pair
            log(
                logger,
                logging.ERROR,
                "a topic could not be opened",
                agent=agent,
                sender=sender,
                conversation=notice.conversation_id,
                topic=opening.title,
                reason=str(notice.error),
            )
        state = self._conversations.get(notice.conversation_id)
        if state is not None and opening.known and isinstance(notice.error, SessionNotFound):
            self._end_passive(self._row_of(state))  # it was deleted meanwhile
        elif state is not None and opening.known:
            self._sleep_again(state)
        else:
            router = self._router(opening.pair)
            router.roll_back(opening.title, notice.conversation_id, opening.previous)
            self._forget(notice.conversation_id)
        for waiter in opening.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
            elif _may_fare_better(waiter, notice.error):
                waiter.found = None  # what it was told may be as old
                self._again(waiter)
            else:
                waiter.fail(notice.error)
        self._tidy(opening.pair)

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

    def _looked_up(self, notice: SessionLookedUp) -> None:
        waiter: Waiter = notice.request
        self._asking.remove(waiter)
        if notice.error is not None:
            waiter.fail(notice.error)
            return
        waiter.found = found = self._current(notice.passive)
        self._house(found)
        if isinstance(waiter.request, DeleteSession):
            self._delete_known(waiter, notice.summary)
        elif notice.summary is None:
            waiter.fail(SessionNotFound(f"no stored session has the handle {notice.handle!r}"))
        else:
            self._load_found(waiter, notice.summary)
        for row in found[:1]:
            self._tidy((row.agent, row.sender))

    def _load_found(self, waiter: Waiter, summary: SessionSummary) -> None:
        row = next((row for row in waiter.found or () if row.handle == summary.handle), None)
        try:
            if row is not None and row.id not in self._conversations:
                self._check_open()
                self._revive_if_room(waiter, row)
            else:
                self._load_known(waiter, summary)
        except Exception as error:
            waiter.fail(error)

    def _load_known(self, waiter: Waiter, summary: SessionSummary | UnfinishedSession) -> None:
        self._check_open()
        agent = self._services.agents.get(summary.agent)
        pair = (summary.agent, summary.sender)
        if not self._at_home(pair) and waiter.found is None:
            self._look_up(waiter, summary.handle)
            return
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


def _may_fare_better(waiter: Waiter, error: BaseException | None) -> bool:
    """Whether what kept a conversation from opening may not concern one who only waited with others."""
    request = waiter.request
    if isinstance(error, DescriptionRequired):  # the one who came first had no description
        return isinstance(request, SwitchTopic) and request.description is not None
    # The session that the first one asked for was deleted. A topic may be opened anew, and another session of
    # its title may be there.
    return isinstance(error, SessionNotFound) and isinstance(request, SwitchTopic | LoadSession)
