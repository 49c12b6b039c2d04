"""The tools that every agent has: its memory, and its sender's topics.

All are scoped to the turn's agent and sender by the runtime, never by an argument.
"""

from __future__ import annotations

import functools
from typing import Any

from actors.errors import ConversationClosed
from actors.lasting import ask_until_answered
from actors.messages import Forget, Recall, Remember, SwitchTopic
from actors.services import Services
from actors.text import check_text, check_title
from actors.tools import Tool, ToolContext
from persistence.records import MemoryEntry

NAME_CHARS = 200
BUILTIN_NAMES = ("search_topics", "switch_topic", "recall", "remember", "forget")


def builtin_tools(services: Services) -> list[Tool]:
    """The tools of `BUILTIN_NAMES`, for one runtime."""
    memory = _MemoryTools(services)
    return [tool.calling(getattr(memory, name)) for name, tool in _tools().items()]


@functools.cache
def _tools() -> dict[str, Tool]:
    """The tools of no runtime: reading their signatures takes longer than the rest of a runtime's start."""
    nobodys = _MemoryTools(None)  # type: ignore[arg-type]  # only its signatures are read
    return {name: Tool(getattr(nobodys, name)) for name in BUILTIN_NAMES}


class _MemoryTools:
    def __init__(self, services: Services) -> None:
        self._services = services

    def search_topics(self, query: str, call: ToolContext, limit: int = 5) -> list[dict[str, Any]]:
        """Find earlier topics of this user by words in their titles and descriptions.

        Args:
            query: Words to look for.
            limit: How many topics to return at most.
        """
        found = self._ask_memory(Recall(call.agent, self._scope(call), query, limit, "topic"))
        return [{"title": entry.name, "description": entry.content} for entry in found]

    def switch_topic(self, title: str, call: ToolContext, description: str = "") -> dict[str, Any]:
        """Continue this user's next messages in a topic of its own. A known title resumes that topic.

        Args:
            title: The topic's title.
            description: What the topic is about; needed when the title is new.
        """
        registry, timeout = self._services.registry, self._services.limits.ask_timeout_s
        assert registry is not None
        request = SwitchTopic(call.agent, call.sender, check_title(title), description.strip() or None)
        own = self._services.directory.conversations.get(call.conversation_id)
        if own is not None and own.phase == "closing" and own.topic == request.title:
            raise ConversationClosed(f"the topic {request.title!r} is being closed, with this very turn")
        outcome = ask_until_answered(registry, request, timeout=timeout, waits=True)
        return {"topic": request.title, "resumed": outcome.resumed}

    def recall(self, query: str, call: ToolContext, limit: int = 5) -> list[dict[str, Any]]:
        """Search notes, topics and archived summaries of earlier conversations, best match first.

        Args:
            query: Words to look for.
            limit: How many entries to return at most.
        """
        found = self._ask_memory(Recall(call.agent, self._scope(call), query, limit))
        return [_shown(entry) for entry in found]

    def remember(self, name: str, content: str, call: ToolContext, aliases: list[str] | None = None) -> str:
        """Keep a note. A note of the same name is replaced.

        Args:
            name: A short name to find it by.
            content: What to remember.
            aliases: Other words to find it by.
        """
        check_text(name, what="the note's name", most=NAME_CHARS)
        check_text(content, what="the note's content", most=self._services.limits.content_chars)
        for alias in aliases or ():
            check_text(alias, what="an alias", most=NAME_CHARS)
        scope = self._scope(call)
        self._ask_memory(Remember(call.agent, scope, name, content, tuple(aliases or ())))
        return f"remembered {name!r}"

    def forget(self, name: str, call: ToolContext) -> str:
        """Delete a note.

        Args:
            name: The note's name.
        """
        gone = self._ask_memory(Forget(call.agent, self._scope(call), name))
        return f"forgot {name!r}" if gone else f"there is no note {name!r}"

    def _scope(self, call: ToolContext) -> str:
        return self._services.agents.get(call.agent).config.scope(call.sender)

    def _ask_memory(self, message: object) -> Any:
        memory, timeout = self._services.memory, self._services.limits.ask_timeout_s
        assert memory is not None
        return ask_until_answered(memory, message, timeout=timeout, waits=False)


def _shown(entry: MemoryEntry) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "content": entry.content}
    if entry.aliases:
        shown["aliases"] = list(entry.aliases)
    return shown
