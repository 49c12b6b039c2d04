"""Where in a TOML file each key is: the standard library's reader tells the lines of errors only."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]

_BLANK = " \t\r\n"
_QUOTES = "\"'"


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1 on, of each table, key and item of an array in `text`, by its path.

    Args:
        text: TOML that `tomllib` has accepted; of other text the answer is of no use.
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path; of what it is in, where it is not there itself."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Scan:
    """One walk through the text. What is skipped is skipped with respect for strings and comments."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = (0, 1)  # up to here, this is the line
        self._arrays: dict[Path, int] = {}  # tables in each array of tables so far
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._skip_blank():
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    # -- parts -------------------------------------------------------------------------------------

    def _header(self) -> Path:
        line = self._line()
        of_array = self._text.startswith("[[", self._at)
        self._at += 2 if of_array else 1
        path = self._in_arrays(tuple(self._key()))
        self._at += 2 if of_array else 1
        for length in range(1, len(path) + of_array):
            self._note(path[:length], line)
        if of_array:
            number = self._arrays[path] = self._arrays.get(path, -1) + 1
            path = (*path, number)
        self._note(path, line)
        return path

    def _in_arrays(self, names: tuple[str, ...]) -> Path:
        """The path of a header: what is below an array of tables belongs to its last table."""
        path: Path = ()
        for position, name in enumerate(names):
            path = (*path, name)
            if path in self._arrays and position < len(names) - 1:
                path = (*path, self._arrays[path])
        return path

    def _pair(self, table: Path) -> None:
        self._skip_blank()
        line = self._line()
        path = table
        for name in self._key():
            path = (*path, name)
            self._note(path, line)
        self._skip_blank()
        self._at += 1  # the "="
        self._skip_blank()
        self._value(path)

    def _key(self) -> Iterator[str]:
        while True:
            self._skip_blank()
            start = self._at
            if self._text[start] in _QUOTES:
                self._string()
                yield str(tomllib.loads(f"k = {self._text[start : self._at]}")["k"])
            else:
                while self._text[self._at].isalnum() or self._text[self._at] in "_-":
                    self._at += 1
                yield self._text[start : self._at]
            self._skip_blank()
            if self._text[self._at] != ".":
                return
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first in _QUOTES:
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}#\n":
                self._at += 1

    def _array(self, path: Path) -> None:
        self._at += 1
        number = 0
        while self._skip_blank() and self._text[self._at] != "]":
            self._note((*path, number), self._line())
            self._value((*path, number))
            number += 1
            self._skip_blank()
            self._at += self._text[self._at] == ","
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._skip_blank() and self._text[self._at] != "}":
            self._pair(path)
            self._skip_blank()
            self._at += self._text[self._at] == ","
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        end = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(end)
        while not self._text.startswith(end, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(end)
        # Up to two more quotes belong to the text of a string of three.
        while len(end) == 3 and self._text.startswith(quote, self._at):
            self._at += 1

    # -- places ------------------------------------------------------------------------------------

    def _skip_blank(self) -> bool:
        """Go on to what is neither blank nor comment; whether there is any."""
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._text[self._at] in _BLANK:
                self._at += 1
            else:
                return True
        return False

    def _line(self) -> int:
        before, line = self._counted
        self._counted = (self._at, line + self._text.count("\n", before, self._at))
        return self._counted[1]

    def _note(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)
