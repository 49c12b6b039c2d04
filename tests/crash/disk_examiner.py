"""Opening images of a database after a power loss, and judging what is in them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from attrs import define, field
from sqlite_utils import Database

from crash.disk_images import Image
from crash.disk_ledger import Entry, Ledger, Missing, State, read_state, wrong_at
from crash.disk_workload import AGENTS, NAME, weigh
from palaver import Runtime, ScriptedModel
from persistence.database import abandon_database, open_database
from persistence.errors import PalaverError
from persistence.records import TERMINAL_STATES

DRAIN_S = 30.0

WAL = f"{NAME}-wal"
JOURNAL = f"{NAME}-journal"


@define(eq=False)
class Desk:
    """A folder in which images are laid out and opened, one after the other."""

    folder: Path
    path: str = field(init=False)
    _lying: bytes | None = None  # the database file that is there, as long as it is as it was put there

    def __attrs_post_init__(self) -> None:
        self.path = str(self.folder / NAME)

    def lay_out(self, image: Image) -> None:
        """Make the folder hold the image, and nothing else."""
        content = image.files.get(NAME)
        if content is None or content is not self._lying:
            _put(self.path, content)
        self._lying = content
        for name in (WAL, JOURNAL):
            _put(f"{self.folder}/{name}", image.files.get(name))
        if image.files.get(JOURNAL):
            self._lying = None  # opening it undoes what is in the journal

    def open(self) -> Database:
        """Open what lies there."""
        return open_database(self.path)

    def close(self, db: Database) -> None:
        """Close it without a checkpoint, so that the file stays as it was put there."""
        abandon_database(db)
        if not os.path.exists(f"{self.folder}/{WAL}"):
            self._lying = None  # there was a checkpoint all the same

    def live_on(self, state: State) -> None:
        """Let a Runtime end everything that is unfinished in what lies there."""
        self._lying = None
        model = ScriptedModel(lambda _request: "after the dark")
        with Runtime.open(self.path, model, tools=[weigh]) as rt:
            for agent in AGENTS:
                rt.add_agent(agent)
            for handle in state.unfinished:
                rt.load(handle)
            rt.shutdown(drain=DRAIN_S)


def _put(path: str, content: bytes | None) -> None:
    if content is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        assert os.write(file, content) == len(content)
        os.ftruncate(file, len(content))  # last, so that the file keeps its pages
    finally:
        os.close(file)


@define(eq=False)
class Examiner:
    """Opens images and judges them. What a database says is a function of its pages, so each content is read
    only once, however many images come down to it."""

    ledger: Ledger
    desk: Desk
    _known: dict[int, tuple[State, list[Missing]]] = field(factory=dict)

    @property
    def states(self) -> int:
        """How many different contents there were."""
        return len(self._known)

    def examine(self, image: Image, at: int, *, life: bool = False) -> None:
        """Check the image of a power loss before `log[at]`; with `life`, also let a Runtime go on with it.

        Raises:
            AssertionError: a guarantee does not hold.
        """
        self.desk.lay_out(image)
        state = self._judge(at)
        if life:
            self.desk.lay_out(image)
            self.desk.live_on(state)
            _check_life(state, self._judge(at))

    def _judge(self, at: int) -> State:
        """Read what lies on the desk, without changing it."""
        try:
            db = self.desk.open()
        except PalaverError as error:
            raise AssertionError(f"G1: the database does not open: {error}") from error
        try:
            content = hash(db.conn.serialize())
            if content not in self._known:
                state = read_state(db)
                self._known[content] = state, self.ledger.missing(state)
        finally:
            self.desk.close(db)
        state, lacks = self._known[content]
        assert not state.problems, "; ".join(state.problems)
        problem = wrong_at(lacks, at)
        assert problem is None, problem
        return state


def _check_life(before: State, after: State) -> None:
    """What a Runtime may have changed between two states, and must have."""
    assert not after.unfinished, f"G2: after a recovery, these are unfinished: {after.unfinished}"
    for id_, row in before.turns.items():
        then = after.turns.get(id_)
        assert then is not None, f"G1: turn {id_} is gone after a recovery"
        if row["state"] in TERMINAL_STATES:
            assert then == row, f"G2: turn {id_} had ended as {row['state']}, and was changed by a recovery"
    for session, entries in before.entries.items():
        kept: list[Entry] = after.entries.get(session, [])[: len(entries)]
        assert kept == entries, f"G20: a recovery changed stored entries of session {session}"
