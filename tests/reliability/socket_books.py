"""The books of clients of a host: what they asked for over its socket, and what it acknowledged there."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field
from crash.picture import Picture, TurnSeen

# What a client may be told instead of an answer; every other error is a violation.
REFUSED = "RuntimeClosed"  # from the signal on
LOST = "HostUnreachable"
NOTHING_TO_STEER = ("NoActiveTurn", "ConversationNotFound")


@define(eq=False)
class Asked:
    """One message, and what became of it. Contents are unique; a key is sent again until it is answered."""

    content: str
    how: str  # submit, send, stream, steer
    topic: str
    key: str | None = None
    answered: bool = False  # accepted, as far as its sender knows
    turn: int | None = None
    result: tuple[str, str] | None = None  # text and stop reason, as its sender got them
    error: str = ""  # the last one
    lives: list[int] = field(factory=list)  # in which it was sent


@define(eq=False)
class Books:
    """All messages of all clients, over the lives of one file."""

    asked: dict[str, Asked] = field(factory=dict)
    problems: list[str] = field(factory=list)
    acks: int = 0

    def accept(self, asked: Asked, turn: int | None) -> None:
        """The host has said that the message is accepted."""
        self.acks += 1
        if asked.turn is not None and turn is not None and asked.turn != turn and asked.how != "steer":
            self.problems.append(f"G4: {asked.content!r} is turn {asked.turn}, then turn {turn}")
        asked.answered = True
        asked.turn = turn if turn is not None else asked.turn

    def end(self, asked: Asked, turn: int, text: str, stop: str) -> None:
        """The host has said how the message's turn ended."""
        self.accept(asked, None if asked.how == "steer" else turn)
        if asked.result is not None and asked.result != (text, stop):
            self.problems.append(f"G4: {asked.content!r} gave {asked.result}, then {(text, stop)}")
        asked.result = (text, stop)

    def fail(self, asked: Asked, error: str, words: str, *, told: bool) -> None:
        """The host, or the lack of one, was the answer; `told` if it had been told to stop by then."""
        asked.error = error
        if error in (REFUSED, LOST) and told:
            return
        if error in NOTHING_TO_STEER and asked.how == "steer":
            return
        self.problems.append(f"{asked.how} {asked.content!r} got {error}: {words}")

    def to_retry(self) -> list[Asked]:
        """Messages with a key of which it is not known what became of them, and some that were answered."""
        keyed = [each for each in self.asked.values() if each.key is not None]
        return [each for each in keyed if not each.answered][-12:] + [e for e in keyed if e.answered][-4:]

    def audit(self, seen: Picture, *, orderly: bool, drained: bool, life: int) -> None:
        """Compare with what the file holds after a life.

        Args:
            orderly: the host ended by itself, with 0.
            drained: and it had time enough, so nothing that this life accepted may be left to do.

        Raises:
            AssertionError: with what is wrong.
        """
        problems = [*self.problems]
        rows = {turn.content: turn for turn in seen.turns.values()}
        steers = {steer.content: steer for steer in seen.steers}
        if len(rows) != len(seen.turns):
            problems.append("G4: a message is stored as two turns")
        for asked in self.asked.values():
            row = rows.get(asked.content)
            if row is None:
                if asked.answered and not (asked.how == "steer" and asked.content in steers):
                    problems.append(f"G1: {asked} was acknowledged and is not in the file")
                continue
            problems += self._of_row(asked, row)
            if drained and asked.answered and asked.lives == [life] and row.state != "done":
                problems.append(f"G18: {asked} is {row.state} after a stop that had time enough")
            if orderly and asked.lives == [life] and asked.error == LOST and row.ended:
                problems.append(f"G18: {asked} was accepted, and its sender got no answer at an orderly stop")
        for turn in seen.turns.values():
            if orderly and turn.state == "running":
                problems.append(f"G18: {turn} is stored as running after an orderly stop")
        assert not problems, "\n".join(problems[:8])

    def audit_end(self, seen: Picture) -> None:
        """See that all work is done, after a life that was given the time for it.

        Raises:
            AssertionError: something was accepted and has no end.
        """
        left = [turn for turn in seen.turns.values() if not turn.ended]
        waiting = [steer for steer in seen.steers if steer.applied_turn is None]
        assert not left, f"G2: {left[:5]} have no end"
        assert all(steer.id in seen.turns for steer in waiting), f"G7: {waiting[:5]} were never applied"

    def _of_row(self, asked: Asked, row: TurnSeen) -> Iterator[str]:
        if asked.how != "steer" and asked.turn is not None and asked.turn != row.id:
            yield f"G1: {asked} was acknowledged as turn {asked.turn}, and is turn {row.id}"
        if asked.result is not None and asked.how != "steer":
            stored = None if row.result is None else (row.result.text, row.result.stop_reason)
            if stored != asked.result:
                yield f"G1: {asked} was answered with {asked.result}, and stored is {stored} ({row.state})"
