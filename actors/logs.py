"""Log lines with stable fields: in the text for people, and on the record for programs."""

from __future__ import annotations

import logging
from typing import Protocol


class Named(Protocol):
    """What a line says whom it is about by: a conversation's state."""

    id: int
    agent: str
    sender: str


def log(
    logger: logging.Logger,
    level: int,
    words: str,
    about: Named | None = None,
    *,
    turn: int | None = None,
    error: BaseException | None = None,
    **more: object,
) -> None:
    """Write one line: `words`, then `name=value` of each field that is known.

    Args:
        about: the conversation; its fields are `agent`, `sender`, `conversation`.
        turn: the turn's id.
        error: printed with its traceback.
        more: further fields, by name. Every field is an attribute of the record, too.
    """
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {}
    if about is not None:
        fields |= {"agent": about.agent, "sender": about.sender, "conversation": about.id}
    if turn is not None:
        fields["turn"] = turn
    fields |= more
    shown = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.log(
        level, "%s", f"{words}: {shown}" if shown else words, exc_info=error, extra=fields, stacklevel=2
    )
