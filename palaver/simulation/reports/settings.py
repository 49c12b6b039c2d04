"""What a workload sets, as rows of names and values."""

from __future__ import annotations

from typing import Any

import attrs

from palaver.simulation.reports.numbers import number


def changed_settings(workload: Any) -> list[list[str]]:
    """Each setting that is not as by default, with its name in dots and its value."""
    return [[name, _words(value)] for name, value in _changed(workload, type(workload)(), "")]


def _changed(record: Any, default: Any, path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field in attrs.fields(type(record)):
        value, usual = getattr(record, field.name), getattr(default, field.name)
        if value == usual:
            continue
        if (
            attrs.has(type(value))
            and type(value) is type(usual)
            and hasattr(usual, "__attrs_attrs__")
            and _is_table(value)
        ):
            found += _changed(value, usual, f"{path}{field.name}.")
        else:
            found.append((f"{path}{field.name}", value))
    return found


def _is_table(value: Any) -> bool:
    """Whether it is one of a workload's tables; a distribution is a value, with a `mean`."""
    return not hasattr(value, "draw")


def _words(value: Any) -> str:
    if attrs.has(type(value)):
        parts = ((f.name.lstrip("_"), getattr(value, f.name)) for f in attrs.fields(type(value)) if f.init)
        return f"{type(value).__name__}({', '.join(f'{name}={_words(each)}' for name, each in parts)})"
    if isinstance(value, tuple):
        shown = [_words(each) for each in value[:6]]
        return ", ".join([*shown, f"... ({len(value):,} values)"] if len(value) > 6 else shown)
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
