"""Transcripts: each message once, in the order of acceptance, each turn whole, no tool called twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

from crash.evidence import Evidence
from crash.ledger import Message
from crash.picture import EntrySeen


def _transcripts(on: Evidence) -> Iterator[str]:
    for handle, entries in on.picture.transcripts.items():
        blocks = [(id_, [*seen]) for id_, seen in groupby(entries, key=lambda seen: seen.turn_id)]
        ids = [id_ for id_, _ in blocks]
        if len({*ids}) != len(ids):
            yield f"G5: turns of {handle} are mixed in its transcript: {ids}"
        in_line = [id_ for id_ in ids if id_ in on.picture.turns and _in_line(on, id_)]
        for first, second in pairwise(in_line):
            if first > second:
                yield f"G5: in {handle} turn {first} ran before turn {second}, which was accepted first"
        yield from _steers_in_line(on, ids)
        for id_, seen in blocks:
            yield from _block(on, id_, seen)
    for turn in on.picture.turns.values():
        places = on.said.get(turn.content, [])
        if places and places != [(turn.handle, turn.id)]:
            yield f"G3: {turn.content!r}, turn {turn.id}, is in the transcript at {places}"
        if not places and turn.state == "done":
            yield f"G1: turn {turn.id} is done, and {turn.content!r} is not in the transcript"
        if places and turn.state == "queued":
            yield f"G3: turn {turn.id} is queued, and in the transcript already"
    for content, steer in on.steers.items():
        if content not in on.turns:
            places = on.said.get(content, [])
            if places != ([] if steer.applied_turn is None else [(steer.handle, steer.applied_turn)]):
                yield f"G7: the steer {content!r} is applied to {steer.applied_turn}, and said at {places}"


def _steers_in_line(on: Evidence, ids: list[int]) -> Iterator[str]:
    """Steers that one turn did not come to run in the order of their calls."""
    late: dict[int, int] = {}
    for id_ in ids:
        turn = on.picture.turns.get(id_)
        steer = None if turn is None else on.steers.get(turn.content)
        if steer is not None:
            if late.get(steer.turn_id, 0) > id_:
                yield f"G7: of the steers of turn {steer.turn_id}, {late[steer.turn_id]} ran before {id_}"
            late[steer.turn_id] = id_


def _in_line(on: Evidence, turn_id: int) -> bool:
    message = on.ledger.messages.get(on.picture.turns[turn_id].content)
    return message is not None and message.busy in ("enqueue", "reject")


def _block(on: Evidence, turn_id: int, seen: list[EntrySeen]) -> Iterator[str]:
    """One turn's entries: what it was asked first, its answer last, steers in order."""
    turn = on.picture.turns.get(turn_id)
    if turn is None:
        yield f"G3: the transcript has entries of turn {turn_id}, which is not there"
        return
    entries = [each.entry for each in seen]
    users = [entry.content for entry in entries if entry.role == "user"]
    if entries[0].role != "user" or users[0] != turn.content:
        yield f"G3: turn {turn_id} {turn.content!r} begins with {entries[0]}"
    steers = [on.steers[content].id for content in users[1:] if content in on.steers]
    if steers != sorted(steers):
        yield f"G7: the steers of turn {turn_id} were applied in the order {steers}"
    if turn.state != "done" or turn.result is None:
        return
    last = entries[-1]
    if last.role != "assistant" or last.tool_calls or last.content != turn.result.text:
        yield f"G3: turn {turn_id} is done with {turn.result.text!r}, and its last entry is {last}"
    if last.content.startswith("re summary of "):
        return  # compacted midway: the model has forgotten how many steps it was to make
    after = len(entries) - 1 - [entry.role for entry in reversed(entries)].index("user")
    steps = sum(1 for entry in entries[after:] if entry.tool_calls)
    if last.content != f"re {users[-1]}" or f" t{steps} " not in users[-1]:
        yield f"G3: turn {turn_id} answers {users[-1]!r} with {last.content!r} after {steps} steps with tools"


def _notes(on: Evidence) -> Iterator[str]:
    """A tool is called for accepted messages alone; a call whose result is committed is never made again."""
    ledger = on.ledger
    for life, what in on.notes:
        again = "its result was committed before" if what in ledger.committed else ""
        if ledger.notes.get(what) == life:
            again = "it was made in this life already"
        if again and not _sent_anew(on, what):
            yield f"G20: the tool call {what} is made by life {life}, and {again}"
        ledger.notes[what] = life
        message = _message_of(on, what)
        stored = message is not None and (message.content in on.turns or message.content in on.steers)
        if not stored and (message is None or not on.may_be_gone(message)):
            yield f"G1: the tool call {what} is made by life {life}, and its message is not stored"
    for entries in on.picture.transcripts.values():
        for seen in entries:
            if seen.entry.role == "tool" and seen.entry.content.startswith("did "):
                what = seen.entry.tool_call_id
                ledger.committed[what] = None
                if seen.entry.content != f"did {what}" or what not in ledger.notes:
                    yield f"G3: the tool call {what} has the result {seen.entry.content!r}, and was not made"


def _message_of(on: Evidence, what: str) -> Message | None:
    """The message that made the model call a tool."""
    return on.ledger.by_op.get(what.split("/")[0])


def _sent_anew(on: Evidence, what: str) -> bool:
    """Whether the message of a tool call has a key that went with a deleted session."""
    message = _message_of(on, what)
    return (
        message is not None
        and message.key is not None
        and any(handle in on.ledger.deletes for handle in on.ledger.handles_of[message.pair])
    )


CHECKS = (_transcripts, _notes)
