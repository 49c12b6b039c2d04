"""What `palaver top` shows: pure functions from the counts of two moments to lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import inf

from palaver.commands.figures import amount, rate, span
from palaver.stats import Stats, rates

NAME, VALUE, GAP = 22, 15, 4
BESIDE = 2 * (NAME + VALUE) + GAP

Row = tuple[str, str]


def frame(before: Stats | None, after: Stats, title: str, columns: int, lines: int) -> list[str]:
    """A screen of at most `columns` by `lines`: a title, what is wrong, and all figures.

    Args:
        before: the counts of the time before; rates are since the host's start if there are none.
    """
    shown = [title, *(f"!! {words}" for words in troubles(after))]
    happens, holds = _what_happens(before, after), _what_is_there(after)
    if columns >= BESIDE:
        for left, right in zip_longest(holds, happens, fillvalue=("", "")):
            shown.append(f"{_row(left)}{' ' * GAP}{_row(right)}".rstrip())
    else:
        shown += [_row(each) for each in (*holds, *happens)]
    return [_cut(line, columns) for line in shown[: max(1, lines)]]


def troubles(stats: Stats) -> list[str]:
    """What an operator must know before any figure."""
    found = []
    if stats.database_failed is not None:
        found.append(f"the database has failed, nothing is stored any more: {stats.database_failed}")
    if stats.closing_down:
        found.append("the host is shutting down")
    else:
        found += [f"the {name} actor is not there" for name, alive in stats.actors_alive.items() if not alive]
    return found


def _what_is_there(stats: Stats) -> list[Row]:
    return [
        ("conversations", _number(sum(stats.conversations.values()))),
        *((f"  {state}", _number(number)) for state, number in stats.conversations.items()),
        ("  out of memory", _number(stats.passive)),
        ("turns running", _number(stats.running)),
        ("turns waiting", _number(stats.queued)),
        ("  the oldest for", _waited(stats)),
        ("model calls, waiting", f"{stats.model_calls:,}, {stats.model_calls_waiting:,}"),
        ("tool calls, waiting", f"{stats.tool_calls:,}, {stats.tool_calls_waiting:,}"),
        ("jobs for the database", _number(stats.database_waiting)),
        ("memory", amount(stats.rss_bytes)),
        ("histories", amount(stats.history_bytes)),
        ("database file", amount(stats.file_bytes)),
        ("WAL", amount(stats.wal_bytes)),
    ]


def _what_happens(before: Stats | None, stats: Stats) -> list[Row]:
    each = rates(before, stats)
    half, nearly_all = _took(before, stats)
    return [
        ("turns/s" if before is not None else "turns/s since start", rate(each.turns_ended)),
        ("  failed", rate(each.turns_failed)),
        ("  accepted", rate(each.turns_accepted)),
        ("  p50 at most", half),
        ("  p99 at most", nearly_all),
        ("commits/s", rate(each.commits)),
        ("turns ended", _number(sum(stats.turns_ended.values()))),
        ("  failed", _number(stats.turns_ended["failed"])),
        ("restarts", _number(stats.restarts)),
        ("  parked", _number(stats.parked)),
        ("dead letters", _number(stats.dead_letters)),
        ("bounds reached", _number(stats.overflows)),
        ("passivations", _number(stats.passivations)),
        ("expirations", _number(stats.expirations)),
        ("timers", _number(stats.timers)),
        ("events missed", _number(stats.lagged_events)),
    ]


def _took(before: Stats | None, after: Stats) -> tuple[str, str]:
    took = after.turn_seconds
    if before is not None and before.uptime_s <= after.uptime_s:
        took = took.since(before.turn_seconds)
    return _bound(took.within(0.5)), _bound(took.within(0.99))


def _bound(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return "more" if seconds == inf else span(seconds)


def _waited(stats: Stats) -> str:
    return "-" if stats.oldest_waiting_s is None else span(max(0.0, stats.oldest_waiting_s))


def _row(row: Row) -> str:
    name, value = row
    return f"{name:<{NAME}}{value:>{VALUE}}"


def _number(count: int) -> str:
    return f"{count:,}"


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: max(0, columns - 1)] + "\u2026"


# -- one line for each moment, where nobody watches ------------------------------------------------------

_COLUMNS: Sequence[tuple[str, int]] = (
    ("live", 9),
    ("running", 9),
    ("waiting", 9),
    ("oldest", 13),
    ("models", 8),
    ("turns/s", 9),
    ("failed/s", 10),
    ("commits/s", 11),
    ("restarts", 10),
    ("dead", 7),
    ("memory", 13),
    ("WAL", 13),
)


def heads() -> str:
    """What is above the lines of `short`."""
    return "".join(name.rjust(width) for name, width in _COLUMNS)


def short(before: Stats | None, stats: Stats) -> str:
    """The most important figures in one line."""
    each = rates(before, stats)
    cells = (
        _number(sum(stats.conversations.values())),
        _number(stats.running),
        _number(stats.queued),
        _waited(stats),
        _number(stats.model_calls),
        rate(each.turns_ended),
        rate(each.turns_failed),
        rate(each.commits),
        _number(stats.restarts),
        _number(stats.dead_letters),
        amount(stats.rss_bytes),
        amount(stats.wal_bytes),
    )
    return "".join(f" {cell}".rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
