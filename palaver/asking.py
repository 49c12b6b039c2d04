"""How the calls of a runtime reach its actors and its database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pykka

from actors.errors import AskTimeout, ConversationClosed, InvalidInput, RuntimeClosed
from actors.lasting import ask_until_answered
from actors.messages import (
    RefuseNewWork,
    SetTimer,
    Steer,
    Submit,
    Wake,
)
from actors.services import Services
from actors.text import check_text
from actors.ticket import unknown_conversation
from palaver.memory import Memory
from palaver.threads import Owner

T = TypeVar("T")

NAME_CHARS = 200
WAKES = 10  # of a conversation that leaves again before it hears what it was woken for


class Asking:
    """What the parts of `Runtime` share: its services, and how they ask actors and the database."""

    def __init__(self, services: Services, path: str) -> None:
        self._services = services
        self._clock = services.clock
        self._conversations = services.directory.conversations
        self._owner = Owner()
        self._refusal: RuntimeClosed | None = None
        self.path = path
        self.memory = Memory(self._ask_memory, self._scope, services.limits.content_chars)

    # -- asking ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._owner.check()
        self._check_refusal()

    def _check_refusal(self) -> None:
        refusal = self._refusal or self._services.failed
        if refusal is not None:
            raise refusal

    def _ref(self, cid: int) -> pykka.ActorRef[Any]:
        """The conversation's actor; one that has left memory, or that is being started again, comes back.

        Raises:
            ConversationNotFound, ConversationClosed, ConversationParked, MailboxFull, StorageError.
        """
        self._check_open()
        if not isinstance(cid, int):
            raise InvalidInput(f"a conversation is named by its id, a whole number, not by {cid!r}")
        state = self._conversations.get(cid)
        if state is None and not self._services.directory.passive:
            raise unknown_conversation(cid)
        if state is None or state.ref is None or not state.ref.is_alive():
            woken: pykka.ActorRef[Any] = self._ask_registry(Wake(cid), waits=True)
            return woken
        return state.ref

    def _tell(self, cid: int, message: Submit | Steer | SetTimer) -> None:
        for _ in range(WAKES):
            ref = self._ref(cid)
            # Only now, as waking it may take a while: ids are in the order in which mailboxes get messages.
            if not isinstance(message, SetTimer):
                message.ticket.turn_id = next(self._services.turn_ids)
            try:
                ref.tell(message)
            except pykka.ActorDeadError:
                continue  # it left between our finding it and our words
            return
        raise ConversationClosed(f"conversation {cid} is closed")

    def _ask_conversation(self, cid: int, message: object) -> Any:
        for _ in range(WAKES):
            try:
                return self._answer(self._ref(cid), message, waits=True)
            except pykka.ActorDeadError:
                continue
        raise ConversationClosed(f"conversation {cid} is closed")

    def _ask_registry(self, message: object, *, waits: bool = False) -> Any:
        self._owner.check()
        if not isinstance(message, RefuseNewWork):
            self._check_refusal()
        return self._ask_service(self._services.registry, message, waits=waits)

    def _ask_memory(self, message: object) -> Any:
        self._check_open()
        return self._ask_service(self._services.memory, message, waits=False)

    def _ask_service(self, ref: pykka.ActorRef[Any] | None, message: object, *, waits: bool) -> Any:
        """The reply of an actor that is restarted when it dies; `waits` as for `_answer`."""
        assert ref is not None
        try:
            return self._answer(ref, message, waits=waits)
        except pykka.ActorDeadError as error:
            raise (
                self._services.failed or RuntimeClosed(f"the runtime is over: {error}; open a new one")
            ) from error

    def _answer(self, ref: pykka.ActorRef[Any], message: object, *, waits: bool) -> Any:
        """An actor's reply; `waits` if a turn may have to end before it comes."""
        timeout = self._services.limits.ask_timeout_s
        try:
            return ask_until_answered(ref, message, timeout=timeout, waits=waits)
        except pykka.Timeout as error:
            raise AskTimeout(f"no answer to {type(message).__name__} within {timeout} s") from error

    @staticmethod
    def _check_pair(agent: str, sender: str) -> None:
        check_text(agent, what="the agent's name", most=NAME_CHARS)
        check_text(sender, what="the sender", most=NAME_CHARS)

    def _scope(self, agent: str, sender: str) -> str:
        self._check_pair(agent, sender)
        return self._services.agents.get(agent).config.scope(sender)

    def _job(self, job: Callable[..., T]) -> T:
        self._check_open()
        return self._services.store.call(job)
