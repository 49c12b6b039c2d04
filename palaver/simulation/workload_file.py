"""Workloads as TOML: a whole file, or one key that is replaced."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import attrs

from actors.config import Limits
from actors.errors import InvalidConfig
from palaver.simulation.quantities import Quantity, seconds
from palaver.simulation.workload import (
    Arrivals,
    Contradiction,
    Disk,
    Faults,
    Provider,
    Senders,
    Tools,
    Workload,
)
from palaver.toml.fields import suggest
from palaver.toml.lines import Path
from palaver.toml.reading import Reader, checked

W = TypeVar("W", bound=Workload)

PARTS: dict[str, type[Any]] = {
    "senders": Senders,
    "arrivals": Arrivals,
    "provider": Provider,
    "tools": Tools,
    "limits": Limits,
    "disk": Disk,
    "faults": Faults,
}
"""The tables of a workload."""


def keys() -> dict[str, attrs.Attribute[Any]]:
    """Every key of a workload, dotted, with the field that it sets, in the order of the classes."""
    found = {each.name: each for each in attrs.fields(Workload) if each.name not in PARTS}
    for table, kind in PARTS.items():
        found |= {f"{table}.{each.name}": each for each in attrs.fields(kind)}
    return found


def load_workload(path: str | os.PathLike[str], kind: type[W]) -> W:
    """`Workload.from_toml`."""
    return _read(Reader.of_file(path), kind)


def read_workload(text: str, file: str, kind: type[W]) -> W:
    """`Workload.from_text`."""
    return _read(Reader(file, text), kind)


def _read(reader: Reader, kind: type[W]) -> W:
    folder = os.path.dirname(reader.file)
    given = _fields(reader, (), Workload, folder, PARTS)
    for table, part in PARTS.items():
        given[table] = part(**_fields(reader, (table,), part, folder))
    try:
        workload = kind(**given)
    except Contradiction as error:
        for key, words in error.problems:
            reader.problem(tuple(key.split(".")), words)
    reader.finish()
    return workload


def _fields(
    reader: Reader, path: Path, kind: type[Any], folder: str, elsewhere: Mapping[str, type[Any]] | None = None
) -> dict[str, Any]:
    return reader.fields(path, kind, elsewhere=elsewhere or (), read=partial(_value, kind, folder))


def _value(kind: type[Any], folder: str, name: str, written: Any) -> Any:
    """What a file has written, as the field `name` takes it."""
    validator = getattr(attrs.fields(kind), name).validator
    if isinstance(validator, Quantity):
        return validator.read(written, folder)
    return seconds(written) if name.endswith("_s") else written


def changed(workload: W, changes: Mapping[str, object], folder: str) -> W:
    """`Workload.with_values`."""
    known = keys()
    given: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        if key not in known:
            raise InvalidConfig(f"a workload has no key {key}; {suggest(key, known)}")
        table, _, name = key.rpartition(".")
        try:
            read = _value(PARTS.get(table, Workload), folder, name, value)
            given.setdefault(table, {})[name] = checked(known[key], read)
        except InvalidConfig as error:
            raise InvalidConfig(f"{key} {str(error).removeprefix(f'{name} ')}") from error
    parts = {table: attrs.evolve(getattr(workload, table), **new) for table, new in given.items() if table}
    return attrs.evolve(workload, **given.get("", {}), **parts)


def swept(text: str) -> tuple[str, list[object]]:
    """What `KEY=VALUE,VALUE,...` asks a sweep for: the key, and the values, as TOML writes them.

    Words and lengths of time need no quotes: `provider.over=wait,429`, `senders.think_s=30s,5m`.

    Raises:
        InvalidConfig: there is no such key, or no value, or the text has another form.
    """
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not listed.strip():
        raise InvalidConfig(
            f"a sweep is KEY=VALUE,VALUE,... as in limits.model_calls=10,50,100; not {text!r}"
        )
    if key not in keys():
        raise InvalidConfig(f"a workload has no key {key}; {suggest(key, keys())}")
    try:
        return key, list(tomllib.loads(f"values = [{listed}]")["values"])
    except tomllib.TOMLDecodeError as error:
        words = [word.strip() for word in listed.split(",")]
        if all(word and not {*word} & {*"{}[]\"'="} for word in words):
            return key, list(words)
        raise InvalidConfig(f"the values of {key} are no list of TOML values: {error}") from error
