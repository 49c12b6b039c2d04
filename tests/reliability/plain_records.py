"""The plain model of Palaver, first part: what is stored, in lists and dicts.

Nothing here is shared with the code under test but the record of a history entry.
"""

from __future__ import annotations

from attrs import define, evolve, field, frozen

from persistence.records import HistoryEntry

STATES = {
    "text_response": "done",
    "max_iterations": "done",
    "no_action": "done",
    "error": "failed",
    "cancelled": "cancelled",
    "closed": "closed",
}

Place = tuple[str, str, str]  # agent, sender, topic
Scope = tuple[str, str]  # agent, and sender or ""
Part = Place | Scope


@frozen
class Result:
    """How a turn must end. `error` is a word that its error has."""

    stop: str
    text: str = ""
    error: str = ""
    steps: int = 0
    tokens: int = 0


@define(eq=False)
class Row:
    """An accepted message; in a topic, a row of the journal. `number` orders rows as their ids must."""

    number: int
    text: str
    sender: str
    guest: str | None = None
    key: str | None = None
    steered: bool = False  # it was accepted as a steer, and entered no turn
    accepted_at: float = 0.0
    state: str = "queued"
    attempts: int = 0
    result: Result | None = None
    id: int = 0  # what the real one is called, once that is known

    def end(self, result: Result) -> None:
        """The one end of it."""
        assert self.result is None
        self.result, self.state = result, STATES[result.stop]

    @property
    def image(self) -> tuple[object, ...]:
        """What of it must be in the file."""
        stop, text = (None, None) if self.result is None else (self.result.stop, self.result.text)
        return (self.text, self.sender, self.guest, self.key, self.state, self.attempts, stop, text)


@define(eq=False)
class Steer:
    """An accepted steer; `used` when it entered a turn or became one."""

    number: int
    text: str
    sender: str
    used: bool = False


@define(eq=False)
class Session:
    """One stored conversation."""

    agent: str
    sender: str
    topic: str
    scope: str
    handle: str = ""
    title: str = ""
    entries: list[HistoryEntry] = field(factory=list)
    last: int = 0  # the number of the row that the last entry belongs to
    rows: list[Row] = field(factory=list)
    steers: list[Steer] = field(factory=list)
    archive: str | None = None
    summary: str = ""
    covered: int = 0

    @property
    def place(self) -> Place:
        return self.agent, self.sender, self.topic

    @property
    def memory(self) -> Scope:
        return self.agent, self.scope

    @property
    def live(self) -> list[HistoryEntry]:
        """The history that opening it gives."""
        archived = [] if self.archive is None else [HistoryEntry("user", self.summary)]
        return archived + self.entries[self.covered :]

    @property
    def unfinished(self) -> list[Row]:
        """Messages that have not ended, in the order in which a later process runs them: what ran, steers
        that entered no turn, the others, by id."""
        left = [row for row in self.rows if row.result is None]
        return sorted(left, key=lambda row: (row.state != "running", not row.steered, row.number))

    @property
    def waiting_steers(self) -> list[Steer]:
        return [steer for steer in self.steers if not steer.used]

    def take_up_steers(self) -> None:
        """Steers that entered no turn become turns."""
        for steer in self.waiting_steers:
            steer.used = True
            self.rows.append(Row(steer.number, steer.text, steer.sender, steered=True))

    @property
    def image(self) -> tuple[object, ...]:
        """What must be in the file, in its order."""
        rows = tuple(row.image for row in sorted(self.rows, key=lambda row: row.number))
        steers = tuple((steer.text, steer.sender) for steer in self.waiting_steers)
        return (rows, tuple(self.entries), steers, self.archive, self.covered)

    def copy(self) -> Session:
        return evolve(
            self,
            entries=[*self.entries],
            rows=[evolve(row) for row in self.rows],
            steers=[evolve(steer) for steer in self.steers],
        )


@frozen
class Note:
    """An entry of memory."""

    kind: str
    name: str
    content: str
    aliases: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return " ".join([self.name, self.content, *self.aliases]).lower().replace("-", " ").split()


@define(eq=False)
class Store:
    """All that is stored. While it records, every commit leaves a copy of what it changed."""

    sessions: dict[Place, Session] = field(factory=dict)
    memory: dict[Scope, list[Note]] = field(factory=dict)
    recorded: dict[Part, list[Session | list[Note] | None]] | None = None

    def commit(self, *parts: Part) -> None:
        """What these parts hold now is stored, in one transaction."""
        if self.recorded is not None:
            for part in parts:
                self.recorded[part].append(self.copy_of(part))

    def record(self, parts: list[Part]) -> None:
        """Keep what these parts hold now, and after each commit from now on."""
        self.recorded = {part: [self.copy_of(part)] for part in parts}

    def copy_of(self, part: Part) -> Session | list[Note] | None:
        if len(part) == 2:
            return [*self.memory.get(part, [])]
        session = self.sessions.get(part)
        return None if session is None else session.copy()

    def restore(self, part: Part, copy: Session | list[Note] | None) -> None:
        """Let a part be what it was when it was copied."""
        if isinstance(copy, list) and len(part) == 2:
            self.memory[part] = copy
        elif isinstance(copy, Session) and len(part) == 3:
            self.sessions[part] = copy
        elif len(part) == 3:
            self.sessions.pop(part, None)

    def with_handle(self, handle: str) -> Session | None:
        return next((s for s in self.sessions.values() if s.handle == handle), None)

    def holder(self, agent: str, sender: str, key: str) -> tuple[Session, Row] | None:
        """The newest message of a pair with this key."""
        found = [
            (session, row)
            for session in self.sessions.values()
            if (session.agent, session.sender) == (agent, sender)
            for row in session.rows
            if row.key == key
        ]
        return max(found, key=lambda each: each[1].number, default=None)
