"""How conversations are closed, and sessions deleted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlite_utils import Database

from actors.errors import ConversationClosed
from actors.greenlet import GreenletFuture
from actors.messages import (
    Close,
    CloseConversation,
    ConversationPassive,
    ConversationStopped,
    DeleteSession,
    PassiveDeleted,
)
from actors.registry_core import Closing, Waiter
from actors.registry_resting import RegistryResting
from actors.state import ConversationState
from actors.storage import notify, settle
from persistence import dormant, sessions
from persistence.dormant import Dormant
from persistence.errors import StorageError
from persistence.records import SessionSummary


class RegistryClosing(RegistryResting):
    """The part of the registry that ends conversations, the passive ones among them."""

    # -- closing -----------------------------------------------------------------------------------

    def _close(self, waiter: Waiter) -> GreenletFuture[bool]:
        request = waiter.request
        assert isinstance(request, CloseConversation)
        state = self._conversations.get(request.conversation_id)
        row = next((row for row in waiter.found or () if row.id == request.conversation_id), None)
        if state is not None:
            self._close_known(state, waiter)
        elif self._closed_unclaimed.pop(request.conversation_id, False):
            waiter.reply.set(True)
        elif row is not None:
            self._end_passive(row)
            waiter.reply.set(True)
        elif waiter.found is None and self._directory.passive:
            self._ask_for(waiter, partial(dormant.beside, id=request.conversation_id))
        else:
            waiter.reply.set(False)
        return waiter.reply

    def _close_known(self, state: ConversationState, waiter: Waiter) -> None:
        request = waiter.request
        assert isinstance(request, CloseConversation)
        closing = self._closing.get(state.id)
        if closing is not None:
            if closing.unclaimed:
                closing.reply, closing.unclaimed = waiter.reply, False
            else:
                closing.others.append(waiter.reply)
            self._tell_close(state, request)
        elif state.fate == "passive":
            self._end_passive(self._row_of(state))
            waiter.reply.set(True)
        else:
            self._begin_closing(state, request, waiter.reply)

    def _begin_closing(
        self, state: ConversationState, request: CloseConversation, reply: GreenletFuture[bool]
    ) -> Closing:
        closing = self._closing[state.id] = Closing(reply, request.mode)
        self._note_closing(state)
        self._drop_route(state)
        self._tell_close(state, request)
        return closing

    def _tell_close(self, state: ConversationState, request: CloseConversation) -> None:
        if request.mode == "now":
            self._closing[state.id].mode = "now"
        assert state.ref is not None
        notify(state.ref, Close(request.mode))  # one that is being started again is told when it is open

    def _end_passive(self, row: Dormant) -> None:
        """Nothing runs or waits in it: closing it is forgetting where it is."""
        self._leaving.pop(row.id, None)
        self._parting.pop(row.id, None)
        self._forget(row.id)
        router = self._routers.get((row.agent, row.sender))
        if router is not None:
            router.drop(row.id)
            self._tidy((row.agent, row.sender))
        self._forget_passive(row.id)

    def _passive(self, notice: ConversationPassive) -> None:
        state = self._conversations.get(notice.conversation_id)
        if state is None or state.fate != "passive":
            return
        if state.id in self._closing:
            self._gone(ConversationStopped(state.id))
        else:
            self._left(state)

    def _gone(self, notice: ConversationStopped) -> None:
        """A conversation is over: answer who closed it, and whoever waits for its topic."""
        state = self._conversations.get(notice.conversation_id)
        if state is not None and self._leaving.pop(state.id, None) is not None:
            self._expired(state)
        opening = self._opening.pop(notice.conversation_id, None)
        self._forget(notice.conversation_id)
        for waiter in opening.waiters if opening is not None else ():
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
            else:
                waiter.fail(notice.error or ConversationClosed("the conversation was closed"))
        error = None
        if notice.unstored:
            error = StorageError(
                f"conversation {notice.conversation_id} is gone, but the end of its turns could not be "
                "stored: they go on when the topic is opened again; close it then"
            )
        self._end_closing(notice.conversation_id, error)

    def _end_closing(self, conversation_id: int, error: Exception | None = None) -> None:
        closing = self._closing.pop(conversation_id, None)
        if closing is None:
            return
        if error is not None:
            closing.reply.fail(error)
        else:
            closing.reply.set(True)
            if closing.unclaimed:
                self._closed_unclaimed[conversation_id] = True
        for other in closing.others:
            other.set(False)
        for waiter in closing.waiters:
            if isinstance(waiter.request, DeleteSession):
                self._delete_now(waiter)
            else:
                self._again(waiter)

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
            self._delete_live(waiter, self._conversations[live])
        return waiter.reply

    def _delete_live(self, waiter: Waiter, state: ConversationState) -> None:
        closing = self._closing.get(state.id)
        if closing is not None:
            self._tell_close(state, CloseConversation(state.id, "now"))
            closing.waiters.insert(0, waiter)
        elif state.fate == "passive":
            self._end_passive(self._row_of(state))
            self._delete_now(waiter)
        else:
            closing = self._begin_closing(state, CloseConversation(state.id, "now"), GreenletFuture())
            closing.waiters.insert(0, waiter)

    def _delete_known(self, waiter: Waiter, summary: SessionSummary | None) -> None:
        request = waiter.request
        assert isinstance(request, DeleteSession)
        if summary is None:
            waiter.reply.set(False)
            return
        pair = (summary.agent, summary.sender)
        router = self._routers.get(pair)
        live = None if router is None else router.by_title.get(summary.topic)
        closing = self._closing_of(pair, summary.topic)
        row = next((row for row in waiter.found or () if row.handle == request.handle), None)
        if request.handle in self._handles:
            self._delete(waiter)
        elif request.unchanged_since is not None and (closing is not None or live in self._opening):
            waiter.reply.set(False)
        elif closing is not None:
            closing.waiters.insert(0, waiter)
        elif live is not None and live in self._opening:
            self._opening[live].waiters.append(waiter)
        else:
            self._delete_now(waiter, row)

    def _delete_now(self, waiter: Waiter, row: Dormant | None = None) -> None:
        request, ref = waiter.request, self.actor_ref
        assert isinstance(request, DeleteSession)
        at, unchanged_since = self._services.clock.wall(), request.unchanged_since
        job = partial(sessions.delete_session, handle=request.handle, at=at, unchanged_since=unchanged_since)
        if row is None:
            self._services.store.submit(job, partial(settle, waiter.reply))
            return

        def deleted(found: tuple[bool, int] | None, error: BaseException | None) -> None:
            gone, count = found or (False, 0)
            notify(ref, PassiveDeleted(row, gone, count))  # before whoever asked can ask again
            settle(waiter.reply, gone, error)  # this registry may not be there any more

        self._services.store.submit(partial(_delete_passive, delete=job, id=row.id), deleted)

    def _passive_deleted(self, notice: PassiveDeleted) -> None:
        self._directory.passive -= notice.count
        pair = (notice.row.agent, notice.row.sender)
        router = self._routers.get(pair)
        if notice.deleted and router is not None:
            router.drop(notice.row.id)
            self._tidy(pair)


def _delete_passive(
    db: Database,
    *,
    delete: Callable[[Database], bool],
    id: int,  # noqa: A002 - the record's own word
) -> tuple[bool, int]:
    """Delete a session, and with it the passive conversation of it."""
    deleted = delete(db)
    return deleted, dormant.forget(db, id) if deleted else 0
