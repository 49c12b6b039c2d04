"""Comparing recoveries: with what was left undone, and with one another."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from typing import Any

from crash.driver import Driver
from crash.picture import Picture, take_picture
from crash.series import Series


def recover_aside(driver: Driver, series: Series) -> tuple[Picture, dict[str, int]]:
    """Recover a copy of the file without a kill: what it comes to, and how often it was at each point."""
    folder = series.path.parent / "aside"
    folder.mkdir()
    for suffix in ("", "-wal"):
        source = series.path.with_name(series.path.name + suffix)
        if source.exists():
            shutil.copyfile(source, folder / source.name)
    path = folder / series.path.name
    order = {"life": "aside", "mode": "drain", "seed": 0, "path": str(path), "notes": str(folder / "notes")}
    reached: dict[str, int] = {}
    for event in driver.live(order):
        reached = event.get("reached", reached)
    return take_picture(path, folder), reached


def check_order(left: Picture, picture: Picture) -> None:
    """The turn that ran goes first, then the steers that it did not come to, then what waited, by id."""
    steered = {steer.id for steer in left.steers}
    line: dict[str, list[tuple[bool, bool, int]]] = {handle: [] for handle in left.sessions}
    for turn in left.turns.values():
        if not turn.ended:
            line[turn.handle].append((turn.state != "running", turn.id not in steered, turn.id))
    for steer in left.steers:
        if steer.applied_turn is None:
            line[steer.handle].append((True, False, steer.id))
    for handle, places in line.items():
        expected = [id_ for _, _, id_ in sorted(places)]
        ran = [
            id_ for id_, _ in itertools.groupby(seen.turn_id for seen in picture.transcripts.get(handle, ()))
        ]
        came = [id_ for id_ in ran if id_ in expected]
        assert came == expected, f"G20: what was left of {handle} ran as {came}, and should as {expected}"


def outcome(left: Picture, picture: Picture) -> dict[str, Any]:
    """What became of all that was left undone, and what was said: no ids, no times, no counts."""
    turns = sorted(
        (turn.content, turn.state, turn.result and turn.result.text) for turn in picture.turns.values()
    )
    said = {
        handle: [
            (seen.entry.role, seen.entry.content, seen.entry.tool_call_id, seen.entry.tool_calls)
            for seen in entries
        ]
        for handle, entries in sorted(picture.transcripts.items())
    }
    return {"turns": turns, "said": said, "sessions": sorted(left.sessions)}


def check_same(one: Any, other: Any, words: str) -> None:
    if one == other:
        return
    lines = [
        f"{words}:",
        *(f"  {a!r}\n  {b!r}" for a, b in itertools.islice(_differences(one, other), 5)),
    ]
    raise AssertionError("\n".join(lines))


def _differences(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(one, Picture):
        names = ("sessions", "turns", "steers", "transcripts", "markers", "memory", "deleted")
        for name in names:
            yield from _differences(getattr(one, name), getattr(other, name))
    elif isinstance(one, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                yield from _differences(one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list):
        yield from ((a, b) for a, b in itertools.zip_longest(one, other) if a != b)
    elif one != other:
        yield one, other
