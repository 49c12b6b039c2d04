"""The calls of a runtime for messages that are to come later."""

from __future__ import annotations

from actors.greenlet import GreenletFuture
from actors.messages import (
    FindConversation,
    SetTimer,
)
from actors.ticket import unknown_conversation
from palaver.talking import Talking
from palaver.timers import SHORTEST_PERIOD_S, Timer, cancelled, check_id, check_seconds, listed, new_timer
from persistence.records import (
    TimerInfo,
)


class Later(Talking):
    """The part of `Runtime` that sets, lists and cancels timers."""

    # -- timers ------------------------------------------------------------------------------------

    def after(
        self, seconds: float, cid: int, content: str, *, sender: str = "", key: str | None = None
    ) -> Timer:
        """Let a message come to a conversation after so many seconds, as if it were submitted then.

        For a topic the timer is stored when this returns: it fires exactly once, whatever ends the process
        before, and opens the topic if that is not live then. That of a tmp chat goes with the chat.

        Args:
            seconds: from now, by the wall clock.
            sender: who says it, in the history; the conversation's sender if "".
            key: its idempotency key, as of `send`; while it is pending, the same key and content give the
                same timer.

        Raises:
            ConversationNotFound, ConversationClosed, KeyReused, InvalidInput, StorageError.
            MailboxFull: the conversation has `limits.timers_per_conversation` timers.
        """
        return self._set_timer(check_seconds(seconds, "seconds"), cid, content, sender, key, None)

    def every(
        self,
        seconds: float,
        cid: int,
        content: str,
        *,
        first_after: float | None = None,
        sender: str = "",
    ) -> Timer:
        """Let a message come again and again, every so many seconds, until the timer is cancelled.

        Periods are counted from the first one. Those that pass while the runtime is down are made up for by
        one message.

        Args:
            first_after: seconds until the first one; `seconds` if None.

        Raises:
            As `after`.
        """
        every_s = check_seconds(seconds, "seconds", SHORTEST_PERIOD_S)
        first = every_s if first_after is None else check_seconds(first_after, "first_after")
        return self._set_timer(first, cid, content, sender, None, every_s)

    def timers(self, cid: int | None = None) -> list[TimerInfo]:
        """The timers that have not ended, of a conversation or all; the one that is due first comes first.

        Raises:
            ConversationNotFound, StorageError.
        """
        self._check_open()
        return listed(self._services, cid, None if cid is None else self._handle(cid))

    def cancel_timer(self, timer_id: int) -> bool:
        """End a timer; False if it had ended before. Once this has returned True, nothing comes of it any
        more; a message that came before goes on.

        Raises:
            StorageError: it is as it was.
        """
        self._check_open()
        return cancelled(self._services, check_id(timer_id))

    def _handle(self, cid: int) -> str | None:
        """The handle of a conversation that is live or has left memory; None for a tmp chat."""
        state = self._conversations.get(check_id(cid, "conversation"))
        if state is not None:
            return state.handle
        handle: str | None = self._ask_registry(FindConversation(cid))
        if handle is None:
            raise unknown_conversation(cid)
        return handle

    def _set_timer(
        self, first: float, cid: int, content: str, sender: str, key: str | None, every_s: float | None
    ) -> Timer:
        self._check_message(content, sender, key)
        reply: GreenletFuture[TimerInfo] = GreenletFuture()
        self._tell(cid, SetTimer(new_timer(self._services, first, content, sender, key, every_s), reply))
        info: TimerInfo = reply.get()
        return Timer(info.id, cid, info.due_at, info.every_s, cancel=self.cancel_timer)
