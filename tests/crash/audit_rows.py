"""Sessions, messages, ids and results: each acknowledged one is stored, once, and as it was acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from crash.evidence import Evidence
from crash.ledger import Message
from crash.mind import POISON
from crash.picture import TurnSeen


def _sessions(on: Evidence) -> Iterator[str]:
    picture, ledger = on.picture, on.ledger
    for op in ledger.by_kind["switch"]:
        if not op.accepted or op.ack is None or "handle" not in op.ack:
            continue
        handle = op.ack["handle"]
        session = picture.sessions.get(handle)
        if session is None and handle not in ledger.deletes:
            yield f"G1: the session {handle} of {op.name} is not there"
        elif session is not None and (session.agent, session.sender, session.topic) != (
            *op.pair,
            op.facts["topic"],
        ):
            yield f"G1: the session {handle} of {op.name} is another's: {session}"
    for handle, deletes in ledger.deletes.items():
        if any(op.gave(True) for op in deletes) and (
            handle in picture.sessions or handle not in picture.deleted
        ):
            yield f"G1: the session {handle} was deleted, and is back"
        for op in deletes:
            if op.gave(False) and not any(o is not op and o.begun < op.over for o in deletes):
                yield f"G1: deleting {handle} found nothing, and nobody else deleted it"
    for handle, session in picture.sessions.items():
        if handle in picture.deleted:
            yield f"G1: the session {handle} is there and deleted"
        if (session.agent, session.scope, "topic", session.topic) not in picture.memory:
            yield f"G1: the session {handle} has no memory entry of its topic"


def _rows(on: Evidence) -> Iterator[str]:
    """Every message is there once, as a turn, a steer, or a steer that became a turn."""
    for turn in on.picture.turns.values():
        if on.turns[turn.content] is not turn:
            yield f"G1: {turn.content!r} is stored as turn {on.turns[turn.content].id} and turn {turn.id}"
    for steer in on.picture.steers:
        if on.steers[steer.content] is not steer:
            yield f"G7: {steer.content!r} is stored as two steers"
    for content in (*on.turns, *on.steers, *on.said):
        if content not in on.ledger.messages:
            yield f"G1: {content!r} is stored, and nobody ever sent it"


def _messages(on: Evidence) -> Iterator[str]:
    for message in on.ledger.messages.values():
        turn, steer = on.turns.get(message.content), on.steers.get(message.content)
        stored = turn is not None or steer is not None
        if message.accepted and not stored and not on.may_be_gone(message):
            yield f"G1: {message.content!r} was acknowledged and is not stored: {_told(message)}"
        elif stored and message.refused:
            yield f"G1: {message.content!r} was refused and is stored: {_told(message)}"
        if turn is not None and steer is not None and steer.applied_turn != turn.id:
            yield f"G7: the steer {message.content!r} is turn {turn.id}, and applied to {steer.applied_turn}"
        if turn is not None:
            yield from _message_turn(on, message, turn)
        if on.drained and steer is not None and steer.applied_turn is None:
            yield f"G7: the steer {message.content!r} was applied to nothing"


def _message_turn(on: Evidence, message: Message, turn: TurnSeen) -> Iterator[str]:
    if (turn.agent, turn.sender) != message.pair or turn.key != message.key:
        yield f"G1: {message.content!r} of {message.pair} with the key {message.key!r} is stored as {turn}"
    if message.key is None and turn.handle not in {op.handle for op in message.ops}:
        yield f"G1: {message.content!r} is stored in another session, {turn.handle}"
    if message.busy == "steer":
        return
    for op in message.ops:
        if op.accepted and op.ack is not None and op.ack["turn"] != turn.id:
            before = on.ledger.seen.get(op.ack["turn"])
            if not (on.gone(before.handle) if before is not None else on.may_be_gone(message)):
                told = op.ack["turn"]
                yield f"G4: {op.name} was told turn {told} of {message.content!r}, stored as {turn.id}"


def _ids(on: Evidence) -> Iterator[str]:
    """An id is one turn's for ever, and what has ended does not change."""
    running: Counter[str] = Counter()
    for turn in on.picture.turns.values():
        before = on.ledger.seen.get(turn.id)
        if before is not None and (before.content, before.handle) != (turn.content, turn.handle):
            yield f"G11: turn id {turn.id} was {before.content!r}, and is {turn.content!r}"
        if before is not None and before.ended and (before.state, before.result) != (turn.state, turn.result):
            yield f"G2: turn {turn.id} had ended as {before}, and is {turn}"
        if before is not None and turn.attempts < before.attempts:
            yield f"G2: turn {turn.id} was begun {before.attempts} times, and now {turn.attempts} times"
        told = on.ledger.contents.get(turn.id)
        if told is not None and told != turn.content:
            yield f"G11: turn id {turn.id} was acknowledged for {told!r}, and is {turn.content!r}"
        if on.drained and not turn.ended:
            yield f"G2: turn {turn.id} is {turn.state} at the end: {turn.content!r}"
        if turn.state == "failed" and not on.ledger.may_fail and not _is_poison(on, turn):
            yield f"G2: turn {turn.id} failed: {turn.result}"
        running[turn.handle] += turn.state == "running"
    yield from (f"G6: {n} turns of {handle} are running" for handle, n in running.items() if n > 1)


def _is_poison(on: Evidence, turn: TurnSeen) -> bool:
    """A message that took its process down as often as it may; G12."""
    return on.ledger.poison and f" t{POISON} " in turn.content and turn.attempts == 3


def _keys(on: Evidence) -> Iterator[str]:
    ledger = on.ledger
    for pair, contents in ledger.contents_of_keys():
        accepted = [content for content in contents if ledger.messages[content].accepted]
        if len(accepted) > 1 and not any(on.gone(handle) for handle in ledger.handles_of[pair]):
            yield f"G4: one key of {pair} was accepted for {accepted}"


def _given_up(on: Evidence) -> Iterator[str]:
    """What was unfinished when a life opened the file to end all that, has failed."""
    if on.ledger.failed_at != on.ledger.life:
        return
    for ids in on.ledger.unfinished.values():
        for id_ in ids:
            turn = on.picture.turns.get(id_)
            if turn is not None and turn.state != "failed":
                yield f"G2: turn {id_} was to fail, and is {turn.state}"
    for content in on.ledger.unapplied:
        turn, steer = on.turns.get(content), on.steers.get(content)
        if steer is not None and (turn is None or turn.state != "failed"):
            yield f"G2: the steer {content!r} was to fail as a turn, and is {turn or steer}"


def _results(on: Evidence) -> Iterator[str]:
    for id_, told in on.ledger.results.items():
        turn = on.picture.turns.get(id_)
        if turn is None:
            continue  # that it may be missing is another check's
        result = turn.result
        if result is None or (result.text, result.stop_reason, result.steps) != told:
            yield f"G4: turn {id_} gave its caller {told}, and is stored as {turn}"


def _told(message: Message) -> list[tuple[str, object]]:
    return [(op.name, op.ack) for op in message.ops]


CHECKS = (_sessions, _rows, _messages, _ids, _keys, _given_up, _results)
