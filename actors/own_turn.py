"""Turns that would wait for themselves: a tool or hook that waits for the end of the turn it runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from actors.greenlet import Deadlock


class TurnGreenlet(gevent.Greenlet):  # type: ignore[misc]  # gevent ships no types
    """A greenlet of a turn: its own, or that of one of its tool calls. Started at once."""

    def __init__(self, conversation_id: int, function: Callable[..., object], *args: Any) -> None:
        super().__init__(function, *args)
        self.conversation_id = conversation_id
        self.start()


def check_not_own_turn(conversation_id: int | None, what: str) -> None:
    """Refuse to wait, in a turn's own greenlets, for something that this turn has to end for.

    Args:
        conversation_id: the conversation waited for; None is any.
        what: what would be waited for, for the error.

    Raises:
        Deadlock: it would never come.
    """
    current = gevent.getcurrent()
    if isinstance(current, TurnGreenlet) and conversation_id in (None, current.conversation_id):
        raise Deadlock(
            f"{what} would wait for the very turn that asks for it, for ever: do not wait for it in a tool "
            "or hook of that conversation (submit() does not wait), or ask from a greenlet of its own"
        )
