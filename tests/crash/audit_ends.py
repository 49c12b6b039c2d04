"""What closes, cancels, archives and notes leave behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from crash.evidence import Evidence
from crash.ledger import Op, scope_of_op
from crash.mind import as_said, summary


def _closes(on: Evidence) -> Iterator[str]:
    ledger = on.ledger
    for close in ledger.by_kind["close"]:
        others = ledger.incarnations[close.life, close.facts["cid"]]
        enders = [op for op in others if op.do == "close"] + ledger.deletes.get(close.handle, [])
        if close.gave(False) and not any(op is not close and op.begun < close.over for op in enders):
            yield f"G8: {close.name} closed nothing, and nobody else closed conversation {close.facts['cid']}"
        if not close.gave(True) or close.ended is None:
            continue
        for op in others:
            if "content" in op.facts:
                yield from _after_close(on, close, op)
        for id_ in ledger.unfinished.get(close.handle, ()) if close.life == ledger.life else ():
            turn = on.picture.turns.get(id_)
            if turn is not None and not turn.ended:
                yield f"G8: {close.name} closed {close.handle}, and turn {id_} of before is {turn.state}"


def _after_close(on: Evidence, close: Op, op: Op) -> Iterator[str]:
    assert close.ended is not None
    if op.begun > close.ended:
        if op.accepted:
            yield f"G8: {op.name} was accepted after {close.name} had closed its conversation"
        return
    content = op.facts["content"]
    turn, steer = on.turns.get(content), on.steers.get(content)
    if op.facts.get("key") is not None and (turn is None or op.told_turn != turn.id):
        # The same content may have come again, after the close: this call was not answered, or the turn that
        # answered it was another topic's, and went with that and the key when the session was deleted.
        return
    if turn is not None and turn.handle == close.handle and not turn.ended:
        yield f"G8: {close.name} has closed {close.handle}, and turn {turn.id} {content!r} is {turn.state}"
    if steer is not None and steer.applied_turn is None:
        yield f"G8: {close.name} has closed {close.handle}, and the steer {content!r} is not applied"


def _cancels(on: Evidence) -> Iterator[str]:
    for op in on.ledger.by_kind["cancel_ticket"]:
        turn = on.picture.turns.get(op.facts["turn"])
        if turn is None or not op.accepted or on.ledger.messages[op.facts["of"]].busy == "steer":
            continue
        if op.gave(True) and turn.state != "cancelled":
            yield f"G2: {op.name} cancelled turn {turn.id}, which is {turn.state}"
        if op.gave(False) and not turn.ended:
            yield f"G2: {op.name} was told that turn {turn.id} had ended, and it is {turn.state}"


# -- memory ---------------------------------------------------------------------------------------


def _archives(on: Evidence) -> Iterator[str]:
    names: dict[tuple[str, str, str], str] = {}
    for op in on.ledger.by_kind["compact"]:
        if not op.accepted or op.ack is None or op.ack["archive"] is None:
            continue
        name = (op.pair[0], scope_of_op(op), op.ack["archive"])
        if name in names:
            yield f"G10: {names[name]} and {op.name} were both told the archive name {name}"
        names[name] = op.name
        if on.picture.memory.get((name[0], name[1], "archive", name[2])) != op.ack["summary"]:
            yield f"G9: the archive {name} of {op.name} is not as acknowledged"
        markers = on.picture.markers.get(op.handle, [])
        if not on.gone(op.handle) and all(marker.archive != name[2] for marker in markers):
            yield f"G9: the archive {name} of {op.name} has no marker in {op.handle}"
    for handle, markers in on.picture.markers.items():
        told = [*as_said(seen.entry for seen in on.picture.transcripts.get(handle, ()))]
        for marker in markers:
            if marker.content != summary(told[: marker.seq]):
                yield f"G9: the archive {marker.archive} of {handle} is not of its first {marker.seq} entries"


def _memory(on: Evidence) -> Iterator[str]:
    """A note holds what was written last; with several at once, or one unanswered, what one of them wrote."""
    writes: dict[tuple[str, str, str, str], list[tuple[str | None, Op]]] = defaultdict(list)
    for op in (*on.ledger.by_kind["remember"], *on.ledger.by_kind["forget"]):
        value = op.name if op.do == "remember" else None
        writes[op.pair[0], scope_of_op(op), "note", op.facts["name"]].append((value, op))
    for name, written in writes.items():
        latest = max((op.begun for _, op in written if op.accepted), default=-1)
        allowed = [value for value, op in written if op.over >= latest]
        if latest < 0:
            allowed.append(None)
        if on.picture.memory.get(name) not in allowed:
            yield f"G1: the note {name} holds {on.picture.memory.get(name)!r}, and should one of {allowed}"
    for name in on.picture.memory:
        if name[2] == "note" and name not in writes:
            yield f"G1: the note {name} is stored, and nobody wrote it"


CHECKS = (_closes, _cancels, _archives, _memory)
