"""Log lines with stable fields: in the text for people, and on the record for programs."""

from __future__ import annotations

import json
import logging
import re
from typing import Protocol

_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f-\x9f]+")


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
    """Write one line: `words`, then `name=value` of each field that is known; a value that is not one plain
    word is quoted as JSON, so that nobody's text makes lines or fields of its own.

    Args:
        words: what happened; always the same words for the same thing.
        about: the conversation; its fields are `agent`, `sender`, `conversation`.
        turn: the turn's id.
        error: printed with its traceback.
        more: further fields, by name; those that are None are left out. `reason` is why, in words.

    Every field is an attribute of the record, too, and `words` is another.
    """
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {}
    if about is not None:
        fields |= {"agent": about.agent, "sender": about.sender, "conversation": about.id}
    fields |= {name: value for name, value in (more | {"turn": turn}).items() if value is not None}
    shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
    text = f"{words}: {shown}" if shown else words
    logger.log(level, "%s", text, exc_info=error, extra={**fields, "words": words}, stacklevel=2)


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
