"""`Runtime.memory`: notes, topics and archives of one agent and sender."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from actors.errors import InvalidInput
from actors.messages import Forget, ListMemory, Recall, Remember
from actors.text import check_text
from persistence.records import MemoryEntry

KINDS = ("note", "archive", "topic")
NAME_CHARS = 200
MOST_ENTRIES = 10_000


class Memory:
    """What an agent remembers. Every call is scoped to `(agent, sender)`, or to the agent alone where its
    config says `memory_scope="agent"`, and blocks the calling greenlet until it is committed.

    All calls raise `AgentNotRegistered`, `InvalidInput` and `StorageError`.
    """

    def __init__(
        self,
        ask: Callable[[object], Any],
        scope: Callable[[str, str], str],
        content_chars: int,
    ) -> None:
        self._ask = ask
        self._scope = scope
        self._content_chars = content_chars

    def remember(
        self, agent: str, sender: str, name: str, content: str, aliases: Iterable[str] = ()
    ) -> MemoryEntry:
        """Store a note; one of the same name in the scope is replaced.

        Args:
            name: what it is found by, up to 200 characters.
            aliases: other words that it is found by.
        """
        if isinstance(aliases, str) or not isinstance(aliases, Iterable):
            raise InvalidInput(f"aliases must be a list of words, not {aliases!r}")
        scope = self._scope(agent, sender)
        check_text(name, what="the note's name", most=NAME_CHARS)
        check_text(content, what="the note's content", most=self._content_chars)
        words = tuple(check_text(alias, what="an alias", most=NAME_CHARS) for alias in aliases)
        entry: MemoryEntry = self._ask(Remember(agent, scope, name, content, words))
        return entry

    def recall(self, agent: str, sender: str, query: str, limit: int = 5) -> list[MemoryEntry]:
        """Search notes, topics and archives by words, best match first.

        Args:
            query: any text; nothing in it is an operator. Blank finds nothing.
            limit: entries to return at most.
        """
        found: list[MemoryEntry] = self._ask(
            Recall(agent, self._scope(agent, sender), _query(query), _limit(limit))
        )
        return found

    def search_topics(self, agent: str, sender: str, query: str, limit: int = 5) -> list[MemoryEntry]:
        """Search the titles and descriptions of topics, as `recall` does."""
        found: list[MemoryEntry] = self._ask(
            Recall(agent, self._scope(agent, sender), _query(query), _limit(limit), "topic")
        )
        return found

    def forget(self, agent: str, sender: str, name: str) -> bool:
        """Delete a note; whether it was there. Topics and archives stay."""
        check_text(name, what="the note's name", most=NAME_CHARS)
        gone: bool = self._ask(Forget(agent, self._scope(agent, sender), name))
        return gone

    def entries(self, agent: str, sender: str, kind: str | None = None) -> list[MemoryEntry]:
        """Everything in the scope, in the order of creation; of one kind (note, archive, topic) or all."""
        if kind is not None and kind not in KINDS:
            raise InvalidInput(f"kind must be one of {', '.join(KINDS)} or None, not {kind!r}")
        found: list[MemoryEntry] = self._ask(ListMemory(agent, self._scope(agent, sender), kind))
        return found


def _query(query: object) -> str:
    if not isinstance(query, str):
        raise InvalidInput(f"a query must be text, not {type(query).__name__}")
    return "".join(c for c in query if c != "\x00" and not "\ud800" <= c <= "\udfff")


def _limit(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InvalidInput(f"limit must be a whole number, not {limit!r}")
    return min(limit, MOST_ENTRIES)
