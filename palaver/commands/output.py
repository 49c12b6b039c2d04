"""What is printed: tables that align, JSON, times, and text that cannot harm a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import click

NARROWEST = 8
MOST_LINES = 30


def printable(text: str) -> str:
    """`text` without control characters, which would steer a terminal; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def one_line(text: str, most: int = 100) -> str:
    """The beginning of `text` in one printable line."""
    line = " ".join(printable(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 3]}..."


def counted(number: int, noun: str) -> str:
    """ "1 turn", "2 turns", "1,234 turns"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def local_time(at: float) -> str:
    """Seconds since the epoch as local time, to the minute."""
    return datetime.fromtimestamp(at, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def echo_json(value: Any) -> None:
    """Print records, or lists and dicts of them, as JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=attrs.asdict))


def echo_lines(lines: Sequence[str]) -> None:
    """Print the first of many lines, and how many follow."""
    for line in lines[:MOST_LINES]:
        click.echo(f"  {one_line(line, 400)}")
    if len(lines) > MOST_LINES:
        click.echo(f"  ... and {len(lines) - MOST_LINES:,} more")


def facts(pairs: Iterable[tuple[str, object]], *, right: bool = True) -> str:
    """Names and values in two columns, with thousands marked; the values to the right or left."""
    shown = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in pairs]
    left = max(len(name) for name, _ in shown)
    most = max(len(value) for _, value in shown) if right else 0
    return "\n".join(f"{name:<{left}}  {value:>{most}}" for name, value in shown)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, cut: Sequence[int] = ()) -> str:
    """Rows under headers, in aligned columns, each row in one line.

    Args:
        headers: the columns' names.
        rows: values; numbers are put to the right.
        cut: the columns that are made narrower, the widest first, where a terminal has no room.
    """
    values = [list(row) for row in rows]
    cells = [[*headers], *([_cell(value) for value in row] for row in values)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if sys.stdout.isatty():
        _narrow(widths, cut, shutil.get_terminal_size().columns)
    numbers = [isinstance(value, int) for value in (values[0] if values else headers)]
    return "\n".join(_line(row, widths, numbers) for row in cells)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else one_line(str(value))


def _narrow(widths: list[int], cut: Sequence[int], room: int) -> None:
    while sum(widths) + 2 * (len(widths) - 1) > room:
        widest = max(cut, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def _line(row: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    cells = (_padded(*each) for each in zip(row, widths, numbers, strict=True))
    return "  ".join(cells).rstrip()


def _padded(text: str, width: int, right: bool) -> str:
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "\u2026"
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )
