"""What a prompt needs of whatever holds its conversations: a runtime in this process, or a host's client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from actors.events import Event
from actors.state import CompactOutcome, ConversationInfo, ConversationSnapshot, SwitchOutcome
from actors.ticket import OnBusy
from persistence.records import SessionSummary


class Conversations(Protocol):
    """Some of the calls of `Runtime`, which `HostClient` has too."""

    def get_or_create(self, agent: str, sender: str) -> int:
        """As `Runtime.get_or_create`."""

    def switch_topic(
        self, agent: str, sender: str, title: str, description: str | None = None
    ) -> SwitchOutcome:
        """As `Runtime.switch_topic`."""

    def stream(self, cid: int, content: str, *, on_busy: OnBusy = "enqueue") -> Iterator[Event]:
        """As `Runtime.stream`."""

    def cancel(self, cid: int) -> bool:
        """As `Runtime.cancel`."""

    def compact(self, cid: int) -> CompactOutcome:
        """As `Runtime.compact`."""

    def close(self, cid: int) -> bool:
        """As `Runtime.close`."""

    def conversation_id(self, agent: str, sender: str) -> int | None:
        """As `Runtime.conversation_id`."""

    def conversation(self, cid: int) -> ConversationSnapshot | None:
        """As `Runtime.conversation`."""

    def list_active(self) -> list[ConversationInfo]:
        """As `Runtime.list_active`."""

    def sessions(self, agent: str | None = None, sender: str | None = None) -> list[SessionSummary]:
        """As `Runtime.sessions`."""
