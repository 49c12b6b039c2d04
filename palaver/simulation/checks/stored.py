"""What the file of a simulated run holds, and whether that is what its callers were told."""

from __future__ import annotations

from attrs import define, frozen
from sqlite_utils import Database

from palaver.simulation.checks.ledger import UNKNOWN, Broken, Ledger, Message
from persistence.codec import decode_entries, decode_result
from persistence.records import TERMINAL_STATES, HistoryEntry, TurnResult


@frozen
class TurnIn:
    """A turn as the file has it."""

    id: int
    handle: str
    content: str
    state: str
    result: TurnResult | None
    attempts: int


@frozen
class SteerIn:
    """A steer as the file has it."""

    id: int
    handle: str
    content: str
    applied_turn: int | None


@define(eq=False)
class Stored:
    """What the file holds, for comparison."""

    turns: list[TurnIn]
    steers: list[SteerIn]
    entries: dict[str, list[tuple[int, HistoryEntry]]]  # by handle, in order, with their turns
    notes: dict[tuple[str, str, str, str], str]

    @classmethod
    def read(cls, db: Database) -> Stored:
        """A database job."""
        rows = db.execute(
            """SELECT t.id, s.handle, t.content, t.state, t.result, t.attempts
                FROM turns t JOIN sessions s ON s.id = t.session_id ORDER BY t.id"""
        ).fetchall()
        steers = db.execute(
            """SELECT x.id, s.handle, x.content, x.applied_turn
                FROM steers x JOIN sessions s ON s.id = x.session_id ORDER BY x.id"""
        ).fetchall()
        entries: dict[str, list[tuple[int, HistoryEntry]]] = {
            handle: [] for (handle,) in db.execute("SELECT handle FROM sessions ORDER BY id").fetchall()
        }
        of = db.execute(
            """SELECT s.handle, e.turn_id, e.body FROM entries e JOIN sessions s ON s.id = e.session_id
                ORDER BY s.id, e.seq"""
        ).fetchall()
        for (handle, turn_id, _), entry in zip(of, decode_entries([row[2] for row in of]), strict=True):
            entries[handle].append((turn_id, entry))
        notes = db.execute("SELECT agent, scope, kind, name, content FROM memory_entries").fetchall()
        return cls(
            [
                TurnIn(id_, handle, content, state, None if body is None else decode_result(body), attempts)
                for id_, handle, content, state, body, attempts in rows
            ],
            [SteerIn(*row) for row in steers],
            entries,
            {(agent, scope, kind, name): content for agent, scope, kind, name, content in notes},
        )


def left_in_order(db: Database) -> list[tuple[str, int, str]]:
    """A database job: (handle, turn id, content) of all that is unfinished, in the order of recovery."""
    rows = db.execute(
        """SELECT s.handle, t.id, t.content, CASE WHEN t.state = 'running' THEN 0
                WHEN EXISTS (SELECT 1 FROM steers x WHERE x.applied_turn = t.id AND x.content = t.content)
                THEN 0.5 ELSE 1 END, t.id FROM turns t
            JOIN sessions s ON s.id = t.session_id WHERE t.state IN ('queued', 'running')
        UNION ALL SELECT s.handle, x.id, x.content, 0.5, x.id FROM steers x
            JOIN sessions s ON s.id = x.session_id WHERE x.applied_turn IS NULL
        ORDER BY 1, 4, 5"""
    ).fetchall()
    return [(handle, turn_id, content) for handle, turn_id, content, _, _ in rows]


def compare(ledger: Ledger, stored: Stored) -> None:
    """Raise the first thing in which the file is not what callers were told."""
    turns: dict[str, list[TurnIn]] = {}
    steers: dict[str, list[SteerIn]] = {}
    by_id = {turn.id: turn for turn in stored.turns}
    for turn in stored.turns:
        turns.setdefault(turn.content, []).append(turn)
        if turn.state not in TERMINAL_STATES:
            raise Broken(2, f"{turn} has no end")
        if turn.content not in ledger.messages:
            raise Broken(2, f"{turn} is a message that nobody sent")
    for steer in stored.steers:
        steers.setdefault(steer.content, []).append(steer)
    said = _places(stored)
    for message in ledger.messages.values():
        _compare_message(
            ledger, message, turns.get(message.content, []), steers.get(message.content, []), by_id, said
        )
    _compare_order(ledger, said)
    _compare_answers(stored)
    _compare_memory(ledger, stored)
    for handle, sure in ledger.deleted.items():
        if sure and handle in stored.entries:
            raise Broken(2, f"the deleted session {handle} is there again")


Places = dict[str, list[tuple[str, int, int]]]  # content -> (handle, turn, place) of the user entries with it


def _places(stored: Stored) -> Places:
    said: Places = {}
    for handle, entries in stored.entries.items():
        for place, (turn_id, entry) in enumerate(entries):
            if entry.role == "user":
                said.setdefault(entry.content, []).append((handle, turn_id, place))
    return said


def _compare_message(
    ledger: Ledger,
    message: Message,
    own: list[TurnIn],
    steered: list[SteerIn],
    by_id: dict[int, TurnIn],
    said: Places,
) -> None:
    """`own` are the turns with the message's content, `steered` the steers."""
    what, handles = message.content, message.handles
    rows: list[TurnIn | SteerIn] = [*own, *steered]
    guarantee = 7 if message.steers else 4 if message.key else 2
    if rows and (not handles or message.refused):
        raise Broken(2, f"{what} was {'refused' if handles else 'of a tmp chat'}, and is stored: {rows}")
    if len(own) > 1 or len(steered) > 1:
        raise Broken(guarantee, f"{what} is stored twice: {rows}")
    if not rows:
        gone = not handles or any(handle in (*ledger.deleted, UNKNOWN) for handle in handles)
        if message.accepted and not gone:
            raise Broken(1, f"{what} was acknowledged, and is not stored")
        return
    if UNKNOWN not in handles and any(row.handle not in handles for row in rows):
        raise Broken(2, f"{what} was sent to {handles}, and is in another session: {rows}")
    turn = own[0] if own else by_id.get(steered[0].applied_turn or 0)
    if turn is None or (steered and steered[0].applied_turn != turn.id):
        raise Broken(7, f"{what} was applied to no turn, or to two: {rows}")
    if message.told not in (None, turn.result):
        raise Broken(2, f"{what} was told {message.told}, stored is {turn}")
    if own and not message.steers and message.turn_id not in (0, turn.id):
        raise Broken(11, f"{what} was accepted as turn {message.turn_id}, stored is {turn}")
    if what in ledger.given_up and turn.state != "failed":
        raise Broken(2, f"{what} was given up at an opening, stored is {turn}")
    places = said.get(what, [])
    if len(places) > 1 or any(place[:2] != (turn.handle, turn.id) for place in places):
        raise Broken(guarantee, f"{what} of {turn} is in the history at {places}")
    if not places and (turn.state == "done" or not (own or _unstored(turn))):
        raise Broken(guarantee, f"{what} of {turn} is not in the history")


def _unstored(turn: TurnIn) -> bool:
    """Whether the turn lost its last entries to a full disk, and was said to have."""
    return turn.result is not None and "could not be stored" in (turn.result.error or "")


def _compare_order(ledger: Ledger, said: Places) -> None:
    """What one caller said in one lane to one session entered the history in the order of the calls."""
    last: dict[tuple[str, str, str], tuple[int, str]] = {}
    for message in sorted(ledger.messages.values(), key=lambda message: message.number):
        if message.lane and message.tries == 1 and message.content in said:
            handle, _, place = said[message.content][0]
            lane = (handle, message.by, message.lane)
            before, what = last.get(lane, (-1, ""))
            if before > place and not (message.steers and {handle, UNKNOWN} & ledger.interrupted.keys()):
                raise Broken(5, f"{message.content} was sent after {what}, and ran before it")
            last[lane] = (place, message.content)


def _compare_answers(stored: Stored) -> None:
    """A turn that answered has its answer as its last entry."""
    last: dict[int, HistoryEntry] = {}
    for entries in stored.entries.values():
        last.update(entries)
    for turn in stored.turns:
        if turn.result is not None and turn.result.stop_reason == "text_response":
            entry = last.get(turn.id)
            if entry is None or (entry.role, entry.content) != ("assistant", turn.result.text):
                raise Broken(3, f"the last entry of {turn} is {entry}")


def _compare_memory(ledger: Ledger, stored: Stored) -> None:
    for (agent, scope, name), may_be in ledger.notes.items():
        content = stored.notes.get((agent, scope, "note", name))
        if content not in may_be:
            raise Broken(1, f"the note {name!r} of {agent}/{scope} is {content!r}, not {may_be}")
    for (agent, scope, name), summary in ledger.archives.items():
        content = stored.notes.get((agent, scope, "archive", name))
        if content != summary:
            raise Broken(9, f"the archive {name!r} holds {content!r}, not {summary!r}")
