"""Recorded dialogues: what was said, the service calls made on the way, the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from actors.errors import InvalidInput
from actors.text import check_text


@frozen
class RecordedCall:
    """A service call and its results. `arguments` by name; `results` is what the service gave."""

    name: str
    service: str
    arguments: Mapping[str, Any]
    results: Sequence[Any]

    @classmethod
    def from_record(cls, record: object, where: str = "call") -> RecordedCall:
        """The call that `record` describes; `where` says in an error what it is.

        Raises:
            InvalidInput: naming the field.
        """
        name = _text(record, "name", where)
        service = _text(record, "service", where)
        arguments = _typed(record, "arguments", dict, where)
        if "call" in arguments:
            raise InvalidInput(f'{where}: no argument can be named "call", which is a tool\'s own')
        return cls(name, service, arguments, _typed(record, "results", list, where))


@frozen
class DialogueTurn:
    """What the user said, the calls before the answer, the answer."""

    user: str
    calls: tuple[RecordedCall, ...]
    assistant: str

    @classmethod
    def from_record(cls, record: object, where: str = "turn") -> DialogueTurn:
        """As `RecordedCall.from_record`."""
        user = _text(record, "user", where)
        calls = _typed(record, "calls", list, where)
        return cls(
            user,
            tuple(RecordedCall.from_record(call, f"{where}, call {i}") for i, call in enumerate(calls)),
            _text(record, "assistant", where),
        )


@frozen
class Dialogue:
    """A recorded dialogue; its `id` is the sender that speaks the user's part."""

    id: str
    turns: tuple[DialogueTurn, ...]
    services: tuple[str, ...] = ()

    @classmethod
    def from_record(cls, record: object, where: str = "dialogue") -> Dialogue:
        """As `RecordedCall.from_record`; turns and calls are counted from 0."""
        identity = _text(record, "id", where)
        services = _typed(record, "services", list, where)
        if not all(isinstance(service, str) for service in services):
            raise InvalidInput(f"{where}: services must be a list of text")
        turns = _typed(record, "turns", list, where)
        if not turns:
            raise InvalidInput(f"{where}: turns is empty; a dialogue has one or more")
        return cls(
            identity,
            tuple(DialogueTurn.from_record(turn, f"{where}, turn {i}") for i, turn in enumerate(turns)),
            tuple(services),
        )


def read_dialogues(path: str | Path) -> list[Dialogue]:
    """The dialogues of a JSONL file, one a line; blank lines are passed over.

    Raises:
        InvalidInput: the file cannot be read, or a line of it is no dialogue; the message names the line.
    """
    dialogues: list[Dialogue] = []
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    dialogues.append(_from_line(line, f"{path}, line {number}"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidInput(f"cannot read the dialogues in {path}: {reason}; give a JSONL file") from error
    by_id(dialogues)
    return dialogues


def _from_line(line: bytes, where: str) -> Dialogue:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} is not JSON: {error}") from error
    return Dialogue.from_record(record, where)


def by_id(dialogues: Iterable[Dialogue]) -> dict[str, Dialogue]:
    """The dialogues by their ids.

    Raises:
        InvalidInput: two have the same.
    """
    found: dict[str, Dialogue] = {}
    for dialogue in dialogues:
        if dialogue.id in found:
            raise InvalidInput(f"two dialogues have the id {dialogue.id!r}; an id is one sender's")
        found[dialogue.id] = dialogue
    return found


def _typed(record: object, name: str, kind: type[Any], where: str) -> Any:
    if not isinstance(record, dict):
        raise InvalidInput(f"{where} must be a JSON object, not {type(record).__name__}")
    if name not in record:
        raise InvalidInput(f"{where}: the field {name} is missing")
    value = record[name]
    if not isinstance(value, kind):
        raise InvalidInput(f"{where}: {name} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def _text(record: object, name: str, where: str) -> str:
    return check_text(_typed(record, name, str, where), what=f"{where}: {name}")
