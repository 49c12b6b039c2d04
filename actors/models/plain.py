"""Summaries and titles that need no model: what a scripted one says when nobody told it more."""

from __future__ import annotations

import re

from actors.models.base import Message

_TITLE_WORDS = 6
_SUMMARY_PARTS = 6
_SUMMARY_PART_CHARS = 60
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def plain_summary(messages: list[Message]) -> str:
    """A summary that a script gives without being told: how many messages, and how the first ones begin."""
    said = [m for m in messages if m.get("role") != "system"] or messages
    parts = (f"{m.get('role', '')}: {_start_of(message_text(m))}" for m in said[:_SUMMARY_PARTS])
    return f"Summary of {len(said)} messages: {' | '.join(parts)}".rstrip()


def plain_title(messages: list[Message]) -> str:
    """A title of 3 to 6 words: those that the first user message begins with."""
    text = next((message_text(m) for m in messages if m.get("role") == "user"), "")
    words = _WORD.findall(text)[:_TITLE_WORDS]
    if not words:
        return "A new conversation"
    return " ".join(words if len(words) > 2 else ["Talk", "about", *words])


def message_text(message: Message) -> str:
    """The text of a message in wire form, whose content may be text, a list of parts, or missing."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _start_of(text: str) -> str:
    line = " ".join(text[: 4 * _SUMMARY_PART_CHARS].split())
    return line if len(line) <= _SUMMARY_PART_CHARS else f"{line[:_SUMMARY_PART_CHARS]}..."
