"""Lines of JSON, each typed and versioned, with an end that tells whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, BinaryIO
from zlib import crc32

from attrs import define, field

from persistence.errors import RecordError
from persistence.records import JsonObject

VERSION = 1
END = "end"

_CRC_CHARS = 8


def compact(value: object) -> str:
    """JSON in one line, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def nested(text: str | None) -> Any:
    """Stored JSON text as the value that a reader wants to see: the object, or the text itself where that
    would not come out of `flat` as it is stored."""
    try:
        value = None if text is None else json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and flat(value) == text else text


def flat(value: Any) -> Any:
    """What `nested` was given."""
    return compact(value) if isinstance(value, dict) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@define
class LineWriter:
    """Writes lines to a file; the last one counts them, and has the CRC-32 of each."""

    file: BinaryIO
    _sha: Any = field(factory=sha256)
    _crcs: list[str] = field(factory=list)

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write a line of this type."""
        self._put(compact({"type": kind, "v": VERSION, **fields}))

    def end(self) -> str:
        """Write the last line; the SHA-256 of the whole, in hexadecimal."""
        crcs = self._crcs
        self._put(compact({"type": END, "v": VERSION, "lines": len(crcs), "crc32": "".join(crcs)}))
        return str(self._sha.hexdigest())

    def _put(self, text: str) -> None:
        line = text.encode()
        self._crcs.append(_crc(line))
        self._sha.update(line + b"\n")
        self.file.write(line + b"\n")


def read_lines(
    file: Iterable[bytes], where: str, kinds: Mapping[str, str]
) -> Iterator[tuple[str, JsonObject]]:
    """The type and the fields of each line, the end left out.

    Args:
        file: the lines, with their line breaks.
        where: the file's name, for errors.
        kinds: the types that may come, with the names of their fields, separated by ", ".

    Raises:
        RecordError: a line that is not of this form, one that was changed, or an end that is missing. Lines
            before it were handed out then.
    """
    fields_of = {kind: names.split(", ") for kind, names in kinds.items()}
    crcs: list[str] = []
    at = f"{where}, line 1"
    lines = iter(file)
    for number, line in enumerate(lines, start=1):
        at = f"{where}, line {number}"
        fields = _fields(line, at)
        kind = fields.pop("type")
        if kind == END:
            _check_end(fields, crcs, where, at)
            if next(lines, None) is not None:
                raise RecordError(f"{where}, line {number + 1}: something follows the end")
            return
        if kind not in fields_of:
            raise RecordError(f"{at}: a line of the type {kind!r} does not belong here")
        if sorted(fields) != sorted(fields_of[kind]):
            odd = sorted({*fields} ^ {*fields_of[kind]})[0]
            raise RecordError(f"{at}: the field {odd!r} is {'unknown' if odd in fields else 'missing'}")
        crcs.append(_crc(line.removesuffix(b"\n")))
        yield kind, fields
    raise RecordError(f"{at}: the file ends here, before its last line: it is cut off")


def _fields(line: bytes, at: str) -> JsonObject:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{at}: not a whole line of JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise RecordError(f'{at}: not an object with a "type"')
    version = fields.pop("v", None)
    if version != VERSION or isinstance(version, bool):
        raise RecordError(f"{at}: it has version {version!r}; this Palaver reads version {VERSION}")
    return fields


def _check_end(fields: JsonObject, crcs: list[str], where: str, at: str) -> None:
    told = fields.get("crc32")
    if fields.get("lines") != len(crcs) or not isinstance(told, str) or len(told) != _CRC_CHARS * len(crcs):
        raise RecordError(f"{at}: {len(crcs):,} lines come before the end, which tells of others")
    for number, crc in enumerate(crcs, start=1):
        if told[_CRC_CHARS * (number - 1) : _CRC_CHARS * number] != crc:
            raise RecordError(f"{where}, line {number}: it was changed after it was written")


def _crc(line: bytes) -> str:
    return f"{crc32(line):08x}"
