"""Values of a setting, as a command line writes them."""

from __future__ import annotations

import json
import tomllib
from typing import Any


def written_values(text: str) -> list[Any]:
    """The values in "10,50,100", each as TOML writes it; where that is no TOML, the words between commas."""
    try:
        found = tomllib.loads(f"values = [{text}\n]")
    except tomllib.TOMLDecodeError:
        return [_written(part.strip()) for part in text.split(",") if part.strip()]
    values: list[Any] = found["values"]
    return values if [*found] == ["values"] else [text]


def _written(word: str) -> Any:
    try:
        found = tomllib.loads(f"value = {word}")
    except tomllib.TOMLDecodeError:
        return word
    return found["value"] if [*found] == ["value"] else word


def written(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
