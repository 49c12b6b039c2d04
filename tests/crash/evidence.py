"""A ledger and a picture of the file, side by side: what every check of an audit looks at."""

from __future__ import annotations

from collections import defaultdict

from attrs import define, field

from crash.ledger import Ledger, Message
from crash.picture import Picture, SteerSeen, TurnSeen


@define(eq=False)
class Evidence:
    """A ledger against a picture of the file.

    Args:
        notes: the lines that tools wrote since the last audit, as (life, tool call).
        drained: whether nothing may be left undone.
    """

    ledger: Ledger
    picture: Picture
    notes: list[tuple[str, str]]
    drained: bool
    turns: dict[str, TurnSeen] = field(factory=dict, init=False)  # by content
    steers: dict[str, SteerSeen] = field(factory=dict, init=False)
    said: dict[str, list[tuple[str, int]]] = field(init=False)  # content: handle and turn of its entries

    def __attrs_post_init__(self) -> None:
        self.said = defaultdict(list)
        for handle, entries in self.picture.transcripts.items():
            for seen in entries:
                if seen.entry.role == "user":
                    self.said[seen.entry.content].append((handle, seen.turn_id))
        for turn in self.picture.turns.values():
            self.turns.setdefault(turn.content, turn)
        for steer in self.picture.steers:
            self.steers.setdefault(steer.content, steer)

    def gone(self, handle: str) -> bool:
        """Whether a session may be missing, because somebody asked to delete it, and is."""
        return handle in self.ledger.deletes and handle not in self.picture.sessions

    def may_be_gone(self, message: Message) -> bool:
        """Whether a message may be missing, together with its session."""
        handles = {op.handle for op in message.ops}
        if message.key is not None:  # its key may have been used in another topic of the pair first
            handles |= self.ledger.handles_of[message.pair].keys()
        return any(self.gone(handle) for handle in handles)
