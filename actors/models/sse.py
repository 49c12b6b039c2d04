"""Server-sent events, read from bytes that arrive in pieces of any size."""

from __future__ import annotations

import re

from actors.errors import ModelError

MAX_EVENT_BYTES = 16 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Cuts an event stream into the data of its events.

    A line ends with LF, CR LF or CR, and may be split anywhere, inside a character too; a blank line ends
    an event. Of the fields only `data` counts. Bytes that are no UTF-8 become U+FFFD.

    Args:
        most: bytes that one line, and the data of one event, may have.
    """

    def __init__(self, most: int = MAX_EVENT_BYTES) -> None:
        self._most = most
        self._line: list[bytes] = []  # the pieces of the line that has not ended yet
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._first = True

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that end in `piece`, in order.

        Raises:
            ModelError: a line or an event is too long.
        """
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        # Searching for the rare CR first makes the usual stream several times as quick to read.
        first, *more = _LINE_END.split(piece) if b"\r" in piece else piece.split(b"\n")
        self._line.append(first)
        self._line_bytes += len(first)
        self._check(self._line_bytes)
        if not more:
            return []
        events: list[str] = []
        self._end_line(b"".join(self._line), events)
        for line in more[:-1]:
            self._end_line(line, events)
        self._line, self._line_bytes = [more[-1]], len(more[-1])
        return events

    def finish(self) -> list[str]:
        """What is left when the stream has ended without a blank line: the data of one event, or none.

        It may be cut anywhere.
        """
        events: list[str] = []
        self._end_line(b"".join(self._line), events)
        self._end_line(b"", events)
        self._line, self._line_bytes = [], 0
        return events

    def _end_line(self, line: bytes, events: list[str]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data, self._data_bytes = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(value)
            self._check(self._data_bytes)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ModelError(
                f"the endpoint sent one event of over {self._most:,} bytes; nothing can use that"
            )
