"""What a workload sets, as rows of names and values."""

from __future__ import annotations

from typing import Any

import attrs

from palaver.simulation.distributions import Fixed
from palaver.simulation.reports.numbers import number

MOST = 6


def changed_settings(workload: Any) -> list[list[str]]:
    """Each setting that is not as by default, with its name in dots and its value."""
    return [[name, _words(value)] for name, value in _changed(workload, type(workload)(), "")]


def _changed(record: Any, default: Any, path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field in attrs.fields(type(record)):
        value, usual = getattr(record, field.name), getattr(default, field.name)
        if value == usual:
            continue
        if _is_table(value):
            found += _changed(value, usual, f"{path}{field.name}.")
        else:
            found.append((f"{path}{field.name}", value))
    return found


def _is_table(value: Any) -> bool:
    """Whether it is one of a workload's tables; a distribution is a value, with a `mean`."""
    return attrs.has(type(value)) and not hasattr(value, "draw")


def _words(value: Any) -> str:
    if isinstance(value, Fixed):
        return _words(value.value)
    if attrs.has(type(value)):
        names = [field.name for field in attrs.fields(type(value)) if not field.name.startswith("_")]
        parts = (f"{name} {_words(getattr(value, name))}" for name in names)
        return f"{type(value).__name__}: {', '.join(parts)}"
    if isinstance(value, tuple):
        shown = [_words(each) for each in value[:MOST]]
        return ", ".join([*shown, f"... ({len(value):,} values)"] if len(value) > MOST else shown)
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
