"""Routing of one (agent, sender) pair: pure rules, no actor."""

from __future__ import annotations

from attrs import define, field


@define
class TopicRouter:
    """Which conversation a sender's next message goes to.

    `tmp` is the chat without a topic, `by_title` the live topics, `active` the title in use.
    """

    tmp: int | None = None
    active: str | None = None
    by_title: dict[str, int] = field(factory=dict)

    def current(self) -> int | None:
        """The active topic's conversation, else the tmp chat's, else None."""
        if self.active is not None:
            return self.by_title[self.active]
        return self.tmp

    def reserve(self, title: str, conversation_id: int) -> str | None:
        """Point `title` at a conversation that is opening, and make it active.

        Returns:
            The title that was active before, for `roll_back`.
        """
        previous = self.active
        self.by_title[title] = conversation_id
        self.active = title
        return previous

    def roll_back(self, title: str, conversation_id: int, previous: str | None) -> None:
        """Undo `reserve`; `previous` is active again, unless the sender has switched since."""
        if self.by_title.get(title) != conversation_id:
            return
        del self.by_title[title]
        if self.active == title:
            self.active = previous if previous in self.by_title else None

    def drop(self, conversation_id: int) -> None:
        """Forget a conversation wherever it is pointed at."""
        if self.tmp == conversation_id:
            self.tmp = None
        self.by_title = {t: c for t, c in self.by_title.items() if c != conversation_id}
        if self.active not in self.by_title:
            self.active = None

    @property
    def empty(self) -> bool:
        """Whether nothing is routed here any more."""
        return self.tmp is None and not self.by_title
