"""Rules for text from outside: what is refused, what is mended, how a topic becomes a slug."""

from __future__ import annotations

import re
import unicodedata

from actors.errors import InvalidInput, InvalidTitle
from persistence.errors import PalaverError

TITLE_CHARS = 200

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SLUG_BREAK = re.compile(r"[\W_]+")


def check_text(
    value: object,
    *,
    what: str,
    error: type[PalaverError] = InvalidInput,
    empty: bool = False,
    most: int | None = None,
) -> str:
    """`value` as text that can be stored and sent, unchanged.

    Args:
        value: what a caller gave.
        what: the word for it in an error.
        error: the class to raise.
        empty: whether "" is fine.
        most: characters at most.

    Raises:
        error: not text, empty, too long, or with a NUL or a lone surrogate in it.
    """
    if isinstance(value, str) and value.isascii() and "\x00" not in value:  # most text: the quick way
        fits = most is None or len(value) <= most
        if fits and value and not value.isspace():
            return value
    if not isinstance(value, str):
        raise error(f"{what} must be text, not {type(value).__name__}")
    if not value.strip() and not empty:
        raise error(f"{what} is empty; give some text")
    if most is not None and len(value) > most:
        raise error(f"{what} has {len(value):,} characters; at most {most:,} are taken")
    found = _UNSTORABLE.search(value)
    if found is not None:
        kind = "a NUL character" if found[0] == "\x00" else "half of a surrogate pair"
        raise error(f"{what} has {kind} at position {found.start()}; remove it")
    return value


def check_title(title: object) -> str:
    """A topic's title, without white space around it.

    Raises:
        InvalidTitle: empty, over 200 characters, or with control characters (line breaks included).
    """
    text = check_text(title, what="the topic's title", error=InvalidTitle).strip()
    if len(text) > TITLE_CHARS:
        raise InvalidTitle(f"the topic's title has {len(text):,} characters; at most {TITLE_CHARS} are taken")
    if any(unicodedata.category(c) == "Cc" for c in text):
        raise InvalidTitle("the topic's title has control characters (a line break, a tab); give one line")
    return text


def mend_text(text: str) -> str:
    """Text from a model or a tool, with what cannot be stored or sent shown as U+FFFD."""
    if text.isascii() and "\x00" not in text:  # most text: a tenth of the time of the search
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def cut_text(text: str, most: int) -> str:
    """The first `most` characters, and a visible word on how many were left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[... {len(text) - most:,} characters left out]"


def slug(topic: str) -> str:
    """The archive slug of a topic: lower-case alphanumerics, other runs as "-", never empty."""
    return _SLUG_BREAK.sub("-", topic.lower()).strip("-") or "topic"


def describe_error(error: BaseException, *, named: bool = True) -> str:
    """An error in words, whatever its own `str` does: class and message, or the message alone."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:
        message = "(its message cannot be read)"
    if message and not named:
        return message
    return f"{name}: {message}" if message else name
